"""Which implementation runs an op: the table, the explicit requests, and the report of what there is."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from . import _native
from ._version import __version__

_OPS = (
    "pack",
    "pool",
    "linear",
    "conv2d",
    "lif",
    "norm_lif",
    "block_score",
    "select",
    "sample",
    "transpose_index",
    "temporal",
)
# The ops that each implementation offers, best first: the automatic choice is the first that can serve.
BACKENDS: dict[str, tuple[str, ...]] = {
    "native": _OPS,
    "triton": ("pack", "pool", "linear", "conv2d", "lif", "norm_lif", "block_score"),
    "cuda": _OPS,
    "reference": _OPS,
}
# What a GPU's work needs the host for. In a captured graph pack, temporal and select assert on the device instead.
_HOST = {
    "pack": "waits to learn whether the input holds what was promised",
    "temporal": "waits to learn whether every z is a time",
    "select": "waits to learn whether a score is NaN, and of a stream of scores how many pass",
    "rewire": "waits 4 to 10 times for all layers together, to learn whether all is in order and for numbers of blocks "
    "(more by layer where neurons share growth, or what never was active comes first); seeds come from a CPU generator",
}
_DTYPES = {
    "native": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.float16, torch.bfloat16),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
_CUDA_TENSORS = ("cuda",)  # tests add the CPU, for kernels that they emulate
_TRITON_PRODUCTS = ("linear", "conv2d", "block_score")
_TRITON_MIN_BLOCK = 16  # tl.dot takes no smaller tile; ops without blocks have none to be too small


def _refusal(
    backend: str, op: str, device_type: str, dtype: torch.dtype, block: Sequence[int] | None, explicit: bool
) -> str:
    """Why `backend` cannot serve this call, and what to do; empty if it can."""
    if op not in BACKENDS[backend]:
        return f"{op} has no {backend} implementation"
    if backend == "reference":
        return ""
    if dtype not in _DTYPES[backend]:
        offered = ", ".join(map(str, _DTYPES[backend]))
        return f"it computes in {offered}, not in {dtype}; convert the layer or ask for 'reference'"
    if backend == "native":
        if device_type != "cpu":
            return f"its kernels run on CPU tensors, not on {device_type}; move the model or ask for 'auto'"
        return _native.reason()
    if backend == "cuda":
        if device_type not in _CUDA_TENSORS:
            return f"its kernels run on CUDA tensors, not on {device_type}; move the model or ask for 'auto'"
        return _native.cuda_reason()
    # The interpreter is for tests: far slower than the reference, so never an automatic choice.
    interpreted = explicit and os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != "cuda" and not interpreted:
        return f"it runs on CUDA tensors, not on {device_type} (on any for tests, with TRITON_INTERPRET=1)"
    if op in _TRITON_PRODUCTS and interpreted and dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly; use float16 or float32"
    if block is not None and min(block) < _TRITON_MIN_BLOCK:
        shape = "x".join(map(str, block))
        return (
            f"it needs both block dimensions >= {_TRITON_MIN_BLOCK}, got {shape}; choose a larger block_size"
        )
    return triton_reason()


@functools.cache
def triton_reason() -> str:
    """Why Triton is not available, and what to do; empty if it is."""
    try:
        import triton  # noqa: F401
    except ImportError as e:
        return f"Triton does not load ({e}); `pip install 'esl_sparse[triton]'`"
    capabilities = [] if torch.version.hip else _native.gpu_capabilities()
    if capabilities and max(capabilities) < (8, 0):
        major, minor = max(capabilities)
        return f"Triton needs compute capability 8.0, this GPU has {major}.{minor}; ask for 'auto' or 'cuda'"
    return ""


def _known(request: str, source: str) -> str:
    if request != "auto" and request not in BACKENDS:
        raise ValueError(f"{source}={request!r}: expected one of auto, {', '.join(BACKENDS)}")
    return request


_request = _known(os.environ.get("ESL_SPARSE_BACKEND", "auto"), "ESL_SPARSE_BACKEND")


@functools.cache  # asked on every call of an op
def choose(
    op: str,
    device_type: str,
    dtype: torch.dtype,
    block: Sequence[int] | None = None,
    request: str | None = None,
) -> str:
    """The backend that runs `op`. Only the automatic choice falls back; a request that cannot be met raises.

    `request` overrides the process-wide one (``ESL_SPARSE_BACKEND``, `set_backend`), which leaves the choice
    automatic for ops that its backend does not offer at all.
    """
    if request is None:
        wanted = _request if _request != "auto" and op in BACKENDS[_request] else "auto"
    else:
        wanted = _known(request, "backend")
    if wanted == "auto":
        found = next(b for b in BACKENDS if not _refusal(b, op, device_type, dtype, block, explicit=False))
        if (
            found == "reference"
            and device_type == "cuda"
            and torch.version.hip
            and dtype in _DTYPES["triton"]
        ):
            _check_rocm(op, block)
        return found
    if why := _refusal(wanted, op, device_type, dtype, block, explicit=True):
        raise ValueError(f"backend {wanted!r} was asked for, but cannot run {op} here: {why}")
    return wanted


def _check_rocm(op: str, block: Sequence[int] | None) -> None:
    """The definitions build dense weights: nobody gets that unasked where the remedy is a larger block."""
    if block is not None and min(block) < _TRITON_MIN_BLOCK:
        shape = "x".join(map(str, block))
        raise ValueError(
            f"{op} on ROCm: blocks of {shape} have no kernel there; use a block_size of {_TRITON_MIN_BLOCK} or larger, "
            "or ask for the backend 'reference', which builds the dense weight"
        )


def set_backend(request: str) -> None:
    """Set the process-wide request: auto, native, triton, cuda or reference."""
    global _request
    _request = _known(request, "backend")
    choose.cache_clear()


@contextmanager
def use(request: str) -> Iterator[None]:
    """`set_backend` for a while: ``with use("reference"): ...``"""
    before = _request
    set_backend(request)
    try:
        yield
    finally:
        set_backend(before)


@dataclass(frozen=True)
class BackendReport:
    """What is compiled in, usable here and would be chosen, and why; ``print`` gives the short form."""

    version: str
    native: bool
    native_why: str
    build: str | None
    compiler: str | None
    isa: str | None
    isa_why: str
    isas_compiled: tuple[str, ...]
    isas_supported: tuple[str, ...]
    openmp: bool
    threads: int
    cuda_kernels: str
    cuda_why: str
    triton: str | None
    triton_why: str
    gpu: str | None
    request: str
    choices: dict[str, str]
    host: dict[str, str]

    def __str__(self) -> str:
        if self.native:
            threads = f"OpenMP, {self.threads} threads" if self.openmp else "1 thread (built without OpenMP)"
            native = [
                f"{self.isa}: {self.isa_why}",
                f"compiled in: {', '.join(self.isas_compiled)}; run here: {', '.join(self.isas_supported)}",
                f"{threads}; {self.compiler}, ESL_SPARSE_BUILD={self.build}",
            ]
        else:
            native = [f"no: {self.native_why}"]
        rows = [
            ("native CPU", native),
            (
                "CUDA kernels",
                [f"no: {self.cuda_why}" if self.cuda_why else f"for {self.cuda_kernels} and newer"],
            ),
            ("Triton", [self.triton or f"no: {self.triton_why}"]),
            ("GPU", [self.gpu or "none that torch can see"]),
            ("request", [self.request]),
            ("chosen", [f"{call} -> {backend}" for call, backend in self.choices.items()]),
            ("host, on a GPU", [f"{op}: {why}" for op, why in self.host.items()]),
        ]
        lines = [f"esl_sparse {self.version}, torch {torch.__version__}"]
        for name, values in rows:
            lines += [f"  {name if i == 0 else '':14} {value}" for i, value in enumerate(values)]
        return "\n".join(lines)


def backends() -> BackendReport:
    """What is compiled in, what is usable here, and what would be chosen."""
    native = _native.available()
    info = _native.build_info() if native else {}
    supported = tuple(_native.supported_isas()) if native else ()
    isa = _native.get_isa() if native else None
    if "ESL_SPARSE_ISA" in os.environ:
        isa_why = f"ESL_SPARSE_ISA={os.environ['ESL_SPARSE_ISA']}"
    else:
        isa_why = "the best that runs here" if supported and isa == supported[-1] else "set by the program"
    version = None
    if not (triton_why := triton_reason()):
        import triton

        version = triton.__version__
    calls: list[tuple[str, str, torch.dtype, tuple[int, int] | None]] = [
        ("linear", "cpu", torch.float32, (4, 4)),
        ("linear", "cpu", torch.float64, (4, 4)),
        ("linear", "cuda", torch.bfloat16, (4, 4)),
        ("linear", "cuda", torch.bfloat16, (16, 16)),
        *((op, "cuda", torch.float32, None) for op in _OPS if op not in ("linear", "conv2d")),
    ]
    choices = {}
    for op, device, dtype, block in calls:
        try:
            choice = choose(op, device, dtype, block)
        except ValueError as e:
            choice = f"error: {e}"
        blocks = f", blocks {block[0]}x{block[1]}" if block else ""
        choices[f"{op}, {device}, {str(dtype).removeprefix('torch.')}{blocks}"] = choice
    return BackendReport(
        version=__version__,
        native=native,
        native_why=_native.reason(),
        build=info.get("build"),
        compiler=info.get("compiler"),
        isa=isa,
        isa_why=isa_why,
        isas_compiled=tuple(info.get("isas", ())),
        isas_supported=supported,
        openmp=info.get("openmp", False),
        threads=torch.get_num_threads(),
        cuda_kernels=info.get("cuda", "no: there are no native kernels"),
        cuda_why=_native.cuda_reason(),
        triton=version,
        triton_why=triton_why,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        request=_request if _request == "auto" else f"{_request} (ESL_SPARSE_BACKEND or set_backend)",
        choices=choices,
        host=_HOST,
    )
