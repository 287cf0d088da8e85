"""unCLIP's priors: their losses against the equations, their drawings against the plain way."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import generator, integers, make_unclip_prior, noise, units

from minimodal.blocks.diffusion import training_times
from minimodal.training.optim import make_optimizer
from minimodal.unclip.prior import Chance, better
from minimodal.unclip.prior_autoregressive import enough_components

KINDS = ("diffusion", "autoregressive")


def tokens(n: int) -> torch.Tensor:
    return integers(30, n, 7)


def chance(n: int, *, unsaid: bool = False) -> Chance:
    times = torch.rand(n, 3, generator=generator(4))
    return Chance(torch.full((n,), unsaid), times, noise(n, 3, 10, seed=5))


def test_the_diffusion_loss_is_that_of_its_equation():
    """Each noise level by itself, where the model takes a caption's three at once."""
    prior, image, text, random = (
        make_unclip_prior("diffusion"),
        units(4, 10, seed=2),
        units(4, 10),
        chance(4),
    )
    z, terms = prior.space.standardize(image), []
    for level in range(3):
        t = training_times(random.times[:, level], prior.config)  # (B,)
        at = t[:, None]
        z_t = (1 - at) * z + at * random.noise[:, level]
        stem = prior.text(tokens(4), text, random.unsaid)
        found = prior(stem, z_t[:, None], t[:, None])[:, 0]
        terms.append(((found - z) / at.clamp(min=0.05)).square().mean())
    wanted = torch.stack(terms).mean()
    assert torch.allclose(prior.loss(tokens(4), text, image, random), wanted, rtol=1e-4)


