"""Triton kernels of lif. Imported at the first launch: Triton is optional.

Memory-bound, so bytes count. Forward reads x and writes the spikes, as much as a copy. Backward reads x and the spikes'
gradient and writes that of x, three halves of it: potentials are found again from x and stay in registers until time
runs back. Registers hold STEPS steps. A longer run goes in chunks, last one first: a pass before leaves the potential
that each starts with, so that x is read twice but for the last chunk, and 8 bytes per neuron and chunk move besides.

A thread holds 16 bytes of each row, and what it loads of a chunk is under way before the chunk's first store. Products
and sums are rounded separately (launched without fusion), so spikes equal those of the plain torch loop.
"""

# Tuples grow here.
# mypy: disable-error-code="assignment"
from __future__ import annotations

import triton
import triton.language as tl

# A last, shorter run does not compile again.
_jit = triton.jit(do_not_specialize=["T"])


@triton.jit
def where(condition, mask):
    """The mask if a scalar condition holds, else none; `mask & condition` would be no mask to the interpreter."""
    return tl.where(condition, mask, False)


@triton.jit
def at_step(t, T, mask, WHOLE: tl.constexpr):
    """The mask at steps that there are; WHOLE: all, for chunks divide the run."""
    return mask if WHOLE else where(t < T, mask)


@triton.jit
def after_reset(u, spike, v_threshold, v_reset, HARD: tl.constexpr):
    return tl.where(spike, v_reset, u) if HARD else u - tl.where(spike, v_threshold, 0.0)


@triton.jit
def derivative(d, width, SURROGATE: tl.constexpr):
    """Of the spike, at distance d of the potential from the threshold. NaN stays NaN."""
    inverse = 1.0 / width
    if SURROGATE == "triangle":
        h = 1.0 - tl.abs(d) * inverse
        s = tl.where(h < 0.0, 0.0, h) * inverse
    elif SURROGATE == "rectangle":
        s = tl.where(tl.abs(d) < width * 0.5, inverse, 0.0)
    elif SURROGATE == "sigmoid":
        e = tl.exp(-4.0 * inverse * tl.abs(d))
        s = 4.0 * inverse * (e / ((1.0 + e) * (1.0 + e)))
    else:
        z = 3.141592653589793 * inverse * d
        s = inverse / (1.0 + z * z)
    return s


@triton.jit
def grad_of_input(
    grad,
    grad_v,
    u,
    spike,
    v_threshold,
    v_reset,
    width,
    HARD: tl.constexpr,
    DETACH: tl.constexpr,
    SURROGATE: tl.constexpr,
):
    """Of what a step integrates, from the gradients of its spike and of the potential that it leaves."""
    if not DETACH:
        grad += grad_v * (v_reset - u) if HARD else -v_threshold * grad_v
    through = tl.where(spike, 0.0, grad_v) if HARD else grad_v
    return grad * derivative(u - v_threshold, width, SURROGATE) + through


@triton.jit
def _first(v, n, inside, SHARED: tl.constexpr, BLOCK: tl.constexpr):
    """Potentials before the first step; SHARED: one for all neurons."""
    shared = tl.zeros((BLOCK,), tl.float32)
    return shared + tl.load(v) if SHARED else tl.load(v + n, mask=inside, other=0.0)


@triton.jit
def _chunk(pointer, begin, T, stride, inside, WHOLE: tl.constexpr, STEPS: tl.constexpr):
    """STEPS steps of a row's piece, from step `begin` on; zeros beyond the last."""
    steps = ()
    for j in tl.static_range(STEPS):
        t = begin + j
        steps += (tl.load(pointer + t.to(tl.int64) * stride, mask=at_step(t, T, inside, WHOLE), other=0.0),)
    return steps


