"""Op ``linear``: block-sparse ``y = x W^T + b`` on float rows or on packed spikes.

Raw ops: ``linear`` and ``linear_backward``. Float rows are packed inside the op when they are promised to be spikes
(``planes > 0``), so that one call does what a layer needs and the bits are what backward keeps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._backends import choose
from ...packed import LANES, Lanes, PackedSpikes, check_spikes
from ...topology import BlockLayout, BlockTopology, check_arrays
from .._library import Function, NoDoubleBackward, apply, define, differentiable_backward, empty
from ..pack import reference as pack_reference
from ..pack.op import broken_promise, pack_words
from . import cuda, native, reference, triton


class Call(NamedTuple):
    """What a call is, beside its tensors.

    ``planes = 0`` means real-valued x. ``panels``: whether y (and its gradient) is a panel ``[G, 1, 1, rows, 64]``
    instead of rows ``[T * B, rows]``.
    """

    rows: int
    cols: int
    T: int
    B: int
    planes: int
    scale: float
    panels: bool


def _topology(call: Call, values: Tensor, index: tuple[Tensor, ...]) -> BlockTopology:
    return BlockTopology(BlockLayout(call.rows, call.cols, values.shape[1], values.shape[2]), *index)


def _forward(x, values, bias, crow, col, ccol, row_t, offset_t, rows, cols, T, B, planes, scale, panels):
    call = Call(rows, cols, T, B, planes, scale, panels)
    packed = x.dtype == torch.int64
    dtype = values.dtype if packed else x.dtype
    backend = choose("linear", values.device.type, dtype, values.shape[1:])
    if backend == "native":
        y, words = native.forward(x, values, bias, (crow, col, ccol, row_t, offset_t), call)
        if y is None:
            raise broken_promise(planes, scale)
        return y, words
    words = x if packed else empty(x).long()
    if not packed and planes:
        words = pack_words(x.view(T, B, cols), planes, scale)
    index = (crow, col, ccol, row_t, offset_t)
    topology = _topology(call, values, index)
    if backend == "triton":
        y = triton.forward(words if planes else x, values, bias, topology, call, dtype)
    elif backend == "cuda":
        y = cuda.forward(words if planes else x, values, bias, index, call, dtype)
    else:
        if packed:
            x = pack_reference.unpack(words, T, B, scale, dtype).view(T * B, cols)
        y = reference.forward(x, values, bias, topology)
        if panels:
            y = pack_reference.to_panels(y.view(T, B, rows))
    return y, empty(words) if packed else words


def _forward_fake(x, values, bias, crow, col, ccol, row_t, offset_t, rows, cols, T, B, planes, scale, panels):
    packed = x.dtype == torch.int64
    G = Lanes(T, B).groups
    shape = (G, 1, 1, rows, LANES) if panels else (T * B, rows)
    y = values.new_empty(shape, dtype=values.dtype if packed else x.dtype)
    words = (planes, G, 1, 1, cols) if planes and not packed else (0,)
    return y, x.new_empty(words, dtype=torch.int64)


def _backward(
    grad,
    x,
    values,
    crow,
    col,
    ccol,
    row_t,
    offset_t,
    rows,
    cols,
    T,
    B,
    planes,
    scale,
    panels,
    x_panels,
    needs,
):
    """Gradients of x (rows, or panels if ``x_panels``), values and bias; ``needs`` is a bit set of the three."""
    call = Call(rows, cols, T, B, planes, scale, panels)
    index = (crow, col, ccol, row_t, offset_t)
    need_x, need_values, need_bias = needs & 1, needs & 2, needs & 4
    backend = choose("linear", values.device.type, grad.dtype, values.shape[1:])
    if backend == "native":
        return native.backward(grad, x, values, index, call, x_panels, needs)
    if backend == "cuda":
        return cuda.backward(grad, x, values, index, call, x_panels, needs)
    topology = _topology(call, values, index)
    if backend == "triton":
        return triton.backward(grad, x, values, topology, call, x_panels, needs)
    if panels:
        grad = pack_reference.from_panels(grad, T, B).view(T * B, rows)
    if planes:
        x = pack_reference.unpack(x, T, B, scale, grad.dtype).view(T * B, cols)
    grad_x, grad_values, grad_bias = empty(grad), empty(values), empty(values)
    if need_x:
        grad_x = reference.grad_input(grad, values, topology)
        if x_panels:
            grad_x = pack_reference.to_panels(grad_x.view(T, B, cols))
    if need_values:
        grad_values = reference.grad_values(grad, x, topology).to(values.dtype)
    if need_bias:
        grad_bias = grad.sum(0).to(values.dtype)
    return grad_x, grad_values, grad_bias


def _backward_fake(
    grad,
    x,
    values,
    crow,
    col,
    ccol,
    row_t,
    offset_t,
    rows,
    cols,
    T,
    B,
    planes,
    scale,
    panels,
    x_panels,
    needs,
):
    G = Lanes(T, B).groups
    shape = ((G, 1, 1, cols, LANES) if x_panels else (T * B, cols)) if needs & 1 else (0,)
    return (
        grad.new_empty(shape),
        values.new_empty(values.shape if needs & 2 else (0,)),
        values.new_empty((rows,) if needs & 4 else (0,)),
    )


_INDEX = "Tensor crow, Tensor col, Tensor ccol, Tensor row_t, Tensor offset_t"
_CALL = "SymInt rows, SymInt cols, SymInt T, SymInt B, SymInt planes, float scale, bool panels"
linear_op = define(
    f"linear(Tensor x, Tensor values, Tensor? bias, {_INDEX}, {_CALL}) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
linear_backward_op = define(
    f"linear_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, {_CALL}, bool x_panels, SymInt needs)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


_NO_GRADIENT = (None,) * 6  # of the index and the call


class _LinearBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return linear_backward_op(*args)


class _Linear(Function):
    """``carrier`` is None for float rows; for packed spikes x holds the words and the carrier takes the gradient."""

    @staticmethod
    def forward(carrier, x, values, bias, crow, col, ccol, row_t, offset_t, call):
        return linear_op(x, values, bias, crow, col, ccol, row_t, offset_t, *call)

    @staticmethod
    def setup_context(ctx, inputs, output):
        carrier, x, values, _, crow, col, ccol, row_t, offset_t, call = inputs
        words = output[1]
        ctx.mark_non_differentiable(words)
        ctx.set_materialize_grads(False)
        ctx.call = call
        ctx.x_panels = carrier is not None
        packed_inside = carrier is None and call.planes != 0
        ctx.save_for_backward(words if packed_inside else x, values, crow, col, ccol, row_t, offset_t)

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 10
        need_carrier, need_x, need_values, need_bias = ctx.needs_input_grad[:4]
        needs = (need_carrier or need_x) | need_values << 1 | need_bias << 2
        run = _LinearBackward.apply if differentiable_backward() else linear_backward_op
        grad_x, grad_values, grad_bias = run(grad, *ctx.saved_tensors, *ctx.call, ctx.x_panels, needs)
        return (
            grad_x if need_carrier else None,
            grad_x if need_x else None,
            grad_values if need_values else None,
            grad_bias if need_bias else None,
            *_NO_GRADIENT,
        )


def _check(topology: BlockTopology, values: Tensor, bias: Tensor | None, device: torch.device) -> None:
    lay = topology.layout
    check_arrays(topology)
    if values.shape != (topology.nnzb, lay.bm, lay.bn):
        raise ValueError(
            f"values: expected shape {(topology.nnzb, lay.bm, lay.bn)}, got {tuple(values.shape)}"
        )
    if values.device != device or topology.col_indices.device != device:
        name, tensor = ("values", values) if values.device != device else ("topology", topology.col_indices)
        raise ValueError(f"{name}: expected on the input's device {device}, got {tensor.device}")
    if bias is not None:
        if bias.shape != (lay.rows,):
            raise ValueError(f"bias: expected shape {(lay.rows,)}, got {tuple(bias.shape)}")
        if bias.dtype != values.dtype or bias.device != device:
            raise ValueError(f"bias: expected {values.dtype} on {device}, got {bias.dtype} on {bias.device}")


def linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: BlockTopology,
    planes: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Block-sparse linear map of float rows.

    Args:
        x: floating point ``[N, cols]``. Its dtype may be narrower than that of values (autocast); sums are float32.
        values: ``[nnzb, bm, bn]``. bias: ``[rows]`` or None.
        topology: where the blocks stand; ``layout`` with one group and one tap.
        planes: 0 for real-valued x; otherwise x is promised to hold ``scale * k`` with ``0 <= k < 2**planes`` and
            travels as bits (1 and 1.0: spikes).

    Returns:
        ``[N, rows]`` in x's dtype. Differentiable once with respect to x, values and bias.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device; an element of x that breaks the promise.
    """
    lay = topology.layout
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x: expected a floating-point tensor, got {got}")
    if x.dtype != values.dtype and x.dtype.itemsize >= values.dtype.itemsize:
        raise TypeError(f"x: expected {values.dtype} like values, or narrower, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] != lay.cols:
        raise ValueError(f"x: expected shape [N, {lay.cols}], got {tuple(x.shape)}")
    _check(topology, values, bias, x.device)
    call = Call(lay.rows, lay.cols, 1, x.shape[0], planes, scale, False)
    return apply(_Linear, None, x, values, bias, *topology.index_tensors(), call)[0]


def linear_packed(
    x: PackedSpikes, values: Tensor, bias: Tensor | None, topology: BlockTopology, panels: bool = False
) -> Tensor:
    """Block-sparse linear map of packed spikes of ``H = W = 1``.

    Returns:
        ``[T, B, rows]`` in values' dtype or, with ``panels``, a current panel ``[G, 1, 1, rows, 64]`` whose padding
        lanes are undefined.
    """
    lay = topology.layout
    check_spikes("x", x)
    if x.words.shape[2:] != (1, 1, lay.cols):
        raise ValueError(f"x: expected PackedSpikes of shape (T, B, {lay.cols}), got {x.shape}")
    _check(topology, values, bias, x.words.device)
    call = Call(lay.rows, lay.cols, x.T, x.B, x.planes, x.scale, panels)
    y = apply(_Linear, x.carrier, x.words, values, bias, *topology.index_tensors(), call)[0]
    return y if panels else y.view(x.T, x.B, lay.rows)


def linear_grad_values(x: Tensor | PackedSpikes, grad: Tensor, topology: BlockTopology) -> Tensor:
    """Gradient of the values that a linear map *would* have at this topology; no autograd.

    Args:
        x: spikes ``(T, B, cols)`` or float rows ``[N, cols]``. grad: of the output, ``[T * B or N, rows]``.

    Returns:
        ``[nnzb, bm, bn]``, in float32 unless grad is float64.
    """
    lay = topology.layout
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    values = torch.empty(
        topology.nnzb, lay.bm, lay.bn, dtype=dtype, device=grad.device
    )  # only its shape is used
    if isinstance(x, PackedSpikes):
        source, call = x.words, Call(lay.rows, lay.cols, x.T, x.B, x.planes, x.scale, False)
    else:
        source, call = x.to(grad.dtype), Call(lay.rows, lay.cols, 1, x.shape[0], 0, 1.0, False)
    return linear_backward_op(grad, source, values, *topology.index_tensors(), *call, False, 2)[1]
