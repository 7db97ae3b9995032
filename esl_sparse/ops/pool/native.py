"""Native CPU kernels of pool. Gradients are summed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena
from ...packed import LANES
from .window import Pair, Window


def axes(window: Window, size: Pair, counts: Pair) -> list[tuple[int, ...]]:
    kernel, stride, padding, dilation, _ = window
    return list(zip(size, counts, kernel, stride, padding, dilation, strict=True))


def avg_pool(words: Tensor, sum_planes: int, window: Window) -> Tensor:
    planes, G, H, W, C = words.shape
    counts = window.counts(H, W)
    sums = torch.empty(sum_planes, G, *counts, C, dtype=torch.int64)
    lib().avg_pool(
        words.data_ptr(),
        sums.data_ptr(),
        planes,
        sum_planes,
        G,
        C,
        *axes(window, (H, W), counts),
        torch.get_num_threads(),
    )
    return sums


def avg_pool_backward(grad: Tensor, size: Pair, divisor: int, window: Window) -> Tensor:
    G, *counts, C, _ = grad.shape
    dtype, grad = grad.dtype, grad.float()  # kept in a name: the kernel reads it by its address
    grad_x = arena.tensor((G, *size, C, LANES))
    lib().avg_pool_backward(
        grad.data_ptr(),
        grad_x.data_ptr(),
        divisor,
        G,
        C,
        *axes(window, size, (counts[0], counts[1])),
        torch.get_num_threads(),
    )
    return grad_x.to(dtype)


def max_pool(words: Tensor, window: Window) -> Tensor:
    _, G, H, W, C = words.shape
    counts = window.counts(H, W)
    out = torch.empty(1, G, *counts, C, dtype=torch.int64)
    lib().max_pool(
        words.data_ptr(), out.data_ptr(), G, C, *axes(window, (H, W), counts), torch.get_num_threads()
    )
    return out


def max_pool_backward(grad: Tensor, words: Tensor, window: Window) -> Tensor:
    _, G, H, W, C = words.shape
    dtype, grad = grad.dtype, grad.float()
    grad_x = arena.tensor((G, H, W, C, LANES))
    lib().max_pool_backward(
        words.data_ptr(),
        grad.data_ptr(),
        grad_x.data_ptr(),
        G,
        C,
        *axes(window, (H, W), window.counts(H, W)),
        torch.get_num_threads(),
    )
    return grad_x.to(dtype)


def global_avg_pool(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    planes, _, H, W, C = words.shape
    y = torch.empty(T, B, C, dtype=dtype)
    lib().global_avg_pool(
        words.data_ptr(),
        y.data_ptr(),
        dtype == torch.bfloat16,
        T,
        B,
        C,
        H * W,
        planes,
        scale,
        torch.get_num_threads(),
    )
    return y
