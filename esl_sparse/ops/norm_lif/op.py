"""Op ``norm_lif``: normalise currents, add a second current and a residual, leaky integrate and fire, spikes as bits.

Raw ops: ``norm_lif``, ``norm_lif_backward_`` and ``panel_stats``. There is no Function here: a fused block has its own,
which recomputes the currents and calls these, ``norm_lif_op(*Forward(...))``. Backward writes the gradient of a current
over the current, so that it needs no panel of its own. Current panels ``[G, H, W, C, 64]`` hold
anything in their padding lanes; gradient panels hold zero there, those that are read as well as those that are made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._backends import choose
from ...packed import LANES, Lanes
from .._library import define, empty
from ..lif.surrogate import SURROGATES
from ..pack import reference as pack_reference
from . import cuda, native, reference, triton
from .reference import Norm, affine

_KERNELS = {"native": native, "triton": triton, "cuda": cuda, "reference": reference}

GRADIENTS = ("current", "gamma", "beta", "current2", "gamma2", "beta2", "residual", "tau")
"""What ``norm_lif_backward_`` can find; bit i of ``needs`` asks for the i-th. Those of the currents are written over
them. That of the residual is the gradient of its values."""
RETURNED = tuple(name for name in GRADIENTS if not name.startswith("current"))
"""What it returns, in order."""


class Forward(NamedTuple):
    """Arguments of ``norm_lif``, which returns the spikes: words int64 ``[1, G, H, W, C]``.

    Attributes:
        current: panel ``[G, H, W, C, 64]``, float32 (float64 for the reference); so are all other floats. Triton takes
            float16 and bfloat16 panels too, all of one dtype; vectors, tau and what is computed stay float32.
        tau: decay factor, 0-dim. T: time steps. B: samples.
        v_threshold: a neuron fires when its potential exceeds this.
        v_reset: potential after a spike and before the first step; None: soft reset, and 0 before the first step.
        a, b: ``[C]``; the neurons integrate ``a * current + b``. None: the current as it is.
        current2, a2, b2: a second current that is added, with its own norm.
        residual: words int64 ``[planes, G, H, W, C]``, of which ``residual_scale * sum(2**p bit_p)`` is added.
    """

    current: Tensor
    tau: Tensor
    T: int
    B: int
    v_threshold: float
    v_reset: float | None
    a: Tensor | None = None
    b: Tensor | None = None
    current2: Tensor | None = None
    a2: Tensor | None = None
    b2: Tensor | None = None
    residual: Tensor | None = None
    residual_scale: float = 1.0


class Backward(NamedTuple):
    """Arguments of ``norm_lif_backward_``, which returns ``RETURNED``, each one empty that ``needs`` leaves out.

    Attributes:
        grad: of the spikes, ``[G, H, W, C, 64]``; with ``pool > 1``, of the spikes after an average pool of
            ``pool x pool`` without overlap, ``[G, H // pool, W // pool, C, 64]``.
        words: the spikes that forward returned; they are taken from here, never by thresholding again.
        current, current2: bit for bit those of forward, as are tau, the residual and what ``affine`` makes of
            the norms. Each is overwritten with its gradient if ``needs`` asks for that.
        mean, rstd: ``[C]`` of the norm, or None: no norm. gamma, beta: ``[C]``, None: 1 and 0.
        batch_stats: mean and rstd are those of this very current over its ``T * B * H * W`` values (biased), and
            gradients flow through them; otherwise they are constants.
        surrogate, width, detach_reset: as in lif.
        needs: bit set over ``GRADIENTS``.
    """

    grad: Tensor
    words: Tensor
    current: Tensor
    tau: Tensor
    T: int
    B: int
    v_threshold: float
    v_reset: float | None
    needs: int
    mean: Tensor | None = None
    rstd: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    batch_stats: bool = False
    current2: Tensor | None = None
    mean2: Tensor | None = None
    rstd2: Tensor | None = None
    gamma2: Tensor | None = None
    beta2: Tensor | None = None
    batch_stats2: bool = False
    residual: Tensor | None = None
    residual_scale: float = 1.0
    pool: int = 1
    surrogate: str = "triangle"
    width: float = 1.0
    detach_reset: bool = False

    @property
    def norms(self) -> tuple[Norm, Norm]:
        return (
            Norm(self.mean, self.rstd, self.gamma, self.beta, self.batch_stats),
            Norm(self.mean2, self.rstd2, self.gamma2, self.beta2, self.batch_stats2),
        )


def _expect(name: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor, dtype=None) -> None:
    if tensor is None:
        return
    dtype = dtype or like.dtype
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected on current's device {like.device}, got {tensor.device}")


def _backend(current: Tensor) -> str:
    return choose("norm_lif", current.device.type, current.dtype)


def vector_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of vectors and tau beside panels of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _expect_panel(current: Tensor, T: int, B: int) -> None:
    if current.dtype not in (torch.float32, torch.float64) and _backend(current) != "triton":
        raise TypeError(
            "current: expected float32, float64 for the reference, or float16 or bfloat16 for Triton, got "
            f"{current.dtype}"
        )
    groups = Lanes(T, B).groups
    if current.dim() != 5 or current.shape[0] != groups or current.shape[4] != LANES:
        raise ValueError(f"current: expected shape [{groups}, H, W, C, {LANES}], got {tuple(current.shape)}")


def _expect_inputs(call: Forward | Backward, vectors: tuple[str, ...]) -> None:
    current, residual = call.current, call.residual
    _expect_panel(current, call.T, call.B)
    _expect("current2", call.current2, current.shape, current)
    if residual is not None:
        _expect("residual", residual, (residual.shape[0], *current.shape[:4]), current, torch.int64)
    if call.tau.dim():
        raise ValueError(f"tau: expected a 0-dim tensor, got shape {tuple(call.tau.shape)}")
    for name in vectors:
        for end in ("", "2"):
            vector = getattr(call, name + end)
            _expect(name + end, vector, (current.shape[3],), current, vector_dtype(current.dtype))
    x, y = vectors[:2]
    for end in ("", "2"):
        if (getattr(call, x + end) is None) != (getattr(call, y + end) is None):
            raise ValueError(f"{x}{end} and {y}{end}: expected both or neither")


def _expect_backward(call: Backward) -> None:
    _expect_inputs(call, ("mean", "rstd", "gamma", "beta"))
    G, H, W, C, _ = call.current.shape
    if call.pool < 1:
        raise ValueError(f"pool: expected at least 1, got {call.pool}")
    _expect("grad", call.grad, (G, H // call.pool, W // call.pool, C, LANES), call.current)
    _expect("words", call.words, (1, G, H, W, C), call.current, torch.int64)
    for norm, end in zip(call.norms, ("", "2"), strict=True):
        if norm.batch_stats and norm.mean is None:
            raise ValueError(f"batch_stats{end}: expected False without mean{end} and rstd{end}")
    sources = (
        call.current,
        call.mean,
        call.mean,
        call.current2,
        call.mean2,
        call.mean2,
        call.residual,
        call.tau,
    )
    for i, source in enumerate(sources):
        if call.needs >> i & 1 and source is None:
            raise ValueError(f"needs: asks for the gradient of {GRADIENTS[i]}, but there is no such input")
    if call.surrogate not in SURROGATES:
        raise ValueError(f"surrogate: expected one of {sorted(SURROGATES)}, got {call.surrogate!r}")
    if not call.width > 0:
        raise ValueError(f"width: expected a positive number, got {call.width!r}")


def _forward(*args) -> Tensor:
    call = Forward(*args)
    _expect_inputs(call, ("a", "b"))
    if (backend := _backend(call.current)) != "reference":
        return _KERNELS[backend].forward(call)
    currents = [(call.current, call.a, call.b), (call.current2, call.a2, call.b2)]
    x = reference.total(currents, call.residual, call.residual_scale, call.T, call.B)
    return reference.forward(x, call.tau, call.v_threshold, call.v_reset)


def _forward_fake(current, *args) -> Tensor:
    return current.new_empty((1, *current.shape[:4]), dtype=torch.int64)


def _backward(*args) -> tuple[Tensor, ...]:
    call = Backward(*args)
    _expect_backward(call)
    if (backend := _backend(call.current)) != "reference":
        return _KERNELS[backend].backward(call)
    T, B, pool, norms = call.T, call.B, call.pool, call.norms
    _, H, W, _, _ = call.current.shape
    panels = (call.current, call.current2)
    currents = [(panel, *affine(*norm[:4])) for panel, norm in zip(panels, norms, strict=True)]
    x = reference.total(currents, call.residual, call.residual_scale, T, B)
    surrogate, width = SURROGATES[call.surrogate], call.width
    g, grad_tau = reference.backward_through_time(
        reference.spread(reference.values(call.grad, T, B), pool, H, W),
        pack_reference.unpack(call.words, T, B, 1.0, x.dtype).view_as(x),
        x,
        call.tau,
        call.v_threshold,
        call.v_reset,
        lambda d: surrogate(d, width),
        call.detach_reset,
    )
    found = {"residual": pack_reference.to_panels(g), "tau": grad_tau}
    for panel, norm, end in zip(panels, norms, ("", "2"), strict=True):
        if panel is None:
            continue
        of_norm = ("current" + end, "gamma" + end, "beta" + end)
        found |= zip(of_norm, reference.backward_norm(g, panel, norm, T, B), strict=True)
    for i, name in enumerate(GRADIENTS):
        if name not in RETURNED and call.needs >> i & 1:
            getattr(call, name).copy_(found[name])
    return tuple(found[name] if asked else empty(grad_tau) for name, asked in _returned(call.needs))


def _backward_fake(*args) -> tuple[Tensor, ...]:
    call = Backward(*args)
    shapes = {"residual": call.current.shape, "tau": ()}
    return tuple(
        (call.current if name == "residual" else call.tau).new_empty(
            shapes.get(name, call.current.shape[3:4]) if asked else (0,)
        )
        for name, asked in _returned(call.needs)
    )


def _returned(needs: int) -> list[tuple[str, int]]:
    return [(name, needs >> i & 1) for i, name in enumerate(GRADIENTS) if name in RETURNED]


def _panel_stats(current: Tensor, T: int, B: int) -> Tensor:
    _expect_panel(current, T, B)
    return _KERNELS[_backend(current)].panel_stats(current, T, B)


def _panel_stats_fake(current: Tensor, T: int, B: int) -> Tensor:
    return current.new_empty((2, current.shape[3]), dtype=torch.float64)


_NEURON = "Tensor tau, SymInt T, SymInt B, float v_threshold, float? v_reset"
norm_lif_op = define(
    f"norm_lif(Tensor current, {_NEURON}, Tensor? a, Tensor? b, Tensor? current2, Tensor? a2, Tensor? b2,"
    " Tensor? residual, float residual_scale) -> Tensor",
    _forward,
    _forward_fake,
)
norm_lif_backward_op = define(
    f"norm_lif_backward_(Tensor grad, Tensor words, Tensor(a!) current, {_NEURON}, SymInt needs,"
    " Tensor? mean, Tensor? rstd, Tensor? gamma, Tensor? beta, bool batch_stats,"
    " Tensor(b!)? current2, Tensor? mean2, Tensor? rstd2, Tensor? gamma2, Tensor? beta2, bool batch_stats2,"
    " Tensor? residual, float residual_scale, SymInt pool, str surrogate, float width, bool detach_reset)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
panel_stats_op = define(
    "panel_stats(Tensor current, SymInt T, SymInt B) -> Tensor", _panel_stats, _panel_stats_fake
)


def panel_stats(current: Tensor, T: int, B: int) -> Tensor:
    """Mean and biased variance of each channel of a current panel, over its ``T * B * H * W`` values.

    Args:
        current: ``[G, H, W, C, 64]`` of a dtype that ``norm_lif`` takes. T: time steps. B: samples.

    Returns:
        float64 ``[2, C]``: mean, biased variance; NaN where there is no value or one is not finite. Independent of the
        number of threads, and precise however large the mean is.
    """
    return panel_stats_op(current, T, B)
