"""What a forward pass would cost on hardware that only works where there are spikes: operations and joules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import _native
from .nn import SparseConv1d, SparseConv2d, SparseLinear, TemporalLinear
from .ops.block_score.native import count_spikes
from .ops.pack.op import detect
from .packed import PackedSpikes

_FULLY_CONNECTED = (SparseLinear, TemporalLinear, nn.Linear)
_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLUTIONS: dict[Any, int] = {
    SparseConv1d: 1,
    SparseConv2d: 2,
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
}
_COUNTED: Any = (*_FULLY_CONNECTED, *_CONVOLUTIONS)


@dataclass(frozen=True)
class EnergyConstants:
    """Joules of one multiply-add (``mac``) and of one synaptic operation (``sop``: add a weight, for a spike)."""

    mac: float
    sop: float


# 45nm: float32, multiply and add 3.7 + .9 pJ, add .9 pJ (Horowitz, ISSCC 2014), what SNN papers commonly use.
# paper: ESL-SNNs, Table 1, as its figures decode: a V100's 250 W at 14 TFLOPS, and 12.52 pJ for TrueNorth.
# truenorth: 12.5 pJ and 77 fJ, as other SNN papers have it.
ENERGY_CONSTANTS: dict[str, EnergyConstants] = {
    "45nm": EnergyConstants(mac=4.6e-12, sop=0.9e-12),
    "paper": EnergyConstants(mac=250 / 14e12, sop=12.52e-12),
    "truenorth": EnergyConstants(mac=12.5e-12, sop=77e-15),
}


@dataclass
class LayerRate:
    """What a layer saw while it was measured, summed over calls.

    Attributes:
        elements: of its input. events: spikes among them; of a sum or an average of spikes, each one that went in.
        spiking: elements of inputs that were spikes, or sums or averages of them.
        positions: output pixels (of a linear layer rows) that were computed. analog_positions: from inputs that were
            no spikes. weighted_positions: from spikes, each times the rate of its call.
    """

    elements: int = 0
    events: float = 0.0
    spiking: int = 0
    positions: int = 0
    analog_positions: int = 0
    weighted_positions: float = 0.0

    @property
    def rate(self) -> float | None:
        """Spikes per input element and time step; None where no input was spikes."""
        return self.events / self.spiking if self.spiking else None

    def add(self, elements: int, events: float | None, positions: int) -> None:
        self.elements += elements
        self.positions += positions
        if events is None:
            self.analog_positions += positions
        else:
            self.spiking += elements
            self.events += events
            self.weighted_positions += positions * events / max(1, elements)


@dataclass
class Rates:
    """By layer name; and how many samples the model saw: what its calls had in dimension 0 of their first tensor."""

    layers: dict[str, LayerRate] = field(default_factory=dict)
    samples: int = 0


@dataclass(frozen=True)
class LayerEnergy:
    """One layer's cost of a sample.

    Attributes:
        connections: active weights. density: their fraction of a dense layer's.
        rate: spikes per input element and time step; None: the input is no spikes.
        flops: multiply-adds if every active connection is computed at every step and pixel, spike or not.
        macs: of those, the ones whose input is no spike (direct encoding): they stay multiply-adds.
        sops: synaptic operations: active connections that a spike arrives at.
        energy: joules, of macs and sops.
    """

    name: str
    connections: int
    density: float
    rate: float | None
    flops: float
    macs: float
    sops: float
    energy: float


@dataclass(frozen=True)
class EnergyReport:
    """Cost of a sample's forward pass, by layer and in all; ``str()`` gives a table.

    Attributes:
        left_out: modules with weights of a kind that is not counted.
    """

    layers: tuple[LayerEnergy, ...]
    constants: EnergyConstants
    samples: int
    left_out: tuple[str, ...]

    @property
    def energy(self) -> float:
        """Joules a sample, by the operations that spikes cause."""
        return sum(layer.energy for layer in self.layers)

    @property
    def flops(self) -> float:
        return sum(layer.flops for layer in self.layers)

    @property
    def macs(self) -> float:
        return sum(layer.macs for layer in self.layers)

    @property
    def sops(self) -> float:
        return sum(layer.sops for layer in self.layers)

    @property
    def connections(self) -> int:
        return sum(layer.connections for layer in self.layers)

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers] + [len("a sample")])
        lines = [
            f"{'a sample':<{width}}  {'connections':>12}  {'density':>7}  {'rate':>6}  {'FLOPs':>10}  "
            f"{'MACs':>10}  {'SOPs':>10}  {'energy (J)':>10}"
        ]
        for layer in self.layers:
            rate = "-" if layer.rate is None else f"{layer.rate:.4f}"
            lines.append(
                f"{layer.name:<{width}}  {layer.connections:>12,}  {layer.density:>7.4f}  {rate:>6}  "
                f"{layer.flops:>10.4g}  {layer.macs:>10.4g}  {layer.sops:>10.4g}  {layer.energy:>10.4g}"
            )
        lines.append(
            f"{'all':<{width}}  {self.connections:>12,}  {'':>7}  {'':>6}  {self.flops:>10.4g}  "
            f"{self.macs:>10.4g}  {self.sops:>10.4g}  {self.energy:>10.4g}"
        )
        if self.left_out:
            lines.append(f"not counted: {', '.join(self.left_out)}")
        return "\n".join(lines)


@contextmanager
def measure_rates(model: nn.Module) -> Iterator[Rates]:
    """Count the spikes that reach each layer of weights while the model is called::

        with esl.measure_rates(model) as rates, torch.no_grad():
            for images, _ in loader:
                model(images)
        print(esl.energy_report(model, rates))

    Layers are torch's Linear and Conv1d to Conv3d and the sparse ones. A float input counts as spikes if every element
    is 0 or 1, or a power of two times an integer up to 15 (spikes after average pooling or a sum): it is looked
    through at each call. Of neurons that fire once, finite times are spikes.
    """
    rates = Rates()
    handles = [model.register_forward_pre_hook(_count_samples(rates), with_kwargs=True)]
    for name, module in model.named_modules():
        if isinstance(module, _COUNTED):
            seen = rates.layers.setdefault(name, LayerRate())
            handles.append(module.register_forward_pre_hook(_count_spikes(seen)))
    try:
        yield rates
    finally:
        for handle in handles:
            handle.remove()


def energy_report(
    model: nn.Module,
    rates: Rates,
    constants: str | EnergyConstants = "45nm",
    samples: int | None = None,
) -> EnergyReport:
    """Operations and joules of a sample, from the active weights and the rates that `measure_rates` saw.

    A spike costs one synaptic operation at each active connection it reaches, taken as its layer's mean:
    ``sops = rate * active multiply-adds``. An input that is no spikes costs a multiply-add at each of them.

    Args:
        constants: a name in ``esl_sparse.energy.ENERGY_CONSTANTS``, or joules of your own.
        samples: that the rates were measured on, if the model was not called with samples in dimension 0 (time first,
            or a loop over time outside the model).

    Raises:
        ValueError: unknown constants; nothing was measured; no samples.
    """
    if isinstance(constants, str):
        if constants not in ENERGY_CONSTANTS:
            raise ValueError(f"constants: expected one of {', '.join(ENERGY_CONSTANTS)}, got {constants!r}")
        constants = ENERGY_CONSTANTS[constants]
    count = rates.samples if samples is None else samples
    if not isinstance(count, int) or count < 1:
        raise ValueError(
            f"samples: expected at least 1, got {count!r}: call the model inside measure_rates, or say how many"
        )
    modules = dict(model.named_modules())
    if unknown := [name for name in rates.layers if not isinstance(modules.get(name), _COUNTED)]:
        raise ValueError(f"rates: the model has no layer {unknown[0]!r}; they were measured on another model")
    layers = tuple(_layer(name, modules[name], seen, constants, count) for name, seen in rates.layers.items())
    left_out = [
        f"{name} ({type(module).__name__})"
        for name, module in modules.items()
        if not isinstance(module, _COUNTED) and _has_matrix(module)
    ]
    return EnergyReport(layers, constants, count, tuple(left_out))


def _layer(name: str, module: Any, seen: LayerRate, constants: EnergyConstants, samples: int) -> LayerEnergy:
    active, total = _connections(module)
    macs = active * seen.analog_positions / samples
    sops = active * seen.weighted_positions / samples
    return LayerEnergy(
        name,
        connections=active,
        density=active / total,
        rate=seen.rate,
        flops=active * seen.positions / samples,
        macs=macs,
        sops=sops,
        energy=macs * constants.mac + sops * constants.sop,
    )


def _connections(module: Any) -> tuple[int, int]:
    """Active and potential weights. A dense layer's zeros are not connections: pruned by a mask, for instance."""
    if isinstance(module, (SparseLinear, TemporalLinear, SparseConv1d, SparseConv2d)):
        layout = module.topology.layout
        return module.nnz, layout.rows * layout.cols
    nnz = getattr(module, "nnz", None)
    active = int(module.weight.count_nonzero()) if nnz is None else int(nnz)
    return active, module.weight.numel()


