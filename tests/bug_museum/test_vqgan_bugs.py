"""Bugs that real repositories had, as mutants that a claim about ours must expose.

Each exhibit is a sentence of history, a mutant, and a claim: ours passes it, the mutant does not.
"""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from helpers.mutants import exposes
from helpers.tiny import generator, noise
from torch import Tensor

from minimodal.blocks.codebook import Codebook
from minimodal.blocks.discriminator import adversarial_ramp
from minimodal.blocks.quantizer_variants import GradientQuantizer, GumbelQuantizer

Z = noise(2, 4, 3, 5)


# --- β on the wrong term -------------------------------------------------------------------------
# taming-transformers weighed the term that moves the codes by β, instead of the commitment; its
# checkpoints were trained so, and `legacy=True` is its default to this day.


class BetaOnTheCodes(GradientQuantizer):
    def forward(self, z: Tensor, **_) -> SimpleNamespace:
        vectors = self.vectors(super().forward(z).indices)
        loss = F.mse_loss(z, vectors.detach()) + self.beta * F.mse_loss(vectors, z.detach())
        return SimpleNamespace(loss=loss)


def beta_weighs_the_commitment(quantizer: GradientQuantizer) -> bool:
    """Of one latent and its code: four times the pull on the code as on the latent, at β = ¼."""
    quantizer.codes.data.copy_(noise(7, 4, seed=1))
    z = Z[:1, :, :1, :1].clone().requires_grad_()
    quantizer(z).loss.backward()
    return np.isclose(z.grad.norm() / quantizer.codes.grad.norm(), 0.25)


def test_beta_sits_on_the_commitment_term():
    exposes(beta_weighs_the_commitment, ours=GradientQuantizer(7, 4), mutant=BetaOnTheCodes(7, 4))


# --- a code that nothing uses --------------------------------------------------------------------
# Averages without a guard divide the sum of no latents by their number, 0: from then on the code
# is NaN, so is every distance to it, and the loss follows.


class DividesByZero(Codebook):
    def update(self, z: Tensor, generator: torch.Generator, *, decay=None) -> Tensor:
        used = F.one_hot(torch.cdist(z, self.codes).argmin(1), self.size).float()
        self.codes.copy_((used.T @ z) / used.sum(0)[:, None])
        return torch.zeros(())


def codes_stay_finite(book: Codebook) -> bool:
    book.codes.copy_(noise(7, 4, seed=1))
    book.codes[3] = 100.0
    book.update(noise(30, 4), generator())
    return bool(torch.isfinite(book.codes).all())


def test_an_unused_code_stays_finite():
    exposes(codes_stay_finite, ours=Codebook(7, 4, decay=0.0), mutant=DividesByZero(7, 4, decay=0))


# --- a verdict before the trial ------------------------------------------------------------------
# taming-transformers' `disc_start` turns both sides of the game on at the same step, at full
# weight: the generator is pushed about by a discriminator with random weights.


def at_once(step: int, *, start: int, ramp: int) -> float:
    return float(step >= start)


def discriminator_has_learned_first(weight: Callable[..., float]) -> bool:
    """Even where both begin at one step: no verdict counts before the first lesson."""
    lessons = 0
    for step in range(20):
        if weight(step, start=10, ramp=0) > 0:
            return lessons > 0
        lessons += step >= 10
    return False


def test_no_verdict_counts_before_the_discriminators_first_step():
    exposes(discriminator_has_learned_first, ours=adversarial_ramp, mutant=at_once)


# --- dice in evaluation --------------------------------------------------------------------------
# taming-transformers' GumbelQuantize draws Gumbel noise in eval mode too: the same picture has
# other codes every time it is encoded, and a model trained on them never sees the ones it gets.


class DrawsInEvaluation(GumbelQuantizer):
    def forward(self, z: Tensor, **_) -> SimpleNamespace:
        drawn = F.gumbel_softmax(self.scores(z), tau=1.0, dim=1, hard=True)
        return SimpleNamespace(indices=drawn.argmax(dim=1))


def evaluation_repeats_itself(quantizer: GumbelQuantizer) -> bool:
    first, second = (quantizer.eval()(Z).indices for _ in range(2))
    return torch.equal(first, second)


def test_a_gumbel_quantizer_is_deterministic_in_evaluation():
    with torch.random.fork_rng(devices=[]):
        exposes(
            evaluation_repeats_itself, ours=GumbelQuantizer(64, 4), mutant=DrawsInEvaluation(64, 4)
        )


# --- KL summed over the batch --------------------------------------------------------------------
# A dVAE of DALLE-pytorch took its KL term by F.kl_div with reduction "batchmean", which divides by
# the length of its first argument: that was log(1/K), of shape (1,). So nothing was divided, and
# the term's weight grew with the positions of a picture and the pictures of a batch.


class SummedKL(GumbelQuantizer):
    def forward(self, z: Tensor, **_) -> SimpleNamespace:
        q = F.softmax(self.scores(z), dim=1)
        return SimpleNamespace(loss=(q * (q * self.size).log()).sum())


def kl_does_not_grow_with_the_batch(quantizer: GumbelQuantizer) -> bool:
    twice = torch.cat([Z, Z])
    return torch.isclose(quantizer(Z).loss, quantizer(twice).loss).item()


def test_the_kl_term_is_the_same_for_a_batch_and_the_batch_twice():
    with torch.random.fork_rng(devices=[]):
        exposes(kl_does_not_grow_with_the_batch, ours=GumbelQuantizer(7, 4), mutant=SummedKL(7, 4))