@_jit
def forward(
    x,  # [T, M], steps `stride` apart
    v,  # [M], or one number
    tau,
    spikes,  # [T, M]
    last,  # [M]
    T,
    M,
    stride,
    v_threshold,
    v_reset,
    HARD: tl.constexpr,
    SHARED: tl.constexpr,
    WANT_V: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < M
    decay = tl.load(tau)
    potential = _first(v, n, inside, SHARED, BLOCK)
    for begin in range(0, T, STEPS):
        currents = _chunk(x + n, begin, T, stride, inside, WHOLE, STEPS)
        for j in tl.static_range(STEPS):
            t = begin + j
            u = decay * potential + currents[j].to(tl.float32)
            spike = u > v_threshold
            tl.store(spikes + t.to(tl.int64) * M + n, spike.to(tl.float32), mask=at_step(t, T, inside, WHOLE))
            after = after_reset(u, spike, v_threshold, v_reset, HARD)
            potential = after if WHOLE else tl.where(t < T, after, potential)
    if WANT_V:
        tl.store(last + n, potential, mask=inside)


@_jit
def backward(
    grad_s,  # [T, M], steps `grad_stride` apart
    grad_v,  # [M]
    x,  # [T, M], steps `stride` apart
    v,  # [M], or one number
    tau,
    grad_x,  # [T, M]
    grad_first,  # [M]
    grad_tau,  # [programs]
    starts,  # [chunks - 1, M]: potentials before each chunk but the last
    T,
    M,
    stride,
    grad_stride,
    v_threshold,
    v_reset,
    width,
    HARD: tl.constexpr,
    DETACH: tl.constexpr,
    SURROGATE: tl.constexpr,
    SHARED: tl.constexpr,
    GRAD_V: tl.constexpr,
    NEED_V: tl.constexpr,
    NEED_TAU: tl.constexpr,
    CHUNKED: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < M
    decay = tl.load(tau)
    potential = _first(v, n, inside, SHARED, BLOCK)
    chunks = tl.cdiv(T, STEPS)
    if CHUNKED:
        for early in range(0, (chunks - 1) * STEPS, STEPS):
            chunk = early // STEPS
            tl.store(starts + chunk.to(tl.int64) * M + n, potential, mask=inside)
            currents = _chunk(x + n, early, T, stride, inside, WHOLE, STEPS)
            for j in tl.static_range(STEPS):
                u = decay * potential + currents[j].to(tl.float32)
                potential = after_reset(u, u > v_threshold, v_threshold, v_reset, HARD)
        tl.debug_barrier()  # another thread may read what this one left
    carried = tl.zeros((BLOCK,), tl.float32)
    if GRAD_V:
        carried = tl.load(grad_v + n, mask=inside, other=0.0)
    of_tau = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, chunks):
        chunk = chunks - 1 - i
        begin = chunk * STEPS
        if CHUNKED:
            before = starts + chunk.to(tl.int64) * M + n
            potential = tl.load(before, mask=where(i > 0, inside), other=potential)
        start = potential
        currents = _chunk(x + n, begin, T, stride, inside, WHOLE, STEPS)
        grads = _chunk(grad_s + n, begin, T, grad_stride, inside, WHOLE, STEPS)
        us = ()
        for j in tl.static_range(STEPS):
            u = decay * potential + currents[j].to(tl.float32)
            us += (u,)
            potential = after_reset(u, u > v_threshold, v_threshold, v_reset, HARD)
        for j in tl.static_range(STEPS - 1, -1, -1):
            t = begin + j
            g = grad_of_input(
                grads[j].to(tl.float32),
                carried,
                us[j],
                us[j] > v_threshold,
                v_threshold,
                v_reset,
                width,
                HARD,
                DETACH,
                SURROGATE,
            )
            tl.store(grad_x + t.to(tl.int64) * M + n, g, mask=at_step(t, T, inside, WHOLE))
            carried = decay * g if WHOLE else tl.where(t < T, decay * g, carried)
            if NEED_TAU:
                if j == 0:
                    v_before = start
                else:
                    v_before = after_reset(us[j - 1], us[j - 1] > v_threshold, v_threshold, v_reset, HARD)
                of_tau += tl.where(at_step(t, T, inside, WHOLE), g * v_before, 0.0)
    if NEED_V:
        tl.store(grad_first + n, carried, mask=inside)
    if NEED_TAU:
        tl.store(grad_tau + tl.program_id(0), tl.sum(of_tau, axis=0))
