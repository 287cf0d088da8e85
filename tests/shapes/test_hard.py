"""The hard Shapes world and its oracle: what scenes promise, and that the oracle is strict."""

import numpy as np
import pytest

from minimodal.data.loading import open_data, parse_spec
from minimodal.errors import UserError
from minimodal.shapes.hard import (
    TEXTURES,
    VISIBLE,
    HardScenes,
    HardSource,
    _visible,
    draw_hard,
    render_hard,
)
from minimodal.shapes.language import parse
from minimodal.shapes.oracle_hard import read_hard
from minimodal.shapes.world import BACKGROUNDS, COLORS, HELD_OUT, RADIUS, SHAPES
from minimodal.shapes.worlds import WORLDS

NUMBERS = np.arange(300)
SCENES = draw_hard(0, NUMBERS)
SOURCE = HardSource(0, split="val")
PICTURES = SOURCE.images(NUMBERS[:200])
CAPTIONS = SOURCE.full_captions(NUMBERS[:200], np.random.default_rng(0))


def one(**changes) -> HardScenes:
    """A large red circle in the middle of plain white."""
    values = dict(
        count=1, shape=[0, -1, -1], color=[0, -1, -1], size=[1, -1, -1], x=[16, -1, -1],
        y=[16, -1, -1], background=0, texture=0, period=4, phase=0,
    )  # fmt: skip
    return HardScenes(**{name: np.array([v]) for name, v in (values | changes).items()})


def pairs(scenes: HardScenes, row: int) -> list[tuple[str, str]]:
    count = int(scenes.count[row])
    return [
        (tuple(COLORS)[c], SHAPES[s])
        for c, s in zip(scenes.color[row, :count], scenes.shape[row, :count], strict=True)
    ]


# --- the world -----------------------------------------------------------------------------------


def test_a_scene_depends_on_its_seed_and_number_alone():
    again = draw_hard(0, NUMBERS[::-1][:7])
    for name in HardScenes.__dataclass_fields__:
        assert (getattr(again, name) == getattr(SCENES, name)[::-1][:7]).all()
    assert not np.array_equal(draw_hard(1, NUMBERS).x, SCENES.x)
    assert not np.array_equal(draw_hard(0, NUMBERS, stream=1).x, SCENES.x)


def test_objects_lie_inside_in_different_colours_and_there_are_one_to_three():
    assert set(SCENES.count) == {1, 2, 3}
    for row in range(len(SCENES)):
        count = int(SCENES.count[row])
        assert len(set(SCENES.color[row, :count])) == count
        assert (SCENES.shape[row, count:] == -1).all()
        for k in range(count):
            r = RADIUS[SCENES.size[row, k]]
            assert r <= SCENES.x[row, k] <= 32 - r and r <= SCENES.y[row, k] <= 32 - r


def test_every_texture_ground_and_whole_pixel_comes_up():
    assert set(SCENES.texture) == set(range(len(TEXTURES)))
    assert set(SCENES.background) == set(range(len(BACKGROUNDS)))
    assert len(set(SCENES.x[SCENES.size == 0])) > 20  # not a lattice


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_never_shows_a_held_out_pair_and_held_out_scenes_always_do(split):
    seen = HardSource(3, split=split).scenes(NUMBERS)
    held = HardSource(3, split=split, pairs="held_out").scenes(NUMBERS)
    for row in range(len(NUMBERS)):
        assert not set(pairs(seen, row)) & set(HELD_OUT)
        assert set(pairs(held, row)) & set(HELD_OUT)


def test_of_nearly_every_scene_each_object_shows_three_fifths_of_its_box():
    scenes = draw_hard(0, np.arange(20_000))
    shares = _visible(scenes.x, scenes.y, np.array(RADIUS)[scenes.size], scenes.count)
    assert (shares < VISIBLE - 1e-9).mean() < 1 / 150 and shares.min() > 0.3
    assert (scenes.count[shares < VISIBLE - 1e-9] == 3).all()


def test_later_objects_cover_earlier_ones_and_most_of_each_stays_visible():
    two = one(
        count=2, shape=[1, 1, -1], color=[0, 2, -1], size=[1, 0, -1], x=[16, 16, -1], y=[16, 16, -1]
    )
    picture = render_hard(two)[0]
    assert (
        tuple(picture[:, 16, 16]) == COLORS["blue"] and tuple(picture[:, 10, 10]) == COLORS["red"]
    )
    overlapping = 0
    for row in range(len(SCENES)):
        whole = render_hard(SCENES[np.array([row])])[0].reshape(3, -1).T
        for k in range(int(SCENES.count[row])):
            color = np.array(COLORS[tuple(COLORS)[SCENES.color[row, k]]])
            alone = one(
                shape=[SCENES.shape[row, k], -1, -1], color=[SCENES.color[row, k], -1, -1],
                size=[SCENES.size[row, k], -1, -1], x=[SCENES.x[row, k], -1, -1],
                y=[SCENES.y[row, k], -1, -1],
            )  # fmt: skip
            full = (render_hard(alone)[0].reshape(3, -1).T == color).all(1)
            shown = (whole[full] == color).all(1).mean()
            overlapping += shown < 1
            assert shown > 0.2
    assert overlapping > 40


