"""What the fuzz tests draw: sizes and options by hypothesis, so that they shrink; numbers by a seed."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 2**32 - 1)
sides = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128])
blocks = st.tuples(sides, sides)
densities = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0, 1))
rates = st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0])
kinds = st.sampled_from(["binary", "levels", "float"])
forms = st.sampled_from(["plain", "transposed", "strided", "expanded", "offset"])


class Random:
    """Numbers by a seed; torch's own generator stays as it is."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def inputs(self, shape: tuple[int, ...], kind: str, rate: float) -> Tensor:
        """Spikes, small integers times a power of two, or any numbers; a share of ``rate`` is not 0."""
        on = self.uniform(*shape) < rate
        if kind == "float":
            return self.normal(*shape) * on
        if kind == "levels":
            return (self.uniform(*shape) * 16).floor().clamp(max=15) / 4 * on
        return on.double()


def formed(x: Tensor, form: str) -> Tensor:
    """The same numbers (``expanded``: those of the first row, in every row) in another place or order of memory."""
    if not x.dim() or form == "plain":
        return x.contiguous()
    if form == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if form == "strided":
        return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]
    if form == "offset":
        return torch.cat([torch.full_like(x[:1], torch.nan), x])[1:] if len(x) else x
    return x[:1].expand(x.shape) if len(x) else x


def garbage(values: Tensor, valid: Tensor) -> Tensor:
    """The values with NaN in what overhangs."""
    return values.masked_fill(~valid, torch.nan)


def options(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A record of drawn values that hypothesis prints as such."""
    return st.fixed_dictionaries(strategies).map(lambda drawn: _Options(drawn))


class _Options(dict):
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
