"""The U-Net: what each of its parts lets through."""

import torch
from helpers.tiny import noise, shake

from minimodal.blocks.conv import ResidualBlock
from minimodal.blocks.pixel_attention import PixelAttention
from minimodal.blocks.unet import UNet, time_features
from minimodal.training.tasks.common import seeded


def make_unet(**changes) -> UNet:
    sizes = {"channels": 8, "multipliers": (1, 2), "depth": 1, "attention": (False, True),
             "width": 6, "token_width": 5} | changes  # fmt: skip
    return seeded(lambda: UNet(3, 4, **sizes), 0)


def test_a_new_network_says_nothing():
    found = make_unet()(noise(2, 3, 8, 8), noise(2, 6), noise(2, 3, 5))
    assert found.shape == (2, 4, 8, 8) and not found.any()


def test_norms_read_features_as_they_are_fast_on_whatever_the_strides_of_the_picture():
    net, contiguous = make_unet(), []
    for part in net.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.register_forward_pre_hook(lambda part, x: contiguous.append(x[0].is_contiguous()))
    x = noise(2, 3, 8, 8).to(memory_format=torch.channels_last)  # as looked up code vectors are
    net(x, noise(2, 6), noise(2, 3, 5))
    assert len(contiguous) > 10 and all(contiguous)


def test_time_vector_and_tokens_both_matter():
    net = shake(make_unet())
    x, vector, tokens = noise(1, 3, 8, 8), noise(1, 6), noise(1, 3, 5)
    plain = net(x, vector, tokens)
    assert not torch.allclose(plain, net(x, noise(1, 6, seed=1), tokens))
    assert not torch.allclose(plain, net(x, vector, noise(1, 3, 5, seed=1)))


def test_only_resolutions_with_attention_read_tokens():
    net = shake(make_unet(attention=(False, False)))
    x, vector = noise(1, 3, 8, 8), noise(1, 6)
    assert torch.equal(net(x, vector, noise(1, 3, 5)), net(x, vector, noise(1, 3, 5, seed=1)))


def test_every_block_on_the_way_up_is_given_what_its_twin_said_on_the_way_down():
    net, said, heard = shake(make_unet(depth=2)), [], []
    down = [part for blocks, smaller in net.down for part in (*blocks, smaller) if part]
    for part in (net.conv_in, *down):
        part.register_forward_hook(lambda _, __, out: said.append(out))
    for part in (block for blocks, _ in net.up for block in blocks):
        part.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    net(noise(1, 3, 8, 8), noise(1, 6), noise(1, 3, 5))
    for twin, given in zip(reversed(said), heard, strict=True):
        assert torch.equal(given[:, -twin.shape[1] :], twin)


def test_the_vector_scales_and_shifts_every_block():
    net = shake(make_unet())
    net(noise(1, 3, 8, 8), noise(1, 6), noise(1, 3, 5)).square().sum().backward()
    blocks = {name: part for name, part in net.named_modules() if hasattr(part, "modulation")}
    assert len(blocks) == 2 + 1 + 4
    for name, block in blocks.items():
        assert block.modulation.weight.grad.abs().amax(dim=1).min() > 0, name


def test_a_modulation_of_zero_changes_nothing():
    block, x = shake(seeded(lambda: ResidualBlock(8, 16), 0)), noise(2, 8, 4, 4)
    assert torch.equal(block(x), block(x, torch.zeros(2, 32)))


def test_a_token_like_a_position_is_attended_to_as_a_position():
    """Keys and values of a token made by the very maps of the pixels: twice the same position."""
    layer = shake(seeded(lambda: PixelAttention(8, heads=2, token_width=8), 0))
    with torch.no_grad():
        for i, conv in enumerate((layer.k, layer.v)):
            layer.of_tokens.weight[8 * i : 8 * i + 8] = conv.weight[:, :, 0, 0]
            layer.of_tokens.bias[8 * i : 8 * i + 8] = conv.bias
    x = noise(1, 8, 2, 1)
    doubled = layer.norm(x).flatten(2).mT  # every position once more, as a token
    assert torch.allclose(layer(x), layer(x, doubled), atol=1e-5)


def test_times_have_as_many_features_as_asked_for():
    assert [time_features(torch.zeros(2), n).shape for n in (4, 5)] == [(2, 4), (2, 5)]


def test_times_differ_in_their_features():
    found = time_features(torch.tensor([0.0, 0.5, 0.501]), 16)
    assert torch.equal(found[0], torch.cat([torch.ones(8), torch.zeros(8)]))
    assert float((found[1] - found[2]).norm()) > 0.5
