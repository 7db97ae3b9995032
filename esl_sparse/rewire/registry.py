from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Rule = TypeVar("Rule")


class Registry(dict[str, Rule]):
    """Functions by name: ``@REGISTRY.register("mine")`` adds one, ``REGISTRY.resolve("mine")`` finds it.

    ``kinds`` are classes of which an instance is a rule although it cannot be called.
    """

    def __init__(self, kind: str, kinds: tuple[type, ...] = ()) -> None:
        super().__init__()
        self.kind = kind
        self.kinds = kinds

    def register(self, name: str) -> Callable[[Any], Any]:
        def add(rule: Any) -> Any:
            if name in self:
                raise ValueError(f"{self.kind}: {name!r} is registered already")
            self[name] = rule
            return rule

        return add

    def resolve(self, rule: str | Rule) -> Rule:
        """The rule of that name; a function stands for itself."""
        if not isinstance(rule, str):
            if not callable(rule) and not isinstance(rule, self.kinds):
                raise TypeError(f"{self.kind}: expected a name or a function, got {type(rule).__name__}")
            return rule
        if rule not in self:
            raise ValueError(f"{self.kind}: expected one of {', '.join(sorted(self))}, got {rule!r}")
        return self[rule]
