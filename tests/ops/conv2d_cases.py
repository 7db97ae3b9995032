"""The table of convolutions and their comparison with torch's conv2d in float64; CPU and GPU tests share it."""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from esl_sparse import BlockLayout, BlockTopology, PackedSpikes
from esl_sparse.ops.conv2d import Geometry, conv2d, conv2d_packed, conv2d_panels

from .. import oracle
from .linear_cases import DTYPES, KINDS, assert_close


class Case(NamedTuple):
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    block: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, ...] | str = (0, 0)  # both sides of (H, W); "same"; or left, right, top, bottom
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    T: int = 1
    B: int = 8
    density: float = 0.5
    rate: float = 0.3
    stripes: bool = False  # leave out every second block row and column, the first ones too
    bias: bool = True

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.outputs, self.inputs // self.groups, *self.kernel


# Lanes are T times B rounded up to 8: 8, 16, 24, 48, 64, 80, 96, 112, 128 and 136, in words of 64 and vectors of 16.
CASES = {
    "3x3": Case(6, 10, (3, 3), (5, 7), (4, 4), padding=(1, 1), T=2, B=5),
    "3x3-80-lanes": Case(8, 12, (3, 3), (6, 7), (4, 4), padding=(1, 1), T=2, B=33),
    "3x3-96-lanes": Case(7, 5, (3, 3), (4, 9), (4, 1), T=3, B=30),
    "3x3-112-lanes": Case(9, 6, (3, 3), (7, 5), (1, 4), padding=(2, 1), T=2, B=50, bias=False),
    "3x3-136-lanes": Case(5, 9, (3, 3), (4, 4), (2, 4), padding=(1, 1), T=17, B=8),
    "1x1-kernel": Case(18, 7, (1, 1), (3, 5), (4, 4), T=1, B=64),
    "1x1-kernel-strided": Case(5, 8, (1, 1), (6, 7), (2, 2), stride=(2, 3), T=1, B=3),
    "1x1-kernel-one-pixel": Case(13, 18, (1, 1), (1, 1), (4, 4), T=3, B=21),
    "2x2-stride-2": Case(4, 6, (2, 2), (7, 8), (2, 2), stride=(2, 2), T=2, B=64),
    "stride-larger-than-kernel": Case(4, 4, (2, 1), (9, 8), (4, 4), stride=(3, 2), padding=(0, 0), B=5),
    "7x7-stride-2": Case(3, 11, (7, 7), (9, 12), (4, 4), stride=(2, 2), padding=(3, 3), B=6),
    "1x5": Case(6, 5, (1, 5), (1, 40), (4, 2), padding=(0, 2), T=1, B=9),
    "5x1": Case(5, 6, (5, 1), (11, 2), (2, 4), stride=(2, 1), padding=(2, 0), T=1, B=17),
    "dilated": Case(6, 7, (3, 2), (9, 8), (4, 4), dilation=(2, 3), padding=(2, 1), B=20),
    "dilated-strided": Case(
        5, 6, (2, 3), (8, 9), (1, 1), stride=(1, 2), dilation=(3, 2), padding=(1, 3), B=4
    ),
    "same-even-kernel": Case(5, 8, (4, 2), (6, 5), (4, 4), padding="same", B=10),
    "same-dilated": Case(4, 5, (2, 3), (5, 6), (2, 2), padding="same", dilation=(3, 2), B=16),
    "asymmetric": Case(5, 6, (3, 3), (5, 6), (4, 4), stride=(2, 1), padding=(2, 0, 0, 1), B=7),
    "more-padding-than-kernel": Case(3, 4, (2, 2), (2, 3), (4, 4), padding=(3, 4), stride=(2, 2), B=7),
    "kernel-of-the-whole-map": Case(6, 9, (4, 5), (4, 5), (4, 4), T=4, B=8),
    "groups": Case(12, 10, (3, 3), (5, 4), (4, 4), padding=(1, 1), groups=2, T=2, B=9),
    "groups-overhang": Case(9, 15, (3, 2), (4, 6), (4, 2), groups=3, stride=(1, 2), B=18),
    "groups-16x16": Case(40, 36, (2, 2), (3, 3), (16, 16), groups=2, B=7),
    "many-groups-dense": Case(16, 64, (2, 2), (4, 5), (1, 2), groups=8, padding=(1, 0), B=3, density=1.0),
    "depthwise": Case(7, 7, (3, 3), (6, 5), (1, 1), padding=(1, 1), groups=7, T=2, B=12),
    "depthwise-twice": Case(5, 10, (3, 3), (4, 6), (2, 1), groups=5, stride=(2, 1), B=31, density=1.0),
    "8x8": Case(20, 18, (3, 3), (4, 5), (8, 8), padding=(1, 1), T=1, B=40),
    "16x16": Case(33, 20, (3, 2), (3, 4), (16, 16), padding=(1, 0), T=1, B=30),
    "16x16-strided-dilated": Case(
        20, 40, (3, 3), (6, 7), (16, 16), stride=(2, 1), dilation=(1, 2), padding=(1, 2), T=2, B=9
    ),
    "32x16-7x7": Case(18, 35, (7, 7), (4, 3), (32, 16), padding=(3, 3), B=5, density=0.3),
    "16x64": Case(70, 33, (1, 3), (2, 3), (16, 64), padding=(0, 1), T=2, B=35),
    "32x8": Case(11, 40, (2, 3), (4, 4), (32, 8), padding=(0, 1), T=5, B=10),
    "block-beyond-the-weight": Case(3, 2, (2, 2), (3, 3), (8, 16), B=5, density=1.0),
    "one-channel": Case(1, 1, (3, 3), (4, 5), (1, 1), padding=(1, 1), T=1, B=1, density=1.0),
    "one-input": Case(1, 9, (3, 3), (5, 5), (4, 1), padding=(1, 1), T=2, B=3),
    "one-output": Case(11, 1, (3, 3), (5, 5), (1, 4), T=2, B=3),
    # Tables are built 256 at a time: 64 blocks of 4x4, 256 of 1x4, 2 of 4x128.
    "many-tables": Case(60, 6, (3, 3), (3, 6), (4, 4), padding=(1, 1), B=11, density=1.0),
    "many-tables-1x4": Case(44, 2, (5, 6), (5, 6), (1, 4), B=70, density=0.9),
    "large-tables": Case(130, 5, (3, 1), (4, 3), (4, 128), B=3, density=1.0),
    # From 2 blocks of a tap's column on, the gradient of the input goes by sources, else by destinations.
    "by-sources": Case(6, 40, (3, 3), (6, 6), (4, 4), padding=(1, 1), stride=(2, 1), T=2, B=25, density=0.8),
    "by-destinations": Case(40, 6, (3, 3), (4, 12), (4, 4), padding=(1, 1), stride=(2, 1), B=25, density=0.3),
    "by-sources-in-pieces": Case(48, 6, (1, 3), (2, 100), (1, 2), padding=(0, 1), B=3, density=0.9),
    "no-blocks": Case(6, 5, (3, 3), (4, 4), (4, 4), density=0.0),
    "empty-rows-and-columns": Case(23, 31, (3, 3), (3, 4), (4, 4), padding=(1, 1), B=20, stripes=True),
    "every-block": Case(10, 14, (3, 3), (5, 4), (2, 4), padding=(1, 1), T=2, B=20, density=1.0),
    "no-samples": Case(5, 6, (3, 3), (4, 5), (4, 4), padding=(1, 1), B=0),
    "no-steps": Case(5, 6, (3, 3), (4, 5), (4, 4), T=0, B=4),
    "silent": Case(6, 8, (3, 3), (5, 5), (4, 4), padding=(1, 1), B=40, rate=0.0),
    "firing": Case(6, 8, (3, 3), (5, 5), (4, 4), padding=(1, 1), B=40, rate=1.0),
}


