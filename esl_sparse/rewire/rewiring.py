from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..topology import BlockTopology
from .host import taken
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
    def of(
        cls,
        topology: BlockTopology,
        ids: Tensor | None,
        stays: Tensor,
        staying: int,
        chosen: Tensor,
        renew: bool = False,
        regrown: int | None = None,
    ) -> Rewiring:
        """Take away blocks and add others.

        Args:
            topology: the present one. ids: of its blocks, where they are at hand.
            stays: which of its blocks stay, bool ``[nnzb]``. staying: how many.
            chosen: ids to add, sorted, of absent places or of blocks that do not stay. These keep what they
                hold, or, with ``renew``, are as new as the others.
            regrown: how many of the chosen are such blocks. Known on a GPU, where to count them later would be to wait;
                None elsewhere.
        """
        ids = topology.block_ids() if ids is None else ids
        if regrown is None:
            new_ids, source, grown = _move(ids, stays, chosen, renew)
        else:
            new_ids, source, grown = _move_without_waiting(ids, stays, staying, chosen, renew, regrown)
        del ids
        return cls(BlockTopology.from_block_ids(new_ids, topology.layout, check=False), source, grown)

    def carry(self, tensor: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """``tensor [n, ...]`` in the new order; grown blocks hold ``fill``: a number, ``[1, ...]``, or one for
        each of them."""
        moved = tensor.detach().new_empty(self.source.numel(), *tensor.shape[1:])
        if len(tensor):
            torch.index_select(tensor.detach(), 0, self.source.to(tensor.device), out=moved)
        grown = self.grown.to(tensor.device)
        if isinstance(fill, Tensor):
            moved[grown] = fill.to(moved.device, moved.dtype)
        else:
            moved.index_fill_(0, grown, fill)
        return moved


def _move(ids: Tensor, stays: Tensor, chosen: Tensor, renew: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The new sorted ids, and `source` and `grown` of ``Rewiring``."""
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


def _move_without_waiting(
    ids: Tensor, stays: Tensor, staying: int, chosen: Tensor, renew: bool, regrown: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_move``, where a mask is dear: on a GPU each use of one waits to learn how many it lets pass.

    Prefix sums say where each block goes instead. What does not stay goes to a place behind the last one.
    """
    n, m = ids.numel(), chosen.numel()
    before = torch.zeros(n + 1, dtype=torch.int64, device=ids.device)  # how many stay of those before
    torch.cumsum(stays, 0, out=before[1:])
    size = staying + m
    at = torch.searchsorted(ids, chosen)
    places = before[at] + torch.arange(m, device=ids.device)
    to = torch.where(stays, before[:-1] + torch.searchsorted(chosen, ids), size)
    new_ids = ids.new_empty(size + 1).scatter_(0, to, ids).scatter_(0, places, chosen)[:size]
    positions = torch.arange(n, dtype=torch.int32, device=ids.device)
    source = torch.zeros(size + 1, dtype=torch.int32, device=ids.device).scatter_(0, to, positions)
    if renew or not n:
        return new_ids, source[:size], places
    was_there = ids[at.clamp(max=n - 1)] == chosen
    source.scatter_(0, places, torch.where(was_there, at, 0).int())
    return new_ids, source[:size], taken(places, ~was_there, m - regrown)
