"""CLIP's loss against its equation, the towers, and the temperature."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import WORDS, integers, make_clip, noise
from PIL import Image

from minimodal.blocks.contrastive import difference_loss
from minimodal.blocks.contrastive_rows import Everyone, gathered_loss
from minimodal.clip import (
    CLIPConfig,
    contrastive_loss,
)
from minimodal.data.preprocessing import MEAN, STD, normalize
from minimodal.data.tokenizer import Tokenizer
from minimodal.errors import UserError
from minimodal.uses.zero_shot import class_embeddings

DISTINCT = torch.arange(6)
REPEATED = torch.tensor([0, 1, 0, 2, 1, 0])


def equation(image, text, scale, captions) -> float:
    """The loss in float64, one pair after another."""
    u = image / np.linalg.norm(image, axis=1, keepdims=True)
    v = text / np.linalg.norm(text, axis=1, keepdims=True)
    total = 0.0
    for i, caption in enumerate(captions):
        right = captions == caption
        for logits in (scale * u[i] @ v.T, scale * v[i] @ u.T):
            log_p = logits - np.log(np.exp(logits).sum())
            total -= 0.5 * log_p[right].mean()
    return total / len(captions)


def slope(f, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient by central differences."""
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            out[place] += sign * f(moved) / (2 * step)
    return out


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image, text = noise(6, 4), noise(6, 4, seed=1)
    return image.requires_grad_(), text.requires_grad_(), torch.tensor([5.0], requires_grad=True)


# --- the loss ------------------------------------------------------------------------------------


def test_with_distinct_captions_it_is_the_papers_symmetric_cross_entropy():
    image, text, scale = inputs()
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    paper = (F.cross_entropy(logits, DISTINCT) + F.cross_entropy(logits.T, DISTINCT)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale, captions=DISTINCT), paper)


@pytest.mark.parametrize("captions", [DISTINCT, REPEATED])
def test_the_loss_is_its_equation(captions):
    image, text, scale = inputs()
    found = contrastive_loss(image, text, scale, captions=captions)
    arrays = [x.detach().double().numpy() for x in (image, text)]
    assert found.item() == pytest.approx(equation(*arrays, 5.0, captions.numpy()), rel=1e-5)


