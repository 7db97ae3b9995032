"""What is measured: the tables of cases, the targets, and the tiny sizes of ``--quick``."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple


class LinearCase(NamedTuple):
    """A linear layer on ``lanes`` rows (time steps x batch) of spikes that fire at ``rate``."""

    inputs: int
    outputs: int
    lanes: int
    rate: float

    @property
    def shape(self) -> str:
        return f"{self.inputs}-{self.outputs}"

    def __str__(self) -> str:
        return f"{self.shape}, {self.lanes} lanes, firing rate {self.rate:g}"


DENSITIES = (1.0, 0.5, 0.3, 0.1, 0.05, 0.01)
TARGET_CASE = LinearCase(1024, 1024, 2048, 0.1)

# The full product; values of the target case come first on each axis, so it is measured first.
LINEAR_CASES = [
    LinearCase(*shape, lanes, rate)
    for shape, lanes, rate in product(((1024, 1024), (784, 800), (4096, 4096)), (2048, 512), (0.1, 0.02, 0.3))
]


def in_default_table(case: LinearCase, density: float) -> bool:
    """The target case in full; elsewhere three densities, other rates at the target's size only."""
    if case == TARGET_CASE:
        return True
    if case.rate != TARGET_CASE.rate:
        return case[:3] == TARGET_CASE[:3] and density == 0.1
    return density in (0.3, 0.1, 0.01)


QUICK_LINEAR_CASES = [LinearCase(48, 40, 32, 0.1)]
QUICK_DENSITIES = (1.0, 0.1)

# provider, density, forward+backward at least so many times faster than nn.Linear; at TARGET_CASE
LINEAR_TARGETS = (("4x4", 0.1, 6.0), ("4x4", 0.05, 8.5), ("1x1", 0.1, 3.0))
# provider, the density below which forward+backward beats nn.Linear is at least; at TARGET_CASE
BREAK_EVEN_TARGETS = (("4x4", 0.75),)

OVERHEAD_CASE = LinearCase(16, 16, 16, 0.1)
OVERHEAD_DENSITIES = (1.0, 0.5)
OVERHEAD_TARGET = 2.0  # times nn.Linear, at most

KERNEL_SIZE = (1024, 2048)  # features, lanes
KERNEL_BLOCKS = ((1, 1), (4, 1), (16, 1), (4, 4), (16, 16))
KERNEL_DENSITIES = (0.3, 0.1, 0.05)
KERNEL_RATES = (0.3, 0.1, 0.02)
KERNEL_TARGET = 1.15  # the automatic choice over the fastest kernel, at most


class ConvCase(NamedTuple):
    """A convolution, padded by half its kernel, of ``lanes`` (time steps x batch) maps of ``size`` x ``size``.

    Its input are spikes; with ``pooled``, averages of 2 x 2 of them.
    """

    network: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    size: int
    pooled: bool
    lanes: int

    @property
    def shape(self) -> str:
        return f"{self.inputs}-{self.outputs}"

    @property
    def label(self) -> str:
        """Without the lanes."""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        pooled = " pooled" if self.pooled else ""
        return f"{self.network} {self.shape} {self.kernel}x{self.kernel}{stride}, {self.size}x{self.size}{pooled}"

    def __str__(self) -> str:
        return f"{self.label}, {self.lanes} lanes"


# Each shape once: inputs, outputs, kernel, stride, size, pooled. ResNet-19's first layer sees an image, not spikes.
_VGGSNN = (
    (2, 64, 3, 1, 48, False),
    (64, 128, 3, 1, 48, False),
    (128, 256, 3, 1, 24, True),
    (256, 256, 3, 1, 24, False),
    (256, 512, 3, 1, 12, True),
    (512, 512, 3, 1, 12, False),
    (512, 512, 3, 1, 6, True),
    (512, 512, 3, 1, 6, False),
)
_RESNET19 = (
    (64, 128, 3, 1, 32, False),
    (64, 128, 1, 1, 32, False),
    (128, 128, 3, 1, 32, False),
    (128, 256, 3, 2, 32, False),
    (128, 256, 1, 2, 32, False),
    (256, 256, 3, 1, 16, False),
    (256, 512, 3, 2, 16, False),
    (256, 512, 1, 2, 16, False),
    (512, 512, 3, 1, 8, False),
)
CONV_CASES = [
    ConvCase(network, *shape, lanes)
    for lanes in (128, 64)
    for network, shapes in (("VGGSNN", _VGGSNN), ("ResNet-19", _RESNET19))
    for shape in shapes
]
CONV_STEPS = 4  # of the lanes
CONV_DENSITIES = (0.5, 0.3, 0.1, 0.05)
CONV_RATES = (0.05, 0.15)
CONV_BLOCK = 4
# Other blocks: fewer shapes, at 128 lanes.
CONV_OTHER_BLOCKS = (1, 8)
CONV_OTHER_SHAPES = (_VGGSNN[1], _VGGSNN[3], _VGGSNN[5], _RESNET19[3], _RESNET19[4])

