"""The table of linear problems and their comparison with the oracle; CPU and GPU tests share it."""

from typing import NamedTuple

import numpy as np
import torch

from esl_sparse import BlockLayout, BlockTopology, PackedSpikes
from esl_sparse.functional import linear, linear_packed

from .. import oracle


class Case(NamedTuple):
    rows: int
    cols: int
    block: tuple[int, int]
    T: int = 1
    B: int = 8
    density: float = 0.5
    rate: float = 0.3
    stripes: bool = False  # leave out every second block row and column, the first ones too
    bias: bool = True


CASES = {
    "1x1": Case(5, 7, (1, 1), T=1, B=3),
    "1x1-two-groups": Case(19, 33, (1, 1), T=3, B=30, density=0.2),
    "1x4": Case(9, 10, (1, 4), T=2, B=5),
    "4x1": Case(10, 9, (4, 1), T=3, B=7),
    "2x8": Case(7, 21, (2, 8), T=1, B=65),
    "8x2": Case(21, 7, (8, 2), T=2, B=33, bias=False),
    "4x4": Case(12, 16, (4, 4), T=2, B=64),
    "4x4-overhang": Case(13, 18, (4, 4), T=3, B=21),
    "8x8": Case(20, 30, (8, 8), T=1, B=130),
    "16x1": Case(33, 6, (16, 1), T=4, B=9),
    "1x16": Case(6, 33, (1, 16), T=1, B=16),
    "16x16": Case(40, 50, (16, 16), T=1, B=70),
    "16x16-two-steps": Case(33, 20, (16, 16), T=2, B=5, density=0.8),
    "16x16-aligned": Case(64, 96, (16, 16), T=2, B=32, bias=False),
    "32x4": Case(65, 13, (32, 4), T=2, B=11),
    "4x32": Case(13, 65, (4, 32), T=2, B=11),
    "16x64": Case(31, 130, (16, 64), T=1, B=24),
    "64x64": Case(100, 70, (64, 64), T=1, B=67),
    "128x32": Case(130, 40, (128, 32), T=1, B=9, density=1.0),
    "128x128": Case(129, 140, (128, 128), T=2, B=1, density=1.0),
    "one-channel": Case(1, 1, (1, 1), T=1, B=1, density=1.0),
    "one-input": Case(9, 1, (4, 1), T=2, B=3, density=1.0),
    "one-output": Case(1, 11, (1, 4), T=2, B=3, density=1.0),
    "no-blocks": Case(9, 10, (4, 4), density=0.0),
    "no-blocks-16x16": Case(33, 20, (16, 16), density=0.0),
    "empty-rows-and-columns": Case(23, 31, (4, 4), T=1, B=20, stripes=True),
    "empty-rows-and-columns-16x16": Case(90, 70, (16, 16), T=1, B=20, stripes=True),
    "every-block": Case(10, 14, (2, 4), T=2, B=40, density=1.0),
    "no-samples": Case(9, 10, (4, 4), B=0),
    "no-samples-16x16": Case(33, 20, (16, 16), B=0),
    "no-steps": Case(9, 10, (4, 4), T=0, B=4),
    "silent": Case(12, 20, (4, 4), B=40, rate=0.0),
    "firing": Case(12, 20, (4, 4), B=40, rate=1.0),
    "firing-16x16": Case(40, 50, (16, 16), T=3, B=24, rate=1.0),
    "rare": Case(40, 100, (16, 4), T=4, B=64, rate=0.02),
}

# kind of input -> (planes, scale); float inputs have no planes
KINDS = {
    "binary": (1, 1.0),
    "halves": (1, 0.5),
    "levels2": (2, 1.0),
    "levels3": (3, 0.25),
    "levels4": (4, 0.5),
    "float": (0, 1.0),
}

# name -> (dtype of x, dtype of values, tolerance). A result may differ from the exact one by the tolerance
# times the same sum of absolute values. A narrow result is rounded to half an ulp, by plain PyTorch twice.
DTYPES = {
    "float32": (torch.float32, torch.float32, 1e-6),
    "bfloat16": (torch.bfloat16, torch.bfloat16, 2**-7),
    "autocast": (torch.bfloat16, torch.float32, 2**-7),
    "float16": (torch.float16, torch.float16, 2**-10),
    "float64": (torch.float64, torch.float64, 1e-14),
}
OFFERED = {
    "reference": ("float32", "bfloat16", "autocast", "float16", "float64"),
    "native": ("float32", "bfloat16", "autocast"),
    # The interpreter multiplies bfloat16 wrongly.
    "triton": ("float32", "float16"),
    "cuda": ("float32", "bfloat16", "autocast", "float16"),
}


