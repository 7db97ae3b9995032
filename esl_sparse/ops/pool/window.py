"""The windows of a pooling: arguments as torch has them, checked, and how many windows fit."""

from __future__ import annotations

from typing import NamedTuple

Pair = tuple[int, int]


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f"{name}: expected an integer >= {least}, or two, got {value!r}")
    return pair[0], pair[1]


class Window(NamedTuple):
    """Of each: (vertical, horizontal). Window o covers rows ``o * stride - padding + k * dilation``, ``k < kernel``."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool

    @classmethod
    def of(
        cls,
        kernel_size: int | Pair,
        stride: int | Pair | None,
        padding: int | Pair,
        dilation: int | Pair = 1,
        ceil_mode: bool = False,
    ) -> Window:
        """From the arguments of a torch pooling layer."""
        window = cls(
            _pair("kernel_size", kernel_size, 1),
            _pair("stride", kernel_size if stride is None else stride, 1),
            _pair("padding", padding, 0),
            _pair("dilation", dilation, 1),
            bool(ceil_mode),
        )
        for p, k, d in zip(window.padding, window.kernel, window.dilation, strict=True):
            if p > (d * (k - 1) + 1) // 2:
                raise ValueError(f"padding: expected at most half of the window {k} (dilation {d}), got {p}")
        return window

    @property
    def elements(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def counts(self, H: int, W: int) -> Pair:
        """Windows along height and width: the size of the pooled map."""
        return self._count(0, H), self._count(1, W)

    def _count(self, axis: int, size: int) -> int:
        stride, padding = self.stride[axis], self.padding[axis]
        spare = size + 2 * padding - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        if not self.ceil_mode:
            return spare // stride + 1
        count = -(-spare // stride) + 1
        # The last window starts inside the map or its left padding.
        return count - 1 if (count - 1) * stride >= size + padding else count

    def cuts(self, H: int, W: int) -> bool:
        """Whether ``ceil_mode`` adds windows that reach beyond the padded map."""
        return self.counts(H, W) != self._replace(ceil_mode=False).counts(H, W)

    def check(self, H: int, W: int) -> None:
        """Raise unless there are windows, each with at least one pixel of an H x W map."""
        counts = self.counts(H, W)
        if H < 1 or W < 1 or min(counts) < 1:
            raise ValueError(f"x: expected a map of at least one window {self.kernel}, got {H} x {W} pixels")
        if self.dilation == (1, 1) or self.padding == (0, 0):
            return
        for axis, size in enumerate((H, W)):
            for o in range(counts[axis]):
                start = o * self.stride[axis] - self.padding[axis]
                taps = range(start, start + self.dilation[axis] * self.kernel[axis], self.dilation[axis])
                if not any(0 <= i < size for i in taps):
                    raise ValueError(f"padding: window {o} of dimension {axis - 2} holds no pixel of the map")
