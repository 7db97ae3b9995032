"""Checkpoints that are whole or not there: written beside their place, synced, then renamed into it.

They are plain torch files of tensors and plain values: ``torch.load(path, weights_only=True)`` reads them too.
"""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .rewire.evolver import Evolver
from .rewire.layers import is_sparse

_FORMAT = "esl_sparse checkpoint"
_VERSION = 1
_ABANDONED = 3600  # seconds


class CheckpointError(Exception):
    """A checkpoint cannot be read or does not fit; the message is one sentence for people."""


class Stateful(Protocol):
    """A part of a training run: model, optimiser, schedule, rewirer, or anything else with a state."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


# Files


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state`, tensors and plain values, so that a crash leaves the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            _write({"format": _FORMAT, "version": _VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    _remove_abandoned(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, to the CPU; nothing in the file is executed.

    Raises:
        CheckpointError: there is no such file, or it is truncated, damaged or no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint.")
    try:
        with path.open("rb") as file:
            _check_sums(file)  # torch does not: a flipped bit would become a weight
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is no checkpoint of esl_sparse: it holds more than tensors and plain values."
        ) from None
    except Exception:  # what unpacking damaged files raises has no common base
        size = path.stat().st_size if path.is_file() else 0
        raise CheckpointError(
            f"{path} ({size:,} bytes) is truncated or is no checkpoint of esl_sparse: it cannot be unpacked."
        ) from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is a torch file, but no checkpoint of esl_sparse.")
    if state.get("version") != _VERSION:
        raise CheckpointError(f"{path} has checkpoint version {state.get('version')!r}: expected {_VERSION}.")
    return state


def _write(state: dict[str, Any], file: Any) -> None:
    """With a checksum for each record, whatever the program has chosen for its own files."""
    wanted = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(state, file)
    finally:
        torch.serialization.set_crc32_options(wanted)


def _check_sums(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as records:
        # torch stores records as they are. What unpacks to more than the file holds is there to fill memory.
        if sum(record.file_size for record in records.infolist()) > size:
            raise ValueError("its records are larger than the file")
        if (damaged := records.testzip()) is not None:
            raise ValueError(f"{damaged} is damaged")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Of processes killed while they wrote. A process id would not do: it may be another machine's."""
    for file in path.parent.glob(f".{path.name}.*"):
        try:
            if time.time() - file.stat().st_mtime > _ABANDONED:
                file.unlink()
        except OSError:  # another process was faster
            continue


# Parts


def restore(parts: Mapping[str, Stateful], state: Mapping[str, Any]) -> None:
    """Load `state[name]` into each part, all or nothing: where one does not fit, every part stays as it was.

    Modules are loaded first, then optimisers, then the rest, rewirers last: each is checked against those
    before it. Modules load into copies of their tensors, which takes the memory of one more copy meanwhile.

    Raises:
        CheckpointError: names the part, and the layer or parameter, that does not fit.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"Expected the state of each part, got a {type(state).__name__}.")
    for name in parts:
        if name not in state:
            raise CheckpointError(f"The checkpoint has no {name}.")
    ordered = sorted(parts.items(), key=lambda part: _rank(part[1]))
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    params = {param: name for module in modules.values() for name, param in module.named_parameters()}
    with ExitStack() as undo:  # runs backwards: modules are put back first, as they are loaded first
        for name, part in reversed(ordered):
            if not isinstance(part, nn.Module):
                with _blaming(name):
                    undo.callback(_memory_of(part))
        copies = _Copies(modules.values())
        undo.callback(copies.discard)
        copies.make()
        for name, part in ordered:
            with _blaming(name):
                _load(part, state[name], params)
        undo.pop_all()  # from here on all is loaded, into copies or into the parts
    copies.keep()


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{name} does not fit: {_in_one_line(error)}.") from error


def _rank(part: Stateful) -> int:
    kinds = (nn.Module, Optimizer)
    return (
        3 if isinstance(part, Evolver) else next((i for i, k in enumerate(kinds) if isinstance(part, k)), 2)
    )


def _load(part: Stateful, state: Any, params: Mapping[nn.Parameter, str]) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"expected its state, got a {type(state).__name__}")
    if isinstance(part, Optimizer):
        _load_optimizer(part, state, params)
        return
    if isinstance(part, LRScheduler):
        _check_scheduler(part, state)
    part.load_state_dict(state)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, KeyError) and len(error.args) == 1:
        return f"{error.args[0]!r} is missing"
    lines = [line.strip() for line in str(error).splitlines()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        del lines[0]
    return "; ".join(line.rstrip(".") for line in lines if line) or type(error).__name__


def _memory_of(part: Stateful) -> Any:
    """A function that puts a part back to what it is now."""
    attributes = dict(vars(part))
    if isinstance(
        part, Optimizer
    ):  # loading gives it a new state and new groups, and leaves the old ones alone

        def put_back() -> None:
            vars(part).clear()
            vars(part).update(attributes)

        return put_back

    state = copy.deepcopy(part.state_dict())

    def load() -> None:
        for name in vars(part).keys() - attributes.keys():  # a scheduler takes over any key
            delattr(part, name)
        part.load_state_dict(state)

    return load


class _Copies:
    """Copies in place of all tensors of some modules, so that loading into them can be taken back to the bit.

    Keeping them moves the loaded numbers into the tensors that were there, unless their size has changed.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        every = {part: None for module in modules for part in module.modules()}
        params = {
            param: None for module in every for param in module._parameters.values() if param is not None
        }
        self._params = [(param, param.data, param.grad) for param in params]
        self._buffers = [(module, dict(module._buffers)) for module in every]

    def make(self) -> None:
        for param, data, _ in self._params:
            param.data = data.clone()
        clones: dict[Tensor, Tensor] = {}
        for module, buffers in self._buffers:
            for name, buffer in buffers.items():
                if buffer is not None:
                    module._buffers[name] = clones.setdefault(buffer, buffer.clone())

    def discard(self) -> None:
        for param, data, grad in self._params:
            param.data = data
            param.grad = grad
        for module, buffers in self._buffers:
            module._buffers.clear()
            module._buffers.update(buffers)

    @torch.no_grad()
    def keep(self) -> None:
        for param, data, _ in self._params:
            if data.shape == param.shape:
                param.data = data.copy_(param.data)
        for module, buffers in self._buffers:
            if is_sparse(module):
                continue  # rewirers know an index by its memory; it stays where they have seen it
            for name, buffer in buffers.items():
                loaded = module._buffers.get(name)
                if buffer is not None and loaded is not None and loaded.shape == buffer.shape:
                    module._buffers[name] = buffer.copy_(loaded)


