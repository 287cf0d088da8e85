"""Bugs of unCLIP's reimplementations, as mutants that a claim about ours must expose.

Each exhibit is a sentence of history, a mutant, and a claim: ours passes it, the mutant does not.
"""

from collections.abc import Callable

import torch
from helpers.mutants import exposes
from helpers.tiny import generator, integers, make_unclip, make_unclip_prior, noise, units
from torch import Tensor

from minimodal.blocks.diffusion import Path, Sampler, ddim_step, walk
from minimodal.unclip.embeddings import EmbeddingSpace
from minimodal.unclip.prior import Chance, DiffusionPrior
from minimodal.uses.unclip import UnCLIP

# --- one step ahead of what the network is told --------------------------------------------------
# DALLE2-pytorch's DDIM of the prior looked ᾱ up in the table of the *previous* times: each step
# left and arrived one time nearer to the data than the network was told.


def one_time_ahead(denoise: Callable, x_t: Tensor, how: Sampler, path: Path) -> Tensor:
    times = torch.linspace(1, 0, how.steps + 1).expand(len(x_t), -1)  # (B, n+1)
    for i in range(how.steps - 1):
        x = denoise(x_t, times[:, i])
        x_t = ddim_step(path, x_t, times[:, i + 1], times[:, i + 2], x, eta=0.0, fresh=None)
    return denoise(x_t, times[:, how.steps - 1])


def a_gaussian_is_reproduced(sample: Callable) -> bool:
    """Data of N(1.5, 0.7²), and E[x | x_t] of them, which is all that a network could say."""
    path = Path("cosine")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c[:, None] for c in path.coefficients(t))
        gain = alpha * 0.49 / (alpha**2 * 0.49 + sigma**2)
        return 1.5 + gain * (x_t - alpha * 1.5)

    x = sample(denoise, noise(20_000, 1), Sampler("ddim", steps=100), path)
    return abs(float(x.mean()) - 1.5) < 0.03 and abs(float(x.std()) - 0.7) < 0.03


def test_a_step_leaves_from_the_time_that_the_network_is_told():
    exposes(a_gaussian_is_reproduced, ours=walk, mutant=one_time_ahead)


# --- embeddings clamped like pixels --------------------------------------------------------------
# DALLE2-pytorch scaled embeddings to unit variance and then clamped estimates to [-1, 1], as one
# does with pixels: of a normal number's values a third lie beyond.

FOUND = units(5, 10, seed=3)


class Knows(DiffusionPrior):
    """A prior that has found the embeddings, whatever the noise."""

    def forward(self, stem, x_t: Tensor, t: Tensor, *, cache=None) -> Tensor:
        return self.space.standardize(FOUND)[:, None].repeat(1, x_t.shape[1], 1)


class KnowsAndClamps(Knows):
    def forward(self, stem, x_t: Tensor, t: Tensor, *, cache=None) -> Tensor:
        return super().forward(stem, x_t, t, cache=cache).clamp(-1, 1)


def what_was_found_is_drawn(kind: type[DiffusionPrior]) -> bool:
    prior = make_unclip_prior("diffusion")
    prior.__class__ = kind
    drawn = prior.embed(integers(30, 5, 7), units(5, 10), generator=generator())
    return torch.allclose(drawn, FOUND, atol=1e-4)


def test_an_embedding_is_not_clamped_to_the_range_of_pixels():
    exposes(what_was_found_is_drawn, ours=Knows, mutant=KnowsAndClamps)
    z = make_unclip_prior("diffusion").space.standardize(units(60, 10))
    assert 0.25 < float((z.abs() > 1).float().mean()) < 0.4


# --- pixels normalised twice ---------------------------------------------------------------------
# A data set that gives [-1, 1] before a model that expects [0, 1]: 2x - 1 twice makes [-3, 1], and
# whatever was darker than half is below black.


def twice(model: UnCLIP) -> Callable[[Tensor], Tensor]:
    return lambda pictures: 2 * model.latents(pictures) - 1


def bytes_come_back(latents: Callable[[Tensor], Tensor]) -> bool:
    """Bytes from 0 to 255 are numbers from -1 to 1, and bytes again."""
    pictures = torch.arange(192).mul(255).div(191).round().to(torch.uint8).view(1, 3, 8, 8)
    x = latents(pictures)
    back = make_unclip().decoder.decode(x, None)
    return (float(x.min()), float(x.max())) == (-1, 1) and torch.equal(back, pictures)


def test_pixels_are_normalised_once():
    model = make_unclip()
    exposes(bytes_come_back, ours=model.latents, mutant=twice(model))


# --- the caller's embeddings scaled in place -----------------------------------------------------
# `image_embed *= scale` in a loss: the caller's cached embeddings are no unit vectors any more, and
# the next epoch scales them again.


class ScalesInPlace(EmbeddingSpace):
    def standardize(self, vectors: Tensor) -> Tensor:
        return vectors.sub_(self.mean).div_(self.deviation)


def embeddings_survive_a_loss(space: type[EmbeddingSpace]) -> bool:
    prior = make_unclip_prior("diffusion")
    prior.space.__class__ = prior.text.space.__class__ = space
    text, image = units(4, 10), units(4, 10, seed=2)
    random = Chance(torch.zeros(4, dtype=torch.bool), torch.full((4, 3), 0.5), noise(4, 3, 10))
    prior.loss(integers(30, 4, 7), text, image, random)
    return torch.equal(text, units(4, 10)) and torch.equal(image, units(4, 10, seed=2))


def test_a_loss_leaves_the_callers_embeddings_alone():
    exposes(embeddings_survive_a_loss, ours=EmbeddingSpace, mutant=ScalesInPlace)
