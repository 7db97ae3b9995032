"""Definition of conv2d: ``torch.nn.functional.conv2d`` with the weight that holds ``values`` at the active blocks.

Builds the dense weight: for tests, for float64 and for installations without kernels. What overhangs the weight takes
no part and gets zero gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torch.nn.grad import conv2d_input, conv2d_weight

from ...topology import BlockTopology
from .geometry import Geometry, from_rows, to_rows


def _borders(g: Geometry) -> tuple[int, int, int, int]:
    """Zeros around x, as far as the taps reach; negative: pixels that no tap reads."""
    below = (g.Ho - 1) * g.stride_h + (g.kh - 1) * g.dilation_h + 1 - g.padding_h - g.H
    right = (g.Wo - 1) * g.stride_w + (g.kw - 1) * g.dilation_w + 1 - g.padding_w - g.W
    return g.padding_w, right, g.padding_h, below


def _how(g: Geometry) -> tuple:
    return (g.stride_h, g.stride_w), 0, (g.dilation_h, g.dilation_w), g.groups


def _wide(tensor: Tensor) -> Tensor:
    """On CPU torch sums convolutions of float16 as they are; of bfloat16 too in torch 2.11, or without AVX-512."""
    return tensor.float() if tensor.dtype.itemsize == 2 and tensor.device.type == "cpu" else tensor


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, topology: BlockTopology, geometry: Geometry
) -> Tensor:
    """``x [N, C, H, W]``, ``values [nnzb, bm, bn]``, ``bias [rows]`` -> ``y [N, rows, Ho, Wo]`` in values' dtype."""
    weight = from_rows(topology.to_dense(_wide(values)), geometry.kh, geometry.kw)
    padded = pad(x.to(weight.dtype), _borders(geometry))
    y = conv2d(padded, weight, None if bias is None else _wide(bias), *_how(geometry))
    return y.to(values.dtype)


def backward(
    grad: Tensor, x: Tensor, values: Tensor, topology: BlockTopology, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """``grad [N, rows, Ho, Wo]`` -> gradients of x, values (zero in the overhang) and bias, all in grad's dtype."""
    dtype, grad = grad.dtype, _wide(grad)
    weight = from_rows(topology.to_dense(values.to(grad.dtype)), geometry.kh, geometry.kw)
    padded = pad(x.to(grad.dtype), _borders(geometry))
    # Not by autograd: it is switched off below the dispatcher, where torch.compile and torch.func call raw ops.
    grad_padded = conv2d_input(padded.shape, weight, grad, *_how(geometry))
    grad_weight = conv2d_weight(padded, weight.shape, grad, *_how(geometry))
    grad_x = pad(grad_padded, [-border for border in _borders(geometry)])
    grad_values = topology.gather_dense(to_rows(grad_weight))
    return grad_x.to(dtype), grad_values.to(dtype), grad.sum((0, 2, 3)).to(dtype)


def stats(panels: Tensor, T: int, B: int) -> Tensor:
    """Mean and biased variance of each channel over lanes without padding and pixels, float64 ``[2, C]``."""
    from ..pack.reference import from_panels

    _, H, W, C, _ = panels.shape
    y = from_panels(panels, T, B).double().view(T * B, C, H * W)
    mean = y.mean((0, 2)) if y.numel() else y.new_zeros(y.shape[1])
    square = y.var((0, 2), correction=0) if y.numel() else torch.zeros_like(mean)
    return torch.stack([mean, square])
