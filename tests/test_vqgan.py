"""VQGAN: shapes, what a code can see, the game with the discriminator and its order of events."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import systems
from helpers.tiny import make_vqgan, noise, pictures, shake
from torch import nn

from minimodal.blocks.discriminator import (
    PatchDiscriminator,
    adversarial_ramp,
    generator_loss,
    hinge_loss,
    weigh,
)
from minimodal.blocks.factors import MARGIN
from minimodal.blocks.pixels import to_float
from minimodal.errors import UserError
from minimodal.training.recipes import recipe_for, vqgan
from minimodal.training.tasks.common import seeded
from minimodal.vqgan import VQGANConfig

CONFIGS = {
    "paper": {},
    "patch 2": {"patch": 2},
    "patch 4, one level": {"patch": 4, "multipliers": (1,)},
    "three levels": {"multipliers": (1, 2, 2), "depth": 2},
    "attention": {"attention": (8, 16)},
    "local": {"patch": 4, "multipliers": (1,), "encoder_kernel": 1},
    "two codebooks": {"patch": 4, "multipliers": (1,), "codes": (7, 5)},
    "local, two codebooks": {
        "patch": 4, "multipliers": (1,), "encoder_kernel": 1, "codes": (7, 5),
    },
}  # fmt: skip
LOCAL = {"patch": 4, "multipliers": (1,), "encoder_kernel": 1}
CODEBOOKS = {"one": {"codes": (12,)}, "two": {"codes": (7, 5)}}
every_config = pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())


# --- encoding and decoding -----------------------------------------------------------------------


@every_config
def test_pictures_become_codes_and_codes_become_pictures(changes):
    vqgan = make_vqgan(**changes)
    f, width = vqgan.config.factor, 6 * len(vqgan.config.codes)
    codes = vqgan.encode(pictures(2, 3, 16, 16))
    assert codes.indices.shape == (2, 16 // f, 16 // f) and codes.indices.dtype == torch.int64
    assert codes.z.shape == (2, width, 16 // f, 16 // f)
    assert vqgan.decode(codes.z).shape == (2, 3, 16, 16)
    assert vqgan.config.grid == 16 // f


@every_config
def test_codes_are_numbers_below_the_vocabulary(changes):
    vqgan = shake(make_vqgan(**changes), 0.5)
    indices = vqgan.encode(pictures(8, 3, 16, 16)).indices
    assert 0 <= indices.min() and indices.max() < vqgan.quantizer.size
    assert len(indices.unique()) > 1


@every_config
def test_decoding_numbers_equals_decoding_vectors(changes):
    vqgan = make_vqgan(**changes)
    codes = vqgan.encode(pictures(2, 3, 16, 16))
    torch.testing.assert_close(
        vqgan.decode_indices(codes.indices), vqgan.decode(codes.z), rtol=0, atol=1e-4
    )


@every_config
def test_a_picture_has_the_same_codes_in_any_batch(changes):
    vqgan, images = make_vqgan(**changes), pictures(4, 3, 16, 16)
    torch.testing.assert_close(
        vqgan.latents(images)[1:2], vqgan.latents(images[1:2]), rtol=0, atol=1e-4
    )


def test_larger_pictures_have_more_codes():
    assert make_vqgan().encode(pictures(1, 3, 32, 24)).indices.shape == (1, 16, 12)


def test_decoding_stays_in_range():
    vqgan = make_vqgan()
    decoded = vqgan.decode(100 * noise(2, 6, 8, 8))
    assert vqgan.decoder(100 * noise(2, 6, 8, 8)).abs().max() > 1
    assert decoded.min() >= -1 and decoded.max() <= 1


def test_training_sees_the_picture_before_it_is_clamped():
    vqgan, images = make_vqgan(), pictures(2, 3, 16, 16)
    with torch.no_grad():
        vqgan.last_layer.mul_(100)
    assert vqgan(images).pictures.abs().max() > 1


def test_the_warm_start_is_a_plain_autoencoder():
    vqgan, images = make_vqgan(), pictures(2, 3, 16, 16)
    found = vqgan(images, quantize=False)
    assert torch.equal(found.latents, vqgan.latents(images))
    assert torch.equal(found.codes.z, found.latents) and found.codes.loss == 0
    assert torch.equal(found.pictures, vqgan.decoder(vqgan.latents(images)))


def test_the_callers_pictures_are_not_changed():
    images = pictures(2, 3, 16, 16)
    kept = images.clone()
    make_vqgan()(images)
    assert torch.equal(images, kept)


def test_a_size_that_the_factor_does_not_divide_is_an_error():
    with pytest.raises(UserError, match="image size 30 is not a multiple of 4"):
        VQGANConfig(image_size=30)


IMPOSSIBLE = [
    (dict(codebook_decay=1.5), "codebook_decay 1.5: expected from 0 to below 1"),
    (dict(codebook_decay=float("nan")), "codebook_decay nan"),
    (dict(beta=-1.0), "beta -1.0: expected a number of 0 or more"),
    (dict(beta=float("nan")), "beta nan"),
    (dict(decoder_depth=-1), "decoder_depth -1"),
    (dict(latent_width=-3), "latent_width -3"),
    (dict(attention=(7,)), r"attention at 7: expected one of \[32, 16, 8\]"),
    (dict(attention=(32,), patch=2), r"attention at 32: expected one of \[16, 8, 4\]"),
]


@pytest.mark.parametrize(("settings", "message"), IMPOSSIBLE)
def test_a_setting_that_cannot_be_is_an_error_that_names_it(settings, message):
    with pytest.raises(UserError, match=message):
        VQGANConfig(**settings)


@pytest.mark.parametrize("depth", [-1, 0, 11, 200])
def test_a_discriminator_of_absurd_depth_is_refused_before_it_is_built(depth, monkeypatch):
    monkeypatch.setattr(nn, "Conv2d", None)
    with pytest.raises(UserError, match=f"discriminator_depth {depth}: expected 1 to 10"):
        PatchDiscriminator(depth=depth)


def test_three_codebooks_are_an_error():
    with pytest.raises(UserError, match="expected one codebook or two"):
        make_vqgan(codes=(4, 4, 4))


# --- what a code sees ----------------------------------------------------------------------------


@pytest.mark.parametrize("changes", CODEBOOKS.values(), ids=CODEBOOKS.keys())
def test_a_local_code_depends_on_its_patch_alone_and_structure_on_its_margin(changes):
    vqgan, images = make_vqgan(**LOCAL, **changes), pictures(1, 3, 16, 16).requires_grad_()
    latents = vqgan.latents(images)[0, :, 0, 0]
    (latents * noise(len(latents))).sum().backward()
    felt = images.grad[0].abs().amax(dim=0)
    reach = 4 + MARGIN * (len(vqgan.config.codes) == 2)
    assert (felt[:reach, :reach] > 0).any() and felt[reach - 1, reach - 1] > 0
    felt[:reach, :reach] = 0
    assert (felt == 0).all()


def test_with_larger_kernels_a_code_sees_beyond_its_patch():
    vqgan, images = make_vqgan(), pictures(1, 3, 16, 16).requires_grad_()
    vqgan.latents(images)[0, 0, 0, 0].backward()
    assert images.grad[0, :, 8:, 8:].abs().max() > 0


# --- the losses of the game ----------------------------------------------------------------------


def test_hinge_loss_of_a_worked_case():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 1) / 2))


def test_beyond_the_margin_the_hinge_loss_has_no_gradient():
    real, fake = (torch.tensor([2.0, 0.5]) * sign for sign in (1, -1))
    real.requires_grad_(), fake.requires_grad_()
    hinge_loss(real, fake).backward()
    assert real.grad.tolist() == [0, -0.25] and fake.grad.tolist() == [0, 0.25]


def test_the_generator_wants_high_verdicts():
    fake = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = generator_loss(fake)
    loss.backward()
    assert loss.item() == -0.5 and fake.grad.tolist() == [-0.5, -0.5]


def painting() -> tuple[torch.Tensor, torch.Tensor]:
    """Two weights, and a picture of two numbers that they paint."""
    w = torch.zeros(2, requires_grad=True)
    return w, 1.0 * w


def test_lambda_is_the_ratio_of_the_gradients_norms():
    w, x = painting()
    found = weigh((torch.tensor([3.0, 4.0]) * x).sum(), (2 * x[0]).sum(), x, w)[1]
    assert found.item() == pytest.approx(5 / (2 + 1e-4), rel=1e-6)
    assert not found.requires_grad


def test_lambda_is_at_most_ten_thousand():
    w, x = painting()
    assert weigh((5 * x).sum(), (0 * x).sum(), x, w)[1].item() == 1e4


def test_lambda_compares_gradients_averaged_over_the_processes():
    w, x = painting()

    def average(mine: torch.Tensor) -> torch.Tensor:
        return (mine + torch.tensor([0.0, 4.0])) / 2  # another process has (0, 4) for both

    found = weigh(6 * x[0], 2 * x[0], x, w, average=average)[1]
    assert found.item() == pytest.approx(13**0.5 / (5**0.5 + 1e-4), rel=1e-6)


def test_the_weighed_term_has_the_value_and_the_gradient_of_the_adversarial_loss():
    w = noise(3, 8, seed=1).requires_grad_()
    x, judge = noise(2, 3) @ w, noise(8, seed=2)

    def adversarial() -> torch.Tensor:
        return ((x * judge).tanh()).sum()

    (expected,) = torch.autograd.grad(adversarial(), w, retain_graph=True)
    term, _ = weigh(x.square().sum(), adversarial(), x, w)
    (found,) = torch.autograd.grad(term, w)
    assert term.item() == pytest.approx(adversarial().item())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0), (9, 0), (10, 0), (11, 0.25), (12, 0.5), (14, 1), (99, 1)]
)
def test_the_adversarial_term_grows_from_0_to_1(step, share):
    assert adversarial_ramp(step, start=10, ramp=4) == share


def test_without_a_ramp_the_adversarial_term_is_whole_after_its_start():
    assert [adversarial_ramp(step, start=3, ramp=0) for step in (2, 3, 4)] == [0, 0, 1]


# --- the discriminator ---------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_logit_is_reached_by_a_square_of_receptive_field_pixels(depth):
    judge = seeded(lambda: PatchDiscriminator(channels=4, depth=depth), 0)
    for number, layer in enumerate(judge.layers):
        if isinstance(layer, nn.GroupNorm):  # its statistics, but no more, are of the whole
            judge.layers[number] = nn.Identity()
    images = pictures(1, 3, 96, 96).requires_grad_()
    logits = judge(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    felt = images.grad[0].abs().amax(dim=0) > 0
    rows, columns = felt.any(dim=1).sum().item(), felt.any(dim=0).sum().item()
    assert rows == columns == judge.receptive_field


def test_a_verdict_does_not_depend_on_the_rest_of_the_batch():
    judge, images = PatchDiscriminator(channels=4), pictures(4, 3, 32, 32)
    torch.testing.assert_close(judge(images)[1:2], judge(images[1:2]), rtol=0, atol=1e-5)


# --- the order of events (systems.make_vqgan: warm start to 3, D from 4, G hears of it after 6) --


@pytest.fixture(scope="module")
def task():
    return systems.make_vqgan()


def play(task, step: int) -> tuple[dict, dict]:
    """One step's two losses and gradients, as the engine would: {net: any gradient} and metrics."""
    nets = {"model": task.model, "discriminator": task.discriminator}
    batch, reached, metrics = task.batch(step, slice(0, 8)), {}, {}
    for phase in task.phases:
        for net in nets.values():
            net.zero_grad()
        loss, values = task.loss(batch, phase.name, step)
        if loss.requires_grad:
            loss.backward()
        metrics |= values
        reached[phase.name] = {
            name: any(p.grad is not None and p.grad.any() for p in net.parameters())
            for name, net in nets.items()
        }
    return reached, metrics


