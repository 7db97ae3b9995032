from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class TETLoss(nn.Module):
    """Temporal efficient training loss (paper Eq. 10; Deng et al. 2022).

    ``(1 - lamb) * mean over t of CE(o_t, y) + lamb * MSE(o, means)``; the paper uses ``lamb = 0``.

    Args:
        lamb: weight of the regulariser, 0 to 1.
        means: value that the regulariser pulls the outputs to.
    """

    def __init__(self, lamb: float = 0.0, means: float = 1.0) -> None:
        super().__init__()
        if not 0.0 <= lamb <= 1.0:
            raise ValueError(f"lamb: expected a number from 0 to 1, got {lamb!r}")
        self.lamb = lamb
        self.means = means

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """``outputs [T, N, classes]`` and ``target [N]`` (class index) or ``[N, classes]`` -> scalar."""
        if outputs.dim() != 3:
            raise ValueError(f"outputs: expected [T, N, classes], got shape {tuple(outputs.shape)}")
        T, N = outputs.shape[:2]
        if target.shape[:1] != (N,):
            raise ValueError(f"target: expected {N} entries, got shape {tuple(target.shape)}")
        repeated = target.expand(T, *target.shape).flatten(0, 1)
        loss = F.cross_entropy(outputs.flatten(0, 1), repeated)
        if self.lamb:
            pull = (outputs - self.means).square().mean()
            loss = (1 - self.lamb) * loss + self.lamb * pull
        return loss

    def extra_repr(self) -> str:
        return f"lamb={self.lamb}, means={self.means}"
