"""What the configuration beside an original's weights says, each field of the type it should have.

Configurations come as others wrote them, and some were mended by hand. In: a JSON object and the
name of the checkpoint that it belongs to; out: numbers, lists and parts, or one line that names the
field and what stands there. Read nothing before.
"""

import math
from collections.abc import Mapping
from typing import Any

from minimodal.errors import UserError


class Stated:
    """The fields of a configuration; what is not stated is None, or the default."""

    def __init__(self, fields: Mapping[str, Any], *, source: str) -> None:
        self.fields, self.source = fields, source

    def wrong(self, name: str, expected: str) -> UserError:
        """The error that says which field cannot be used, and what stands there."""
        return UserError(
            f"{self.source}: its config says {name} = {self.fields[name]!r}: expected {expected}"
        )

    def integer(self, name: str, default: int | None = None, *, least: int = 0) -> int | None:
        """A whole number."""
        value = self.fields.get(name, default)
        if name in self.fields and (type(value) is not int or value < least):
            raise self.wrong(name, f"a whole number of {least} or more")
        return value

    def number(self, name: str, default: float) -> float:
        """A number of 0 or more."""
        value = self.fields.get(name, default)
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise self.wrong(name, "a number of 0 or more")
        return float(value)

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers."""
        values = self.fields.get(name)
        if name not in self.fields:
            return None
        if not isinstance(values, (list, tuple)) or any(type(v) is not int for v in values):
            raise self.wrong(name, "a list of whole numbers, such as [16]")
        return list(values)

    def part(self, *names: str) -> "Stated":
        """A part, under the first of these names that says anything; without one, an empty part."""
        for name in names:
            if self.fields.get(name) is not None:
                if not isinstance(self.fields[name], Mapping):
                    raise self.wrong(name, "an object of settings")
                return Stated(self.fields[name], source=self.source)
        return Stated({}, source=self.source)

    def check(self, found: dict[str, Any]) -> None:
        """Refuse a configuration that says something else than the weights."""
        for name, value in found.items():
            said = self.fields.get(name, value)
            said = list(said) if isinstance(said, (list, tuple)) else said
            if said != value:
                raise UserError(
                    f"{self.source}: its config says {name} = {said!r} and its weights say "
                    f"{value!r}; it is the config of another checkpoint"
                )
