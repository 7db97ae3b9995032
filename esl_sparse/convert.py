"""A dense model's layers become block-sparse ones in place, and back."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .nn import SparseConv1d, SparseConv2d, SparseLinear, SpikingBlock
from .nn.sparse import BlockSparseLayer
from .ops.conv2d import layout_of
from .rewire.distribution import DISTRIBUTIONS, Distribution, exact_counts
from .rewire.layers import is_sparse, sparse_layers
from .rewire.optimizer_state import param_group, twin
from .topology import BlockLayout, resolve_block_size

_SPARSE: dict[type[nn.Module], type[BlockSparseLayer]] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}

# SpikingJelly's layers of the same names compute what torch's do, in step mode "m" on [T, N, ...], as ours do too.
_SPIKINGJELLY = "spikingjelly.activation_based.layer"

# Their own forward reads the weights of the layers inside them, past those layers' forward.
_READ_BY_PARENT = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class LayerConversion:
    """What became of one layer that has a weight matrix.

    Attributes:
        name: the layer's. kind: its class before. weights: entries of its dense weight.
        active: weights that exist now.
        block_size: of the sparse layer; None if the layer is dense.
        reason: why it was left as it was; empty if it was converted.
    """

    name: str
    kind: str
    weights: int
    active: int
    block_size: tuple[int, int] | None = None
    reason: str = ""

    @property
    def density(self) -> float:
        return self.active / self.weights

    @property
    def converted(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class SparsifyReport:
    """Each layer: converted, or left dense and why. ``str()`` gives a table."""

    layers: tuple[LayerConversion, ...]

    @property
    def density(self) -> float:
        """Active weights over all weights of the model's layers, those left dense included."""
        return sum(x.active for x in self.layers) / max(1, sum(x.weights for x in self.layers))

    def __str__(self) -> str:
        width = max([5, *(len(x.name) for x in self.layers)])
        lines = [f"{'layer':<{width}}  {'weights':>13}  {'active':>13}  density"]
        for x in self.layers:
            became = "dense" if x.block_size is None else "blocks {}x{}".format(*x.block_size)
            became += f": {x.reason}" if x.reason else ""
            lines.append(f"{x.name:<{width}}  {x.weights:>13,}  {x.active:>13,}  {x.density:<7.4f}  {became}")
        return "\n".join([*lines, f"overall density {self.density:.4f}"])