@pytest.mark.parametrize("captions", [DISTINCT, REPEATED])
@pytest.mark.parametrize("which", ["image", "text", "scale"])
def test_the_gradient_is_that_of_finite_differences(captions, which):
    tensors = dict(zip(("image", "text", "scale"), inputs(), strict=True))
    contrastive_loss(**tensors, captions=captions).backward()
    arrays = {name: x.detach().double().numpy() for name, x in tensors.items()}

    def moved(x: np.ndarray) -> float:
        values = {**arrays, which: x}
        return equation(values["image"], values["text"], values["scale"][0], captions.numpy())

    expected = slope(moved, arrays[which])
    np.testing.assert_allclose(tensors[which].grad.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_repeated_captions_are_positives_of_each_other():
    # Two pairs share a caption and all their vectors; the third is at right angles to them.
    unit = torch.eye(2)[[0, 0, 1]]
    s = 3.0
    loss = contrastive_loss(unit, unit, torch.tensor([s]), captions=torch.tensor([7, 7, 4]))
    twins = math.log(2 * math.exp(s) + 1) - s
    single = math.log(math.exp(s) + 2) - s
    assert loss.item() == pytest.approx((2 * twins + single) / 3, rel=1e-5)


def test_a_batch_with_one_caption_only_teaches_nothing():
    image, text, scale = inputs()
    same = contrastive_loss(
        image[:1].expand(6, -1), text[:1].expand(6, -1), scale, captions=DISTINCT * 0
    )
    assert same.item() == pytest.approx(math.log(6), rel=1e-5)


@pytest.mark.parametrize("captions", [DISTINCT, REPEATED])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(captions, ranks):
    whole = inputs()
    contrastive_loss(*whole, captions=captions).backward()
    image, text, scale = inputs()
    losses = [
        gathered_loss(
            image[rows],
            text[rows],
            scale,
            captions=captions[rows],
            everyone=Everyone(image, text, captions),
        )
        for rows in torch.arange(6).chunk(ranks)
    ]
    mean = torch.stack(losses).mean()
    mean.backward()
    torch.testing.assert_close(mean, contrastive_loss(*whole, captions=captions))
    for sharded, single in zip((image, text, scale), whole, strict=True):
        torch.testing.assert_close(sharded.grad, single.grad, rtol=1e-4, atol=1e-6)


def test_the_length_of_an_embedding_does_not_matter():
    image, text, scale = inputs()
    short = contrastive_loss(image, text, scale, captions=REPEATED)
    torch.testing.assert_close(
        contrastive_loss(3 * image, 0.1 * text, scale, captions=REPEATED), short
    )


# --- the temperature -----------------------------------------------------------------------------


def test_the_temperature_starts_at_0_07():
    assert make_clip().logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize(("before", "after"), [(10.0, math.log(100)), (1.5, 1.5)])
def test_the_scale_is_kept_at_100_or_less(before, after):
    clip = make_clip()
    with torch.no_grad():
        clip.logit_scale.fill_(before)
    clip.clamp_temperature()
    assert clip.logit_scale.item() == pytest.approx(after, rel=1e-6)


# --- the towers ----------------------------------------------------------------------------------


def test_logits_are_scaled_cosines():
    clip, images, tokens = make_clip(), noise(2, 3, 8, 8), integers(30, 3, 7)
    per_image = clip(images, tokens).per_image
    cosine = F.cosine_similarity(
        clip.encode_image(images)[:, None], clip.encode_text(tokens)[None], dim=-1
    )
    torch.testing.assert_close(per_image, cosine / 0.07, rtol=1e-4, atol=1e-4)


def test_logits_per_text_are_the_transpose():
    logits = make_clip()(noise(2, 3, 8, 8), integers(30, 3, 7))
    assert logits.per_text.shape == (3, 2)
    assert torch.equal(logits.per_text, logits.per_image.T)


def test_embeddings_are_not_normalised():
    clip = make_clip()
    for embedding in (clip.encode_image(noise(2, 3, 8, 8)), clip.encode_text(integers(30, 2, 7))):
        assert (embedding.norm(dim=1) - 1).abs().min() > 0.01


def test_tokens_after_the_end_token_do_not_matter():
    clip = make_clip()
    tokens = torch.tensor([[1, 5, 6, 2, 0, 0, 0], [1, 5, 6, 2, 9, 2, 7]])
    first, second = clip.encode_text(tokens)
    torch.testing.assert_close(first, second)


def test_tokens_before_the_end_token_matter():
    clip = make_clip()
    first, second = clip.encode_text(torch.tensor([[1, 5, 6, 2, 0, 0, 0], [1, 7, 6, 2, 0, 0, 0]]))
    assert (first - second).abs().max() > 1e-3


def test_the_order_of_words_matters():
    clip = make_clip()
    first, second = clip.encode_text(torch.tensor([[1, 5, 6, 2], [1, 6, 5, 2]]))
    assert (first - second).abs().max() > 1e-3


def test_padding_may_be_left_out():
    clip = make_clip()
    torch.testing.assert_close(
        clip.encode_text(torch.tensor([[1, 5, 2]])),
        clip.encode_text(torch.tensor([[1, 5, 2, 0, 0, 0, 0]])),
    )


def test_every_pixel_moves_the_embedding():
    images = noise(1, 3, 8, 8).requires_grad_()
    (make_clip().encode_image(images) * noise(10)).sum().backward()
    assert (images.grad != 0).all()


def test_a_picture_is_read_the_same_in_any_batch():
    clip, images = make_clip(), noise(4, 3, 8, 8)
    torch.testing.assert_close(
        clip.encode_image(images)[2:3], clip.encode_image(images[2:3]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("stem", [(), (6,), (6, 8)])
def test_a_stem_changes_what_a_patch_is_read_by_and_not_how_many_there_are(stem):
    clip = make_clip(stem=stem)
    seen = []
    clip.image_encoder.transformer.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    clip.encode_image(noise(2, 3, 8, 8))
    assert seen == [(2, 1 + 4, 16)]


def test_with_a_stem_a_patch_sees_beyond_its_edges():
    plain, stem = make_clip(), make_clip(stem=(6,))
    image = noise(1, 3, 8, 8)
    changed = image.clone()
    changed[..., 0, 3] += 1  # the first patch's last column: beside the second patch

    def second_patch(clip, image):
        x = image
        for conv in clip.image_encoder.stem:
            x = F.gelu(conv(x))
        return clip.image_encoder.patches(x)[0, :, 0, 1]

    assert torch.equal(second_patch(plain, image), second_patch(plain, changed))
    assert not torch.equal(second_patch(stem, image), second_patch(stem, changed))


def test_a_patch_too_small_for_the_stem_is_refused():
    with pytest.raises(UserError, match="patch size 4 is too small for 3"):
        CLIPConfig(patch_size=4, stem=(8, 8, 8))


# --- pictures and captions in --------------------------------------------------------------------


def test_pictures_are_normalised_by_the_originals_statistics():
    images = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(v - m) / s for v, m, s in zip((0, 1, 128 / 255), MEAN, STD, strict=True)]
    assert normalize(images).flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_picture_of_any_kind_and_size_is_preprocessed(mode):
    found = make_clip().preprocess(Image.new(mode, (30, 17)))
    assert found.shape == (3, 8, 8) and found.dtype == torch.float32


def test_captions_become_start_caption_end_padding():
    tokenizer = Tokenizer.train(WORDS, 300)
    clip = make_clip(vocab_size=tokenizer.vocab_size, text_length=20, end_id=tokenizer.end_id)
    clip.tokenizer = tokenizer
    ids = tokenizer.encode(WORDS[0])
    row = clip.tokenize(WORDS[0])[0].tolist()
    padding = [tokenizer.pad_id] * (18 - len(ids))
    assert row == [tokenizer.start_id, *ids, tokenizer.end_id, *padding]


def test_a_class_is_the_direction_of_its_captions_mean():
    tokenizer = Tokenizer.train(WORDS, 300)
    clip = make_clip(vocab_size=tokenizer.vocab_size, text_length=30, end_id=tokenizer.end_id)
    clip.tokenizer = tokenizer
    templates = ["a {}", "the {}"]
    found = class_embeddings(clip, ["red circle", "blue star"], templates)
    captions = F.normalize(clip.encode_text(clip.tokenize(["a red circle", "the red circle"])))
    torch.testing.assert_close(found[0], F.normalize(captions.mean(0), dim=0))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_a_clip_without_a_tokenizer_says_how_to_get_one():
    with pytest.raises(UserError, match="minimodal.load"):
        make_clip().tokenize("a red circle")


def test_an_image_size_that_patches_do_not_fill_is_an_error():
    with pytest.raises(UserError, match="image size 30 is not a multiple of patch size 4"):
        CLIPConfig(image_size=30, patch_size=4)


def faint(common: int, *, n: int = 16, width: int = 32) -> torch.Tensor:
    """Embeddings that share a large part and differ in a faint one, the same for every `common`."""
    own = torch.randn(n, width, generator=torch.Generator().manual_seed(0))
    shared = torch.randn(width, generator=torch.Generator().manual_seed(common))
    return F.normalize(100 * shared + own, dim=-1)


def test_differences_see_what_the_contrastive_loss_is_blind_to():
    image, text, scale = faint(1), faint(2), torch.tensor([20.0])
    blind = contrastive_loss(image, text, scale, captions=torch.arange(16))
    assert blind.item() > 0.9 * math.log(16)
    assert difference_loss(image, text, scale).item() < 0.1


def test_difference_loss_of_neighbours_is_the_equation():
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, 4, 3))
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    terms = []
    for pairs in (((0, 1), (2, 3)), ((0, 2), (1, 3))):
        du, dv = (
            np.stack([(x[i] - x[j]) / np.linalg.norm(x[i] - x[j]) for i, j in pairs])
            for x in (u, v)
        )
        for logits in (5 * du @ dv.T, 5 * dv @ du.T):
            terms.append(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))
    ours = difference_loss(
        torch.from_numpy(image).float(), torch.from_numpy(text).float(), torch.tensor([5.0])
    )
    assert ours.item() == pytest.approx(np.mean(terms), abs=1e-5)


def test_equal_captions_leave_the_difference_loss_finite():
    text = torch.ones(4, 8, requires_grad=True)
    loss = difference_loss(
        torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), text, torch.tensor([5.0])
    )
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(text.grad).all()
