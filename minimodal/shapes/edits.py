"""Edits in the Shapes world: a picture, a caption of what becomes of it, and the second picture.

    the same in red · the same but large · the same on white          (all of it)
    the circle in blue · the square but small · the circle as a star  (one of its objects)
    the same with the square to its left                              (the two change places)

That is the whole language, and no caption makes sense without its first picture (Ramesh et al.
2021, section 3.3). `write` puts edits into words, `read_edit` reads a caption before a scene, and
`apply` makes the second scene of the first. `EditsSource` has the interface of every source, but
its pictures are two, one above the other: uint8 (B, 3, 2*S, S).

Neither picture of pairs "seen" has a HELD_OUT colour and shape; of pairs "held_out" the second
has at least one. Read `world.py` before; `oracle_edits.py` judges second pictures.
"""

import re
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from minimodal.errors import UserError
from minimodal.shapes.base import WorldSource
from minimodal.shapes.language import WITH_WORDS, article
from minimodal.shapes.world import (
    BACKGROUNDS,
    COLORS,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    Draws,
    Scenes,
    concatenate,
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
    values = {f.name: getattr(scenes, f.name).copy() for f in fields(scenes)}
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


def _same(one: Scenes, other: Scenes) -> np.ndarray:
    """returns: (N,) bool, True where two scenes are equal."""
    equal = [getattr(one, f.name) == getattr(other, f.name) for f in fields(Scenes)]
    return np.all([e.all(axis=tuple(range(1, e.ndim))) for e in equal], axis=0)


def _fits(scenes: Scenes) -> np.ndarray:
    """returns: (N,) bool, True where two objects leave a gap between them."""
    apart = np.maximum(*(np.abs(v[:, 0] - v[:, 1]) for v in (scenes.x, scenes.y)))
    reach = np.array(RADIUS)[scenes.size].sum(axis=1)  # of one object: not used
    return (scenes.count == 1) | (apart >= reach + GAP)


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
    indices = np.asarray(indices, dtype=np.int64)
    world = "seen" if pairs == "seen" else "all"
    rows, scenes, edits, left = [], [], [], np.arange(len(indices))
    while not rows or len(left):  # each round draws anew what did not work out in the last
        numbers = indices[left] + len(rows) * 2**40
        before = draw_scenes(seed, numbers, stream=stream + 8, pairs=world)
        edit, good = _draw_edits(Draws(seed, numbers, stream=stream + 12), before)
        after = apply(before, edit)
        good &= _fits(after) & ~_same(before, after)
        if pairs != "all":
            good &= has_held_out(after) == (pairs == "held_out")
        rows.append(left[good])
        scenes.append(before[good])
        edits.append([part[good] for part in edit])
        left = left[~good]
    order = np.argsort(np.concatenate(rows))
    before = concatenate(scenes)[order]
    edit = Edits(*(np.concatenate(parts)[order] for parts in zip(*edits, strict=True)))
    return Pairs(before, edit, apply(before, edit))


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


# --- the source -------------------------------------------------------------------------------


class EditsSource(WorldSource):
    """Pairs of pictures with a caption of the change; `length` of them, made when asked for."""

    world = "shapes:edits"
    version = 1
    items = "pairs"

    def scenes(self, indices: np.ndarray) -> Pairs:
        """The scenes before and after, and the edits.

        indices: (B,) int64
        """
        numbers = self.numbers(indices)
        return draw_pairs(self.seed, numbers, stream=self.stream, pairs=self.pairs)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """The pairs, the second picture below the first.

        indices: (B,) int64
        returns: (B, 3, 2*S, S) uint8
        """
        found = self.scenes(indices)
        both = [render(scenes, self.image_size) for scenes in (found.before, found.after)]
        return np.concatenate(both, axis=2)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """The caption of each pair, which has but one."""
        found = self.scenes(indices)
        return write(found.before, found.edits)

    def all_captions(self, index: int) -> list[str]:
        """The one caption of a pair."""
        return self.captions(np.array([index]), np.random.default_rng(0))
