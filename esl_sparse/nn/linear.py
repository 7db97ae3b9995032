from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.block_score import BlockScorer, LayerCall
from ..ops.linear import linear, linear_grad_values, linear_packed
from ..ops.pack import detect, pack_tensor
from ..ops.pack.op import BrokenInputPromise
from ..packed import PackedSpikes
from ..topology import (
    BlockLayout,
    BlockTopology,
    check_index,
    random_absent_ids,
    resolve_block_size,
    transpose_index,
)

INPUTS = ("auto", "binary", "levels", "float")
_BINARY = (1, 1.0)
_FLOAT = (0, 1.0)
_INDEX = ("crow_indices", "col_indices", "ccol_indices", "row_indices_t", "block_offsets_t")


class SparseLinear(nn.Module):
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
        topology: a :class:`~esl_sparse.BlockTopology` view of the index buffers.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices_t: Tensor
    block_offsets_t: Tensor

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
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name}: expected an int, got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if not 0.0 <= density <= 1.0:
            raise ValueError(f"density: expected a fraction from 0 to 1, got {density!r}")
        self.in_features = in_features
        self.out_features = out_features
        target = torch.get_default_device() if device is None else torch.device(device)
        self.block_size = resolve_block_size(block_size, out_features, in_features, target.type)
        self._layout = BlockLayout(out_features, in_features, *self.block_size)
        self._set_input(input)
        layout = self._layout
        ids = random_absent_ids(
            torch.empty(0, dtype=torch.int64, device="cpu"),
            layout.blocks,
            round(density * layout.blocks),
            generator,
        )
        self._build(BlockTopology.from_block_ids(ids, layout), bias, target, dtype)
        self.reset_parameters(generator=generator)

    def _set_input(self, input: str) -> None:
        if input not in INPUTS:
            raise ValueError(f"input: expected one of {INPUTS}, got {input!r}")
        self.input = input
        self._kind = _BINARY if input == "binary" else _FLOAT  # (planes, scale) of the last eager input

    def _build(self, topology: BlockTopology, bias: bool, device: torch.device, dtype) -> None:
        lay = topology.layout
        self.values = nn.Parameter(torch.empty(topology.nnzb, lay.bm, lay.bn, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.register_buffer("crow_indices", topology.crow_indices.to(device))
        self.register_buffer("col_indices", topology.col_indices.to(device))
        # Derived: rebuilt on load, so that a checkpoint holds one index and cannot contradict itself.
        self.register_buffer("ccol_indices", topology.ccol_indices.to(device), persistent=False)
        self.register_buffer("row_indices_t", topology.row_indices_t.to(device), persistent=False)
        self.register_buffer("block_offsets_t", topology.block_offsets_t.to(device), persistent=False)

    @property
    def topology(self) -> BlockTopology:
        """View over this layer's index buffers; never stale, nothing copied."""
        index: dict[str, Any] = self._buffers
        return BlockTopology(self._layout, *[index[name] for name in _INDEX])

    @property
    def nnz(self) -> int:
        """Active weights."""
        return self.topology.nnz

    @property
    def density(self) -> float:
        """Active weights over potential weights."""
        return self.topology.density

    def __getattr__(self, name: str):
        # As nn.Module does, with half of its calls: every forward asks for two parameters.
        parameters = self.__dict__.get("_parameters")
        if parameters is not None and name in parameters:
            return parameters[name]
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__} has no dense weight: its blocks are in .values, .to_dense() gives an nn.Linear"
            )
        return super().__getattr__(name)

    @torch.no_grad()
    def reset_parameters(
        self,
        init: str | Callable[[Tensor, float], object] = "kaiming_uniform",
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw fresh values and biases, scaled by the *sparse* fan-in (mean number of active inputs of an output).

        Args:
            init: ``"kaiming_uniform"``: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what ``nn.Linear`` does;
                ``"kaiming_normal"``: N(0, 2/fan_in), biases 0; or a function ``(values, fan_in)`` that fills in place.
            generator: source of randomness.
        """
        fan_in = max(1.0, (0 if self.values.is_meta else self.nnz) / self.out_features)
        bound = 1 / math.sqrt(fan_in)
        if init == "kaiming_uniform":
            _fill(self.values, generator, lambda t: t.uniform_(-bound, bound, generator=generator))
        elif init == "kaiming_normal":
            std = math.sqrt(2.0) * bound
            _fill(self.values, generator, lambda t: t.normal_(0.0, std, generator=generator))
        elif callable(init):
            init(self.values, fan_in)
        else:
            raise ValueError(
                f"init: expected 'kaiming_uniform', 'kaiming_normal' or a function, got {init!r}"
            )
        if self._layout.overhangs and not self.values.is_meta:
            self.values.mul_(self.topology.valid())
        if self.bias is not None:
            if init == "kaiming_uniform":
                _fill(self.bias, generator, lambda t: t.uniform_(-bound, bound, generator=generator))
            else:
                self.bias.zero_()

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """``[..., in_features]`` or PackedSpikes ``(T, B, in_features)`` -> ``[..., out_features]``."""
        if isinstance(x, PackedSpikes):
            return linear_packed(x, self.values, self.bias, self.topology)
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor or PackedSpikes, got {type(x).__name__}")
        if not x.dim() or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected shape [..., {self.in_features}], got {tuple(x.shape)}")
        values = self.values
        device_type = x.device.type
        if device_type != "meta" and torch.is_autocast_enabled(device_type):
            x = x.to(torch.get_autocast_dtype(device_type))
        elif x.dtype != values.dtype:
            raise TypeError(f"x: expected {values.dtype} like the layer's values, got {x.dtype}")
        if x.dim() == 2:
            return self._rows(x, values)
        return self._rows(x.reshape(-1, self.in_features), values).view(*x.shape[:-1], self.out_features)

    def _rows(self, x: Tensor, values: Tensor) -> Tensor:
        """Apply to ``[N, in_features]``: the promised kind, or what the elements turn out to be."""
        bias, topology = self.bias, self.topology
        if self.input in ("binary", "float") or torch.compiler.is_compiling():
            return linear(x, values, bias, topology, *self._kind)
        # Packing as spikes finds out at once whether they are spikes; most inputs are.
        for kind in (_BINARY,) if self._kind in (_BINARY, _FLOAT) else (self._kind, _BINARY):
            try:
                y = linear(x, values, bias, topology, *kind)
            except BrokenInputPromise:
                continue
            if kind is not self._kind:
                self._kind = kind
            return y
        found = detect(x)
        if found is None:
            if self.input == "levels":
                raise BrokenInputPromise(
                    "x: expected a power of two times integers 0..15 (input='levels'), got other values"
                )
            found = _FLOAT
        self._kind = found
        return linear(x, values, bias, topology, *found)

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

    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` with the same map; absent weights are zeros."""
        dense = nn.utils.skip_init(  # every weight is overwritten: torch's random state stays as it is
            nn.Linear,
            self.in_features,
            self.out_features,
            self.bias is not None,
            device=self.values.device,
            dtype=self.values.dtype,
        )
        with torch.no_grad():
            dense.weight.copy_(self.topology.to_dense(self.values))
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense

    @classmethod
    @torch.no_grad()
    def from_dense(
        cls,
        module: nn.Linear,
        density: float | None = None,
        mask: Tensor | None = None,
        block_size: str | int | tuple[int, int] = "auto",
        input: str = "auto",
    ) -> SparseLinear:
        """Keep blocks of an ``nn.Linear``: those of largest mean |w| (``density``) or those a mask touches.

        Args:
            module: the dense layer; its weights are copied.
            density: fraction of blocks to keep. mask: bool ``[out_features, in_features]``; a block with any True is
                kept, its False entries become 0. Exactly one of the two is given.
        """
        if not isinstance(module, nn.Linear):
            raise TypeError(f"module: expected an nn.Linear, got {type(module).__name__}")
        if (density is None) == (mask is None):
            raise ValueError("from_dense: give either density or mask")
        weight = module.weight
        if mask is not None:
            if mask.shape != weight.shape or mask.dtype != torch.bool:
                raise ValueError(
                    f"mask: expected bool {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}"
                )
            weight = weight.masked_fill(~mask, 0.0)
        elif density is not None and not 0.0 <= density <= 1.0:
            raise ValueError(f"density: expected a fraction from 0 to 1, got {density!r}")
        layer = cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            density=0.0,
            generator=torch.Generator("cpu"),  # not torch's own: what it draws is overwritten
            block_size=block_size,
            input=input,
            device=weight.device,
            dtype=weight.dtype,
        )
        layout = layer._layout
        scores = _block_means(weight.abs() if mask is None else mask.to(weight.dtype), layout).flatten()
        count = round(density * layout.blocks) if density is not None else int((scores > 0).sum())
        ids = scores.topk(count).indices.sort().values
        layer._build(
            BlockTopology.from_block_ids(ids, layout), module.bias is not None, weight.device, weight.dtype
        )
        layer.values.copy_(layer.topology.gather_dense(weight))
        if layer.bias is not None:
            layer.bias.copy_(module.bias)
        return layer

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

        ``in_features`` and ``out_features`` undo the padding of :meth:`to_torch_bsr`; by default the weight's size.
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

    # Loading: validate, then write; the index brings the derived one with it.

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        own = {name: state_dict.get(prefix + name) for name in ("values", "crow_indices", "col_indices")}
        dense = state_dict.get(prefix + "weight")
        try:
            if dense is not None and own["values"] is None:
                # A dense checkpoint gives its weights at this layer's own topology.
                shape = (self.out_features, self.in_features)
                if not isinstance(dense, Tensor):
                    raise TypeError(f"weight: expected a tensor, got {type(dense).__name__}")
                if tuple(dense.shape) != shape:
                    raise ValueError(f"weight: expected shape {shape}, got {tuple(dense.shape)}")
                own["values"] = self.topology.gather_dense(dense.to(self.values.device))
                own["crow_indices"], own["col_indices"] = self.crow_indices, self.col_indices
                state_dict = {k: v for k, v in state_dict.items() if k != prefix + "weight"}
                state_dict.update((prefix + name, tensor) for name, tensor in own.items())
                if prefix + "weight" in unexpected_keys:
                    unexpected_keys.remove(prefix + "weight")
            self._check_state(own, state_dict.get(prefix + "bias"))
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
            return
        if own["values"] is not None and len(own["values"]) != len(self.values):
            # The checkpoint brings its own number of blocks; the Parameter object stays, its gradient does not fit.
            self.values.grad = None
            self.values.data = self.values.data.new_empty(own["values"].shape)
            self.col_indices = self.col_indices.new_empty(own["col_indices"].shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self.crow_indices.is_meta:
            return
        # load_state_dict(assign=True) takes an int64 index as it is.
        self.crow_indices, self.col_indices = self.crow_indices.int(), self.col_indices.int()
        derived = transpose_index(self.crow_indices, self.col_indices, self._layout.col_blocks)
        self.ccol_indices, self.row_indices_t, self.block_offsets_t = derived

    def _check_state(self, own: dict[str, Tensor | None], bias: Tensor | None) -> None:
        """Raise unless what a checkpoint brings fits together: new blocks come with new values."""
        values, crow, col = own["values"], own["crow_indices"], own["col_indices"]
        if crow is not None or col is not None:
            if values is None or crow is None or col is None:
                lacking = [name for name, tensor in own.items() if tensor is None]
                raise ValueError(f"{lacking[0]}: missing, but values and index come together")
            check_index(crow, col, self._layout)
        if values is not None:
            if not isinstance(values, Tensor):
                raise TypeError(f"values: expected a tensor, got {type(values).__name__}")
            expected = (len(self.values) if col is None else len(col), *self.block_size)
            if tuple(values.shape) != expected:
                raise ValueError(f"values: expected shape {expected}, got {tuple(values.shape)}")
        if bias is not None and self.bias is not None:
            if not isinstance(bias, Tensor):
                raise TypeError(f"bias: expected a tensor, got {type(bias).__name__}")
            if bias.shape != self.bias.shape:
                raise ValueError(f"bias: expected shape {tuple(self.bias.shape)}, got {tuple(bias.shape)}")


def _fill(tensor: Tensor, generator: torch.Generator | None, draw: Callable[[Tensor], Tensor]) -> None:
    """Fill in place; a generator draws on its own device only."""
    if generator is None or tensor.is_meta or generator.device.type == tensor.device.type:
        draw(tensor)
    else:
        tensor.copy_(draw(torch.empty_like(tensor, device=generator.device)))


def _block_means(weight: Tensor, layout: BlockLayout) -> Tensor:
    """Mean over each block's valid entries, ``[row_blocks, col_blocks]``."""
    device = weight.device
    padding = (0, layout.col_blocks * layout.bn - layout.cols, 0, layout.row_blocks * layout.bm - layout.rows)
    padded = torch.nn.functional.pad(weight, padding)
    sums = padded.reshape(layout.row_blocks, layout.bm, layout.col_blocks, layout.bn).sum((1, 3))
    rows = layout.row_extent(torch.arange(layout.row_blocks, device=device))
    cols = layout.col_extent(torch.arange(layout.col_blocks, device=device))
    return sums / (rows[:, None] * cols)
