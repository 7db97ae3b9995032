from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.conv2d import (
    Geometry,
    conv2d,
    conv2d_grad_values,
    conv2d_packed,
    conv2d_panels,
    from_rows,
    layout_of,
    to_rows,
)
from ..ops.pack import pack_tensor
from ..ops.pack.op import to_panels_op
from ..ops.pack.pixels import pad_pixels
from ..packed import Lanes, PackedSpikes, check_spikes
from ..topology import BlockTopology, resolve_block_size
from .sparse import BlockSparseLayer


class _Seen(NamedTuple):
    """An input as bits or as float panels, and whether the output was currents, that is panels."""

    x: PackedSpikes | Tensor
    currents: bool
    geometry: Geometry
    lanes: Lanes = Lanes(0, 0)  # of float panels


class ConvCall(NamedTuple):
    """One call of a convolution: its input, spikes or float panels, and its output gradient as panels."""

    x: PackedSpikes | Tensor
    grad: Tensor
    lanes: Lanes
    geometry: Geometry


class _SparseConv(BlockSparseLayer):
    """Convolution in two dimensions; in one, on maps of height 1."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def _set_up_conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        density: float,
        block_size: str | int | tuple[int, int],
        input: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        generator: torch.Generator | None,
    ) -> None:
        # torch's own layer, without memory, checks and completes what it would accept.
        like: Any = self._dense_type(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            "meta",
        )
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(like, name))
        self._check_sizes(len(like.output_padding))
        self.padding_mode = padding_mode
        self.transposed, self.output_padding = False, like.output_padding
        self._reversed_padding = like._reversed_padding_repeated_twice
        target = torch.get_default_device() if device is None else torch.device(device)
        rows, cols = out_channels // groups, in_channels // groups
        block = resolve_block_size(block_size, rows, cols, target.type)
        self._set_up(
            layout_of(out_channels, in_channels, self._taps(), groups, block),
            bias,
            density,
            input,
            target,
            dtype,
            generator,
        )

    def _check_sizes(self, dims: int) -> None:
        """What torch notices at the first call only, or never."""
        for name, least in (
            ("in_channels", 1),
            ("out_channels", 1),
            ("kernel_size", 1),
            ("stride", 1),
            ("padding", 0),
            ("dilation", 1),
        ):
            given = getattr(self, name)
            sizes = (given,) * dims if isinstance(given, int) else given
            if not isinstance(given, str) and (len(sizes) != dims or min(sizes) < least):
                several = f"{dims} numbers of " if given is sizes and dims > 1 else ""
                raise ValueError(f"{name}: expected {several}at least {least}, got {given}")

    def _taps(self) -> int:
        taps = 1
        for k in self.kernel_size:
            taps *= k
        return taps

    def geometry(self, H: int, W: int) -> Geometry:
        """For maps of this size; what a ``padding_mode`` other than zeros adds is not part of it."""
        one = len(self.kernel_size) == 1

        def pair(size: tuple[int, ...], of_height: int) -> tuple[int, int]:
            return (of_height, size[0]) if one else (size[0], size[1])

        padding = self.padding if isinstance(self.padding, str) else pair(self.padding, 0)
        if self.padding_mode != "zeros":
            H, W = H + sum(self._borders()[2:]), W + sum(self._borders()[:2])
            padding = (0, 0)
        return Geometry.of(
            (H, W),
            pair(self.kernel_size, 1),
            pair(self.stride, 1),
            padding,
            pair(self.dilation, 1),
            self.groups,
        )

    def _borders(self) -> tuple[int, int, int, int]:
        """Pixels added to the left, to the right, above and below, as in ``F.pad``."""
        borders = (*self._reversed_padding, 0, 0)
        return borders[:4]

    def extra_repr(self) -> str:
        words = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        for name, default in (
            ("padding", (0,) * len(self.kernel_size)),
            ("dilation", (1,) * len(self.kernel_size)),
            ("groups", 1),
            ("padding_mode", "zeros"),
        ):
            if getattr(self, name) != default:
                words.append(f"{name}={getattr(self, name)!r}")
        words.append(f"bias={self.bias is not None}")
        if not self.values.is_meta:
            words.append(f"density={self.density:.4g}")
        return ", ".join([*words, f"block_size={self.block_size}"])

    # Forward, on maps of two dimensions

    def _merged(self, x: Tensor) -> Tensor:
        """All samples and steps as ``[N, C, H, W]``."""
        raise NotImplementedError

    def _bordered(self, x: PackedSpikes) -> PackedSpikes:
        """Spikes with the border of a ``padding_mode`` other than zeros."""
        channels = x.words.shape[-1]
        if channels != self.in_channels:
            raise ValueError(f"x: expected {self.in_channels} channels, got PackedSpikes of {x.shape}")
        return x if self.padding_mode == "zeros" else pad_pixels(x, self._borders(), self.padding_mode)

    def _maps(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[N, out_channels, Ho, Wo]``."""
        values, bias, topology = self.values, self.bias, self.topology
        geometry = self.geometry(x.shape[2], x.shape[3])
        if self.padding_mode != "zeros":
            x = F.pad(x, self._borders(), self.padding_mode)
        return self._by_kind(
            x, lambda planes, scale: conv2d(x, values, bias, topology, geometry, planes, scale)
        )

    def _spikes(self, x: PackedSpikes, currents: bool) -> Tensor:
        check_spikes("x", x)
        geometry = self.geometry(*x.words.shape[2:4])
        operands = (self._bordered(x), self.values, self.bias, self.topology, geometry)
        return conv2d_panels(*operands)[0] if currents else conv2d_packed(*operands)

    # What rewiring by gradient needs (see rewire.layers.GradientLayer)

    def seen_input(self, x: Tensor | PackedSpikes, currents: bool = False) -> _Seen:
        """The input of the forward that has just run, with its border: as bits if it was spikes, else as maps."""
        if isinstance(x, PackedSpikes):
            geometry = self.geometry(*x.words.shape[2:4])
            return _Seen(self._bordered(x), currents, geometry)
        maps = self._merged(x.detach())
        geometry = self.geometry(maps.shape[2], maps.shape[3])
        if self.padding_mode != "zeros":
            maps = F.pad(maps, self._borders(), self.padding_mode)
        planes, scale = self._kind
        kept = (
            pack_tensor(maps[None], planes, scale)
            if planes
            else to_panels_op(maps[None].to(self.values.dtype))
        )
        return _Seen(kept, currents, geometry, Lanes(1, maps.shape[0]))

    def call(self, seen: _Seen, grad: Tensor) -> ConvCall:
        lanes = seen.x.lanes if isinstance(seen.x, PackedSpikes) else seen.lanes
        if not seen.currents:
            g = seen.geometry
            grad = to_panels_op(grad.reshape(*lanes, self.out_channels, g.Ho, g.Wo).to(self.values.dtype))
        return ConvCall(seen.x, grad, lanes, seen.geometry)

    def gradient_at(self, topology: BlockTopology, call: ConvCall) -> Tensor:
        return conv2d_grad_values(call.x, call.grad, topology, call.geometry, call.lanes)

    # Conversions

    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    @staticmethod
    def _to_rows(weight: Tensor) -> Tensor:
        return to_rows(weight if weight.dim() == 4 else weight.unsqueeze(2))

    def _from_rows(self, rows: Tensor) -> Tensor:
        return from_rows(rows, self._taps(), 1).view(self._weight_shape())

    def _arguments(self) -> dict[str, Any]:
        return self._arguments_of(self)

    @classmethod
    def _arguments_of(cls, module: Any) -> dict[str, Any]:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        return {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}


