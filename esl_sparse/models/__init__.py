"""Spiking networks to train and to compare."""

from .mlp import SpikingMLP

__all__ = ["SpikingMLP"]
