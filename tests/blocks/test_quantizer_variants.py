"""Gradient and Gumbel quantizers: equations, gradients, recovery."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import generator, noise
from torch import Tensor

from minimodal.blocks.codebook import follow, nearest
from minimodal.blocks.quantizer_variants import (
    GradientQuantizer,
    GumbelQuantizer,
    codebook_loss,
)
from minimodal.blocks.vqgan_checks import QUANTIZERS
from minimodal.errors import UserError
from minimodal.vqgan import VQGAN, VQGANConfig


def gradient(**settings) -> GradientQuantizer:
    """Seven codes, as wide as normal latents are."""
    quantizer = GradientQuantizer(7, 4, **settings)
    quantizer.codes.data.copy_(noise(7, 4, seed=100))
    return quantizer


def gumbel() -> GumbelQuantizer:
    quantizer = GumbelQuantizer(7, 4)
    for number, parameter in enumerate(quantizer.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=number))
    return quantizer


every_variant = pytest.mark.parametrize("make", [gradient, gumbel])


# --- what all have in common ---------------------------------------------------------------------


@every_variant
def test_vectors_of_the_numbers_are_what_comes_out(make):
    quantizer = make()
    codes = quantizer(noise(2, 4, 3, 5))
    assert codes.indices.max() < quantizer.size
    torch.testing.assert_close(quantizer.vectors(codes.indices), codes.z, rtol=0, atol=1e-6)


@every_variant
def test_evaluation_and_training_mode_round_alike(make):
    quantizer, z = make(), noise(2, 4, 3, 5)
    trained, evaluated = quantizer.train()(z), quantizer.eval()(z)
    assert torch.equal(trained.indices, evaluated.indices)
    assert torch.equal(trained.z, evaluated.z)


@every_variant
def test_the_encoder_gets_a_gradient(make):
    z = noise(2, 4, 3, 5).requires_grad_()
    (make()(z).z * noise(2, 4, 3, 5, seed=5)).sum().backward()
    assert z.grad.abs().sum() > 0


@every_variant
def test_latents_are_left_as_they_were(make):
    z = noise(2, 4, 3, 5)
    kept, quantizer = z.clone(), make()
    quantizer(z)
    quantizer.update(z, generator())
    assert torch.equal(z, kept)


@every_variant
def test_an_update_counts_the_codes_of_the_batch(make):
    quantizer, z = make(), noise(2, 4, 3, 5)
    quantizer.decay = 0.0
    quantizer.revive = False
    expected = torch.bincount(quantizer(z).indices.flatten(), minlength=quantizer.size).float()
    dead = quantizer.update(z, generator())
    assert torch.equal(quantizer.usage_counts[0], expected)
    assert dead.item() == (expected == 0).sum().item()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_configuration_names_its_quantizer(kind):
    config = VQGANConfig(quantizer=kind, codes=(15,), code_width=6)
    quantizer = VQGAN(config).quantizer
    assert (quantizer.size,) == config.codes == (15,)
    assert quantizer(noise(1, config.latent, 2, 2)).z.shape == (1, config.latent, 2, 2)


def test_an_unknown_quantizer_is_an_error():
    with pytest.raises(UserError, match="quantizer emma: expected ema, gradient"):
        VQGANConfig(quantizer="emma")


@pytest.mark.parametrize("kind", ["gradient", "gumbel"])
def test_only_averaged_codebooks_come_in_pairs(kind):
    with pytest.raises(UserError, match="has one codebook"):
        VQGANConfig(quantizer=kind, codes=(8, 8))


# --- running counts ------------------------------------------------------------------------------


def test_counts_follow_the_batches_by_their_decay():
    counts = torch.tensor([4.0, 0.0, 8.0])
    follow(counts, torch.tensor([0, 0, 1]), decay=0.75)
    assert counts.tolist() == [3.5, 0.25, 6.0]


def test_a_code_below_a_hundredth_of_its_share_is_dead():
    counts = torch.tensor([50.0, 49.4, 0.6, 0.4])
    assert follow(counts, torch.tensor([0] * 50 + [1] * 50 + [2]), decay=1.0).tolist() == [
        False, False, False, False,
    ]  # fmt: skip
    counts = torch.tensor([50.0, 49.9, 0.1, 0.0])
    dead = follow(counts, torch.tensor([0] * 200), decay=1.0)
    assert dead.tolist() == [False, False, True, True]


# --- codes as parameters -------------------------------------------------------------------------


def test_the_codebook_loss_is_the_papers_equation():
    z, e = noise(2, 4, 3, 5), noise(2, 4, 3, 5, seed=1)
    loss = codebook_loss(z, e, commitment=0.25, codebook=1.0)
    assert loss.item() == pytest.approx(1.25 * np.square(z.numpy() - e.numpy()).mean(), rel=1e-6)


def test_beta_weighs_the_term_that_moves_the_encoder():
    z, quantizer = noise(2, 4, 3, 5).requires_grad_(), gradient(beta=0.25)
    codes = quantizer(z)
    codes.loss.backward()
    error = z.detach() - quantizer.vectors(codes.indices).detach()
    torch.testing.assert_close(z.grad, 0.25 * 2 * error / z.numel())
    pulled = torch.zeros(7, 4).index_add_(
        0, codes.indices.flatten(), error.permute(0, 2, 3, 1).reshape(-1, 4)
    )
    torch.testing.assert_close(quantizer.codes.grad, -2 * pulled / z.numel())


def test_a_dead_code_moves_onto_a_latent():
    quantizer = gradient(decay=0.0)
    quantizer.codes.data[3] = 100.0
    z = noise(2, 4, 3, 5)
    flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
    assert quantizer.update(z, generator()).item() >= 1
    assert (quantizer.codes[3] == flat).all(dim=1).any()


def test_without_revival_a_dead_code_stays():
    quantizer = gradient(decay=0.0, revive=False)
    quantizer.codes.data[3] = 100.0
    quantizer.update(noise(2, 4, 3, 5), generator())
    assert quantizer.codes[3].tolist() == [100.0] * 4


def test_a_start_places_the_codes_among_the_latents():
    quantizer, z = gradient(), 5 + noise(2, 4, 8, 8)
    before = nearest_error(quantizer, z)
    quantizer.start(z, generator())
    assert nearest_error(quantizer, z) < 0.5 * before
    assert quantizer.counts.sum() > 0


def nearest_error(quantizer: GradientQuantizer, z: Tensor) -> float:
    flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
    return nearest(flat, quantizer.codes.detach())[1].mean().item()


# --- Gumbel --------------------------------------------------------------------------------------


def gumbel_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gumbel(size=shape)).float()


def test_the_kl_term_is_a_mean_over_positions():
    quantizer, z = gumbel(), noise(2, 4, 3, 5)
    q = F.softmax(quantizer.scores(z), dim=1).detach().double()  # (B, K, h, w)
    by_hand = sum(
        float((q[b, :, i, j] * (q[b, :, i, j] * 7).log()).sum())
        for b in range(2) for i in range(3) for j in range(5)
    ) / 30  # fmt: skip
    assert quantizer(z).loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_kl_of_even_scores_is_zero_and_of_a_sure_choice_log_k():
    quantizer, z = gumbel(), noise(1, 4, 2, 2)
    quantizer.scores.weight.data.zero_()
    quantizer.scores.bias.data.zero_()
    assert quantizer(z).loss.item() == pytest.approx(0, abs=1e-6)
    quantizer.scores.bias.data[2] = 100.0
    assert quantizer(z).loss.item() == pytest.approx(math.log(7), rel=1e-5)


def test_at_a_low_temperature_the_mixture_is_a_draw():
    quantizer, z, g = gumbel(), noise(2, 4, 3, 5), gumbel_noise(2, 7, 3, 5)
    drawn = (quantizer.scores(z) + g).argmax(dim=1)
    mixed = quantizer(z, noise=g, temperature=1e-4).z
    torch.testing.assert_close(mixed, quantizer.vectors(drawn), rtol=1e-3, atol=1e-3)


def test_draws_occur_as_often_as_their_probabilities_say():
    quantizer, z = gumbel(), noise(1, 4, 1, 1).expand(20_000, 4, 1, 1)
    g = gumbel_noise(20_000, 7, 1, 1)
    drawn = (quantizer.scores(z) + g).argmax(dim=1).flatten()
    shares = torch.bincount(drawn, minlength=7) / 20_000
    expected = F.softmax(quantizer.scores(z[:1]).flatten(), dim=0)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.012)


def test_at_a_high_temperature_codes_are_mixed_evenly():
    quantizer = gumbel()
    mixed = quantizer(noise(1, 4, 2, 2), noise=gumbel_noise(1, 7, 2, 2), temperature=1e5).z
    mean = quantizer.codes.mean(dim=0)[None, :, None, None].expand_as(mixed)
    torch.testing.assert_close(mixed, mean, rtol=0, atol=1e-3)