QUICK_CONV_CASES = [ConvCase("quick", 6, 10, 3, 2, 9, False, 24), ConvCase("quick", 8, 12, 1, 1, 4, True, 64)]
# mode, times the faster dense layout at least: median over all cases with blocks of 4x4 at this density
CONV_TARGET_DENSITY = 0.1
CONV_TARGETS = (("forward", 14.0), ("grad-values", 8.0), ("grad-input", 7.5), ("layer", 5.5))

LIF_SHAPE = (4, 16, 128, 24, 24)  # T, N, C, H, W
QUICK_LIF_SHAPE = (2, 2, 3, 4, 4)
LIF_TARGET = 6.0  # times a warm clone of the input, at most


class MemoryCase(NamedTuple):
    """A linear layer ``neurons -> neurons`` with LIF, trained by Adam on ``T`` steps of ``N`` samples."""

    neurons: int
    N: int
    T: int
    rate: float

    def __str__(self) -> str:
        shape = f"{self.neurons} -> {self.neurons} linear + LIF"
        return f"{shape}, N={self.N}, T={self.T}, firing rate {self.rate:g}"


MEMORY_CASE = MemoryCase(16384, 16, 20, 0.1)
QUICK_MEMORY_CASE = MemoryCase(1024, 2, 2, 0.1)
MEMORY_DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
# provider, weight state (values + index + gradient + Adam) at density d at most so many times d of dense
STATE_TARGETS = (("4x4", 1.1), ("1x1", 1.8))


class NetworkCase(NamedTuple):
    """A training step of a network of ``esl_sparse.models`` on ``N`` samples and ``T`` steps.

    ``width``: channels of its first convolution, of which the others are multiples.
    """

    network: str
    T: int
    N: int
    size: int
    width: int = 64

    def __str__(self) -> str:
        return f"{self.network}, T={self.T}, N={self.N}, {self.size}x{self.size}"


VGGSNN_CASES = (NetworkCase("vggsnn", 4, 32, 48), NetworkCase("vggsnn", 10, 8, 48))
QUICK_VGGSNN_CASES = (NetworkCase("vggsnn", 2, 4, 16, 8),)
RESNET19_CASES = (NetworkCase("resnet19", 2, 32, 32),)
QUICK_RESNET19_CASES = (NetworkCase("resnet19", 2, 4, 8, 4),)
VGGSNN_MEMORY_DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
FRAME_RATE = 0.1  # of the frames' events
# at VGGSNN_CASES[0]: ours, whom it beats, how many times at least
VGGSNN_TARGETS = (
    ("ERK 0.1", "SpikingJelly", 5.0),
    ("ERK 0.1", "torch", 4.0),
    ("ERK 0.1", "torch compiled", 4.0),
    ("uniform 0.1", "SpikingJelly", 7.0),
)
VGGSNN_MEMORY_TARGET = ("ERK 0.1", "SpikingJelly", 1 / 6)  # peak, at most so many times the other's
SAVED_TARGET = 1 / 50  # bytes kept for backward, of the same modules one by one


class RewireCase(NamedTuple):
    """A linear layer ``neurons -> neurons`` that is rewired, on ``T x N`` lanes of spikes."""

    neurons: int
    block: int
    density: float
    T: int = 4
    N: int = 32
    rate: float = 0.1

    def __str__(self) -> str:
        return f"{self.neurons}^2, {self.block}x{self.block} blocks, density {self.density:g}"


