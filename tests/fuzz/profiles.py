"""One check, two amounts of it: the quick profile is the same in every run, the thorough one new in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

# What a shape costs differs by orders of magnitude, and the machine may be shared.
_COMMON = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
THOROUGH = 12  # times as many examples


def fuzz(examples: int, *strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """Makes a check of drawn arguments two tests: of so many examples, and of many times as many."""

    def decorate(check: Callable[..., None]) -> Any:
        quick = settings(_COMMON, derandomize=True, max_examples=examples)
        thorough = settings(_COMMON, max_examples=THOROUGH * examples, print_blob=True)

        @pytest.mark.parametrize("profile", ["quick", pytest.param("thorough", marks=pytest.mark.slow)])
        def test(profile: str) -> None:
            drawn = given(*strategies)(check)  # settings stick to it
            (quick if profile == "quick" else thorough)(drawn)()

        test.__doc__ = check.__doc__
        return test

    return decorate
