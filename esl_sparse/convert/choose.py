"""Which layers of a model can become sparse, which are meant, and what is asked of each."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod

from ..nn import SparseConv1d, SparseConv2d, SparseLinear
from ..nn.sparse import BlockSparseLayer
from ..rewire.layers import is_sparse
from ..rewire.ranks import is_sharded

SPARSE: dict[type[nn.Module], type[BlockSparseLayer]] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}

Predicate = Callable[[str, nn.Module], bool]
Overrides = Mapping[str, "float | Mapping[str, Any]"]

# SpikingJelly's layers of the same names compute what torch's do, in step mode "m" on [T, N, ...], as ours do too.
_SPIKINGJELLY = "spikingjelly.activation_based.layer"

# Their own forward reads the weights of the layers inside them, past those layers' forward.
_READ_BY_PARENT = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

_SETTINGS = ("density", "block_size")

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """Which of torch's layers the module is, or computes the same as; None: neither."""
    kind = type(module)
    if kind in SPARSE:
        return kind
    peer = sys.modules.get(_SPIKINGJELLY)  # whoever has such a layer has imported it
    return next((base for base in SPARSE if kind is getattr(peer, base.__name__, None)), None)


def matrices(module: nn.Module) -> list[Tensor]:
    """The module's own parameters of two or more dimensions, those not yet made, and those it computes others from."""
    own: list[Any] = list(module.parameters(recurse=False))
    if is_parametrized(module):
        own += module.parametrizations.parameters()  # type: ignore[union-attr]
    own += _quantised(module)
    return [weight for weight in own if is_lazy(weight) or weight.dim() >= 2]


def _quantised(module: Any) -> list[Tensor]:
    """The weights of one of the layers in ``torch.ao.nn``, which hold them packed and hand them out on request."""
    kind = type(module)
    if not kind.__module__.startswith("torch.ao.nn."):
        return []
    if callable(getattr(kind, "get_weight", None)):
        return list(module.get_weight().values())
    return [module.weight()] if callable(getattr(kind, "weight", None)) else []


def weighted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold weight matrices, by name."""
    parts: set[nn.Module] = set()  # of a layer whose weight is parametrised
    for module in model.modules():
        if is_parametrized(module):
            parts.update(module.parametrizations.modules())  # type: ignore[union-attr]
    return {name: x for name, x in model.named_modules() if x not in parts and matrices(x)}


def check_not_wrapped(model: nn.Module) -> None:
    """Raise if another object already keeps book of the model's parameters."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel) or is_sharded(module):
            kind = type(module).__name__
            raise ValueError(f"model: {kind} holds its parameters already; convert the model, then wrap it")


def weight_param(module: Any) -> nn.Parameter:
    """The parameter that holds a layer's weight, also where torch's pruning has renamed it."""
    return module.weight_orig if "weight_orig" in module._parameters else module.weight


def selected(model: nn.Module, argument: str, keys: Any) -> set[nn.Module]:
    """The modules that names, patterns of names (``*``, ``?``, ``[...]``) and predicates mean, and what these hold.

    Raises:
        TypeError: a key of another kind. ValueError: a name or pattern that no module has.
    """
    names = dict(model.named_modules(remove_duplicate=False))
    found: set[nn.Module] = set()
    for key in [keys] if isinstance(keys, str) or callable(keys) else keys:
        if isinstance(key, str):
            hits = [
                module for name, module in names.items() if name == key or (name and fnmatchcase(name, key))
            ]
            if not hits:
                raise ValueError(f"{argument}: the model has no module {key!r}")
        elif callable(key):
            hits = [module for name, module in names.items() if key(name, module)]
        else:
            raise TypeError(f"{argument}: expected names or predicates, got {type(key).__name__}")
        for module in hits:
            found.update(module.modules())
    return found


