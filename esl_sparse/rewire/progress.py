from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..topology import BlockLayout, check_block_ids
from .ever_active import EverActive
from .layers import SparseLayer


@dataclass(frozen=True)
class Progress:
    """What a Rewirer remembers from call to call. It never changes: an update makes a new one.

    Attributes:
        iteration: calls so far.
        ever_active: by layer, which blocks have been active at any time.
        recent: by layer, the ids grown by each of the last updates, as far as blocks are protected.
    """

    iteration: int
    ever_active: dict[str, EverActive]
    recent: dict[str, tuple[Tensor, ...]]

    @classmethod
    def start(cls, layers: Mapping[str, SparseLayer]) -> Progress:
        topologies = {name: layer.topology for name, layer in layers.items()}
        ever_active = {name: EverActive.of(t.block_ids(), t.layout.blocks) for name, t in topologies.items()}
        return cls(0, ever_active, {name: () for name in layers})

    def state_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "layers": {
                name: {"ever_active": record.state_dict(), "recent": list(self.recent[name])}
                for name, record in self.ever_active.items()
            },
        }

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], layers: Mapping[str, SparseLayer], protect: int
    ) -> Progress:
        """Undo ``state_dict`` after checking all of it; raises ``ValueError`` naming the layer."""
        iteration, saved = state.get("iteration"), state.get("layers")
        if type(iteration) is not int or iteration < 0:
            raise ValueError(f"state_dict: expected an iteration, got {iteration!r}")
        if not isinstance(saved, dict):
            raise ValueError("state_dict: the layers are missing")
        for name in [*layers, *saved]:
            if name not in saved or name not in layers:
                lacking = "state_dict" if name in layers else "model"
                raise ValueError(f"state_dict: the {lacking} has no sparse layer {name!r}")
        ever_active, recent = {}, {}
        for name, layer in layers.items():
            device, layout = layer.values.device, layer.topology.layout
            try:
                ever_active[name] = EverActive.from_state_dict(saved[name]["ever_active"], layout.blocks).to(
                    device
                )
                recent[name] = last(tuple(_ids(x, layout).to(device) for x in saved[name]["recent"]), protect)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"state_dict: {name}: {error!r}") from error
        return cls(iteration, ever_active, recent)


def last(items: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return items[max(0, len(items) - count) :]


def _ids(grown: Any, layout: BlockLayout) -> Tensor:
    if not isinstance(grown, Tensor):
        raise TypeError(f"recent: expected tensors of ids, got {type(grown).__name__}")
    check_block_ids(grown, layout)
    return grown
