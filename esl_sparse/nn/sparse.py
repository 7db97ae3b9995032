"""What block-sparse layers share: values, index, initialisation, kinds of input, conversion and loading."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops._library import refuse_script, transformed
from ..ops.pack import detect
from ..ops.pack.op import BrokenInputPromise
from ..topology import (
    BlockLayout,
    BlockTopology,
    check_count,
    check_index,
    check_layout,
    random_absent_ids,
    to_blocks,
    transpose_index,
)

if TYPE_CHECKING:
    from typing_extensions import Self

INPUTS = ("auto", "binary", "levels", "float")
_BINARY = (1, 1.0)
_FLOAT = (0, 1.0)
_SCORE_BYTES = 1 << 20  # of gradients made at a time when all blocks are scored
_INDEX = ("crow_indices", "col_indices", "ccol_indices", "row_indices_t", "block_offsets_t")


class BlockSparseLayer(nn.Module):
    """A layer whose weight exists at active blocks only.

    Attributes:
        values: parameter ``[nnzb, bm, bn]``. bias: parameter ``[rows]`` or None.
        topology: a ``BlockTopology`` view of the index buffers.
        block_size: ``(bm, bn)``.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices_t: Tensor
    block_offsets_t: Tensor

    _dense_type: ClassVar[type[nn.Module]]
    _dense_twin: tuple[type[nn.Module], str] | None = (
        None  # of another library, and its step mode: see convert.py
    )

    __prepare_scriptable__ = refuse_script

    def _set_up(
        self,
        layout: BlockLayout,
        bias: bool,
        density: float,
        input: str,
        device: torch.device,
        dtype: torch.dtype | None,
        generator: torch.Generator | None,
    ) -> None:
        """The rest of every constructor: a random topology of ``round(density * blocks)`` blocks, fresh weights."""
        if not 0.0 <= density <= 1.0:
            raise ValueError(f"density: expected a fraction from 0 to 1, got {density!r}")
        self.block_size = (layout.bm, layout.bn)
        self._layout = layout
        self._set_input(input)
        count = round(density * layout.blocks)
        self._build(_random_topology(layout, count, generator), bias, device, dtype)
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
            self.bias = nn.Parameter(torch.empty(lay.rows, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.register_buffer("crow_indices", topology.crow_indices.to(device))
        self.register_buffer("col_indices", topology.col_indices.to(device))
        # Derived: rebuilt on load, so that a checkpoint holds one index and cannot contradict itself.
        self.register_buffer("ccol_indices", topology.ccol_indices.to(device), persistent=False)
        self.register_buffer("row_indices_t", topology.row_indices_t.to(device), persistent=False)
        self.register_buffer("block_offsets_t", topology.block_offsets_t.to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moving and casting leave the index what it is: kernels follow it without looking.

        ``to_empty`` gives a layer whatever was in memory, ``type`` casts integers too. A layer that comes from the meta
        device has never had an index: it draws one, as the constructor does.
        """
        before: dict[str, Any] = {name: self._buffers[name] for name in _INDEX}
        super()._apply(fn, recurse)
        index: dict[str, Any] = self._buffers
        for name, old in before.items():
            new = index[name]
            if new is not old and not old.is_meta:
                index[name] = new.copy_(old) if new.dtype == old.dtype else old.to(new.device)
        device = self.col_indices.device
        if before["col_indices"].is_meta and device.type != "meta":
            drawn = _random_topology(self._layout, self.col_indices.numel(), None)
            index.update((name, getattr(drawn, name).to(device)) for name in _INDEX)
        return self

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
                f"{type(self).__name__} has no dense weight: its blocks are in .values, "
                f".to_dense() gives an nn.{self._dense_type.__name__}"
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
            init: ``"kaiming_uniform"``: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch's layers do;
                ``"kaiming_normal"``: N(0, 2/fan_in), biases 0; or a function ``(values, fan_in)`` that fills in place.
            generator: source of randomness.
        """
        fan_in = max(1.0, (0 if self.values.is_meta else self.nnz) / self._layout.rows)
        bound = 1 / math.sqrt(fan_in)
        if init == "kaiming_uniform":
            fill(self.values, generator, lambda t: t.uniform_(-bound, bound, generator=generator))
        elif init == "kaiming_normal":
            std = math.sqrt(2.0) * bound
            fill(self.values, generator, lambda t: t.normal_(0.0, std, generator=generator))
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
                fill(self.bias, generator, lambda t: t.uniform_(-bound, bound, generator=generator))
            else:
                self.bias.zero_()

    # What the input holds

    def _checked(self, x: Tensor) -> Tensor:
        """A float input in the dtype that this call computes in."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor or PackedSpikes, got {type(x).__name__}")
        device_type = x.device.type
        narrows = x.is_floating_point() and x.dtype != torch.float64  # what autocast takes
        if narrows and device_type != "meta" and torch.is_autocast_enabled(device_type):
            return x.to(torch.get_autocast_dtype(device_type))
        if x.dtype != self.values.dtype:
            raise TypeError(f"x: expected {self.values.dtype} like the layer's values, got {x.dtype}")
        return x

    def _by_kind(self, x: Tensor, run: Callable[[int, float], Any]) -> Any:
        """``run(planes, scale)`` with the promised kind of x, or with what its elements turn out to be."""
        if self.input in ("binary", "float") or torch.compiler.is_compiling():
            return run(*self._kind)
        # Packing as spikes finds out at once whether they are spikes; most inputs are.
        for kind in (_BINARY,) if self._kind in (_BINARY, _FLOAT) else (self._kind, _BINARY):
            try:
                y = run(*kind)
            except BrokenInputPromise:
                continue
            if kind is not self._kind:
                self._kind = kind
            return y
        if transformed():  # vmap gives no numbers to look at
            return run(*_FLOAT)
        found = detect(x)
        if found is None:
            if self.input == "levels":
                raise BrokenInputPromise(
                    "x: expected a power of two times integers 0..15 (input='levels'), got other values"
                )
            found = _FLOAT
        self._kind = found
        return run(*found)

    # What rewiring by gradient needs (see rewire.layers.GradientLayer), beside what each kind of layer knows

    def gradient_at(self, topology: BlockTopology, call: Any) -> Tensor:
        raise NotImplementedError

    def block_scores(self, calls: Sequence[Any]) -> Iterator[tuple[int, Tensor]]:
        """Mean |gradient| of all blocks, from ``gradient_at``, some rows of blocks at a time."""
        lay = self._layout
        row_bytes = max(1, lay.col_blocks * lay.bm * lay.bn * 4)
        strip = max(1, min(_SCORE_BYTES, self.values.nbytes) // row_bytes)
        device = self.values.device
        for first in range(0, lay.row_blocks, strip):
            count = min(strip, lay.row_blocks - first)
            rows = torch.arange(lay.row_blocks + 1, device=device)
            crow = rows.sub_(first).clamp_(0, count).mul_(lay.col_blocks).int()
            col = torch.arange(lay.col_blocks, dtype=torch.int32, device=device).repeat(count)
            every = BlockTopology(lay, crow, col, *self.topology.index_tensors()[2:])
            gradient = self.gradient_at(every, calls[0])
            for call in calls[1:]:
                gradient += self.gradient_at(every, call)
            ids = torch.arange(first * lay.col_blocks, (first + count) * lay.col_blocks, device=device)
            scores = gradient.abs_().sum((1, 2)).div_(lay.block_extent(ids)).float()
            yield first, scores.view(count, lay.col_blocks)

    # Conversions. Each kind of layer says what its dense weight looks like.

    def _weight_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @staticmethod
    def _to_rows(weight: Tensor) -> Tensor:
        """A dense weight as the logical matrix ``[rows, cols]``."""
        raise NotImplementedError

    def _from_rows(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _arguments(self) -> dict[str, Any]:
        """Constructor arguments that the layer shares with its dense counterpart."""
        raise NotImplementedError

    @classmethod
    def _arguments_of(cls, module: Any) -> dict[str, Any]:
        raise NotImplementedError

    def to_dense(self) -> Any:
        """The torch layer of the same map; absent weights are zeros."""
        # Every weight is overwritten: torch's random state stays as it is.
        dense = nn.utils.skip_init(
            self._dense_type, **self._arguments(), device=self.values.device, dtype=self.values.dtype
        )
        with torch.no_grad():
            dense.weight.copy_(self._from_rows(self.topology.to_dense(self.values)))
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense

    def __delattr__(self, name: str) -> None:
        if name == "values":
            raise AttributeError(
                f"{type(self).__name__}.values cannot be parametrised or deleted: its entries belong to blocks that "
                "move; torch.func.functional_call computes with other values"
            )
        super().__delattr__(name)

    @classmethod
    @torch.no_grad()
    def from_dense(
        cls,
        module: Any,
        density: float | None = None,
        mask: Tensor | None = None,
        block_size: str | int | tuple[int, int] = "auto",
        input: str = "auto",
    ) -> Self:
        """Keep blocks of a torch layer: those of largest mean |w| (``density``) or those a mask touches.

        Args:
            module: the dense layer; its weights are copied.
            density: fraction of blocks to keep. mask: bool, of the weight's shape; a block with any True is kept, its
                False entries become 0. Exactly one of the two is given.
        """
        if not isinstance(module, cls._dense_type):
            raise TypeError(f"module: expected an nn.{cls._dense_type.__name__}, got {type(module).__name__}")
        if (density is None) == (mask is None):
            raise ValueError("from_dense: give either density or mask")
        dense: Any = module
        weight: Tensor = dense.weight
        if mask is not None:
            if mask.shape != weight.shape or mask.dtype != torch.bool:
                raise ValueError(
                    f"mask: expected bool {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}"
                )
            weight = weight.masked_fill(~mask, 0.0)
        elif density is not None and not 0.0 <= density <= 1.0:
            raise ValueError(f"density: expected a fraction from 0 to 1, got {density!r}")
        layer = cls(
            **cls._arguments_of(module),
            density=0.0,
            generator=torch.Generator("cpu"),  # not torch's own: what it draws is overwritten
            block_size=block_size,
            input=input,
            device=weight.device,
            dtype=weight.dtype,
        )
        layout, rows = layer._layout, cls._to_rows(weight)
        scored = rows.abs() if mask is None else cls._to_rows(mask).to(weight.dtype)
        scores = _block_means(scored, layout).flatten()
        count = round(density * layout.blocks) if density is not None else int((scores > 0).sum())
        ids = scores.topk(count).indices.sort().values
        topology = BlockTopology.from_block_ids(ids, layout)
        layer._build(topology, dense.bias is not None, weight.device, weight.dtype)
        layer.values.copy_(layer.topology.gather_dense(rows))
        if layer.bias is not None:
            layer.bias.copy_(dense.bias)
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
                shape = self._weight_shape()
                if not isinstance(dense, Tensor):
                    raise TypeError(f"weight: expected a tensor, got {type(dense).__name__}")
                if tuple(dense.shape) != shape:
                    raise ValueError(f"weight: expected shape {shape}, got {tuple(dense.shape)}")
                own["values"] = self.topology.gather_dense(self._to_rows(dense.to(self.values.device)))
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


def check_sizes(**sizes: Any) -> None:
    """Raise unless each is an int of 1 at least."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name}: expected an int, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def fill(tensor: Tensor, generator: torch.Generator | None, draw: Callable[[Tensor], Tensor]) -> None:
    """Fill in place; a generator draws on its own device only."""
    if generator is None or tensor.is_meta or generator.device.type == tensor.device.type:
        draw(tensor)
    else:
        tensor.copy_(draw(torch.empty_like(tensor, device=generator.device)))


def _random_topology(layout: BlockLayout, count: int, generator: torch.Generator | None) -> BlockTopology:
    """Exactly ``count`` blocks, uniformly, on the CPU."""
    check_layout(layout)
    check_count(count)
    empty = torch.empty(0, dtype=torch.int64, device="cpu")
    with torch.device("cpu"):
        ids = random_absent_ids(empty, layout.blocks, count, generator)
    return BlockTopology.from_block_ids(ids, layout)


def _block_means(weight: Tensor, layout: BlockLayout) -> Tensor:
    """Mean over each block's valid entries, ``[row_blocks, col_blocks]``."""
    sums = to_blocks(weight, layout).sum((1, 3))
    rows = layout.row_extent(torch.arange(layout.row_blocks, device=weight.device))
    cols = layout.col_extent(torch.arange(layout.col_blocks, device=weight.device))
    return sums / (rows[:, None] * cols)
