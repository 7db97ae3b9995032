"""The multi-spike fully connected network of the paper's MNIST experiment: 784-800-10 by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from ..nn import LIF


def dense_linear(in_features: int, out_features: int, input: str) -> nn.Module:
    return nn.Linear(in_features, out_features)


class SpikingMLP(nn.Module):
    """Static images `[B, ...]`, `in_features` numbers each, to outputs `[T, B, classes]`; their mean over time is the
    answer.

    The image is shown for `T` steps (direct encoding), so the first layer's current is computed once.
    The readout is dense and does not spike: its current of each step, or with `readout="integrate"` the
    current summed up to each step, is the output.

    `linear(in_features, out_features, input)` makes the hidden layers; `input` is "float" for the layer
    that sees the image and "binary" for those that see spikes.
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (800,),
        classes: int = 10,
        *,
        T: int = 4,
        tau: float = 0.5,
        readout: str = "current",
        linear: Callable[[int, int, str], nn.Module] = dense_linear,
    ) -> None:
        super().__init__()
        if readout not in ("current", "integrate"):
            raise ValueError(f"readout: expected 'current' or 'integrate', got {readout!r}")
        self.T = T
        self.integrate = readout == "integrate"
        self.hidden = nn.ModuleList(
            linear(n, m, "binary" if depth else "float")
            for depth, (n, m) in enumerate(pairwise((in_features, *hidden)))
        )
        self.lif = nn.ModuleList(LIF(tau=tau) for _ in hidden)
        self.readout = nn.Linear(hidden[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        first, *deeper = self.hidden
        current = first(images.flatten(1))
        current = current.expand(self.T, *current.shape)  # [T, B, n]
        for lif, layer in zip(self.lif, [*deeper, self.readout], strict=True):
            current = layer(lif(current))
        return current.cumsum(0) if self.integrate else current
