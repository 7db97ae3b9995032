"""The same spiking networks in several libraries: ours, dense modules one by one, plain torch, SpikingJelly.

All are made from a dense model of ``esl_sparse.models``, whose parameters they keep (ours: draws anew).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import esl_sparse as esl
from esl_sparse.models import SpikingCNN, SpikingResNet
from esl_sparse.models.vggsnn import VGGSNN_PLAN
from esl_sparse.nn import LIF, SpikingBlock
from esl_sparse.rewire.layers import is_sparse

from .cases import FRAME_RATE, NetworkCase
from .providers import loop, spikingjelly

CLASSES = 10


def dense(case: NetworkCase) -> nn.Module:
    """``esl_sparse.models``' own network; at width 64 that of the papers."""
    if case.network == "vggsnn":
        plan = [entry if isinstance(entry, str) else entry * case.width // 64 for entry in VGGSNN_PLAN]
        return SpikingCNN(plan, 2, case.size, CLASSES, T=case.T)
    widths = [case.width * times for times in (2, 4, 8)]
    return SpikingResNet(widths, classes=CLASSES, stem=case.width, hidden=4 * case.width, T=case.T)


def batch(case: NetworkCase) -> tuple[Tensor, Tensor]:
    """Binary frames of two polarities, or images; and labels."""
    if case.network == "vggsnn":
        x = torch.bernoulli(torch.full((case.N, case.T, 2, case.size, case.size), FRAME_RATE))
    else:
        x = torch.randn(case.N, 3, case.size, case.size)
    return x, torch.randint(CLASSES, (case.N,))


class PlainLIF(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return loop(x)


class PlainBlock(nn.Module):
    """What :class:`SpikingBlock` stands for, as papers' code writes it: torch's modules, and a loop over time."""

    def __init__(self, block: SpikingBlock) -> None:
        super().__init__()
        self.conv, self.norm, self.lif = block.conv, block.norm, PlainLIF()
        self.pool, self.shortcut = block.pool, block.shortcut

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        steps = x.shape[:2]
        y = self.norm(self.conv(x.flatten(0, 1)))
        if residual is not None:
            r = residual.flatten(0, 1)
            y = y + (r if self.shortcut is None else self.shortcut(r))
        s = self.lif(y.unflatten(0, steps))
        return s if self.pool is None else self.pool(s.flatten(0, 1)).unflatten(0, steps)


def _replaced(model: nn.Module, convert: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if (new := convert(child)) is not None:
                setattr(parent, name, new)
    return model


def plain(model: nn.Module) -> nn.Module:
    """No neuron and no block of ours."""

    def convert(module: nn.Module) -> nn.Module | None:
        if isinstance(module, SpikingBlock):
            return PlainBlock(module)
        return PlainLIF() if isinstance(module, LIF) else None

    return _replaced(model, convert)


def compiled(model: nn.Module) -> nn.Module:
    model = plain(model)
    model.compile()
    return model


def jelly(model: nn.Module) -> nn.Module:
    """SpikingJelly's layers in step mode "m", its neurons on torch's operations. For VGGSNN only."""
    library = spikingjelly()

    def convert(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, SpikingBlock):
            return None
        dense: Any = module.conv
        conv = library.layer.Conv2d(dense.in_channels, dense.out_channels, 3, padding=1, step_mode="m")
        conv.load_state_dict(dense.state_dict())
        norm = library.layer.BatchNorm2d(dense.out_channels, step_mode="m")
        pool = [] if module.pool is None else [library.layer.AvgPool2d(2, step_mode="m")]
        return nn.Sequential(conv, norm, library.lif(), *pool)

    model = _replaced(model, convert)
    model.register_forward_pre_hook(lambda module, _: library.functional.reset_net(module))
    return model


def sparse(distribution: str, density: float, model: nn.Module) -> nn.Module:
    esl.sparsify(model, density, distribution=distribution)
    return model


# What is made of the dense model. ``our neurons``: dense, but with this package's LIF.
PROVIDERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "SpikingJelly": jelly,
    "torch": plain,
    "torch compiled": compiled,
    "our neurons": lambda model: model,
    "ERK 0.5": partial(sparse, "erk", 0.5),
    "ERK 0.1": partial(sparse, "erk", 0.1),
    "uniform 0.1": partial(sparse, "uniform", 0.1),
}
OURS = tuple(name for name, made in PROVIDERS.items() if isinstance(made, partial))


# ---- multiply-adds


def _weighted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if is_sparse(module) or isinstance(module, (nn.Conv2d, nn.Linear)):
            yield name, module


def positions(case: NetworkCase) -> dict[str, int]:
    """At how many pixels a layer's weights are applied for each sample and step."""
    found: dict[str, int] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, _, y: Tensor) -> None:
            found[name] = y.shape[2:].numel() if isinstance(module, nn.Conv2d) else 1

        return hook

    model = dense(case)
    for name, module in _weighted(model):
        module.register_forward_hook(note(name))
    with torch.no_grad():
        model(batch(case._replace(N=1))[0])
    return found


def multiply_adds(model: nn.Module, positions: dict[str, int]) -> int:
    """Of one sample and step: active weights times the pixels where they are applied."""
    return sum(
        positions[name] * (module.nnz if is_sparse(module) else module.weight.numel())
        for name, module in _weighted(model)
    )
