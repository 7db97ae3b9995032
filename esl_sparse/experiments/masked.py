"""Today's usual sparse training, as a baseline: a dense layer, gradient and optimiser state under a 0/1 mask.

Same rules and the same schedule as `esl_sparse.Rewirer` with 1x1 blocks, in mask form.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..rewire import GROW_RULES, SCHEDULES, GradientRule, LayerReport, RewireReport
from ..rewire.distribution import DISTRIBUTIONS
from ..rewire.schedule import UpdateSchedule


class MaskedLayer(nn.Module):
    """A torch layer whose weight counts only where `mask` is set; initialised at the sparse fan-in."""

    weight: Any
    bias: Any
    mask: Tensor
    follows_gradient = False
    gradient: Tensor | None = None  # of all places, where it is followed: what growth by gradient costs here

    def _set_up(self, density: float, generator: torch.Generator | None) -> None:
        size = self.weight.numel()
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.randperm(size, generator=generator)[: round(density * size)]] = True
        self.register_buffer("mask", mask.view_as(self.weight))
        bound = 1 / math.sqrt(max(1.0, self.nnz / len(self.weight)))
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator).mul_(self.mask)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)

    @property
    def nnz(self) -> int:
        return int(self.mask.sum())

    def _masked(self) -> Tensor:
        weight = self.weight * self.mask
        if self.follows_gradient and weight.requires_grad:
            weight.register_hook(self._add)
        return weight

    def _add(self, gradient: Tensor) -> None:
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


class MaskedLinear(MaskedLayer, nn.Linear):
    def __init__(
        self, in_features: int, out_features: int, *, density: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(in_features, out_features)
        self._set_up(density, generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._masked(), self.bias)


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        bias: bool = True,
        *,
        density: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self._set_up(density, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self._masked(), self.bias)


def mask_layers(
    model: nn.Module, density: float, distribution: str, generator: torch.Generator | None = None
) -> None:
    """Put masks on a model's linear layers and convolutions, in place: what `esl_sparse.sparsify` does in mask form.

    Layers to which the distribution gives all weights stay as they are.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    shapes = [tuple(layer.weight.shape) for layer in layers.values()]
    densities = DISTRIBUTIONS.resolve(distribution)(shapes, density)
    for (name, layer), share in zip(layers.items(), densities, strict=True):
        if share < 1:
            model.set_submodule(name, _masked_like(layer, share, generator))


def _masked_like(
    layer: nn.Linear | nn.Conv2d, density: float, generator: torch.Generator | None
) -> MaskedLayer:
    if isinstance(layer, nn.Linear):
        return MaskedLinear(layer.in_features, layer.out_features, density=density, generator=generator)
    kernel_size: Any = layer.kernel_size
    stride: Any = layer.stride
    padding: Any = layer.padding
    return MaskedConv2d(
        layer.in_channels,
        layer.out_channels,
        kernel_size,
        stride,
        padding,
        layer.bias is not None,
        density=density,
        generator=generator,
    )


