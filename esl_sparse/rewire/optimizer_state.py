"""An optimiser's state for a layer's values: which of it is one slot a block, and how a slot starts."""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def param_group(optimizer: Optimizer, param: nn.Parameter) -> dict[str, Any] | None:
    """The group that holds ``param``, by identity."""
    return next((g for g in optimizer.param_groups if any(p is param for p in g["params"])), None)


def twin(optimizer: Optimizer, group: dict[str, Any], param: nn.Parameter) -> Optimizer:
    """A new optimiser of the same class and options as ``group`` that holds only ``param``."""
    kind = type(optimizer)
    accepted = inspect.signature(kind).parameters
    options = {key: option for key, option in group.items() if key not in ("params", "param_names")}
    defaults = {key: option for key, option in optimizer.defaults.items() if key in accepted}
    return kind([{**options, "params": [param]}], **defaults)


def slots(
    optimizer: Optimizer, group: dict[str, Any], param: nn.Parameter, initial: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """State that holds one slot for each of the ``n`` blocks of ``param [n, ...]``, and how a slot starts.

    Scalars such as ``step`` belong to no block and are left out.

    Returns:
        pairs of a state tensor ``[n, ...]`` and what the optimiser itself gives a block of zeros.

    Raises:
        ValueError: the optimiser keeps anything else, which could not follow its block.
    """
    pairs = []
    for key, entry in optimizer.state.get(param, {}).items():
        if entry is None or isinstance(entry, (bool, int, float, str)):
            continue
        is_tensor = isinstance(entry, Tensor)
        if key in initial and is_tensor and entry.dim() == param.dim() and len(entry) == len(param):
            pairs.append((entry, initial[key]))
        elif not is_tensor or entry.numel() != 1:
            what = f"shape {tuple(entry.shape)}" if is_tensor else type(entry).__name__
            raise ValueError(
                f"optimizer: {type(optimizer).__name__} keeps {key!r} as {what}, not as one slot for each of "
                f"{len(param)} blocks that starts anew; it cannot follow a rewiring"
            )
    return pairs


class InitialSlots:
    """How the optimiser starts a slot, by parameter; asked of it again only where that may have changed."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._known: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {}

    def of(self, name: str, group: dict[str, Any], param: nn.Parameter) -> dict[str, Tensor]:
        """State entries ``[1, ...]`` of one block of ``param [n, ...]``, which goes by ``name``."""
        # The rate changes with every step, and only few look at it (Rprop).
        options = {key: option for key, option in group.items() if key not in ("params", "lr", "initial_lr")}
        fixed = all(isinstance(x, (bool, int, float, str, tuple, type(None))) for x in options.values())
        key: dict[str, Any] = {**options, "place": (param.dtype, param.device, param.shape[1:])}
        if fixed and name in self._known and self._known[name][0] == key:
            return self._known[name][1]
        found = _initial_slots(self._optimizer, group, param)
        self._known.pop(name, None)
        if fixed and isinstance(group.get("lr"), float):
            other = _initial_slots(self._optimizer, {**group, "lr": 2 * group["lr"] + 1e-3}, param)
            if found.keys() == other.keys() and all(torch.equal(found[k], other[k]) for k in found):
                self._known[name] = key, found
        return found


def _initial_slots(optimizer: Optimizer, group: dict[str, Any], param: nn.Parameter) -> dict[str, Tensor]:
    """A twin takes a step on one block of zeros with gradient 0; entries are noted when first set."""
    probe = nn.Parameter(param.new_zeros(1, *param.shape[1:]))
    probe.grad = torch.zeros_like(probe)
    try:
        stepper = twin(optimizer, group, probe)
        state = _FirstSeen(stepper.state[probe])
        stepper.state[probe] = state
        with torch.no_grad():
            stepper.step()
    except Exception as error:
        raise ValueError(
            f"optimizer: cannot find out how {type(optimizer).__name__} starts its state ({error}); "
            "it cannot follow a rewiring"
        ) from error
    return {key: entry for key, entry in state.first.items() if isinstance(entry, Tensor)}


class _FirstSeen(UserDict):
    """A parameter's optimiser state that remembers what each entry held when it was first set."""

    def __init__(self, made_by_constructor: dict[str, Any]) -> None:
        self.first: dict[str, Any] = {}
        super().__init__(made_by_constructor)

    def __setitem__(self, key: str, entry: Any) -> None:
        self.first.setdefault(key, entry.clone() if isinstance(entry, Tensor) else entry)
        super().__setitem__(key, entry)
