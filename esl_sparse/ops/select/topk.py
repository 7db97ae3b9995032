"""The largest of many scores that arrive piece by piece."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .op import largest, not_below

_PIECE = 1 << 13


class TopK:
    """The ``count`` largest of all scores pushed, in memory for about ``1.5 * count``.

    The result is that of one selection over everything, however it was cut into pushes and in whatever order they
    came: equal scores are ordered by the seeded hash of their ids.

    Attributes:
        nonfinite: NaN and +inf met so far. They are no candidates, and neither is -inf, which is not counted: callers
            mark what is not to be chosen with it.
    """

    def __init__(self, count: int, seed: int, device: torch.device | str = "cpu") -> None:
        if count < 0:
            raise ValueError(f"count: expected at least 0, got {count}")
        self.nonfinite = 0
        self._count = count
        self._seed = seed
        self._used = 0
        self._threshold = -math.inf  # what is below cannot be chosen any more
        self._ids = torch.empty(0, dtype=torch.int64, device=device)
        self._scores = torch.empty(0, dtype=torch.float32, device=device)

    def push(self, scores: Tensor, first_id: int) -> None:
        """Offer float32 scores ``[n]`` of the ids ``first_id, first_id + 1, ...``, each id once."""
        if scores.dtype != torch.float32 or scores.dim() != 1:
            raise TypeError(
                f"scores: expected float32 of one dimension, got {scores.dtype} {tuple(scores.shape)}"
            )
        start = 0
        while start < scores.numel():
            # In pieces as long as there is no threshold: everything passes then, and takes 30 bytes.
            end = start + max(self._count // 4, _PIECE) if self._threshold == -math.inf else scores.numel()
            self._push(scores[start:end], first_id + start)
            start = end

    def _push(self, scores: Tensor, first_id: int) -> None:
        # "Not below" rather than "above", to see NaN: one pass, whatever else is done concerns few.
        at = not_below(scores, self._threshold)
        if at.numel() == 0:
            return
        found = scores[at]
        candidate = found.isfinite()
        if not candidate.all():
            self.nonfinite += int((~candidate & (found != -math.inf)).sum())
            at, found = at[candidate], found[candidate]
        if self._count == 0:
            return
        self._append(at.add_(first_id), found)
        if self._used > self._most():
            self._compact()

    def result(self) -> tuple[Tensor, Tensor]:
        """Ids int64 ``[m]``, ascending, and their scores; m is ``count``, or all candidates where there are fewer."""
        if self._used > self._count:
            self._compact()
        ids, order = self._ids[: self._used].sort()
        return ids, self._scores[order]

    def _append(self, ids: Tensor, scores: Tensor) -> None:
        need = self._used + ids.numel()
        if need > self._ids.numel():
            room = max(need, min(2 * self._ids.numel(), self._most()))
            self._ids, self._scores = (
                torch.cat([old[: self._used], old.new_empty(room - self._used)])
                for old in (self._ids, self._scores)
            )
        self._ids[self._used : need] = ids
        self._scores[self._used : need] = scores
        self._used = need

    def _most(self) -> int:
        """Entries to keep before the least are thrown out."""
        return self._count + max(self._count // 4, _PIECE)

    def _compact(self) -> None:
        ids, scores = self._ids[: self._used], self._scores[: self._used]
        chosen = largest(scores, ids, self._count, self._seed)
        ids[: self._count] = ids[chosen]
        scores[: self._count] = scores[chosen]
        self._used = self._count
        self._threshold = float(scores[: self._count].min())
