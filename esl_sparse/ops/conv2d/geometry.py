from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...topology import BlockLayout

_FARTHEST = 1 << 31  # pixels


class Geometry(NamedTuple):
    """Where a convolution reads: input pixel of output ``(y, x)`` at tap ``(i, j)`` is
    ``(y * stride - padding + i * dilation, ...)``; outside the input it is zero.

    ``padding`` is that above and to the left; what is below and to the right follows from the output's size.
    """

    groups: int
    H: int
    W: int
    Ho: int
    Wo: int
    kh: int
    kw: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> Geometry:
        """For an input of ``size = (H, W)``; padding as in ``nn.Conv2d``: on both sides, ``"same"`` or ``"valid"``.

        Raises:
            ValueError: a kernel larger than the padded input, a stride or dilation below 1, negative padding.
        """
        for name, pair in (("stride", stride), ("dilation", dilation)):
            if min(pair) < 1:
                raise ValueError(f"{name}: expected at least 1, got {pair}")
        first: list[int] = []
        out: list[int] = []
        for n, k, s, d, p in zip(size, kernel_size, stride, dilation, _both(padding), strict=True):
            reach = d * (k - 1)
            before, both = (reach // 2, reach) if p is None else (p, 2 * p)
            if before < 0:
                raise ValueError(f"padding: expected at least 0, got {padding}")
            if n + both < reach + 1:
                raise ValueError(
                    f"x: expected a padded size of at least the kernel's {reach + 1}, got {n + both} (size {size}, "
                    f"kernel_size {kernel_size}, padding {padding}, dilation {dilation})"
                )
            first.append(before)
            out.append((n + both - reach - 1) // s + 1)
        (top, left), (Ho, Wo) = first, out
        return cls(groups, *size, Ho, Wo, *kernel_size, *stride, top, left, *dilation)

    def check(self) -> None:
        """Raise unless this is a geometry as ``of`` makes it, whose places a kernel can count; it trusts them."""
        for axis, n, out, k, s, p, d in (
            ("height", self.H, self.Ho, self.kh, self.stride_h, self.padding_h, self.dilation_h),
            ("width", self.W, self.Wo, self.kw, self.stride_w, self.padding_w, self.dilation_w),
        ):
            # "same" adds one more after the map than before it where it cannot add as many.
            last = (out - 1) * s + d * (k - 1)
            if min(n, out, k, s, d) < 1 or not 0 <= p < _FARTHEST or not last <= n + 2 * p < _FARTHEST:
                raise ValueError(
                    f"geometry: expected one that Geometry.of makes, its {axis} cannot be: {self}"
                )

    @property
    def taps(self) -> int:
        return self.kh * self.kw


def _both(padding: tuple[int, int] | str) -> tuple[int | None, int | None]:
    """Padding of each dimension on both sides; None: as much as keeps the size."""
    if padding == "same":
        return None, None
    if padding == "valid":
        return 0, 0
    if not isinstance(padding, tuple) or len(padding) != 2:
        raise ValueError(f"padding: expected 'same', 'valid' or two numbers, got {padding!r}")
    return padding


def layout_of(
    out_channels: int, in_channels: int, taps: int, groups: int, block: tuple[int, int]
) -> BlockLayout:
    """Blocks of a weight ``[out_channels, in_channels / groups, kh, kw]``: each tap and each group has its own."""
    return BlockLayout(out_channels, taps * (in_channels // groups), *block, groups, taps)


def to_rows(weight: Tensor) -> Tensor:
    """A convolution's dense weight ``[out, in, kh, kw]`` as the logical matrix ``[out, kh * kw * in]``."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def from_rows(rows: Tensor, kh: int, kw: int) -> Tensor:
    """Undo ``to_rows``; contiguous."""
    return rows.view(rows.shape[0], kh, kw, -1).permute(0, 3, 1, 2).contiguous()
