"""The oracle of the hard Shapes world: reads a picture back, with nothing learned.

Colours of a scene differ, so each palette colour has at most one object. Pixels near a palette
colour are its evidence; of all shapes, sizes and places the one is taken whose picture agrees most
with it, where pixels of other objects may hide a part. An object that fits badly is unclear (its
names are None), evidence that is left over makes the count None, and so does colour that is no
object's. `read_hard` gives a `Reading` as `oracle.read` does; comparing with captions is the same.

Pictures (N, 3, S, S) uint8 in, of any size. Read `oracle.py` before.
"""

from functools import lru_cache
from itertools import product

import numpy as np

from minimodal.shapes.oracle import Reading, named, read, reading_of, to_32
from minimodal.shapes.world import BACKGROUNDS, COLORS, RADIUS, SHAPES, coverage

NEAR = 70.0  # distance from a palette colour within which a pixel is evidence for it
COLORED = 60  # levels between a pixel's channels from which on it is no grey
LEAST = 9  # pixels of evidence that make an object
MIN_AGREEMENT = 0.6  # of evidence and the object's visible part: their overlap over their union
MAX_LEFT = 8  # pixels of a colour beside its object
MAX_STRAY = 14  # coloured pixels beside all objects that are near no palette colour
HIDDEN = 0.25  # what a hidden pixel of an object costs, where a missing one costs 1
MAX_GROUND_ERROR = 50.0  # levels between the ground and the nearest of white, black and gray

_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)
_GROUNDS = np.array([rgb[0] for rgb in BACKGROUNDS.values()], dtype=np.float32)
_S = 32


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, ...]:
    """Every shape, size and place, (T, 4) shape, size, y, x; its coverage, the squares of that, and
    1 where it is whole, (T, 1024) each."""
    what = [
        (shape, size, y, x)
        for size, radius in enumerate(RADIUS)
        for shape, y, x in product(range(len(SHAPES)), *[range(radius - 1, _S - radius + 2)] * 2)
    ]
    masks = [coverage(_S, shape, size, float(x), float(y)) / 64 for shape, size, y, x in what]
    stacked = np.array(masks, dtype=np.float32).reshape(len(masks), -1)
    return np.array(what), stacked, stacked**2, (stacked > 0.75).astype(np.float32)


def _grow(mask: np.ndarray) -> np.ndarray:
    """A mask and one pixel around. mask: (..., 32, 32) bool"""
    padded = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    rows = padded[..., :-2, :] | padded[..., 1:-1, :] | padded[..., 2:, :]
    return rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]


def _solid(mask: np.ndarray) -> np.ndarray:
    """A mask without its parts that are thinner than 2 x 2 pixels. mask: (..., 32, 32) bool

    The blend of two colours along an edge can look like a third one: red and white make pink. Such
    a line is one pixel wide, an object is not.
    """
    block = mask[..., :-1, :-1] & mask[..., 1:, :-1] & mask[..., :-1, 1:] & mask[..., 1:, 1:]
    return _grow(np.pad(block, [(0, 0)] * (mask.ndim - 2) + [(0, 1), (0, 1)])) & mask


def _evidence(picture: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, ...]:
    """What pixels say of N pictures and K colours: which are near a colour, which near another, how
    much of each it may cover, (N, K, 32, 32); and which have any colour, (N, 32, 32).

    picture: (N, 3, 32, 32); level: (N,) grey level of the ground
    """
    pixels = picture.transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    distance = np.linalg.norm(pixels[:, None] - _PALETTE[:, None, None], axis=4)  # (N, K, 32, 32)
    colored = pixels.max(axis=3) - pixels.min(axis=3) > COLORED
    nearest = distance.argmin(axis=1)[:, None] == np.arange(len(_PALETTE))[:, None, None]
    mine = _solid(nearest & (distance < NEAR) & colored[:, None])
    mine &= (mine.sum(axis=(2, 3)) >= LEAST)[:, :, None, None]
    others = mine.any(axis=1)[:, None] & ~mine
    contrast = np.linalg.norm(level[:, None, None] - _PALETTE, axis=2)  # (N, K)
    share = (1 - distance / contrast[:, :, None, None]).clip(0, 1)
    return mine, others, share, colored


def _ground_level(picture: np.ndarray) -> np.ndarray:
    """The grey level of the ground: the median of what has no colour. returns: (N,)"""
    flat = picture.reshape(len(picture), 3, -1)
    grey = flat.max(axis=1) - flat.min(axis=1) <= COLORED
    return np.array([np.median(one[:, k].mean(axis=0)) if k.any() else -1e9
                     for one, k in zip(flat, grey, strict=True)])  # fmt: skip


def _read_chunk(pictures: np.ndarray) -> list[Reading]:
    picture, (what, templates, squares, inner) = to_32(pictures), _templates()
    N = len(picture)
    level = _ground_level(picture)
    near, others, covered, colored = _evidence(picture, level)
    rows, colors = near.any(axis=(2, 3)).nonzero()  # (M,) every object that may be there
    mine = near[rows, colors].reshape(len(rows), _S * _S).astype(np.float32)  # (M, 1024)
    others = others[rows, colors]
    # Beside another object a pixel is a blend with that one and says nothing of this one.
    weight = (~_grow(others)).reshape(mine.shape).astype(np.float32)
    weight = np.maximum(weight, mine)
    others = others.reshape(mine.shape).astype(np.float32)
    share = np.maximum(covered[rows, colors].reshape(mine.shape), mine * 0.9) * weight
    # The squared error of every template, without the part that is the same for all.
    error = weight @ squares.T - 2 * share @ templates.T + HIDDEN * others @ inner.T  # (M, T)
    best = error.argmin(axis=1)
    masks = templates[best]  # (M, 1024)
    both = (mine * (masks > 0.3)).sum(axis=1)
    union = np.maximum(mine, (masks > 0.85) * (others == 0)).sum(axis=1)
    clear = both / union.clip(1) >= MIN_AGREEMENT
    left = (mine * (masks < 0.05)).sum(axis=1)
    touched = np.zeros((N, _S * _S), bool)
    np.logical_or.at(touched, rows, masks > 0.02)
    around = _grow(touched.reshape(N, _S, _S))
    stray = (colored & ~around).sum(axis=(1, 2))
    readings = []
    for row in range(N):
        objects, whole = [], stray[row] <= MAX_STRAY
        for m in np.flatnonzero(rows == row):
            shape, size, y, x = what[best[m]].tolist()
            objects.append(named(shape, colors[m], size, x, y, clear=clear[m]))
            whole &= left[m] <= MAX_LEFT
        distance = np.abs(_GROUNDS - level[row])
        ground = int(distance.argmin()) if distance.min() <= MAX_GROUND_ERROR else None
        readings.append(reading_of(objects, ground=ground, whole=whole))
    return readings


def read_hard(pictures: np.ndarray) -> list[Reading]:
    """Read pictures of the hard world, of any size.

    pictures: (N, 3, S, S) uint8
    """
    return read(pictures, read_chunk=_read_chunk)
