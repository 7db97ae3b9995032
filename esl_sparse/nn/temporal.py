"""Networks whose neurons fire at most once (paper, "Multi-layer ESL-SNNs"; Mostafa 2018).

What passes between layers is ``z = exp(t)`` of each neuron's spike time t, infinity where it does not fire.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.temporal import temporal, temporal_grad_values
from ..topology import BlockLayout, BlockTopology, resolve_block_size, row_indices
from .sparse import BlockSparseLayer, check_sizes, fill

# Mostafa 2018, as two re-implementations have it: bright pixels at t = 0, dark ones at ln 6.
EARLY, LATE = 1.0, 6.0
INITIAL_SUM = 4.0  # of a neuron's weights, on average
_NEVER = 1e5  # what cross-entropy sees of a neuron that does not fire: later than any spike that counts


class _Call(NamedTuple):
    """One call of a layer: its input and output times, the slopes at them, and its output gradient."""

    z: Tensor
    z_out: Tensor
    slope: Tensor
    grad: Tensor


class TemporalLinear(BlockSparseLayer):
    """Neurons that integrate without leak and fire once, connected by active blocks only (paper, Eq. 3 to 5).

    A neuron fires only if weights of more than 1 in sum arrive: ``weight_sum_cost`` drives it there.

    Args:
        in_features, out_features: sizes.
        density: fraction of the blocks that exist; 1: a dense layer.
        block_size: as in ``SparseLinear``.
        device, dtype: of the values: float32, or float64 by the definition alone.
        generator: source of the random topology and weights (CPU).

    Attributes:
        values: parameter ``[nnzb, bm, bn]``. There is no bias: time has no origin.
        topology: a ``BlockTopology`` view of the index buffers.

    Shape:
        z ``[..., in_features]`` to z ``[..., out_features]``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        density: float = 0.1,
        block_size: str | int | tuple[int, int] = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        target = torch.get_default_device() if device is None else torch.device(device)
        block = resolve_block_size(block_size, out_features, in_features, target.type)
        layout = BlockLayout(out_features, in_features, *block)
        self._set_up(layout, False, density, "float", target, dtype, generator)

    @torch.no_grad()
    def reset_parameters(
        self,
        init: str | Callable[[Tensor, float], object] = "temporal",
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw fresh values. ``"temporal"``: U(0, 8 / fan_in) with the *sparse* fan-in, so that weights sum to 4 and
        neurons fire; else as ``SparseLinear.reset_parameters``."""
        if init != "temporal":
            return super().reset_parameters(init, generator)

        def draw(values: Tensor, fan_in: float) -> None:
            fill(values, generator, lambda t: t.uniform_(0, 2 * INITIAL_SUM / fan_in, generator=generator))

        return super().reset_parameters(draw, generator)

    def forward(self, z: Tensor) -> Tensor:
        return self._times(z)[0].view(*z.shape[:-1], self.out_features)

    def _times(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(z, Tensor) or not z.dim() or z.shape[-1] != self.in_features:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"z: expected shape [..., {self.in_features}], got {got}")
        return temporal(z.reshape(-1, self.in_features), self.values, self.topology)

    def weight_sums(self) -> Tensor:
        """Sum of each neuron's weights, ``[out_features]``; differentiable."""
        values: Tensor = self.values
        lay = self._layout
        if lay.overhangs:
            values = values * self.topology.valid()
        blocks = row_indices(self.crow_indices, len(values))
        sums = values.new_zeros(lay.row_blocks, lay.bm).index_add(0, blocks, values.sum(2))
        return sums.flatten()[: self.out_features]

    def weight_sum_cost(self) -> Tensor:
        """``sum_j max(0, 1 - sum_i w_ij)``: what neurons lack that could not fire whatever arrives (Mostafa 2018)."""
        return F.relu(1 - self.weight_sums()).sum()

    # What rewiring by gradient needs (see rewire.layers.GradientLayer)

    def seen_input(self, z: Tensor) -> Tensor:
        return z.detach().reshape(-1, self.in_features)

    @torch.no_grad()
    def call(self, seen: Tensor, grad: Tensor) -> _Call:
        return _Call(seen, *self._times(seen), grad.reshape(-1, self.out_features))

    def gradient_at(self, topology: BlockTopology, call: _Call) -> Tensor:
        return temporal_grad_values(call.z, call.z_out, call.slope, call.grad, topology)

    def extra_repr(self) -> str:
        bm, bn = self.block_size
        density = "" if self.values.is_meta else f", density={self.density:.4g}"
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}{density}, block_size=({bm}, {bn})"

    # Conversions

    def to_dense(self) -> TemporalLinear:
        """The same neurons with every connection; those that are absent here have weight 0."""
        sizes = (self.in_features, self.out_features)
        dense = TemporalLinear(
            *sizes,
            density=1.0,
            block_size=self.block_size,
            device=self.values.device,
            dtype=self.values.dtype,
            generator=torch.Generator("cpu"),  # not torch's own: what it draws is overwritten
        )
        with torch.no_grad():
            dense.values.copy_(dense.topology.gather_dense(self.topology.to_dense(self.values)))
        return dense

    @classmethod
    def from_dense(cls, module: Any, *args, **kwargs) -> Any:
        raise TypeError("TemporalLinear.from_dense: torch has no layer of neurons that fire once")

    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    @staticmethod
    def _to_rows(weight: Tensor) -> Tensor:
        return weight


