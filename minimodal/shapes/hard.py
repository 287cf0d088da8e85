"""A harder Shapes world: one to three objects anywhere, upon each other, on textured ground.

Everything that makes the plain world easy for patches is gone: centres are any whole pixel, later
objects cover earlier ones (of each one's box at least 60 % stays visible, but for about one scene
in two hundred, where three found no such places), and the ground is plain, striped, checked, dotted
or shaded in two tones of its grey. Colours of a scene differ. Shapes, colours, sizes and the
HELD_OUT pairs are those of `world.py`, captions are read by the same parser:
"a large red circle and a small blue square and a small green star on gray".

`HardSource` has the interface of every source: images(indices) -> uint8 (B, 3, S, S), captions
(indices, rng) -> B strings. `oracle_hard.py` reads the pictures back.
"""

from dataclasses import dataclass

import numpy as np

from minimodal.shapes.language import OMIT_BACKGROUND, OMIT_COLOR, OMIT_SIZE, article
from minimodal.shapes.source import WorldSource
from minimodal.shapes.world import (
    ALL_PAIRS,
    BACKGROUNDS,
    COLORS,
    HELD_PAIRS,
    IS_HELD_OUT,
    RADIUS,
    SEEN_PAIRS,
    SHAPES,
    SIZES,
    Draws,
    Rows,
    coverage,
)

MOST = 3  # objects of a scene
TEXTURES = ("plain", "stripes", "checks", "dots", "shade")
TONE = 40  # levels between the two tones of a texture
VISIBLE = 0.6  # share of an object's box that no other should cover
TRIES = 12  # placements among which the first that shows enough of every object is taken, or
# else the one that shows most: more tries would be slower and other pictures
CLEAR = (8, 4)  # a relation is said where centres are so far apart along it, and so near across


@dataclass(frozen=True)
class HardScenes(Rows):
    """N scenes; absent objects hold -1. Later slots lie upon earlier ones.

    count: (N,) 1 to 3
    shape, color, size, x, y: (N, 3) indices; centres in pixels of a 32 x 32 picture
    background, texture: (N,) indices
    period, phase: (N,) of the texture, in pixels
    """

    count: np.ndarray
    shape: np.ndarray
    color: np.ndarray
    size: np.ndarray
    x: np.ndarray
    y: np.ndarray
    background: np.ndarray
    texture: np.ndarray
    period: np.ndarray
    phase: np.ndarray


def _pairs(draws: Draws, count: np.ndarray, pairs: str) -> np.ndarray:
    """Colour and shape of each object, colours all different. returns: (N, 3, 2)"""
    N = len(count)
    table = SEEN_PAIRS if pairs == "seen" else ALL_PAIRS
    chosen = np.stack([table[draws.below(len(table))] for _ in range(MOST)], axis=1)
    fixed = np.zeros((N, MOST), bool)
    if pairs == "held_out":
        special, slot = HELD_PAIRS[draws.below(len(HELD_PAIRS))], draws.below(count)
        chosen[np.arange(N), slot] = special
        fixed[np.arange(N), slot] = True  # such a pair stays as it is; the others give way
    for _ in range(len(COLORS)):
        for k in range(MOST):
            same = chosen[:, :, 0] == chosen[:, k : k + 1, 0]
            same[:, k] = False
            rivals = same & (fixed | (np.arange(MOST) < k))  # earlier slots keep their colour
            unseen = IS_HELD_OUT[chosen[:, k, 0], chosen[:, k, 1]] & (pairs == "seen")
            move = (rivals.any(axis=1) | unseen) & ~fixed[:, k]
            chosen[move, k, 0] = (chosen[move, k, 0] + 1) % len(COLORS)
    return chosen


