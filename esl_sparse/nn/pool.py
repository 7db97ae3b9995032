"""torch's pooling layers, which take PackedSpikes and ``[T, N, C, H, W]`` too."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..ops import pool
from ..packed import PackedSpikes


def _merging_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply to ``[T, N, C, H, W]`` as to T * N images; to anything else as it is."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if x.dim() == 5 else layer(x)


class AvgPool2d(nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` of ``[C, H, W]``, ``[N, C, H, W]``, ``[T, N, C, H, W]`` or PackedSpikes.

    Spikes stay packed; see ``esl_sparse.functional.avg_pool2d`` for what they allow.
    """

    def forward(self, x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:  # type: ignore[override]
        if not isinstance(x, PackedSpikes):
            return _merging_time(super().forward, x)
        return pool.avg_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` of ``[C, H, W]``, ``[N, C, H, W]``, ``[T, N, C, H, W]`` or PackedSpikes.

    Spikes stay packed. ``return_indices`` is torch's own affair: with neither time nor packed spikes.
    """

    def forward(self, x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
        if self.return_indices and (isinstance(x, PackedSpikes) or x.dim() == 5):
            kind = "PackedSpikes" if isinstance(x, PackedSpikes) else "[T, N, C, H, W]"
            raise ValueError(f"return_indices: expected False for {kind}, got True")
        if not isinstance(x, PackedSpikes):
            return _merging_time(super().forward, x)
        return pool.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` of ``[C, H, W]``, ``[N, C, H, W]``, ``[T, N, C, H, W]`` or PackedSpikes.

    Size 1 makes a float tensor ``[T, N, C, 1, 1]`` of spikes; other sizes divide theirs, and spikes stay packed.
    """

    def forward(self, x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:  # type: ignore[override]
        if isinstance(x, PackedSpikes):
            return pool.adaptive_avg_pool2d(x, self.output_size)
        return _merging_time(super().forward, x)
