"""What keeps structure and appearance apart: each part does what it promises."""

import numpy as np
import pytest
import torch
from helpers.decoding import Numbered
from helpers.tiny import generator, make_vqgan, noise, pictures

from minimodal.blocks.factors import AppearanceEncoder, local_contrast, self_similarity
from minimodal.errors import UserError
from minimodal.training.contract import Recipe, TrainConfig
from minimodal.training.tasks.common import seeded
from minimodal.training.tasks.vqgan import VQGANTask, VQGANTraining

TWO = dict(patch=4, multipliers=(1,), encoder_kernel=1, decoder_kernel=1, codes=(7, 5))


class Painted(Numbered):
    """400 pictures of noise."""

    group = 1

    def images(self, indices):
        rows = [np.random.default_rng(int(i)).integers(0, 256, (3, 16, 16)) for i in indices]
        return np.stack(rows).astype(np.uint8)


def make_task(**training) -> VQGANTask:
    training = {"warm_start": 0, "gan_weight": 0.0, **training}
    config, source = make_vqgan(**TWO).config, Painted()
    recipe = Recipe(config, VQGANTraining(**training), TrainConfig(batch_size=6))
    return VQGANTask(recipe, source, source)


def turned(images: torch.Tensor, seed: int) -> torch.Tensor:
    """The pictures in other colours: a rotation or reflection of colour space, and an offset."""
    turn = torch.linalg.qr(noise(3, 3, seed=seed))[0] * (-1) ** seed
    return torch.einsum("ij,bjhw->bihw", turn, images) + noise(3, 1, 1, seed=seed + 1)


def test_structure_is_the_same_in_all_colours_that_a_rotation_and_an_offset_give():
    images = pictures(2, 3, 8, 8)
    expected = self_similarity(images, patch=4)
    assert expected.shape == (2, 36 * 36, 2, 2)
    for seed in range(6):
        torch.testing.assert_close(
            self_similarity(turned(images, seed), patch=4), expected, rtol=0, atol=1e-5
        )


def test_of_two_colours_structure_knows_only_which_pixel_has_how_much_of_which():
    share = noise(1, 1, 8, 8).sigmoid()  # of the first colour; edges are blends
    pairs = [noise(2, 3, 1, 1, seed=seed) * 3 for seed in range(5)]
    windows = [self_similarity(share * a + (1 - share) * b, patch=4) for a, b in pairs]
    for other in windows[1:]:
        torch.testing.assert_close(other, windows[0], rtol=0.05, atol=0.05)  # a floor
    assert (self_similarity(pictures(1, 3, 8, 8), patch=4) - windows[0]).abs().max() > 1


def test_structure_loses_nothing_but_the_colours():
    """The distances between a window's colours can be had back, so their figure in colour space."""
    images = pictures(1, 3, 4, 4)
    inner = self_similarity(images, patch=4).view(36, 36) * 3
    squares = inner.diagonal()
    distances = squares[:, None] + squares[None] - 2 * inner
    colours = local_contrast(images, patch=4).view(36, 3)
    expected = torch.cdist(colours, colours) ** 2
    torch.testing.assert_close(distances, expected, rtol=0, atol=1e-4)


def test_structure_is_not_rounded_under_autocast():
    images = pictures(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = self_similarity(images, patch=4)
    assert torch.equal(found, self_similarity(images, patch=4))


def test_local_contrast_forgets_offset_and_contrast_and_keeps_flat_patches_flat():
    images = pictures(2, 3, 8, 8)
    changed = 0.5 * images + torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)
    a, b = local_contrast(images, patch=4), local_contrast(changed, patch=4)
    torch.testing.assert_close(a, b, rtol=0, atol=0.05)
    assert a.shape == (2, 2, 2, 36, 3)
    assert a.mean(dim=3).abs().max() < 1e-5
    assert (local_contrast(torch.full((1, 3, 8, 8), 0.7), patch=4).abs() < 1e-4).all()


