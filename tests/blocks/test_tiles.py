"""Decoding in tiles: the same where it can be, close where it cannot, and bounded in memory."""

import pytest
import torch
from helpers.tiny import noise
from torch import Tensor, nn

from minimodal.blocks import tiles
from minimodal.blocks.tiles import in_tiles, starts
from minimodal.vqgan import VQGAN, VQGANConfig
from minimodal.vqgan_clip.optimise import kept_for_gradient

LOCAL = VQGANConfig(
    image_size=16, patch=4, channels=8, multipliers=(1,), decoder_kernel=1, codes=(16,),
    code_width=4,
)  # fmt: skip
WIDE = VQGANConfig(image_size=16, channels=8, multipliers=(1, 1, 1), codes=(16,), code_width=4)


def decoder(config: VQGANConfig) -> nn.Module:
    """A decoder with random weights."""
    torch.manual_seed(0)
    return VQGAN(config).eval().requires_grad_(False).decoder


def seen(decode: nn.Module, z: Tensor, tile: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """A picture, and the shapes that the decoder was given for it."""
    asked = []

    def counted(part: Tensor) -> Tensor:
        asked.append(tuple(part.shape))
        return decode(part)

    with torch.no_grad():
        return in_tiles(counted, z, tile=tile, factor=4), asked


@pytest.mark.parametrize("length", [1, 16, 17, 29, 64, 101])
def test_tiles_cover_a_side_and_overlap_by_a_quarter(length):
    first = starts(length, 16)
    assert first[0] == 0 and first[-1] == max(0, length - 16)
    assert all(0 < b - a <= 12 for a, b in zip(first, first[1:], strict=False))


def test_what_fits_a_tile_is_decoded_to_the_same_bytes():
    vqgan, z = VQGAN(WIDE).eval(), noise(2, 4, 16, 12)
    with torch.no_grad():
        assert torch.equal(vqgan.decode_unclamped(z), vqgan.decoder(vqgan.from_codes(z)))


def test_a_local_decoders_tiles_are_the_whole_picture():
    decode, z = decoder(LOCAL), noise(1, 4, 40, 21)
    with torch.no_grad():
        whole = decode(z)
    torch.testing.assert_close(seen(decode, z, 16)[0], whole, atol=1e-5, rtol=0)


def test_a_constant_latent_has_no_seam():
    decode, z = decoder(LOCAL), noise(1, 4, 1, 1).expand(-1, -1, 40, 40)
    inside = seen(decode, z, 16)[0][..., 12:-12, 12:-12]  # the picture's own edges see zeros
    patch = inside[..., :4, :4].repeat(1, 1, 34, 34)
    torch.testing.assert_close(inside, patch, atol=1e-5, rtol=0)


def test_the_decoder_never_gets_more_than_a_tile():
    _, asked = seen(decoder(WIDE), noise(2, 4, 33, 50), 16)
    assert set(asked) == {(2, 4, 16, 16)} and len(asked) == 3 * 4


def test_a_gradient_needs_the_memory_of_one_tile():
    decode = decoder(WIDE)

    def kept(side: int) -> int:
        z = noise(1, 4, side, side).requires_grad_()
        return kept_for_gradient(lambda: in_tiles(decode, z, tile=16, factor=4), [])

    z = noise(1, 4, 28, 28).requires_grad_()
    assert kept(16) < kept(28) < 1.2 * kept(16) < 0.5 * kept_for_gradient(lambda: decode(z), [])


def test_computing_a_tile_again_leaves_its_gradient_as_it_was(monkeypatch):
    decode, z = decoder(WIDE), noise(1, 4, 28, 28)

    def gradient() -> Tensor:
        x = z.clone().requires_grad_()
        in_tiles(decode, x, tile=16, factor=4).square().sum().backward()
        return x.grad

    again = gradient()
    monkeypatch.setattr(tiles, "checkpoint", lambda decode, part, **_: decode(part))
    assert torch.equal(again, gradient()) and bool((again != 0).all())


def test_a_vqgan_decodes_large_pictures_in_tiles():
    vqgan = VQGAN(WIDE).eval()
    assert vqgan.config.tile == 128  # 512 pixels
    z = noise(1, 4, 2, 140)
    with torch.no_grad():
        drawn, whole = vqgan.decode_unclamped(z), vqgan.decoder(vqgan.from_codes(z))
    assert drawn.shape == (1, 3, 8, 560)
    assert not torch.equal(drawn, whole)
    assert VQGANConfig(image_size=512, multipliers=(1, 1, 1, 1, 1)).tile == 64
