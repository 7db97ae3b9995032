"""A dense model's layers become block-sparse ones in place, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torch.optim import Optimizer

from ..nn import SpikingBlock
from ..nn.sparse import BlockSparseLayer
from ..ops.conv2d import layout_of
from ..rewire.distribution import DISTRIBUTIONS, Distribution, exact_counts
from ..rewire.layers import is_sparse, sparse_layers
from ..rewire.optimizer_state import param_group, twin
from ..topology import BlockLayout, check_count, resolve_block_size
from .choose import (
    SPARSE,
    Overrides,
    Predicate,
    base_of,
    check_not_wrapped,
    is_pruned,
    masks_of,
    matrices,
    reasons_to_leave,
    settings_of,
    weighted_modules,
)
from .report import LayerConversion, SparsifyReport


@torch.no_grad()
def sparsify(
    model: nn.Module,
    density: float = 0.1,
    block_size: str | int | tuple[int, int] = "auto",
    distribution: str | Distribution = "erk",
    init: str = "scratch",
    exclude: str | Predicate | Iterable[str | Predicate] = (),
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    *,
    overrides: Overrides | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> SparsifyReport:
    """Replace the linear layers and convolutions of a model by block-sparse ones, in place.

    Args:
        model: any module that holds ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d`` layers, or SpikingJelly's layers of
            these names, in either step mode. Biases stay the same parameters.
        density: active over all weights of the layers that have no density or mask of their own; blocks are counted
            exactly. Layers that the distribution makes dense count too.
        block_size: as for ``SparseLinear``.
        distribution: how the density is shared out: ``"erk"``, ``"erdos_renyi"`` (paper Eq. 1), ``"uniform"``
            or a function ``(shapes, density) -> densities``. A layer that gets density 1 stays dense, unless it is
            the convolution of a ``SpikingBlock``, which works on bits only with blocks.
        init: ``"scratch"``: random topology, fresh weights and biases scaled by the sparse fan-in;
            ``"magnitude"``: each layer keeps its blocks of largest mean |w|, and its bias.
        exclude: what to leave as it is: names of layers or of modules that hold layers, patterns of names
            (``"head.*"``), or predicates ``(name, module) -> bool``.
        optimizer: its parameter groups get the new values in place of the old weights, whose state is
            dropped.
        generator: source of randomness.
        overrides: for some layers (names or patterns) a density of their own, or a dict of ``density`` and
            ``block_size``: ``{"features.*": {"block_size": 8}, "fc": 0.5}``. Where several fit, the last one decides.
        masks: for some layers (by name, or by the name of their weight) a bool tensor of the weight's shape: the blocks
            that it touches become the topology, in place of a density. With ``init="magnitude"`` the weights that it
            keeps stay, and the others of these blocks start at 0. Layers that ``torch.nn.utils.prune`` has masked
            bring their own masks.

    Raises:
        TypeError: a mask that is no bool tensor; an override that is neither a density nor a dict.
        ValueError: an unknown name; a model wrapped in ``DistributedDataParallel`` or FSDP; a model that is itself a
            layer (nothing holds it, so nothing can be replaced: use ``SparseLinear.from_dense``).
    """
    if init not in ("scratch", "magnitude"):
        raise ValueError(f"init: expected 'scratch' or 'magnitude', got {init!r}")
    if (base := base_of(model)) is not None:
        kind, sparse = base.__name__, SPARSE[base].__name__
        raise ValueError(f"model: is itself an nn.{kind}; use esl.nn.{sparse}.from_dense(model, density)")
    share = DISTRIBUTIONS.resolve(distribution)
    check_not_wrapped(model)
    weighted: dict[str, Any] = weighted_modules(model)
    reasons = reasons_to_leave(model, weighted, exclude)
    candidates = {name: module for name, module in weighted.items() if not reasons[name]}
    own = settings_of(model, candidates, overrides or {})
    kept = masks_of(candidates, reasons, masks or {})
    shared = [name for name in candidates if name not in kept and "density" not in own[name]]
    shares = share([tuple(candidates[name].weight.shape) for name in shared], density) if shared else []
    densities = dict(zip(shared, shares, strict=True))
    layouts = {}
    in_blocks = _of_blocks(model)
    for name, module in candidates.items():
        if name in kept:
            full, why = bool(kept[name].all()), "its mask keeps every weight"
        else:
            if "density" in own[name]:
                densities[name] = own[name]["density"]
            by = "the distribution gives it" if name in shared else "it is asked to have"
            full, why = densities[name] >= 1, f"{by} density {densities[name]:g}"
        if full and module not in in_blocks:
            reasons[name] = why
        else:
            layouts[name] = _layout(module, own[name].get("block_size", block_size))
    counted = [name for name in layouts if name not in kept]
    blocks = [layouts[name].blocks for name in counted]
    counts = dict(
        zip(counted, exact_counts([min(1.0, densities[name]) for name in counted], blocks), strict=True)
    )
    for count in counts.values():  # before anything changes
        check_count(count)
    new: dict[nn.Module, nn.Module] = {}
    for name, layout in layouts.items():
        module = candidates[name]
        if is_pruned(module):
            prune.remove(module, "weight")  # the same parameter again, with zeros where the mask has them
        if name in kept:
            layer = _from_mask(module, layout, kept[name], init, generator)
        elif init == "scratch":
            layer = _from_scratch(module, layout, counts[name], generator)
        else:
            layer = _from_magnitude(module, layout, counts[name])
        layer.train(module.training)
        layer.values.requires_grad_(module.weight.requires_grad)
        if type(module) not in SPARSE:
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
    """Undo ``sparsify`` in place: every block-sparse layer becomes the dense layer of the same map.

    A layer of SpikingJelly's becomes one again, in the step mode that it had.

    Raises:
        ValueError: the model is itself a sparse layer (use its ``to_dense()``), or is wrapped already.
    """
    if is_sparse(model):
        raise ValueError("model: is itself a sparse layer; use model.to_dense()")
    check_not_wrapped(model)
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


def _sparse(module: nn.Module) -> type[BlockSparseLayer]:
    base = base_of(module)
    assert base is not None
    return SPARSE[base]


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


def _from_mask(
    module: Any, layout: BlockLayout, mask: Tensor, init: str, generator: torch.Generator | None
) -> BlockSparseLayer:
    """The blocks that a mask touches, with their weights or fresh ones, and the layer's own bias parameter."""
    layer = _sparse(module).from_dense(module, mask=mask, block_size=(layout.bm, layout.bn))
    if init == "scratch":
        layer.reset_parameters(generator=generator)
        if module.bias is not None and layer.bias is not None:
            module.bias.copy_(layer.bias)
    layer.bias = module.bias
    return layer


def _conversion(name: str, kind: str, module: nn.Module, reason: str) -> LayerConversion:
    layer = sparse_layers(module).get("")
    if layer is None:
        weights = sum(weight.numel() for weight in matrices(module) if not is_lazy(weight))
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
