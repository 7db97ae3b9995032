"""Definition of pack: float activations to bits and back, and between rows and panels."""

from __future__ import annotations

import torch
from torch import Tensor

from ...packed import LANES, Lanes


def to_panels(x: Tensor) -> Tensor:
    """``[T, B, C]`` or ``[T, B, C, H, W]`` to panels ``[G, H, W, C, 64]``; padding lanes are zero."""
    if x.dim() == 3:
        x = x[..., None, None]
    T, B, C, H, W = x.shape
    lanes = Lanes(T, B)
    padded = x.new_zeros(T, lanes.padded, C, H, W)
    padded[:, :B] = x
    full = x.new_zeros(lanes.groups * LANES, C, H, W)
    full[: lanes.total] = padded.flatten(0, 1)
    return full.view(lanes.groups, LANES, C, H, W).permute(0, 3, 4, 2, 1).contiguous()


def from_panels(panels: Tensor, T: int, B: int) -> Tensor:
    """Panels to ``[T, B, C]`` (H = W = 1) or ``[T, B, C, H, W]``; padding lanes are dropped."""
    G, H, W, C, _ = panels.shape
    lanes = Lanes(T, B)
    full = panels.permute(0, 4, 3, 1, 2).reshape(G * LANES, C, H, W)[: lanes.total]
    x = full.reshape(T, lanes.padded, C, H, W)[:, :B]
    return (x.flatten(2) if H == W == 1 else x).contiguous()


def levels_of(x: Tensor, planes: int, scale: float) -> Tensor | None:
    """``x / scale`` as int64, or None unless every element is exactly one of the 2**planes levels."""
    levels = x.double() / scale
    exact = (levels >= 0) & (levels < 2**planes) & (levels == levels.floor())
    return levels.long() if bool(exact.all()) else None


def pack(x: Tensor, planes: int, scale: float) -> Tensor | None:
    """Words int64 ``[planes, G, H, W, C]``, or None unless x holds levels only."""
    levels = levels_of(x, planes, scale)
    if levels is None:
        return None
    panels = to_panels(levels)
    shift = torch.arange(LANES, device=x.device)
    return torch.stack([(((panels >> p) & 1) << shift).sum(-1) for p in range(planes)])


def unpack(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    """Inverse of ``pack``."""
    shift = torch.arange(LANES, device=words.device)
    planes = (words[..., None] >> shift) & 1
    weight = 2 ** torch.arange(words.shape[0], device=words.device)
    panels = (planes * weight.view(-1, 1, 1, 1, 1, 1)).sum(0)
    return (from_panels(panels, T, B).double() * scale).to(dtype)
