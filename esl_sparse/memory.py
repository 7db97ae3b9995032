"""Where the bytes of a sparse model are, counted from the tensors that exist."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from torch import Tensor, nn
from torch.optim import Optimizer

from .rewire import Rewirer, SparseLayer, sparse_layers
from .rewire.evolver import Evolver


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one block-sparse layer's weight; a tensor that does not exist yet counts 0.

    Attributes:
        index: three int32 for each block and the two pointer arrays.
        optimizer: its state for the values.
        ever_active: the rewirer's record of blocks that have been active.
        watched: what the rewirer holds at the moment to follow gradients of absent weights.
        dense: the same weight, gradient and optimiser state, as a dense layer would hold them.
    """

    name: str
    values: int
    index: int
    gradients: int
    optimizer: int
    ever_active: int
    watched: int
    dense: int

    @property
    def total(self) -> int:
        return self.values + self.index + self.gradients + self.optimizer + self.ever_active + self.watched


@dataclass(frozen=True)
class MemoryReport:
    """Bytes by layer, and in all; ``str()`` gives a table.

    Attributes:
        layers: the block-sparse ones.
        rest: every other parameter (biases, dense layers), its gradient and its optimiser state.
    """

    layers: tuple[LayerMemory, ...]
    rest: int

    @property
    def sparse(self) -> LayerMemory:
        """All block-sparse layers together."""
        columns = [field.name for field in fields(LayerMemory)][1:]
        return LayerMemory("all sparse", *(sum(getattr(x, c) for x in self.layers) for c in columns))

    @property
    def total(self) -> int:
        return self.sparse.total + self.rest

    @property
    def dense_total(self) -> int:
        """What the model would hold with dense weights."""
        return self.sparse.dense + self.rest

    def __str__(self) -> str:
        rows = [*self.layers, self.sparse]
        width = max(len(row.name) for row in rows)
        columns = ["values", "index", "gradients", "optimizer", "ever_active", "watched", "total", "dense"]
        lines = [f"{'bytes':<{width}}" + "".join(f"  {column:>13}" for column in columns)]
        for row in rows:
            lines.append(f"{row.name:<{width}}" + "".join(f"  {getattr(row, c):>13,}" for c in columns))
        lines.append(
            f"other parameters {self.rest:,}; in all {self.total:,}, "
            f"{self.total / max(1, self.dense_total):.1%} of {self.dense_total:,}"
        )
        return "\n".join(lines)


def memory_report(
    model: nn.Module, optimizer: Optimizer | None = None, rewirer: Evolver | None = None
) -> MemoryReport:
    """Bytes of values, index, gradients, optimiser state and a rewirer's memory against the dense equivalent.

    Counted from the tensors that exist now: gradients and optimiser state come with the first training step.
    """
    sparse = sparse_layers(model)
    records = {} if rewirer is None else {name: record.nbytes for name, record in rewirer.ever_active.items()}
    watched = rewirer.watched_bytes if isinstance(rewirer, Rewirer) else {}
    layers = tuple(
        _layer_memory(name, layer, optimizer, records.get(name, 0), watched.get(name, 0))
        for name, layer in sparse.items()
    )
    of_layers = {layer.values for layer in sparse.values()}
    rest = [param for param in model.parameters() if param not in of_layers]
    return MemoryReport(
        layers, sum(_bytes([param, *_gradients(param), *_state(optimizer, param)]) for param in rest)
    )


def _layer_memory(
    name: str, layer: SparseLayer, optimizer: Optimizer | None, ever_active: int, watched: int
) -> LayerMemory:
    values, layout = layer.values, layer.topology.layout
    gradients, state = _gradients(values), _state(optimizer, values)
    slots = [entry for entry in state if entry.dim() == values.dim() and len(entry) == len(values)]
    # By what a block takes, so that it is right for a layer without blocks too.
    bytes_of_block = sum(math.prod(t.shape[1:]) * t.element_size() for t in [values, *gradients, *slots])
    dense = bytes_of_block * layout.rows * layout.cols // (layout.bm * layout.bn)
    return LayerMemory(
        name,
        values=values.nbytes,
        index=_bytes(layer.topology.index_tensors()),
        gradients=_bytes(gradients),
        optimizer=_bytes(state),
        ever_active=ever_active,
        watched=watched,
        dense=dense + _bytes(state) - _bytes(slots),
    )


def _gradients(param: nn.Parameter) -> list[Tensor]:
    return [] if param.grad is None else [param.grad]


def _state(optimizer: Optimizer | None, param: nn.Parameter) -> list[Tensor]:
    state = {} if optimizer is None else optimizer.state.get(param, {})
    return [entry for entry in state.values() if isinstance(entry, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
