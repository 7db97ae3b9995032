"""What became of the layers of a model that was made sparse."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerConversion:
    """What became of one layer that has a weight matrix.

    Attributes:
        name: the layer's. kind: its class before. weights: entries of its dense weight.
        active: weights that exist now.
        block_size: of the sparse layer; None if the layer is dense.
        reason: why it was left as it was; empty if it was converted.
    """

    name: str
    kind: str
    weights: int
    active: int
    block_size: tuple[int, int] | None = None
    reason: str = ""

    @property
    def density(self) -> float:
        return self.active / self.weights if self.weights else 0.0

    @property
    def converted(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class SparsifyReport:
    """Each layer: converted, or left dense and why. ``str()`` gives a table."""

    layers: tuple[LayerConversion, ...]

    @property
    def density(self) -> float:
        """Active weights over all weights of the model's layers, those left dense included."""
        return sum(x.active for x in self.layers) / max(1, sum(x.weights for x in self.layers))

    def __str__(self) -> str:
        width = max([5, *(len(x.name) for x in self.layers)])
        lines = [f"{'layer':<{width}}  {'weights':>13}  {'active':>13}  density"]
        for x in self.layers:
            became = "dense" if x.block_size is None else "blocks {}x{}".format(*x.block_size)
            became += f": {x.reason}" if x.reason else ""
            lines.append(f"{x.name:<{width}}  {x.weights:>13,}  {x.active:>13,}  {x.density:<7.4f}  {became}")
        return "\n".join([*lines, f"overall density {self.density:.4f}"])
