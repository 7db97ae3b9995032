"""CUDA kernels of pool. Gradients are summed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cuda import DTYPE_CODES, aligned, launch
from ...packed import LANES
from .native import axes
from .window import Pair, Window


def avg_pool(words: Tensor, sum_planes: int, window: Window) -> Tensor:
    planes, G, H, W, C = words.shape
    counts = window.counts(H, W)
    sums = words.new_empty((sum_planes, G, *counts, C))
    sizes = (planes, sum_planes, G, C, *axes(window, (H, W), counts))
    launch("avg_pool", words.device, words.data_ptr(), sums.data_ptr(), *sizes)
    return sums


def avg_pool_backward(grad: Tensor, size: Pair, divisor: int, window: Window) -> Tensor:
    G, *counts, C, _ = grad.shape
    grad = aligned(grad)
    grad_x = grad.new_empty((G, *size, C, LANES))
    sizes = (divisor, G, C, *axes(window, size, (counts[0], counts[1])))
    code = DTYPE_CODES[grad.dtype]
    launch("avg_pool_backward", grad.device, grad.data_ptr(), grad_x.data_ptr(), code, *sizes)
    return grad_x


def max_pool(words: Tensor, window: Window) -> Tensor:
    _, G, H, W, C = words.shape
    counts = window.counts(H, W)
    out = words.new_empty((1, G, *counts, C))
    sizes = (G, C, *axes(window, (H, W), counts))
    launch("max_pool", words.device, words.data_ptr(), out.data_ptr(), *sizes)
    return out


def max_pool_backward(grad: Tensor, words: Tensor, window: Window) -> Tensor:
    _, G, H, W, C = words.shape
    grad = aligned(grad)
    grad_x = grad.new_empty((G, H, W, C, LANES))
    pointers = (words.data_ptr(), grad.data_ptr(), grad_x.data_ptr())
    sizes = (G, C, *axes(window, (H, W), window.counts(H, W)))
    launch("max_pool_backward", grad.device, *pointers, DTYPE_CODES[grad.dtype], *sizes)
    return grad_x


def global_avg_pool(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    planes, _, H, W, C = words.shape
    y = words.new_empty((T, B, C), dtype=dtype)
    sizes = (T, B, C, H * W, planes, scale)
    launch("global_avg_pool", words.device, words.data_ptr(), y.data_ptr(), DTYPE_CODES[dtype], *sizes)
    return y
