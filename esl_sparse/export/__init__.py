"""Trained networks for other tools."""

from .nir import to_nir

__all__ = ["to_nir"]
