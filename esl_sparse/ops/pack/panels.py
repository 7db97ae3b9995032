"""Float feature maps to panels, as a step of a differentiable chain."""

from __future__ import annotations

from torch import Tensor

from .._library import Function, NoDoubleBackward, apply, differentiable_backward
from .op import from_panels_op, to_panels_op


class _ToPanelsBackward(NoDoubleBackward):
    @staticmethod
    def forward(grad, T, B):
        return from_panels_op(grad, T, B)


class _ToPanels(Function):
    @staticmethod
    def forward(x):
        return to_panels_op(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, grad):
        run = _ToPanelsBackward.apply if differentiable_backward() else from_panels_op
        return run(grad, *ctx.shape[:2]).view(ctx.shape)


def to_panels(x: Tensor) -> Tensor:
    """``[T, B, C]`` or ``[T, B, C, H, W]`` -> ``[G, H, W, C, 64]``; padding lanes are zero. Differentiable once."""
    return apply(_ToPanels, x)
