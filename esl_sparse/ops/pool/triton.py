"""Launches the Triton kernels of pool (``triton_kernels.py``, imported at the first launch)."""

from __future__ import annotations

from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...packed import LANES, Lanes
from .._triton import on
from .window import Pair, Window

_BLOCK = 128  # words of a program
_WARPS = 4
_CHANNELS = 32  # of a program of the global average


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _geometry(window: Window, size: Pair, counts: Pair) -> dict[str, Any]:
    (stride_y, stride_x), (padding_y, padding_x) = window.stride, window.padding
    return {
        "H": size[0],
        "W": size[1],
        "Ho": counts[0],
        "Wo": counts[1],
        "KH": window.kernel[0],
        "KW": window.kernel[1],
        "stride_y": stride_y,
        "stride_x": stride_x,
        "padding_y": padding_y,
        "padding_x": padding_x,
        "enable_fp_fusion": False,
    }


def _dilation(window: Window) -> dict[str, int]:
    return {"dilation_y": window.dilation[0], "dilation_x": window.dilation[1]}


def _grid(total: int, block: int, read: int = 0) -> tuple[int]:
    """Of programs for ``total`` outputs; kernels count these, and what they read, in 32 bits."""
    if max(total, read) >= 2**31:
        raise ValueError(
            f"x: expected maps of less than 2**31 words on a GPU, got {max(total, read)}; use a smaller batch"
        )
    return (-(-total // block),)


def _words_grid(out: Tensor, words: Tensor) -> tuple[int]:
    return _grid(prod(out.shape[1:]), _BLOCK, prod(words.shape[1:]))


def avg_pool(words: Tensor, sum_planes: int, window: Window) -> Tensor:
    planes, G, H, W, C = words.shape
    counts = window.counts(H, W)
    sums = words.new_empty((sum_planes, G, *counts, C))
    if sums.numel():
        with on(words.device):
            _kernels().avg_pool[_words_grid(sums, words)](
                words,
                sums,
                prod(sums.shape[1:]),
                G * H * W * C,
                C=C,
                **_geometry(window, (H, W), counts),
                PLANES=planes,
                SUM_PLANES=sum_planes,
                BLOCK=_BLOCK,
            )
    return sums


def max_pool(words: Tensor, window: Window) -> Tensor:
    _, G, H, W, C = words.shape
    counts = window.counts(H, W)
    out = words.new_empty((1, G, *counts, C))
    if out.numel():
        with on(words.device):
            _kernels().max_pool[_words_grid(out, words)](
                words,
                out,
                out.numel(),
                C=C,
                **_geometry(window, (H, W), counts),
                **_dilation(window),
                BLOCK=_BLOCK,
            )
    return out


def _backward(grad: Tensor, routes: Tensor | None, size: Pair, share: float, window: Window) -> Tensor:
    G, Ho, Wo, C, _ = grad.shape
    grad_x = grad.new_empty((G, *size, C, LANES))
    rows = _WARPS * 32 * 16 // grad.element_size() // LANES
    if grad_x.numel():
        with on(grad.device):
            _kernels().backward[_grid(grad_x.numel() // LANES, rows, grad.numel() // LANES)](
                grad,
                grad if routes is None else routes,
                grad_x,
                grad_x.numel() // LANES,
                C=C,
                **_geometry(window, size, (Ho, Wo)),
                **_dilation(window),
                share=share,
                route=grad.numel() // LANES,
                ROUTED=routes is not None,
                ROWS=rows,
                num_warps=_WARPS,
            )
    return grad_x


def avg_pool_backward(grad: Tensor, size: Pair, divisor: int, window: Window) -> Tensor:
    return _backward(grad, None, size, 1.0 / divisor, window)


def max_pool_backward(grad: Tensor, words: Tensor, window: Window) -> Tensor:
    size = (words.shape[2], words.shape[3])
    outputs = grad.shape[:4]
    routes = words.new_empty((window.elements, *outputs))
    if routes.numel():
        with on(grad.device):
            _kernels().max_routes[_words_grid(routes, words)](
                words,
                routes,
                prod(outputs),
                C=outputs[3],
                **_geometry(window, size, (outputs[1], outputs[2])),
                **_dilation(window),
                BLOCK=_BLOCK,
            )
    return _backward(grad, routes, size, 1.0, window)


def global_avg_pool(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    planes, G, H, W, C = words.shape
    y = words.new_empty((T, B, C), dtype=dtype)
    if y.numel():
        with on(words.device):
            _kernels().global_avg_pool[(-(-C // _CHANNELS) * G,)](
                words,
                y,
                T,
                B,
                Lanes(T, B).padded,
                G,
                H * W,
                C,
                float(scale) / (H * W),
                PLANES=planes,
                CHANNELS=_CHANNELS,
                enable_fp_fusion=False,
            )
    return y
