"""Op ``temporal``: spike times of neurons that fire once, from those of their inputs (paper, Eq. 3 to 5).

Raw ops: ``temporal`` and ``temporal_backward``. Times are ``z = exp(t)``, infinity for a neuron that never fires.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._backends import choose
from ..._cuda import capturing
from ...topology import BlockLayout, BlockTopology, check_arrays
from .._library import Function, NoDoubleBackward, apply, define, differentiable_backward, empty
from . import cuda, native, reference


def _topology(values: Tensor, index: tuple[Tensor, ...], rows: int, cols: int) -> BlockTopology:
    return BlockTopology(BlockLayout(rows, cols, *values.shape[1:]), *index)


def _no_time() -> ValueError:
    return ValueError("z: expected exp(time), above 0, infinity for no spike; got NaN, 0 or less")


def _forward(z, values, crow, col, ccol, row_t, offset_t, rows, cols):
    index = (crow, col, ccol, row_t, offset_t)
    backend = choose("temporal", z.device.type, z.dtype, values.shape[1:])
    if backend == "native":
        found = native.forward(z, values, index, rows, cols)
        if found is None:
            raise _no_time()
        return found[:2]
    good = (z > 0).all()
    if capturing(z.device):  # nothing can be waited for: a device-side assertion stands for the answer
        torch._assert_async(good, f"esl_sparse: {_no_time()}")
    elif not good:
        raise _no_time()
    if backend == "cuda":
        return cuda.forward(z, values, index, rows, cols)
    return reference.forward(z, values, _topology(values, index, rows, cols))


def _forward_fake(z, values, crow, col, ccol, row_t, offset_t, rows, cols):
    return z.new_empty((z.shape[0], rows)), z.new_empty((z.shape[0], rows))


def _backward(grad, z, z_out, slope, values, crow, col, ccol, row_t, offset_t, rows, cols, needs):
    """Gradients of z and values; ``needs`` is a bit set of the two."""
    index = (crow, col, ccol, row_t, offset_t)
    backend = choose("temporal", z.device.type, z.dtype, values.shape[1:])
    if backend != "reference":
        kernels = native if backend == "native" else cuda
        return kernels.backward(grad, z, z_out, slope, values, index, rows, cols, needs)
    topology = _topology(values, index, rows, cols)
    grad_z, grad_values = reference.backward(grad, z, z_out, slope, values, topology)
    return grad_z if needs & 1 else empty(z), grad_values.to(values.dtype) if needs & 2 else empty(values)


def _backward_fake(grad, z, z_out, slope, values, crow, col, ccol, row_t, offset_t, rows, cols, needs):
    return (
        z.new_empty(z.shape if needs & 1 else (0,)),
        values.new_empty(values.shape if needs & 2 else (0,)),
    )


_INDEX = "Tensor crow, Tensor col, Tensor ccol, Tensor row_t, Tensor offset_t, SymInt rows, SymInt cols"
temporal_op = define(
    f"temporal(Tensor z, Tensor values, {_INDEX}) -> (Tensor, Tensor)", _forward, _forward_fake
)
temporal_backward_op = define(
    f"temporal_backward(Tensor grad, Tensor z, Tensor z_out, Tensor slope, Tensor values, {_INDEX}, SymInt needs)"
    " -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class _TemporalBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return temporal_backward_op(*args)


class _Temporal(Function):
    @staticmethod
    def forward(z, values, crow, col, ccol, row_t, offset_t, rows, cols):
        return temporal_op(z, values, crow, col, ccol, row_t, offset_t, rows, cols)

    @staticmethod
    def setup_context(ctx, inputs, output):
        z, values, *index, ctx.rows, ctx.cols = inputs
        z_out, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, z_out, slope, values, *index)

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 9
        need_z, need_values = ctx.needs_input_grad[:2]
        run: Any = _TemporalBackward.apply if differentiable_backward() else temporal_backward_op
        needs = need_z | need_values << 1
        grad_z, grad_values = run(grad, *ctx.saved_tensors, ctx.rows, ctx.cols, needs)
        return (grad_z if need_z else None, grad_values if need_values else None, *(None,) * 7)


def _check(z: Tensor, topology: BlockTopology) -> None:
    lay = topology.layout
    if (lay.groups, lay.taps) != (1, 1):
        raise ValueError(
            f"topology: expected that of a linear layer, got {lay.groups} groups and {lay.taps} taps"
        )
    if z.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"z: expected float32 or float64, got {z.dtype}")
    if z.dim() != 2 or z.shape[1] != lay.cols:
        raise ValueError(f"z: expected shape [N, {lay.cols}], got {tuple(z.shape)}")


def temporal(z: Tensor, values: Tensor, topology: BlockTopology) -> tuple[Tensor, Tensor]:
    """When neurons fire that are connected by a block-sparse weight and fire at most once (paper, Eq. 5).

    Args:
        z: ``[N, cols]``, ``exp(t)`` of each input's spike time t; infinity: no spike.
        values: ``[nnzb, bm, bn]`` in z's dtype. topology: where the blocks stand.

    Returns:
        ``z_out [N, rows]``, infinity for a neuron that never fires: differentiable once with respect to z and values,
        zero where there is no spike. And ``slope [N, rows]``, the sum of the weights of the inputs before the spike
        minus 1 (0 without one), by which gradients are divided: not differentiable.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device; a z that is NaN or not above 0.
    """
    check_arrays(topology)
    _check(z, topology)
    lay = topology.layout
    expected = (topology.nnzb, lay.bm, lay.bn)
    if values.shape != expected or values.dtype != z.dtype:
        raise ValueError(f"values: expected {z.dtype} {expected}, got {values.dtype} {tuple(values.shape)}")
    for name, tensor in (("values", values), ("topology", topology.col_indices)):
        if tensor.device != z.device:
            raise ValueError(f"{name}: expected on z's device {z.device}, got {tensor.device}")
    return apply(_Temporal, z, values, *topology.index_tensors(), lay.rows, lay.cols)


def temporal_grad_values(
    z: Tensor, z_out: Tensor, slope: Tensor, grad: Tensor, topology: BlockTopology
) -> Tensor:
    """Gradient of the values that the layer *would* have at this topology; no autograd.

    Args:
        z: ``[N, cols]``. z_out, slope: what ``temporal`` returned. grad: of z_out, ``[N, rows]``.

    Returns:
        ``[nnzb, bm, bn]`` in z's dtype.
    """
    _check(z, topology)
    lay = topology.layout
    for name, tensor in (("z_out", z_out), ("slope", slope), ("grad", grad)):
        if tensor.shape != (z.shape[0], lay.rows):
            raise ValueError(f"{name}: expected shape {(z.shape[0], lay.rows)}, got {tuple(tensor.shape)}")
    like = z.new_empty((topology.nnzb, lay.bm, lay.bn))  # only its shape is used
    index = topology.index_tensors()
    return temporal_backward_op(grad, z, z_out, slope, like, *index, lay.rows, lay.cols, 2)[1]
