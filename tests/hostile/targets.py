"""Every public function and class with arguments that it takes; each makes new ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import esl_sparse as esl
from esl_sparse import checkpoint, rewire, topology
from esl_sparse import functional as F
from esl_sparse.export import to_nir
from esl_sparse.ops import select as selection
from esl_sparse.rewire.ever_active import EverActive

Arguments = dict[str, Any]
Target = tuple[Callable[..., Any], Callable[[], Arguments]]


def linear() -> esl.nn.SparseLinear:
    return esl.nn.SparseLinear(10, 6, density=0.5, block_size=(2, 4))


def conv() -> esl.nn.SparseConv2d:
    return esl.nn.SparseConv2d(4, 6, 3, padding=1, groups=2, density=0.5, block_size=2)


def bits(*shape: int) -> torch.Tensor:
    return torch.bernoulli(torch.full(shape, 0.5))


def spikes(*shape: int) -> esl.PackedSpikes:
    return F.pack(bits(*shape), "binary")


def block() -> esl.nn.SpikingBlock:
    return esl.nn.SpikingBlock(conv(), nn.BatchNorm2d(6), esl.nn.LIF())


def model() -> nn.Module:
    return nn.Sequential(linear(), esl.nn.LIF(), esl.nn.SparseLinear(6, 5, density=0.5, block_size=1))


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 5))


def grads(net: nn.Module) -> nn.Module:
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    return net


def operands(layer: Any) -> Arguments:
    return {"values": layer.values, "bias": layer.bias, "topology": layer.topology}


def method(name: str, make: Callable[[], Any]) -> Callable[..., Any]:
    """A method as a function of its object."""
    return lambda self, **arguments: getattr(self, name)(**arguments)


def rewiring() -> Arguments:
    net = grads(model())
    return {"model": net, "optimizer": torch.optim.Adam(net.parameters())}


def rewire_once(**arguments: Any) -> Any:
    rewirer = esl.Rewirer(**arguments)
    arguments["optimizer"].step()
    return rewirer.step()


def walk_once(**arguments: Any) -> Any:
    walker = esl.DeepR(**arguments)
    arguments["optimizer"].step()
    return walker.step()


def loading(state: Callable[[Any], Any]) -> Callable[[], Arguments]:
    def make() -> Arguments:
        layer = linear()
        return {"self": layer, "state_dict": state(layer.state_dict())}

    return make


def loaded(key: str) -> Target:
    """``load_state_dict`` with one entry replaced."""

    def load(layer: Any, entry: Any) -> Any:
        layer.load_state_dict({**layer.state_dict(), key: entry})
        return layer(torch.ones(3, 10))

    def make() -> Arguments:
        layer = linear()
        return {"layer": layer, "entry": layer.state_dict()[key]}

    return load, make


def saved() -> Path:
    path = Path(tempfile.gettempdir()) / "hostile.pt"
    checkpoint.save_checkpoint(path, {"model": linear().state_dict()})
    return path


def forwards(layer: Callable[[], nn.Module], *x: Callable[[], Any]) -> dict[str, Target]:
    """A layer's call, with each of these inputs."""
    return {
        f"{type(layer()).__name__}.forward, input {i}": (
            lambda self, x: self(x),
            lambda make=make: {"self": layer(), "x": make()},
        )
        for i, make in enumerate(x)
    }


SIZES = {"in_features": 10, "out_features": 6}
CONV = {
    "in_channels": 4,
    "out_channels": 6,
    "kernel_size": 3,
    "stride": 1,
    "padding": 1,
    "dilation": 1,
    "groups": 2,
}
SPARSE = {
    "bias": True,
    "density": 0.5,
    "block_size": (2, 2),
    "input": "auto",
    "dtype": torch.float32,
    "device": "cpu",
}
WINDOW = {"kernel_size": 2, "stride": 2, "padding": 0}


def flat() -> torch.Tensor:
    return torch.randn(3, 10)


def maps() -> torch.Tensor:
    return torch.randn(2, 4, 5, 6)


def frames() -> torch.Tensor:
    return bits(3, 2, 4, 5, 6)


def scores() -> Arguments:
    return {"score": torch.randn(50), "ids": torch.arange(50), "count": 7, "seed": 3}