class SparseConv2d(_SparseConv):
    """Block-sparse 2-d convolution: a drop-in for ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as for torch's
            layer.
        density: fraction of the blocks that exist; ``round(density * blocks)`` are drawn uniformly (an Erdos-Renyi
            graph with an exact count, paper Eq. 1). A block covers ``bm`` output and ``bn`` input channels of one tap
            and one group.
        block_size: ``"auto"`` (4x4 on CPU, 16x16 on CUDA), an int or ``(bm, bn)``: powers of two from 1 to 128,
            clamped to the channels of a group.
        input: what the input holds, as for ``SparseLinear``.
        device, dtype: of the values and the bias.
        generator: source of the random topology and weights (CPU).

    Attributes:
        values: parameter ``[nnzb, bm, bn]``. bias: parameter ``[out_channels]`` or None.
        topology: a ``BlockTopology`` view of the index buffers.
    """

    _dense_type = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        density: float = 0.1,
        block_size: str | int | tuple[int, int] = "auto",
        input: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        like = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self._set_up_conv(*like, density, block_size, input, device, dtype, generator)

    def forward(self, x: Tensor | PackedSpikes, currents: bool = False) -> Tensor:
        """``[C, H, W]``, ``[N, C, H, W]``, ``[T, N, C, H, W]`` or PackedSpikes ``(T, B, C, H, W)`` to a float tensor.

        The result has as many dimensions as x; that of PackedSpikes has five. With ``currents`` (PackedSpikes only) it
        is current panels ``[G, Ho, Wo, out_channels, 64]``, whose padding lanes are undefined.
        """
        if isinstance(x, PackedSpikes):
            return self._spikes(x, currents)
        if currents:
            raise TypeError(f"x: currents are made from PackedSpikes, got {type(x).__name__}")
        x = self._checked(x)
        y = self._maps(self._merged(x))
        return y.squeeze(0) if x.dim() == 3 else y.view(*x.shape[:-3], *y.shape[1:])

    def _merged(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4, 5) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x: expected shape [..., {self.in_channels}, H, W] of 3 to 5 dims, got {tuple(x.shape)}"
            )
        return x.unsqueeze(0) if x.dim() == 3 else x.flatten(0, -4)


class SparseConv1d(_SparseConv):
    """Block-sparse 1-d convolution: a drop-in for ``nn.Conv1d``.

    Arguments and attributes are those of ``SparseConv2d``.
    """

    _dense_type = nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        density: float = 0.1,
        block_size: str | int | tuple[int, int] = "auto",
        input: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        like = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self._set_up_conv(*like, density, block_size, input, device, dtype, generator)

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """``[C, L]``, ``[N, C, L]``, ``[T, N, C, L]`` or PackedSpikes ``(T, B, C, 1, L)`` to a float tensor.

        The result has as many dimensions as x; that of PackedSpikes is ``[T, B, C, L]``.
        """
        if isinstance(x, PackedSpikes):
            check_spikes("x", x)
            if x.words.shape[2] != 1:
                raise ValueError(f"x: expected PackedSpikes (T, B, {self.in_channels}, 1, L), got {x.shape}")
            return self._spikes(x, currents=False).squeeze(-2)
        x = self._checked(x)
        y = self._maps(self._merged(x)).squeeze(2)
        return y.squeeze(0) if x.dim() == 2 else y.view(*x.shape[:-2], *y.shape[1:])

    def _merged(self, x: Tensor) -> Tensor:
        if x.dim() not in (2, 3, 4) or x.shape[-2] != self.in_channels:
            raise ValueError(
                f"x: expected shape [..., {self.in_channels}, L] of 2 to 4 dims, got {tuple(x.shape)}"
            )
        x = x.unsqueeze(0) if x.dim() == 2 else x.flatten(0, -3)
        return x.unsqueeze(2)
