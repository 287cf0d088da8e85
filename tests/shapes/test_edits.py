"""Edits of the Shapes world: what pairs promise, the closed language, and the oracle of edits."""

from dataclasses import fields

import numpy as np
import pytest

from minimodal.data.loading import open_data, parse_spec
from minimodal.errors import UserError
from minimodal.shapes.edits import (
    KINDS,
    EditsSource,
    apply,
    draw_pairs,
    expected,
    read_edit,
    write,
)
from minimodal.shapes.oracle import read
from minimodal.shapes.world import COLORS, SHAPES, Scenes, has_held_out, render
from minimodal.shapes.worlds import WORLDS

NUMBERS = np.arange(600)
PAIRS = draw_pairs(0, NUMBERS)
CAPTIONS = write(PAIRS.before, PAIRS.edits)


def same(one: Scenes, other: Scenes) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def scene(*shapes: str, color=(0, 1), size=(0, 0), x=(8, 24), y=(16, 16)) -> Scenes:
    """A red shape, and to the right of it a green one, both small, on white."""
    n = len(shapes)

    def row(values):
        return np.array([[*values[:n], *[-1] * (2 - n)]])

    relation = np.array([0 if n == 2 else -1])
    return Scenes(np.array([n]), row([SHAPES.index(s) for s in shapes]), row(color), row(size),
                  row(x), row(y), np.array([0]), relation)  # fmt: skip


# --- pairs ---------------------------------------------------------------------------------------


def test_a_pair_depends_on_its_seed_and_number_alone():
    again = draw_pairs(0, NUMBERS[::-1][:9])
    rows = NUMBERS[::-1][:9]
    assert same(again.before, PAIRS.before[rows]) and same(again.after, PAIRS.after[rows])
    assert not same(draw_pairs(1, NUMBERS).after, PAIRS.after)
    assert not same(draw_pairs(0, NUMBERS, stream=1).after, PAIRS.after)
    assert len(draw_pairs(0, NUMBERS[:0]).after) == 0


def test_every_kind_of_edit_comes_up_and_changes_something():
    assert set(PAIRS.edits.kind) == set(range(len(KINDS)))
    for row in NUMBERS:
        assert not same(PAIRS.before[int(row)], PAIRS.after[int(row)])


def test_an_edit_changes_what_it_names_and_nothing_else():
    changes = [{kind} for kind in KINDS[:4]] + [{"x", "y", "relation"}]
    for row, kind in enumerate(PAIRS.edits.kind.tolist()):
        for f in fields(Scenes):
            before, after = (getattr(s, f.name)[row] for s in (PAIRS.before, PAIRS.after))
            assert f.name in changes[kind] or np.array_equal(before, after)


def test_objects_never_overlap_after_an_edit():
    after = render(PAIRS.after)
    assert all(v.exact for v in WORLDS["edits"].score(PAIRS.after[NUMBERS[:200]], after[:200]))
    two = PAIRS.after.count == 2
    apart = np.maximum(*(np.abs(np.diff(v[two])) for v in (PAIRS.after.x, PAIRS.after.y)))[:, 0]
    assert (apart >= np.array([4, 7])[PAIRS.after.size[two]].sum(axis=1) + 2).all()


def test_held_out_pairs_are_in_no_training_picture_and_in_every_held_out_answer():
    seen = draw_pairs(0, np.arange(5000))
    assert not has_held_out(seen.before).any() and not has_held_out(seen.after).any()
    held_out = draw_pairs(0, np.arange(1000), stream=1, pairs="held_out")
    assert has_held_out(held_out.after).all()
    made = ~has_held_out(held_out.before)
    assert 0.2 < made.mean() < 0.5  # the others are copied
    both = has_held_out(draw_pairs(0, np.arange(1000), pairs="all").after)
    assert 0 < both.mean() < 1


