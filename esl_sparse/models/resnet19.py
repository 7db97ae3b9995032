"""ResNet-19 for CIFAR, as in tdBN (Zheng et al. 2021), TET (Deng et al. 2022) and the paper."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..nn import LIF, AdaptiveAvgPool2d, SpikingBlock
from ..packed import PackedSpikes
from .steps import Readout, as_steps


class BasicBlock(nn.Module):
    """conv-norm-LIF-conv-norm-(+ shortcut)-LIF; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, tau: float) -> None:
        super().__init__()
        shortcut = None
        if stride != 1 or in_channels != channels:
            shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.first = SpikingBlock(
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), LIF(tau)
        )
        self.second = SpikingBlock(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            LIF(tau),
            shortcut=shortcut,
        )

    def forward(self, x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
        return self.second(self.first(x), residual=x)


class SpikingResNet(nn.Module):
    """Images ``[B, C, H, W]`` (shown at each step) or frames ``[B, T, C, H, W]`` to outputs ``[T, B, classes]``.

    Args:
        widths: channels of each stage; all but the first halve the map. depths: basic blocks of each stage.
        stem: channels of the first convolution. hidden: spiking features before the readout.
        in_channels: of the images. classes: outputs.
        T: time steps. tau: decay factor of the neurons. readout: ``"current"`` or ``"integrate"``.
    """

    def __init__(
        self,
        widths: Sequence[int] = (128, 256, 512),
        depths: Sequence[int] = (3, 3, 2),
        classes: int = 10,
        *,
        in_channels: int = 3,
        stem: int = 64,
        hidden: int = 256,
        T: int = 2,
        tau: float = 0.5,
        readout: str = "current",
    ) -> None:
        super().__init__()
        self.T = T
        self.stem = SpikingBlock(
            nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), LIF(tau)
        )
        blocks: list[nn.Module] = []
        channels = stem
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for i in range(depth):
                blocks.append(BasicBlock(channels, width, 2 if stage and not i else 1, tau))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(channels, hidden)
        self.lif = LIF(tau)
        self.readout = Readout(hidden, classes, readout)

    def forward(self, x: Tensor) -> Tensor:
        features = self.pool(self.blocks(self.stem(as_steps(x, self.T))))
        return self.readout(self.lif(self.hidden(features.flatten(2))))


def resnet19(classes: int = 10, *, in_channels: int = 3, T: int = 2, **options) -> SpikingResNet:
    """ResNet-19 of tdBN and TET: stages of 128, 256 and 512 channels with 3, 3 and 2 basic blocks."""
    return SpikingResNet(classes=classes, in_channels=in_channels, T=T, **options)