def reasons_to_leave(
    model: nn.Module, weighted: Mapping[str, nn.Module], exclude: str | Predicate | Iterable[str | Predicate]
) -> dict[str, str]:
    """Why each of these modules cannot become sparse; empty for those that can."""
    excluded = selected(model, "exclude", exclude)
    reader: dict[nn.Module, str] = {}
    for parent in model.modules():
        if isinstance(parent, _READ_BY_PARENT):
            reader.update((child, type(parent).__name__) for child in parent.children())
    uses = Counter(param for module in weighted.values() for param in matrices(module))

    def reason(module: Any) -> str:
        kind = type(module).__name__
        if module in excluded:
            return "excluded"
        if is_sparse(module):
            return "sparse already"
        if _quantised(module):
            return "its weight is quantised"
        base = next((dense for dense in SPARSE if isinstance(module, dense)), None)
        if base is None:
            return f"there is no block-sparse {kind}"
        if any(map(is_lazy, module.parameters(recurse=False))):
            return "it has no weight yet: run the model once before"
        if is_parametrized(module):
            return f"its {' and '.join(module.parametrizations)} is computed from other parameters"
        if module in reader:
            return f"{reader[module]} reads its weight directly"
        if base_of(module) is None:
            return f"{kind}, a subclass of nn.{base.__name__}, may use its weight in its own way"
        if "bias_orig" in module._parameters:
            return "its bias is pruned, and a sparse layer's bias has no mask"
        if "weight" not in module._parameters and not is_pruned(module):
            return "its weight is computed from other parameters"
        weight = weight_param(module)
        if uses[weight] > 1:
            return "its weight is shared with another module"
        if type(weight) is not nn.Parameter:
            return f"its weight is a {type(weight).__name__}"
        if weight.dtype not in _DTYPES:
            return f"its weight is {weight.dtype}"
        if not weight.numel():
            return "its weight has no entries"
        hooks = [*module._forward_hooks.values(), *module._backward_hooks.values()]
        before = module._forward_pre_hooks.values()
        if hooks or any(not isinstance(hook, BasePruningMethod) for hook in before):
            return "it has hooks, which would be lost"
        return ""

    return {name: reason(module) for name, module in weighted.items()}


def is_pruned(module: nn.Module) -> bool:
    """Whether ``torch.nn.utils.prune`` masks the module's weight."""
    return "weight_orig" in module._parameters and "weight_mask" in module._buffers


def masks_of(
    candidates: Mapping[str, Any], reasons: Mapping[str, str], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights to keep, of each layer for which a mask is given or that torch's pruning masks.

    Raises:
        TypeError: masks that are no bool tensors. ValueError: an unknown layer, one that stays dense, another shape.
    """
    found = {name: x.weight_mask != 0 for name, x in candidates.items() if is_pruned(x)}
    for key, mask in masks.items():
        name = key.removesuffix(".weight")
        if name not in candidates:
            why = (
                f"layer {name!r} stays as it is: {reasons[name]}" if name in reasons else f"no layer {name!r}"
            )
            raise ValueError(f"masks: {why}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"masks[{key!r}]: expected a bool tensor, got {got}")
        weight = candidates[name].weight
        if mask.shape != weight.shape:
            raise ValueError(f"masks[{key!r}]: expected shape {tuple(weight.shape)}, got {tuple(mask.shape)}")
        found[name] = mask.to(weight.device)
    return found


def settings_of(
    model: nn.Module, candidates: Mapping[str, nn.Module], overrides: Overrides
) -> dict[str, dict[str, Any]]:
    """What is asked of each layer on its own: ``density``, ``block_size``; later entries come first.

    Raises:
        TypeError: what is neither a density nor settings. ValueError: an unknown name or setting, a bad density.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in candidates}
    for key, value in overrides.items():
        asked = {"density": value} if isinstance(value, (int, float)) else value
        if not isinstance(asked, Mapping):
            raise TypeError(f"overrides[{key!r}]: expected a density or settings, got {type(value).__name__}")
        if unknown := set(asked) - set(_SETTINGS):
            raise ValueError(f"overrides[{key!r}]: expected {' or '.join(_SETTINGS)}, got {min(unknown)!r}")
        share = asked.get("density", 0)
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"overrides[{key!r}]: expected a density from 0 to 1, got {share!r}")
        meant = selected(model, "overrides", key)
        for name, module in candidates.items():
            if module in meant:
                found[name].update(asked)
    return found
