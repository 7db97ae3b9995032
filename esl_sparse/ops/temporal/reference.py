"""Definition of temporal: when neurons that integrate without leak fire for the first time (paper, Eq. 3 and 5).

A spike at time t adds w exp(-(t' - t)) to the current at all t' > t; in z = exp(t) the potential is, with the sum over
the spikes before z,

    V(z) = sum_i w_i (1 - z_i / z)

and a neuron fires when V passes 1: at z = sum w z / (sum w - 1), where the sums are over its causal set, the first
inputs in the order of their times for which this z comes before the next input.

Builds the dense weight and sorts: for tests, for float64 and for installations without kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...topology import BlockTopology


def forward(z: Tensor, values: Tensor, topology: BlockTopology) -> tuple[Tensor, Tensor]:
    """``z [N, cols]`` -> ``z_out [N, rows]``, infinity where a neuron never fires, and the sum of the causal weights
    - 1, 0 there."""
    weight = topology.to_dense(values).double()  # what counts is how far a sum is from 1
    z_out = z.new_full((z.shape[0], weight.shape[0]), torch.inf)
    slope = torch.zeros_like(z_out)
    for n in range(z.shape[0] if z.shape[1] else 0):  # a sample at a time: each has an order of its own
        time, order = z[n].sort(stable=True)
        spikes = time.isfinite()
        w = weight[:, order] * spikes
        weights, moments = w.cumsum(1), (w * time.where(spikes, time.new_zeros(()))).cumsum(1)
        solved = moments / (weights - 1)
        following = torch.cat(
            [time[1:], time.new_full((1,), torch.inf)]
        )  # of any input: others have no weight
        first = ((weights > 1) & (solved < following)).int()
        at = first.argmax(1, keepdim=True)
        fires = first.any(1)
        # After the latest causal input, so that backward can tell causal inputs by their times.
        after = torch.nextafter(time[at[:, 0]], time.new_tensor(torch.inf))
        solution = solved.gather(1, at)[:, 0].to(z.dtype).maximum(after)
        z_out[n] = torch.where(fires, solution, z_out[n])
        slope[n] = torch.where(fires, (weights.gather(1, at)[:, 0] - 1).to(z.dtype), slope[n])
    return z_out, slope


def backward(
    grad: Tensor, z: Tensor, z_out: Tensor, slope: Tensor, values: Tensor, topology: BlockTopology
) -> tuple[Tensor, Tensor]:
    """Gradients of z and values: ``(z - z_out) / slope`` by a weight, ``w / slope`` by an input, in the causal set."""
    weight = topology.to_dense(values).to(z.dtype)
    g = torch.where(slope > 0, grad / slope, torch.zeros_like(grad))
    grad_z, grad_weight = torch.zeros_like(z), torch.zeros_like(weight)
    for n in range(z.shape[0]):
        causal = (z[n] < z_out[n][:, None]) & (slope[n] > 0)[:, None]
        term = torch.where(causal, g[n][:, None], torch.zeros_like(weight))
        grad_z[n] = (term * weight).sum(0)
        distance = torch.where(causal, z[n] - z_out[n][:, None], torch.zeros_like(weight))
        grad_weight += term * distance
    return grad_z, topology.gather_dense(grad_weight)
