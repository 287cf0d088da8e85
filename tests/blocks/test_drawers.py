"""Drawers: each begins at a picture, has gradients everywhere, and VQGAN's are straight-through."""

import pytest
import torch
from helpers.shape_check import check_shapes
from helpers.tiny import generator, make_vqgan, noise, pictures

from minimodal.blocks.drawers import (
    DRAWERS,
    CodesDrawer,
    FourierDrawer,
    PixelDrawer,
    StackDrawer,
    VQGANDrawer,
    make_drawer,
    straight_through,
    tables,
)
from minimodal.errors import UserError
from minimodal.training.tasks.common import seeded
from minimodal.vqgan import VQGAN, VQGANConfig

START = pictures(2, 3, 16, 16) * 0.8
JOINT = make_vqgan()
PAIR = make_vqgan(patch=4, multipliers=(1,), codes=(7, 5))


def other_vqgan(quantizer: str) -> VQGAN:
    """One of 16 pixels with another quantizer; new codes are zero, so they are drawn."""
    config = VQGANConfig(
        image_size=16, channels=8, multipliers=(1, 2), quantizer=quantizer, codes=(12,),
        code_width=6,
    )  # fmt: skip
    vqgan = seeded(lambda: VQGAN(config), 0).eval()
    vqgan.quantizer.codes.data.copy_(noise(12, 6))
    return vqgan


OTHERS = {name: other_vqgan(name) for name in ("gradient", "gumbel")}
VQGANS = {"ema": JOINT, "two codebooks": PAIR, **OTHERS}


@pytest.mark.parametrize("name", DRAWERS)
def test_a_drawer_has_a_gradient_for_every_parameter(name):
    drawer = make_drawer(name, START, vqgan=PAIR)
    assert drawer.pictures().shape == START.shape
    assert drawer.pictures().abs().max() <= 1
    drawer.pictures().square().sum().backward()
    for p in drawer.parameters:
        assert len(p) == len(START) and float(p.grad.abs().sum()) > 0
    drawer.settle()


@pytest.mark.parametrize("name", ["fourier", "stack"])
def test_what_can_draw_everything_begins_at_its_picture(name):
    torch.testing.assert_close(make_drawer(name, START).pictures(), START, atol=1e-4, rtol=0)


def test_pixels_begin_at_the_means_of_their_squares():
    drawn = PixelDrawer(START, side=4).pictures()
    assert torch.equal(drawn[..., :4, :4], drawn[..., :1, :1].expand(-1, -1, 4, 4))
    torch.testing.assert_close(drawn[..., 5, 9], START[..., 4:8, 8:12].mean(dim=(2, 3)))


