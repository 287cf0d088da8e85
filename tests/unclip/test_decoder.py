"""unCLIP's decoder: what it is told reaches it, what is left out does not, and what it draws."""

import pytest
import torch
from helpers.tiny import generator, make_caption, make_clip, make_decoder, noise, pictures, units

from minimodal.blocks.diffusion import Held, Sampler, Start
from minimodal.blocks.pixels import to_uint8
from minimodal.errors import UserError
from minimodal.unclip.decoder import Decoder, read_captions, tell
from minimodal.unclip.embeddings import EmbeddingSpace

STEPS = Sampler("ddim", steps=3)


def told(n: int = 2):
    return tell(units(n, 10), make_caption(n))


@pytest.mark.parametrize("part", ["embedding", "level", "words", "summary"])
def test_each_condition_reaches_the_picture(part):
    model, x, t, given = make_decoder(), noise(2, 3, 8, 8), torch.tensor([0.3, 0.6]), told()
    other = given._replace(**{part: getattr(given, part) + 0.5})
    assert not torch.allclose(model(x, t, given), model(x, t, other))


@pytest.mark.parametrize(
    ("left_out", "parts"), [("embedded", ["embedding"]), ("captioned", ["words", "summary"])]
)
def test_what_is_left_out_has_no_influence(left_out, parts):
    model, x, t, given = make_decoder(), noise(2, 3, 8, 8), torch.tensor([0.3, 0.6]), told()
    given = given._replace(**{left_out: torch.tensor([False, True])})
    other = given._replace(**{part: getattr(given, part) + 0.5 for part in parts})
    before, after = model(x, t, given), model(x, t, other)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_the_loss_is_that_of_its_equation():
    """x-prediction on the straight path, compared as velocity: ((x̂ - x) / t)², t above 0.05."""
    model, x, e, t = (
        make_decoder(),
        pictures(2, 3, 8, 8),
        noise(2, 3, 8, 8),
        torch.tensor([0.2, 0.7]),
    )
    at = t[:, None, None, None]
    found = model((1 - at) * x + at * e, t, told())
    wanted = ((found - x) / at).square().mean()
    assert torch.allclose(model.loss(x, told(), noise=e, t=t), wanted, rtol=1e-4)


def test_guidance_1_asks_once_with_all_that_is_told_and_0_without():
    model, x, t = make_decoder(), noise(2, 3, 8, 8), torch.tensor([0.5, 0.5])
    plain = model.denoiser(told(), Sampler(guidance=1.0))(x, t)
    none = model.denoiser(told(), Sampler(guidance=0.0))(x, t)
    twice = model.denoiser(told(), Sampler(guidance=2.0))(x, t)
    assert torch.allclose(twice, none + 2 * (plain - none), atol=1e-5)
    no = torch.zeros(2, dtype=torch.bool)
    untold = told()._replace(embedded=no, captioned=no)
    assert torch.allclose(none, model.denoiser(untold, Sampler(guidance=1.0))(x, t))


def test_guidance_in_an_interval_costs_a_second_pass_only_there(monkeypatch):
    model, rows, forward = make_decoder(), [], Decoder.forward

    def counted(self, x_t, t, asked):
        rows.append(len(x_t))
        return forward(self, x_t, t, asked)

    monkeypatch.setattr(Decoder, "forward", counted)
    how = Sampler("ddim", steps=4, guidance=2.0, guide_from=0.9, guide_to=0.5)
    model.draw(told(), how, generator=generator())
    assert rows == [2, 4, 4, 2]  # at times 1, 0.75, 0.5 and 0.25


