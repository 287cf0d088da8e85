"""Captions of the Shapes world: a small grammar that writes them and a parser that reads them.

    a large red circle to the left of a small blue square on white
    against black a plus below a tiny orange disc
    two small stars on gray
    blue circle, red square, white background                   (loose)
    there is a big box beside a little violet star              (loose)

`captions(scenes, draws)` writes one caption per scene, strict or loose, as people type. Words have
synonyms, and size, colour and background are left out now and then, so a caption is true of its
scene but seldom all of it. `parse(caption)` reads these and more ("Three red circles.") into a
`Spec`, or says which word it does not know. Every caption it writes, it can read.
"""

import difflib
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minimodal.errors import UserError
from minimodal.shapes.world import BACKGROUNDS, COLORS, OPPOSITE, RELATIONS, SHAPES, SIZES, Scenes

# The first word of each row is the name; the others are synonyms.
SHAPE_WORDS = (("circle", "disc"), ("square", "box"), ("triangle",), ("star",), ("cross", "plus"),
               ("ring", "donut"))  # fmt: skip
COLOR_WORDS = tuple(
    {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise")}.get(c, (c,)) for c in COLORS
)
SIZE_WORDS = (("small", "little", "tiny"), ("large", "big"))
BACKGROUND_WORDS = (("white",), ("black",), ("gray", "grey"))
RELATION_WORDS = (("left of", "to the left of"), ("right of", "to the right of"), ("above", "over"),
                  ("below", "under", "beneath"))  # fmt: skip
WITH_WORDS = ("to its left", "to its right", "above it", "below it")
PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses"}

OMIT_SIZE, OMIT_COLOR, OMIT_BACKGROUND = 0.15, 0.08, 0.15
USE_PLURAL, BACKGROUND_FIRST = 0.1, 0.25
DRAWS = 17  # random numbers that one strict caption takes

# What loose captions have and strict ones never do; the options of a row are equally likely.
JOINTS = (" and ", " and ", " and ", ", ", ", ", " next to ", " beside ", " with ")
OPENINGS = ("there is ", "there is ", "a picture of ", "picture of ")
# Before and behind the background's word, where it ends the caption and where it begins it: three
# of two tokens (the first PLAIN are strict captions' own), three of three, then those of four.
LAST = (
    (" on ", ""), (" against ", ""), (" ", " background"),
    (", on ", ""), (", ", " background"), (" on ", " background"),
    (" on a ", " background"), (" against a ", " background"), (" with a ", " background"),
)  # fmt: skip
FIRST = (
    ("on ", " "), ("against ", " "), ("", " background "),
    ("on ", ", "), ("", " background, "), ("on ", " background "), ("on a ", " background "),
)  # fmt: skip
PLAIN = 2
LONGEST = 16  # tokens of a caption
NO_ARTICLE, USE_OPENING, UNSAID, LOOSE_OMIT_BACKGROUND = 0.5, 0.3, 0.5, 0.35
LOOSE_DRAWS = DRAWS + 4  # that a caption takes which may be loose


class Style(NamedTuple):
    """How often an attribute is left out, two of a shape are counted ("two stars"), and a relation
    comes last ("a star with a ring below it")."""

    omit_size: float
    omit_color: float
    use_plural: float
    use_with: float


FULL = Style(0.0, 0.0, 0.0, 0.15)
STRICT = Style(OMIT_SIZE, OMIT_COLOR, USE_PLURAL, 0.3)
LOOSE = Style(0.3, 0.12, 0.5, 0.4)


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
    words = _pick(SHAPE_WORDS[shape], draws[0])
    if color >= 0:
        words = f"{_pick(COLOR_WORDS[color], draws[1])} {words}"
    return words if size < 0 else f"{_pick(SIZE_WORDS[size], draws[2])} {words}"


def _names(row: tuple, draws: list[float], style: Style) -> list[str]:
    """The objects without articles, in the order of their slots; "two red stars" is one name."""
    count, shape, color, size, _ = row
    color = [-1 if draws[6 + k] < style.omit_color else c for k, c in enumerate(color)]
    size = [-1 if draws[8 + k] < style.omit_size else s for k, s in enumerate(size)]
    if shape[0] == shape[1] and draws[10] < style.use_plural:
        size_if_shared = size[0] if size[0] == size[1] else -1
        color_if_shared = color[0] if color[0] == color[1] else -1
        words = _noun(size_if_shared, color_if_shared, shape[0], draws).split()
        return [" ".join(["two", *words[:-1], plural(words[-1])])]
    return [_noun(size[k], color[k], shape[k], draws[3 * k :]) for k in range(count)]


def _body(names: list[str], relation: int, draws: list[float], style: Style, joint: str) -> str:
    """One or two objects in a row. A joint stands in the place of the relation."""
    if len(names) == 1:
        return names[0]
    first, second = names
    if draws[11] < 0.5:  # name the object of slot 1 first, and turn the relation round
        first, second, relation = second, first, relation ^ 1
    if joint:
        return first + joint + second
    if draws[12] < style.use_with:  # "first with second to its left": second is left of first
        return f"{first} with {second} {WITH_WORDS[relation ^ 1]}"
    return f"{first} {_pick(RELATION_WORDS[relation], draws[13])} {second}"


def _strict(row: tuple, ground: str, draws: list[float], style: Style) -> str:
    """In whole phrases, with articles. ground: the background's word, "" where it is left out"""
    names = _names(row, draws, style)
    if len(names) == row[0]:  # and no "two stars"
        names = [article(name) for name in names]
    body = _body(names, row[4], draws, style, "")
    if not ground:
        return body
    # One draw for two choices: its quarter, and where it lies in the quarter.
    on = "on" if (draws[16] / BACKGROUND_FIRST) % 1 < 0.5 else "against"
    return f"{on} {ground} {body}" if draws[16] < BACKGROUND_FIRST else f"{body} {on} {ground}"


def _loose(row: tuple, ground: str, draws: list[float], style: Style, *, unsaid: bool) -> str:
    """As people type: without articles, objects joined by "and", "white background" and the like.

    unsaid: leave out where two objects are
    """
    names = _names(row, draws, style)
    several, two = len(names) < row[0], len(names) == 2
    joint = JOINTS[int(draws[13] * len(JOINTS))] if two and unsaid else ""
    bare, opening = draws[18] < NO_ARTICLE, ""
    if draws[19] < USE_OPENING:
        opening = OPENINGS[int(draws[19] / USE_OPENING * len(OPENINGS))]
    first = draws[16] < BACKGROUND_FIRST and "picture" not in opening
    forms = FIRST if first else LAST
    form = int((draws[16] / BACKGROUND_FIRST) % 1 * len(forms))
    if not (opening or joint or (bare and not several) or (ground and form >= PLAIN)):
        bare, opening = True, "there is " if several else ""  # else it were a strict caption
    if several:
        opening = opening.replace("is", "are")
    elif not bare:
        names = [article(name) for name in names]
    body = opening + _body(names, row[4], draws, style, joint)
    if not ground:
        return body
    if opening:
        # A model's texts are as long as the longest caption, and each token costs time in training:
        # 12 for two objects and where they are, 3 for an opening and 4 for a background are 19.
        room = LONGEST - (body.count(" ") + 1 + body.count(","))
        if room < 2:
            body, room = body.removeprefix("a "), 2  # "picture of …"
        form %= min(len(forms), 3 * (room - 1))
    before, behind = forms[form]
    return f"{before}{ground}{behind}{body}" if first else f"{body}{before}{ground}{behind}"


def captions(
    scenes: Scenes, draws: np.ndarray, *, full: bool = False,
    omit_background: float | np.ndarray | None = None, loose: float = 0.0,
    unsaid: float | np.ndarray | None = None,
) -> list[str]:  # fmt: skip
    """One caption per scene.

    draws: (N, DRAWS) uniform in [0, 1), (N, LOOSE_DRAWS) where some are loose; equal rows choose
        the same template and synonyms
    full: state every size and colour and the relation, and the background but for omit_background
    omit_background: how often the background is left out, of all or of each; None is 0.15 (0.35
        of loose captions), or 0 where full
    loose: how often a caption is loose
    unsaid: how often loose captions do not say where two objects are, of all or of each; None is
        0.5, or 0 where full
    """
    relaxed = draws[:, DRAWS] < loose if loose else np.zeros(len(draws), dtype=bool)
    if omit_background is None:
        omit_background = np.where(relaxed, LOOSE_OMIT_BACKGROUND, OMIT_BACKGROUND) * (not full)
    if unsaid is None:
        unsaid = 0.0 if full else UNSAID
    columns = (scenes.count, scenes.shape, scenes.color, scenes.size, scenes.relation)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    omitted = (draws[:, 14] < omit_background).tolist()
    choices = zip(omitted, scenes.background.tolist(), draws[:, 15].tolist(), strict=True)
    grounds = ["" if silent else _pick(BACKGROUND_WORDS[k], d) for silent, k, d in choices]
    apart = (draws[:, -1] < unsaid).tolist()  # only of loose captions, whose last draw it is
    table = zip(rows, grounds, draws.tolist(), relaxed.tolist(), apart, strict=True)
    strict, typed = (FULL, FULL) if full else (STRICT, LOOSE)
    return [
        _loose(row, ground, d, typed, unsaid=quiet) if free else _strict(row, ground, d, strict)
        for row, ground, d, free, quiet in table
    ]


# --- reading ----------------------------------------------------------------------------------


class ObjectSpec(NamedTuple):
    """What a caption says of one object; None is unsaid."""

    shape: str | None
    color: str | None
    size: str | None


class Spec(NamedTuple):
    """What a caption says.

    objects: one entry per object, so `count` entries
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
_WORDS = {*_NOUN, *_NOUNS, *_COLOR, *_SIZE, *_BACKGROUND, *_COUNT}  # that a thing may begin with

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
    (r"there (?:is|are)", "<there-is>"),
    (r"(?:on|against)(?: an?| the)?", "<on>"),
)
_JOINING = """to on the left right of above over top below under beneath underneath its it next
beside and with against background is are there"""
_KNOWN = {*_JOINING.split(), *_WORDS}


def _symbols(caption: str) -> list[str]:
    """The caption as words and phrase symbols, or a UserError naming the first unknown word.

    A comma is a symbol where it stands between a shape and another thing or a background; in
    "a large, red circle" or "on white, a star" it says nothing.
    """
    words = re.sub(r"[;:.!\"]+", " ", caption.lower()).replace(",", " , ").split()
    pairs = zip(["", *words], words, strict=False)
    text = " ".join(w for before, w in pairs if w != "," or before in _NOUN or before in _NOUNS)
    text = re.sub(r"^(an? |the )?(picture|photo|image|drawing) of\b", "", text).strip()
    if not text:
        raise UserError("the caption is empty; write something like 'a large red circle'")
    for word in text.replace(",", "").split():
        if word not in _KNOWN:
            near = difflib.get_close_matches(word, sorted(_KNOWN), n=1, cutoff=0.7)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            hint = hint or f"; the shapes are {', '.join(SHAPES)}, the colours {', '.join(COLORS)}"
            raise UserError(f"caption '{caption}': the Shapes world has no word '{word}'{hint}")
    for phrase, symbol in _PHRASES:
        text = re.sub(rf"(?<![\w<-]){phrase}(?![\w>-])", symbol, text)
    symbols = [s for s in text.split() if s not in ("is", "are")]
    pairs = zip(symbols, [*symbols[1:], ""], strict=False)
    return [s for s, after in pairs if s != "," or after in _WORDS]


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
        seen = " ".join(words[: self.at]).replace(" ,", ",")
        found = f"found '{words[self.at]}'" if self.peek() else "the caption ends"
        after = f"after '{seen}' " if seen else ""
        return UserError(f"caption '{self.caption}': {after}expected {expected}, but {found}")

    def bare_background(self) -> str | None:
        """ "white background" or "a white background", or None where no such thing begins."""
        at = self.at + (self.peek() in ("a", "an", "the"))
        color, noun, *_ = [*self.symbols[at:], "", ""]
        if color not in _BACKGROUND or noun != "background":
            return None
        self.at = at + 2
        return _BACKGROUND[color]

    def background(self) -> str | None:
        """ "on white", "on a white background" or a bare one; None where none begins."""
        if not self.take("<on>"):
            return self.bare_background()
        if not (word := self.take(*_BACKGROUND)):
            raise self.fail(f"a background ({', '.join(BACKGROUNDS)})")
        self.take("background")
        return _BACKGROUND[word]

    def objects(self) -> list[ObjectSpec]:
        """ "a large red circle" is one entry, "two red circles" two equal ones."""
        number = self.take(*_COUNT)
        color = size = None
        while (word := self.peek()) in _SIZE or word in _COLOR:
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
        if _COUNT.get(number, 1) > 1:
            raise self.fail(f"'{plural(self.peek())}'")
        return [ObjectSpec(_NOUN[self.take(*_NOUN)], color, size)]


@lru_cache(maxsize=100_000)
def parse(caption: str) -> Spec:
    """Reads a caption; raises UserError naming the first word that it does not understand."""
    reader = _Reader(caption)
    background, relation = reader.background(), None
    if background and reader.symbols[0] != "<on>":
        reader.take("<with>")  # "a white background with a star"
    reader.take("<there-is>")
    objects = reader.objects()
    while joint := reader.take(",", "<and>", "<with>", *(f"<{r}>" for r in RELATIONS)):
        can_end = background is None and joint in (",", "<and>", "<with>")
        if can_end and (background := reader.bare_background()):
            break
        more = reader.objects()
        if joint == "<with>" and (place := reader.take(*(f"<its-{r}>" for r in RELATIONS))):
            joint = f"<{OPPOSITE[place[5:-1]]}>"  # what is to its left has it on the right
        if joint[1:-1] in RELATIONS:
            if len(objects) != 1 or len(more) != 1:
                raise UserError(f"caption '{caption}': a relation holds between two single shapes")
            relation = joint[1:-1]
        objects += more
    background = background or reader.background()
    if reader.peek():
        raise reader.fail("a relation, a background or the end")
    return Spec(tuple(objects), relation, background, len(objects))