@pytest.mark.parametrize("name", VQGANS)
def test_vqgan_begins_at_the_pictures_codes(name):
    vqgan = VQGANS[name]
    codes = vqgan.encode(START)
    expected = vqgan.decode_indices(codes.indices)
    torch.testing.assert_close(VQGANDrawer(vqgan, START).pictures(), expected, atol=1e-5, rtol=0)
    drawer = VQGANDrawer(vqgan, torch.zeros_like(START))
    drawer.begin(codes.indices)
    torch.testing.assert_close(drawer.pictures(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ema", "two codebooks", "gradient", "gumbel"])
def test_codes_begin_as_the_likeliest(name):
    vqgan = VQGANS[name]
    expected = vqgan.decode_indices(vqgan.encode(START).indices)
    drawer = CodesDrawer(vqgan, START)
    torch.testing.assert_close(drawer.pictures(), expected, atol=1e-5, rtol=0)
    drawn = [drawer.pictures(generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", VQGANS)
def test_rounding_is_to_the_models_own_codes_and_settles_among_them(name):
    vqgan = VQGANS[name]
    drawer = VQGANDrawer(vqgan, START)
    with torch.no_grad():
        drawer.parameters[0].add_(noise(*drawer.parameters[0].shape), alpha=0.3)
    drawer.settle()
    with torch.no_grad():
        z, rounded = drawer.parameters[0], []
        vqgan.decode_unclamped, original = (
            lambda z: rounded.append(z) or original(z),
            vqgan.decode_unclamped,
        )
        drawer.pictures()
        vqgan.decode_unclamped = original
    every = vqgan.quantizer.vectors(torch.arange(vqgan.quantizer.size).view(1, 1, -1))
    flat = rounded[0].movedim(1, -1).flatten(0, -2)
    distance = (flat[:, None] - every[0, :, 0].T).abs().amax(dim=2).amin(dim=1)
    assert float(distance.max()) < 1e-5
    low, high = every.amin(dim=(0, 2, 3)), every.amax(dim=(0, 2, 3))
    assert ((z >= low[:, None, None] - 1e-6) & (z <= high[:, None, None] + 1e-6)).all()


def test_straight_through_is_nearest_forward_and_the_identity_backward():
    books = [noise(7, 4), noise(5, 3, seed=1)]
    z, towards = noise(2, 7, 3, 5, seed=2).requires_grad_(), noise(2, 7, 3, 5, seed=3)
    out = straight_through(z, books)
    first = z.detach()[1, :4, 2, 1]
    nearest = books[0][(books[0] - first).norm(dim=1).argmin()]
    torch.testing.assert_close(out[1, :4, 2, 1].detach(), nearest)
    (out * towards).sum().backward()
    assert torch.equal(z.grad, towards)


def test_low_waves_move_more_than_high_ones():
    """The same step on every wave's parameter changes the picture by a gain that falls."""
    gain = FourierDrawer(START).gain
    assert float(gain[0, 1]) > 4 * float(gain[0, 8])


def test_a_stack_moves_large_areas_together():
    drawer = StackDrawer(torch.zeros(1, 3, 16, 16))
    assert [p.shape[-1] for p in drawer.parameters] == [1, 2, 4, 8, 16]
    with torch.no_grad():
        drawer.parameters[0].add_(0.5)
    torch.testing.assert_close(drawer.pictures(), torch.full((1, 3, 16, 16), 0.5))


def test_wide_pictures_are_drawn_wide():
    wide = pictures(1, 3, 16, 24)
    for name in DRAWERS:
        assert make_drawer(name, wide, vqgan=PAIR).pictures().shape == wide.shape


@pytest.mark.parametrize(
    ("name", "vqgan", "message"),
    [
        ("vqgn", None, "expected vqgan, codes"),
        ("clipdraw", None, "expected vqgan"),
        ("vqgan", None, "needs a trained VQGAN"),
    ],
)
def test_a_drawer_that_cannot_be_had_is_refused(name, vqgan, message):
    with pytest.raises(UserError, match=message):
        make_drawer(name, START, vqgan=vqgan)


def test_squares_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="do not fill pictures of 16 x 16"):
        PixelDrawer(START, side=5)


@pytest.mark.parametrize(
    ("function", "arguments", "letters"),
    [
        (straight_through, dict(z=noise(2, 8, 3, 5), books=[noise(7, 8)]), {}),
        (tables, dict(quantizer=PAIR.quantizer), {}),
        (VQGANDrawer(JOINT, START).pictures, {}, {"B": 2, "H": 16, "W": 16}),
        (CodesDrawer(JOINT, START).pictures, {}, {"B": 2, "H": 16, "W": 16}),
        (PixelDrawer(START).pictures, {}, {"B": 2, "H": 16, "W": 16}),
        (FourierDrawer(START).pictures, {}, {"B": 2, "H": 16, "W": 16}),
        (StackDrawer(START).pictures, {}, {"B": 2, "H": 16, "W": 16}),
        (StackDrawer(START).enlarged, dict(x=START[..., :4, :4]), {"H": 16, "W": 16}),
    ],
)
def test_shapes_are_as_documented(function, arguments, letters):
    symbols = letters
    if function is tables:
        for book in function(**arguments):
            assert book.dim() == 2
        return
    check_shapes(function, arguments, function(**arguments), symbols)