@pytest.mark.parametrize("step", [0, 3, 5, 6])
def test_before_its_start_the_generators_loss_does_not_know_the_discriminator(task, step):
    batch = task.batch(step, slice(0, 8))
    before = task.loss(batch, "generator", step)[0]
    kept = copy.deepcopy(task.discriminator.state_dict())
    for parameter in task.discriminator.parameters():
        parameter.data.add_(1.0)
    after = task.loss(batch, "generator", step)[0]
    task.discriminator.load_state_dict(kept)
    assert torch.equal(before, after)
    assert not play(task, step)[0]["generator"]["discriminator"]


def test_after_its_start_the_generators_loss_hears_the_discriminator(task):
    plain = task.loss(task.batch(7, slice(0, 8)), "generator", 6)[0]
    assert task.loss(task.batch(7, slice(0, 8)), "generator", 7)[0] != plain


@pytest.mark.parametrize("step", [0, 2, 3])
def test_before_its_start_the_discriminator_rests(task, step):
    assert not any(play(task, step)[0]["discriminator"].values())


@pytest.mark.parametrize("step", [4, 5, 6])
def test_the_discriminator_learns_before_the_generator_hears_of_it(task, step):
    reached, metrics = play(task, step)
    assert reached["discriminator"]["discriminator"]
    assert "lambda" not in metrics and "d_real" in metrics


