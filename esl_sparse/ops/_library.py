"""How a raw op reaches torch.

``Library.define`` + ``impl`` + ``register_fake`` costs half of ``torch.library.custom_op`` per call; an
``autograd.Function`` stands on top. Foreign pointers are taken only inside raw ops: there ``torch.compile`` cannot see
them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

_library = torch.library.Library("esl_sparse", "DEF")

raw = torch.ops.esl_sparse


def define(schema: str, implementation: Callable, fake: Callable) -> None:
    """Register raw op ``esl_sparse::<schema>`` for CPU and CUDA tensors, with its shape function."""
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"esl_sparse::{name}", fake, lib=_library)


_ANY = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])


def positional(forward: Callable) -> staticmethod:
    """A Function's ``forward`` whose arguments are all given, by position.

    ``Function.apply`` binds them to ``inspect.signature(forward)`` at every call. Found ready-made, and of one
    ``*args``, the signature costs 5 us instead of 60.
    """
    forward.__signature__ = _ANY  # type: ignore[attr-defined]
    return staticmethod(forward)


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
