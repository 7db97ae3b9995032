"""What the host learns of tensors: on a GPU each reading waits for all that was launched, so they come together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def is_remote(tensor: Tensor) -> bool:
    """Whether reading the tensor means to wait."""
    return tensor.device.type != "cpu"


def read(scalars: Sequence[Tensor]) -> list[float]:
    """The values of tensors of one element and any dtypes, in one wait (for each further device one more)."""
    if not scalars:
        return []
    device, dtypes = scalars[0].device, {scalar.dtype for scalar in scalars}
    dtype = torch.float64 if len(dtypes) > 1 else dtypes.pop()
    return torch.stack([scalar.to(device, dtype) for scalar in scalars]).tolist()


def taken(tensor: Tensor, mask: Tensor, count: int) -> Tensor:
    """``tensor[mask]`` of a mask that is known to let ``count`` pass."""
    if not is_remote(mask) or not count:
        return tensor[mask] if count else tensor[:0]
    return tensor[torch.nonzero_static(mask, size=count).squeeze(1)]


def magnitude(tensor: Tensor) -> Tensor:
    """The largest |entry|, 0 of none; NaN or infinite exactly where some entry is."""
    if tensor.numel() == 0:
        return torch.zeros((), device=tensor.device)
    return torch.linalg.vector_norm(tensor, math.inf)
