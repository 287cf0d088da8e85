"""Views: each change does what it says, has the right gradient, and can be made in parts."""

import math
from dataclasses import fields, replace

import pytest
import torch
from helpers.shape_check import check_shapes
from helpers.tiny import generator, noise, pictures

from minimodal.blocks.cutouts import (
    CAPTION_TRUE,
    PHOTOGRAPHS,
    Draws,
    Views,
    blur,
    color_maps,
    cutout_sides,
    draw_views,
    erase,
    look,
    projective_maps,
    recolor,
    see,
)
from minimodal.errors import UserError

CHANGES = {
    "smallest": 0.3, "flip": 1.0, "shift": 0.2, "scale": 0.3, "rotate": 30.0,
    "perspective": 0.6, "brightness": 0.3, "contrast": 0.5, "saturation": 0.5, "hue": 0.2,
    "blur": 1.5, "erase": 1.0, "noise": 0.2, "padding": 0.2,
}  # fmt: skip
SMOOTH = noise(1, 3, 9, 9).cumsum(2).cumsum(3) / 30  # no pixel is unlike its neighbours


def one(views: Views, picture: torch.Tensor, *, n: int = 3, size: int = 9, seed: int = 0):
    return see(picture.expand(n, -1, -1, -1), draw_views(views, n, generator(seed)), size,
               fill=views.fill)  # fmt: skip


def test_without_changes_a_view_is_the_picture():
    torch.testing.assert_close(one(Views(), SMOOTH), SMOOTH.expand(3, -1, -1, -1))


def test_every_change_has_a_test():
    assert set(CHANGES) == {field.name for field in fields(Views)} - {"cut_pow", "fill"}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_each_change_changes_something_and_alone(name, value):
    views = Views(**{name: value})
    seen = one(views, SMOOTH)
    assert (seen - SMOOTH).abs().max() > 1e-3
    assert torch.equal(one(views, SMOOTH), seen)  # by its generator alone
    assert not torch.equal(one(views, SMOOTH, seed=1), seen) or name == "flip"


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_gradients_are_those_of_finite_differences(name, value):
    """In every direction that a picture can change; views are piecewise smooth in it."""
    views, x = Views(**{name: value}), SMOOTH.clone().requires_grad_()
    direction, towards = noise(1, 3, 9, 9, seed=1), noise(3, 3, 9, 9, seed=2)
    (one(views, x) * towards).sum().backward()
    step = 1e-2

    def at(t: float) -> float:
        return float((one(views, SMOOTH + t * direction).double() * towards).sum())

    expected = (at(step) - at(-step)) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_flip_is_a_flip():
    torch.testing.assert_close(one(Views(flip=1.0), SMOOTH), SMOOTH.flip(3).expand(3, -1, -1, -1))


def test_cutouts_have_the_sides_that_cut_pow_says():
    """side = a + (1 - a) u^p has mean a + (1 - a) / (p + 1)."""
    u = torch.rand(20_000, generator=generator())
    for power in (0.5, 1.0, 3.0):
        sides = cutout_sides(Views(smallest=0.2, cut_pow=power), u)
        assert 0.2 <= float(sides.min()) and float(sides.max()) <= 1
        assert float(sides.mean()) == pytest.approx(0.2 + 0.8 / (power + 1), abs=0.01)


def test_unpadded_cutouts_stay_within_the_picture_and_padded_ones_do_not():
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)])

    def furthest(views: Views) -> float:
        there = corners @ projective_maps(views, 500, generator()).mT
        return float(there[..., :2].abs().max())

    assert furthest(Views(smallest=0.3)) <= 1 + 1e-5
    assert furthest(Views(smallest=0.3, padding=0.25)) > 1.2


def test_the_fill_is_what_lies_beyond_the_edge():
    bright = torch.ones(1, 3, 8, 8)
    beyond = Views(shift=0.9)
    for fill, seen in (("zeros", 0.0), ("border", 1.0), ("reflection", 1.0)):
        least = one(replace(beyond, fill=fill), bright, size=8).min()
        assert float(least) == pytest.approx(seen, abs=1e-5)


def test_the_caption_stays_true():
    """Nothing that would exchange left and right, name another colour or lose an object."""
    v = CAPTION_TRUE
    assert v.flip == v.hue == v.rotate == v.perspective == v.saturation == v.erase == 0
    assert v.smallest == 1
    assert v.shift * 32 <= 2 and v.scale <= 0.05


