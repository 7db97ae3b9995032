"""How a raw op reaches torch.

``Library.define`` + ``impl`` + ``register_fake`` costs half of ``torch.library.custom_op`` per call; an
``autograd.Function`` stands on top. Foreign pointers are taken only inside raw ops: there ``torch.compile`` cannot see
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_library = torch.library.Library("esl_sparse", "DEF")

raw = torch.ops.esl_sparse

NO_TORCHSCRIPT = "esl_sparse: its layers are no TorchScript; torch.export.export takes them"


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
    """Whether nothing looks on: no compiler, no torch.func transform or old vmap, no dispatch mode, no subclass."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not tensor.is_meta
        and not torch.compiler.is_compiling()
        and not tensor.is_neg()  # its memory holds the opposite numbers; the dispatcher makes a copy
        and not is_in_torch_dispatch_mode()
        and not transformed()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # autograd.grad(is_grads_batched=True)
    )


def transformed() -> bool:
    """Whether a torch.func transform is active."""
    return torch._C._are_functorch_transforms_active()


def apply(function: type[torch.autograd.Function], *args):
    """``function.apply(*args)``, all by position; in plain eager mode without binding them to forward's signature.

    A layer of 16 neurons takes 60 us forward and backward; the binding alone would add 50 (``inspect.signature``).
    """
    if torch.compiler.is_compiling() or transformed():
        return function.apply(*_distinct(args))
    if torch._C._is_tracing():
        raise NotImplementedError(NO_TORCHSCRIPT)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def _distinct(args: tuple) -> list:
    """Dynamo traces no Function that takes a tensor twice, as a block does that adds its input: views stand for it."""
    distinct: list = []
    for arg in args:
        twice = isinstance(arg, Tensor) and any(arg is other for other in distinct)
        distinct.append(arg.view_as(arg) if twice else arg)
    return distinct


def refuse_script(module: torch.nn.Module) -> torch.nn.Module:
    """As a module's ``__prepare_scriptable__``."""
    raise NotImplementedError(NO_TORCHSCRIPT)


class Function(torch.autograd.Function):
    """Base of all Functions: under ``torch.func.vmap`` they are called for one element of the batch after the other.

    Kernels take no batch of weights. (A ``jvp`` that says so would keep Dynamo from tracing any of them.)
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
        def of(i: int) -> Any:
            return pytree.tree_map(lambda x, dim: x if dim is None else x.select(dim, i), args, in_dims)

        calls = [apply(cls, *of(i)) for i in range(info.batch_size)]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        outputs = tuple(None if x[0] is None else torch.stack(x) for x in zip(*calls, strict=True))
        return outputs, tuple(None if x is None else 0 for x in outputs)


class NoDoubleBackward(Function):
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
