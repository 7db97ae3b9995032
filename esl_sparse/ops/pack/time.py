"""One step's panels shown at every step, and back: what a static image needs whose current is computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from ...packed import LANES, Lanes


def repeat_steps(panels: Tensor, T: int, B: int) -> Tensor:
    """Panels of ``B`` lanes ``[G1, H, W, C, 64]`` at each of T steps, ``[G, H, W, C, 64]``; padding lanes undefined."""
    lanes = Lanes(T, B)
    if lanes.padded % LANES == 0:
        return panels.repeat(T, 1, 1, 1, 1)
    if LANES % lanes.padded == 0:  # several steps share a group
        group = panels[..., : lanes.padded].repeat(1, 1, 1, 1, LANES // lanes.padded)
        return group.expand(lanes.groups, -1, -1, -1, -1).contiguous()
    lane = torch.arange(lanes.groups * LANES, device=panels.device) % lanes.padded
    return (
        panels[lane // LANES, ..., lane % LANES]
        .unflatten(0, (lanes.groups, LANES))
        .movedim(1, -1)
        .contiguous()
    )


def sum_steps(panels: Tensor, T: int, B: int) -> Tensor:
    """The adjoint of ``repeat_steps``, of gradient panels, whose padding lanes are zero."""
    lanes, one = Lanes(T, B), Lanes(1, B)
    if lanes.padded % LANES == 0:
        return panels.unflatten(0, (T, -1)).sum(0)
    if LANES % lanes.padded == 0:
        total = panels.sum(0, keepdim=True).unflatten(-1, (-1, lanes.padded)).sum(-2)
        return torch.nn.functional.pad(total, (0, LANES - lanes.padded))
    _, H, W, C, _ = panels.shape
    flat = panels.movedim(-1, 1).flatten(0, 1)[: lanes.total]  # [lanes, H, W, C]
    total = flat.unflatten(0, (T, lanes.padded)).sum(0)
    padded = total.new_zeros(one.groups * LANES, H, W, C)
    padded[: lanes.padded] = total
    return padded.unflatten(0, (one.groups, LANES)).movedim(1, -1).contiguous()