def test_a_whole_turn_of_the_hue_is_no_turn_and_grey_has_none():
    s = torch.tensor([[0.3, -0.2, 0.5]])
    third = color_maps(Views(hue=1 / 3), 500, generator())
    torch.testing.assert_close(third @ torch.ones(3), torch.ones(500, 3))
    turned = third @ s[0]
    torch.testing.assert_close(turned.norm(dim=1), s.norm().expand(500))


def test_blur_keeps_the_mean_and_lowers_the_contrast():
    x = torch.zeros(2, 1, 15, 15)
    x[:, :, 7, 7] = 1
    soft = blur(x, torch.tensor([0.8, 1.6]))
    torch.testing.assert_close(soft.sum(dim=(1, 2, 3)), torch.ones(2))
    spread = (torch.arange(15) - 7.0).square()
    deviation = (soft.sum(2)[:, 0] @ spread).sqrt()
    assert deviation[0] == pytest.approx(0.8, rel=0.1) and deviation[1] > 1.3


def test_how_a_view_is_blurred_does_not_depend_on_those_beside_it():
    x, deviations = noise(2, 3, 15, 15), torch.tensor([0.6, 3.0])
    torch.testing.assert_close(blur(x, deviations)[:1], blur(x[:1], deviations[:1]))


def test_an_erased_rectangle_is_grey():
    x = torch.ones(1, 3, 8, 8)
    out = erase(x, torch.tensor([[-1.0, -1, 0, 0.5]]))
    assert float(out[:, :, :6, :4].abs().max()) == 0
    assert float(out.sum()) == 3 * (64 - 24)


def test_views_in_parts_are_the_views_at_once():
    draws = draw_views(PHOTOGRAPHS, 6, generator())
    x = SMOOTH.expand(6, -1, -1, -1)
    whole = see(x, draws, 9)
    parts = [see(x[i : i + 2], draws.part(i, i + 2), 9) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_large_pictures_are_averaged_not_sampled():
    """Stripes of one pixel are grey from afar; single samples would make them anything."""
    stripes = torch.ones(1, 3, 32, 32)
    stripes[..., ::2] = -1
    assert one(Views(), stripes, n=1, size=8).abs().max() < 1e-5


def test_a_longer_picture_is_seen_in_its_middle():
    wide = torch.cat(
        [torch.full((1, 3, 8, 4), -1.0), SMOOTH[..., :8, :8], -torch.ones(1, 3, 8, 4)], 3
    )
    torch.testing.assert_close(one(Views(), wide, n=1, size=8), SMOOTH[..., :8, :8])


def test_global_randomness_is_neither_read_nor_changed():
    before = torch.get_rng_state()
    one(PHOTOGRAPHS, SMOOTH)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong", [{"smallest": 0}, {"cut_pow": 0}, {"fill": "blue"}, {"flip": 2}, {"noise": math.nan}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).split("_")[0]):
        Views(**wrong)


DRAWS = draw_views(PHOTOGRAPHS, 4, generator())
FOUR = pictures(4, 3, 8, 12)


@pytest.mark.parametrize(
    ("function", "arguments", "letters"),
    [
        (cutout_sides, dict(views=PHOTOGRAPHS, u=torch.rand(4, generator=generator())), {}),
        (projective_maps, dict(views=PHOTOGRAPHS, n=4, generator=generator()), {}),
        (color_maps, dict(views=PHOTOGRAPHS, n=4, generator=generator()), {}),
        (draw_views, dict(views=PHOTOGRAPHS, n=4, generator=generator()), {}),
        (look, dict(pictures=FOUR, draws=DRAWS, size=6), {"S": 6}),
        (see, dict(pictures=FOUR, draws=DRAWS, size=6), {"S": 6}),
        (blur, dict(x=FOUR, deviations=DRAWS.blur), {}),
        (erase, dict(x=FOUR, boxes=DRAWS.erase), {}),
        (recolor, dict(x=FOUR, draws=DRAWS), {}),
    ],
)
def test_shapes_are_as_documented(function, arguments, letters):
    assert isinstance(DRAWS, Draws)
    check_shapes(function, arguments, function(**arguments), letters)