def test_an_edge_between_two_patches_is_seen_from_both():
    image = torch.zeros(1, 3, 8, 12)
    image[..., 4:8] = 1.0  # the middle patch of three, and no pixel of the others
    found = local_contrast(image, patch=4).abs().amax(dim=(3, 4))
    assert (found > 0.5).all()
    image = torch.zeros(1, 3, 8, 12)
    image[..., 8:] = 1.0
    assert local_contrast(image, patch=4)[:, :, 0].abs().max() < 1e-6  # one patch further


def test_appearance_depends_on_which_colours_a_patch_has_and_on_nothing_else():
    encoder = seeded(lambda: AppearanceEncoder(8, 5, patch=4), 0)
    colours = noise(3, 3, seed=3)  # three colours
    # Every colour at least once; where, and how often, is another matter in each patch.
    picks = [torch.randperm(16, generator=generator(i)) % 3 for i in range(6)]
    picks += [(torch.arange(16) - 13).clamp(min=0)]
    patch = torch.stack([colours[pick].T.reshape(3, 4, 4) for pick in picks])
    found = encoder(patch)[:, :, 0, 0]  # (7, 5)
    torch.testing.assert_close(found, found[:1].expand(7, -1))
    without = encoder(colours[torch.arange(16) % 2].T.reshape(1, 3, 4, 4))[:, :, 0, 0]
    assert (found[0] - without[0]).abs().max() > 1e-3


def test_appearance_sees_as_far_beyond_a_patch_as_structure_does():
    encoder = seeded(lambda: AppearanceEncoder(8, 5, patch=4), 0)
    image = pictures(1, 3, 12, 12).requires_grad_()
    encoder(image)[0, :, 1, 1].sum().backward()
    rows, columns = image.grad[0].abs().sum(0).nonzero().T
    assert 3 <= min(rows.min(), columns.min()) and max(rows.max(), columns.max()) <= 8
    changed = image.detach().clone()
    changed[:, :, 3, 3] = 9.0  # a pixel of the margin, and a colour that no other has
    assert not torch.equal(encoder(changed)[..., 1, 1], encoder(image)[..., 1, 1])


def test_half_of_a_latent_is_structure_and_half_appearance():
    vqgan, images = make_vqgan(**TWO), pictures(2, 3, 16, 16)
    structure, appearance = vqgan.latents(images).chunk(2, dim=1)
    seen = []
    vqgan.encoder.conv_in.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert torch.equal(structure, vqgan.encoder(images))
    assert torch.equal(seen[0], self_similarity(images, patch=4))
    assert torch.equal(appearance, vqgan.appearance(images))


def test_both_encoders_learn_from_what_the_picture_lacks():
    task = make_task()
    batch = task.batch(0, slice(0, 6))
    task.before_step(0, [batch])
    loss, metrics = task.loss(batch, "generator", 0)
    images = batch["images"].float() / 127.5 - 1
    expected = (batch["painted"] - images).abs().mean()
    assert metrics["l1"].item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in task.model.encoder.parameters())
    assert all(p.grad is not None for p in task.model.appearance.parameters())


def test_with_decoder_kernel_1_a_pixel_depends_on_the_5_x_5_codes_about_it():
    vqgan = make_vqgan(**TWO, image_size=36)
    z = noise(1, 12, 9, 9).requires_grad_()
    vqgan.paint(z)[0, :, 18, 18].sum().backward()
    rows, columns = z.grad[0].abs().sum(0).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 6, 2, 6)


def test_two_codebooks_refuse_what_only_one_can_have():
    with pytest.raises(UserError, match="latent_width"):
        make_vqgan(**TWO, latent_width=8)
    with pytest.raises(UserError, match="one multiplier"):
        make_vqgan(**{**TWO, "multipliers": (1, 2), "encoder_kernel": 3})
    with pytest.raises(UserError, match="expected 1 or 3"):
        make_vqgan(decoder_kernel=2)
