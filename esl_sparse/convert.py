"""A dense model's layers become block-sparse ones in place, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .nn import SparseLinear
from .rewire.distribution import DISTRIBUTIONS, Distribution, exact_counts
from .rewire.layers import is_sparse, sparse_layers
from .rewire.optimizer_state import param_group, twin
from .topology import BlockLayout, resolve_block_size

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
    """Replace the linear layers of a model by block-sparse ones, in place.

    Args:
        model: any module that holds ``nn.Linear`` layers. Biases stay the same parameters.
        density: active over all weights of the converted layers and of those that the distribution makes
            dense; blocks are counted exactly.
        block_size: as for :class:`~esl_sparse.nn.SparseLinear`.
        distribution: how the density is shared out: ``"erk"``, ``"erdos_renyi"`` (paper Eq. 1), ``"uniform"``
            or a function ``(shapes, density) -> densities``. A layer that gets density 1 stays ``nn.Linear``.
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
    if isinstance(model, nn.Linear):
        raise ValueError("model: is itself an nn.Linear; use esl.nn.SparseLinear.from_dense(model, density)")
    share = DISTRIBUTIONS.resolve(distribution)
    weighted = {name: module for name, module in model.named_modules() if _matrices(module)}
    reasons = _reasons_to_leave(model, weighted, exclude)
    candidates = {name: module for name, module in weighted.items() if not reasons[name]}
    shapes = [tuple(module.weight.shape) for module in candidates.values()]
    densities = dict(zip(candidates, share(shapes, density), strict=True))
    layouts = {}
    for name, module in candidates.items():
        if densities[name] >= 1:
            reasons[name] = f"the distribution gives it density {densities[name]:g}"
        else:
            layouts[name] = _layout(module, block_size)
    counts = exact_counts([densities[name] for name in layouts], [lay.blocks for lay in layouts.values()])
    make = _from_scratch if init == "scratch" else _from_magnitude
    new: dict[nn.Module, nn.Module] = {}
    for (name, layout), count in zip(layouts.items(), counts, strict=True):
        module = candidates[name]
        layer = make(module, layout, count, generator)
        layer.train(module.training)
        layer.values.requires_grad_(module.weight.requires_grad)
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

    Raises:
        ValueError: the model is itself a sparse layer (use its ``to_dense()``).
    """
    if is_sparse(model):
        raise ValueError("model: is itself a sparse layer; use model.to_dense()")
    new: dict[nn.Module, nn.Module] = {}
    layer: Any
    for layer in filter(is_sparse, model.modules()):
        dense = layer.to_dense().train(layer.training)
        dense.weight.requires_grad_(layer.values.requires_grad)
        dense.bias = layer.bias
        new[layer] = dense
    _replace_modules(model, new)


def _layout(module: nn.Linear, block_size: str | int | tuple[int, int]) -> BlockLayout:
    rows, cols = module.weight.shape
    return BlockLayout(rows, cols, *resolve_block_size(block_size, rows, cols, module.weight.device.type))


def _from_scratch(
    module: nn.Linear, layout: BlockLayout, count: int, generator: torch.Generator | None
) -> SparseLinear:
    """A fresh layer of exactly ``count`` blocks that takes over the bias parameter."""
    weight = module.weight
    layer = SparseLinear(
        module.in_features,
        module.out_features,
        module.bias is not None,
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


def _from_magnitude(
    module: nn.Linear, layout: BlockLayout, count: int, generator: torch.Generator | None
) -> SparseLinear:
    """The ``count`` largest blocks of the layer, and its own bias parameter."""
    layer = SparseLinear.from_dense(module, density=count / layout.blocks, block_size=(layout.bm, layout.bn))
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
        if not isinstance(module, nn.Linear):
            return f"there is no block-sparse {kind}"
        if module in reader:
            return f"{reader[module]} reads its weight directly"
        if type(module) is not nn.Linear:
            return f"{kind}, a subclass of nn.Linear, may use its weight in its own way"
        if "weight" not in module._parameters:
            return "its weight is computed from other parameters"
        if uses[module.weight] > 1:
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