# --- the language --------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", ["seen", "held_out"])
def test_a_caption_and_the_first_scene_give_the_second(pairs):
    before, edits, after = draw_pairs(3, NUMBERS[:300], pairs=pairs)
    for row, caption in enumerate(write(before, edits)):
        edit = read_edit(caption, before[row])
        assert [int(part[0]) for part in edit] == [int(part[row]) for part in edits]
        assert same(apply(before[row], edit), after[row])


def test_what_captions_mean():
    two = scene("circle", "square")
    blue = list(COLORS).index("blue")
    for caption, name, value in (
        ("the same in blue", "color", [blue, blue]),
        ("The circle in blue.", "color", [blue, 1]),
        ("the square but large", "size", [0, 1]),
        ("the same on black", "background", [1]),
        ("the circle as a star", "shape", [SHAPES.index("star"), SHAPES.index("square")]),
        ("the same with the square to its left", "x", [24, 8]),
        ("the same with the circle to its left", "x", [8, 24]),
    ):
        after = apply(two, read_edit(caption, two))
        assert np.ravel(getattr(after, name)).tolist() == value, caption


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red circle", "is no edit: expected one such as"),
        ("the same in grey", "is no edit"),
        ("the star in blue", "the first picture has no star"),
        ("the same with the circle above it", "two objects change places"),
    ],
)
def test_a_caption_that_makes_no_sense_says_why(caption, message):
    with pytest.raises(UserError, match=message) as caught:
        read_edit(caption, scene("circle", "square"))
    assert "\n" not in str(caught.value)


def test_a_name_that_two_objects_share_means_neither():
    with pytest.raises(UserError, match="has 2 circles"):
        read_edit("the circle in blue", scene("circle", "circle"))
    with pytest.raises(UserError, match="change places"):
        read_edit("the same with the circle to its left", scene("circle"))


# --- the oracle ----------------------------------------------------------------------------------


def test_the_oracle_agrees_with_rendered_pairs_and_not_with_unchanged_ones():
    rows = NUMBERS[:150]
    before, after = render(PAIRS.before[rows]), render(PAIRS.after[rows])
    for row in rows.tolist():
        wanted = expected(CAPTIONS[row], before[row])  # read from the picture, not known
        assert WORLDS["edits"].score(wanted, after[row : row + 1])[0].exact
    assert not any(verdict.exact for verdict in WORLDS["edits"].score(PAIRS.after[rows], before))


def test_an_object_that_has_moved_is_no_longer_the_same():
    here, there = scene("circle", "square"), scene("circle", "square", y=(20, 16))
    verdict = WORLDS["edits"].score(here, render(there))[0]
    assert not verdict.place and verdict.color and verdict.shape and not verdict.exact
    assert not WORLDS["edits"].score(here, render(scene("circle")))[0].count


def test_an_unclear_first_picture_is_said():
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    assert read(noise[None])[0].count != 1
    with pytest.raises(UserError, match="no clear scene"):
        expected("the same in red", noise)


# --- the source ----------------------------------------------------------------------------------


def test_the_source_gives_pairs_one_above_the_other():
    source = open_data("shapes:edits:50", image_size=16, split="val")
    assert parse_spec("shapes:edits:50").part == "edits" and len(source) == 50
    pictures = source.images(np.array([3, 0, 3]))
    assert pictures.shape == (3, 3, 32, 16) and pictures.dtype == np.uint8
    assert np.array_equal(pictures[0], pictures[2])
    found = source.scenes(np.array([3]))
    assert np.array_equal(pictures[0, :, :16], render(found.before, 16)[0])
    assert np.array_equal(pictures[0, :, 16:], render(found.after, 16)[0])
    assert source.captions(np.array([3]), np.random.default_rng(0)) == source.all_captions(3)
    assert source.fingerprint() != open_data("shapes:edits:50", image_size=16).fingerprint()
    with pytest.raises(IndexError):
        source.images(np.array([50]))


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"pairs": "none"}, {"image_size": 4}])
def test_impossible_settings_are_user_errors(wrong):
    with pytest.raises(UserError, match="shapes:edits"):
        EditsSource(**wrong)
