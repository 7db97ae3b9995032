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
_CIFAR = {**_PAPER, "model": "resnet19", "density": 0.5, "augment": "cifar"}  # Table 2: density .5
# T, size and augmentation: TET. Density .1: Fig. 4.
_DVS = {**_PAPER, "model": "vggsnn", "density": 0.1, "T": 10, "size": 48, "augment": "dvs"}
# Our own, sized for two CPU cores: dense, the slowest structure, trains within half an hour. Rate and batch were chosen
# on 20,000 images and 2 epochs: evolving, 86.4, 88.3 and 88.1 % at .001, .003 and .006.
_SMALL = {**_PAPER, "model": "convnet", "channels": (16, 64, 128, 256), "density": 0.1, "T": 4, "lr": 3e-3}
# Few, small updates: with half of the blocks every 120 iterations a short training loses more than it finds.
_GENTLE = {"alpha": 0.3, "interval": 300, "t_end": 0.5}

# Mostafa 2018's network, with Adam in place of his plain descent.
_SINGLE = {
    "data": "mnist",
    "model": "single-spike",
    "hidden": (800,),
    "structure": "evolve",
    "density": 0.151531,  # eps = 60
    "block_size": (1, 1),
    "epochs": 12,
    "batch_size": 100,
    "lr": 2e-3,
    "z_scale": 16.0,
    "optimizer": "adam",
    "schedule": "exponential",
    "l2": 0.0,
    "prune": "set",
    "grow": "momentum",
    "interval": 200,
    "t_end": 2 / 3,
}

PRESETS: dict[str, dict[str, Any]] = {
    "mnist-single-spike": _SINGLE,
    "cifar10-resnet19": {**_CIFAR, "data": "cifar10", "T": 2},
    "cifar100-resnet19": {**_CIFAR, "data": "cifar100", "T": 4},
    "dvs-cifar10-vggsnn": {**_DVS, "data": "dvs-cifar10", "split": "tet"},
    # the paper's network where DVS-CIFAR10 is not at hand, at a seventh of the cost of its T and size
    "dvs-fashion-vggsnn": {
        **_DVS,
        "data": "dvs-fashion-mnist",
        "T": 4,
        "size": 28,
        "augment": "none",
        "epochs": 10,
        "interval": 200,
    },
    "fashion-convnet": {**_SMALL, "data": "fashion-mnist", "epochs": 6, **_GENTLE},
    # for dozens of runs: minutes each
    "dvs-fashion-convnet": {
        **_SMALL,
        "data": "dvs-fashion-mnist",
        "channels": (16, 32, 64, 128),
        "epochs": 4,
        **_GENTLE,
    },
}
