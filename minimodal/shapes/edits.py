"""Edits in the Shapes world: a picture, a caption of what becomes of it, and the second picture.

    the same in red · the same but large · the same on white          (all of it)
    the circle in blue · the square but small · the circle as a star  (one of its objects)
    the same with the square to its left                              (the two change places)

That is the whole language, and no caption makes sense without its first picture (Ramesh et al.
2021, section 3.3). `write` puts edits into words, `read_edit` reads a caption before a scene, and
`apply` makes the second scene of the first, with which `matches_edit` compares what the oracle
reads in a second picture. `EditsSource` has the interface of every source, but its pictures are
two, one above the other: uint8 (B, 3, 2*S, S).

Neither picture of pairs "seen" has a HELD_OUT colour and shape; of pairs "held_out" the second
has at least one. Read `world.py` and `oracle.py` before.
"""

import re
from itertools import permutations
from typing import NamedTuple

import numpy as np

from minimodal.errors import UserError
from minimodal.shapes.language import WITH_WORDS, article
from minimodal.shapes.oracle import ObjectReading, Reading, named, read
from minimodal.shapes.source import WorldSource
from minimodal.shapes.world import (
    BACKGROUNDS,
    COLORS,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    Draws,
    Scenes,
    draw_scenes,
    has_held_out,
    render,
    swap,
)

KINDS = ("color", "size", "background", "shape", "place")
VALUES = (tuple(COLORS), SIZES, tuple(BACKGROUNDS), SHAPES, RELATIONS)  # of each kind
COLOR, SIZE, BACKGROUND, SHAPE, PLACE = range(len(KINDS))
GAP = 2  # pixels between two objects, as in world.py


class Edits(NamedTuple):
    """N changes of scenes.

    kind: (N,) index into KINDS
    slot: (N,) the object that changes, -1 for all
    value: (N,) what it becomes: index into the kind's VALUES; of a place, where the slot's object
        is, seen from the other
    """

    kind: np.ndarray
    slot: np.ndarray
    value: np.ndarray


def apply(scenes: Scenes, edits: Edits) -> Scenes:
    """The scenes after the edits."""
    values = {name: column.copy() for name, column in vars(scenes).items()}
    slots = np.arange(2)
    chosen = (edits.slot[:, None] == slots) | (edits.slot[:, None] < 0)  # (N, 2)
    chosen &= slots < scenes.count[:, None]
    for kind in (COLOR, SIZE, SHAPE):
        here = chosen & (edits.kind == kind)[:, None]
        field = values[KINDS[kind]]
        field[here] = np.broadcast_to(edits.value[:, None], field.shape)[here]
    ground = edits.kind == BACKGROUND
    values["background"][ground] = edits.value[ground]
    where = scenes.relation ^ (edits.slot == 1)  # the slot's object, seen from the other
    moves = np.flatnonzero((edits.kind == PLACE) & (scenes.count == 2) & (where != edits.value))
    for name in ("x", "y", "relation"):
        values[name][moves] = getattr(swap(scenes[moves], "relation"), name)
    return Scenes(**values)


# --- drawing edits ----------------------------------------------------------------------------


def _draw_edits(draws: Draws, scenes: Scenes) -> tuple[Edits, np.ndarray]:
    """An edit for each scene, and whether it can be said and done at all, (N,) bool."""
    kind = draws.below(len(KINDS))
    value = draws.below(np.array([len(values) for values in VALUES])[kind])
    slot, whole = draws.below(scenes.count), draws.below(2) == 1
    place = kind == PLACE
    value = np.where(place, scenes.relation ^ (slot == 1) ^ 1, value)  # the opposite of now
    slot = np.where((kind == BACKGROUND) | (whole & (kind <= SIZE)), -1, slot)
    unique = (scenes.count == 1) | (scenes.shape[:, 0] != scenes.shape[:, 1])
    possible = ((slot < 0) | unique) & (~place | (scenes.count == 2))
    return Edits(kind, slot, value), possible


