"""Op ``sample``: different numbers below a bound, drawn by chance.

Number i is what a permutation of ``[0, total)``, chosen by a seed, makes of i: a Feistel network whose two sides need
not be powers of two (Black and Rogaway 2002). So nothing is remembered to keep the numbers apart, the GPU is not waited
for, and CPU and GPU draw the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _native
from ._backends import choose
from ._cuda import launch

MOST = 1 << 62
_ROUNDS = 12
_LOW = 0xFFFFFFFF


def distinct(
    total: int, count: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """``count`` different integers of ``[0, total)``, each set of so many equally likely; sorted int64 on ``device``.

    Takes one number of the generator, by default torch's own of the CPU, and none for no numbers.

    Raises:
        ValueError: ``total`` is not in 0 .. 2^62, or ``count`` not in 0 .. ``total``.
    """
    if not 0 <= count <= total <= MOST:
        raise ValueError(
            f"count: expected a number from 0 to total, and total up to 2^62, got {count} of {total}"
        )
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    source = "cpu" if generator is None else generator.device
    seed = int(torch.randint(MOST, (), generator=generator, device=source))
    drawn = sample(total, count, seed, device)
    if total <= 1 << 31:  # half the bytes to sort
        return drawn.int().sort().values.long()
    return drawn.sort().values


def sample(total: int, count: int, seed: int, device: torch.device) -> Tensor:
    """The first ``count`` numbers of the permutation of ``[0, total)`` with this seed; int64, in its order."""
    backend = choose("sample", device.type, torch.float32)
    if backend == "reference":
        return _reference(total, count, seed, device)
    out = torch.empty(count, dtype=torch.int64, device=device)
    if backend == "native":
        _native.lib().sample(total, count, seed, out.data_ptr(), torch.get_num_threads())
    else:
        launch("sample", device, total, count, seed, out.data_ptr())
    return out


def _reference(total: int, count: int, seed: int, device: torch.device) -> Tensor:
    left = math.isqrt(max(total - 1, 0)) + 1
    right = -(-total // left)
    keys = _round_keys(seed)
    numbers = torch.arange(count, device=device)
    walking = torch.arange(count, device=device)
    while walking.numel():
        a, b = numbers[walking] // right, numbers[walking] % right
        for k in range(0, _ROUNDS, 2):
            a = (a + (_mix(b ^ keys[k]) * left >> 32)) % left
            b = (b + (_mix(a ^ keys[k + 1]) * right >> 32)) % right
        numbers[walking] = a * right + b
        walking = walking[numbers[walking] >= total]
    return numbers


def _round_keys(seed: int) -> list[int]:
    """Upper halves of splitmix64's numbers (Steele et al. 2014)."""
    keys, all_bits = [], (1 << 64) - 1
    for _ in range(_ROUNDS):
        seed = (seed + 0x9E3779B97F4A7C15) & all_bits
        z = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 & all_bits
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & all_bits
        keys.append((z ^ (z >> 31)) >> 32)
    return keys


def _mix(h: Tensor) -> Tensor:
    """MurmurHash3's finaliser, of 32 bits; int64 products keep the low bits where they overflow."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B & _LOW
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & _LOW
    return h ^ (h >> 16)
