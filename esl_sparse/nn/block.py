from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.conv2d import Geometry
from ..ops.pack import pack_tensor
from ..ops.pack.panels import to_panels
from ..ops.pack.time import repeat_steps
from ..ops.spiking_block import Convolution, Current, Neuron, spiking_block
from ..packed import PackedSpikes
from .container import MergeTime
from .conv import SparseConv2d
from .lif import LIF
from .linear import SparseLinear

_MAX_POOL = 3  # its sums of spikes, 0..9, fit four planes


class SpikingBlock(nn.Module):
    """A spiking layer: convolution or linear map, norm, neurons, optionally a shortcut and pooling.

    ``lif(norm(conv(x)) + shortcut(residual))``, then ``pool``. With a block-sparse convolution this is one fused
    operation from bits to bits: currents are made, normalised and consumed in memory that all blocks share, and what
    backward keeps is spikes. With torch's dense layers, and with parts that cannot be fused (a norm other than
    BatchNorm, a surrogate given as a function, values of a dtype other than float32), the same modules run one after
    another on float tensors.

    Args:
        conv_or_linear: :class:`SparseConv2d`, :class:`SparseLinear`, or torch's own.
        norm: ``nn.BatchNorm2d`` (``BatchNorm1d`` after a linear map) over time and batch together, or None.
        lif: :class:`LIF` in step mode "m" over dimension 0.
        pool: applied to the spikes, or None.
        shortcut: a convolution, or ``nn.Sequential(convolution, norm)``, applied to the residual; without it the
            residual is added as it is.

    Raises:
        ValueError: ``nn.SyncBatchNorm`` (its statistics would have to be reduced inside the fused operation; use
            ``nn.BatchNorm2d``), a LIF of another step mode.
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
            PackedSpikes if the block is fused, else a float tensor.
        """
        if self.shortcut is not None and residual is None:
            raise ValueError("residual: expected one, for the block has a shortcut")
        return self._fused(x, residual) if self.is_fused else self._chain(x, residual)

    @property
    def is_fused(self) -> bool:
        """Whether forward is one operation on bits."""
        main, norm = self.conv, self.norm
        pairs = [(main, norm)] + ([] if self.shortcut is None else [_split(self.shortcut)])
        return isinstance(self.lif.surrogate, str) and all(
            isinstance(conv, (SparseConv2d, SparseLinear))
            and conv.values.dtype in (torch.float32, torch.float64)
            and _is_fusable_norm(norm)
            for conv, norm in pairs
        )

    # Fused

    def _fused(self, x: Tensor | PackedSpikes, residual: Tensor | PackedSpikes | None) -> Any:
        T, B = (x.T, x.B) if isinstance(x, PackedSpikes) else x.shape[:2]
        currents = [_current(self.conv, self.norm, x, T, B)]
        added = None
        if self.shortcut is not None:
            currents.append(_current(*_split(self.shortcut), residual, T, B))
        elif residual is not None:
            added = residual if isinstance(residual, PackedSpikes) else _packed(self.conv, residual)
            if added is None:
                raise ValueError(
                    "residual: expected spikes or small multiples of a power of two, got other values"
                )
        pool = self._fused_pool()
        neuron = self.lif
        tau = neuron.tau
        if not isinstance(tau, Tensor):
            tau = currents[0].carrier.new_tensor(tau)
        spec = Neuron(
            neuron.v_threshold, neuron.v_reset, str(neuron.surrogate), neuron.width, neuron.detach_reset
        )
        y, stats = spiking_block(currents, tau, T, B, spec, added, pool)
        norms = [self.norm] + ([] if self.shortcut is None else [_split(self.shortcut)[1]])
        for norm, of_norm, current in zip(norms, stats, currents, strict=True):
            if current.batch_stats:
                made = current.convolution
                size = current.carrier.shape[1:3] if made is None else (made.geometry.Ho, made.geometry.Wo)
                _track(norm, of_norm, T * B * size[0] * size[1])
        return y if self.pool is None or pool > 1 else self.pool(y)

    def _fused_pool(self) -> int:
        """The side of an average pool that is part of the operation; 1: none, or a module of its own."""
        pool = self.pool
        if (
            not isinstance(pool, nn.AvgPool2d)
            or pool.ceil_mode
            or pool.divisor_override
            or pool._forward_hooks
        ):
            return 1
        sizes = [pool.kernel_size, pool.kernel_size if pool.stride is None else pool.stride]
        sides = {side for size in sizes for side in (size if isinstance(size, tuple) else (size, size))}
        if len(sides) != 1 or pool.padding not in (0, (0, 0)):
            return 1
        side = sides.pop()
        return side if side <= _MAX_POOL else 1

    # Unfused

    def _chain(self, x: Tensor | PackedSpikes, residual: Tensor | PackedSpikes | None) -> Tensor:
        y = _apply(self.norm, _apply(self.conv, x))
        if self.shortcut is not None:
            for module in _split(self.shortcut):
                residual = _apply(module, residual)
        if residual is not None:
            y = y + _tensor(residual)
        return _apply(self.pool, self.lif(y))


