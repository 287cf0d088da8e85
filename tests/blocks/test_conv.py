"""Resolutions, and how far a convolutional block looks."""

import pytest
import torch
from helpers.tiny import noise

from minimodal.blocks.conv import (
    Downsample,
    PositionNorm,
    ResidualBlock,
    Upsample,
    group_norm,
    make_norm,
)
from minimodal.blocks.pixel_attention import PixelAttention
from minimodal.training.tasks.common import seeded


def seen_by(module, position: tuple[int, int], *, channels: int = 8, size: int = 8) -> torch.Tensor:
    """Which pixels of a feature map move the output at a position, by gradient: (H, W) bool."""
    x = noise(1, channels, size, size).requires_grad_()
    out = module(x)[0, :, position[0], position[1]]
    (out * noise(len(out), seed=9)).sum().backward()
    return x.grad[0].abs().amax(dim=0) > 0


def only(rows: slice, columns: slice, *, size: int = 8) -> torch.Tensor:
    found = torch.zeros(size, size, dtype=torch.bool)
    found[rows, columns] = True
    return found


def test_downsample_halves():
    assert Downsample(8)(noise(2, 8, 6, 10)).shape == (2, 8, 3, 5)


def test_upsample_doubles():
    assert Upsample(8)(noise(2, 8, 3, 5)).shape == (2, 8, 6, 10)


def test_downsample_is_padded_on_the_right_and_below_only():
    module = seeded(lambda: Downsample(8), 0)
    assert torch.equal(seen_by(module, (0, 0)), only(slice(0, 3), slice(0, 3)))
    assert torch.equal(seen_by(module, (3, 3)), only(slice(6, 8), slice(6, 8)))


def test_upsample_repeats_a_pixel_before_it_convolves():
    module = Upsample(1)
    with torch.no_grad():
        module.conv.weight.zero_()[0, 0, 1, 1] = 1.0
        module.conv.bias.zero_()
    assert module(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]


def test_position_norm_looks_at_one_position_only():
    assert torch.equal(seen_by(PositionNorm(8), (2, 5)), only(slice(2, 3), slice(5, 6)))


def test_group_norm_looks_at_the_whole_picture():
    assert seen_by(group_norm(8), (2, 5)).all()


def test_position_norm_divides_by_the_root_mean_square_of_the_channels():
    out = PositionNorm(2)(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
    assert out.tolist() == pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5], rel=1e-6)


def test_the_norm_of_a_block_is_local_or_of_groups():
    assert isinstance(make_norm(8, local=True), PositionNorm)
    assert isinstance(make_norm(8, local=False), torch.nn.GroupNorm)


@pytest.mark.parametrize("channels", [2, 6, 8, 24, 32, 48, 64, 96, 128])
def test_groups_divide_the_channels(channels):
    groups = group_norm(channels).num_groups
    assert channels % groups == 0 and groups <= 32


def test_a_local_residual_block_looks_at_one_position_only():
    module = seeded(lambda: ResidualBlock(8, 8, kernel=1, local=True), 0)
    assert torch.equal(seen_by(module, (2, 5)), only(slice(2, 3), slice(5, 6)))


def test_two_convolutions_of_three_look_two_pixels_far():
    module = seeded(lambda: ResidualBlock(8, 8, local=True), 0)
    assert torch.equal(seen_by(module, (3, 4)), only(slice(1, 6), slice(2, 7)))


def test_a_residual_block_changes_the_width_where_asked():
    assert ResidualBlock(8, 12)(noise(1, 8, 4, 4)).shape == (1, 12, 4, 4)


def test_a_residual_block_whose_last_convolution_is_zero_changes_nothing():
    block, x = ResidualBlock(8, 8), noise(1, 8, 4, 4)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    assert torch.equal(block(x), x)


def test_pixel_attention_looks_everywhere():
    assert seen_by(seeded(lambda: PixelAttention(8), 0), (2, 5)).all()


def test_pixel_attention_treats_every_position_alike():
    module, x = seeded(lambda: PixelAttention(8), 0), noise(1, 8, 3, 4)
    torch.testing.assert_close(module(x.flip(2, 3)), module(x).flip(2, 3), rtol=0, atol=1e-5)
