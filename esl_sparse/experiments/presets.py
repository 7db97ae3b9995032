"""Settings under a name: the recipes of the paper, and small ones for data that can be had anywhere."""

from __future__ import annotations

from typing import Any

# ESL-SNNs (Shen et al., AAAI 2023), "Experiments": batch 64, learning rate 1e-3, 300 epochs, an update every 1000
# iterations; SET with growth by momentum is its most stable pair (Fig. 4), Eq. 10 the loss. Fig. 3b has the densities
# of layers settle after 200 of 300 epochs. Adam and cosine are those of TET (Deng et al. 2022), on whose code the paper
# builds; ERK is what its densities of single layers follow from ("47 %", "8 %").
_PAPER: dict[str, Any] = {
    "structure": "evolve",
    "distribution": "erk",
    "block_size": (4, 4),
    "epochs": 300,
    "batch_size": 64,
    "lr": 1e-3,
    "optimizer": "adam",
    "schedule": "cosine",
    "loss": "tet",
    "prune": "set",
    "grow": "momentum",
    "interval": 1000,
    "t_end": 2 / 3,
}
_FASHION = {**_PAPER, "model": "convnet", "density": 0.1, "T": 4, "epochs": 15, "interval": 200}
_CIFAR = {**_PAPER, "model": "resnet19", "density": 0.5, "augment": "cifar"}  # Table 2: density .5
# T, size and augmentation: TET. Density .1: Fig. 4.
_DVS = {**_PAPER, "model": "vggsnn", "density": 0.1, "T": 10, "size": 48, "augment": "dvs"}

PRESETS: dict[str, dict[str, Any]] = {
    "cifar10-resnet19": {**_CIFAR, "data": "cifar10", "T": 2},
    "cifar100-resnet19": {**_CIFAR, "data": "cifar100", "T": 4},
    "dvs-cifar10-vggsnn": {**_DVS, "data": "dvs-cifar10", "split": "tet"},
    "dvs-fashion-vggsnn": {**_DVS, "data": "dvs-fashion-mnist", "epochs": 10, "interval": 200},
    "fashion-convnet": {**_FASHION, "data": "fashion-mnist"},
    "dvs-fashion-convnet": {**_FASHION, "data": "dvs-fashion-mnist"},
}
