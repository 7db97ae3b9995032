"""Several processes that train copies of one model: what keeps their topologies the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..topology import BlockTopology
from .layers import sparse_layers

_SHARDED = ("FullyShardedDataParallel", "FSDPModule")
_INDEX = ("crow_indices", "col_indices", "ccol_indices", "row_indices_t", "block_offsets_t")
# An odd multiplier, so that a sum of products tells places apart; sums wrap at 2^64 the same way everywhere.
_MIX = 0x5851F42D4C957F2D


class Ranks:
    """The processes that a model's gradients are averaged over.

    All of them call the same methods in the same order. What comes back is the same on all, bit by bit.

    Args:
        ddp: the model's wrapper. Its broadcast of buffers before each forward leaves out the index from now on: it
            would put rank 0's in place of one that differs, unseen.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._group = ddp.process_group
        self.size: int = torch.distributed.get_world_size(self._group)
        backend = torch.distributed.get_backend(self._group)
        self._device = torch.device("cuda", torch.cuda.current_device()) if "nccl" in backend else None
        for name in sparse_layers(ddp.module):
            ddp.parameters_to_ignore.update(f"{name}.{index}" if name else index for index in _INDEX)
        ddp._assign_modules_buffers()

    def mean_(self, tensor: Tensor) -> Tensor:
        """Average a tensor ``[...]`` over the ranks, in place."""
        torch.distributed.all_reduce(tensor, group=self._group)
        return tensor.div_(self.size)

    def any(self, flags: Iterable[bool]) -> list[bool]:
        """Of each flag, whether some rank has it set."""
        found = torch.tensor([int(flag) for flag in flags], device=self._device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in found.tolist()]

    def share(self, generator: torch.Generator) -> None:
        """Give every rank's generator the state of rank 0's."""
        state = generator.get_state().to(self._device or "cpu")
        first = torch.distributed.get_global_rank(self._group, 0)
        torch.distributed.broadcast(state, first, group=self._group)
        generator.set_state(state.cpu())

    def check_same(self, topologies: Mapping[str, BlockTopology]) -> None:
        """Compare checksums.

        Raises:
            RuntimeError: some ranks have other blocks than others; on all of them.
        """
        if not topologies:
            return
        sums = torch.stack([checksum(x).to(self._device or "cpu") for x in topologies.values()])
        low, high = sums.clone(), sums
        torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN, group=self._group)
        torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX, group=self._group)
        differ = [name for name, same in zip(topologies, (low == high).tolist(), strict=True) if not same]
        if differ:
            raise RuntimeError(
                f"the blocks of {', '.join(differ)} would stand elsewhere on some ranks than on others: nothing is "
                "changed. Ranks must start alike and see the same loaded state and generator"
            )


def ranks_of(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Ranks | None]:
    """The model inside a ``DistributedDataParallel``, and its ranks; a model that stands alone has none.

    Raises:
        ValueError: one of several processes whose model is not wrapped; sharded parameters or optimiser state.
    """
    for module in model.modules():
        if is_sharded(module):
            raise ValueError(
                f"model: {type(module).__name__} shards parameters, and a block's place is in the index of all of "
                "them: use DistributedDataParallel"
            )
    if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__):
        raise ValueError(
            "optimizer: ZeroRedundancyOptimizer keeps the state of a weight on one rank only, where it cannot follow "
            "its block: use the optimiser inside it"
        )
    if isinstance(model, DistributedDataParallel):
        return model.module, Ranks(model)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise ValueError(
            "model: expected it wrapped in DistributedDataParallel, for there are "
            f"{distributed.get_world_size()} processes, which must choose the same blocks"
        )
    return model, None


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP has spread the module's parameters over the ranks."""
    return any(kind.__name__ in _SHARDED for kind in type(module).__mro__)


def checksum(topology: BlockTopology) -> Tensor:
    """int64 ``[]``: the same for the same blocks, and another for others but for one in 2^64 or so."""
    ids = topology.block_ids()
    mixed = (ids + 1) * _MIX
    mixed = (mixed ^ (mixed >> 29)) * (_MIX ^ 0x2545F4914F6CDD1D)
    return (mixed ^ (mixed >> 32)).sum() + ids.numel()


def no_ranks(ranks: Any, what: str) -> None:
    """Raise where something changes how many blocks a layer has: DDP's buckets are of fixed size."""
    if ranks is not None:
        raise ValueError(
            f"{what}: changes how many blocks a layer has, and DistributedDataParallel cannot follow that: leave it out"
        )
