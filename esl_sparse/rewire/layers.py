from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from ..topology import BlockTopology


class SparseLayer(Protocol):
    """What makes a module take part in rewiring: blocks, and an index that says where they stand."""

    values: nn.Parameter

    @property
    def topology(self) -> BlockTopology: ...


class GradientLayer(SparseLayer, Protocol):
    """A layer that can say how large its gradient is where it has no blocks: what gradient rules need.

    A *call* is what the layer makes of one of its forwards and that forward's output gradient.
    """

    def seen_input(self, x: Any) -> Any:
        """The input of a forward that has just run, in the least memory."""
        ...

    def call(self, seen: Any, grad: Tensor) -> Any: ...

    def block_scores(self, calls: Sequence[Any]) -> Any:
        """Mean |gradient| of every block, summed over the calls before its magnitude is taken.

        Yields ``(first_row_block, scores float32 [n, col_blocks])`` up to the last row of blocks.
        """
        ...

    def gradient_at(self, topology: BlockTopology, call: Any) -> Tensor:
        """The gradient of one call at other blocks, ``[nnzb of topology, bm, bn]``."""
        ...


def stamp(layer: SparseLayer) -> tuple[int, ...]:
    """Changes whenever the layer's blocks do."""
    topology = layer.topology
    return topology.nnzb, topology.col_indices.data_ptr(), topology.col_indices._version


def follows_gradients(layer: SparseLayer) -> bool:
    methods = ("seen_input", "call", "block_scores", "gradient_at", "register_forward_hook")
    return all(hasattr(layer, method) for method in methods)


def is_sparse(module: nn.Module) -> bool:
    """Whether the module is itself a ``SparseLayer`` (not whether it holds one)."""
    values, topology = getattr(module, "values", None), getattr(module, "topology", None)
    return isinstance(values, Tensor) and isinstance(topology, BlockTopology)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The block-sparse layers of a model by name; a module used in several places is listed once."""
    return {name: cast(SparseLayer, module) for name, module in model.named_modules() if is_sparse(module)}


def rewirable_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """``sparse_layers``: one at least, each with values of its own, which are parameters."""
    layers = sparse_layers(model)
    if not layers:
        raise ValueError("model: has no block-sparse layer; esl.sparsify(model) makes some")
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        if not isinstance(layer.values, nn.Parameter):
            raise ValueError(
                f"model: {name + '.' if name else ''}values is computed from other parameters (by torch's pruning or "
                "weight_norm), which cannot follow the blocks: remove that first"
            )
        owner = owners.setdefault(id(layer.values), name)
        if owner != name:
            raise ValueError(
                f"model: {owner} and {name} share their values but not their index; share the module"
            )
    return layers


def following_layers(layers: dict[str, SparseLayer], follower: nn.Module) -> dict[str, SparseLayer]:
    """The follower's layers under the model's names: they come in the same order."""
    if not isinstance(follower, nn.Module):
        raise TypeError(f"followers: expected modules, got {type(follower).__name__}")
    if getattr(follower, "use_buffers", False):  # of torch's AveragedModel
        raise ValueError("followers: with use_buffers AveragedModel averages the index too: leave that out")
    copies = sparse_layers(follower)
    if len(copies) != len(layers):
        raise ValueError(f"followers: expected {len(layers)} sparse layers like the model, got {len(copies)}")
    for (name, layer), copy in zip(layers.items(), copies.values(), strict=True):
        if copy.topology.layout != layer.topology.layout:
            raise ValueError(
                f"followers: expected {layer.topology.layout} for {name}, got {copy.topology.layout}"
            )
        if copy.values is layer.values:
            raise ValueError(f"followers: {name} is the model's own layer, not a copy")
    return dict(zip(layers, copies.values(), strict=True))
