from __future__ import annotations

from torch import Tensor, nn


class MergeTime(nn.Module):
    """Run a module that knows no time (BatchNorm, pooling, ...) on ``[T, N, ...]`` by merging T and N.

    ``MergeTime(nn.BatchNorm2d(c))`` normalises over time and batch together, as TET does.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise ValueError(f"x: expected [T, N, ...], got shape {tuple(x.shape)}")
        y = self.module(x.flatten(0, 1))
        return y.view(*x.shape[:2], *y.shape[1:])
