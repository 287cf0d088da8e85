"""The oracle: reads a picture of the Shapes world back into what is in it. Nothing here is learned.

A picture is background + coverage x (colour - background), summed over its objects. The oracle
brings it to 32 x 32, takes the background from the border, and looks for the shape, size, place and
colour whose picture takes away most squared error (matching pursuit): first over a coarse grid of
places, then around the best one, in turns for two objects. `read(pictures)` gives a `Reading` each.

It is a strict judge. An object that the fit explains badly (half erased, two-tone, another colour)
is unclear: its shape, colour and size are None. Something left over beside the objects makes the
count None, and a background far from white, black and gray is None. `matches(caption, picture)`
compares with what a caption says, attribute by attribute.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minimodal.shapes.language import Spec, parse
from minimodal.shapes.world import (
    BACKGROUNDS,
    COLORS,
    OPPOSITE,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    coverage,
)

# Measured on clean, noisy, blurred and spoilt pictures (tests/shapes/test_oracle.py); levels are of
# 0 to 255.
MAX_BACKGROUND_ERROR = 60.0  # distance of the border's median from the background it is taken for
MIN_AMPLITUDE = 0.65  # of an object, 1 where it has its template's full contrast
MAX_UNEXPLAINED = 0.3  # of an object's energy, within its box and one pixel around
MAX_PIECE = 0.35  # of an object's contrast, missing or too much in any 3 x 3 pixels of its box
MAX_HUE_ERROR = 40.0  # in any 3 x 3 pixels, away from the line background-to-palette colour
MAX_NOISE = 20.0  # deviation of white noise that is not held against a picture
MAX_LEFTOVER = 0.5  # energy in 8 x 8 pixels beside the objects, 1 is the faintest small star

_S, _PAD, _REACH, _WINDOW = 32, 36, 2, 20
_KINDS = tuple((shape, size) for shape in range(len(SHAPES)) for size in range(len(SIZES)))
_KIND_RADIUS = np.array([RADIUS[size] for _, size in _KINDS])
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)
_GROUNDS = np.array(list(BACKGROUNDS.values()), dtype=np.float32)


class ObjectReading(NamedTuple):
    """One object of a picture; x and y in 32nds. All three names are None where it is unclear."""

    shape: str | None
    color: str | None
    size: str | None
    x: int
    y: int


class Reading(NamedTuple):
    """What is in a picture.

    count: number of objects, None where there is more in the picture than clear objects
    relation: where objects[0] is, seen from objects[1]; None without two objects, or on a diagonal
    """

    objects: tuple[ObjectReading, ...]
    relation: str | None
    background: str | None
    count: int | None


# --- templates --------------------------------------------------------------------------------


class _Bank(NamedTuple):
    """where: (T, 3) kind, y, x; pixels: (side^2, T) every kind centred there; energy: (T,) |m|^2"""

    where: np.ndarray
    pixels: np.ndarray
    energy: np.ndarray


def _shifted(masks: np.ndarray, where: np.ndarray, side: int) -> np.ndarray:
    """Each row (kind, y, x) of `where` as a picture centred there. returns: (len, side, side)"""
    views = sliding_window_view(masks, (side, side), axis=(1, 2))
    return views[where[:, 0], _PAD - where[:, 1], _PAD - where[:, 2]]


@lru_cache(maxsize=1)
def _masks() -> np.ndarray:
    """returns: (kinds, 72, 72) each kind's coverage centred at 36, in a wide margin of zeros"""
    masks = np.zeros((len(_KINDS), 2 * _PAD, 2 * _PAD), dtype=np.float32)
    inner = slice(_PAD - _S // 2, _PAD + _S // 2)
    for kind, (shape, size) in enumerate(_KINDS):
        masks[kind, inner, inner] = coverage(_S, shape, size, _S // 2, _S // 2) / 64
    return masks


@lru_cache(maxsize=2)
def _bank(side: int) -> _Bank:
    """Whole pictures (side 32), every kind at every second place, or windows (side 20), every kind
    up to 2 pixels off their middle."""
    where = []
    for kind, radius in enumerate(_KIND_RADIUS):
        axis = range(radius + radius % 2, _S - radius + 1, 2)
        if side == _WINDOW:
            axis = range(_WINDOW // 2 - _REACH, _WINDOW // 2 + _REACH + 1)
        where += [(kind, y, x) for y in axis for x in axis]
    pixels = _shifted(_masks(), np.array(where), side).reshape(len(where), -1)
    return _Bank(np.array(where), np.ascontiguousarray(pixels.T), (pixels**2).sum(axis=1))


# --- fitting ----------------------------------------------------------------------------------


class _Fit(NamedTuple):
    """One object per picture: where (N, 3) is (kind, y, x), color (N,), amplitude (N,)."""

    where: np.ndarray
    color: np.ndarray
    amplitude: np.ndarray


def _best(
    product: np.ndarray, energy: np.ndarray, contrast: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template and colour that take away most squared error.

    gain = |d|^2 - |d - m c|^2 = 2 <d m, c> - |m|^2 |c|^2
    product: (N, 3, T) is d m; energy: (T,) is |m|^2; contrast: (N, 8, 3) is c
    returns: template (N,), color (N,), amplitude (N,) = <d m, c> / |m|^2 |c|^2
    """
    N, _, T = product.shape
    dot = contrast @ product  # (N, 8, T)
    full = (contrast**2).sum(axis=2)[:, :, None] * energy + 1e-6  # (N, 8, T)
    gain = 2 * dot - full
    best = gain.reshape(N, -1).argmax(axis=1)
    color, template = best // T, best % T
    rows = np.arange(N)
    return template, color, dot[rows, color, template] / full[rows, color, template]


def _detect(rest: np.ndarray, contrast: np.ndarray, other: _Fit | None = None) -> _Fit:
    """The best object anywhere, and if `other` is given not upon it. rest: (N, 3, 32, 32)"""
    bank = _bank(_S)
    product = (rest.reshape(-1, _S * _S) @ bank.pixels).reshape(len(rest), 3, -1)
    if other is not None:
        apart = np.abs(bank.where[None, :, 1:] - other.where[:, None, 1:]).max(axis=2)  # (N, T)
        radius = _KIND_RADIUS[bank.where[:, 0]] + _KIND_RADIUS[other.where[:, 0]][:, None]
        product = product * (apart >= radius)[:, None]  # where it is zero nothing can be gained
    best, color, amplitude = _best(product, bank.energy, contrast)
    return _refine(rest, contrast, _Fit(bank.where[best], color, amplitude))


def _refine(rest: np.ndarray, contrast: np.ndarray, fit: _Fit) -> _Fit:
    """The best object with its centre within 2 pixels of `fit`. rest: (N, 3, 32, 32)"""
    bank, N, half = _bank(_WINDOW), len(rest), _WINDOW // 2
    padded = np.pad(rest, ((0, 0), (0, 0), (half, half), (half, half)))
    windows = sliding_window_view(padded, (_WINDOW, _WINDOW), axis=(2, 3))
    windows = windows[np.arange(N), :, fit.where[:, 1], fit.where[:, 2]]  # (N, 3, 20, 20)
    product = windows.reshape(N * 3, -1) @ bank.pixels
    best, color, amplitude = _best(product.reshape(N, 3, -1), bank.energy, contrast)
    where = bank.where[best] + (fit.where - (0, half, half)) * (0, 1, 1)
    # At most one pixel over the picture's edge: what is cut off more shall not count as whole.
    inside = _KIND_RADIUS[where[:, 0]][:, None] - 1
    where[:, 1:] = where[:, 1:].clip(inside, _S - inside)
    return _Fit(where, color, amplitude)


def _layer(fit: _Fit, contrast: np.ndarray, present: np.ndarray) -> np.ndarray:
    """What the objects add to their pictures. returns: (N, 3, 32, 32)"""
    mask = _shifted(_masks(), fit.where, _S) * present[:, None, None]
    return contrast[np.arange(len(mask)), fit.color][:, :, None, None] * mask[:, None]


def _fit_two(picture: np.ndarray, contrast: np.ndarray) -> tuple[list[_Fit], list[np.ndarray]]:
    """Two objects a picture, each the best given the other, and whether each is there (N,)."""
    always = np.ones(len(picture), dtype=bool)
    first = _detect(picture, contrast)
    second = _detect(picture - _layer(first, contrast, always), contrast, first)
    for _ in range(2):
        there = second.amplitude > MIN_AMPLITUDE
        first = _refine(picture - _layer(second, contrast, there), contrast, first)
        second = _refine(picture - _layer(first, contrast, always), contrast, second)
    return [first, second], [f.amplitude > MIN_AMPLITUDE for f in (first, second)]


# --- judging ----------------------------------------------------------------------------------


def _box(fit: _Fit, present: np.ndarray) -> np.ndarray:
    """An object's bounding box and one pixel around. returns: (N, 32, 32) bool"""
    centres = np.arange(_S) + 0.5
    reach = (_KIND_RADIUS[fit.where[:, 0]] + 1)[:, None]
    rows = np.abs(centres - fit.where[:, 1, None]) <= reach  # (N, 32)
    columns = np.abs(centres - fit.where[:, 2, None]) <= reach
    return rows[:, :, None] & columns[:, None, :] & present[:, None, None]


def _smooth(error: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels around each. error: (N, 3, 32, 32)"""
    padded = np.pad(error, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _is_clear(
    fit: _Fit, contrast: np.ndarray, smooth: np.ndarray, excess: np.ndarray
) -> np.ndarray:
    """Whether the fit explains what is in the object's box, as a whole and in every part.

    Blur leaves errors of either sign along edges, which `smooth` takes away; a missing piece or a
    second colour stays. Split along the line from the background to the palette's colour and
    across it, it tells a weaker mask (also blur, in thin shapes) from a wrong colour.

    contrast: (N, 8, 3); smooth: (N, 3, 32, 32); excess: (N, 32, 32) squared error above noise
    """
    rows = np.arange(len(excess))
    mask = _shifted(_masks(), fit.where, _S)
    box = _box(fit, np.ones(len(rows), dtype=bool))
    full = np.linalg.norm(contrast[rows, fit.color], axis=1) + 1e-6  # (N,)
    line = contrast[rows, fit.color] / full[:, None]
    unexplained = (excess * box).sum(axis=(1, 2)) / ((mask**2).sum(axis=(1, 2)) * full**2)
    along = (smooth * line[:, :, None, None]).sum(axis=1)  # (N, 32, 32)
    across = np.sqrt(((smooth**2).sum(axis=1) - along**2).clip(min=0))
    piece = (np.abs(along) * box).max(axis=(1, 2)) / full
    hue = (across * box).max(axis=(1, 2))
    return (unexplained < MAX_UNEXPLAINED) & (piece < MAX_PIECE) & (hue < MAX_HUE_ERROR)


def _has_leftover(excess: np.ndarray, covered: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Whether 8 x 8 pixels beside the objects hold half a small star's energy or more.

    excess, covered: (N, 32, 32); contrast: (N, 8, 3); returns: (N,) bool
    """
    sums = np.pad(excess * ~covered, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    windows = sums[:, 8:, 8:] - sums[:, 8:, :-8] - sums[:, :-8, 8:] + sums[:, :-8, :-8]
    star = (_masks()[_KINDS.index((SHAPES.index("star"), 0))] ** 2).sum()
    faintest = star * (contrast**2).sum(axis=2).min(axis=1)
    return windows.max(axis=(1, 2)) > MAX_LEFTOVER * faintest


def to_32(pictures: np.ndarray) -> np.ndarray:
    """Area-averages (N, 3, S, S) to float32 (N, 3, 32, 32)."""
    S = pictures.shape[-1]
    pictures = pictures.astype(np.float32)
    if S == _S:
        return pictures
    edges = np.arange(_S + 1) * S / _S
    pixels = np.arange(S)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weight = (overlap.clip(0) * _S / S).astype(np.float32)  # (32, S), rows sum to 1
    return weight @ pictures @ weight.T


def named(
    shape: int, color: int, size: int, x: int, y: int, *, clear: bool = True
) -> ObjectReading:
    """An object by its indices, or one without names where it is unclear."""
    names = (SHAPES[shape], tuple(COLORS)[color], SIZES[size])
    return ObjectReading(*(names if clear else (None,) * 3), x, y)


def reading_of(objects: list[ObjectReading], *, ground: int | None, whole: bool) -> Reading:
    """What is in a picture. ground: its index; whole: there is nothing but these objects"""
    relation, background = None, None if ground is None else tuple(BACKGROUNDS)[ground]
    if len(objects) == 2:
        dx, dy = objects[0].x - objects[1].x, objects[0].y - objects[1].y
        if abs(dx) != abs(dy):
            relation = RELATIONS[int(dx > 0) if abs(dx) > abs(dy) else 2 + int(dy > 0)]
    return Reading(tuple(objects), relation, background, len(objects) if whole else None)


def _read_chunk(pictures: np.ndarray) -> list[Reading]:
    picture = to_32(pictures)
    sides = picture[:, :, 0], picture[:, :, -1], picture[:, :, :, 0], picture[:, :, :, -1]
    ground = np.median(np.concatenate(sides, axis=2), axis=2)  # (N, 3)
    distance = np.linalg.norm(ground[:, None] - _GROUNDS, axis=2)
    picture = picture - ground[:, :, None, None]
    contrast = _PALETTE - ground[:, None]  # (N, 8, 3)
    fits, present = _fit_two(picture, contrast)
    layers = [_layer(f, contrast, p) for f, p in zip(fits, present, strict=True)]
    error = picture - layers[0] - layers[1]
    squared = (error**2).sum(axis=1)  # (N, 32, 32)
    noise = np.median(squared.reshape(len(squared), -1), axis=1).clip(max=3 * MAX_NOISE**2)
    excess = squared - noise[:, None, None]
    smooth = _smooth(error)
    clear = [_is_clear(f, contrast, smooth, excess) for f in fits]
    covered = _box(fits[0], present[0]) | _box(fits[1], present[1])
    leftover = _has_leftover(excess, covered, contrast)
    readings = []
    for row, nearest in enumerate(distance.argmin(axis=1).tolist()):
        objects = []
        for fit, there, fine in zip(fits, present, clear, strict=True):
            if there[row]:
                kind, y, x = fit.where[row].tolist()
                shape, size = _KINDS[kind]
                objects.append(named(shape, fit.color[row], size, x, y, clear=fine[row]))
        ground = nearest if distance[row, nearest] <= MAX_BACKGROUND_ERROR else None
        readings.append(reading_of(objects, ground=ground, whole=not leftover[row]))
    return readings


def read(pictures: np.ndarray, *, read_chunk: Callable = _read_chunk) -> list[Reading]:
    """Read pictures of any size.

    pictures: (N, 3, S, S) uint8
    read_chunk: that of another world
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.dtype != np.uint8:
        raise ValueError(f"expected uint8 (N, 3, S, S), got {pictures.dtype} {pictures.shape}")
    chunk = max(1, min(64, 64 * 128**2 // pictures.shape[-1] ** 2))
    parts = range(0, len(pictures), chunk)
    return [one for start in parts for one in read_chunk(pictures[start : start + chunk])]


# --- comparing with captions ------------------------------------------------------------------


class Verdict(NamedTuple):
    """Whether a picture is what a caption says; None where the caption doesn't say."""

    count: bool
    shape: bool | None
    color: bool | None
    size: bool | None
    background: bool | None
    relation: bool | None

    @property
    def exact(self) -> bool:
        """Everything that the caption says holds."""
        return False not in self


def _judge(spec: Spec, reading: Reading, chosen: list[int | None]) -> tuple[Verdict, int]:
    """The verdict if object k of the caption is object chosen[k] of the picture, and agreements."""
    agreed, attributes = 0, {}
    for name in ("shape", "color", "size"):
        said = [(k, getattr(o, name)) for k, o in enumerate(spec.objects) if getattr(o, name)]
        holds = [
            chosen[k] is not None and getattr(reading.objects[chosen[k]], name) == value
            for k, value in said
        ]
        agreed += sum(holds)
        attributes[name] = all(holds) if said else None
    relation = None
    if spec.relation is not None:
        turned = reading.relation if chosen == [0, 1] else OPPOSITE.get(reading.relation)
        relation = None not in chosen and turned == spec.relation
    verdict = Verdict(
        count=reading.count == spec.count,
        background=None if spec.background is None else reading.background == spec.background,
        relation=relation,
        **attributes,
    )
    return verdict, agreed


def matches(caption: str | Spec, picture: np.ndarray | Reading) -> Verdict:
    """Whether a picture is what a caption says, under the pairing of objects that agrees best.

    caption: a string that `parse` reads, or its Spec; picture: (3, S, S) uint8, or its Reading
    """
    spec = parse(caption) if isinstance(caption, str) else caption
    reading = picture if isinstance(picture, Reading) else read(picture[None])[0]
    said, seen = len(spec.objects), len(reading.objects)
    if said <= seen:
        pairings = [list(p) for p in permutations(range(seen), said)]
    else:
        slots = permutations(range(said), seen)  # of the caption, for the picture's objects
        pairings = [[p.index(k) if k in p else None for k in range(said)] for p in slots]
    results = [_judge(spec, reading, p) for p in pairings]
    return max(results, key=lambda r: (sum(v is True for v in r[0]), r[1]))[0]
