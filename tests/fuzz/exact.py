"""Results against float64 with an error bound that holds for sums in any order."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_sums(
    name: str, found: Tensor, expected: Tensor, size: Tensor, terms: int, sum_eps: float, rounded: torch.dtype
) -> None:
    """``found`` is the sum of ``terms`` products, whose absolute values add up to ``size``.

    Rounding in sums costs at most ``terms * sum_eps`` of that, the result's dtype half a unit in its last place.
    """
    assert found.shape == expected.shape, f"{name}: {tuple(found.shape)}, not {tuple(expected.shape)}"
    bound = ((terms + 4) * sum_eps + torch.finfo(rounded).eps) * size + 1e-30
    wrong = ~((found.detach().double() - expected).abs() <= bound)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}{list(at)} = {float(found[at])!r}, not {float(expected[at])!r}: "
            f"{int(wrong.sum())} of {wrong.numel()} are off by more than {float(bound[at]):.2g} like this one"
        )