def _has_matrix(module: nn.Module) -> bool:
    """Weights of its own that connect neurons: norms and the like have vectors only."""
    return any(param.dim() > 1 for param in module.parameters(recurse=False))


def _count_samples(rates: Rates) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, PackedSpikes):
                rates.samples += value.B
                return
            if isinstance(value, Tensor) and value.dim():
                rates.samples += value.shape[0]
                return

    return hook


def _count_spikes(seen: LayerRate) -> Any:
    @torch.no_grad()
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        elements = math.prod(x.shape)
        if isinstance(module, TemporalLinear):
            events: float | None = float(x.isfinite().sum())
        elif isinstance(x, PackedSpikes):
            events = mean_of(x) * elements / x.scale
        else:
            kind = detect(x)
            events = None if kind is None else float(x.sum(dtype=torch.float64)) / kind[1]
        seen.add(elements, events, _positions(module, tuple(x.shape)))

    return hook


def _positions(module: Any, shape: tuple[int, ...]) -> int:
    """At how many places the layer applies its weights to an input of that shape."""
    if isinstance(module, _FULLY_CONNECTED):
        return math.prod(shape[:-1])
    dims = next(d for kind, d in _CONVOLUTIONS.items() if isinstance(module, kind))
    channels, size = shape[-dims - 1], shape[-dims:]
    weight = torch.empty(1, channels, *module.kernel_size, device="meta")
    x = torch.empty(1, channels, *size, device="meta")
    out = _CONVOLVE[dims](x, weight, None, module.stride, module.padding, module.dilation)
    return math.prod(shape[: -dims - 1]) * math.prod(out.shape[2:])


def mean_of(spikes: Tensor | PackedSpikes) -> float:
    """Mean value; of packed spikes, from their bits."""
    if isinstance(spikes, PackedSpikes) and spikes.words.device.type == "cpu" and _native.available():
        total = sum(count_spikes(plane.contiguous()) << p for p, plane in enumerate(spikes.words))
        _, _, *size = spikes.words.shape
        return spikes.scale * total / max(1, spikes.T * spikes.B * math.prod(size))
    values = spikes.unpack() if isinstance(spikes, PackedSpikes) else spikes
    return values.detach().mean().item()
