"""Op ``select``: exact selection by score, ties in the order of a seeded hash.

Raw op: ``select``. It stands for ``torch.topk``, which leaves ties to chance and takes 16 bytes of memory per element.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._backends import choose
from .._library import define
from . import cuda, native, reference


def _select(score: Tensor, ids: Tensor, count: int, seed: int, largest: bool, finite: bool = False) -> Tensor:
    backend = choose("select", score.device.type, torch.float32)
    if backend == "reference":
        return reference.select(score, ids, count, seed, largest, finite)
    kernel = native if backend == "native" else cuda
    return kernel.select(score.float().contiguous(), ids.contiguous(), count, seed, largest, finite)


def _select_fake(
    score: Tensor, ids: Tensor, count: int, seed: int, largest: bool, finite: bool = False
) -> Tensor:
    return ids.new_empty(count)


select_op = define(
    "select(Tensor score, Tensor ids, SymInt count, SymInt seed, bool largest, bool finite=False) -> Tensor",
    _select,
    _select_fake,
)


def not_below(score: Tensor, bound: float) -> Tensor:
    """Ascending positions int64 of the scores ``[n]`` that are not below a bound; NaN is not below anything."""
    if choose("select", score.device.type, score.dtype) == "native":
        return native.not_below(score.float().contiguous(), bound)
    return reference.not_below(score, bound)


def _checked(name: str, score: Tensor, ids: Tensor, count: int, seed: int, finite: bool) -> Tensor:
    if not score.is_floating_point():
        raise TypeError(f"score: expected a floating-point tensor, got {score.dtype}")
    if ids.dtype != torch.int64:
        raise TypeError(f"ids: expected torch.int64, got {ids.dtype}")
    if ids.device != score.device:
        raise ValueError(f"ids: expected on score's device {score.device}, got {ids.device}")
    if score.dim() != 1 or score.shape != ids.shape or not 0 <= count <= score.numel():
        raise ValueError(
            f"{name}: cannot choose {count} of scores {tuple(score.shape)} and ids {tuple(ids.shape)}"
        )
    return select_op(score.detach(), ids, count, seed, name == "largest", finite)


def smallest(score: Tensor, ids: Tensor, count: int, seed: int, finite: bool = False) -> Tensor:
    """Positions of the ``count`` smallest scores; equal scores are ordered by a seeded hash of their ids.

    Args:
        score: ``[n]``, compared in float32: -0 equals 0, infinities are ordered. ids: int64 ``[n]``, all different.
        finite: the caller knows that no score is NaN, and a GPU is not waited for to learn it. Where one is, what is
            chosen there means nothing.

    Returns:
        int64 ``[count]``, in no particular order, but the same in every run and for every number of threads. The ids
        found there depend on the set of (id, score) pairs, not on their order.

    Raises:
        ValueError: a score is NaN, the shapes differ, or ``count`` is not in 0..n.
    """
    return _checked("smallest", score, ids, count, seed, finite)


def largest(score: Tensor, ids: Tensor, count: int, seed: int, finite: bool = False) -> Tensor:
    """As ``smallest`` of ``-score``: the same hash orders equal scores."""
    return _checked("largest", score, ids, count, seed, finite)
