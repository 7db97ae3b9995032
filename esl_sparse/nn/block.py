from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.pack.panels import to_panels
from ..ops.pool.window import Window
from ..ops.spiking_block import Current, Neuron, Operands, spiking_block
from ..packed import PackedSpikes
from .container import MergeTime
from .conv import SparseConv1d, SparseConv2d
from .currents import checked, current_of, has_hooks, in_channels, is_static, track
from .lif import LIF
from .linear import SparseLinear
from .pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

_MAX_POOL = 3  # its sums of spikes, 0..9, fit four planes


class SpikingBlock(nn.Module):
    """A spiking layer: convolution or linear map, norm, neurons, optionally a shortcut and pooling.

    ``lif(norm(conv(x)) + shortcut(residual))``, then ``pool``. With a block-sparse convolution this is one fused
    operation from bits to bits: currents are made, normalised and consumed in memory that all blocks share, and what
    backward keeps is spikes. With torch's dense layers, and with parts that cannot be fused (a norm other than
    BatchNorm, a surrogate given as a function, values of a dtype other than float32, hooks on the norm or the
    neurons), the same modules run one after another on float tensors.

    Args:
        conv_or_linear: ``SparseConv2d``, ``SparseLinear``, or torch's own.
        norm: ``nn.BatchNorm2d`` (``BatchNorm1d`` after a linear map) over time and batch together, or None.
        lif: ``LIF`` in step mode "m" over dimension 0.
        pool: applied to the spikes, or None. A pooling layer of this library takes and gives bits, and an average of
            2x2 or 3x3 pixels without overlap, torch's too, is fused; any other module takes and gives a float tensor.
        shortcut: a convolution, or ``nn.Sequential(convolution, norm)``, applied to the residual; without it the
            residual is added as it is.

    Raises:
        TypeError: lif is no ``LIF``.
        ValueError: ``nn.SyncBatchNorm`` (its statistics would have to be reduced inside the fused operation; use
            ``nn.BatchNorm2d``), a LIF of another step mode, a shortcut of another length.
    """

    def __init__(
        self,
        conv_or_linear: nn.Module,
        norm: nn.Module | None,
        lif: LIF,
        pool: nn.Module | None = None,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(lif, LIF):
            raise TypeError(f"lif: expected an esl_sparse.nn.LIF, got {type(lif).__name__}")
        if lif.step_mode != "m" or lif.time_dim != 0:
            raise ValueError(
                f"lif: expected step_mode 'm' and time_dim 0, got {lif.step_mode!r}, {lif.time_dim}"
            )
        if isinstance(shortcut, nn.Sequential) and len(shortcut) not in (1, 2):
            raise ValueError(f"shortcut: expected a convolution and a norm, got {len(shortcut)} modules")
        for module in (norm, shortcut):
            if module is not None and any(isinstance(m, nn.SyncBatchNorm) for m in module.modules()):
                raise ValueError("norm: nn.SyncBatchNorm is not supported here, use nn.BatchNorm2d")
        self.conv = conv_or_linear
        self.norm = norm.module if isinstance(norm, MergeTime) else norm
        self.lif = lif
        self.pool = pool
        self.shortcut = shortcut

    def forward(self, x: Tensor | PackedSpikes, residual: Tensor | PackedSpikes | None = None) -> Any:
        """Spikes of the next layer.

        Args:
            x: PackedSpikes, or a float tensor ``[T, N, C, H, W]`` (``[T, N, C]`` for a linear map). A tensor that is
                expanded over T (stride 0: a static image) is convolved once.
            residual: as x, of the size of the currents (of the shortcut's input, if there is one).

        Returns:
            PackedSpikes if the block is fused (and see ``pool``), else a float tensor.

        Raises:
            TypeError, ValueError: another type, dtype, shape or device; no residual for the shortcut.
        """
        if self.shortcut is not None and residual is None:
            raise ValueError("residual: expected one, for the block has a shortcut")
        return self._fused(x, residual) if self.is_fused else self._chain(x, residual)

    @property
    def is_fused(self) -> bool:
        """Whether forward is one operation on bits."""
        lif: Any = self.lif
        return (
            type(lif) is LIF
            and isinstance(lif.surrogate, str)
            and not has_hooks(lif)
            and all(_is_fusable(conv, norm) for conv, norm in self._parts())
        )

    def _parts(self) -> list[tuple[Any, Any]]:
        """Convolution and norm of the input's current, and of the shortcut's."""
        parts: list[tuple[Any, Any]] = [(self.conv, self.norm)]
        shortcut = self.shortcut
        if isinstance(shortcut, nn.Sequential):
            conv, norm, *_ = (*shortcut, None)
            parts.append((conv, norm.module if isinstance(norm, MergeTime) else norm))
        elif shortcut is not None:
            parts.append((shortcut, None))
        return parts

    # Fused

    def _fused(self, x: Any, residual: Any) -> Any:
        (conv, norm), *shortcut = self._parts()
        x = checked("x", x, conv, in_channels(conv))
        T, B = x.shape[:2]
        currents, bits = [current_of(conv, norm, x)], None
        if shortcut:
            conv, norm = shortcut[0]
            residual = checked("residual", residual, conv, in_channels(conv))
            currents.append(current_of(conv, norm, residual))
        elif residual is not None:
            residual = checked("residual", residual, conv, currents[0].shape[2])
            if isinstance(residual, PackedSpikes):
                bits = residual
            else:
                currents.append(Current(Operands(to_panels(residual))))
        if residual is not None:
            shape = currents[1].shape if bits is None else tuple(bits.words.shape[2:])
            expected, got = (T, B, *currents[0].shape), (*residual.shape[:2], *shape)
            if got != expected:
                raise ValueError(
                    f"residual: expected to add (T, N, H, W, C) = {expected} to the current, got {got}"
                )
        lif, pool = self.lif, self._fused_pool()
        tau = lif.tau if isinstance(lif.tau, Tensor) else conv.values.new_full((), lif.tau)
        neuron = Neuron(lif.v_threshold, lif.v_reset, str(lif.surrogate), lif.width, lif.detach_reset)
        spikes, stats = spiking_block(currents, tau, T, B, neuron, bits, pool)
        for (_, norm), current, found in zip(self._parts(), currents, stats, strict=False):
            if current.of_batch:
                H, W, _ = current.shape
                track(norm, found, T * B * H * W)
        if self.training:
            lif.silence.hear(lif, spikes)
        return spikes if pool > 1 else self._pooled(spikes)

    def _fused_pool(self) -> int:
        """The side of an average pool that is part of the operation; 1: none, or a module of its own."""
        pool: Any = self.pool
        if type(pool) not in (nn.AvgPool2d, AvgPool2d) or pool.divisor_override or has_hooks(pool):
            return 1
        window = Window.of(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
        side = window.kernel[0]
        return side if side <= _MAX_POOL and window == Window.of(side, None, 0) else 1

    def _pooled(self, spikes: PackedSpikes) -> Any:
        if self.pool is None:
            return spikes
        if isinstance(self.pool, (AvgPool2d, MaxPool2d, AdaptiveAvgPool2d)):
            return self.pool(spikes)
        return _merging_time(self.pool, _floats(spikes, self.conv))

    # Unfused

    def _chain(self, x: Any, residual: Any) -> Tensor:
        currents = [
            _merging_time(norm, _convolved(conv, source))
            for (conv, norm), source in zip(self._parts(), (x, residual), strict=False)
        ]
        if self.shortcut is None and residual is not None:
            currents.append(_floats(residual, self.conv))
        return _merging_time(self.pool, self.lif(reduce(torch.add, currents)))


def _is_fusable(conv: Any, norm: Any) -> bool:
    return (
        type(conv) in (SparseConv2d, SparseLinear)
        and conv.values.dtype in (torch.float32, torch.float64)
        and (norm is None or (type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d) and not has_hooks(norm)))
    )


def _floats(x: Any, conv: nn.Module) -> Any:
    """Spikes as a float tensor of the dimensions that this layer has."""
    if not isinstance(x, PackedSpikes):
        return x
    y = x.unpack()
    return y[..., None, None] if y.dim() == 3 and not isinstance(conv, (nn.Linear, SparseLinear)) else y


def _convolved(conv: nn.Module, x: Any) -> Tensor:
    if is_static(x):
        y = conv(x[0])
        return y.expand(x.shape[0], *y.shape)
    if isinstance(conv, (SparseConv1d, SparseConv2d, SparseLinear)):
        return conv(x)
    return _merging_time(conv, _floats(x, conv))


def _merging_time(module: nn.Module | None, x: Tensor) -> Tensor:
    """A module that knows no time, on ``[T, N, ...]``."""
    if module is None or isinstance(module, MergeTime):
        return x if module is None else module(x)
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