def geometry_of(case: Case) -> Geometry:
    if isinstance(case.padding, str) or len(case.padding) == 2:
        return Geometry.of(case.size, case.kernel, case.stride, case.padding, case.dilation, case.groups)
    left, right, top, bottom = case.padding
    (H, W), (kh, kw), (sh, sw), (dh, dw) = case.size, case.kernel, case.stride, case.dilation
    Ho = (H + top + bottom - dh * (kh - 1) - 1) // sh + 1
    Wo = (W + left + right - dw * (kw - 1) - 1) // sw + 1
    return Geometry(case.groups, H, W, Ho, Wo, kh, kw, sh, sw, top, left, dh, dw)


def torch_conv2d(case: Case, x, weight, bias):
    """torch's own: what every result is compared with, in float64."""
    padding = case.padding
    if not isinstance(padding, str) and len(padding) == 4:
        x, padding = F.pad(x, padding), 0
    return F.conv2d(x, weight, bias, case.stride, padding, case.dilation, case.groups)


def block_ids(case: Case, rng: np.random.Generator) -> np.ndarray:
    rows = case.groups * -(-(case.outputs // case.groups) // case.block[0])
    grid = (rows, oracle.conv_block_count(case.weight_shape, case.groups, case.block) // rows)
    active = rng.random(grid) < case.density
    if case.stripes:
        active = np.zeros(grid, bool)
        active[1::2, 1::2] = True
    return np.flatnonzero(active)


def topology_of(case: Case, ids: np.ndarray, device: str = "cpu") -> BlockTopology:
    kh, kw = case.kernel
    cols = kh * kw * (case.inputs // case.groups)
    layout = BlockLayout(case.outputs, cols, *case.block, case.groups, kh * kw)
    return BlockTopology.from_block_ids(torch.from_numpy(ids).to(device), layout)


class Problem:
    """Random operands of a case. What overhangs the weight holds garbage: no result may depend on it."""

    def __init__(self, case: Case, kind: str, dtype: str, device: str = "cpu", seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.case, self.device = case, device
        self.planes, self.scale = KINDS[kind]
        x_dtype, values_dtype, self.tolerance = DTYPES[dtype]
        self.geometry = geometry_of(case)
        self.ids = block_ids(case, rng)
        self.topology = topology_of(case, self.ids, device)
        shape = (case.T * case.B, case.inputs, *case.size)
        if self.planes:
            self.levels = rng.integers(1, 2**self.planes, shape) * (rng.random(shape) < case.rate)
            x = self.levels * self.scale
        else:
            x = rng.standard_normal(shape)
        values = rng.standard_normal((len(self.ids), *case.block))
        self.overhang = self.blocks(np.ones(case.weight_shape)) == 0
        values[self.overhang] = rng.choice([np.nan, np.inf, -np.inf, 1e30], self.overhang.sum())

        def tensor(array, dtype):
            return torch.tensor(array, dtype=dtype, device=device)

        self.x = tensor(x, x_dtype).requires_grad_()
        self.values = tensor(values, values_dtype).requires_grad_()
        bias = rng.standard_normal(case.outputs)
        self.bias = tensor(bias, values_dtype).requires_grad_() if case.bias else None
        shape = (len(x), case.outputs, self.geometry.Ho, self.geometry.Wo)
        self.grad = tensor(rng.standard_normal(shape), x_dtype)

    def blocks(self, weight: np.ndarray) -> np.ndarray:
        return oracle.conv_blocks(weight, self.ids, self.case.groups, self.case.block)

    def maps(self, tensor: torch.Tensor) -> torch.Tensor:
        """``[N, ...]`` -> ``[T, B, ...]``."""
        return tensor.reshape(self.case.T, self.case.B, *tensor.shape[1:])

    def panels(self, maps: torch.Tensor) -> torch.Tensor:
        """``[N, C, H, W]`` -> ``[G, H, W, C, 64]``."""
        return maps.new_tensor(oracle.to_panels(self.maps(maps).detach().double().cpu().numpy()))

    def from_panels(self, panels: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`panels`."""
        array = panels.detach().double().cpu().numpy()
        return panels.new_tensor(oracle.from_panels(array, self.case.T, self.case.B)).flatten(0, 1)

    def packed(self) -> PackedSpikes:
        """x as the format defines it, with a carrier that takes a gradient."""
        levels = self.levels.reshape(self.case.T, self.case.B, *self.levels.shape[1:])
        words = torch.from_numpy(oracle.pack(levels, self.planes)).to(self.device)
        carrier = self.x.new_zeros(1).expand(*words.shape[1:], 64).requires_grad_()
        return PackedSpikes(carrier, words, self.case.T, self.case.B, self.scale)

    def leaves(self) -> list[torch.Tensor]:
        return [self.x, self.values, *([] if self.bias is None else [self.bias])]

    def maps_result(self) -> torch.Tensor:
        return conv2d(self.x, self.values, self.bias, self.topology, self.geometry, self.planes, self.scale)

    def expected(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Each result and the sum of absolute values that its error is measured by."""
        x, values, grad = (t.detach().double().cpu() for t in (self.x, self.values, self.grad))
        shape, groups = self.case.weight_shape, self.case.groups
        weight = torch.from_numpy(oracle.conv_dense(values.numpy(), self.ids, shape, groups))
        bias = torch.zeros(shape[0]).double() if self.bias is None else self.bias.detach().double().cpu()
        results = []
        for f in (lambda t: t, torch.abs):
            operands = [f(t).requires_grad_() for t in (x, weight, bias)]
            y = torch_conv2d(self.case, *operands)
            grad_x, grad_weight, grad_bias = torch.autograd.grad(y, operands, f(grad))
            results.append(
                {
                    "y": y.detach().numpy(),
                    "x.grad": grad_x.numpy(),
                    "values.grad": self.blocks(grad_weight.numpy()),
                    "bias.grad": grad_bias.numpy(),
                }
            )
        exact, bound = results
        return {key: (exact[key], bound[key]) for key in exact}


def assert_statistics(panels: torch.Tensor, stats: torch.Tensor, p: Problem, tolerance: float) -> None:
    """Mean and biased variance of what the panels hold outside their padding lanes."""
    y = p.from_panels(panels).double().cpu().transpose(0, 1).flatten(1)  # [C, N * H * W]
    assert stats.shape == (2, len(y)) and stats.dtype == torch.float64
    stats = stats.cpu()
    if not y.numel():
        assert not stats.any()
        return
    size = y.abs().mean(1)
    assert ((stats[0] - y.mean(1)).abs() <= tolerance * size).all()
    assert ((stats[1] - y.var(1, correction=0)).abs() <= 4 * tolerance * y.pow(2).mean(1)).all()


def check(case: Case, kind: str, form: str, dtype: str, device: str = "cpu") -> None:
    """Compare the result and every gradient with the oracle.

    form: ``maps`` (float feature maps; the op packs them unless the kind is float), ``packed`` (PackedSpikes to maps)
    or ``panels`` (PackedSpikes to panels, with statistics).
    """
    p = Problem(case, kind, dtype, device)
    leaves = p.leaves()
    if form == "maps":
        y = p.maps_result()
        grad = p.grad
        assert y.dtype == p.x.dtype
    else:
        spikes = p.packed()
        leaves[0] = spikes.carrier
        operands = (spikes, p.values, p.bias, p.topology, p.geometry)
        if form == "packed":
            y, grad = conv2d_packed(*operands), p.maps(p.grad)
        else:
            y, stats = conv2d_panels(*operands, want_stats=True)
            grad = p.panels(p.grad)
            assert_statistics(y, stats, p, p.tolerance)
        assert y.dtype == p.values.dtype
    grads = torch.autograd.grad(y, leaves, grad.to(y.dtype))
    y = p.from_panels(y) if form == "panels" else y.reshape(p.grad.shape)
    grad_x = grads[0]
    if form != "maps":
        padding = torch.from_numpy(oracle.padding_lanes(case.T, case.B)).to(device)
        assert not grad_x.permute(0, 4, 1, 2, 3)[padding].any(), "padding lanes of a gradient panel are zero"
        grad_x = p.from_panels(grad_x)
    results = {"y": y, "x.grad": grad_x, "values.grad": grads[1]}
    if p.bias is not None:
        results["bias.grad"] = grads[2]
    expected = p.expected()
    for name, actual in results.items():
        assert_close(name, actual, *expected[name], p.tolerance)
    outside = grads[1].detach().float().cpu().numpy()[p.overhang]
    assert not outside.any(), "gradient of the overhang is zero"
