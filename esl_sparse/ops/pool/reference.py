"""Definition of pool: torch's own pooling of the levels that words hold, and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...packed import LANES
from ..pack import reference as pack
from .window import Pair, Window


def _images(panels: Tensor) -> Tensor:
    """Panels ``[G, H, W, C, 64]`` as images ``[G * 64, C, H, W]``, one for each lane."""
    return panels.permute(0, 4, 3, 1, 2).flatten(0, 1)


def _panels(images: Tensor) -> Tensor:
    return images.unflatten(0, (-1, LANES)).permute(0, 3, 4, 2, 1).contiguous()


def _levels(words: Tensor) -> Tensor:
    """Words ``[planes, G, H, W, C]`` as images of their integers, float64."""
    lane, plane = (torch.arange(n, device=words.device) for n in (LANES, words.shape[0]))
    bits = words[..., None] >> lane & 1
    return _images((bits << plane.view(-1, 1, 1, 1, 1, 1)).sum(0).double())


def _words(levels: Tensor, planes: int) -> Tensor:
    panels = _panels(levels).long()
    lane = torch.arange(LANES, device=levels.device)
    return torch.stack([((panels >> p & 1) << lane).sum(-1) for p in range(planes)])


def avg_pool(words: Tensor, sum_planes: int, window: Window) -> Tensor:
    """Sums over windows, ``[sum_planes, G, H', W', C]``; pixels outside the map count as 0."""
    kernel, stride, padding, _, ceil_mode = window
    sums = F.avg_pool2d(_levels(words), kernel, stride, padding, ceil_mode, divisor_override=1)
    return _words(sums, sum_planes)


def avg_pool_backward(grad: Tensor, size: Pair, divisor: int, window: Window) -> Tensor:
    """Panels ``[G, H, W, C, 64]``: each pixel's sum of gradients of the windows that hold it, over the divisor."""
    kernel, stride, padding, _, ceil_mode = window
    grad = _images(grad)
    x = grad.new_empty(1).expand(*grad.shape[:2], *size)  # only its shape is used
    return _panels(
        torch.ops.aten.avg_pool2d_backward(grad, x, kernel, stride, padding, ceil_mode, True, divisor)
    )


def max_pool(words: Tensor, window: Window) -> Tensor:
    """Whether any pixel of a window spikes, ``[1, G, H', W', C]``."""
    return _words(F.max_pool2d(_levels(words), *window), 1)


def max_pool_backward(grad: Tensor, words: Tensor, window: Window) -> Tensor:
    """A window's gradient goes to its first maximum in row-major order."""
    spikes = _levels(words).to(grad.dtype)
    _, indices = F.max_pool2d(spikes, *window, return_indices=True)
    return _panels(torch.ops.aten.max_pool2d_with_indices_backward(_images(grad), spikes, *window, indices))


def global_avg_pool(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    """Mean over all pixels, ``[T, B, C]``."""
    means = _panels(_levels(words).mean((2, 3), keepdim=True) * scale)
    return pack.from_panels(means, T, B).to(dtype)
