"""What the host learns of tensors: on a GPU each reading waits for all that was launched, so they come together."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# Work that needs numbers on its way: it yields tensors of one element and is sent their values.
Asking = Generator[Sequence[Tensor], list[float], Result]


def is_remote(tensor: Tensor) -> bool:
    """Whether reading the tensor means to wait."""
    return tensor.device.type != "cpu"


def read(scalars: Sequence[Tensor]) -> list[float]:
    """The values of tensors of one element and any dtypes, in one wait (for each further device one more)."""
    if not scalars:
        return []
    device, dtypes = scalars[0].device, {scalar.dtype for scalar in scalars}
    dtype = torch.float64 if len(dtypes) > 1 else dtypes.pop()
    return torch.stack([scalar.to(device, dtype) for scalar in scalars]).tolist()


def side_by_side(works: Mapping[str, Asking[Result]]) -> dict[str, Result]:
    """What each work returns. Those on a GPU go on until all have asked, and are answered in one wait.

    Elsewhere one comes after the other, so that what they hold is not held at once.
    """
    try:
        results = _run(works)
    finally:
        for work in works.values():
            work.close()  # if one has failed, the others let go of what they hold
    return {name: results[name] for name in works}


def _run(works: Mapping[str, Asking[Result]]) -> dict[str, Result]:
    results: dict[str, Result] = {}
    answers: dict[str, list[float]] = {}
    asking = dict(works)
    while asking:
        questions: dict[str, Sequence[Tensor]] = {}
        for name, work in asking.items():
            try:
                question = work.send(answers[name]) if name in answers else next(work)
                while not any(map(is_remote, question)):
                    question = work.send(read(question))
            except StopIteration as finished:
                results[name] = finished.value
            else:
                questions[name] = question
        found = read([scalar for question in questions.values() for scalar in question])
        answers = {}
        for name, question in questions.items():
            answers[name], found = found[: len(question)], found[len(question) :]
        asking = {name: asking[name] for name in questions}
    return results


def taken(tensor: Tensor, mask: Tensor, count: int) -> Tensor:
    """``tensor[mask]`` of a mask that is known to let ``count`` pass."""
    if not is_remote(mask) or not count:
        return tensor[mask] if count else tensor[:0]
    return tensor[positions(mask, count)]


def positions(mask: Tensor, count: int) -> Tensor:
    """Of the ``count`` entries that a mask is known to let pass, int64 and ascending."""
    found = torch.nonzero_static(mask, size=count) if is_remote(mask) else mask.nonzero()
    return found.squeeze(1)


def magnitude(tensor: Tensor) -> Tensor:
    """The largest |entry|, 0 of none; NaN or infinite exactly where some entry is."""
    if tensor.numel() == 0:
        return torch.zeros((), device=tensor.device)
    return torch.linalg.vector_norm(tensor, math.inf)
