"""The Shapes world: scenes of one or two flat-coloured shapes on a flat background, and pictures.

A scene is a row of small integers (`Scenes`, a struct of arrays). Scene number i of a seed is a
pure function of (seed, i): a counter-based hash gives each of its fields, so that thousands of
scenes are one numpy expression and no order of drawing matters. `render` turns scenes into uint8
pictures (N, 3, S, S) at any size S; `swap` exchanges the colours, shapes or places of two objects.

Coordinates are those of a 32 x 32 picture, y downwards, and a centre (8, 12) is a corner between
pixels. Centres lie on multiples of 4, so that a shape meets a grid of 4 x 4 patches always in the
same way. Six of the 48 (colour, shape) pairs are HELD_OUT: training never shows them, and a model
that still draws them has understood that a caption is made of parts.

Captions and their parser are in `language.py`, the data source is in `source.py`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = {
    "red": (225, 25, 35), "green": (30, 160, 50), "blue": (40, 70, 230), "yellow": (255, 225, 40),
    "purple": (130, 30, 160), "orange": (255, 125, 0), "cyan": (40, 210, 225),
    "pink": (255, 130, 190),
}  # fmt: skip
SIZES = ("small", "large")
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
RELATIONS = ("left", "right", "above", "below")  # where slot 0 is, seen from slot 1
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RADIUS = (4, 7)  # of a size, in pixels of a 32 x 32 picture
LATTICE = (8, 12, 16, 20, 24)
HELD_OUT = (("red", "star"), ("green", "ring"), ("blue", "triangle"), ("yellow", "circle"),
            ("purple", "square"), ("orange", "cross"))  # fmt: skip

# (colour, shape) as indices
ALL_PAIRS = np.argwhere(np.ones((len(COLORS), len(SHAPES)), dtype=bool))  # (48, 2)
HELD_PAIRS = np.array([([*COLORS].index(c), SHAPES.index(s)) for c, s in HELD_OUT])  # (6, 2)
IS_HELD_OUT = np.zeros((len(COLORS), len(SHAPES)), dtype=bool)
IS_HELD_OUT[HELD_PAIRS[:, 0], HELD_PAIRS[:, 1]] = True
SEEN_PAIRS = np.argwhere(~IS_HELD_OUT)  # (42, 2)

# Along the relation the boxes leave a gap of at least 2 pixels; 12 apart is enough for two small
# objects only. Across it the centres are at most 4 apart, so that the relation is never in doubt.
_ALONG = np.array([(8, 24), (8, 20), (12, 24)])
_ACROSS = np.array([(a, b) for a in LATTICE for b in LATTICE if abs(a - b) <= 4])


class Rows:
    """N scenes as a struct of arrays, each with N rows."""

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: int | slice | np.ndarray) -> "Rows":
        """The chosen scenes; an int gives one scene, still with its leading axis."""
        rows = np.atleast_1d(np.arange(len(self))[index])
        return type(self)(*(column[rows] for column in vars(self).values()))


@dataclass(frozen=True)
class Scenes(Rows):
    """N scenes. Slot 1 of a one-object scene and its relation hold -1.

    count: (N,) 1 or 2
    shape, color, size, x, y: (N, 2) indices into SHAPES, COLORS, SIZES; centres in 32nds
    background: (N,) index into BACKGROUNDS
    relation: (N,) index into RELATIONS: where slot 0 is, seen from slot 1
    """

    count: np.ndarray
    shape: np.ndarray
    color: np.ndarray
    size: np.ndarray
    x: np.ndarray
    y: np.ndarray
    background: np.ndarray
    relation: np.ndarray


def has_held_out(scenes: Scenes) -> np.ndarray:
    """returns: (N,) bool, True where an object is one of the HELD_OUT pairs."""
    return (IS_HELD_OUT[scenes.color, scenes.shape] & (scenes.shape >= 0)).any(axis=1)


# --- drawing scenes ---------------------------------------------------------------------------


def _mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of uint64; every output bit depends on all of z."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Draws:
    """Uniform integers as a pure function of (seed, stream, index, how many were drawn before)."""

    def __init__(self, seed: int, indices: np.ndarray, *, stream: int) -> None:
        key = _mix(np.array([(seed * 64 + stream) % 2**64], dtype=np.uint64))
        golden = np.uint64(0x9E3779B97F4A7C15)
        self._state = _mix(key + (indices.astype(np.uint64) + np.uint64(1)) * golden)
        self._field = 0

    def below(self, n: int | np.ndarray) -> np.ndarray:
        """returns: (N,) int64, uniform in [0, n); n may differ from scene to scene."""
        self._field += 1
        bits = _mix(self._state + np.uint64(self._field * 0xD1342543DE82EF95 % 2**64))
        share = (bits >> np.uint64(32)) * np.asarray(n, dtype=np.uint64)
        return (share >> np.uint64(32)).astype(np.int64)


def _assemble(draws: Draws, count: np.ndarray, pair: np.ndarray) -> Scenes:
    """Draws all that is left. count: (N,); pair: (N, 2, 2) slot, then (colour, shape)."""
    size = np.stack([draws.below(2), draws.below(2)], axis=1)
    background = draws.below(len(BACKGROUNDS))
    relation = draws.below(4)
    along = _ALONG[draws.below(np.where(size.sum(axis=1) == 0, 3, 1))]  # (N, 2) of both objects
    across = _ACROSS[draws.below(len(_ACROSS))]
    along = np.where((relation % 2 == 0)[:, None], along, along[:, ::-1])
    horizontal = (relation < 2)[:, None]
    x, y = np.where(horizontal, along, across), np.where(horizontal, across, along)
    one = count == 1
    x[:, 0] = np.where(one, np.array(LATTICE)[draws.below(len(LATTICE))], x[:, 0])
    y[:, 0] = np.where(one, np.array(LATTICE)[draws.below(len(LATTICE))], y[:, 0])
    color, shape = pair[:, :, 0].copy(), pair[:, :, 1].copy()
    for field in (shape, color, size, x, y):
        field[one, 1] = -1
    relation[one] = -1
    return Scenes(count, shape, color, size, x, y, background, relation)


def draw_scenes(seed: int, indices: np.ndarray, *, stream: int = 0, pairs: str = "seen") -> Scenes:
    """Scenes number `indices` of (seed, stream); 40 % have one object.

    pairs: "seen" (no held-out pair), "held_out" (at least one) or "all"
    """
    draws = Draws(seed, indices, stream=stream)
    count = 1 + (draws.below(5) >= 2).astype(np.int64)
    if pairs == "held_out":
        first = HELD_PAIRS[draws.below(len(HELD_PAIRS))]
        second = ALL_PAIRS[draws.below(len(ALL_PAIRS))]
        exchange = ((draws.below(2) == 1) & (count == 2))[:, None]
        first, second = np.where(exchange, second, first), np.where(exchange, first, second)
    else:
        table = SEEN_PAIRS if pairs == "seen" else ALL_PAIRS
        first, second = table[draws.below(len(table))], table[draws.below(len(table))]
    return _assemble(draws, count, np.stack([first, second], axis=1))


# --- scenes that differ in one thing ----------------------------------------------------------


def swap(scenes: Scenes, what: str) -> Scenes:
    """Two-object scenes with the objects' colours, shapes or places exchanged.

    what: "color", "shape", "relation" (the places along the relation's axis), or "axis": across
        and down exchanged, so that left becomes above and right becomes below
    """
    if np.any(scenes.count != 2):
        raise ValueError("only a scene of two objects has something to swap; pick count == 2 first")
    values = dict(vars(scenes))
    if what in ("color", "shape"):
        values[what] = values[what][:, ::-1].copy()
    elif what == "relation":
        horizontal = (scenes.relation < 2)[:, None]
        values["x"] = np.where(horizontal, scenes.x[:, ::-1], scenes.x)
        values["y"] = np.where(horizontal, scenes.y, scenes.y[:, ::-1])
        values["relation"] = scenes.relation ^ 1
    elif what == "axis":
        values["x"], values["y"] = scenes.y, scenes.x
        values["relation"] = scenes.relation ^ 2
    else:
        raise ValueError(f"swap {what!r}: expected 'color', 'shape', 'relation' or 'axis'")
    return Scenes(**values)


@lru_cache(maxsize=4)
def _two_pairs(pairs: str, *, one_color: bool) -> np.ndarray:
    """Two (colour, shape) pairs of different shapes, of one colour or of two colours that can be
    exchanged without an unwanted pair.

    returns: (M, 2, 2)
    """
    allowed = ~IS_HELD_OUT | (pairs == "all")
    each = np.argwhere(allowed)  # (colour, shape)
    return np.array(
        [((c, s), (d, t)) for c, s in each for d, t in each
         if s != t and (c == d) == one_color and allowed[c, t] and allowed[d, s]]
    )  # fmt: skip


@lru_cache(maxsize=2)
def _other_shapes(pairs: str) -> np.ndarray:
    """For each colour and shape 60 other shapes that this colour may have, each equally often.

    returns: (colours, shapes, 60)
    """
    allowed = ~IS_HELD_OUT | (pairs == "all")
    table = np.zeros((*allowed.shape, 60), np.int64)
    for c, s in np.ndindex(allowed.shape):
        others = [t for t in range(len(SHAPES)) if t != s and allowed[c, t]]
        table[c, s] = np.resize(others, 60)  # 60 is a multiple of 3, 4 and 5
    return table


def draw_contrast(seed: int, indices: np.ndarray, *, stream: int, pairs: str = "seen") -> Scenes:
    """Scenes in groups of four, indices 4g to 4g + 3.

    Half of the groups are four unrelated scenes. The others are one scene of two objects in four
    variants: as it is; with the relation reversed; with the axis, the colours or the shapes
    exchanged or one shape replaced; with both. Only who is where tells the first two apart. In a
    quarter of these groups both objects have one colour: then their shapes alone tell them apart.
    pairs: "seen" or "all"
    """
    member = indices % 4
    draws = Draws(seed, indices // 4, stream=stream)
    two, alike = (_two_pairs(pairs, one_color=one) for one in (False, True))
    related, kind, one_color = draws.below(2) == 1, draws.below(4), draws.below(4) == 0
    pair = two[draws.below(len(two))]  # (N, 2, 2)
    pair = np.where(one_color[:, None, None], alike[draws.below(len(alike))], pair)
    other = _other_shapes(pairs)[pair[:, 0, 0], pair[:, 0, 1], draws.below(60)]
    # With one colour, exchanged shapes say the same as exchanged places, and so do equal shapes.
    kind = np.where(one_color, np.where(other == pair[:, 1, 1], 2, 2 + kind % 2), kind)
    base = _assemble(draws, np.full(len(indices), 2), pair)
    # Unrelated scenes come from a stream of their own.
    scenes = draw_scenes(seed, indices, stream=stream + 4, pairs=pairs)
    values = vars(scenes)
    for name, value in values.items():
        value[related] = getattr(base, name)[related]
    late = member >= 2
    replaced = related & late & (kind == 3)
    values["shape"][replaced, 0] = other[replaced]
    swaps = {"color": late & (kind == 0), "shape": late & (kind == 1), "axis": late & (kind == 2)}
    for what, wanted in (swaps | {"relation": member % 2 == 1}).items():
        rows = np.flatnonzero(related & wanted)
        changed = swap(scenes[rows], what)
        for name, value in values.items():
            value[rows] = getattr(changed, name)
    return scenes


def statements(scenes: Scenes) -> np.ndarray:
    """What full captions of the scenes say: equal rows are true of the same pictures.

    "A left of B" says the same as "B right of A", so the lesser object goes first.

    returns: (N, 4) int64 first object, second object, relation, background
    """
    objects = (scenes.shape * len(COLORS) + scenes.color) * len(SIZES) + scenes.size  # (N, 2)
    one, first, second = scenes.count == 1, objects[:, 0], objects[:, 1]
    turn = ~one & ((first > second) | ((first == second) & (scenes.relation % 2 == 1)))
    lesser, other = np.where(turn, second, first), np.where(turn, first, second)
    relation = np.where(turn, scenes.relation ^ 1, scenes.relation)
    return np.stack([lesser, np.where(one, -1, other), relation, scenes.background], axis=1)


def without_relation(scenes: Scenes) -> np.ndarray:
    """What full captions say that leave out where objects are: equal where they say the same in
    whichever order.

    returns: (N,) int64
    """
    first, second, _, ground = statements(scenes).T
    kinds = len(SHAPES) * len(COLORS) * len(SIZES)
    return (first * (kinds + 1) + second + 1) * len(BACKGROUNDS) + ground


# --- pictures ---------------------------------------------------------------------------------

_SUB = 8  # 8 x 8 samples per pixel: coverage comes in 64ths


def _inside_star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A five-pointed star, one point up: outer radius 1, inner radius 0.42."""
    # By symmetry one wedge of 36 degrees, from a point of the star to the dent beside it.
    wedge = np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + wedge) % (2 * wedge) - wedge)
    radius = np.hypot(u, v)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    dent_x, dent_y = 0.42 * np.cos(wedge), 0.42 * np.sin(wedge)
    return (px - 1) * dent_y - py * (dent_x - 1) <= 0


