"""Regularisers: 0 where nothing is wrong, more where there is, and a gradient that mends it."""

import pytest
import torch
from helpers.shape_check import check_shapes
from helpers.tiny import noise, pictures

from minimodal.blocks.regularizers import (
    REGULARIZERS,
    check_names,
    edge,
    from_start,
    palette,
    per_picture,
    saturation,
    smoothness,
    symmetry,
    total_variation,
)
from minimodal.errors import UserError

FLAT = torch.full((1, 3, 16, 16), 0.3)
LEFT_WHITE = torch.cat([torch.ones(1, 3, 16, 8), -torch.ones(1, 3, 16, 8)], dim=3)
RED = torch.tensor([1.0, -1, -1])


def test_a_flat_picture_has_no_variation_and_is_its_own_mirror():
    for pull in (total_variation, smoothness, symmetry):
        assert float(pull(FLAT)) == 0
        assert float(pull(LEFT_WHITE)) > 0


def test_a_step_costs_its_height_or_its_square():
    """One edge of height 2 among 15 pairs of neighbours."""
    assert float(smoothness(LEFT_WHITE)) == pytest.approx(2 / 15)
    assert float(total_variation(LEFT_WHITE)) == pytest.approx(4 / 15)


def test_colour_is_rewarded_and_grey_is_not():
    colourful = torch.cat([RED.view(1, 3, 1, 1).expand(1, 3, 16, 8), FLAT[..., :8]], dim=3)
    assert float(saturation(colourful)) < -0.5
    assert float(saturation(LEFT_WHITE)) == pytest.approx(0, abs=1e-3)


def test_an_edge_is_white_and_the_middle_is_free():
    framed = torch.ones(1, 3, 16, 16)
    framed[..., 2:14, 2:14] = noise(1, 3, 12, 12)
    assert float(edge(framed)) == 0
    assert float(edge(-torch.ones(1, 3, 16, 16))) == pytest.approx(4)


def test_a_palette_pulls_to_the_nearest_of_its_colours():
    colors = torch.stack([RED, torch.ones(3)])
    near = (RED * 0.9).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    assert float(palette(near.detach(), colors)) == pytest.approx(0.03)
    palette(near, colors).sum().backward()
    assert torch.equal(near.grad.sign()[0, :, 0, 0], -RED)


def test_the_start_holds_by_distance_or_by_angle():
    first = [noise(2, 3, 4), noise(2, 5, seed=1)]
    doubled = [2 * p for p in first]
    assert from_start(first, first, how="mse").tolist() == [0, 0]
    torch.testing.assert_close(from_start(doubled, first, how="sphere"), torch.zeros(2))
    squares = torch.cat([p.flatten(1) for p in first], 1).square().mean(1)
    torch.testing.assert_close(from_start(doubled, first, how="mse"), squares)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_gradients_are_those_of_finite_differences(name):
    x = pictures(2, 3, 8, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(REGULARIZERS[name], (x,), atol=1e-4)


def test_a_name_that_is_none_is_refused():
    check_names({"tv": 1.0, "palette": 1.0, "sphere": 0.1})
    with pytest.raises(UserError, match="did you mean symmetry"):
        check_names({"symetry": 1.0})


X = pictures(2, 3, 8, 12)


@pytest.mark.parametrize("function", [*REGULARIZERS.values(), per_picture])
def test_shapes_are_as_documented(function):
    check_shapes(function, dict(x=X), function(X))


def test_shapes_of_the_others():
    check_shapes(palette, dict(x=X, colors=noise(4, 3)), palette(X, noise(4, 3)))
    check_shapes(
        from_start, dict(parameters=[X], first=[X], how="mse"), from_start([X], [X], how="mse")
    )
