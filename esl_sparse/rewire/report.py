from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """What an update did to one layer.

    Attributes:
        name: the layer's.
        pruned: blocks that the prune rule chose.
        grown: blocks that were absent before and are present now; less than ``pruned`` where pruned places
            were chosen again, more where redistribution gave the layer more than it lost.
        density: active weights over all, after the update.
        r_s: share of all blocks that have been active at any time.
        note: what the grow rule could not do as it is defined; empty if nothing.
    """

    name: str
    pruned: int
    grown: int
    density: float
    r_s: float
    note: str = ""


@dataclass(frozen=True)
class RewireReport:
    """One update: ``str()`` gives a table, ``dataclasses.asdict`` plain values for logs."""

    iteration: int
    f_decay: float
    layers: tuple[LayerReport, ...]

    def __str__(self) -> str:
        width = max([5, *(len(layer.name) for layer in self.layers)])
        head = f"{'layer':<{width}}  {'pruned':>11}  {'grown':>11}  {'density':>8}  {'R_s':>6}"
        rows = [
            f"{r.name:<{width}}  {r.pruned:>11,}  {r.grown:>11,}  {r.density:>8.4f}  {r.r_s:>6.4f}"
            + (f"  {r.note}" if r.note else "")
            for r in self.layers
        ]
        return "\n".join(
            [f"rewired at iteration {self.iteration:,}, f_decay {self.f_decay:.4f}", head, *rows]
        )
