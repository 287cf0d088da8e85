"""What is asked for, as one line of text.

    a red circle | a star:0.5             two prompts, the second at half the weight
    a red circle | text:-0.3              away from something
    a red circle:1:0.6                    stop pulling below a distance of 0.6
    image=photo.png:0.5 | noise=7:0.1     like a picture; like a random direction, of seed 7
    [0, 0, 0.5, 1] a red circle           of a region: left, top, right, bottom in shares
    [mask.png] a red circle               of a region: where a picture is lighter than grey
    100: a red circle ^ 200: a blue one   a story: for 100 steps the first, then for 200 the second

A prompt is read from the right: up to two fields that begin as numbers do are weight and stop, and
all that is left, other colons too, is text. So `ratio 3: 4` is text, since a field with a space in
front is no number, and `time 12:30:2` has weight 30 and stop 2; write `time 12:30:2:-inf` for the
time half past twelve at weight 2. Read nothing before this file.
"""

import math
import re
from typing import NamedTuple

from minimodal.errors import UserError

NO_STOP = -math.inf
NUMBER = re.compile(r"[-+]?(\d|\.\d|inf$|nan$)")


class Prompt(NamedTuple):
    """One thing that is asked for."""

    content: str  # a caption, a picture's path, or a seed
    kind: str = "text"  # text, image, or noise
    weight: float = 1.0
    stop: float = NO_STOP
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom, 0 to 1
    mask: str | None = None  # a picture's path


class Chapter(NamedTuple):
    """Prompts and for how many steps they are followed; 0: as many as there are."""

    prompts: tuple[Prompt, ...]
    steps: int = 0


def read_number(field: str, what: str, prompt: str) -> float:
    """A weight or a stop."""
    try:
        value = float(field)
    except ValueError:
        raise UserError(
            f"prompt '{prompt}': {what} '{field}' is no number; expected text:weight:stop"
        ) from None
    if not (math.isfinite(value) or (what == "stop" and value == NO_STOP)):
        raise UserError(f"prompt '{prompt}': {what} {field}: expected a finite number")
    return value


def read_box(inside: str, prompt: str) -> tuple[float, float, float, float]:
    """Four numbers that lie within the picture."""
    try:
        left, top, right, bottom = (float(part) for part in inside.split(","))
    except ValueError:
        raise UserError(
            f"prompt '{prompt}': region [{inside}]: expected left, top, right, bottom, or the path "
            "of a mask"
        ) from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(
            f"prompt '{prompt}': region [{inside}] is not within the picture, which goes from 0 to "
            "1 each way"
        )
    return left, top, right, bottom


def read_prompt(text: str) -> Prompt:
    """One prompt: region, kind, content, weight, stop."""
    whole, box, mask = text.strip(), None, None
    rest = whole
    if found := re.match(r"\[([^\]]*)\]\s*", rest):
        inside, rest = found[1].strip(), rest[found.end() :]
        if re.fullmatch(r"[-+.\deE,\s]*", inside):
            box = read_box(inside, whole)
        else:
            mask = inside
    fields: list[str] = []
    while len(fields) < 2 and ":" in rest:
        before, _, last = rest.rpartition(":")
        if not last.strip():
            raise UserError(f"prompt '{whole}': nothing after the last colon; expected a weight")
        if not NUMBER.match(last):
            break
        fields.insert(0, last)
        rest = before
    numbers = [read_number(f, w, whole) for f, w in zip(fields, ("weight", "stop"), strict=False)]
    weight, stop = [*numbers, *(1.0, NO_STOP)[len(numbers) :]]
    kind, content = "text", rest.strip()
    for name in ("image", "noise"):
        if content.startswith(f"{name}="):
            kind, content = name, content.removeprefix(f"{name}=").strip()
    if not content:
        raise UserError(f"prompt '{whole}' says nothing")
    if kind == "noise" and not content.isdecimal():
        raise UserError(f"prompt '{whole}': expected noise= and a seed, such as noise=7")
    return Prompt(content, kind, weight, stop, box, mask)


def read_prompts(text: str) -> tuple[Prompt, ...]:
    """Prompts between bars."""
    if not text.strip():
        raise UserError("no prompt: expected at least one, such as 'a red circle'")
    parts = text.split("|")
    if not all(part.strip() for part in parts):
        raise UserError(f"'{text.strip()}': an empty prompt between two bars or at an end")
    return tuple(map(read_prompt, parts))


def read_story(text: str) -> list[Chapter]:
    """Chapters between carets, each with steps of its own in front, where it has any."""
    chapters = []
    for part in text.split("^"):
        found = re.match(r"\s*(\d+)\s*:\s+(?=\S)", part)
        steps = int(found[1]) if found else 0
        if found and steps < 1:
            raise UserError(f"'{part.strip()}': a chapter of {steps} steps; expected 1 or more")
        chapters.append(Chapter(read_prompts(part[found.end() :] if found else part), steps))
    return chapters