class MaskRewirer:
    """Prunes and regrows the masks of a model's layers; `step()` after `optimizer.step()`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        prune: str,
        grow: str,
        alpha: float,
        interval: int,
        t_end: int,
        generator: torch.Generator,
    ) -> None:
        for kind, rule, rules in (("prune", prune, _PRUNE_RULES), ("grow", grow, _GROW_RULES)):
            if rule not in rules:
                raise ValueError(f"{kind}: masks offer {', '.join(rules)}, got {rule!r}")
        self.layers = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
        self.optimizer = optimizer
        self.prune = _PRUNE_RULES[prune]
        self.grow = grow
        followed = GROW_RULES[grow]
        self.window = min(followed.window, interval) if isinstance(followed, GradientRule) else 0
        self.beta = followed.beta if isinstance(followed, GradientRule) else 0.0
        self.schedule = UpdateSchedule(SCHEDULES["cosine"], alpha, interval, t_end)
        self.generator = generator
        self.iteration = 0
        self.averages = {name: torch.zeros_like(x.weight) for name, x in self.layers.items() if self.window}
        self.ever_active = {name: layer.mask.clone() for name, layer in self.layers.items()}
        self._follow()

    def step(self) -> RewireReport | None:
        self.iteration += 1
        for name, average in self.averages.items():
            average.mul_(self.beta)
            if (gradient := self.layers[name].gradient) is not None:
                average.add_(gradient, alpha=1 - self.beta)
        report = None
        if self.schedule.due(self.iteration):
            fraction = self.schedule.fraction(self.iteration)
            layers = tuple(self._update(name, layer, fraction) for name, layer in self.layers.items())
            report = RewireReport(self.iteration, fraction, layers)
        self._follow()
        return report

    def _follow(self) -> None:
        """Have the layers keep the coming step's dense gradient if it belongs to an update's window."""
        update = self.schedule.next(self.iteration)
        in_window = update is not None and self.iteration + self.window >= update
        for name, layer in self.layers.items():
            layer.gradient, layer.follows_gradient = None, in_window and bool(self.window)
            if self.window and update == self.iteration + self.window:
                self.averages[name].zero_()

    @torch.no_grad()
    def _update(self, name: str, layer: MaskedLayer, fraction: float) -> LayerReport:
        mask, ever_active = layer.mask.flatten(), self.ever_active[name].flatten()
        before = mask.clone()
        count = round(fraction * layer.nnz)
        mask[self.prune(layer.weight.flatten(), mask, count)] = False
        mask[self._choose(name, mask, ever_active, count)] = True
        ever_active |= mask
        changed = (before ^ mask).view_as(layer.mask)
        slots = [slot for slot in self.optimizer.state[layer.weight].values() if slot.shape == changed.shape]
        for tensor in (layer.weight, *slots):  # what was pruned is forgotten, what has grown starts anew
            tensor.masked_fill_(changed, 0)
        return LayerReport(
            name,
            pruned=count,
            grown=int((mask & ~before).sum()),
            density=layer.nnz / mask.numel(),
            r_s=ever_active.float().mean().item(),
        )

    def _choose(self, name: str, mask: Tensor, ever_active: Tensor, count: int) -> Tensor:
        """`count` absent places by the grow rule; places that it does not tell apart in random order."""
        absent = (~mask).nonzero().squeeze(1)
        absent = absent[torch.randperm(len(absent), generator=self.generator)]
        if self.grow == "random_unfired":
            absent = absent[ever_active[absent].int().argsort(stable=True)]
        elif self.window:
            score = self.averages[name].flatten()[absent].abs()
            absent = absent[score.argsort(descending=True, stable=True)]
        return absent[:count]

    def state_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "ever_active": self.ever_active,
            "averages": self.averages,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        iteration, ever_active, averages = state["iteration"], state["ever_active"], state["averages"]
        if type(iteration) is not int or iteration < 0:
            raise ValueError(f"expected an iteration, got {iteration!r}")
        if not isinstance(ever_active, dict) or ever_active.keys() != self.layers.keys():
            raise ValueError(f"expected ever-active masks of {', '.join(self.layers)}")
        for name, layer in self.layers.items():
            mask = ever_active[name]
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != layer.mask.shape:
                raise ValueError(f"{name}: expected an ever-active mask of shape {tuple(layer.mask.shape)}")
        if not isinstance(averages, dict) or averages.keys() != self.averages.keys():
            raise ValueError(f"expected gradients followed for {', '.join(self.averages) or 'no layer'}")
        for name, own in self.averages.items():
            if not isinstance(averages[name], Tensor) or averages[name].shape != own.shape:
                raise ValueError(f"{name}: expected followed gradients of shape {tuple(own.shape)}")
        self.generator.set_state(state["generator"])
        self.iteration = iteration
        self.ever_active = {name: mask.clone() for name, mask in ever_active.items()}
        self._follow()
        self.averages = {name: average.clone() for name, average in averages.items()}


def _magnitude(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """The `count` active places with the smallest weights."""
    return weight.abs().masked_fill(~mask, math.inf).topk(count, largest=False).indices


def _set(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """Zeros first; then the same fraction of the smallest positive and of the smallest negative weights."""
    zeros = (mask & (weight == 0)).nonzero().squeeze(1)[:count]
    positive, negative = mask & (weight > 0), mask & (weight < 0)
    signed = int(positive.sum() + negative.sum())
    rest = count - len(zeros)
    share = round(rest * int(positive.sum()) / signed) if signed else 0
    return torch.cat([zeros, _magnitude(weight, positive, share), _magnitude(weight, negative, rest - share)])


_PRUNE_RULES = {"magnitude": _magnitude, "set": _set}
_GROW_RULES = ("random", "random_unfired", "gradient", "momentum")
