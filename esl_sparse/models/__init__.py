"""Spiking networks to train and to compare. All are dense; ``esl_sparse.sparsify`` makes them block-sparse."""

from .mlp import SpikingMLP
from .resnet19 import SpikingResNet, resnet19
from .single_spike import SingleSpikeMLP
from .vggsnn import SpikingCNN, convnet, vggsnn

__all__ = ["SingleSpikeMLP", "SpikingCNN", "SpikingMLP", "SpikingResNet", "convnet", "resnet19", "vggsnn"]
