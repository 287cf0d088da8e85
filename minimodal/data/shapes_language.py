"""Captions of the Shapes world: a small grammar that writes them and a parser that reads them.

    a large red circle to the left of a small blue square on white
    against black a plus below a tiny orange disc
    a big box with a little violet star above it
    two small stars on gray

`captions(scenes, draws)` writes one caption a scene. Words have synonyms, and size, colour and
background are left out now and then, so a caption is true of its scene but seldom all of it.
`parse(caption)` reads these and what people type ("Red circle.", "a box and a star") into a `Spec`,
or says which word it does not know. Every caption it writes, it can read.
"""

import difflib
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minimodal.data.shapes_world import (
    BACKGROUNDS,
    COLORS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    Scenes,
)
from minimodal.errors import UserError

# The first word of each row is the name; the others are synonyms.
SHAPE_WORDS = (
    ("circle", "disc"),
    ("square", "box"),
    ("triangle",),
    ("star",),
    ("cross", "plus"),
    ("ring", "donut"),
)
COLOR_WORDS = tuple(
    {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise")}.get(c, (c,)) for c in COLORS
)
SIZE_WORDS = (("small", "little", "tiny"), ("large", "big"))
BACKGROUND_WORDS = (("white",), ("black",), ("gray", "grey"))
RELATION_WORDS = (
    ("left of", "to the left of"),
    ("right of", "to the right of"),
    ("above", "over"),
    ("below", "under", "beneath"),
)
WITH_WORDS = ("to its left", "to its right", "above it", "below it")
PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses"}

OMIT_SIZE, OMIT_COLOR, OMIT_BACKGROUND = 0.15, 0.08, 0.15
USE_PLURAL, USE_WITH, BACKGROUND_FIRST = 0.1, 0.15, 0.25
DRAWS = 17  # random numbers that one caption takes


# --- writing ----------------------------------------------------------------------------------


def _pick(words: tuple[str, ...], draw: float) -> str:
    """The name half of the time, else one of its synonyms."""
    if draw < 0.5 or len(words) == 1:
        return words[0]
    return words[1 + int((2 * draw - 1) * (len(words) - 1))]


def plural(word: str) -> str:
    """Several of a shape: crosses, boxes, stars."""
    return PLURALS.get(word, word + "s")


def article(words: str) -> str:
    """With "a" or "an" in front."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun(size: int, color: int, shape: int, draws: list[float]) -> str:
    """ "large red circle"; a negative size or colour is left out."""
    words = [_pick(SHAPE_WORDS[shape], draws[0])]
    if color >= 0:
        words.insert(0, _pick(COLOR_WORDS[color], draws[1]))
    if size >= 0:
        words.insert(0, _pick(SIZE_WORDS[size], draws[2]))
    return " ".join(words)


def _body(row: tuple, draws: list[float], *, full: bool) -> str:
    """The caption without its background."""
    count, shape, color, size, relation = row
    if not full:
        color = [-1 if draws[6 + k] < OMIT_COLOR else c for k, c in enumerate(color)]
        size = [-1 if draws[8 + k] < OMIT_SIZE else s for k, s in enumerate(size)]
    if count == 1:
        return article(_noun(size[0], color[0], shape[0], draws[0:3]))
    if not full and shape[0] == shape[1] and draws[10] < USE_PLURAL:
        size_if_shared = size[0] if size[0] == size[1] else -1
        color_if_shared = color[0] if color[0] == color[1] else -1
        words = _noun(size_if_shared, color_if_shared, shape[0], draws[0:3]).split()
        return " ".join(["two", *words[:-1], plural(words[-1])])
    first = article(_noun(size[0], color[0], shape[0], draws[0:3]))
    second = article(_noun(size[1], color[1], shape[1], draws[3:6]))
    if draws[11] < 0.5:  # name the object of slot 1 first, and turn the relation round
        first, second, relation = second, first, relation ^ 1
    if draws[12] < USE_WITH:  # "first with second to its left": second is left of first
        return f"{first} with {second} {WITH_WORDS[relation ^ 1]}"
    return f"{first} {_pick(RELATION_WORDS[relation], draws[13])} {second}"


def captions(
    scenes: Scenes,
    draws: np.ndarray,
    *,
    full: bool = False,
    omit_background: float | np.ndarray | None = None,
) -> list[str]:
    """One caption a scene.

    draws: (N, DRAWS) uniform in [0, 1); equal rows choose the same template and synonyms
    full: state every size and colour and the relation, and the background but for omit_background
    omit_background: how often the background is left out, of all or of each; None is 0.15, or 0
        where full
    """
    if omit_background is None:
        omit_background = 0.0 if full else OMIT_BACKGROUND
    columns = (scenes.count, scenes.shape, scenes.color, scenes.size, scenes.relation)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    omitted = (draws[:, 14] < omit_background).tolist()
    result = []
    for row, ground, d, silent in zip(
        rows, scenes.background.tolist(), draws.tolist(), omitted, strict=True
    ):
        body = _body(row, d, full=full)
        if not silent:
            word = _pick(BACKGROUND_WORDS[ground], d[15])
            # One draw for two choices: its quarter, and where it lies in the quarter.
            on = "on" if (d[16] / BACKGROUND_FIRST) % 1 < 0.5 else "against"
            first = d[16] < BACKGROUND_FIRST
            body = f"{on} {word} {body}" if first else f"{body} {on} {word}"
        result.append(body)
    return result


# --- reading ----------------------------------------------------------------------------------


class ObjectSpec(NamedTuple):
    """What a caption says of one object; None is unsaid."""

    shape: str | None
    color: str | None
    size: str | None


class Spec(NamedTuple):
    """What a caption says.

    objects: one entry an object, so `count` entries
    relation: where objects[0] is, seen from objects[1]: left, right, above, below, or None
    """

    objects: tuple[ObjectSpec, ...]
    relation: str | None
    background: str | None
    count: int


def _index(rows: tuple[tuple[str, ...], ...], names) -> dict[str, str]:
    return {word: name for row, name in zip(rows, names, strict=True) for word in row}


_NOUN = _index(SHAPE_WORDS, SHAPES) | {"shape": None, "object": None}
_NOUNS = {plural(word): name for word, name in _NOUN.items()}
_COLOR = _index(COLOR_WORDS, COLORS)
_SIZE = _index(SIZE_WORDS, SIZES)
_BACKGROUND = _index(BACKGROUND_WORDS, BACKGROUNDS)
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COUNT = {"a": 1, "an": 1, "the": 1, "one": 1, "1": 1}
_COUNT |= {word: n for n, word in enumerate(_NUMBERS, start=2)} | {str(n): n for n in range(2, 11)}

# Phrases become one symbol each; longer ones are tried first.
_PHRASES = (
    (r"(?:to |on )?(?:the )?(left|right) of", r"<\1>"),
    (r"(?:above|over|on top of)(?! it\b)", "<above>"),
    (r"(?:below|under|beneath|underneath)(?! it\b)", "<below>"),
    (r"(?:to|on) its (left|right)", r"<its-\1>"),
    (r"(?:above|over) it", "<its-above>"),
    (r"(?:below|under|beneath|underneath) it", "<its-below>"),
    (r"(?:next to|beside|and)", "<and>"),
    (r"with", "<with>"),
    (r"(?:on|against)(?: an?| the)?", "<on>"),
)
_GRAMMAR_WORDS = (
    "to on the left right of above over top below under beneath underneath its it next beside "
    "and with against background is there"
).split()
_KNOWN = {*_GRAMMAR_WORDS, *_NOUN, *_NOUNS, *_COLOR, *_SIZE, *_BACKGROUND, *_COUNT}


def _symbols(caption: str) -> list[str]:
    """The caption as words and phrase symbols, or a UserError naming the first unknown word."""
    text = re.sub(r"[,;:.!\"]+", " ", caption.lower())
    text = " ".join(
        re.sub(r"^\s*(an? |the )?(picture|photo|image|drawing) of\b", " ", text).split()
    )
    if not text:
        raise UserError("the caption is empty; write something like 'a large red circle'")
    for word in text.split():
        if word not in _KNOWN:
            near = difflib.get_close_matches(word, sorted(_KNOWN), n=1, cutoff=0.7)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            hint = hint or f"; the shapes are {', '.join(SHAPES)}, the colours {', '.join(COLORS)}"
            raise UserError(f"caption '{caption}': the Shapes world has no word '{word}'{hint}")
    text = re.sub(r"^there is\b|\bis\b", " ", text)
    for phrase, symbol in _PHRASES:
        text = re.sub(rf"(?<![\w<-]){phrase}(?![\w>-])", symbol, text)
    return text.split()


class _Reader:
    """Recursive descent over the symbols of one caption."""

    def __init__(self, caption: str) -> None:
        self.caption, self.symbols, self.at = caption, _symbols(caption), 0

    def peek(self) -> str:
        return self.symbols[self.at] if self.at < len(self.symbols) else ""

    def take(self, *accepted: str) -> str:
        """The next symbol if it is one of `accepted`, else ''."""
        symbol = self.peek()
        if symbol not in accepted or not symbol:
            return ""
        self.at += 1
        return symbol

    def fail(self, expected: str) -> UserError:
        words = [s.strip("<>").replace("-", " ") for s in self.symbols]
        seen = " ".join(words[: self.at])
        found = f"found '{words[self.at]}'" if self.peek() else "the caption ends"
        after = f"after '{seen}' " if seen else ""
        return UserError(f"caption '{self.caption}': {after}expected {expected}, but {found}")

    def background(self) -> str | None:
        if not self.take("<on>"):
            return None
        word = self.take(*_BACKGROUND)
        if not word:
            raise self.fail(f"a background ({', '.join(BACKGROUNDS)})")
        self.take("background")
        return _BACKGROUND[word]

    def objects(self) -> list[ObjectSpec]:
        """ "a large red circle" is one entry, "two red circles" two equal ones."""
        number = self.take(*_COUNT)
        color = size = None
        while self.peek() in _SIZE or self.peek() in _COLOR:
            word = self.peek()
            if (word in _SIZE and size) or (word in _COLOR and color):
                raise self.fail("one size and one colour an object")
            self.at += 1
            size, color = _SIZE.get(word, size), _COLOR.get(word, color)
        if self.peek() in _NOUNS and number not in ("", "the") and _COUNT[number] > 1:
            return [ObjectSpec(_NOUNS[self.take(*_NOUNS)], color, size)] * _COUNT[number]
        if self.peek() in _NOUNS:
            raise self.fail("how many there are ('two red circles') or one shape")
        if self.peek() in _BACKGROUND:
            raise self.fail(f"a colour of shapes ({', '.join(COLORS)})")
        if self.peek() not in _NOUN:
            raise self.fail(f"a shape ({', '.join(SHAPES)})")
        if number and _COUNT[number] > 1:
            raise self.fail(f"'{plural(self.peek())}'")
        return [ObjectSpec(_NOUN[self.take(*_NOUN)], color, size)]


@lru_cache(maxsize=100_000)
def parse(caption: str) -> Spec:
    """Reads a caption; raises UserError naming the first word that it does not understand."""
    reader = _Reader(caption)
    background, relation = reader.background(), None
    objects = reader.objects()
    while joint := reader.take("<and>", "<with>", *(f"<{r}>" for r in RELATIONS)):
        more = reader.objects()
        if joint == "<with>" and (place := reader.take(*(f"<its-{r}>" for r in RELATIONS))):
            joint = f"<{OPPOSITE[place[5:-1]]}>"  # what is to its left has it on the right
        if joint[1:-1] in RELATIONS:
            if len(objects) != 1 or len(more) != 1:
                raise UserError(f"caption '{caption}': a relation holds between two single shapes")
            relation = joint[1:-1]
        objects += more
    if reader.peek() == "<on>" and background is None:
        background = reader.background()
    if reader.peek():
        raise reader.fail("a relation, a background or the end")
    return Spec(tuple(objects), relation, background, len(objects))
