"""Float rows as the kernels of pack see them."""

from __future__ import annotations

from torch import Tensor


def flat_rows(x: Tensor) -> tuple[Tensor, int, int, int, int]:
    """x with a layout that the kernels know, H, W, and the channels and pixels they shall see.

    Rows in (pixel, channel) order, as words and panels are, count as those of one pixel with more channels.
    """
    if x.dim() == 3:
        return x.contiguous(), 1, 1, x.shape[2], 1
    _, _, C, H, W = x.shape
    if x.permute(0, 1, 3, 4, 2).is_contiguous():  # channels last; also one channel, one pixel
        return x, H, W, C * H * W, 1
    return x.contiguous(), H, W, C, H * W


def rows_shape(T: int, B: int, H: int, W: int, C: int) -> tuple[int, ...]:
    """One pixel has no height and width."""
    return (T, B, C) if H == W == 1 else (T, B, C, H, W)
