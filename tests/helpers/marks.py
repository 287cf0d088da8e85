"""Which cases of a test the default run has, and which wait for `-m slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def at_once(cases: Iterable[Any], *first: Any) -> list:
    """All cases for `parametrize`: the first ones as they are, all others marked slow."""
    cases = list(cases)
    assert set(first) <= set(cases)
    return [c if c in first else pytest.param(c, marks=pytest.mark.slow) for c in cases]
