"""How a raw op reaches torch.

``Library.define`` + ``impl`` + ``register_fake`` costs half of ``torch.library.custom_op`` per call; an
``autograd.Function`` stands on top. Foreign pointers are taken only inside raw ops: there ``torch.compile`` cannot see
them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_library = torch.library.Library("esl_sparse", "DEF")

raw = torch.ops.esl_sparse


def define(schema: str, implementation: Callable, fake: Callable) -> Callable:
    """Register raw op ``esl_sparse::<schema>`` for CPU and CUDA tensors, with its shape function.

    Returns the op as Functions call it: through the dispatcher where anything may look on, else straight to the
    implementation (10 us less per call). The first argument is a tensor.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"esl_sparse::{name}", fake, lib=_library)
    op = getattr(raw, name)

    def call(tensor: Tensor, *args):
        return implementation(tensor, *args) if _eager(tensor) else op(tensor, *args)

    return call


def _eager(tensor: Tensor) -> bool:
    """Whether nothing looks on: no compiler, no torch.func transform, no dispatch mode, no tensor subclass."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not tensor.is_meta
        and not torch.compiler.is_compiling()
        and not tensor.is_neg()  # its memory holds the opposite numbers; the dispatcher makes a copy
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
    )


def apply(function: type[torch.autograd.Function], *args):
    """``function.apply(*args)``, all by position; in plain eager mode without binding them to forward's signature.

    A layer of 16 neurons takes 60 us forward and backward; the binding alone would add 50 (``inspect.signature``).
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*_distinct(args))
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def _distinct(args: tuple) -> list:
    """Dynamo traces no Function that takes a tensor twice, as a block does that adds its input: views stand for it."""
    distinct: list = []
    for arg in args:
        twice = isinstance(arg, Tensor) and any(arg is other for other in distinct)
        distinct.append(arg.view_as(arg) if twice else arg)
    return distinct


class NoDoubleBackward(torch.autograd.Function):
    """Base of backward Functions: their own backward raises instead of silently dropping a gradient penalty."""

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("esl_sparse: double backward is not supported")


def differentiable_backward() -> bool:
    """Whether a backward is itself being recorded; only then its raising Function is worth its cost."""
    return torch.is_grad_enabled()


def empty(like: Tensor) -> Tensor:
    """Stands for a result that was not asked for: raw ops return tensors, never None."""
    return like.new_empty(0)


def address(tensor: Tensor | None) -> int:
    """As kernels take it; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
