"""The oracle of edits: is a second picture what its caption makes of the first?

The first picture is known as a scene, or read by `oracle.py`; `expected` applies the caption to
it, and `matches_edit` compares the scene that this gives with what the oracle reads in the second
picture: all objects, the background, and that what was not to move has stayed where it was. Read
`edits.py` and `oracle.py` before.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np

from minimodal.errors import UserError
from minimodal.shapes.edits import apply, read_edit
from minimodal.shapes.oracle import ObjectReading, Reading, read
from minimodal.shapes.world import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Scenes

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

    def row(names: list[int]) -> np.ndarray:
        return np.array([names + [-1] * (2 - len(names))])

    relation = RELATIONS.index(reading.relation) if reading.relation else -1
    return Scenes(
        np.array([len(objects)]),
        row([SHAPES.index(o.shape) for o in objects]),
        row([tuple(COLORS).index(o.color) for o in objects]),
        row([SIZES.index(o.size) for o in objects]),
        row([o.x for o in objects]),
        row([o.y for o in objects]),
        np.array([tuple(BACKGROUNDS).index(reading.background)]),
        np.array([relation]),
    )


def expected(caption: str, first: np.ndarray) -> Scenes:
    """The one scene that a caption makes of a first picture.

    first: (3, S, S) uint8
    """
    before = scene_of(read(first[None])[0])
    return apply(before, read_edit(caption, before))


def _objects(scene: Scenes) -> list[ObjectReading]:
    columns = (scene.shape, scene.color, scene.size, scene.x, scene.y)
    return [
        ObjectReading(SHAPES[shape], tuple(COLORS)[color], SIZES[size], x, y)
        for shape, color, size, x, y in np.stack(columns, axis=2)[0, : scene.count[0]].tolist()
    ]


def _agreement(wanted: list[ObjectReading], seen: tuple[ObjectReading, ...]) -> list[bool]:
    """Whether all shapes, colours, sizes and places agree, object by object."""
    pairs = list(zip(wanted, seen, strict=True))
    names = [all(w[k] == s[k] for w, s in pairs) for k in range(3)]
    return [*names, all(max(abs(w.x - s.x), abs(w.y - s.y)) <= MOST_OFF for w, s in pairs)]


def matches_edit(scene: Scenes, reading: Reading) -> EditVerdict:
    """Whether a second picture is the one scene that was to be."""
    wanted = _objects(scene)
    found = [*reading.objects, *[_NOTHING] * len(wanted)]
    orders = permutations(found, len(wanted))
    shape, color, size, place = max((_agreement(wanted, o) for o in orders), key=sum)
    background = reading.background == tuple(BACKGROUNDS)[scene.background[0]]
    count = reading.count == len(wanted)
    return EditVerdict(count, shape, color, size, background, place)
