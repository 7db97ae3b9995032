"""``python -m tests.hostile.attack EVERY [TARGET ...]``: each argument in turn is replaced by each hostile value, or by
every seventh, say.

Prints the name of every call before it is made, so that the last line says what killed the process, and a line
that begins with ``BAD`` for an error that is none of those a caller can expect.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from esl_sparse.checkpoint import CheckpointError

from .targets import TARGETS
from .values import hostile

# An AttributeError is Python's answer to an object of another kind, an IndexError torch's to a dimension.
EXPECTED = (
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
    OverflowError,
    AttributeError,
    IndexError,
    CheckpointError,
)
HEADROOM = 1 << 30  # bytes that a call may ask for
SECONDS = 20  # that it may take


def tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for part in found:
            yield from tensors(part)
    elif hasattr(found, "carrier"):
        yield from tensors((found.carrier, found.words))


def call(function: Any, arguments: dict[str, Any]) -> None:
    """With backward, where there is one; the results are read."""
    found = function(**arguments)
    outputs = [t for t in tensors(found) if t.requires_grad and t.is_floating_point() and not t.is_meta]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    repr(found)


def attack(name: str, every: int) -> None:
    function, make = TARGETS[name]
    call(function, make())
    for i, (argument, good) in enumerate(make().items()):
        for what, value in islice(hostile(good), i % every, None, every):
            case = f"{name}({argument}: {what})"
            os.write(1, f"{case}\n".encode())
            arguments = make() | {argument: value}
            signal.alarm(SECONDS)
            try:
                call(function, arguments)
            except EXPECTED as error:
                if not str(error):
                    os.write(1, f"BAD {case}: {type(error).__name__} without a message\n".encode())
            except Exception as error:
                os.write(1, f"BAD {case}: {type(error).__name__}: {str(error).splitlines()[:1]}\n".encode())
            signal.alarm(0)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, used + HEADROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in sys.argv[2:] or TARGETS:
        attack(name, int(sys.argv[1]))
    os.write(1, b"done\n")


if __name__ == "__main__":
    main()
