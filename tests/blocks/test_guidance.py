"""The distance, and gradients that differ from their values' own."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.shape_check import check_shapes
from helpers.tiny import noise

from minimodal.blocks.guidance import clamp_through, great_circle, stopped


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(noise(*shape, seed=seed), dim=-1)


@pytest.mark.parametrize("degrees", [0, 1e-3, 30, 90, 150, 180 - 1e-3, 180])
def test_the_distance_is_half_the_squared_angle(degrees):
    angle = math.radians(degrees)
    x = torch.tensor([[1.0, 0.0]]).requires_grad_()
    y = torch.tensor([[math.cos(angle), math.sin(angle)]])
    if degrees == 180:  # sin(π) is not quite 0
        y = -x.detach()
    distance = great_circle(x, y)
    assert float(distance) == pytest.approx(angle**2 / 2, rel=1e-4, abs=1e-9)
    distance.sum().backward()
    assert torch.isfinite(x.grad).all()
    if 0 < degrees < 180:  # along the circle θ²/2 changes by θ
        assert float(x.grad[0, 1]) == pytest.approx(-angle, rel=1e-3, abs=1e-5)
    else:
        assert float(x.grad.norm()) == 0


def test_the_distance_is_the_originals_where_that_is_finite():
    x, y = unit(5, 8), unit(3, 8, seed=1)
    chord = (x[:, None] - y[None]).norm(dim=-1)
    torch.testing.assert_close(great_circle(x, y), 2 * (chord / 2).arcsin().square())


def test_the_distance_has_the_gradient_that_finite_differences_say():
    x, y = unit(2, 4).double().requires_grad_(), unit(3, 4, seed=1).double()
    assert torch.autograd.gradcheck(great_circle, (x, y))


def test_stop_shows_the_distance_and_pulls_only_above_it():
    d = torch.tensor([[0.2, 0.5, 0.9]], requires_grad=True)
    value = stopped(d, 0.5 + 1e-6)
    assert torch.equal(value, d)
    value.sum().backward()
    assert d.grad.tolist() == [[0, 0, 1]]


def test_a_clamp_lets_pass_only_what_leads_back():
    x = torch.tensor([-2.0, -2.0, 0.5, 0.5, 2.0, 2.0], requires_grad=True)
    towards = torch.tensor([1.0, -1, 1, -1, 1, -1])
    value = clamp_through(x)
    assert value.tolist() == [-1, -1, 0.5, 0.5, 1, 1]
    (value * towards).sum().backward()
    # A step goes against the gradient: from -2 up only where the gradient is negative.
    assert x.grad.tolist() == [0, -1, 1, -1, 1, 0]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (great_circle, dict(x=noise(4, 8), y=noise(3, 8))),
        (stopped, dict(distance=noise(4, 3), stop=0.1)),
    ],
)
def test_shapes_are_as_documented(function, arguments):
    check_shapes(function, arguments, function(**arguments))