def _inside(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether (u, v), in radii from the centre and v downwards, lies in the shape."""
    name = SHAPES[shape]
    if name == "circle":
        return u * u + v * v <= 1
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 1
    if name == "triangle":
        return (v <= 1) & (np.abs(u) <= (v + 1) / 2)
    if name == "star":
        return _inside_star(u, v)
    if name == "cross":
        narrow, wide = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return (narrow <= 0.36) & (wide <= 1)
    return (u * u + v * v <= 1) & (u * u + v * v >= 0.55**2)


@lru_cache(maxsize=4096)
def _patch(image_size: int, shape: int, size: int, fx: float, fy: float) -> np.ndarray:
    """The shape alone, its centre (fx, fy) pixels off the corner in the middle. (P, P) int16."""
    radius = RADIUS[size] * image_size / 32
    half = int(np.ceil(radius)) + 1
    steps = (np.arange(2 * half * _SUB) + 0.5) / _SUB - half
    v, u = np.meshgrid((steps - fy) / radius, (steps - fx) / radius, indexing="ij")
    hits = _inside(shape, u, v).reshape(2 * half, _SUB, 2 * half, _SUB)
    return hits.sum(axis=(1, 3)).astype(np.int16)


@lru_cache(maxsize=512)
def coverage(image_size: int, shape: int, size: int, x: float, y: float) -> np.ndarray:
    """returns: (S, S) int16, how much of each pixel the shape covers, in 64ths (read-only)."""
    cx, cy = x * image_size / 32, y * image_size / 32
    left, top = int(np.floor(cx)), int(np.floor(cy))
    patch = _patch(image_size, shape, size, cx - left, cy - top)
    half = len(patch) // 2
    canvas = np.zeros((image_size + 2 * half, image_size + 2 * half), dtype=np.int16)
    if -half <= left <= image_size + half and -half <= top <= image_size + half:
        window = canvas[max(top, 0) :, max(left, 0) :]
        inner = patch[max(-top, 0) :, max(-left, 0) :][: len(window), : window.shape[1]]
        window[: inner.shape[0], : inner.shape[1]] = inner
    mask = np.ascontiguousarray(canvas[half : half + image_size, half : half + image_size])
    mask.flags.writeable = False
    return mask


def render(scenes: Scenes, size: int = 32) -> np.ndarray:
    """returns: (N, 3, S, S) uint8 pictures, antialiased; covered pixels have the exact colour."""
    N = len(scenes)
    background = np.array(list(BACKGROUNDS.values()), dtype=np.int16)[scenes.background]  # (N, 3)
    palette = np.array([*COLORS.values(), (0, 0, 0)], dtype=np.int16)  # -1 is an absent object
    contrast = palette[scenes.color] - background[:, None]  # (N, 2, 3)
    pictures = np.empty((N, 3, size, size), dtype=np.uint8)
    chunk = max(1, 64 * 1024 // size**2)  # of int16 pictures that stay in the cache
    places = np.stack([scenes.shape, scenes.size, scenes.x, scenes.y], axis=2)  # (N, 2, 4)
    keys, table_index = np.unique(places.reshape(-1, 4), axis=0, return_inverse=True)
    table_index = table_index.reshape(N, 2)
    empty = np.zeros((size, size), dtype=np.int16)
    table = [empty if k[0] < 0 else coverage(size, *k) for k in map(tuple, keys.tolist())]
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        # 64 * 255 fits int16, and objects never overlap: the sum is a blend of two colours at most.
        total = np.empty((len(pictures[rows]), 3, size, size), dtype=np.int16)
        for n, (first, second) in enumerate(table_index[rows].tolist()):
            np.multiply(table[first], contrast[start + n, 0][:, None, None], out=total[n])
            if scenes.count[start + n] == 2:
                total[n] += table[second] * contrast[start + n, 1][:, None, None]
        total += 32
        total >>= 6
        total += background[rows][:, :, None, None]
        pictures[rows] = total
    return pictures