def _visible(x: np.ndarray, y: np.ndarray, radius: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The least share of an object's box that later boxes leave visible, at least. returns: (N,)"""
    least = np.ones(len(x))
    for k in range(MOST):
        covered = np.zeros(len(x))
        for j in range(k + 1, MOST):
            reach = radius[:, k] + radius[:, j]
            wide = (reach - np.abs(x[:, k] - x[:, j])).clip(0, 2 * radius[:, k])
            high = (reach - np.abs(y[:, k] - y[:, j])).clip(0, 2 * radius[:, k])
            covered += np.where(j < count, wide * high / (2 * radius[:, k]) ** 2, 0)
        least = np.where(k < count, np.minimum(least, 1 - covered), least)
    return least


def draw_hard(
    seed: int, indices: np.ndarray, *, stream: int = 0, pairs: str = "seen"
) -> HardScenes:
    """Scenes number `indices`: each a pure function of (seed, stream, its number).

    pairs: "seen" (no held-out pair), "held_out" (at least one) or "all"
    """
    draws = Draws(seed, indices, stream=32 + stream)
    N = len(indices)
    count = np.array([1, 2, 2, 3, 3])[draws.below(5)]
    chosen = _pairs(draws, count, pairs)
    size = np.stack([draws.below(2) for _ in range(MOST)], axis=1)
    radius = np.array(RADIUS)[size]
    x, y, best = np.zeros((N, MOST), int), np.zeros((N, MOST), int), np.full(N, -1.0)
    for _ in range(TRIES):
        new_x, new_y = (
            np.stack([r + draws.below(32 - 2 * r + 1) for r in radius.T], axis=1) for _ in "xy"
        )
        share = np.minimum(_visible(new_x, new_y, radius, count), VISIBLE)
        better = (share > best)[:, None]
        x, y, best = np.where(better, new_x, x), np.where(better, new_y, y), np.maximum(best, share)
    absent = np.arange(MOST) >= count[:, None]
    shape, color = chosen[:, :, 1].copy(), chosen[:, :, 0].copy()
    for field in (shape, color, size, x, y):
        field[absent] = -1
    return HardScenes(
        count, shape, color, size, x, y, draws.below(len(BACKGROUNDS)),
        draws.below(len(TEXTURES)), 4 + draws.below(5), draws.below(8),
    )  # fmt: skip


def ground(scenes: HardScenes, row: int, side: int) -> np.ndarray:
    """One scene's textured ground. returns: (S, S) grey levels"""
    base = list(BACKGROUNDS.values())[scenes.background[row]][0]
    other = base - TONE if base > 127 else base + TONE
    v, u = np.meshgrid(
        *[(np.arange(side) + 0.5) * 32 / side + scenes.phase[row]] * 2, indexing="ij"
    )
    half = scenes.period[row] / 2
    across, down = u // half % 2, v // half % 2
    share = {
        "plain": np.zeros_like(u),
        "stripes": across if scenes.phase[row] % 2 else down,
        "checks": (across + down) % 2,
        "dots": across * down,
        "shade": (v - scenes.phase[row]) / 32,
    }[TEXTURES[scenes.texture[row]]]
    return base + (other - base) * share


def render_hard(scenes: HardScenes, size: int = 32) -> np.ndarray:
    """returns: (N, 3, S, S) uint8 pictures, later objects upon earlier ones"""
    palette = np.array(list(COLORS.values()), dtype=np.float64)
    pictures = np.empty((len(scenes), 3, size, size), dtype=np.uint8)
    for row in range(len(scenes)):
        picture = np.repeat(ground(scenes, row, size)[None], 3, axis=0)
        for k in range(int(scenes.count[row])):
            what = (int(scenes.shape[row, k]), int(scenes.size[row, k]))
            where = (float(scenes.x[row, k]), float(scenes.y[row, k]))
            mask = coverage(size, *what, *where) / 64
            picture += mask * (palette[scenes.color[row, k]][:, None, None] - picture)
        pictures[row] = np.round(picture)
    return pictures


def relation_of(scenes: HardScenes, row: int) -> str | None:
    """Where object 0 is, seen from object 1, of a scene of two where that is clear."""
    if scenes.count[row] != 2:
        return None
    dx, dy = (int(v[row, 0] - v[row, 1]) for v in (scenes.x, scenes.y))
    far, near = CLEAR
    if abs(dx) >= far and abs(dy) <= near:
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= far and abs(dx) <= near:
        return "above" if dy < 0 else "below"
    return None


def hard_caption(scenes: HardScenes, row: int, draws: np.ndarray, *, full: bool) -> str:
    """A scene in words; all of it where full, else with something left out at times."""
    names = []
    for k in range(int(scenes.count[row])):
        words = [SHAPES[scenes.shape[row, k]]]
        if full or draws[k] >= OMIT_COLOR:
            words.insert(0, tuple(COLORS)[scenes.color[row, k]])
        if full or draws[3 + k] >= OMIT_SIZE:
            words.insert(0, SIZES[scenes.size[row, k]])
        names.append(article(" ".join(words)))
    relation = relation_of(scenes, row)
    if relation is not None:
        text = f"{names[0]} {relation} {names[1]}"
    else:
        order = np.argsort(draws[6 : 6 + len(names)])  # nothing in a caption tells what covers what
        text = " and ".join(names[i] for i in order)
    if full or draws[9] >= OMIT_BACKGROUND:
        text += f" on {tuple(BACKGROUNDS)[scenes.background[row]]}"
    return text


class HardSource(WorldSource):
    """Captioned pictures of the hard world."""

    world = "shapes:hard"
    version = 1
    draw = staticmethod(draw_hard)
    paint = staticmethod(render_hard)

    def captions(
        self, indices: np.ndarray, rng: np.random.Generator, *, full: bool = False
    ) -> list[str]:
        """One caption per picture; unless `full`, sizes, colours and the ground are left out at
        times."""
        scenes = self.scenes(indices)
        draws = rng.random((len(scenes), 10))
        return [hard_caption(scenes, i, draws[i], full=full) for i in range(len(scenes))]

    def full_captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """Captions that state every size and colour and the ground."""
        return self.captions(indices, rng, full=True)

    def all_captions(self, index: int) -> list[str]:
        """Five captions of one picture, the first of them a full one; always the same."""
        rng = np.random.default_rng((self.seed % 2**64, index))
        five = np.full(5, index)
        return self.full_captions(five[:1], rng) + self.captions(five[1:], rng)