@pytest.mark.parametrize("step", [4, 9])
def test_the_discriminators_loss_does_not_move_the_generator(task, step):
    assert not play(task, step)[0]["discriminator"]["model"]


def test_the_metrics_tell_how_the_game_goes(task):
    metrics = play(task, 9)[1]
    assert {"l1", "commitment", "lambda", "adversarial", "d_real", "d_fake"} <= metrics.keys()
    assert all(not torch.as_tensor(value).requires_grad for value in metrics.values())


def test_the_adversarial_term_is_weighted_by_the_ramp_and_lambda(task):
    batch = task.batch(8, slice(0, 8))
    with_game, m = task.loss(batch, "generator", 8)  # two thirds up the ramp
    expected = m["l1"] + m["commitment"] + 2 / 3 * 0.1 * m["lambda"] * m["adversarial"]
    assert with_game.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_changes_no_buffer(task):
    before = copy.deepcopy(task.model.state_dict())
    play(task, 9)
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())


def test_codes_start_on_real_latents_when_the_warm_start_ends():
    task = systems.make_vqgan()
    for step in range(2):
        batch = task.batch(step, slice(0, 8))
        task.loss(batch, "generator", step)
        assert task.after_step(step, [batch]) == {}
        assert not any(book.codes.any() for book in task.model.quantizer.codebooks)
    batch = task.batch(2, slice(0, 8))
    task.loss(batch, "generator", 2)
    task.after_step(2, [batch])
    assert all(book.codes.any(dim=1).all() for book in task.model.quantizer.codebooks)