TARGETS: dict[str, Target] = {
    "SparseLinear": (esl.nn.SparseLinear, lambda: {**SIZES, **SPARSE, "generator": torch.Generator()}),
    "TemporalLinear": (esl.nn.TemporalLinear, lambda: {**SIZES, "density": 0.5, "block_size": 2, "dtype": None}),
    "SparseConv2d": (esl.nn.SparseConv2d, lambda: {**CONV, **SPARSE, "padding_mode": "zeros"}),
    "SparseConv1d": (esl.nn.SparseConv1d, lambda: {**CONV, **SPARSE, "padding_mode": "zeros"}),
    "LIF": (
        lambda x, **options: esl.nn.LIF(**options)(x),
        lambda: {"x": torch.randn(3, 4, 5), "tau": 0.5, "v_threshold": 1.0, "v_reset": 0.0, "surrogate": "triangle",
                 "width": 1.0, "detach_reset": False, "learn_tau": False, "time_dim": 0, "step_mode": "m"},
    ),
    "LIF.forward": (
        lambda self, x, v, return_v: self(x, v, return_v),
        lambda: {"self": esl.nn.LIF(), "x": torch.randn(3, 4, 5), "v": torch.randn(4, 5), "return_v": True},
    ),
    "SpikingBlock": (
        esl.nn.SpikingBlock,
        lambda: {"conv_or_linear": conv(), "norm": nn.BatchNorm2d(6), "lif": esl.nn.LIF(), "pool": esl.nn.AvgPool2d(2),
                 "shortcut": conv()},
    ),
    "SpikingBlock.forward, spikes": (
        lambda self, x, residual: self(x, residual),
        lambda: {"self": block(), "x": spikes(3, 2, 4, 5, 6), "residual": spikes(3, 2, 6, 5, 6)},
    ),
    "SpikingBlock.forward, floats": (
        lambda self, x, residual: self(x, residual),
        lambda: {"self": block(), "x": frames(), "residual": torch.randn(3, 2, 6, 5, 6)},
    ),
    **forwards(linear, flat, lambda: bits(3, 10), lambda: spikes(3, 2, 10)),
    **forwards(conv, maps, frames, lambda: spikes(3, 2, 4, 5, 6)),
    **forwards(
        lambda: esl.nn.SparseConv1d(4, 6, 3, padding=1, density=0.5, padding_mode="reflect"),
        lambda: torch.randn(2, 4, 9),
        lambda: spikes(3, 2, 4, 1, 9),
    ),
    **forwards(lambda: esl.nn.TemporalLinear(10, 6, density=0.5), lambda: torch.rand(3, 10) + 1),
    **forwards(lambda: esl.nn.AvgPool2d(2), lambda: spikes(3, 2, 4, 5, 6)),  # of floats: torch's own
    **forwards(lambda: esl.nn.MaxPool2d(2), lambda: spikes(3, 2, 4, 5, 6)),
    **forwards(lambda: esl.nn.AdaptiveAvgPool2d(1), lambda: spikes(3, 2, 4, 5, 6)),
    **forwards(lambda: esl.nn.MergeTime(nn.BatchNorm2d(4)), frames),
    "MergeTime": (esl.nn.MergeTime, lambda: {"module": nn.BatchNorm2d(4)}),
    "TETLoss": (
        lambda lamb, means, x, y: esl.nn.TETLoss(lamb, means)(x, y),
        lambda: {"lamb": 0.1, "means": 1.0, "x": torch.randn(3, 2, 5), "y": torch.tensor([0, 4])},
    ),
    "TemporalCrossEntropy": (
        lambda scale, z, y: esl.nn.TemporalCrossEntropy(scale)(z, y),
        lambda: {"scale": 1.0, "z": torch.rand(2, 5) + 1, "y": torch.tensor([0, 4])},
    ),
    "clip_neuron_grad_norm_": (
        esl.nn.clip_neuron_grad_norm_,
        lambda: {"layer": grads(esl.nn.TemporalLinear(10, 6, density=0.5)), "max_norm": 0.1},
    ),
    "binary_times": (esl.nn.binary_times, lambda: {"x": torch.rand(3, 4), "threshold": 0.5}),
    "latency_times": (esl.nn.latency_times, lambda: {"x": torch.rand(3, 4), "slowest": 1.5}),
    "reset": (esl.reset, lambda: {"model": model()}),
    "from_dense, density": (
        esl.nn.SparseLinear.from_dense,
        lambda: {"module": nn.Linear(10, 6), "density": 0.5, "block_size": 2},
    ),
    "from_dense, mask": (
        esl.nn.SparseLinear.from_dense,
        lambda: {"module": nn.Linear(10, 6), "mask": torch.rand(6, 10) > 0.5, "block_size": 1},
    ),
    "from_torch_bsr": (
        esl.nn.SparseLinear.from_torch_bsr,
        lambda: {"weight": linear().to_torch_bsr(), "bias": torch.randn(6), "in_features": 10, "out_features": 6},
    ),
    "reset_parameters": (
        lambda self, init, generator: self.reset_parameters(init, generator),
        lambda: {"self": linear(), "init": "kaiming_normal", "generator": torch.Generator()},
    ),
    "load values": loaded("values"),
    "load bias": loaded("bias"),
    "load crow_indices": loaded("crow_indices"),
    "load col_indices": loaded("col_indices"),
    "linear": (F.linear, lambda: {"x": flat(), **operands(linear()), "planes": 0, "scale": 1.0}),
    "linear, spikes": (F.linear, lambda: {"x": bits(3, 10), **operands(linear()), "planes": 1, "scale": 1.0}),
    "linear_packed": (F.linear_packed, lambda: {"x": spikes(3, 2, 10), **operands(linear()), "panels": True}),
    "conv2d": (
        F.conv2d,
        lambda: {"x": maps(), **operands(conv()), "geometry": conv().geometry(5, 6), "planes": 0, "scale": 1.0},
    ),
    "conv2d_packed": (
        F.conv2d_packed,
        lambda: {"x": spikes(3, 2, 4, 5, 6), **operands(conv()), "geometry": conv().geometry(5, 6)},
    ),
    "Geometry.of": (
        F.Geometry.of,
        lambda: {"size": (5, 6), "kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
    ),
    "lif": (
        F.lif,
        lambda: {"x": torch.randn(3, 4, 5), "v": torch.randn(4, 5), "tau": 0.5, "v_threshold": 1.0, "v_reset": 0.0,
                 "surrogate": "triangle", "width": 1.0, "want_v": True},
    ),
    "pack": (F.pack, lambda: {"x": frames(), "input": "auto"}),
    "unpack": (F.unpack, lambda: {"spikes": spikes(3, 2, 4, 5, 6)}),
    "avg_pool2d": (
        F.avg_pool2d,
        lambda: {"x": spikes(3, 2, 4, 5, 6), **WINDOW, "ceil_mode": False, "divisor_override": 4},
    ),
    "max_pool2d": (F.max_pool2d, lambda: {"x": spikes(3, 2, 4, 5, 6), **WINDOW, "dilation": 1}),
    "adaptive_avg_pool2d": (F.adaptive_avg_pool2d, lambda: {"x": spikes(3, 2, 4, 4, 6), "output_size": (2, 2)}),
    "temporal": (
        F.temporal,
        lambda: {"z": torch.rand(3, 10) + 1, "values": linear().values, "topology": linear().topology},
    ),
    "smallest": (selection.smallest, scores),
    "largest": (selection.largest, scores),
    "random_absent_ids": (
        topology.random_absent_ids,
        lambda: {"active_ids": torch.arange(0, 50, 3), "total": 100, "count": 20, "generator": torch.Generator()},
    ),
    "from_block_ids": (
        esl.BlockTopology.from_block_ids,
        lambda: {"block_ids": torch.arange(0, 9, 2), "layout": esl.BlockLayout(10, 6, 2, 4)},
    ),
    "assign_": (
        esl.BlockTopology.assign_,
        lambda: {"self": linear().topology, "block_ids": torch.arange(linear().topology.nnzb)},
    ),
    "EverActive.of": (EverActive.of, lambda: {"ids": torch.arange(0, 9, 2), "total": 100}),
    "sparsify": (
        esl.sparsify,
        lambda: {"model": dense(), "density": 0.5, "block_size": 2, "distribution": "erk", "init": "scratch",
                 "exclude": ("2",), "optimizer": None, "generator": torch.Generator()},
    ),
    "densify": (esl.densify, lambda: {"model": model()}),
    "Rewirer": (
        rewire_once,
        lambda: {**rewiring(), "prune": "set", "grow": "random", "alpha": 0.5, "interval": 1, "t_end": 10, "t_start": 0,
                 "schedule": "cosine", "protect": 1, "redistribute": "magnitude", "followers": (),
                 "generator": torch.Generator()},
    ),
    "DeepR": (walk_once, lambda: {**rewiring(), "generator": torch.Generator()}),
    "memory_report": (esl.memory_report, lambda: {**rewiring(), "rewirer": None}),
    "measure_rates": (
        lambda model, x: measured(model, x),
        lambda: {"model": model(), "x": bits(3, 10)},
    ),
    "energy_report": (
        esl.energy_report,
        lambda: {"model": (net := model()), "rates": measured(net, bits(3, 10))},
    ),
    "to_nir": (to_nir, lambda: {"model": model().eval(), "x": bits(1, 3, 10), "dt": 1e-4}),
    "load_checkpoint": (checkpoint.load_checkpoint, lambda: {"path": saved()}),
    "restore": (
        checkpoint.restore,
        lambda: {"parts": {"model": (net := linear())}, "state": {"model": net.state_dict()}},
    ),
    "sparse_layers": (rewire.sparse_layers, lambda: {"model": model()}),
}  # fmt: skip


def measured(net: nn.Module, x: Any) -> Any:
    with esl.measure_rates(net) as rates:
        net(x)
    return rates