def test_the_same_seed_draws_the_same_and_a_picture_its_own_beside_any_others():
    model = make_decoder()
    first, again = (model.draw(told(), STEPS, generator=generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    rows = model.draw(told(), Sampler("ddpm", steps=3), generator=[generator(5), generator(6)])
    one = tell(units(2, 10)[1:], make_caption(2)._replace(
        words=make_caption(2).words[1:], summary=make_caption(2).summary[1:]))  # fmt: skip
    alone = model.draw(one, Sampler("ddpm", steps=3), generator=[generator(6)])
    assert torch.allclose(rows[1:], alone, atol=1e-4)


def test_what_is_held_of_a_picture_stays_to_the_last_bit():
    model, x = make_decoder(), pictures(1, 3, 8, 8)
    keep = torch.zeros(8, 8, dtype=torch.bool)
    keep[:4] = True
    start = Start(held=Held(x, keep, noise(1, 3, 8, 8)))
    drawn = model.draw(told(), STEPS, generator=generator(), start=start)
    assert torch.equal(drawn[:, :, :4], x[:, :, :4].expand(2, -1, -1, -1))
    assert not torch.allclose(drawn[:, :, 4:], x[:, :, 4:].expand(2, -1, -1, -1))


def test_code_vectors_are_rounded_to_the_nearest_codes():
    from helpers.tiny import make_unclip

    unclip = make_unclip(latent=True)
    codes = torch.arange(12).reshape(3, 2, 2) % 12
    codes = codes.repeat(1, 2, 2)  # (3, 4, 4)
    z = unclip.painter.vqgan.quantizer.vectors(codes)
    unclip.decoder.latents.learn(z.permute(0, 2, 3, 1).flatten(0, 2), "standard")
    near = unclip.decoder.latents.standardize(z) + 0.01 * noise(*z.shape)
    assert torch.equal(unclip.decoder.decode(near, unclip.painter), unclip.painter.decode(codes))


def test_captions_are_read_by_clips_own_text_encoder():
    clip, tokens = make_clip(), torch.tensor([[1, 5, 6, 2, 0, 0, 0], [1, 7, 2, 0, 0, 0, 0]])
    caption = read_captions(clip, tokens)
    assert torch.allclose(caption.summary.norm(dim=1), torch.ones(2))
    ends = torch.stack([caption.words[0, 3], caption.words[1, 2]])
    summary = clip.text_encoder.projection(ends)
    assert torch.allclose(torch.nn.functional.normalize(summary, dim=-1), caption.summary)
    assert not clip.text_encoder.norm_out._forward_hooks


# --- the space of embeddings ---------------------------------------------------------------------


def test_embeddings_are_standardised_by_dimension_and_come_back():
    space, z = EmbeddingSpace(10), units(50, 10) + 0.2
    space.learn(z, "standard")
    found = space.standardize(z)
    assert torch.allclose(found.mean(0), torch.zeros(10), atol=1e-5)
    assert torch.allclose(found.std(0), torch.ones(10), atol=1e-5)
    assert torch.allclose(space.undo(found), z, atol=1e-5)


def test_a_single_embedding_is_moved_to_zero_and_no_other_becomes_nan():
    space, z = EmbeddingSpace(10), units(2, 10)
    space.learn(z[:1], "standard")
    assert torch.equal(space.standardize(z), z - z[0])


def test_the_papers_scale_is_one_factor_for_all():
    space, z = EmbeddingSpace(10), units(50, 10)
    space.learn(z, "paper")
    assert torch.allclose(space.standardize(z), 17.2 * z, rtol=1e-5)


def test_components_know_more_with_every_direction_and_all_of_them_everything():
    space = EmbeddingSpace(6)
    z = torch.nn.functional.normalize(
        noise(80, 6) * torch.tensor([3.0, 2, 1, 0.5, 0.2, 0.1]) + 1, dim=-1
    )
    space.learn(z, "standard")
    errors = [float((space.composed(space.components(z, d)) - z).norm()) for d in range(1, 7)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4
    assert float(space.components(z, 6).mT.cov().triu(1).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attention": (3,)}, "attention at 3: expected one of"),
        ({"multipliers": (1, 1, 1, 1)}, "cannot be halved 3 times"),
        ({"channels": 0}, "1 or more"),
        ({"image_tokens": 0}, "1 or more"),
        ({"multipliers": (), "attention": ()}, "1 or more"),
        ({"image_size": 9, "patch": 2, "attention": ()}, "image size 9 is not a multiple of patch"),
        ({"predicts": "score"}, "predicts score: expected x, noise or velocity"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        make_decoder(**wrong)


def test_numbers_become_bytes():
    model, x = make_decoder(), pictures(1, 3, 8, 8)
    assert torch.equal(model.decode(x, None), to_uint8(x))
