"""What keeps structure and appearance apart: each part does what it promises."""

import numpy as np
import pytest
import torch
from test_dalle import Numbered
from tiny import generator, make_vqgan, noise, pictures

from minimodal.blocks.factors import (
    AppearanceEncoder,
    draw_map,
    local_contrast,
    other_colours,
    recolor,
)
from minimodal.errors import UserError
from minimodal.training.tasks import VQGANTask, VQGANTraining
from minimodal.training.tasks.common import seeded

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
    return VQGANTask(
        config, VQGANTraining(**training), train=source, val=source, batch_size=6, seed=0
    )


def test_recoloring_is_an_affine_map_of_every_colour():
    images = pictures(2, 3, 8, 8)
    maps = torch.from_numpy(np.stack([draw_map(np.random.default_rng(i)) for i in range(2)]))
    found = recolor(images, maps)
    for row in range(2):
        colour = maps[row, :, :3] @ images[row, :, 3, 5] + maps[row, :, 3]
        torch.testing.assert_close(found[row, :, 3, 5], colour)


def test_the_maps_turn_colour_space_without_bending_it():
    for seed in range(20):
        a = draw_map(np.random.default_rng(seed))[:, :3]
        gram = a @ a.T
        contrast = gram[0, 0] ** 0.5
        assert 0.4 <= contrast <= 1.2
        np.testing.assert_allclose(gram, contrast**2 * np.eye(3), atol=1e-6)


def test_local_contrast_forgets_offset_and_contrast_and_keeps_flat_patches_flat():
    images = pictures(2, 3, 8, 8)
    changed = 0.5 * images + torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)
    a, b = local_contrast(images, patch=4), local_contrast(changed, patch=4)
    torch.testing.assert_close(a, b, rtol=0, atol=0.05)
    assert a.shape == (2, 3 * 6 * 6, 2, 2)
    assert a.unflatten(1, (3, 36)).mean(2).abs().max() < 1e-5
    assert (local_contrast(torch.full((1, 3, 8, 8), 0.7), patch=4).abs() < 1e-4).all()


def key(windows: torch.Tensor) -> bytes:
    """Something that sets can compare."""
    return windows.numpy().tobytes()


def test_an_edge_between_two_patches_is_seen_from_both():
    image = torch.zeros(1, 3, 8, 12)
    image[..., 4:8] = 1.0  # the middle patch of three, and no pixel of the others
    found = local_contrast(image, patch=4).abs().amax(dim=1)
    assert (found > 0.5).all()
    image = torch.zeros(1, 3, 8, 12)
    image[..., 8:] = 1.0
    assert local_contrast(image, patch=4)[..., 0].abs().max() < 1e-6  # one patch further


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


def test_structure_sees_other_colours_and_appearance_the_picture():
    vqgan = make_vqgan(**TWO)
    images, other = pictures(2, 3, 16, 16), pictures(2, 3, 16, 16, seed=1)
    plain = vqgan.latents(images)
    latents = vqgan.latents(images, recolored=other)
    assert torch.equal(latents[:, 6:], plain[:, 6:])
    assert torch.equal(latents[:, :6], vqgan.encoder(local_contrast(other, patch=4)))
    assert not torch.equal(latents[:, :6], plain[:, :6])


def test_six_colourings_are_a_group_so_each_has_the_same_six():
    windows = noise(1, 12, 2, 3)
    six = set(map(key, other_colours(windows)))
    assert len(six) == 6
    for one in other_colours(windows).split(1):
        assert set(map(key, other_colours(one))) == six


def test_outside_training_structure_is_the_same_in_every_colouring_and_one_pass_is_not():
    vqgan = make_vqgan(**TWO)
    images = pictures(2, 3, 16, 16)
    for other in (-images, images.roll(1, dims=1), -images.roll(2, dims=1)):
        found, expected = vqgan.latents(other)[:, :6], vqgan.latents(images)[:, :6]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        once = vqgan.latents(images, recolored=other)[:, :6]
        assert (once - vqgan.latents(images, recolored=images)[:, :6]).abs().max() > 1e-2


def test_each_row_is_recolored_by_a_map_of_its_own():
    task = make_task()
    whole, part = task.batch(3, slice(0, 6))["maps"], task.batch(3, slice(4, 6))["maps"]
    assert torch.equal(whole[4:], part)
    assert not torch.equal(whole[0], whole[1])


def test_a_loss_in_other_colours_still_asks_for_the_picture_itself():
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
