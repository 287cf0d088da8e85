"""The two views by which two codebooks learn: each does what its equation says."""

import numpy as np
import pytest
import torch
from einops import rearrange
from test_dalle import Numbered
from tiny import make_vqgan, noise, pictures

from minimodal.blocks.views import Views, draw_chances, local_contrast, recolor, resample
from minimodal.errors import UserError
from minimodal.training.tasks import VQGANTask, VQGANTraining

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


def patches(images: torch.Tensor) -> torch.Tensor:
    """(B, P, 16, 3): the pixels of each 4 x 4 patch."""
    return rearrange(images, "B C (h p) (w q) -> B (h w) (p q) C", p=4, q=4)


def chances(seed: int = 0, *, count: int = 2):
    drawn = [draw_chances(np.random.default_rng((seed, i)), patches=4, pixels=16)
             for i in range(count)]  # fmt: skip
    return [torch.from_numpy(np.stack(values)) for values in zip(*drawn, strict=True)]


def test_recoloring_is_an_affine_map_of_every_colour():
    images, (maps, _, _) = pictures(2, 3, 8, 8), chances()
    found = recolor(images, maps)
    for row in range(2):
        colour = maps[row, :, :3] @ images[row, :, 3, 5] + maps[row, :, 3]
        torch.testing.assert_close(found[row, :, 3, 5], colour)


def test_the_maps_turn_colour_space_without_bending_it():
    for seed in range(20):
        a = draw_chances(np.random.default_rng(seed), patches=1, pixels=1).maps[:, :3]
        gram = a @ a.T
        contrast = gram[0, 0] ** 0.5
        assert 0.4 <= contrast <= 1.2
        np.testing.assert_allclose(gram, contrast**2 * np.eye(3), atol=1e-6)


def test_resampled_pixels_are_pixels_of_the_same_patch():
    images, (_, directions, picks) = pictures(2, 3, 8, 8), chances()
    before = patches(images)
    after = patches(resample(images, directions, picks, patch=4))
    equal = (after[:, :, :, None] == before[:, :, None]).all(-1)  # (B, P, drawn, had)
    assert equal.any(-1).all() and not torch.equal(before, after)


def test_a_pixel_is_drawn_with_a_weight_of_exp_of_direction_times_colour():
    image = pictures(1, 3, 4, 4)
    direction = noise(1, 1, 3, seed=2)
    picks = (torch.arange(4000) + 0.5).view(1, 1, -1) / 4000  # every share of [0, 1) once
    weights = (patches(image)[0, 0] @ direction[0, 0]).softmax(0)
    drawn = torch.cat(
        [patches(resample(image, direction, part, patch=4))[0, 0] for part in picks.split(16, 2)]
    )
    found = (drawn[:, None] == patches(image)[0, 0][None]).all(-1).float().mean(0)
    torch.testing.assert_close(found, weights, rtol=0, atol=2e-3)


def test_local_contrast_forgets_offset_and_contrast_and_keeps_flat_patches_flat():
    images = pictures(2, 3, 8, 8)
    changed = 0.5 * images + torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)
    a, b = local_contrast(images, patch=4), local_contrast(changed, patch=4)
    torch.testing.assert_close(a, b, rtol=0, atol=0.05)
    assert patches(a).mean(2).abs().max() < 1e-5
    assert (local_contrast(torch.full((1, 3, 8, 8), 0.7), patch=4).abs() < 1e-4).all()


def test_structure_sees_the_one_view_and_appearance_the_other():
    vqgan = make_vqgan(**TWO)
    images, other = pictures(2, 3, 16, 16), pictures(2, 3, 16, 16, seed=1)
    plain = vqgan.latents(images)
    latents = vqgan.latents(images, views=Views(other, images))
    assert torch.equal(latents[:, 6:], plain[:, 6:]) and not torch.equal(latents, plain)
    latents = vqgan.latents(images, views=Views(images, other))
    assert torch.equal(latents[:, :6], plain[:, :6]) and not torch.equal(latents, plain)


def test_views_are_drawn_for_each_row_and_those_of_appearance_end_when_they_are_told_to():
    task = make_task(views_end=5)
    whole, part = task.batch(3, slice(0, 6)), task.batch(3, slice(4, 6))
    for name in ("maps", "directions", "picks"):
        assert torch.equal(whole[name][4:], part[name])
        assert not torch.equal(whole[name][0], whole[name][1])
    later = task.batch(5, slice(0, 6))
    assert "picks" not in later and "directions" not in later
    images = later["images"].float() / 127.5 - 1
    views = task.views(images, later)
    assert torch.equal(views.appearance, images)
    assert torch.equal(views.structure, recolor(images, later["maps"]))


def test_a_loss_under_views_still_asks_for_the_picture_itself():
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
    with pytest.raises(UserError, match="expected 1 or 3"):
        make_vqgan(decoder_kernel=2)