def test_a_generator_that_hears_an_untrained_discriminator_is_an_error(task):
    with pytest.raises(UserError, match="gan_start 2 is before discriminator_start 3"):
        type(task)(
            task.model.config,
            replace(task.training, discriminator_start=3, gan_start=2),
            train=task.train,
            val=task.val,
            batch_size=8,
            seed=0,
        )


# --- the whole game ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_game_costs_little_reconstruction():
    steps, start = 1300, 1000
    task = small_task(start=start)
    optimizers = {
        "generator": torch.optim.AdamW(task.model.parameters(), 2e-3, betas=(0.9, 0.95)),
        "discriminator": torch.optim.AdamW(task.discriminator.parameters(), 1e-3, betas=(0.5, 0.9)),
    }
    before = None
    for step in range(steps):
        if step == start:
            before = val_l1(task)
        batch = task.batch(step, slice(0, 16))
        for phase in task.phases:
            loss, _ = task.loss(batch, phase.name, step)
            if loss.requires_grad:
                optimizers[phase.name].zero_grad()
                loss.backward()
                optimizers[phase.name].step()
        with torch.no_grad():
            task.after_step(step, [batch])
    assert val_l1(task) <= 1.1 * before


def small_task(*, start: int):
    recipe = recipe_for("vqgan", "shapes")
    model = replace(recipe.model, channels=32)
    training = replace(
        recipe.training, warm_start=200, discriminator_start=start - 200, gan_start=start,
        gan_ramp=100, discriminator_channels=16,
    )  # fmt: skip
    return vqgan.build(recipe._replace(model=model, training=training), "shapes:20000")


@torch.no_grad()
def val_l1(task) -> float:
    images = to_float(torch.from_numpy(task.val.images(np.arange(128))))
    return (task.model.decode(task.model.encode(images).z) - images).abs().mean().item()


def test_the_first_convolution_is_as_wide_as_the_unit_of_the_multipliers():
    """As in the original, whatever the first multiplier is: its checkpoints depend on it."""
    vqgan = make_vqgan(multipliers=(2, 1))
    assert vqgan.encoder.conv_in.out_channels == 8
    assert vqgan.decode(vqgan.encode(pictures(1, 3, 16, 16)).z).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("changes", [{}, {"patch": 2}, CODEBOOKS["two"] | LOCAL])
def test_pictures_that_the_factor_does_not_divide_are_an_error_that_names_a_size(changes):
    with pytest.raises(UserError, match="19 x 16 pixels: this VQGAN needs multiples of .* 20 x 16"):
        make_vqgan(**changes).encode(pictures(1, 3, 16, 19))
