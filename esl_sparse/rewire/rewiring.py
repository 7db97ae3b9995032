from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..topology import BlockTopology
from .sorted_ids import merge_sorted


@dataclass(frozen=True)
class Rewiring:
    """Where the blocks of one layer stand after an update, and where each came from.

    Attributes:
        topology: the new one, free-standing.
        source: int32 ``[nnzb]``: position before the update; 0, meaning nothing, for grown blocks.
        grown: int64 positions of the blocks that are new.
    """

    topology: BlockTopology
    source: Tensor
    grown: Tensor

    @classmethod
    def of(cls, topology: BlockTopology, stays: Tensor, chosen: Tensor, renew: bool = False) -> Rewiring:
        """Take away blocks and add others.

        Args:
            topology: the present one. stays: which of its blocks stay, bool ``[nnzb]``.
            chosen: ids to add, sorted; some may be those of blocks that do not stay. These keep what they
                hold, or, with ``renew``, are as new as the others.
        """
        new_ids, source, grown = _move(topology.block_ids(), stays, chosen, renew)
        return cls(BlockTopology.from_block_ids(new_ids, topology.layout), source, grown)

    def carry(self, tensor: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """``tensor [n, ...]`` in the new order; grown blocks hold ``fill``: a number, ``[1, ...]``, or one for
        each of them."""
        moved = tensor.detach().new_empty(self.source.numel(), *tensor.shape[1:])
        if len(tensor):
            torch.index_select(tensor.detach(), 0, self.source.to(tensor.device), out=moved)
        moved[self.grown.to(tensor.device)] = torch.as_tensor(fill, dtype=moved.dtype, device=moved.device)
        return moved


def _move(ids: Tensor, stays: Tensor, chosen: Tensor, renew: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The new sorted ids, and `source` and `grown` of :class:`Rewiring`."""
    regrown = torch.zeros_like(chosen, dtype=torch.bool)
    came_from = regrown.new_empty(0, dtype=torch.int32)
    if not renew and ids.numel():
        at = torch.searchsorted(ids, chosen).clamp_(max=ids.numel() - 1)
        regrown = ids[at] == chosen
        came_from = at[regrown].int()
        del at
    kept = ids[stays]
    del ids  # the largest tensor here; not needed for what follows
    new_ids, is_chosen = merge_sorted(kept, chosen)
    del kept
    source = torch.zeros_like(new_ids, dtype=torch.int32)
    source[~is_chosen] = stays.nonzero().squeeze(1).int()
    places = is_chosen.nonzero().squeeze(1)
    source[places[regrown]] = came_from
    return new_ids, source, places[~regrown]
