"""Definition of linear: ``y = x W^T + b`` where W holds ``values`` at the active blocks and zeros elsewhere.

Builds the dense weight: for tests, for float64 and for installations without kernels. What overhangs the weight takes
no part and gets zero gradient.
"""

from __future__ import annotations

from torch import Tensor

from ...topology import BlockTopology


def forward(x: Tensor, values: Tensor, bias: Tensor | None, topology: BlockTopology) -> Tensor:
    """``x [N, cols]``, ``values [nnzb, bm, bn]``, ``bias [rows]`` -> ``y [N, rows]`` in x's dtype."""
    compute = values.dtype if values.dtype.itemsize > x.dtype.itemsize else x.dtype
    y = x.to(compute) @ topology.to_dense(values).to(compute).t()
    if bias is not None:
        y = y + bias.to(compute)
    return y.to(x.dtype)


def grad_input(grad: Tensor, values: Tensor, topology: BlockTopology) -> Tensor:
    """``grad [N, rows]`` -> ``grad_x [N, cols]``: ``grad W``."""
    compute = values.dtype if values.dtype.itemsize > grad.dtype.itemsize else grad.dtype
    return (grad.to(compute) @ topology.to_dense(values).to(compute)).to(grad.dtype)


def grad_values(grad: Tensor, x: Tensor, topology: BlockTopology) -> Tensor:
    """``grad^T x`` at the active blocks, ``[nnzb, bm, bn]``; zero in the overhang."""
    return topology.gather_dense(grad.t() @ x)
