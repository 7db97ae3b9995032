"""What the convolutional networks share: the way in from images or frames, and the way out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..packed import PackedSpikes


def as_steps(x: Tensor, T: int) -> Tensor:
    """Frames ``[B, T, C, H, W]`` as ``[T, B, C, H, W]``; images ``[B, C, H, W]`` shown at each of T steps.

    An image (direct encoding) is not copied: its step has stride 0, so that its current is computed once.
    """
    if x.dim() == 4:
        return x.unsqueeze(0).expand(T, *x.shape)
    if x.dim() != 5:
        raise ValueError(f"x: expected images [B, C, H, W] or frames [B, T, C, H, W], got {tuple(x.shape)}")
    if x.shape[1] != T:
        raise ValueError(f"x: expected {T} frames, got {x.shape[1]}")
    return x.transpose(0, 1)


class Readout(nn.Module):
    """The last layer, which does not spike: its current of each step or, ``"integrate"``, summed up to each step."""

    def __init__(self, in_features: int, classes: int, readout: str) -> None:
        super().__init__()
        if readout not in ("current", "integrate"):
            raise ValueError(f"readout: expected 'current' or 'integrate', got {readout!r}")
        self.linear = nn.Linear(in_features, classes)
        self.integrate = readout == "integrate"

    def forward(self, x: Any) -> Tensor:
        """Spikes or floats ``[T, B, ...]`` -> ``[T, B, classes]``."""
        features = x.unpack() if isinstance(x, PackedSpikes) else x
        current = self.linear(features.flatten(2))
        return current.cumsum(0) if self.integrate else current