def test_the_autoregressive_loss_is_the_mean_cross_entropy_of_the_buckets():
    prior, image, text = make_unclip_prior("autoregressive"), units(4, 10, seed=2), units(4, 10)
    codes = prior.quantize(image)  # (B, n)
    dot = prior.dot_buckets.quantize((text * image).sum(1, keepdim=True))[:, 0]
    prefix = prior.prefix(tokens(4), text, dot, torch.zeros(4, dtype=torch.bool))
    terms = []
    for i in range(6):  # each component from those before it alone
        logits = prior(prefix, codes[:, : i + 1])[:, -1]
        terms.append(F.cross_entropy(logits, codes[:, i]))
    assert torch.allclose(
        prior.loss(tokens(4), text, image, chance(4)), torch.stack(terms).mean(), rtol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_that_is_left_out_has_no_influence(kind):
    prior, image = make_unclip_prior(kind), units(4, 10, seed=2)
    losses = [
        prior.loss(some, units(4, 10, seed=seed), image, chance(4, unsaid=True))
        for some, seed in ((tokens(4), 0), (tokens(4).flip(0), 7))
    ]
    assert torch.equal(*losses)
    said = [prior.loss(tokens(4), units(4, 10, seed=s), image, chance(4)) for s in (0, 7)]
    assert not torch.allclose(*said)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_unit_vectors_of_the_seed_alone(kind):
    prior = make_unclip_prior(kind)
    first, again = (
        prior.embed(tokens(3), units(3, 10), generator=generator(2)) for _ in range(2)
    )  # fmt: skip
    assert torch.equal(first, again)
    assert torch.allclose(first.norm(dim=1), torch.ones(3), atol=1e-5)
    other = prior.embed(tokens(3), units(3, 10), generator=generator(3))
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_generator_a_row_its_embedding_is_its_own(kind):
    prior = make_unclip_prior(kind)
    rows = prior.embed(tokens(2), units(2, 10), generator=[generator(1), generator(2)])
    alone = prior.embed(tokens(2)[1:], units(2, 10)[1:], generator=[generator(2)])
    assert torch.allclose(rows[1:], alone, atol=1e-5)


def test_the_cache_draws_what_the_whole_sequence_would():
    prior = make_unclip_prior("autoregressive")
    found = [
        prior.embed(tokens(3), units(3, 10), generator=generator(1), use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.allclose(*found, atol=1e-5)


def three_levels():
    """A diffusion prior, the text of two captions, and three noised embeddings of each."""
    prior = make_unclip_prior("diffusion")
    stem = prior.text(tokens(2), units(2, 10), torch.zeros(2, dtype=torch.bool))
    return prior, stem, noise(2, 3, 10), torch.rand(2, 3, generator=generator())


def test_the_kept_text_denoises_as_the_whole_sequence_does():
    prior, stem, x, t = three_levels()
    length = stem.shape[1]
    cache = prior.transformer.new_cache(2, length + 9, device=x.device, dtype=stem.dtype)
    prior.transformer(stem, cache=cache)
    assert torch.allclose(prior(None, x, t, cache=cache), prior(stem, x, t), atol=1e-5)


def test_noise_levels_of_a_caption_do_not_see_each_other():
    prior, stem, x, t = three_levels()
    other = torch.cat([x[:, :1] + 1, x[:, 1:]], dim=1)
    before, after = prior(stem, x, t), prior(stem, other, t)
    assert torch.equal(before[:, 1:], after[:, 1:]) and not torch.allclose(
        before[:, 0], after[:, 0]
    )


def test_of_two_candidates_the_better_by_dot_product_is_kept():
    found, text = units(5, 4, 10), units(5, 10, seed=1)
    kept = better(found, text)
    products = (found * text[:, None]).sum(-1)
    assert torch.allclose((kept * text).sum(-1), products.max(dim=1).values)


def test_guidance_1_is_with_the_text_and_0_without():
    prior = make_unclip_prior("autoregressive")
    none = prior.embed(tokens(3), units(3, 10), guidance=0.0, generator=generator(1))
    others = (tokens(3).flip(1), units(3, 10, seed=5))
    other = prior.embed(*others, guidance=0.0, generator=generator(1))
    assert torch.allclose(none, other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_guidance_of_the_configuration_is_taken_where_none_is_said(kind):
    prior, drawn = make_unclip_prior(kind), {}
    prior.config = replace(prior.config, guidance=2.0)
    for guidance in (None, 1.0, 2.0):
        drawn[guidance] = prior.embed(
            tokens(3), units(3, 10), generator=generator(1), guidance=guidance
        )
    assert torch.equal(drawn[None], drawn[2.0]) and not torch.equal(drawn[None], drawn[1.0])


# --- components and buckets ----------------------------------------------------------------------


def test_components_are_chosen_by_an_error_below_one_percent():
    spread = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.02, 0.01])
    z = noise(4000, 6) * spread.sqrt()
    n = enough_components(z)
    kept = spread.cumsum(0) / spread.sum()
    assert n == 5 and kept[n - 1] > 0.99 > kept[n - 2]


def test_buckets_are_all_used_alike_and_their_centres_are_near():
    prior = make_unclip_prior("autoregressive", buckets=16)
    values = noise(8000, 6)
    prior.buckets.learn(values)
    codes = prior.buckets.quantize(values)
    counts = torch.stack([(codes == k).float().mean(0) for k in range(16)])
    assert torch.allclose(counts, torch.full_like(counts, 1 / 16), atol=2e-3)
    error = (prior.buckets.restore(codes) - values).square().mean()
    assert float(error) < 0.05


def test_the_dot_product_of_a_drawing_is_of_the_upper_half():
    """All buckets of the upper half, and only those, are drawn as the first token."""
    prior = make_unclip_prior("autoregressive")
    seen = []
    plain = prior.prefix
    prior.prefix = lambda a, b, dot, unsaid: (seen.append(dot), plain(a, b, dot, unsaid))[1]
    prior.embed(tokens(60), units(60, 10), generator=generator())
    assert set(seen[0].tolist()) == set(range(4, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_learns_a_handful_of_pairs(kind):
    prior = make_unclip_prior(kind, buckets=32).train()
    text, image = units(6, 10, seed=1), units(6, 10, seed=2)
    prior.learn(image.repeat(8, 1) + 0.001 * noise(48, 10), text)
    optimizer = make_optimizer([prior], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, muon=False)
    for step in range(200):
        times = torch.rand(6, 3, generator=generator(step))
        random = Chance(torch.zeros(6, dtype=torch.bool), times, noise(6, 3, 10, seed=step))
        loss = prior.loss(tokens(6), text, image, random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if kind == "autoregressive":  # it draws at dot products that six pairs do not have
        assert float(loss.detach()) < 0.01
        return
    drawn = prior.embed(tokens(6), text, generator=generator())
    assert ((drawn @ image.T).argmax(1) == torch.arange(6)).all()