def block_ids(case: Case, rng: np.random.Generator) -> np.ndarray:
    grid = (-(-case.rows // case.block[0]), -(-case.cols // case.block[1]))
    active = rng.random(grid) < case.density
    if case.stripes:
        active = np.zeros(grid, bool)
        active[1::2, 1::2] = True
    return np.flatnonzero(active)


def topology_of(case: Case, ids: np.ndarray, device: str = "cpu") -> BlockTopology:
    layout = BlockLayout(case.rows, case.cols, *case.block)
    return BlockTopology.from_block_ids(torch.from_numpy(ids).to(device), layout)


def _skipping_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` where zero times NaN or infinity is zero."""
    terms = a[:, :, None] * b
    terms[(a[:, :, None] == 0) | (b == 0)] = 0
    return terms.sum(1)


class Problem:
    """Random operands of a case. What overhangs the weight holds garbage: no result may depend on it."""

    def __init__(self, case: Case, kind: str, dtype: str, device: str = "cpu", seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.case, self.device = case, device
        self.planes, self.scale = KINDS[kind]
        x_dtype, values_dtype, self.tolerance = DTYPES[dtype]
        N, shape = case.T * case.B, (case.rows, case.cols)
        self.ids = block_ids(case, rng)
        self.topology = topology_of(case, self.ids, device)
        if self.planes:
            self.levels = rng.integers(1, 2**self.planes, (N, case.cols)) * (
                rng.random((N, case.cols)) < case.rate
            )
            x = self.levels * self.scale
        else:
            x = rng.standard_normal((N, case.cols))
        values = rng.standard_normal((len(self.ids), *case.block))
        overhang = oracle.blocks(np.ones(shape), self.ids, case.block) == 0
        values[overhang] = rng.choice([np.nan, np.inf, -np.inf, 1e30], overhang.sum())

        def tensor(array, dtype):
            return torch.tensor(array, dtype=dtype, device=device)

        self.x = tensor(x, x_dtype).requires_grad_()
        self.values = tensor(values, values_dtype).requires_grad_()
        self.bias = (
            tensor(rng.standard_normal(case.rows), values_dtype).requires_grad_() if case.bias else None
        )
        self.grad = tensor(rng.standard_normal((N, case.rows)), x_dtype)

    def packed(self) -> PackedSpikes:
        """x as the format defines it, with a carrier that takes a gradient."""
        case = self.case
        levels = self.levels.reshape(case.T, case.B, case.cols, 1, 1)
        words = torch.from_numpy(oracle.pack(levels, self.planes)).to(self.device)
        carrier = self.x.new_zeros(1).expand(*words.shape[1:], 64).requires_grad_()
        return PackedSpikes(carrier, words, case.T, case.B, self.scale)

    def expected(self, zero_times_anything_is_zero: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Each result and the sum of absolute values that its error is measured by."""
        product = _skipping_product if zero_times_anything_is_zero else np.matmul
        shape, block = (self.case.rows, self.case.cols), self.case.block
        x, values, grad = (t.detach().double().cpu().numpy() for t in (self.x, self.values, self.grad))
        bias = 0.0 if self.bias is None else self.bias.detach().double().cpu().numpy()
        weight = oracle.dense(values, self.ids, shape)
        results = {}
        for name, f in (("exact", lambda a: a), ("bound", np.abs)):
            x_, w_, b_, g_ = f(x), f(weight), f(bias), f(grad)
            results[name] = {
                "y": product(x_, w_.T) + b_,
                "x.grad": product(g_, w_),
                "values.grad": oracle.blocks(product(g_.T, x_), self.ids, block),
                "bias.grad": g_.sum(0),
            }
        return {key: (results["exact"][key], results["bound"][key]) for key in results["exact"]}


def assert_close(name: str, actual: torch.Tensor, exact: np.ndarray, bound: np.ndarray, tolerance: float):
    assert tuple(actual.shape) == exact.shape, name
    error = np.abs(actual.detach().double().cpu().numpy() - exact)
    smallest = torch.finfo(actual.dtype).smallest_normal  # what is smaller has fewer digits
    worst = (error - tolerance * np.maximum(bound, smallest)).max(initial=0.0)
    assert worst <= 0, f"{name}: error {error.max()} exceeds {tolerance} of the sum of absolute values"
    assert not np.isnan(error).any(), f"{name}: NaN at {np.argwhere(np.isnan(error))[0]}"


def check(case: Case, kind: str, form: str, dtype: str, device: str = "cpu") -> None:
    """Compare the result and every gradient with the oracle.

    form: ``rows`` (float rows; the op packs them unless the kind is float), ``packed`` (PackedSpikes to rows)
    or ``panels`` (PackedSpikes to panels).
    """
    p = Problem(case, kind, dtype, device)
    T, B = case.T, case.B
    if form == "rows":
        source = p.x
        y = linear(p.x, p.values, p.bias, p.topology, p.planes, p.scale)
        grad = p.grad
        assert y.dtype == p.x.dtype
    else:
        spikes = p.packed()
        source = spikes.carrier
        y = linear_packed(spikes, p.values, p.bias, p.topology, panels=form == "panels")
        grad = p.grad.view(T, B, case.rows)
        if form == "panels":
            grad = grad.new_tensor(oracle.to_panels(grad.double().cpu().numpy()[..., None, None]))
        assert y.dtype == p.values.dtype
    inputs = [source, p.values, *([] if p.bias is None else [p.bias])]
    grads = torch.autograd.grad(y, inputs, grad.to(y.dtype))
    if form == "panels":
        y = y.new_tensor(oracle.from_panels(y.detach().double().cpu().numpy(), T, B))
    grad_x = grads[0]
    if form != "rows":
        padding = torch.from_numpy(oracle.padding_lanes(T, B)).to(device)
        assert not grad_x.permute(0, 4, 1, 2, 3)[padding].any(), "padding lanes of a gradient panel are zero"
        grad_x = grad_x.new_tensor(oracle.from_panels(grad_x.double().cpu().numpy(), T, B))
    results = {
        "y": y.reshape(T * B, case.rows),
        "x.grad": grad_x.reshape(T * B, case.cols),
        "values.grad": grads[1],
    }
    if p.bias is not None:
        results["bias.grad"] = grads[2]
    expected = p.expected()
    for name, actual in results.items():
        assert_close(name, actual, *expected[name], p.tolerance)
    outside = oracle.blocks(np.ones((case.rows, case.cols)), p.ids, case.block) == 0
    assert not results["values.grad"].detach().float().cpu().numpy()[outside].any(), (
        "gradient of the overhang is zero"
    )
