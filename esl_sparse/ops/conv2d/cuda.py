"""CUDA kernels of conv2d, from words or panels to panels. Values and sums are float32, whatever the panels are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._cuda import DTYPE_CODES, aligned, launch
from ...packed import LANES, Lanes
from .._library import address, empty
from ..norm_lif.cuda import panel_stats
from .geometry import Geometry


class Products(NamedTuple):
    """What y and both gradients are made of; linear makes it too, as a convolution of one pixel.

    Attributes:
        x: words, or float32 panels of real-valued x. weights: float32 ``[nnzb, bm, bn]``.
        dtype: of y and of gradient panels.
    """

    x: Tensor
    weights: Tensor
    indices: tuple[Tensor, ...]
    geometry: Geometry
    rows: int
    cols: int
    T: int
    B: int
    planes: int
    scale: float
    dtype: torch.dtype

    @classmethod
    def of(
        cls, x: Tensor, values: Tensor, index, geometry, rows, cols, T, B, planes, scale, dtype
    ) -> Products:
        source = x.contiguous() if planes else aligned(x.float())
        return cls(
            source, values.float().contiguous(), index, geometry, rows, cols, T, B, planes, scale, dtype
        )

    def _launch(self, name: str, *args: int) -> int | None:
        nnzb, bm, bn = self.weights.shape
        pointers = (tensor.data_ptr() for tensor in (*self.indices, self.weights))
        packed = self.planes > 0
        return launch(
            name,
            self.weights.device,
            (self.rows, self.cols, bm, bn, *pointers),
            nnzb,
            tuple(self.geometry),
            self.T,
            self.B,
            self.x.data_ptr() if packed else 0,
            self.planes,
            self.scale,
            0 if packed else self.x.data_ptr(),
            DTYPE_CODES[self.dtype],
            *args,
        )

    def _panels(self, H: int, W: int, channels: int) -> Tensor:
        return self.x.new_empty((Lanes(self.T, self.B).groups, H, W, channels, LANES), dtype=self.dtype)

    def y(self, bias: Tensor | None) -> Tensor:
        """Panels ``[G, Ho, Wo, rows, 64]``; their padding lanes are undefined."""
        y = self._panels(self.geometry.Ho, self.geometry.Wo, self.rows)
        bias = None if bias is None else bias.float().contiguous()
        self._launch("conv2d_forward", address(bias), y.data_ptr())
        return y

    def grad_x(self, grad: Tensor) -> Tensor:
        """From the gradient of y, aligned panels whose padding lanes are zero, to that of x, likewise."""
        g = self.geometry
        grad_x = self._panels(g.H, g.W, self.cols // g.taps * g.groups)
        self._launch("conv2d_grad_input", grad.data_ptr(), grad_x.data_ptr())
        return grad_x

    def grad_values(self, grad: Tensor) -> Tensor:
        """float32 ``[nnzb, bm, bn]``, zero in the overhang."""
        grad_values = torch.empty_like(self.weights)
        count = self._launch("conv2d_grad_values", 0, 0, 0) or 1
        parts = None
        if count > 1:
            parts = torch.empty((count, *grad_values.shape), dtype=torch.float32, device=grad.device)
        if grad_values.numel():
            self._launch("conv2d_grad_values", grad.data_ptr(), grad_values.data_ptr(), address(parts))
        return grad_values


def forward(x, values, bias, index, geometry, rows, cols, T, B, planes, scale, want_stats):
    """Panels ``[G, Ho, Wo, rows, 64]`` and, if wanted, float64 ``[2, rows]``: mean and biased variance."""
    dtype = values.dtype if planes else x.dtype
    y = Products.of(x, values, index, geometry, rows, cols, T, B, planes, scale, dtype).y(bias)
    if not want_stats:
        return y, y.new_empty(0, dtype=torch.float64)
    # Unlike panel_stats, the op says 0 where there is no value.
    return y, panel_stats(y, T, B) if y.numel() else y.new_zeros((2, rows), dtype=torch.float64)


def backward(grad, x, values, index, geometry, rows, cols, T, B, planes, scale, needs):
    products = Products.of(x, values, index, geometry, rows, cols, T, B, planes, scale, grad.dtype)
    grad = aligned(grad)
    return (
        products.grad_x(grad) if needs & 1 else empty(grad),
        products.grad_values(grad).to(values.dtype) if needs & 2 else empty(values),
        # Padding lanes of a gradient panel are zero.
        grad.sum((0, 1, 2, 4), dtype=torch.float32).to(values.dtype) if needs & 4 else empty(values),
    )