TemporalLinear._dense_type = (
    TemporalLinear  # torch has none: with every connection it is itself the dense layer
)


class TemporalCrossEntropy(nn.Module):
    """The neuron of the right class is to fire first (paper, Eq. 6): cross-entropy of ``softmax(-scale * z)``.

    A neuron that never fires counts as one that fires very late, without a gradient; what makes it fire is
    ``TemporalLinear.weight_sum_cost``.

    Args:
        scale: the larger, the smaller the lead that counts as certain. 1 is Eq. 6 for inputs that start at time 0.
            Every z of a network is proportional to those of its input: a scale of s is Eq. 6 for inputs that
            come ln s later.

    Raises:
        ValueError: a scale that is not above 0.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale: expected a number above 0, got {scale!r}")
        self.scale = scale

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """``z [N, classes]`` and ``target [N]`` -> scalar, the mean."""
        if z.dim() != 2 or target.shape != z.shape[:1]:
            raise ValueError(
                f"z, target: expected [N, classes] and [N], got {tuple(z.shape)} and {tuple(target.shape)}"
            )
        return F.cross_entropy(-self.scale * z.clamp(max=_NEVER), target)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


@torch.no_grad()
def clip_neuron_grad_norm_(layer: BlockSparseLayer, max_norm: float) -> Tensor:
    """Scale down the gradient of each neuron's weights to a norm of ``max_norm`` at most; returns the norms before.

    Gradients of a neuron that barely fires are divided by a sum of weights just above 1 (Mostafa 2018).

    Args:
        layer: its ``values`` have a gradient.
        max_norm: limit, above 0.

    Raises:
        ValueError: no gradient; a limit that is not above 0.
    """
    grad = layer.values.grad
    if grad is None:
        raise ValueError("layer: expected values with a gradient; call backward() first")
    if not max_norm > 0:
        raise ValueError(f"max_norm: expected a number above 0, got {max_norm!r}")
    lay = layer.topology.layout
    blocks = row_indices(layer.crow_indices, len(grad))
    squares = grad.new_zeros(lay.row_blocks, lay.bm).index_add(0, blocks, grad.square().sum(2))
    norms = squares.sqrt()
    grad.mul_((max_norm / norms.clamp(min=max_norm))[blocks].unsqueeze(2))
    return norms.flatten()[: lay.rows]


def binary_times(x: Tensor, threshold: float = 0.5, early: float = EARLY, late: float = LATE) -> Tensor:
    """z of pixels: ``early`` where x is above the threshold, ``late`` elsewhere; float32 like x's shape."""
    return torch.where(x > threshold, early, late).float()


def latency_times(x: Tensor, slowest: float = math.log(LATE)) -> Tensor:
    """z of pixels from 0 to 1: the brighter, the sooner, ``t = slowest * (1 - x)``; black pixels never fire."""
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"x: expected values from 0 to 1, got {x.min().item():g} to {x.max().item():g}")
    return torch.exp(slowest * (1 - x.float())).masked_fill(x == 0, torch.inf)
