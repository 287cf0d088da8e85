"""The one exception that means "the input is wrong, not the program".

Whoever raises it writes one line for a person: the file or value, what was expected, what to do.
The commands print that line to stderr and exit with status 2; Python callers may catch it as the
ValueError that it is.
"""

from collections.abc import Collection
from math import inf, isfinite
from typing import Any


class UserError(ValueError):
    """Bad input: a missing file, an impossible option, a damaged run folder."""


def check_range(settings: Any, low: float, high: float, *names: str) -> None:
    """Refuse settings of a configuration that are no numbers from `low` to `high` (inf: any)."""
    for name in names:
        value = getattr(settings, name)
        if not (low <= value <= high and value < inf):
            wanted = f"{low} or more" if high == inf else f"{low} to {high}"
            wanted += "" if isfinite(value) else ", and finite"
            raise UserError(f"{name} {value}: expected {wanted}")


def check_choice(name: str, value: Any, known: Collection[Any]) -> None:
    """Refuse a value that is none of those that are known."""
    if value not in known:
        *others, last = map(str, known)
        raise UserError(f"{name} {value}: expected {', '.join(others)} or {last}")
