"""Checkpoints that are whole or not there: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_FORMAT = "esl_sparse checkpoint"
_VERSION = 1


class CheckpointError(Exception):
    """A checkpoint cannot be read; the message is one sentence for people."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state`, tensors and plain values, so that a crash leaves the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": _FORMAT, "version": _VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, to the CPU; nothing in the file is executed."""
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (EOFError, OSError, RuntimeError, ValueError, pickle.UnpicklingError):
        size = path.stat().st_size if path.is_file() else 0
        raise CheckpointError(
            f"{path} ({size:,} bytes) is truncated or is no checkpoint of esl_sparse: it cannot be unpacked."
        ) from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is a torch file, but no checkpoint of esl_sparse.")
    if state["version"] != _VERSION:
        raise CheckpointError(f"{path} has checkpoint version {state['version']}: expected {_VERSION}.")
    return state


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
