"""Which cases of a test the default run has, which wait for `-m slow`, which for a newer torch."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

# The oldest torch that the package allows shares no weights on a CPU: --fsdp says so there.
CPU_SHARES = torch.__version__ >= "2.7"
needs_cpu_shares = pytest.mark.skipif(not CPU_SHARES, reason="FSDP on a CPU is of torch 2.7")


def at_once(cases: Iterable[Any], *first: Any) -> list:
    """All cases for `parametrize`: the first ones as they are, all others marked slow."""
    cases = list(cases)
    assert set(first) <= set(cases)
    return [c if c in first else pytest.param(c, marks=pytest.mark.slow) for c in cases]
