"""VGGSNN, the network for DVS-CIFAR10 of TET (Deng et al. 2022) and of the paper; and a small one for 28 x 28."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..nn import LIF, AvgPool2d, SpikingBlock
from .steps import Readout, as_steps

POOL = "P"
VGGSNN_PLAN = (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)


class SpikingCNN(nn.Module):
    """Convolutions 3x3 with norm and LIF neurons, average pooling where the plan says so, and a linear readout.

    Args:
        plan: output channels of each convolution; ``"P"`` after one pools its spikes 2x2.
        in_channels: of the images or frames. size: their side.
        classes: outputs.
        T: time steps. tau: decay factor of the neurons. readout: ``"current"`` or ``"integrate"``.

    Raises:
        ValueError: size does not survive the poolings, each of which halves it and rounds down.

    Shape:
        Images ``[B, C, H, W]`` (shown at each step) or frames ``[B, T, C, H, W]`` to outputs ``[T, B, classes]``; their
        mean over time is the answer.
    """

    def __init__(
        self,
        plan: Sequence[int | str],
        in_channels: int,
        size: int,
        classes: int,
        *,
        T: int,
        tau: float = 0.5,
        readout: str = "current",
    ) -> None:
        super().__init__()
        pools = list(plan).count(POOL)
        if size < 2**pools:
            raise ValueError(f"size: expected at least {2**pools} pixels for {pools} poolings, got {size}")
        self.T = T
        blocks: list[nn.Module] = []
        channels = in_channels
        for i, entry in enumerate(plan):
            if isinstance(entry, str):
                continue
            pooled = i + 1 < len(plan) and plan[i + 1] == POOL
            blocks.append(
                SpikingBlock(
                    nn.Conv2d(channels, entry, 3, padding=1),
                    nn.BatchNorm2d(entry),
                    LIF(tau),
                    AvgPool2d(2) if pooled else None,
                )
            )
            channels, size = entry, size // 2 if pooled else size
        self.blocks = nn.Sequential(*blocks)
        self.readout = Readout(channels * size * size, classes, readout)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.blocks(as_steps(x, self.T)))


def vggsnn(
    classes: int = 10,
    *,
    in_channels: int = 2,
    size: int = 48,
    T: int = 10,
    tau: float = 0.5,
    readout: str = "current",
) -> SpikingCNN:
    """VGGSNN as in TET's code: eight convolutions of 64 to 512 channels, 4608 features; 9,217,152 + 46,080 weights."""
    return SpikingCNN(VGGSNN_PLAN, in_channels, size, classes, T=T, tau=tau, readout=readout)


def convnet(
    classes: int = 10,
    *,
    in_channels: int = 1,
    size: int = 28,
    channels: Sequence[int] = (32, 64, 128, 256),
    T: int = 4,
    tau: float = 0.5,
    readout: str = "current",
) -> SpikingCNN:
    """A small network for 28 x 28 images: a convolution and a 2x2 pool in each stage; in the last, two and no pool.

    Most weights stand where maps are smallest, and few neurons where maps are largest.
    """
    *stages, last = channels
    plan: list[int | str] = [entry for width in stages for entry in (width, POOL)]
    plan += [last, last]
    return SpikingCNN(plan, in_channels, size, classes, T=T, tau=tau, readout=readout)