def _split(shortcut: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """Convolution and norm of a shortcut."""
    if not isinstance(shortcut, nn.Sequential):
        return shortcut, None
    if len(shortcut) not in (1, 2):
        raise ValueError(f"shortcut: expected a convolution and a norm, got {len(shortcut)} modules")
    return shortcut[0], shortcut[1] if len(shortcut) == 2 else None


def _is_fusable_norm(norm: nn.Module | None) -> bool:
    return norm is None or (type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d) and not norm._forward_hooks)


def _tensor(x: Any) -> Tensor:
    return x.unpack() if isinstance(x, PackedSpikes) else x


def _apply(module: nn.Module | None, x: Any) -> Any:
    """A module that knows no time, on ``[T, N, ...]``."""
    if module is None:
        return x
    if isinstance(module, (SparseConv2d, SparseLinear, nn.Linear, MergeTime)):
        return module(x if isinstance(module, (SparseConv2d, SparseLinear)) else _tensor(x))
    x = _tensor(x)
    y = module(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


def _is_static(x: Tensor) -> bool:
    return x.shape[0] > 1 and x.stride(0) == 0


def _packed(conv: Any, x: Tensor) -> PackedSpikes | None:
    """x as bits, if that is what it holds or what was promised."""
    return conv._by_kind(x, lambda planes, scale: pack_tensor(x, planes, scale) if planes else None)


def _current(conv: Any, norm: Any, x: Any, T: int, B: int) -> Current:
    """What the neurons integrate of one convolution: made in the fused operation, or given where hooks look on."""
    batch_stats = norm is not None and (norm.training or norm.running_mean is None)
    of_norm: dict[str, Any] = {"gamma": None, "beta": None, "mean": None, "var": None, "eps": 0.0}
    if norm is not None:
        of_norm.update(gamma=norm.weight, beta=norm.bias, eps=norm.eps)
        if not batch_stats:
            of_norm.update(mean=norm.running_mean, var=norm.running_var)
    of_norm["batch_stats"] = batch_stats
    if isinstance(x, Tensor):
        x = x[:1] if _is_static(x) else x
        packed = _packed(conv, x)
        x = x if packed is None else packed
    if conv._forward_hooks:
        current = _seen_current(conv, x)
        if (x.T if isinstance(x, PackedSpikes) else x.shape[0]) != T:
            current = repeat_steps(current, T, B)
        return Current(current, None, None, None, None, (), **of_norm)
    layout, steps, planes, scale = conv.topology.layout, x.shape[0], 0, 1.0
    if isinstance(x, PackedSpikes):
        H, W = x.words.shape[2:4]
        steps, planes, scale = x.T, x.planes, x.scale
        x = conv._bordered(x) if isinstance(conv, SparseConv2d) else x
        carrier, source = x.carrier, x.words
    else:
        H, W = x.shape[3:] if x.dim() == 5 else (1, 1)
        if isinstance(conv, SparseConv2d) and conv.padding_mode != "zeros":
            x = F.pad(x.flatten(0, 1), conv._borders(), conv.padding_mode).unflatten(0, x.shape[:2])
        carrier, source = to_panels(x), None
    geometry = Geometry.of((1, 1), (1, 1)) if isinstance(conv, SparseLinear) else conv.geometry(H, W)
    made = Convolution(geometry, layout.rows, layout.cols, steps, B, planes, scale)
    return Current(carrier, source, made, conv.values, conv.bias, conv.topology.index_tensors(), **of_norm)


def _seen_current(conv: Any, x: Any) -> Tensor:
    """Current panels by a forward of the module itself."""
    if isinstance(x, PackedSpikes) and isinstance(conv, SparseConv2d):
        return conv(x, currents=True)[0]
    return to_panels(conv(x))


def _track(norm: Any, stats: Tensor, n: int) -> None:
    """Running statistics as torch's BatchNorm keeps them; n values per channel."""
    if n == 1:
        raise ValueError("x: expected more than 1 value per channel when training")
    if not norm.training or norm.running_mean is None:
        return
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / norm.num_batches_tracked.to(stats.dtype)
        unbiased = stats[1] * (n / (n - 1))
        for running, new in ((norm.running_mean, stats[0]), (norm.running_var, unbiased)):
            running.copy_(running + momentum * (new - running))
