"""What torch allocates while something runs, and what it keeps for backward."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def _storages(tree):
    return [leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


class Allocations(TorchDispatchMode):
    """Bytes of the tensors made inside: the largest one, and the most that were alive together."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self.live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in before and storage._cdata not in self._known:
                self._made(storage)
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        self._known.add(key)
        self.live += size
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def saved_for_backward(model: nn.Module, x: Tensor, known: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """What one forward keeps for backward, each storage once, without those of ``known``."""
    skip = {t.untyped_storage().data_ptr() for t in known}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skip:
            kept[storage.data_ptr()] = storage
        return tensor.detach()  # an output that holds itself would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    del y
    return list(kept.values())