class Pairs(NamedTuple):
    """Scenes, what is to become of them, and what they become."""

    before: Scenes
    edits: Edits
    after: Scenes


def draw_pairs(seed: int, indices: np.ndarray, *, stream: int = 0, pairs: str = "seen") -> Pairs:
    """Pairs number `indices`: each a pure function of (seed, stream, its number).

    pairs: "seen" (no held-out pair in either), "held_out" (at least one in the second) or "all"
    """
    world = "seen" if pairs == "seen" else "all"

    def attempt(numbers: np.ndarray) -> tuple[Scenes, Edits, np.ndarray]:
        before = draw_scenes(seed, numbers, stream=stream + 8, pairs=world)
        edits, good = _draw_edits(Draws(seed, numbers, stream=stream + 12), before)
        after = apply(before, edits)
        one, other = (np.column_stack([*vars(scenes).values()]) for scenes in (before, after))
        apart = np.maximum(*(np.abs(v[:, 0] - v[:, 1]) for v in (after.x, after.y)))
        reach = np.array(RADIUS)[after.size].sum(axis=1)  # of one object: not used
        good &= ((after.count == 1) | (apart >= reach + GAP)) & (one != other).any(axis=1)
        if pairs != "all":
            good &= has_held_out(after) == (pairs == "held_out")
        return before, edits, good

    before, edits, good = attempt(indices)
    tries = 0
    while not good.all():  # each round draws anew what did not work out in the last
        left, tries = np.flatnonzero(~good), tries + 1
        again, edit, good[left] = attempt(indices[left] + tries * 2**40)
        for column, new in zip([*vars(before).values(), *edits], [*vars(again).values(), *edit],
                               strict=True):  # fmt: skip
            column[left] = new
    return Pairs(before, edits, apply(before, edits))


# --- words ------------------------------------------------------------------------------------


def write(scenes: Scenes, edits: Edits) -> list[str]:
    """One caption for each edit of a scene."""
    captions = []
    for row, (kind, slot, value) in enumerate(zip(*(e.tolist() for e in edits), strict=True)):
        name = SHAPES[scenes.shape[row, slot]] if slot >= 0 else "same"
        if kind == PLACE:
            captions.append(f"the same with the {name} {WITH_WORDS[value]}")
            continue
        word = VALUES[kind][value]
        how = {COLOR: "in", SIZE: "but", BACKGROUND: "on", SHAPE: "as"}[kind]
        captions.append(f"the {name} {how} {article(word) if kind == SHAPE else word}")
    return captions


_NOUN = "|".join(SHAPES)
_FORMS = {
    COLOR: rf"the (same|{_NOUN}) in ({'|'.join(COLORS)})",
    SIZE: rf"the (same|{_NOUN}) but ({'|'.join(SIZES)})",
    BACKGROUND: rf"the (same) on ({'|'.join(BACKGROUNDS)})",
    SHAPE: rf"the ({_NOUN}) as an? ({_NOUN})",
    PLACE: rf"the same with the ({_NOUN}) ({'|'.join(WITH_WORDS)})",
}