REWIRE_CASES = [
    *(RewireCase(*case) for case in product((1024, 4096), (4, 1), (0.1, 0.01))),
    RewireCase(16384, 4, 0.1),
    RewireCase(16384, 4, 0.01),
    RewireCase(16384, 1, 0.01),
    RewireCase(32768, 4, 0.01),
]
QUICK_REWIRE_CASES = [RewireCase(64, 4, 0.1)]
QUICK_REWIRE_RULES = ("random", "gradient", "DeepR")
REWIRE_INTERVAL = 1000  # iterations between updates: what their cost is spread over
REWIRE_MEMORY_TARGET = 2.0  # extra memory of an update, times values + index + gradient + Adam, at most
REWIRE_DENSE_TARGET = 1.0  # all that an update by `gradient` takes, times one dense backward, at most
# Rule by rule: what all of an update adds to training, at most.
REWIRE_OVERHEAD_TARGETS = {
    "random": 0.01,
    "random_unfired": 0.01,
    "gradient": 0.01,
    "momentum": 0.02,
    "momentum_neuron": 0.02,
    "magnitude": 0.01,
}


class ImpossibleCase(NamedTuple):
    """A linear layer ``neurons -> neurons`` with LIF, trained by Adam on one batch of ``T`` steps of ``N`` samples."""

    neurons: int
    block: int
    density: float
    N: int
    T: int
    rate: float
    lr: float

    @property
    def dense(self) -> int:
        """Bytes of weight, gradient and Adam's state of the dense layer."""
        return 16 * self.neurons**2

    def __str__(self) -> str:
        shape = f"{self.neurons} -> {self.neurons} linear + LIF, {self.block}x{self.block} blocks"
        return f"{shape}, density {self.density:g}, N={self.N}, T={self.T}, firing rate {self.rate:g}"


IMPOSSIBLE_CASE = ImpossibleCase(65536, 4, 1e-3, 16, 2, 0.05, 1e-2)
QUICK_IMPOSSIBLE_CASE = ImpossibleCase(512, 4, 0.1, 4, 2, 0.05, 1e-2)
IMPOSSIBLE_PHASES = (
    ("random", 5, 15),
    ("random_unfired", 5, 15),
    ("gradient", 15, 20),
)  # rule, interval, iterations
IMPOSSIBLE_TARGET = 400.0  # MB, at most

# features, lanes; scores to select from; blocks to index
SCAN_SIZE = (1024, 2048, (4_000_000, 40_000_000), (1_000_000, 10_000_000))
QUICK_SCAN_SIZE = (64, 32, (4000,), (1000,))
SCAN_RATES = (0.02, 0.1, 0.3, 0.7)


class TemporalCase(NamedTuple):
    """A layer of neurons that fire once on ``N`` samples, of whose inputs ``early`` fire first."""

    inputs: int
    outputs: int
    N: int
    early: float
    density: float

    def __str__(self) -> str:
        shape = f"single-spike layer {self.inputs}-{self.outputs}, N={self.N}"
        return f"{shape}, density {self.density:g}, {self.early:g} of the inputs early"


TEMPORAL_CASE = TemporalCase(784, 800, 100, 0.15, 0.1515)  # the paper's, eps = 60
QUICK_TEMPORAL_CASE = TemporalCase(40, 30, 8, 0.3, 0.5)
TEMPORAL_TARGET = 5.0  # times dense, at least

# On a GPU: shapes, blocks and densities; bfloat16. What loses (1x1, 4x4) stands in the same table.
GPU_BLOCKS = (16, 32, 64, 4, 1)
GPU_DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
GPU_LINEAR = (LinearCase(4096, 4096, 4096, 0.1), GPU_BLOCKS, GPU_DENSITIES)
GPU_CONV = (
    [case for case in CONV_CASES if case.lanes == 128 and case.inputs >= 64],
    GPU_BLOCKS,
    (0.3, 0.1),
)
GPU_STEP = NetworkCase("vggsnn", 10, 32, 48)
GPU_LIF_SHAPE = (10, 32, 128, 24, 24)
GPU_REWIRE = (4096, 1, 0.1)  # neurons, block, density
# part, block, mode, times dense at least
GPU_TARGETS = (
    ("linear", "32x32", "forward", 3.0),
    ("linear", "64x64", "forward", 4.0),
    ("linear", "32x32", "forward+backward", 2.5),
    ("linear", "64x64", "forward+backward", 2.5),
    ("conv", "32x32", "forward", 3.0),
    ("conv", "64x64", "forward", 4.0),
    ("conv", "32x32", "forward+backward", 2.5),
    ("conv", "64x64", "forward+backward", 2.5),
)
