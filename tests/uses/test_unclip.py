"""What one does with unCLIP: each tool's ends, where its answer is known."""

import pytest
import torch
from helpers.tiny import (
    generator,
    make_clip,
    make_decoder,
    make_unclip,
    make_unclip_prior,
    make_upsampler,
    noise,
    pictures,
)

from minimodal.blocks.diffusion import Sampler
from minimodal.blocks.painter import Request
from minimodal.blocks.pixels import to_uint8
from minimodal.data.images import ImageSource, resize_all
from minimodal.errors import UserError
from minimodal.uses import unclip as tools
from minimodal.uses.embedding import embed_source
from minimodal.uses.unclip import UnCLIP

HOW = Sampler("ddim", steps=4)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(tools, "INVERSION_STEPS", 4)


def asked(n: int = 2) -> Request:
    return Request(n, generator(1))


def two() -> torch.Tensor:
    return to_uint8(pictures(2, 3, 8, 8))


def reconstructions(model: UnCLIP, images: torch.Tensor) -> torch.Tensor:
    z = model.embed(images)
    told = model.told(z)
    return model.paint_all(told, model.noise_of(images, told), asked(1), HOW)


def test_a_picture_has_the_embedding_here_that_the_decoder_was_trained_on_whatever_clip_reads():
    model, images = UnCLIP(make_clip(image_size=16), make_decoder()), two()
    source = ImageSource(name="folder", pixels=images.numpy(), caption_lists=())
    assert torch.equal(embed_source(model.clip, source, n=2), model.embed(images))


def test_a_decoder_smaller_than_clip_is_told_of_the_whole_picture_and_draws_it_small():
    model, large = UnCLIP(make_clip(image_size=16), make_decoder()), two().repeat(1, 1, 2, 2)
    small = torch.from_numpy(resize_all(large.numpy(), 8))
    assert not torch.allclose(model.embed(large), model.embed(small))
    assert torch.equal(model.latents(large), model.latents(small))


def test_an_interpolation_begins_and_ends_in_the_two_pictures():
    model, (a, b) = make_unclip(), two()
    way = model.interpolate(a, b, asked(3), HOW)
    ends = reconstructions(model, torch.stack([a, b]))
    assert (way[[0, 2]].int() - ends.int()).abs().max() <= 1
    assert not torch.equal(way[1], way[0]) and not torch.equal(way[1], way[2])


def test_an_edit_from_a_caption_to_itself_is_the_picture_again_with_the_caption_read():
    model, images, texts = make_unclip(), two(), ["a red circle", "a blue square"]
    found = model.edit(images, texts, texts, torch.zeros(2), request=asked(1), how=HOW)
    told = model.told(model.embed(images), texts)
    again = model.paint_all(told, model.noise_of(images, told), asked(1), HOW)
    assert (found.int() - again.int()).abs().max() <= 1
    other = model.edit(images, texts, texts[::-1], torch.zeros(2), request=asked(1), how=HOW)
    assert not torch.equal(other, found)  # the second caption alone changes it


def test_where_the_noise_is_chosen_none_is_added_on_the_way():
    """By DDPM, too, the same noise gives the same picture, whatever the seed."""
    model, images = make_unclip(), two()
    told, how = model.told(model.embed(images)), Sampler("ddpm", steps=4)
    noise = model.noise_of(images, told)
    first, second = (
        model.paint_all(told, noise, Request(1, generator(seed)), how) for seed in (1, 2)
    )
    assert torch.equal(first, second)
    fresh = [model.paint_all(told, None, Request(1, generator(s)), how) for s in (1, 2)]
    assert not torch.equal(*fresh)


def test_an_edit_of_strength_0_is_the_picture_again_and_more_strength_changes_more():
    model, images = make_unclip(), two()[:1].expand(3, -1, -1, -1)
    before, after = ["a red circle"] * 3, ["a blue square"] * 3
    found = model.edit(
        images, before, after, torch.tensor([0.0, 0.3, 1.0]),
        request=asked(1), how=HOW, captioned=False,
    )  # fmt: skip
    again = reconstructions(model, images[:1])
    changes = [(one.int() - again[0].int()).abs().float().mean() for one in found]
    assert changes[0] < 1 < changes[1] < changes[2]


def test_a_strength_outside_0_to_1_is_refused():
    with pytest.raises(UserError, match="expected from 0 to 1"):
        make_unclip().edit(
            two(), ["a", "b"], ["b", "a"], torch.tensor([0.5, 1.5]), request=asked(), how=HOW
        )


