from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.block_score import BlockScorer, LayerCall
from ..ops.linear import linear, linear_grad_values, linear_packed
from ..ops.pack import pack_tensor
from ..packed import PackedSpikes
from ..topology import BlockLayout, BlockTopology, check_index, resolve_block_size, transpose_index
from .sparse import BlockSparseLayer, check_sizes


class SparseLinear(BlockSparseLayer):
    """``y = x W^T + b`` with W stored as active blocks only: a drop-in for ``nn.Linear``.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``.
        density: fraction of the blocks that exist; ``round(density * blocks)`` are drawn uniformly (an Erdos-Renyi
            graph with an exact count, paper Eq. 1).
        block_size: ``"auto"`` (4x4 on CPU, 16x16 on CUDA), an int or ``(bm, bn)``: powers of two from 1 to 128,
            clamped to the layer's size.
        input: what the input holds. ``"binary"``: 0 and 1; ``"levels"``: a power of two times integers 0..15;
            ``"float"``: anything. ``"auto"`` looks at every eager input; under ``torch.compile`` it takes what the
            last eager call found, or float. A broken promise raises.
        device, dtype: of the values and the bias.
        generator: source of the random topology and weights (CPU).

    Attributes:
        values: parameter ``[nnzb, bm, bn]``. bias: parameter ``[out_features]`` or None.
        topology: a ``BlockTopology`` view of the index buffers.
    """

    _dense_type = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        density: float = 0.1,
        block_size: str | int | tuple[int, int] = "auto",
        input: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        target = torch.get_default_device() if device is None else torch.device(device)
        block = resolve_block_size(block_size, out_features, in_features, target.type)
        self._set_up(
            BlockLayout(out_features, in_features, *block), bias, density, input, target, dtype, generator
        )

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """``[..., in_features]`` or PackedSpikes ``(T, B, in_features)`` -> ``[..., out_features]``."""
        if isinstance(x, PackedSpikes):
            return linear_packed(x, self.values, self.bias, self.topology)
        if isinstance(x, Tensor) and (not x.dim() or x.shape[-1] != self.in_features):
            raise ValueError(f"x: expected shape [..., {self.in_features}], got {tuple(x.shape)}")
        x = self._checked(x)
        if x.dim() == 2:
            return self._rows(x)
        return self._rows(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def _rows(self, x: Tensor) -> Tensor:
        """Apply to ``[N, in_features]``."""
        values, bias, topology = self.values, self.bias, self.topology
        return self._by_kind(x, lambda planes, scale: linear(x, values, bias, topology, planes, scale))

    # What rewiring by gradient needs (see rewire.layers.GradientLayer)

    def seen_input(self, x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
        """The input of the forward that has just run: as bits if it was spikes, else as rows."""
        if isinstance(x, PackedSpikes):
            return x
        rows = x.detach().reshape(-1, self.in_features)
        planes, scale = self._kind
        return pack_tensor(rows[None], planes, scale) if planes else rows

    def call(self, seen: Tensor | PackedSpikes, grad: Tensor) -> LayerCall:
        return LayerCall(seen, grad.reshape(-1, self.out_features))

    def block_scores(self, calls: Sequence[LayerCall]) -> Iterator[tuple[int, Tensor]]:
        # No more than the weights themselves take, where these are few.
        return BlockScorer(calls, self._layout, strip_bytes=min(1 << 20, self.values.nbytes)).strips()

    def gradient_at(self, topology: BlockTopology, call: LayerCall) -> Tensor:
        return linear_grad_values(call.x, call.grad, topology)

    def extra_repr(self) -> str:
        bm, bn = self.block_size
        density = "" if self.values.is_meta else f", density={self.density:.4g}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
            f"{density}, block_size=({bm}, {bn})"
        )

    # Conversions

    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    @staticmethod
    def _to_rows(weight: Tensor) -> Tensor:
        return weight

    def _from_rows(self, rows: Tensor) -> Tensor:
        return rows

    def _arguments(self) -> dict[str, Any]:
        sizes = {"in_features": self.in_features, "out_features": self.out_features}
        return sizes | {"bias": self.bias is not None}

    @classmethod
    def _arguments_of(cls, module: nn.Linear) -> dict[str, Any]:
        sizes = {"in_features": module.in_features, "out_features": module.out_features}
        return sizes | {"bias": module.bias is not None}

    def to_torch_bsr(self) -> Tensor:
        """The weight as a ``torch.sparse_bsr`` tensor that shares the values; overhang makes a padded copy."""
        lay = self._layout
        values = self.values.detach()
        if lay.overhangs:
            values = values.masked_fill(~self.topology.valid(), 0.0)
        return torch.sparse_bsr_tensor(
            self.crow_indices, self.col_indices, values, (lay.row_blocks * lay.bm, lay.col_blocks * lay.bn)
        )

    @classmethod
    @torch.no_grad()
    def from_torch_bsr(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        input: str = "auto",
    ) -> SparseLinear:
        """A layer with the blocks of a ``torch.sparse_bsr`` weight (copied, validated).

        ``in_features`` and ``out_features`` undo the padding of ``to_torch_bsr``; by default the weight's size.
        """
        if weight.layout != torch.sparse_bsr or weight.dim() != 2:
            raise TypeError(
                f"weight: expected a torch.sparse_bsr matrix, got {weight.layout} of {weight.dim()} dims"
            )
        values = weight.values()
        rows, cols = weight.shape
        in_features = cols if in_features is None else in_features
        out_features = rows if out_features is None else out_features
        for name, size, given, block in (
            ("in_features", cols, in_features, values.shape[2]),
            ("out_features", rows, out_features, values.shape[1]),
        ):
            if not size - block < given <= size:
                raise ValueError(f"{name}: expected {size - block + 1} to {size}, got {given}")
        layer = cls(
            in_features,
            out_features,
            bias is not None,
            density=0.0,
            generator=torch.Generator("cpu"),  # not torch's own: what it draws is overwritten
            block_size=(values.shape[1], values.shape[2]),
            input=input,
            device=values.device,
            dtype=values.dtype,
        )
        if layer.block_size != tuple(values.shape[1:]):
            raise ValueError(
                f"weight: blocks {tuple(values.shape[1:])} are larger than the layer {tuple(weight.shape)}"
            )
        crow, col = weight.crow_indices(), weight.col_indices()
        check_index(crow, col, layer._layout)
        layout = layer._layout
        topology = BlockTopology(
            layout, crow.int(), col.int(), *transpose_index(crow, col.long(), layout.col_blocks)
        )
        layer._build(topology, bias is not None, values.device, values.dtype)
        layer.values.copy_(values)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
        return layer