@torch.no_grad()
def sparsify(
    model: nn.Module,
    density: float = 0.1,
    block_size: str | int | tuple[int, int] = "auto",
    distribution: str | Distribution = "erk",
    init: str = "scratch",
    exclude: Iterable[str] = (),
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> SparsifyReport:
    """Replace the linear layers and convolutions of a model by block-sparse ones, in place.

    Args:
        model: any module that holds ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d`` layers, or SpikingJelly's layers of
            these names, in either step mode. Biases stay the same parameters.
        density: active over all weights of the converted layers and of those that the distribution makes
            dense; blocks are counted exactly.
        block_size: as for :class:`~esl_sparse.nn.SparseLinear`.
        distribution: how the density is shared out: ``"erk"``, ``"erdos_renyi"`` (paper Eq. 1), ``"uniform"``
            or a function ``(shapes, density) -> densities``. A layer that gets density 1 stays dense, unless it is
            the convolution of a :class:`~esl_sparse.nn.SpikingBlock`, which works on bits only with blocks.
        init: ``"scratch"``: random topology, fresh weights and biases scaled by the sparse fan-in;
            ``"magnitude"``: each layer keeps its blocks of largest mean |w|, and its bias.
        exclude: names of layers, or of modules that hold layers, to leave as they are.
        optimizer: its parameter groups get the new values in place of the old weights, whose state is
            dropped.
        generator: source of randomness.

    Raises:
        ValueError: an unknown name; a model that is itself a layer (nothing holds it, so nothing can be
            replaced: use ``SparseLinear.from_dense``).
    """
    if init not in ("scratch", "magnitude"):
        raise ValueError(f"init: expected 'scratch' or 'magnitude', got {init!r}")
    if (base := _base(model)) is not None:
        kind, sparse = base.__name__, _SPARSE[base].__name__
        raise ValueError(f"model: is itself an nn.{kind}; use esl.nn.{sparse}.from_dense(model, density)")
    share = DISTRIBUTIONS.resolve(distribution)
    weighted = {name: module for name, module in model.named_modules() if _matrices(module)}
    reasons = _reasons_to_leave(model, weighted, exclude)
    candidates = {name: module for name, module in weighted.items() if not reasons[name]}
    shapes = [tuple(module.weight.shape) for module in candidates.values()]
    densities = dict(zip(candidates, share(shapes, density), strict=True))
    layouts = {}
    in_blocks = _of_blocks(model)
    for name, module in candidates.items():
        if densities[name] >= 1 and module not in in_blocks:
            reasons[name] = f"the distribution gives it density {densities[name]:g}"
        else:
            layouts[name] = _layout(module, block_size)
    shares = [min(1.0, densities[name]) for name in layouts]
    counts = exact_counts(shares, [layout.blocks for layout in layouts.values()])
    new: dict[nn.Module, nn.Module] = {}
    for (name, layout), count in zip(layouts.items(), counts, strict=True):
        module = candidates[name]
        if init == "scratch":
            layer = _from_scratch(module, layout, count, generator)
        else:
            layer = _from_magnitude(module, layout, count)
        layer.train(module.training)
        layer.values.requires_grad_(module.weight.requires_grad)
        if type(module) not in _SPARSE:
            layer._dense_twin = type(module), module.step_mode
        if optimizer is not None:
            _replace_param(optimizer, module.weight, layer.values)
        new[module] = layer
    _replace_modules(model, new)
    return SparsifyReport(
        tuple(
            _conversion(name, type(module).__name__, new.get(module, module), reasons[name])
            for name, module in weighted.items()
        )
    )


@torch.no_grad()
def densify(model: nn.Module) -> None:
    """Undo :func:`sparsify` in place: every block-sparse layer becomes the dense layer of the same map.

    A layer of SpikingJelly's becomes one again, in the step mode that it had.

    Raises:
        ValueError: the model is itself a sparse layer (use its ``to_dense()``).
    """
    if is_sparse(model):
        raise ValueError("model: is itself a sparse layer; use model.to_dense()")
    new: dict[nn.Module, nn.Module] = {}
    layer: Any
    for layer in filter(is_sparse, model.modules()):
        dense = _as_it_was(layer, layer.to_dense()).train(layer.training)
        weight = (
            dense.values if is_sparse(dense) else dense.weight
        )  # neurons that fire once have no layer in torch
        weight.requires_grad_(layer.values.requires_grad)
        dense.bias = layer.bias
        new[layer] = dense
    _replace_modules(model, new)


def _base(module: nn.Module) -> type[nn.Module] | None:
    """Which of torch's layers the module is, or computes the same as; None: neither."""
    kind = type(module)
    if kind in _SPARSE:
        return kind
    peer = sys.modules.get(_SPIKINGJELLY)  # whoever has such a layer has imported it
    return next((base for base in _SPARSE if kind is getattr(peer, base.__name__, None)), None)


def _sparse(module: nn.Module) -> type[BlockSparseLayer]:
    base = _base(module)
    assert base is not None
    return _SPARSE[base]


def _as_it_was(layer: Any, dense: Any) -> Any:
    """``dense``, or the layer of SpikingJelly's that ``layer`` was made of, with its weight."""
    if layer._dense_twin is None:
        return dense
    kind, step_mode = layer._dense_twin
    with torch.device("meta"):
        was = kind(**layer._arguments(), step_mode=step_mode)
    was.weight = dense.weight
    return was


def _of_blocks(model: nn.Module) -> set[nn.Module]:
    """Layers whose output neurons of a fused block integrate."""
    found: set[nn.Module] = set()
    for block in model.modules():
        if isinstance(block, SpikingBlock):
            found.update([block.conv, *([] if block.shortcut is None else block.shortcut.modules())])
    return found


def _layout(module: Any, block_size: str | int | tuple[int, int]) -> BlockLayout:
    rows, cols, *kernel = module.weight.shape  # of a convolution: cols of one group
    groups = module.groups if kernel else 1
    block = resolve_block_size(block_size, rows // groups, cols, module.weight.device.type)
    return layout_of(rows, cols * groups, math.prod(kernel), groups, block)


def _from_scratch(
    module: Any, layout: BlockLayout, count: int, generator: torch.Generator | None
) -> BlockSparseLayer:
    """A fresh layer of exactly ``count`` blocks that takes over the bias parameter."""
    weight, kind = module.weight, _sparse(module)
    make: Any = kind
    layer = make(
        **kind._arguments_of(module),
        density=count / layout.blocks,
        block_size=(layout.bm, layout.bn),
        device=weight.device if generator is None else generator.device,
        dtype=weight.dtype,
        generator=generator,
    ).to(weight.device)
    if module.bias is not None and layer.bias is not None:
        module.bias.copy_(layer.bias)
        layer.bias = module.bias
    return layer


def _from_magnitude(module: Any, layout: BlockLayout, count: int) -> BlockSparseLayer:
    """The ``count`` largest blocks of the layer, and its own bias parameter."""
    layer = _sparse(module).from_dense(
        module, density=count / layout.blocks, block_size=(layout.bm, layout.bn)
    )
    layer.bias = module.bias
    return layer


def _matrices(module: nn.Module) -> list[Tensor]:
    """The module's own parameters of two or more dimensions."""
    return [param for param in module.parameters(recurse=False) if param.dim() >= 2]


def _reasons_to_leave(
    model: nn.Module, weighted: Mapping[str, nn.Module], exclude: Iterable[str]
) -> dict[str, str]:
    """Why each of these modules cannot become sparse; empty for those that can."""
    names = dict(model.named_modules(remove_duplicate=False))
    excluded: set[nn.Module] = set()
    for name in [exclude] if isinstance(exclude, str) else exclude:
        if name not in names:
            raise ValueError(f"exclude: the model has no module {name!r}")
        excluded.update(names[name].modules())
    reader: dict[nn.Module, str] = {}
    for parent in model.modules():
        if isinstance(parent, _READ_BY_PARENT):
            reader.update((child, type(parent).__name__) for child in parent.children())
    uses = Counter(param for module in weighted.values() for param in _matrices(module))

    def reason(module: nn.Module) -> str:
        kind = type(module).__name__
        if module in excluded:
            return "excluded"
        if is_sparse(module):
            return "sparse already"
        base = next((dense for dense in _SPARSE if isinstance(module, dense)), None)
        if base is None:
            return f"there is no block-sparse {kind}"
        if module in reader:
            return f"{reader[module]} reads its weight directly"
        if _base(module) is None:
            return f"{kind}, a subclass of nn.{base.__name__}, may use its weight in its own way"
        if "weight" not in module._parameters:
            return "its weight is computed from other parameters"
        weight: Any = module.weight
        if uses[weight] > 1:
            return "its weight is shared with another module"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return "it has hooks, which would be lost"
        return ""

    return {name: reason(module) for name, module in weighted.items()}


def _conversion(name: str, kind: str, module: nn.Module, reason: str) -> LayerConversion:
    layer = sparse_layers(module).get("")
    if layer is None:
        weights = sum(param.numel() for param in _matrices(module))
        return LayerConversion(name, kind, weights, weights, None, reason)
    layout = layer.topology.layout
    weights = layout.rows * layout.cols
    return LayerConversion(name, kind, weights, layer.topology.nnz, (layout.bm, layout.bn), reason)


def _replace_param(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    group = param_group(optimizer, old)
    if group is None:
        return
    place = next(i for i, param in enumerate(group["params"]) if param is old)
    group["params"][place] = new
    optimizer.state.pop(old, None)
    # Some optimisers (Adagrad) make their state in the constructor and count on it.
    if made := twin(optimizer, group, new).state.get(new):
        optimizer.state[new] = made


def _replace_modules(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put each new module wherever its old one stands; a shared module stands in several places."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