def _load_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any], params: Mapping[nn.Parameter, str]
) -> None:
    """As the optimiser does, which takes slots of any shape; here they fit their parameters."""
    ids = [number for group in state["param_groups"] for number in group["params"]]
    if len(set(ids)) != len(ids):
        raise ValueError("a parameter is in its groups twice")
    if stray := [number for number in state["state"] if isinstance(number, int) and number not in set(ids)]:
        raise ValueError(f"it has a state for parameter {stray[0]}, which none of its groups holds")
    before = [(group, _can_step(optimizer, group)) for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, (own, check) in zip(optimizer.param_groups, before, strict=True):
        if lacking := sorted((own.keys() & optimizer.defaults.keys()) - group.keys()):
            raise ValueError(f"a parameter group has no {lacking[0]}")
        for param in group["params"][:1] if check else ():
            _example(optimizer, group, param)  # raises where an option makes no sense
        examples: dict[Any, Mapping[str, Any]] = {}
        for i, param in enumerate(group["params"]):
            slots = optimizer.state.get(param)
            if check and slots:
                kind = (param.shape[1:], param.dim(), param.dtype, param.device)
                if kind not in examples:
                    examples[kind] = _example(optimizer, group, param)
                _check_slots(params.get(param, f"parameter {i}"), param, slots, examples[kind])


def _can_step(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether a copy of the optimiser can show what state it keeps; LBFGS cannot."""
    try:
        for param in group["params"][:1]:
            _example(optimizer, group, param)
    except Exception:
        return False
    return True


def _example(optimizer: Optimizer, group: dict[str, Any], param: nn.Parameter) -> Mapping[str, Any]:
    """What the optimiser keeps for a parameter of two rows like those of `param` after a step.

    Raises what the optimiser's class does where an option of the group makes no sense.
    """
    kind = type(optimizer)
    options = {key: option for key, option in group.items() if key not in ("params", "param_names")}
    accepted = inspect.signature(kind).parameters
    arguments = {k: v for k, v in {**optimizer.defaults, **options}.items() if k in accepted}
    probe = nn.Parameter(param.new_zeros(_two_rows(param)))
    probe.grad = torch.zeros_like(probe)
    with torch.random.fork_rng([param.device] if param.is_cuda else []), torch.no_grad():
        stepper = kind([{**options, "params": [probe]}], **arguments)
        stepper.step()
    return stepper.state[probe]


def _two_rows(param: Tensor) -> tuple[int, ...]:
    return (2, *param.shape[1:]) if param.dim() else ()


def _check_slots(name: str, param: Tensor, slots: Mapping[str, Any], example: Mapping[str, Any]) -> None:
    for key, expected in example.items():
        if key not in slots:
            raise ValueError(f"{name}: {key} is missing")
        slot = slots[key]
        if isinstance(slot, Tensor) != isinstance(expected, Tensor):
            raise TypeError(f"{name}: expected {key} like {expected!r}, got {slot!r}")
        if not isinstance(slot, Tensor):
            continue
        if expected.shape == _two_rows(param):
            shape = tuple(param.shape)
        elif expected.numel() == 1:
            shape = tuple(expected.shape)
        else:
            continue  # neither a slot for each weight nor one for all: factors of a matrix, say
        if tuple(slot.shape) != shape:
            raise ValueError(f"{name}: expected {key} of shape {shape}, got {tuple(slot.shape)}")


def _check_scheduler(scheduler: LRScheduler, state: Mapping[str, Any]) -> None:
    """Schedulers make any key an attribute; private ones come and go with the versions of torch."""
    own = scheduler.state_dict()
    for key in state:
        known = key in own or (isinstance(key, str) and key.startswith("_") and not hasattr(scheduler, key))
        if not known:
            raise ValueError(f"{key!r} is not in the state of a {type(scheduler).__name__}")
    for key, value in own.items():
        if key not in state:
            if key.startswith("_"):
                continue
            raise KeyError(key)
        if not _alike(value, state[key]):
            raise TypeError(f"expected {key} like {value!r}, got {state[key]!r}")


def _alike(value: Any, other: Any) -> bool:
    if value is None or other is None:
        return True
    if isinstance(value, (list, tuple)):
        return (
            isinstance(other, (list, tuple)) and len(other) == len(value) and all(map(_alike, value, other))
        )
    numbers = (int, float, Tensor)
    if isinstance(value, numbers) and not isinstance(value, bool):
        return isinstance(other, numbers) and not isinstance(other, bool)
    return isinstance(other, type(value)) or isinstance(value, type(other))
