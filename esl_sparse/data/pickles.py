"""Pickles of the CIFAR archives, read without running what a pickle can name.

A pickle is a program. This reader gives it plain values and, in place of numpy, three stand-ins that only keep
their arguments; whatever else it asks for ends the reading.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: bytes, *flags: object) -> None:
        if code != b"u1":
            raise pickle.UnpicklingError(f"it holds numbers of type {code!r}, not unsigned bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which mean nothing for bytes."""


class _Array:
    """Stands for `numpy.ndarray`: the class is only named, an object is given its content."""

    content: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, by_columns, raw = state
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("it holds an array without a type")
        self.content = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_columns else "C")


def _reconstruct(*arguments: object) -> _Array:
    return _Array()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_pickle(content: bytes) -> dict[bytes, Any]:
    """The dictionary in a pickle of Python 2: bytes, numbers, lists and arrays of bytes.

    Raises:
        pickle.UnpicklingError: it holds something else, or cannot be read.
    """
    try:
        for opcode, place, _ in pickletools.genops(content):
            # The unpickler keeps a table as long as the largest place in it.
            if opcode.name in ("PUT", "LONG_BINPUT") and not (
                isinstance(place, int) and 0 <= place < len(content)
            ):
                raise pickle.UnpicklingError(f"it keeps a value at place {place}")
        values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a bad pickle fails wherever its instructions lead
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from None
    if not isinstance(values, dict):
        raise pickle.UnpicklingError(f"it holds a {type(values).__name__}, not a dictionary")
    return {key: value.content if isinstance(value, _Array) else value for key, value in values.items()}
