from __future__ import annotations

from typing import Protocol, cast

from torch import nn

from ..topology import BlockTopology


class SparseLayer(Protocol):
    """What makes a module take part in rewiring: blocks, and an index that says where they stand."""

    values: nn.Parameter

    @property
    def topology(self) -> BlockTopology: ...


def is_sparse(module: nn.Module) -> bool:
    """Whether the module is itself a :class:`SparseLayer` (not whether it holds one)."""
    values, topology = getattr(module, "values", None), getattr(module, "topology", None)
    return isinstance(values, nn.Parameter) and isinstance(topology, BlockTopology)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The block-sparse layers of a model by name; a module used in several places is listed once."""
    return {name: cast(SparseLayer, module) for name, module in model.named_modules() if is_sparse(module)}


def rewirable_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """:func:`sparse_layers`, of which there is one at least and no two hold the same values."""
    layers = sparse_layers(model)
    if not layers:
        raise ValueError("model: has no block-sparse layer; esl.sparsify(model) makes some")
    owners: dict[int, str] = {}
    for name, layer in layers.items():
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
