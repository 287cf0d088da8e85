"""What the configuration beside an original's weights says, each field of the type it should have.

Configurations come as others wrote them, and some were mended by hand. In: a JSON object, the name
of the checkpoint that it belongs to and that of its file; out: numbers, lists and parts, or one
line that names the field, what stands there and what is expected. Read nothing before.
"""

from collections.abc import Mapping
from typing import Any

from minimodal.errors import UserError


class Stated:
    """The fields of a configuration; what is not stated is None, or the default."""

    def __init__(
        self, fields: Mapping[str, Any], *, source: str, file: str = "config", within: str = ""
    ) -> None:
        if not isinstance(fields, Mapping):
            raise UserError(f"{source}: its {file} is {fields!r:.60}: expected an object")
        self.fields, self.source, self.file, self.within = dict(fields), source, file, within

    def says(self, name: str) -> str:
        """What stands in a field, in words."""
        here = f"{self.source}: its {self.file}"
        if name not in self.fields:
            return f"{here} does not say {self.within}{name}"
        return f"{here} says {self.within}{name} = {self.fields[name]!r:.60}"

    def wrong(self, name: str, expected: str) -> UserError:
        """The error that says which field cannot be used, and what stands there."""
        return UserError(f"{self.says(name)}: expected {expected}")

    def integer(self, name: str, default: int | None = None, *, least: int = 0) -> int | None:
        """A whole number below 10^9, which no model has of anything."""
        value = self.fields.get(name, default)
        if name in self.fields and (type(value) is not int or not least <= value < 10**9):
            raise self.wrong(name, f"a whole number of {least} or more (below 10^9)")
        return value

    def number(self, name: str, default: float) -> float:
        """A number of 0 or more."""
        value = self.fields.get(name, default)
        if type(value) not in (int, float) or not 0 <= value < 1e38:
            raise self.wrong(name, "a number of 0 or more")
        return float(value)

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers."""
        values = self.fields.get(name)
        good = isinstance(values, (list, tuple)) and all(type(v) is int for v in values)
        if name in self.fields and not good:
            raise self.wrong(name, "a list of whole numbers, such as [16]")
        return values

    def colour(self, name: str, default: tuple[float, ...], *, least: float) -> tuple[float, ...]:
        """A number for each of red, green and blue."""
        values = self.fields.get(name, default)
        good = isinstance(values, (list, tuple)) and len(values) == 3
        if not good or any(type(v) not in (int, float) or not least <= v <= 255 for v in values):
            raise self.wrong(name, f"three numbers of {least:g} or more")
        return tuple(values)

    def choice(self, name: str, *known: Any) -> Any:
        """One of the values that are known; the first where nothing is stated."""
        value = self.fields.get(name, known[0])
        if not any(type(value) is type(one) and value == one for one in known):
            raise self.wrong(name, " or ".join(map(repr, known)))
        return value

    def part(self, *names: str, filled: bool = False) -> "Stated":
        """A part, under the first of these names that says anything; without one, an empty part.

        filled: a part that is named says something
        """
        for name in names:
            value, named = self.fields.get(name), name in self.fields
            if value is not None or (filled and named):
                if not isinstance(value, Mapping) or (filled and not value):
                    raise self.wrong(name, "an object of settings")
                within = f"{self.within}{name}."
                return Stated(value, source=self.source, file=self.file, within=within)
        return Stated({}, source=self.source, file=self.file, within=f"{self.within}{names[0]}.")

    def check(self, found: dict[str, Any]) -> None:
        """Refuse a configuration that says something else than the weights."""
        for name, value in found.items():
            said = self.fields.get(name, value)
            said = list(said) if isinstance(said, (list, tuple)) else said
            if said not in (value, [value, value]):  # both sides of a square, maybe
                raise UserError(
                    f"{self.says(name)} and its weights say {value!r}; it is the config of another "
                    "checkpoint"
                )
