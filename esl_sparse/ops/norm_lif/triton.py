"""Launches the Triton kernels of norm_lif (``triton_kernels.py``, imported at the first launch).

The tile of a program is fixed: nothing is tuned. A call can be captured once one like it has loaded the kernel. Panels
may be narrow; vectors, tau and what is computed are float32.
"""

from __future__ import annotations

from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...packed import LANES, Lanes
from .._library import empty
from .._triton import even_chunks, on
from .reference import affine

if TYPE_CHECKING:
    from .op import Backward, Forward

_WARPS = 2


def _steps(call: Forward | Backward) -> dict[str, Any]:
    """Of a chunk: those whose values a thread holds in registers; and whether chunks divide the run."""
    steps = even_chunks(call.T, 10 if call.current2 is None and call.residual is None else 5)
    return {"STEPS": steps, "WHOLE": call.T % steps == 0}


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


class _Tiles(NamedTuple):
    """How a call is cut: rows of L lanes, P of a unit side by side, ROWS a program; see the kernels."""

    L: int
    P: int
    ROWS: int
    blocks: int
    programs: int

    @classmethod
    def of(cls, current: Tensor, lanes: Lanes, values: int) -> _Tiles:
        """values: of a thread at a step."""
        L = next(n for n in (32, 16, 8) if lanes.padded % n == 0)
        P = 2 if lanes.padded % 64 == 0 else 1
        rows = _WARPS * 32 * values // L
        blocks = lanes.padded // (L * P)
        return cls(L, P, rows, blocks, -(-prod(current.shape[1:4]) * P // rows) * blocks)

    def pieces(self, words: Tensor) -> Tensor:
        """The same words in pieces of L bits."""
        return words.contiguous().view({8: torch.uint8, 16: torch.int16, 32: torch.int32}[self.L])


def _options(call: Forward | Backward, tiles: _Tiles, residual: Tensor | None) -> dict[str, Any]:
    lanes = Lanes(call.T, call.B)
    return {
        "T": call.T,
        "B": call.B,
        "octets": lanes.padded // 8,
        "groups": lanes.groups,
        "units": prod(call.current.shape[1:4]),
        "C": call.current.shape[3],
        "v_threshold": float(call.v_threshold),
        "v_reset": float(call.v_reset or 0.0),
        "scale": float(call.residual_scale),
        "HARD": call.v_reset is not None,
        "SECOND": call.current2 is not None,
        "PLANES": 0 if residual is None else residual.shape[0],
        "L": tiles.L,
        "P": tiles.P,
        "ROWS": tiles.ROWS,
        **_steps(call),
        "enable_fp_fusion": False,  # spikes must equal those of the plain loop
        "num_warps": _WARPS,
    }


def _given(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """What a kernel is told that is given; it never looks at what is not."""
    return instead if tensor is None else tensor.contiguous()


def forward(call: Forward) -> Tensor:
    current, lanes = call.current.contiguous(), Lanes(call.T, call.B)
    words = current.new_empty((1, *current.shape[:4]), dtype=torch.int64)
    if not words.numel():
        return words
    tiles = _Tiles.of(current, lanes, 16 // current.element_size())
    residual = None if call.residual is None else tiles.pieces(call.residual)
    with on(current.device):
        _kernels().forward[(tiles.programs,)](
            current,
            _given(call.a, current),
            _given(call.b, current),
            _given(call.current2, current),
            _given(call.a2, current),
            _given(call.b2, current),
            _given(residual, words),
            tiles.pieces(words),
            call.tau,
            NORM=call.a is not None,
            NORM2=call.a2 is not None,
            **_options(call, tiles, residual),
        )
    return words


class _Pass(NamedTuple):
    """What a pass back through time is for: bit sets as the kernel takes them."""

    sums: int
    put: int
    batch: int
    tau: bool


def backward(call: Backward) -> tuple[Tensor, ...]:
    asked = [bool(call.needs >> i & 1) for i in range(8)]
    norms, C = call.norms, call.current.shape[3]
    panels = [None if panel is None else panel.contiguous() for panel in (call.current, call.current2)]
    grad_residual = call.current.new_empty(call.current.shape if asked[6] else (0,))
    through = [norm.batch_stats and asked[3 * i] for i, norm in enumerate(norms)]
    of_gx = [through[i] or asked[3 * i + 1] for i in range(2)]
    of_g = any(through) or asked[2] or asked[5]
    sums = of_g | of_gx[0] << 1 | of_gx[1] << 2
    put = asked[0] | asked[3] << 1 | asked[6] << 2
    totals = torch.zeros((3, C), dtype=torch.float64, device=call.current.device)
    grad_tau = totals.new_zeros(())
    if call.current.numel():
        launch = _Backward(call, panels, grad_residual)
        if any(through):
            totals, grad_tau = launch(_Pass(sums, 0, 0, asked[7]), totals)
            launch(_Pass(0, put, through[0] | through[1] << 1, False), totals)
        elif sums or put or asked[7]:
            totals, grad_tau = launch(_Pass(sums, put, 0, asked[7]), totals)
    for given, used in zip((call.current, call.current2), panels, strict=True):
        if given is not None and used is not None and used is not given:
            given.copy_(used)
    of_norms: list[Tensor] = []
    for i, norm in enumerate(norms):
        of_gamma = totals[i + 1] * norm.rstd if norm.rstd is not None else totals[i + 1]
        for wanted, found in ((asked[3 * i + 1], of_gamma), (asked[3 * i + 2], totals[0])):
            of_norms.append(found.float() if wanted else found.new_empty(0, dtype=torch.float32))
    return *of_norms, grad_residual, grad_tau.to(call.tau.dtype) if asked[7] else empty(call.tau)


class _Backward:
    """The operands of a call's passes back through time."""

    def __init__(self, call: Backward, panels: list[Tensor | None], grad_residual: Tensor) -> None:
        self.call, self.panels = call, panels
        current = panels[0]
        assert current is not None
        self.current, lanes = current, Lanes(call.T, call.B)
        # 4 values of narrow panels too: with 8 bytes a thread reads less at once, but all steps stay in registers.
        self.tiles = tiles = _Tiles.of(current, lanes, 4)
        residual = None if call.residual is None else tiles.pieces(call.residual)
        self.operands = (call.grad.contiguous(), tiles.pieces(call.words))
        self.affine = [affine(*norm[:4]) for norm in call.norms]
        self.residual = (residual, grad_residual)
        self.chunks = -(-call.T // _steps(call)["STEPS"])
        rows = (max(self.chunks - 1, 0), tiles.programs, tiles.ROWS, tiles.L)
        self.starts = current.new_empty(rows, dtype=torch.float32)
        self.options = _options(call, tiles, residual)

    def __call__(self, task: _Pass, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over each channel, float64 ``[3, C]``, the given ones where the task asks for none, and the gradient of
        tau."""
        call, current, tiles = self.call, self.current, self.tiles
        first, second = call.norms
        _, H, W, C, _ = current.shape
        count = call.T * call.B * H * W
        vectors: list[Tensor | None] = [None] * 3  # mean of the gradient, slopes
        if task.batch:
            vectors[0] = (totals[0] / count).float()
            for i, norm in enumerate(call.norms):
                if norm.rstd is not None:
                    vectors[i + 1] = (totals[i + 1] * norm.rstd.double().square() / count).float()
        of_g, slope, slope2 = vectors
        rows = (tiles.blocks, H * W, C, tiles.P) if task.sums else (0,)
        sums = current.new_empty((3, *rows), dtype=torch.float32)
        of_tau = sums.new_empty(tiles.programs if task.tau else 0)
        inputs = [
            *(self.panels[0], *self.affine[0], first.mean, of_g, slope),
            *(self.panels[1], *self.affine[1], second.mean, slope2),
            *self.residual,
        ]
        with on(current.device):
            _kernels().backward[(tiles.programs,)](
                *self.operands,
                *(_given(tensor, current) for tensor in inputs),
                call.tau,
                sums,
                of_tau,
                self.starts,
                W=W,
                pooled_height=H // call.pool,
                pooled_width=W // call.pool,
                width=float(call.width),
                DETACH=call.detach_reset,
                SURROGATE=call.surrogate,
                NORM=first.mean is not None,
                NORM2=second.mean is not None,
                POOL=call.pool,
                SUMS=task.sums,
                TAU=task.tau,
                PUT=task.put,
                BATCH=task.batch,
                CHUNKED=self.chunks > 1,
                **self.options,
            )
        if task.sums:
            totals = sums.sum((1, 2, 4), dtype=torch.float64)
        return totals, of_tau.sum(dtype=torch.float64)


def panel_stats(current: Tensor, T: int, B: int) -> Tensor:
    current, lanes = current.contiguous(), Lanes(T, B)
    _, H, W, C, _ = current.shape
    if not current.numel():
        return current.new_full((2, C), torch.nan, dtype=torch.float64)
    parts = current.new_empty((2, H * W, C), dtype=torch.float64)
    rows = 2 * _WARPS * 32 * 16 // current.element_size() // LANES  # two loads of a thread are under way
    with on(current.device):
        _kernels().panel_stats[(-(-H * W * C // rows),)](
            current,
            parts,
            T=T,
            B=B,
            octets=lanes.padded // 8,
            groups=lanes.groups,
            units=H * W * C,
            ROWS=rows,
            enable_fp_fusion=False,
            num_warps=_WARPS,
        )
    # Units have equally many values, so that their moments combine by plain means.
    means, squares = parts
    mean = means.mean(0)
    return torch.stack([mean, squares.mean(0) / (T * B) + (means - mean).square().mean(0)])
