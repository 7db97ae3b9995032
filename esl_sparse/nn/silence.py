"""Neurons that never fire learn nothing and pass nothing on; whoever trains them should hear of it."""

from __future__ import annotations

import gc
import warnings

import torch
from torch import Tensor, nn

from .._cuda import capturing
from ..ops._library import transformed
from ..packed import PackedSpikes

CALLS = 100


class Silence:
    """Warns once when a layer of neurons has been silent for ``CALLS`` training calls in a row.

    A layer that fires is looked at in every hundredth call only: looking reads all spikes, on a GPU it waits for them.
    """

    def __init__(self) -> None:
        self._until_next = 0
        self._silent = 0
        self._warned = False

    def hear(self, neurons: nn.Module, spikes: Tensor | PackedSpikes) -> None:
        """One call of the layer in training. Compiled, captured and traced calls do not count."""
        if torch.compiler.is_compiling() or self._warned or transformed():
            return
        self._until_next -= 1
        if self._until_next > 0:
            return
        bits = spikes.words if isinstance(spikes, PackedSpikes) else spikes
        if not bits.numel() or bits.is_meta or capturing(bits.device):
            return
        if bool(bits.any()):
            self._until_next, self._silent = CALLS, 0
            return
        self._silent += 1
        if self._silent == CALLS:
            self._warned = True
            warnings.warn(
                f"{_path(neurons)}: no neuron has fired in {CALLS} training calls. Currents below the threshold teach "
                "it little or nothing: raise the scale of its inputs or weights, put a norm before it, or lower "
                "v_threshold",
                stacklevel=2,
            )


def _path(module: nn.Module) -> str:
    """The module's name inside the outermost module that holds it: called once, for people.

    A module does not know who holds it; a hundred milliseconds of search spare every user a set-up call.
    """
    holders = [found for found in gc.get_objects() if issubclass(type(found), nn.Module)]
    names: list[str] = []
    seen = {id(module)}
    inner = module
    while True:
        above = (
            (holder, name)
            for holder in holders
            for name, child in holder.__dict__.get("_modules", {}).items()
            if child is inner and id(holder) not in seen
        )
        holder, name = next(above, (None, ""))
        if holder is None:
            return ".".join(reversed(names)) or type(module).__name__
        seen.add(id(holder))
        names.append(name)
        inner = holder
