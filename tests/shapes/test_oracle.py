"""The oracle reads true pictures right, and does not take spoilt ones for true."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.marks import at_once

from minimodal.shapes.language import DRAWS, captions, parse
from minimodal.shapes.oracle import Reading, Verdict, matches, read
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import (
    BACKGROUNDS,
    COLORS,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scenes,
    coverage,
    draw_scenes,
    render,
    swap,
)
from minimodal.shapes.worlds import WORLDS

score = WORLDS["shapes"].score
GROUNDS = np.array(list(BACKGROUNDS.values()), dtype=np.uint8)
PALETTE = np.array(list(COLORS.values()), dtype=np.uint8)


def is_read_right(reading: Reading, scenes: Scenes, row: int, shift=(0, 0)) -> bool:
    """Whether everything is read, centres to the pixel."""
    truth = [
        (
            SHAPES[scenes.shape[row, k]],
            tuple(COLORS)[scenes.color[row, k]],
            SIZES[scenes.size[row, k]],
            int(scenes.x[row, k]) + shift[0],
            int(scenes.y[row, k]) + shift[1],
        )
        for k in range(scenes.count[row])
    ]
    found = [tuple(o) for o in reading.objects]
    if reading.count != len(truth) or sorted(truth, key=str) != sorted(found, key=str):
        return False
    if reading.background != tuple(BACKGROUNDS)[scenes.background[row]]:
        return False
    if len(truth) == 1:
        return reading.relation is None
    relation = int(scenes.relation[row])
    return reading.relation == RELATIONS[relation if found == truth else relation ^ 1]


def share_right(scenes: Scenes, pictures: np.ndarray) -> float:
    readings = read(pictures)
    return np.mean([is_read_right(r, scenes, row) for row, r in enumerate(readings)])


def one_object_scenes(n: int, seed: int = 11) -> Scenes:
    scenes = draw_scenes(seed, np.arange(4 * n), pairs="all")
    return scenes[scenes.count == 1][:n]


def full_captions(scenes: Scenes) -> list[str]:
    return captions(scenes, np.full((len(scenes), DRAWS), 0.7), full=True)


def share_exact(scenes: Scenes, pictures: np.ndarray) -> float:
    return np.mean([v.exact for v in score(full_captions(scenes), pictures)])


def blurred_and_noisy(pictures: np.ndarray) -> np.ndarray:
    pictures = pictures.astype(np.float32)
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    box = sum(padded[:, :, i : i + 32, j : j + 32] for i in range(3) for j in range(3)) / 9
    noise = np.random.default_rng(0).normal(0, 12, pictures.shape)
    return (0.5 * pictures + 0.5 * box + noise).round().clip(0, 255).astype(np.uint8)


# --- true pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", at_once((2_000, 10_000), 2_000))
def test_thousands_of_clean_pictures_are_all_read_right(n):
    scenes = draw_scenes(5, np.arange(n), pairs="all")
    pictures = render(scenes)
    readings = read(pictures)
    assert all(is_read_right(r, scenes, row) for row, r in enumerate(readings))


def test_blur_and_noise_do_not_matter():
    scenes = draw_scenes(6, np.arange(1000), pairs="all")
    right = share_right(scenes, blurred_and_noisy(render(scenes)))
    print(f"blurred and noisy: {right:.4f} read right")
    assert right >= 0.99


def test_objects_off_the_lattice_are_read_right():
    scenes, rng = draw_scenes(7, np.arange(1000), pairs="all"), np.random.default_rng(0)
    pictures, shifts = render(scenes), []
    for row in range(1000):
        n = scenes.count[row]
        radius = np.array(RADIUS)[scenes.size[row, :n]]
        dx, dy = (
            int(rng.integers(-(c - radius).min(), 32 - (c + radius).max() + 1))
            for c in (scenes.x[row, :n], scenes.y[row, :n])
        )
        pictures[row] = np.roll(pictures[row], (dy, dx), axis=(1, 2))
        shifts.append((dx, dy))
    for row, reading in enumerate(read(pictures)):
        assert is_read_right(reading, scenes, row, shifts[row])


@pytest.mark.parametrize("size", [48, 64, 100, 128])
def test_larger_pictures_are_read_right(size):
    scenes = draw_scenes(8, np.arange(200), pairs="all")
    assert share_right(scenes, render(scenes, size)) == 1


def test_a_tint_over_the_whole_picture_is_forgiven():
    scenes = draw_scenes(9, np.arange(300), pairs="all")
    tinted = render(scenes).astype(np.int16) + np.array([8, -8, 6])[:, None, None]
    assert share_right(scenes, tinted.clip(0, 255).astype(np.uint8)) >= 0.99


# --- spoilt pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("piece", ["left half", "top half", "one quarter"])
def test_an_object_with_a_piece_missing_never_counts(piece):
    scenes = one_object_scenes(500)
    pictures = render(scenes)
    assert share_exact(scenes, pictures) == 1
    for row in range(len(scenes)):
        x = 32 if piece == "top half" else scenes.x[row, 0]
        y = 32 if piece == "left half" else scenes.y[row, 0]
        pictures[row, :, :y, :x] = GROUNDS[scenes.background[row]][:, None, None]
    assert share_exact(scenes, pictures) == 0


def test_a_two_tone_object_has_neither_color():
    scenes = one_object_scenes(500)
    color = (scenes.color + 1 + np.arange(500)[:, None] % 7) % 8
    other = replace(scenes, color=np.where(scenes.color < 0, -1, color))
    pictures, halves = render(scenes), render(other)
    for row, x in enumerate(scenes.x[:, 0]):
        pictures[row, :, :, x:] = halves[row, :, :, x:]
    assert share_exact(scenes, pictures) == 0 and share_exact(other, pictures) == 0


def test_a_third_object_makes_the_count_wrong():
    scenes, rng = draw_scenes(10, np.arange(800), pairs="all"), np.random.default_rng(0)
    scenes = scenes[scenes.count == 2]
    pictures = render(scenes)
    added = []
    for row in range(len(scenes)):
        x, y = rng.integers(4, 29, 2)
        apart = np.maximum(abs(scenes.x[row] - x), abs(scenes.y[row] - y))
        if (apart < np.array(RADIUS)[scenes.size[row]] + 5).any():
            continue
        mask = coverage(32, int(rng.integers(6)), 0, int(x), int(y)) / 64
        ground = GROUNDS[scenes.background[row]].astype(int)
        extra = mask * (PALETTE[rng.integers(8)] - ground)[:, None, None]
        pictures[row] = (pictures[row] + extra).round().clip(0, 255)
        added.append(row)
    added = np.array(added)
    verdicts = score(full_captions(scenes[added]), pictures[added])
    assert len(added) > 100 and not any(v.count for v in verdicts)


def test_noise_matches_nothing():
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 256, (200, 3, 32, 32)).astype(np.uint8)
    grayish = rng.normal(128, 50, (200, 3, 32, 32)).clip(0, 255).astype(np.uint8)
    for reading in read(np.concatenate([uniform, grayish])):
        assert reading.count is None
        assert not matches("a shape", reading).exact


def test_an_empty_picture_has_no_objects():
    for name, color in BACKGROUNDS.items():
        picture = np.broadcast_to(np.array(color, dtype=np.uint8)[:, None, None], (3, 32, 32))
        assert matches("a circle", picture) == Verdict(False, False, None, None, None, None)
        assert read(picture[None])[0] == Reading((), None, name, 0)


def test_colors_outside_the_palette_are_not_read_as_one():
    for color in ((255, 255, 255), (128, 128, 128), (139, 69, 19), (120, 12, 17), (0, 0, 128)):
        for shape in range(len(SHAPES)):
            mask = coverage(32, shape, 1, 16, 16) / 64
            picture = (mask * np.array(color)[:, None, None]).astype(np.uint8)
            assert not any(o.color for o in read(picture[None])[0].objects)


def test_another_background_is_none_of_the_three():
    scenes = one_object_scenes(1)
    picture = np.full((3, 32, 32), 0, dtype=np.uint8)
    picture[2] = 120
    reading = read(picture[None])[0]
    assert reading.background is None
    assert not matches(full_captions(scenes)[0], reading).background


@pytest.mark.filterwarnings("error")
def test_a_background_in_a_color_of_the_palette_is_no_object():
    pictures = np.broadcast_to(PALETTE[:, :, None, None], (8, 3, 32, 32))
    assert all(r == Reading((), None, r.background, 0) for r in read(pictures))


# --- captions against pictures ----------------------------------------------------------------


def test_the_worlds_own_captions_match_their_pictures():
    source, indices = ShapesSource(4, pairs="all"), np.arange(1500)
    texts = source.captions(indices, np.random.default_rng(0))
    assert all(v.exact for v in score(texts, source.images(indices)))


def test_loose_captions_match_their_pictures_and_none_where_other_colors_are():
    source, indices = ShapesSource(4, pairs="all"), np.arange(1500)
    scenes = source.scenes(indices)
    texts = source.loose_captions(indices, np.random.default_rng(0))
    assert all(v.exact for v in score(texts, render(scenes)))
    # A step that leads neither object to a color of the scene's.
    apart = (scenes.color[:, 1] - scenes.color[:, 0]) % len(COLORS)
    step = np.select([~np.isin(apart, [s, 8 - s]) for s in (1, 2, 3)], [1, 2, 3])
    color = np.where(scenes.color < 0, -1, (scenes.color + step[:, None]) % len(COLORS))
    named = [row for row in indices if any(o.color for o in parse(texts[row]).objects)]
    verdicts = score([texts[row] for row in named], render(replace(scenes, color=color)[named]))
    assert len(named) > 1200 and not any(v.exact or v.color for v in verdicts)


@pytest.mark.parametrize("what", ["color", "shape", "relation"])
def test_a_swapped_picture_fails_its_caption(what):
    scenes = draw_scenes(4, np.arange(1000))
    differ = (scenes.color[:, 0] != scenes.color[:, 1]) & (scenes.shape[:, 0] != scenes.shape[:, 1])
    scenes = scenes[(scenes.count == 2) & differ]
    assert not any(v.exact for v in score(full_captions(scenes), render(swap(scenes, what))))


def test_a_caption_fails_in_the_attribute_that_is_wrong():
    picture = render(one_object_scenes(1))[0]
    truth = read(picture[None])[0]
    o = truth.objects[0]
    for field in ("shape", "color", "size"):
        values = {"shape": SHAPES, "color": tuple(COLORS), "size": SIZES}[field]
        other = next(v for v in values if v != getattr(o, field))
        wrong = o._replace(**{field: other})
        verdict = matches(f"a {wrong.size} {wrong.color} {wrong.shape}", truth)
        assert not verdict.exact and getattr(verdict, field) is False
        assert sum(v is False for v in verdict) == 1
        assert (verdict.background, verdict.relation) == (None, None)


def test_objects_are_paired_whichever_is_named_first():
    scenes = draw_scenes(4, np.arange(300))
    scenes = scenes[scenes.count == 2]
    readings = read(render(scenes))
    for order in (0.2, 0.8):
        draws = np.full((len(scenes), DRAWS), order)
        texts = captions(scenes, draws, full=True)
        assert all(matches(t, r).exact for t, r in zip(texts, readings, strict=True))


def test_bare_captions_are_judged_by_what_they_say():
    scenes = draw_scenes(4, np.arange(300))
    two = scenes[(scenes.count == 2) & (scenes.shape[:, 0] == 3) & (scenes.shape[:, 1] == 3)]
    for verdict in score(["two stars"] * len(two), render(two)):
        assert verdict == Verdict(True, True, None, None, None, None)
    for verdict in score(["three stars"] * len(two), render(two)):
        assert verdict.count is False and not verdict.exact
    assert not matches("ten stars", render(two)[0]).exact


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        read(np.zeros((1, 3, 32, 32), dtype=np.float32))
    with pytest.raises(ValueError, match="expected as many"):
        score(["a circle"], np.zeros((2, 3, 32, 32), dtype=np.uint8))