def test_a_mix_of_one_is_that_embedding_and_weights_count():
    model, images = make_unclip(), two()
    z = model.embed(images)
    one = model.mix(z, torch.tensor([1.0, 0.0]), asked(), HOW)
    assert torch.equal(one, model.vary(images[0], asked(), HOW))
    assert not torch.equal(one, model.mix(z, torch.tensor([0.5, 0.5]), asked(), HOW))


def test_a_strip_ends_in_all_that_the_embedding_knows():
    model, images = make_unclip(), two()[:1]
    strip = model.strip(images[0], [1, 3, 10], asked(), HOW)
    again = reconstructions(model, images)
    assert (strip[2].int() - again[0].int()).abs().max() <= 1 and not torch.equal(
        strip[0], strip[2]
    )


def test_variations_differ_from_each_other():
    found = make_unclip().vary(two()[0], asked(), HOW)
    assert found.shape == (2, 3, 8, 8) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
@pytest.mark.parametrize(("latent", "bfloat16"), [(False, False), (True, False), (True, True)])
def test_prompts_are_drawn_the_same_for_the_same_seeds_in_any_batch(kind, latent, bfloat16):
    model = make_unclip(kind=kind, latent=latent)
    model.bfloat16 = bfloat16
    prompts = ["a red circle", "a blue square"]
    together = model.draw(prompts, Request(1, seeds=[3, 4]), HOW)
    alone = model.draw(prompts[1:], Request(1, seeds=[4], batch_size=1), HOW)
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert together.shape == (2, 3, 8, 8) and together.dtype == torch.uint8


def test_a_decoder_that_is_not_told_the_caption_does_not_heed_it():
    """The prior is made to give the same embedding for both, so that only the caption differs."""
    model = make_unclip()
    z = model.embed(two()[:1])
    model.prior.embed = lambda tokens, text, generator: z.expand(len(text), -1)
    prompts = ["a red circle", "a blue square"]
    deaf = model.draw(prompts, Request(1, seeds=[3, 3]), HOW, captioned=False)
    told = model.draw(prompts, Request(1, seeds=[3, 3]), HOW)
    assert (deaf[0].int() - deaf[1].int()).abs().max() <= 1
    assert (told[0].int() - told[1].int()).abs().max() > 5


def test_a_walk_from_a_picture_without_noise_ends_where_it_begins():
    model, x = make_unclip(), pictures(1, 3, 8, 8)
    start = model.noised(x, noise(1, 3, 8, 8), time=0.0)
    found = model.draw(["a red circle"], asked(2), HOW, start=start)
    assert torch.equal(found, to_uint8(x).expand(2, -1, -1, -1))


def test_a_mix_that_leaves_nothing_is_refused():
    model = make_unclip()
    z = model.embed(two()[:1]).expand(2, -1)
    with pytest.raises(UserError, match="leave nothing of what is mixed"):
        model.mix(z, torch.tensor([1.0, -1.0]), asked(), HOW)


def test_a_decoder_or_prior_for_embeddings_of_another_size_is_refused():
    whole = make_unclip()
    for parts, message in (
        (
            (make_decoder(embed_width=11), whole.prior),
            "the decoder is for embeddings of 11 numbers",
        ),
        ((whole.decoder, make_unclip_prior("diffusion", embed_width=11)), "the prior is for"),
    ):
        with pytest.raises(UserError, match=f"{message}.*CLIP's have 10"):
            UnCLIP(whole.clip, parts[0], prior=parts[1])


def test_a_picture_with_no_noise_stays_and_with_all_of_it_goes():
    model, x, e = make_unclip(), pictures(1, 3, 8, 8), noise(1, 3, 8, 8)
    assert torch.allclose(model.noised(x, e, time=0.0).x_t, x)
    assert torch.allclose(model.noised(x, e, time=1.0).x_t, e)


def test_without_a_prior_prompts_are_refused():
    whole = make_unclip()
    with pytest.raises(UserError, match="needs a prior: train.py prior"):
        UnCLIP(whole.clip, whole.decoder).draw(["a red circle"], asked(), HOW)


def test_an_up_sampler_enlarges_what_is_drawn_and_must_fit_it():
    whole = make_unclip()
    large = UnCLIP(whole.clip, whole.decoder, prior=whole.prior, upsampler=make_upsampler())
    assert large.draw(["a red circle"], asked(1), HOW).shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match="enlarges pictures of 4 pixels a side.*draws 8"):
        UnCLIP(whole.clip, whole.decoder, upsampler=make_upsampler(small_size=4))
