"""What a guide is asked, and what it answers."""

import math

import pytest
import torch
from helpers.shape_check import check_shapes
from helpers.tiny import make_clip, pictures
from PIL import Image

from minimodal.blocks.guidance import great_circle
from minimodal.data.tokenizer import Tokenizer
from minimodal.errors import UserError
from minimodal.uses.embedding import embed_pictures
from minimodal.vqgan_clip.guide import Region, embed_prompt, make_guide, region_of
from minimodal.vqgan_clip.prompts import Prompt, read_prompt, read_prompts

CLIP = make_clip(vocab_size=Tokenizer().vocab_size)
CLIP.tokenizer = Tokenizer()
VIEWS = pictures(5, 3, 8, 8)


def losses(text: str, views: torch.Tensor = VIEWS, **settings) -> torch.Tensor:
    guide = make_guide(CLIP, read_prompts(text), **settings)
    return guide.losses(views, guide.wanted[0]).detach()


def distance(text: str) -> torch.Tensor:
    target = embed_prompt(CLIP, read_prompt(text), Image.open).detach()
    x = make_guide(CLIP, [Prompt("a")]).embed(VIEWS).detach()
    return great_circle(x, target[None])[:, 0]


def test_pictures_are_read_as_the_clip_was_trained_to():
    bytes_ = torch.randint(256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    found = make_guide(CLIP, [Prompt("a")]).embed(bytes_.float() / 127.5 - 1)
    torch.testing.assert_close(found, embed_pictures(CLIP, bytes_))


def test_one_prompt_is_its_distance():
    torch.testing.assert_close(losses("a red circle"), distance("a red circle"))


def test_weights_make_a_mean_and_negative_ones_push_away():
    a, b = distance("a"), distance("b")
    torch.testing.assert_close(losses("a:3|b"), (3 * a + b) / 4)
    torch.testing.assert_close(losses("a|b:-0.5"), (a - 0.5 * b) / 1.5)


def test_below_its_stop_a_prompt_pulls_no_more_and_still_counts():
    middle = float(distance("a").sort().values[2]) + 1e-4
    guide = make_guide(CLIP, read_prompts(f"a:1:{middle}"))
    views = VIEWS.clone().requires_grad_()
    found = guide.losses(views, guide.wanted[0])
    torch.testing.assert_close(found.detach(), distance("a"))
    found.sum().backward()
    pulled = views.grad.abs().sum(dim=(1, 2, 3)) > 0
    assert torch.equal(pulled, distance("a") > middle)


def test_against_other_captions_the_loss_is_minus_the_contrastive_score():
    """By cross-entropy over the prompt and the bank: log p - log(1 - p), whatever all have more."""
    texts, scale = ["a", "b", "c"], float(CLIP.logit_scale.detach().exp())
    found = losses("a", against=texts)  # the prompt itself is none of the others
    x = make_guide(CLIP, [Prompt("a")]).embed(VIEWS).detach()
    cosines = x @ torch.stack([embed_prompt(CLIP, Prompt(t), Image.open) for t in texts]).T.detach()
    right = (scale * cosines).log_softmax(dim=1)[:, 0]  # log p
    torch.testing.assert_close(found, -(right - torch.log1p(-right.exp())) / scale)
    alone = losses("a", against=["b"])
    torch.testing.assert_close(alone, cosines[:, 1] - cosines[:, 0])


def test_a_bank_of_the_prompt_alone_is_refused():
    with pytest.raises(UserError, match="no caption to hold against 'a' but itself"):
        make_guide(CLIP, [Prompt("a")], against=["a"])


def test_image_prompts_are_their_picture_and_noise_prompts_their_seed():
    picture = Image.new("RGB", (8, 8), (200, 30, 30))
    as_view = torch.tensor([200, 30, 30]).view(1, 3, 1, 1).expand(1, 3, 8, 8) / 127.5 - 1
    found = make_guide(CLIP, [Prompt("x.png", "image")], read=lambda path: picture)
    assert float(found.losses(as_view, found.wanted[0])) == pytest.approx(0, abs=1e-4)
    first, again, other = (embed_prompt(CLIP, Prompt(s, "noise"), Image.open) for s in "112")
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_prompts_of_one_region_share_their_views():
    guide = make_guide(CLIP, read_prompts("a | [0,0,.5,1] b | c:2 | [0,0,.5,1] d"))
    assert [len(w.embeddings) for w in guide.wanted] == [2, 2]
    assert [w.region.box for w in guide.wanted] == [None, (0, 0, 0.5, 1)]


def test_a_box_is_cut_out_and_a_mask_hides_all_else():
    x = pictures(2, 3, 8, 12)
    assert torch.equal(Region((0.5, 0.25, 1, 1)).of(x), x[..., 2:, 6:])
    half = Image.new("L", (12, 8), 0)
    half.paste(255, (0, 0, 6, 8))
    region = region_of(read_prompt("[m.png] a"), lambda path: half)
    assert torch.equal(region.of(x)[..., :6], x[..., :6])
    assert float(region.of(x)[..., 6:].abs().max()) == 0
    assert Region((0.99, 0.99, 1, 1)).of(x).shape == (2, 3, 1, 1)  # never nothing


def test_what_asks_for_nothing_is_refused():
    with pytest.raises(UserError, match="no prompt"):
        make_guide(CLIP, [])
    with pytest.raises(UserError, match="asks nothing"):
        make_guide(CLIP, [Prompt("a", weight=0.0)])
    with pytest.raises(UserError, match="dark everywhere"):
        region_of(Prompt("a", mask="m.png"), lambda path: Image.new("RGB", (4, 4)))


GUIDE = make_guide(CLIP, [Prompt("a"), Prompt("b", stop=-math.inf)])


@pytest.mark.parametrize(
    ("function", "arguments", "letters"),
    [
        (GUIDE.embed, dict(views=VIEWS), {"E": 10, "S": 8}),
        (GUIDE.losses, dict(views=VIEWS, wanted=GUIDE.wanted[0]), {}),
        (embed_prompt, dict(clip=CLIP, prompt=Prompt("a"), read=Image.open), {"E": 10}),
        (Region((0, 0, 0.5, 1)).of, dict(pictures=VIEWS), {"h": 8, "w": 4}),
    ],
)
def test_shapes_are_as_documented(function, arguments, letters):
    with torch.no_grad():
        check_shapes(function, arguments, function(**arguments), letters)
