"""Op ``conv2d``: block-sparse 2-d convolution of packed spikes or of float feature maps.

Raw ops: ``conv2d`` and ``conv2d_backward``, from words or panels to panels. Layers that work on ``[N, C, H, W]``
change the layout on the way in and out; what backward keeps is the bits, or the float input itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._backends import choose
from ...packed import LANES, MAX_PLANES, Lanes, PackedSpikes, check_spikes
from ...topology import BlockLayout, BlockTopology, check_arrays
from .._library import Function, NoDoubleBackward, apply, define, differentiable_backward, empty
from ..pack import reference as pack_reference
from ..pack.op import from_panels_op, pack_op, to_panels_op
from . import cuda, native, reference, triton
from .geometry import Geometry

_KERNELS = {"native": native, "triton": triton, "cuda": cuda}  # the others stand for the definition


def _topology(values: Tensor, index: tuple[Tensor, ...], g: Geometry, rows: int, cols: int) -> BlockTopology:
    bm, bn = values.shape[1:]
    return BlockTopology(BlockLayout(rows, cols, bm, bn, g.groups, g.taps), *index)


def _feature_map(x: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    """Words or panels as ``[T * B, C, H, W]``."""
    H, W, C = x.shape[-3:] if x.dtype == torch.int64 else x.shape[-4:-1]
    words = x.dtype == torch.int64
    maps = pack_reference.unpack(x, T, B, scale, dtype) if words else pack_reference.from_panels(x, T, B)
    return maps.view(T * B, C, H, W)


def _forward(
    x, values, bias, crow, col, ccol, row_t, offset_t, geometry, rows, cols, T, B, planes, scale, want_stats
):
    geometry, index = Geometry(*geometry), (crow, col, ccol, row_t, offset_t)
    dtype = values.dtype if x.dtype == torch.int64 else x.dtype
    if kernels := _KERNELS.get(choose("conv2d", values.device.type, dtype, values.shape[1:])):
        return kernels.forward(x, values, bias, index, geometry, rows, cols, T, B, planes, scale, want_stats)
    maps = _feature_map(x, T, B, scale, dtype)
    y = reference.forward(maps, values, bias, _topology(values, index, geometry, rows, cols), geometry)
    panels = pack_reference.to_panels(y.to(dtype).view(T, B, *y.shape[1:]))
    return panels, reference.stats(panels, T, B) if want_stats else panels.new_empty(0, dtype=torch.float64)


def _forward_fake(
    x, values, bias, crow, col, ccol, row_t, offset_t, geometry, rows, cols, T, B, planes, scale, want_stats
):
    g = Geometry(*geometry)
    dtype = values.dtype if x.dtype == torch.int64 else x.dtype
    y = values.new_empty((Lanes(T, B).groups, g.Ho, g.Wo, rows, LANES), dtype=dtype)
    return y, values.new_empty((2, rows) if want_stats else (0,), dtype=torch.float64)


def _backward(
    grad, x, values, crow, col, ccol, row_t, offset_t, geometry, rows, cols, T, B, planes, scale, needs
):
    """Gradients of x (panels), values and bias; ``needs`` is a bit set of the three."""
    geometry, index = Geometry(*geometry), (crow, col, ccol, row_t, offset_t)
    if kernels := _KERNELS.get(choose("conv2d", values.device.type, grad.dtype, values.shape[1:])):
        return kernels.backward(grad, x, values, index, geometry, rows, cols, T, B, planes, scale, needs)
    back = _feature_map(grad, T, B, 1.0, grad.dtype)
    maps = _feature_map(x, T, B, scale, grad.dtype)
    topology = _topology(values, index, geometry, rows, cols)
    grad_x, grad_values, grad_bias = reference.backward(back, maps, values, topology, geometry)
    return (
        pack_reference.to_panels(grad_x.view(T, B, *grad_x.shape[1:])) if needs & 1 else empty(grad),
        grad_values.to(values.dtype) if needs & 2 else empty(values),
        grad_bias.to(values.dtype) if needs & 4 else empty(values),
    )


def _backward_fake(
    grad, x, values, crow, col, ccol, row_t, offset_t, geometry, rows, cols, T, B, planes, scale, needs
):
    g = Geometry(*geometry)
    shape = (Lanes(T, B).groups, g.H, g.W, cols // g.taps * g.groups, LANES) if needs & 1 else (0,)
    return (
        grad.new_empty(shape),
        values.new_empty(values.shape if needs & 2 else (0,)),
        values.new_empty((rows,) if needs & 4 else (0,)),
    )


_INDEX = "Tensor crow, Tensor col, Tensor ccol, Tensor row_t, Tensor offset_t"
_CALL = "SymInt[] geometry, SymInt rows, SymInt cols, SymInt T, SymInt B, SymInt planes, float scale"
conv2d_op = define(
    f"conv2d(Tensor x, Tensor values, Tensor? bias, {_INDEX}, {_CALL}, bool want_stats) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
conv2d_backward_op = define(
    f"conv2d_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, {_CALL}, SymInt needs)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class Call(NamedTuple):
    """What a call is, beside its tensors. ``planes = 0`` means real-valued x."""

    geometry: Geometry
    rows: int
    cols: int
    T: int
    B: int
    planes: int
    scale: float


def _source(x: Tensor, call: Call, dtype: torch.dtype) -> Tensor:
    """What the raw ops read: words as they are, or the panels of a float x."""
    return x if call.planes else to_panels_op(x.to(dtype).unsqueeze(0))


class _Conv2dBackward(NoDoubleBackward):
    @staticmethod
    def forward(grad, x, values, crow, col, ccol, row_t, offset_t, call, x_panels, needs):
        grad = to_panels_op(grad.to(values.dtype).view(call.T, call.B, *grad.shape[1:]))
        source = _source(x, call, values.dtype)
        grad_x, grad_values, grad_bias = conv2d_backward_op(
            grad, source, values, crow, col, ccol, row_t, offset_t, *call, needs
        )
        if needs & 1 and not x_panels:
            g = call.geometry
            channels = call.cols // g.taps * g.groups
            grad_x = from_panels_op(grad_x, call.T, call.B).view(call.T * call.B, channels, g.H, g.W)
        return grad_x, grad_values, grad_bias


class _Conv2d(Function):
    """``carrier`` is None for float maps; for packed spikes x holds the words and the carrier takes the gradient."""

    @staticmethod
    def forward(carrier, x, values, bias, crow, col, ccol, row_t, offset_t, call):
        words = x
        if carrier is None and call.planes:
            words = pack_op(x.unsqueeze(0), call.planes, call.scale)
        source = _source(words, call, values.dtype)
        y, _ = conv2d_op(source, values, bias, crow, col, ccol, row_t, offset_t, *call, False)
        g = call.geometry
        y = from_panels_op(y, call.T, call.B).view(call.T * call.B, call.rows, g.Ho, g.Wo)
        dtype = values.dtype if carrier is not None else x.dtype
        if y.dtype != dtype:  # compiled by torch 2.11, an output that a cast leaves alone gets no gradient
            y = y.to(dtype)
        return y, empty(x) if words is x else words

    @staticmethod
    def setup_context(ctx, inputs, output):
        carrier, x, values, _, crow, col, ccol, row_t, offset_t, call = inputs
        words = output[1]
        ctx.mark_non_differentiable(words)
        ctx.set_materialize_grads(False)
        ctx.call = call
        ctx.x_panels = carrier is not None
        packed_inside = carrier is None and call.planes != 0
        ctx.x_dtype = None if carrier is not None else x.dtype
        ctx.save_for_backward(words if packed_inside else x, values, crow, col, ccol, row_t, offset_t)

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 10
        need_carrier, need_x, need_values, need_bias = ctx.needs_input_grad[:4]
        needs = (need_carrier or need_x) | need_values << 1 | need_bias << 2
        run: Any = _Conv2dBackward.apply if differentiable_backward() else _Conv2dBackward.forward
        grad_x, grad_values, grad_bias = run(grad, *ctx.saved_tensors, ctx.call, ctx.x_panels, needs)
        return (
            grad_x if need_carrier else None,
            grad_x.to(ctx.x_dtype) if need_x else None,
            grad_values if need_values else None,
            grad_bias if need_bias else None,
            *(None,) * 6,
        )


class _Conv2dPanels(Function):
    """From words to panels; the carrier takes the gradient."""

    @staticmethod
    def forward(carrier, words, values, bias, crow, col, ccol, row_t, offset_t, call, want_stats):
        return conv2d_op(words, values, bias, crow, col, ccol, row_t, offset_t, *call, want_stats)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, words, values, _, crow, col, ccol, row_t, offset_t, call, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.call = call
        ctx.save_for_backward(words, values, crow, col, ccol, row_t, offset_t)

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 11
        need_carrier, _, need_values, need_bias = ctx.needs_input_grad[:4]
        needs = need_carrier | need_values << 1 | need_bias << 2
        run = _Conv2dPanelsBackward.apply if differentiable_backward() else conv2d_backward_op
        grads = run(grad, *ctx.saved_tensors, *ctx.call, needs)
        asked = (need_carrier, need_values, need_bias)
        grad_x, grad_values, grad_bias = (g if a else None for g, a in zip(grads, asked, strict=True))
        return (grad_x, None, grad_values, grad_bias, *(None,) * 7)


class _Conv2dPanelsBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return conv2d_backward_op(*args)


def _check_topology(topology: BlockTopology, channels: int, g: Geometry) -> None:
    lay = topology.layout
    if (lay.groups, lay.taps) != (g.groups, g.taps) or lay.rows % g.groups:
        raise ValueError(
            f"topology: expected {g.groups} groups and {g.taps} taps, got {lay.groups} and {lay.taps}"
        )
    if channels * g.taps != lay.cols * g.groups:
        raise ValueError(f"x: expected {lay.cols // g.taps * g.groups} channels, got {channels}")


def _check_weight(
    topology: BlockTopology,
    values: Tensor,
    bias: Tensor | None,
    channels: int,
    g: Geometry,
    device: torch.device,
) -> None:
    """Raise ``ValueError`` unless values and bias belong to this topology, and this to an input of these channels."""
    check_arrays(topology)
    g.check()
    _check_topology(topology, channels, g)
    lay = topology.layout
    expected = (topology.nnzb, lay.bm, lay.bn)
    if values.shape != expected:
        raise ValueError(f"values: expected shape {expected}, got {tuple(values.shape)}")
    for name, tensor in (("values", values), ("topology", topology.col_indices)):
        if tensor.device != device:
            raise ValueError(f"{name}: expected on the input's device {device}, got {tensor.device}")
    if bias is not None and (
        bias.shape != (lay.rows,) or bias.dtype != values.dtype or bias.device != device
    ):
        got = f"{bias.dtype} {list(bias.shape)} on {bias.device}"
        raise ValueError(f"bias: expected {values.dtype} [{lay.rows}] on {device}, got {got}")


def _check_spikes(x: PackedSpikes, g: Geometry) -> None:
    """Raise ``ValueError`` unless the words are those of so many lanes and pixels: kernels trust it."""
    check_spikes("x", x)
    if x.words.shape[2:4] != (g.H, g.W):
        raise ValueError(f"x: expected PackedSpikes of {g.H} x {g.W} pixels, got {x.shape}")


def _check_panels(name: str, panels: Tensor, lanes: Lanes, units: tuple[int, int, int]) -> None:
    expected = (lanes.groups, *units, LANES)
    if panels.shape != expected:
        raise ValueError(f"{name}: expected panels {expected}, got {tuple(panels.shape)}")


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: BlockTopology,
    geometry: Geometry,
    planes: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Block-sparse convolution of float feature maps.

    Args:
        x: floating point ``[N, C, H, W]``, any memory format. Its dtype may be narrower than that of values (autocast);
            sums are in values' dtype, float32 at least.
        values: ``[nnzb, bm, bn]``. bias: ``[out_channels]`` or None.
        topology: where the blocks stand; its layout is that of ``layout_of``.
        geometry: for inputs of this size.
        planes: 0 for real-valued x; otherwise x is promised to hold ``scale * k`` with ``0 <= k < 2**planes`` and
            travels as bits (1 and 1.0: spikes).

    Returns:
        ``[N, out_channels, Ho, Wo]`` in x's dtype. Differentiable once with respect to x, values and bias.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device; an element of x that breaks the promise.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x: expected a floating-point tensor, got {got}")
    if x.dtype != values.dtype and x.dtype.itemsize >= values.dtype.itemsize:
        raise TypeError(f"x: expected {values.dtype} like values, or narrower, got {x.dtype}")
    if x.dim() != 4 or x.shape[2:] != (geometry.H, geometry.W):
        raise ValueError(f"x: expected shape [N, C, {geometry.H}, {geometry.W}], got {tuple(x.shape)}")
    if not 0 <= planes <= MAX_PLANES:
        raise ValueError(f"planes: expected 0 to {MAX_PLANES}, got {planes}")
    _check_weight(topology, values, bias, x.shape[1], geometry, x.device)
    lay = topology.layout
    call = Call(geometry, lay.rows, lay.cols, 1, x.shape[0], planes, scale)
    return apply(_Conv2d, None, x, values, bias, *topology.index_tensors(), call)[0]


def conv2d_packed(
    x: PackedSpikes, values: Tensor, bias: Tensor | None, topology: BlockTopology, geometry: Geometry
) -> Tensor:
    """Block-sparse convolution of packed spikes ``(T, B, C, H, W)``.

    Returns:
        ``[T, B, out_channels, Ho, Wo]`` in values' dtype.
    """
    _check_spikes(x, geometry)
    _check_weight(topology, values, bias, x.words.shape[-1], geometry, x.words.device)
    lay = topology.layout
    call = Call(geometry, lay.rows, lay.cols, x.T, x.B, x.planes, x.scale)
    y = apply(_Conv2d, x.carrier, x.words, values, bias, *topology.index_tensors(), call)[0]
    return y.view(x.T, x.B, *y.shape[1:])


def conv2d_panels(
    x: PackedSpikes,
    values: Tensor,
    bias: Tensor | None,
    topology: BlockTopology,
    geometry: Geometry,
    want_stats: bool = False,
) -> tuple[Tensor, Tensor]:
    """As ``conv2d_packed``, but to current panels ``[G, Ho, Wo, out_channels, 64]``.

    Padding lanes of the panels are undefined. With ``want_stats`` also float64 ``[2, out_channels]``, mean and biased
    variance over all pixels, samples and steps; not differentiable.
    """
    _check_spikes(x, geometry)
    _check_weight(topology, values, bias, x.words.shape[-1], geometry, x.words.device)
    lay = topology.layout
    call = Call(geometry, lay.rows, lay.cols, x.T, x.B, x.planes, x.scale)
    return apply(_Conv2dPanels, x.carrier, x.words, values, bias, *topology.index_tensors(), call, want_stats)


def conv2d_grad_values(
    x: PackedSpikes | Tensor, grad: Tensor, topology: BlockTopology, geometry: Geometry, lanes: Lanes
) -> Tensor:
    """Gradient of the values that a convolution *would* have at this topology; no autograd.

    Args:
        x: spikes ``(T, B, C, H, W)`` or float panels ``[G, H, W, C, 64]``. grad: of the output, panels
            ``[G, Ho, Wo, out_channels, 64]``; padding lanes are zero. lanes: of both.

    Returns:
        ``[nnzb, bm, bn]``, in float32 unless grad is float64.

    Raises:
        ValueError: a topology of other channels, groups or taps; spikes or panels of another shape.
    """
    lay = topology.layout
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    like = torch.empty(
        topology.nnzb, lay.bm, lay.bn, dtype=dtype, device=grad.device
    )  # only its shape is used
    if isinstance(x, PackedSpikes):
        _check_spikes(x, geometry)
        source, planes, scale, channels = x.words, x.planes, x.scale, x.words.shape[-1]
    else:
        source, planes, scale, channels = x.to(grad.dtype), 0, 1.0, x.shape[-2]
        _check_panels("x", x, lanes, (geometry.H, geometry.W, channels))
    _check_topology(topology, channels, geometry)
    _check_panels("grad", grad, lanes, (geometry.Ho, geometry.Wo, lay.rows))
    call = Call(geometry, lay.rows, lay.cols, lanes.T, lanes.B, planes, scale)
    return conv2d_backward_op(grad, source, like, *topology.index_tensors(), *call, 2)[1]
