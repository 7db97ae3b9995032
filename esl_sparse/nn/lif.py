from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops._library import refuse_script
from ..ops.lif import SURROGATES, lif
from .silence import Silence


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons (paper Eq. 7-8).

    ``u <- tau * u + x``; a spike where ``u > v_threshold``; then reset.

    Args:
        tau: decay factor of one step, in (0, 1]. SpikingJelly's ``tau=2.0`` (``decay_input=False``) is 0.5 here;
            snnTorch's ``beta`` is the same.
        v_threshold: firing threshold.
        v_reset: potential after a spike, also the initial one; None for a soft reset (subtract the threshold).
        surrogate: ``"triangle"``, ``"rectangle"``, ``"sigmoid"``, ``"atan"``, or a function of ``u - v_threshold``.
        width: width of a named surrogate.
        detach_reset: keep the gradient out of the reset.
        learn_tau: make the decay a parameter, ``tau = sigmoid(tau_logit)``, shared by the layer.
        time_dim: which dimension of x is time (``step_mode="m"``).
        step_mode: ``"m"``: x holds all T steps and every call starts anew; ``"s"``: x is one step and the potential
            is kept in ``self.v`` until ``esl_sparse.reset``.

    In training, a layer that has not fired in 100 calls warns once, by its name in the model.
    """

    v: Tensor | None

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        tau: float = 0.5,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: str | Callable[[Tensor], Tensor] = "triangle",
        width: float = 1.0,
        detach_reset: bool = False,
        learn_tau: bool = False,
        time_dim: int = 0,
        step_mode: str = "m",
    ) -> None:
        super().__init__()
        if not 0.0 < tau <= 1.0:
            raise ValueError(
                f"tau: expected a decay factor in (0, 1], got {tau!r} "
                "(SpikingJelly's tau=2.0 is 0.5 here, snnTorch's beta is the same)"
            )
        if learn_tau and tau == 1.0:
            raise ValueError("tau: a learnable decay must start below 1, got 1.0")
        if isinstance(surrogate, str) and surrogate not in SURROGATES:
            raise ValueError(
                f"surrogate: expected a callable or one of {sorted(SURROGATES)}, got {surrogate!r}"
            )
        if not width > 0:
            raise ValueError(f"width: expected a positive number, got {width!r}")
        if step_mode not in ("m", "s"):
            raise ValueError(f"step_mode: expected 'm' (all steps) or 's' (one step), got {step_mode!r}")
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.surrogate = surrogate
        self.width = width
        self.detach_reset = detach_reset
        self.time_dim = time_dim
        self.step_mode = step_mode
        self._tau = tau
        self.tau_logit = nn.Parameter(torch.tensor(math.log(tau / (1 - tau)))) if learn_tau else None
        self.v = None
        self.silence = Silence()

    @property
    def tau(self) -> float | Tensor:
        """The decay factor; a tensor when it is learned."""
        return self._tau if self.tau_logit is None else self.tau_logit.sigmoid()

    def forward(self, x: Tensor, v: Tensor | None = None, return_v: bool = False):
        """Spikes of x's shape; with ``return_v`` also the potential after the last step.

        ``v`` is the potential to start from (x without its time dimension); it overrides a kept state.
        """
        single = self.step_mode == "s"
        if v is None and single:
            v = self.v
        steps = x.unsqueeze(0) if single else x.movedim(self.time_dim, 0)
        spikes, last = lif(
            steps,
            v,
            self.tau,
            self.v_threshold,
            self.v_reset,
            self.surrogate,
            self.width,
            self.detach_reset,
            want_v=single or return_v,
        )
        if self.training:
            self.silence.hear(self, spikes)
        if single:
            self.v = last
        spikes = spikes.squeeze(0) if single else spikes.movedim(0, self.time_dim)
        return (spikes, last) if return_v else spikes

    def reset(self) -> None:
        """Forget the kept potential."""
        self.v = None

    def extra_repr(self) -> str:
        tau = self._tau if self.tau_logit is None else "learned"
        surrogate = (
            self.surrogate
            if isinstance(self.surrogate, str)
            else getattr(self.surrogate, "__name__", "custom")
        )
        return (
            f"tau={tau}, v_threshold={self.v_threshold}, v_reset={self.v_reset}, surrogate={surrogate}, "
            f"width={self.width}, step_mode={self.step_mode!r}"
        )


def reset(model: nn.Module) -> None:
    """Forget the kept potential of every LIF layer of ``model`` (call it between samples in step mode "s")."""
    for module in model.modules():
        if isinstance(module, LIF):
            module.reset()
