"""The competitors: linear layers, convolutions and LIF neurons, modules of the same shape: float in, float out.

Linear layers and convolutions also have ``to_dense()``, against which each is checked before it is timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esl_sparse as esl

from .cases import ConvCase

# ---- linear: (inputs, outputs, density) -> module; its first parameter is the weight


class DenseLinear(nn.Linear):
    """What everything is compared with; the density is ignored."""

    def __init__(self, inputs: int, outputs: int, density: float = 1.0) -> None:
        super().__init__(inputs, outputs)

    def to_dense(self) -> nn.Linear:
        return self


class MaskedLinear(DenseLinear):
    """Sparse training as it is usually done: a dense weight times a mask of the same size."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, density: float) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.rand(outputs, inputs) < density).float())
        with torch.no_grad():
            self.weight.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


_csr = partial(torch.sparse_csr_tensor, check_invariants=False)
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


class _CSR(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, layer):
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        return torch.addmm(bias[:, None], layer.weight(values), x.t()).t().contiguous()

    @staticmethod
    def backward(ctx, grad):
        x, values = ctx.saved_tensors
        grad_x = (ctx.layer.weight_t(values) @ grad.t()).t().contiguous()
        pattern = ctx.layer.weight(values)
        grad_values = torch.sparse.sampled_addmm(pattern, grad.t(), x, beta=0.0).values()
        return grad_x, grad_values, grad.sum(0), None


def _compressed(index: Tensor, size: int) -> Tensor:
    """How many entries stand before each row (column), int32 ``[size + 1]``."""
    return F.pad(torch.bincount(index, minlength=size).cumsum(0), (1, 0)).int()


class CSRLinear(nn.Module):
    """torch.sparse CSR (MKL), as far as it goes.

    Its own autograd answers with a *dense* weight gradient and is slower than dense, so backward is written
    by hand: a second, transposed CSR for the input's gradient and ``sampled_addmm`` for that of the values.
    """

    def __init__(self, inputs: int, outputs: int, density: float) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        row, col = (torch.rand(outputs, inputs) < density).nonzero(as_tuple=True)
        self.order_t = torch.sort(col, stable=True).indices
        self.crow, self.col = _compressed(row, outputs), col.int()
        self.ccol, self.row_t = _compressed(col, inputs), row[self.order_t].int()
        bound = (inputs * density) ** -0.5
        self.values = nn.Parameter(torch.empty(self.col.numel()).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def weight(self, values: Tensor) -> Tensor:
        return _csr(self.crow, self.col, values, self.shape)

    def weight_t(self, values: Tensor) -> Tensor:
        return _csr(self.ccol, self.row_t, values[self.order_t], self.shape[::-1])

    def forward(self, x: Tensor) -> Tensor:
        return _CSR.apply(x, self.values, self.bias, self)

    def to_dense(self) -> nn.Linear:
        dense = nn.Linear(self.shape[1], self.shape[0])
        with torch.no_grad():
            dense.weight.copy_(self.weight(self.values.detach()).to_dense())
            dense.bias.copy_(self.bias)
        return dense


def _ours(block: int) -> Callable[[int, int, float], nn.Module]:
    def build(inputs: int, outputs: int, density: float) -> nn.Module:
        return esl.nn.SparseLinear(inputs, outputs, density=density, block_size=block)

    return build


LINEAR: dict[str, Callable[[int, int, float], nn.Module]] = {
    "dense": DenseLinear,
    "dense+mask": MaskedLinear,
    "torch CSR": CSRLinear,
    "1x1": _ours(1),
    "4x4": _ours(4),
    "16x16": _ours(16),
}
OURS = ("1x1", "4x4", "16x16")

# ---- convolutions: (case) -> module


class DenseConv(nn.Conv2d):
    def __init__(self, case: ConvCase) -> None:
        super().__init__(case.inputs, case.outputs, case.kernel, case.stride, case.kernel // 2)

    def to_dense(self) -> nn.Conv2d:
        return self


class MaskedConv(DenseConv):
    mask: Tensor

    def __init__(self, case: ConvCase, density: float) -> None:
        super().__init__(case)
        self.register_buffer("mask", (torch.rand_like(self.weight) < density).float())
        with torch.no_grad():
            self.weight.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def sparse_conv(case: ConvCase, density: float, block: int) -> esl.nn.SparseConv2d:
    shape = (case.inputs, case.outputs, case.kernel, case.stride, case.kernel // 2)
    return esl.nn.SparseConv2d(*shape, density=density, block_size=block)


# ---- lif: () -> function of currents [T, ...]; tau 0.5, threshold 1, hard reset to 0, triangle of width 1


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(d):
        return (d > 0).to(d.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        (d,) = ctx.saved_tensors
        return grad * (1 - d.abs()).clamp(min=0)


def loop(x: Tensor) -> Tensor:
    """The plain loop over time that every paper's code holds."""
    v = torch.zeros_like(x[0])
    spikes = []
    for current in x:
        u = 0.5 * v + current
        s = _Spike.apply(u - 1.0)
        v = (1 - s) * u
        spikes.append(s)
    return torch.stack(spikes)


# The rest of what it needs, but for torchaudio and SciencePlots, comes with the extra [bench].
INSTALL_SPIKINGJELLY = "pip install --no-deps spikingjelly==2.0.0 torchvision==0.28.0"


def spikingjelly() -> SimpleNamespace:
    """``layer``, ``functional`` and ``lif()``: neurons like :func:`loop`.

    Raises:
        ImportError: SpikingJelly is missing; says how to install it.
    """
    try:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate
    except ImportError as error:
        raise ImportError(f"{error}; for SpikingJelly: {INSTALL_SPIKINGJELLY}") from error
    lif = partial(neuron.LIFNode, tau=2.0, decay_input=False, v_reset=0.0, step_mode="m")
    return SimpleNamespace(
        layer=layer,
        functional=functional,
        lif=lambda: lif(surrogate_function=surrogate.PiecewiseQuadratic(1.0)),
    )


def _spikingjelly() -> Callable[[Tensor], Tensor]:
    jelly = spikingjelly()
    node = jelly.lif()

    def run(x: Tensor) -> Tensor:
        jelly.functional.reset_net(node)
        return node(x)

    return run


LIF: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "ours": esl.nn.LIF,
    "loop": lambda: loop,
    "compiled loop": lambda: torch.compile(loop, fullgraph=True),
    "SpikingJelly": _spikingjelly,
}
