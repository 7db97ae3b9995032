"""Borders around packed feature maps: pixels are repeated, nothing is computed."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from ...packed import LANES, PackedSpikes
from .._library import Function, apply


class _PadPixels(Function):
    @staticmethod
    def forward(carrier, words, rows, cols):
        words = words.index_select(2, rows).index_select(3, cols)
        return carrier.new_zeros(1).expand((*words.shape[1:], LANES)), words

    @staticmethod
    def setup_context(ctx, inputs, output):
        carrier, _, rows, cols = inputs
        ctx.size = carrier.shape[1:3]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, cols)

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return None, None, None, None
        rows, cols = ctx.saved_tensors
        for dim, (index, size) in enumerate(zip((rows, cols), ctx.size, strict=True), start=1):
            shape = (*grad.shape[:dim], size, *grad.shape[dim + 1 :])
            grad = grad.new_zeros(shape).index_add(dim, index, grad)
        return grad, None, None, None


def pad_pixels(x: PackedSpikes, borders: tuple[int, int, int, int], mode: str) -> PackedSpikes:
    """Spikes with more pixels to the left, to the right, above and below.

    ``mode`` is ``"reflect"``, ``"replicate"`` or ``"circular"``, as in ``torch.nn.functional.pad``.
    """
    _, _, H, W, _ = x.words.shape
    left, right, top, bottom = borders
    rows, cols = (
        pad(torch.arange(n, dtype=torch.float32)[None, None], both, mode)[0, 0].long().to(x.words.device)
        for n, both in ((H, (top, bottom)), (W, (left, right)))
    )
    carrier, words = apply(_PadPixels, x.carrier, x.words, rows, cols)
    return PackedSpikes(carrier, words, x.T, x.B, x.scale)
