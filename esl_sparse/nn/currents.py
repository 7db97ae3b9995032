"""What a fused block makes its currents of: a block-sparse layer, the norm after it, and their input, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.conv2d import Geometry
from ..ops.conv2d.op import Call
from ..ops.pack import pack_tensor
from ..ops.pack.panels import to_panels
from ..ops.pack.time import repeat_steps
from ..ops.spiking_block import Current, Operands
from ..packed import PackedSpikes, check_spikes
from .conv import SparseConv2d
from .linear import SparseLinear


def has_hooks(module: nn.Module) -> bool:
    """Whether someone wants the module itself to be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_static(x: Any) -> bool:
    """Whether x is one step, expanded over T. The gradient of a leaf is asked for step by step."""
    return (
        isinstance(x, Tensor) and x.shape[0] > 1 and x.stride(0) == 0 and not (x.is_leaf and x.requires_grad)
    )


def in_channels(conv: Any) -> int:
    layout = conv.topology.layout
    return layout.cols // layout.taps * layout.groups


def checked(name: str, x: Any, conv: Any, channels: int) -> Any:
    """x, a tensor or PackedSpikes of so many channels with the dimensions that this layer has; kernels trust it.

    Blocks compute in the dtype of their values, under autocast too.
    """
    if not isinstance(x, (Tensor, PackedSpikes)):
        raise TypeError(f"{name}: expected a tensor or PackedSpikes, got {type(x).__name__}")
    linear = isinstance(conv, SparseLinear)
    if isinstance(x, PackedSpikes):
        check_spikes(name, x)
    dims = len(x.shape)
    if isinstance(x, PackedSpikes):
        fits = x.words.shape[4] == channels and (dims == 3 or not linear)
    else:
        fits = dims == (3 if linear else 5) and x.shape[2] == channels
    if not fits:
        expected = f"[T, N, {channels}{'' if linear else ', H, W'}]"
        raise ValueError(f"{name}: expected {expected}, got {type(x).__name__} of shape {tuple(x.shape)}")
    device = conv.values.device
    if (x.words if isinstance(x, PackedSpikes) else x).device != device:
        raise ValueError(f"{name}: expected on the layer's device {device}")
    if isinstance(x, Tensor) and x.dtype != conv.values.dtype:
        if not torch.is_autocast_enabled(device.type) or not x.is_floating_point():
            raise TypeError(f"{name}: expected {conv.values.dtype} like the layer's values, got {x.dtype}")
        x = x.to(conv.values.dtype)
    return x


def current_of(conv: Any, norm: Any, x: Tensor | PackedSpikes) -> Current:
    """The current of a checked input: made inside the fused operation, or given where hooks look on."""
    T, B = x.shape[:2]
    if isinstance(x, Tensor):
        x = _packed(conv, x[:1] if is_static(x) else x)
    current = _seen_current(conv, x, T, B) if has_hooks(conv) else _unseen_current(conv, x, B)
    return current if norm is None else _normalised(current, norm, T * B)


def _packed(conv: Any, x: Tensor) -> Tensor | PackedSpikes:
    """x as bits, if that is what it holds or what was promised."""
    return conv._by_kind(x, lambda planes, scale: pack_tensor(x, planes, scale) if planes else x)


def _unseen_current(conv: Any, x: Any, B: int) -> Current:
    convolves = isinstance(conv, SparseConv2d)
    if isinstance(x, PackedSpikes):
        H, W = x.words.shape[2:4]
        kind = (x.planes, x.scale)
        bits = conv._bordered(x) if convolves else x
        carrier, source = bits.carrier, bits.words
    else:
        H, W = x.shape[3:] if convolves else (1, 1)
        kind = (0, 1.0)
        if convolves and conv.padding_mode != "zeros":
            x = F.pad(x.flatten(0, 1), conv._borders(), conv.padding_mode).unflatten(0, x.shape[:2])
        carrier, source = to_panels(x), None
    geometry = conv.geometry(H, W) if convolves else Geometry.of((1, 1), (1, 1))
    layout = conv.topology.layout
    call = Call(geometry, layout.rows, layout.cols, x.shape[0], B, *kind)
    weight = (conv.values, conv.bias)
    return Current(Operands(carrier, source, *weight, None, None, None, *conv.topology.index_tensors()), call)


def _seen_current(conv: Any, x: Any, T: int, B: int) -> Current:
    """By a call of the layer itself."""
    if isinstance(x, PackedSpikes) and isinstance(conv, SparseConv2d):
        panels = conv(x, currents=True)
    else:
        with torch.autocast(conv.values.device.type, enabled=False):
            panels = to_panels(conv(x))
    return Current(Operands(panels if x.shape[0] == T else repeat_steps(panels, T, B)))


def _normalised(current: Current, norm: Any, lanes: int) -> Current:
    H, W, C = current.shape
    if norm.num_features != C:
        raise ValueError(f"norm: expected {C} features like the layer before it, got {norm.num_features}")
    of_batch = norm.training or norm.running_mean is None
    if of_batch and lanes * H * W == 1:
        raise ValueError("x: expected more than 1 value per channel when training")
    stats = None if of_batch else torch.stack([norm.running_mean, norm.running_var]).double()
    operands = current.operands._replace(gamma=norm.weight, beta=norm.bias, stats=stats)
    return current._replace(operands=operands, eps=norm.eps, of_batch=of_batch)


@torch.no_grad()
def track(norm: Any, stats: Tensor, n: int) -> None:
    """Running statistics of one more batch, as torch's BatchNorm keeps them; n values per channel."""
    if not norm.training or not norm.track_running_stats or norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    if n == 0:
        return
    momentum = norm.momentum
    if momentum is None:
        momentum = 1.0 / norm.num_batches_tracked.to(stats.dtype)
    unbiased = stats[1] * (n / (n - 1))
    for running, new in ((norm.running_mean, stats[0]), (norm.running_var, unbiased)):
        running.copy_(running + momentum * (new - running))
