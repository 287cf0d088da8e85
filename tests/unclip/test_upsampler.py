"""unCLIP's up-sampler: what it is told, and what it makes of it."""

import pytest
import torch
from helpers.tiny import generator, make_upsampler, noise, pictures

from minimodal.blocks.pixels import to_uint8
from minimodal.errors import UserError
from minimodal.training.optim import make_optimizer
from minimodal.unclip.upsampler import UpsamplerConfig, shrink


def test_without_a_blur_a_small_picture_is_the_mean_of_each_square():
    x = pictures(2, 3, 16, 16)
    small = shrink(x, 8, blur=torch.zeros(2))
    assert torch.allclose(small[1, 2, 3, 5], x[1, 2, 6:8, 10:12].mean(), atol=1e-6)


def test_a_blur_is_the_gaussian_of_its_deviation():
    x = torch.zeros(1, 3, 8, 8)
    x[..., 4, 4] = 1
    found = shrink(x, 8, blur=torch.tensor([0.6]))[0, 0, 3:6, 3:6]
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * 0.6**2))
    line = line / line.sum()
    assert torch.allclose(found, line[:, None] * line, atol=1e-6)


def test_the_small_picture_is_heeded():
    model, x, t = make_upsampler(), noise(1, 3, 16, 16), torch.tensor([0.5])
    a, b = (model(x, t, pictures(1, 3, 8, 8, seed=seed)) for seed in (0, 1))
    assert a.shape == x.shape and not torch.allclose(a, b)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(UserError, match="pictures of 16 x 16 pixels.*enlarges those of 8 x 8"):
        make_upsampler().enlarge(
            torch.zeros(1, 3, 16, 16, dtype=torch.uint8), generator=generator()
        )


def test_it_learns_to_enlarge_two_pictures():
    model = make_upsampler(patch=4, multipliers=(1,), channels=16).train()
    x = to_uint8(pictures(2, 3, 16, 16).sign() * 0.8)
    large = x.float() / 127.5 - 1
    small = shrink(large, 8, blur=torch.zeros(2))
    optimizer = make_optimizer([model], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, muon=True)
    for step in range(300):
        t, e = torch.rand(8, generator=generator(step)), noise(8, 3, 16, 16, seed=step)
        rows = torch.arange(8) % 2
        loss = model.loss(large[rows], small[rows], noise=e, t=t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = model.enlarge(to_uint8(small), generator=generator()).float() / 127.5 - 1
    assert float((drawn - large).abs().mean()) < 0.15


@pytest.mark.parametrize(
    "sizes", [{"image_size": 48}, {"image_size": 32}, {"patch": 3}, {"multipliers": ()}]
)
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(UserError):
        UpsamplerConfig(small_size=32, **{"image_size": 64} | sizes)
