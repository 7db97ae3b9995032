"""What the ops compute, in float64 and from the data formats alone: nothing of esl_sparse is called here."""

import numpy as np
import torch

# Lanes. Lane t * Bp + b holds sample b at step t; the batch is padded to Bp, a multiple of 8.


def lane_count(T, B):
    return T * (B + 7 & ~7)


def groups(T, B):
    return (lane_count(T, B) + 63) // 64


def lane(t, b, B):
    return t * (B + 7 & ~7) + b


def to_panels(x):
    """``[T, B, C, H, W]`` -> ``[G, H, W, C, 64]``, padding lanes 0."""
    T, B, C, H, W = x.shape
    panels = np.zeros((groups(T, B), H, W, C, 64), x.dtype)
    for t in range(T):
        for b in range(B):
            g, bit = divmod(lane(t, b, B), 64)
            panels[g, ..., bit] = x[t, b].transpose(1, 2, 0)
    return panels


def from_panels(panels, T, B):
    """``[G, H, W, C, 64]`` -> ``[T, B, C, H, W]``."""
    _, H, W, C, _ = panels.shape
    x = np.zeros((T, B, C, H, W), panels.dtype)
    for t in range(T):
        for b in range(B):
            g, bit = divmod(lane(t, b, B), 64)
            x[t, b] = panels[g, ..., bit].transpose(2, 0, 1)
    return x


def pack(levels, planes):
    """Integers ``[T, B, C, H, W]`` -> words int64 ``[planes, G, H, W, C]``."""
    panels = to_panels(levels)
    words = np.zeros((planes, *panels.shape[:4]), np.uint64)
    for plane in range(planes):
        for bit in range(64):
            words[plane] |= (panels[..., bit] >> plane & 1).astype(np.uint64) << np.uint64(bit)
    return words.view(np.int64)


def padding_lanes(T, B):
    """Which entries ``[G, 64]`` are no sample's, bool."""
    used = np.zeros((groups(T, B) * 64,), bool)
    for t in range(T):
        used[lane(t, 0, B) : lane(t, 0, B) + B] = True
    return ~used.reshape(-1, 64)


# Blocks. Block id = row block * column blocks + column block.


def _block_places(ids, shape, block):
    col_blocks = -(-shape[1] // block[1])
    for p, i in enumerate(ids):
        top, left = i // col_blocks * block[0], i % col_blocks * block[1]
        yield p, slice(top, min(top + block[0], shape[0])), slice(left, min(left + block[1], shape[1]))


def dense(values, ids, shape):
    """Blocks ``[nnzb, bm, bn]`` -> ``[rows, cols]``; what overhangs is dropped."""
    weight = np.zeros(shape, values.dtype)
    for p, rows, cols in _block_places(ids, shape, values.shape[1:]):
        part = weight[rows, cols]
        part[...] = values[p, : part.shape[0], : part.shape[1]]
    return weight


def blocks(weight, ids, block):
    """``[rows, cols]`` -> blocks ``[nnzb, bm, bn]``; zeros overhang."""
    values = np.zeros((len(ids), *block), weight.dtype)
    for p, rows, cols in _block_places(ids, weight.shape, block):
        part = weight[rows, cols]
        values[p, : part.shape[0], : part.shape[1]] = part
    return values


# Convolutions, weight [out, in / groups, kh, kw]. A block belongs to one tap and one group. Column block = tap * blocks
# of a tap + block of input channels, taps in (kh, kw) order; row block = group * blocks of a group + block of output
# channels.


def _conv_places(ids, shape, groups, block):
    out, channels, kh, kw = shape
    of_group = out // groups
    row_blocks, col_blocks = -(-of_group // block[0]), -(-channels // block[1])
    for p, i in enumerate(ids):
        row, col = divmod(int(i), kh * kw * col_blocks)
        (group, r), (tap, c) = divmod(row, row_blocks), divmod(col, col_blocks)
        top, left = r * block[0], c * block[1]
        rows = slice(group * of_group + top, group * of_group + min(top + block[0], of_group))
        yield p, (rows, slice(left, min(left + block[1], channels)), *divmod(tap, kw))


def conv_block_count(shape, groups, block):
    out, channels, kh, kw = shape
    return groups * -(-(out // groups) // block[0]) * kh * kw * -(-channels // block[1])


def conv_dense(values, ids, shape, groups):
    """Blocks ``[nnzb, bm, bn]`` -> ``[out, in / groups, kh, kw]``; what overhangs is dropped."""
    weight = np.zeros(shape, values.dtype)
    for p, place in _conv_places(ids, shape, groups, values.shape[1:]):
        part = weight[place]
        part[...] = values[p, : part.shape[0], : part.shape[1]]
    return weight


def conv_blocks(weight, ids, groups, block):
    """``[out, in / groups, kh, kw]`` -> blocks ``[nnzb, bm, bn]``; zeros overhang."""
    values = np.zeros((len(ids), *block), weight.dtype)
    for p, place in _conv_places(ids, weight.shape, groups, block):
        part = weight[place]
        values[p, : part.shape[0], : part.shape[1]] = part
    return values


# Neurons. Autograd differentiates the loop; only the spike has a derivative of its own.

SURROGATES = {
    "triangle": lambda d, w: torch.clamp(1 - abs(d) / w, min=0) / w,
    "rectangle": lambda d, w: torch.where(abs(d) < w / 2, 1 / w, 0.0),
    "sigmoid": lambda d, w: torch.sigmoid(4 * d / w) * torch.sigmoid(-4 * d / w) * 4 / w,
    "atan": lambda d, w: 1 / (1 + (torch.pi * d / w) ** 2) / w,
}


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, d, derivative):
        ctx.save_for_backward(derivative(d))
        return (d > 0).to(d.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def lif(x, v, tau, v_threshold, v_reset, derivative, detach_reset):
    """Currents ``[T, ...]`` and potential ``[...]`` -> spikes and last potential."""
    spikes = []
    for current in x:
        u = tau * v + current
        s = _Spike.apply(u - v_threshold, derivative)
        spikes.append(s)
        r = s.detach() if detach_reset else s
        v = u - r * v_threshold if v_reset is None else (1 - r) * u + r * v_reset
    return (torch.stack(spikes) if spikes else x.clone()), v
