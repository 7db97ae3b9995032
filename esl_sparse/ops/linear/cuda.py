"""CUDA kernels of linear: a linear layer is a convolution of one pixel, and float rows become panels on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cuda import aligned
from .._library import empty
from ..conv2d.cuda import Products
from ..conv2d.geometry import Geometry
from ..pack.cuda import from_panels, to_panels

_ONE_PIXEL = Geometry(1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1)


def _products(
    x: Tensor, values: Tensor, index: tuple[Tensor, ...], call, dtype: torch.dtype, reads_x: bool = True
) -> Products:
    rows, cols, T, B, planes, scale, _ = call
    if reads_x and not planes:
        x = to_panels(x.float().view(T, B, cols))
    return Products.of(x, values, index, _ONE_PIXEL, rows, cols, T, B, planes, scale, dtype)


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, index: tuple[Tensor, ...], call, dtype: torch.dtype
) -> Tensor:
    """y in ``dtype``, rows or a panel. x is words if ``call.planes``, else float rows."""
    y = _products(x, values, index, call, dtype).y(bias)
    return y if call.panels else from_panels(y, call.T, call.B).view(call.T * call.B, call.rows)


def backward(
    grad: Tensor, x: Tensor, values: Tensor, index: tuple[Tensor, ...], call, x_panels: bool, needs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, values and bias, those that the bits of ``needs`` ask for; the others are empty."""
    T, B = call.T, call.B
    products = _products(x, values, index, call, grad.dtype, reads_x=bool(needs & 2))
    panels = aligned(grad) if call.panels else to_panels(grad.contiguous().view(T, B, call.rows))
    grad_x, grad_values, grad_bias = empty(grad), empty(values), empty(values)
    if needs & 1:
        grad_x = products.grad_x(panels)
        if not x_panels:
            grad_x = from_panels(grad_x, T, B).view(T * B, call.cols)
    if needs & 2:
        grad_values = products.grad_values(panels).to(values.dtype)
    if needs & 4:
        # Padding lanes of a gradient panel are zero.
        grad_bias = grad.sum((0, 1, 2, 4) if call.panels else 0, dtype=torch.float32).to(values.dtype)
    return grad_x, grad_values, grad_bias