def read_edit(caption: str, scene: Scenes) -> Edits:
    """What a caption asks for of one scene, or a UserError that says why it cannot be."""
    text = " ".join(caption.lower().rstrip(" .").split())
    kind, match = next(
        ((k, found) for k, form in _FORMS.items() if (found := re.fullmatch(form, text))),
        (None, None),
    )
    if match is None:
        raise UserError(
            f"caption '{caption[:60]}' is no edit: expected one such as 'the same in red', 'the "
            "circle but small', 'the same on white' or 'the same with the square to its left'"
        )
    name, word = match.groups()
    value = (WITH_WORDS if kind == PLACE else VALUES[kind]).index(word)
    slot, count = -1, int(scene.count[0])
    if name != "same":
        found = [k for k in range(count) if scene.shape[0, k] == SHAPES.index(name)]
        if len(found) != 1:
            raise UserError(
                f"caption '{caption[:60]}': the first picture has {len(found) or 'no'} {name}"
                + "s" * (len(found) > 1)
            )
        slot = found[0]
    if kind == PLACE and (count != 2 or scene.relation[0] // 2 != value // 2):
        raise UserError(f"caption '{caption[:60]}': two objects change places, or nothing does")
    return Edits(*(np.array([number]) for number in (kind, slot, value)))


# --- the oracle: is a second picture what its caption makes of the first? ----------------------

MOST_OFF = 2  # 32nds that an object's centre may be off, across and down
_NOTHING = ObjectReading(None, None, None, -99, -99)


class EditVerdict(NamedTuple):
    """Whether a second picture is right; `place`: every object is where it should be."""

    count: bool
    shape: bool
    color: bool
    size: bool
    background: bool
    place: bool

    @property
    def exact(self) -> bool:
        """All is right."""
        return all(self)


def scene_of(reading: Reading) -> Scenes:
    """The one scene of a reading, or a UserError where something in it is unclear."""
    objects = reading.objects
    unclear = reading.background is None or reading.count not in (1, 2)
    if unclear or any(o.shape is None for o in objects):
        raise UserError("the first picture is no clear scene of the Shapes world")
    rows = [(SHAPES.index(o.shape), [*COLORS].index(o.color), SIZES.index(o.size), o.x, o.y)
            for o in objects] + [(-1,) * 5]  # fmt: skip
    relation = RELATIONS.index(reading.relation) if reading.relation else -1
    ground = [*BACKGROUNDS].index(reading.background)
    columns = (np.array([pair]) for pair in zip(*rows[:2], strict=True))
    return Scenes(np.array([len(objects)]), *columns, np.array([ground]), np.array([relation]))


def expected(caption: str, first: np.ndarray) -> Scenes:
    """The one scene that a caption makes of a first picture.

    first: (3, S, S) uint8
    """
    before = scene_of(read(first[None])[0])
    return apply(before, read_edit(caption, before))


def matches_edit(scene: Scenes, reading: Reading) -> EditVerdict:
    """Whether a second picture is the one scene that was to be: all objects, the background, and
    that what was not to move has stayed where it was."""
    columns = np.stack([scene.shape, scene.color, scene.size, scene.x, scene.y], axis=2)
    wanted = [named(*indices) for indices in columns[0, : scene.count[0]].tolist()]
    found = [*reading.objects, *[_NOTHING] * len(wanted)]

    def agreement(seen: tuple[ObjectReading, ...]) -> list[bool]:
        pairs = list(zip(wanted, seen, strict=True))
        names = [all(w[k] == s[k] for w, s in pairs) for k in range(3)]
        return [*names, all(max(abs(w.x - s.x), abs(w.y - s.y)) <= MOST_OFF for w, s in pairs)]

    orders = permutations(found, len(wanted))
    shape, color, size, place = max(map(agreement, orders), key=sum)
    background = reading.background == tuple(BACKGROUNDS)[scene.background[0]]
    count = reading.count == len(wanted)
    return EditVerdict(count, shape, color, size, background, place)


# --- the source -------------------------------------------------------------------------------


def render_pairs(pairs: Pairs, size: int) -> np.ndarray:
    """returns: (N, 3, 2*S, S) uint8, the second picture below the first"""
    return np.concatenate([render(scenes, size) for scenes in (pairs.before, pairs.after)], axis=2)


class EditsSource(WorldSource):
    """Pairs of pictures with a caption of the change."""

    world = "shapes:edits"
    version = 1
    items = "pairs"
    draw = staticmethod(draw_pairs)
    paint = staticmethod(render_pairs)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """The caption of each pair, which has but one."""
        found = self.scenes(indices)
        return write(found.before, found.edits)

    def all_captions(self, index: int) -> list[str]:
        """The one caption of a pair."""
        return self.captions(np.array([index]), np.random.default_rng(0))
