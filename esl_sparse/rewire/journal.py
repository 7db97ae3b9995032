from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Journal:
    """Makes a series of changes all or nothing: leaving the context by an exception takes them back.

    Each change first notes how to undo it, which needs no memory when it is done; undoing twice or without
    the change is harmless. What was there before is kept until the context is left.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with torch.no_grad():
                for undo in reversed(self._undo):
                    undo()
        self._undo.clear()

    def note(self, undo: Callable[[], object]) -> None:
        self._undo.append(undo)

    def write_(self, tensor: Tensor, new: Tensor) -> None:
        """Make ``tensor``, the same object, hold ``new``, which is given away.

        It takes over the memory of ``new``, so nothing is copied and the old memory is the way back. Where others may
        look at its own memory (a captured CUDA graph, another process, a view) that is written instead.
        """
        with torch.no_grad():
            if tensor.shape == new.shape and not _is_private(tensor):
                before = tensor.detach().clone()
                self.note(lambda: tensor.copy_(before))
                tensor.copy_(new)
            else:
                before = tensor.detach()  # an alias that keeps the old memory and shape
                self.note(lambda: _take_over(tensor, before))
                _take_over(tensor, new.to(tensor.device, tensor.dtype))

    def assign(self, owner: object, name: str, new: Any) -> None:
        """Set an attribute."""
        before = getattr(owner, name)
        self.note(lambda: setattr(owner, name, before))
        setattr(owner, name, new)


def _is_private(tensor: Tensor) -> bool:
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.device.type == "cpu" and whole and not tensor.is_shared()


def _take_over(tensor: Tensor, other: Tensor) -> None:
    if tensor.requires_grad and tensor.shape == other.shape:
        # set_ would make autograd forget the node that accumulates the gradient, and DistributedDataParallel listens
        # to that one.
        tensor.data = other
        torch.autograd.graph.increment_version(tensor)
    else:
        tensor.set_(other)  # type: ignore[call-overload]
