"""Definition of conv2d: ``torch.nn.functional.conv2d`` with the weight that holds ``values`` at the active blocks.

Builds the dense weight: for tests, for float64 and for installations without kernels. What overhangs the weight takes
no part and gets zero gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ...topology import BlockTopology
from .geometry import Geometry, from_rows, to_rows


def _padded(x: Tensor, g: Geometry) -> Tensor:
    """x ``[N, C, H, W]`` with its zero border, as large as the taps reach."""
    below = (g.Ho - 1) * g.stride_h + (g.kh - 1) * g.dilation_h + 1 - g.padding_h - g.H
    right = (g.Wo - 1) * g.stride_w + (g.kw - 1) * g.dilation_w + 1 - g.padding_w - g.W
    return pad(x, (g.padding_w, right, g.padding_h, below))  # negative: pixels that no tap reads


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    stride, dilation, dtype = (g.stride_h, g.stride_w), (g.dilation_h, g.dilation_w), padded.dtype
    if dtype == torch.float16 and padded.device.type == "cpu":  # torch would sum in float16
        padded, weight, bias = padded.float(), weight.float(), None if bias is None else bias.float()
    return conv2d(padded, weight, bias, stride, 0, dilation, g.groups).to(dtype)


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, topology: BlockTopology, geometry: Geometry
) -> Tensor:
    """``x [N, C, H, W]``, ``values [nnzb, bm, bn]``, ``bias [rows]`` -> ``y [N, rows, Ho, Wo]`` in values' dtype."""
    weight = from_rows(topology.to_dense(values), geometry.kh, geometry.kw)
    return _convolve(_padded(x.to(values.dtype), geometry), weight, bias, geometry)


def backward(
    grad: Tensor, x: Tensor, values: Tensor, topology: BlockTopology, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """``grad [N, rows, Ho, Wo]`` -> gradients of x, values (zero in the overhang) and bias."""
    with torch.enable_grad():
        x = x.to(grad.dtype).detach().requires_grad_()
        dense = topology.to_dense(values.detach().to(grad.dtype))
        weight = from_rows(dense, geometry.kh, geometry.kw).requires_grad_()
        y = _convolve(_padded(x, geometry), weight, None, geometry)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad)
    return grad_x, topology.gather_dense(to_rows(grad_weight)), grad.sum((0, 2, 3))


def stats(panels: Tensor, T: int, B: int) -> Tensor:
    """Mean and biased variance of each channel over lanes without padding and pixels, float64 ``[2, C]``."""
    from ..pack.reference import from_panels

    _, H, W, C, _ = panels.shape
    y = from_panels(panels, T, B).double().view(T * B, C, H * W)
    mean = y.mean((0, 2)) if y.numel() else y.new_zeros(y.shape[1])
    square = y.var((0, 2), correction=0) if y.numel() else torch.zeros_like(mean)
    return torch.stack([mean, square])