def test_captions_are_read_by_the_parser_and_say_all_of_it():
    for number, caption in enumerate(CAPTIONS):
        spec, scene = parse(caption), SOURCE.scenes(np.array([number]))
        assert spec.count == scene.count[0] and spec.background
        said = sorted((thing.color, thing.shape) for thing in spec.objects)
        assert said == sorted(pairs(scene, 0))
    short = SOURCE.captions(NUMBERS, np.random.default_rng(1))
    assert sum(parse(caption).background is None for caption in short) > 10


def test_the_spec_opens_it():
    assert parse_spec("shapes:hard:20").limit == 20 and parse_spec("shapes:20").part is None
    source = open_data("shapes:hard:20", image_size=64)
    assert isinstance(source, HardSource) and len(source) == 20
    assert source.images(np.arange(2)).shape == (2, 3, 64, 64)
    assert source.fingerprint() != open_data("shapes:hard:21", image_size=64).fingerprint()
    with pytest.raises(UserError, match="is not a number"):
        parse_spec("shapes:hard:many")


# --- the oracle ----------------------------------------------------------------------------------


def exact(captions, pictures) -> float:
    return np.mean([verdict.exact for verdict in WORLDS["hard"].score(captions, pictures)])


def test_the_oracle_reads_nearly_every_picture_back():
    """What it cannot read are small rings and crosses that others cover."""
    assert exact(CAPTIONS, PICTURES) > 0.975
    single = np.flatnonzero(SOURCE.scenes(NUMBERS[:200]).count == 1)
    assert exact([CAPTIONS[i] for i in single], PICTURES[single]) == 1


def test_noise_and_another_size_do_not_disturb_it():
    rng = np.random.default_rng(0)
    noisy = (PICTURES + rng.normal(0, 6, PICTURES.shape)).clip(0, 255).astype(np.uint8)
    assert exact(CAPTIONS, noisy) > 0.95
    assert exact(CAPTIONS, HardSource(0, split="val", image_size=64).images(NUMBERS[:200])) > 0.95


def test_captions_of_other_pictures_do_not_match():
    assert exact(CAPTIONS[1:] + CAPTIONS[:1], PICTURES) < 0.02


@pytest.mark.parametrize(
    ("changes", "attribute"),
    [
        ({"color": [2, -1, -1]}, "color"),
        ({"shape": [1, -1, -1]}, "shape"),
        ({"size": [0, -1, -1]}, "size"),
        ({"background": 1}, "background"),
    ],
)
def test_a_wrong_attribute_is_named(changes, attribute):
    (verdict,) = WORLDS["hard"].score(["a large red circle on white"], render_hard(one(**changes)))
    assert getattr(verdict, attribute) is False


def test_half_an_object_two_colours_or_a_stray_patch_are_not_accepted():
    whole = render_hard(one())
    caption = ["a large red circle on white"]
    assert exact(caption, whole) == 1
    half, two_tone, stray = whole.copy(), whole.copy(), whole.copy()
    half[:, :, :, 16:] = 255
    two_tone[0, :, :, 16:] = np.where(
        (whole[0, :, :, 16:] == whole[0, :, 16:17, 16:17]).all(0),
        np.array(COLORS["blue"], np.uint8)[:, None, None],
        whole[0, :, :, 16:],
    )
    stray[0, :, :5, :5] = np.array([90, 200, 90])[:, None, None]
    for spoilt in (half, two_tone, stray):
        assert exact(caption, spoilt) == 0


def test_a_second_object_of_the_same_colour_is_too_many():
    picture = render_hard(one(x=[9, -1, -1]))
    both = np.where(picture != 255, picture, render_hard(one(x=[23, -1, -1], size=[0, -1, -1])))
    assert read_hard(both)[0].count is None


def test_an_empty_or_grey_picture_has_no_objects():
    for level in (0, 255):
        reading = read_hard(np.full((1, 3, 32, 32), level, np.uint8))[0]
        assert reading.objects == () and reading.count == 0
    with pytest.raises(ValueError, match="uint8"):
        read_hard(np.zeros((1, 3, 32, 32), np.float32))
