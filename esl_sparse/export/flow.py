"""What passes from module to module in one call of a model, whatever Python does in between.

``torch.fx`` gives up at the first branch on a shape; here the model simply runs, and tensors are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Functions that give the same numbers in the same order.
_RESHAPES = ("flatten", "unflatten", "view", "reshape", "view_as", "reshape_as", "unsqueeze", "squeeze")
_COPIES = ("expand", "expand_as", "contiguous", "clone", "detach", "to", "float", "double", "alias")
_SAME = (*_RESHAPES, *_COPIES)
# At the input only: before the first layer it does not matter which dimension is time.
_TURNS = ("transpose", "permute", "movedim", "swapaxes", "__getitem__", "repeat", "repeat_interleave")
_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__")


@dataclass(frozen=True)
class Source:
    """The node that a tensor comes from."""

    node: str


Add = Callable[[str, nn.Module, Tensor, Tensor, list[Source]], list[Source]]
"""``(name, module, x, y, sources of x) -> sources of y``"""


class Flow(TorchFunctionMode):
    """Follows tensors through calls of the modules of ``kinds``, of which ``add`` makes nodes.

    Raises:
        NotImplementedError: something else is done to what is followed.
    """

    def __init__(self, kinds: tuple[type[nn.Module], ...], add: Add) -> None:
        super().__init__()
        self._kinds = kinds
        self._add = add
        self._sources: dict[int, list[Source]] = {}
        self._alive: list[Tensor] = []  # an id names a tensor as long as it lives
        self._inside = False
        self._called: set[str] = set()

    def run(self, model: nn.Module, x: Tensor) -> list[Source]:
        """Where the model's output for x comes from."""
        self._follow(x, [Source("input")])
        with torch.no_grad(), self._hooked(model), self:
            y = model(x)
        if not isinstance(y, Tensor):
            raise NotImplementedError(f"the model gives a {type(y).__name__}; expected one tensor")
        return self._of(y)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if self._inside:
            return y
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        sources = [source for x in inputs for source in self._of(x)]
        if not sources:
            return y
        for out in tree_leaves(y):
            if isinstance(out, Tensor) and self._kept(func.__name__, inputs, sources):
                self._follow(out, sources)
        return y

    def _kept(self, name: str, inputs: list[Tensor], sources: list[Source]) -> bool:
        if name == "__get__":  # .data, .T and the like; reading .shape gives no tensor
            name = "an attribute of a tensor"
        allowed = name in _SAME or (name in _TURNS and sources == [Source("input")])
        if name in _SUMS:
            allowed = (
                all(self._of(x) for x in inputs) and len(inputs) == 2 and len(set(sources)) == len(sources)
            )
        if not allowed:
            raise NotImplementedError(f"{name}: NIR has no node for what it does between the layers")
        return True

    def _of(self, x: Tensor) -> list[Source]:
        return self._sources.get(id(x), [])

    def _follow(self, x: Tensor, sources: list[Source]) -> None:
        self._alive.append(x)
        self._sources[id(x)] = sources

    @contextmanager
    def _hooked(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, self._kinds):
                handles.append(module.register_forward_pre_hook(self._enter(name)))
                handles.append(module.register_forward_hook(self._leave(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            if name in self._called:
                raise NotImplementedError(f"{name}: is called twice, which a graph of nodes cannot say")
            self._called.add(name)
            self._inside = True

        return enter

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
            if sources := self._of(args[0]):
                self._follow(y, self._add(name, module, args[0], y, sources))
            self._inside = False

        return leave
