"""The pool and what chooses from it: the same codes for a seed, likelihoods, and CLIP's score."""

import pytest
import torch
from helpers.tiny import make_dalle, make_vqgan

from minimodal.blocks.painter import Painter
from minimodal.errors import UserError
from minimodal.vqgan_clip.pool import Prior, draw_pool


@pytest.fixture
def prior() -> Prior:
    dalle = make_dalle().eval()
    dalle.painter = Painter(make_vqgan().eval())
    return Prior(dalle)


def test_a_larger_pool_begins_with_the_smaller(prior):
    few, likely = draw_pool(prior, 3)
    more, _ = draw_pool(prior, 5)
    assert (more[:3] == few).all() and likely.shape == (3,)


def test_the_likelihood_is_that_of_an_empty_caption(prior):
    codes, likely = draw_pool(prior, 2)
    out = prior.model(prior.nothing(2), codes).image
    parts = prior.model.image_heads.factors(codes.flatten(1))
    own = [
        x.log_softmax(-1).gather(-1, p[..., None]).sum((1, 2))
        for x, p in zip(out, parts, strict=True)
    ]
    torch.testing.assert_close(likely, sum(own))


def test_what_is_kept_stays_when_the_rest_is_drawn_anew(prior):
    codes, _ = draw_pool(prior, 2)
    keep = torch.ones(codes.shape[1:], dtype=torch.bool)
    keep[0, 0] = False
    again = prior.redraw(codes, keep, torch.Generator().manual_seed(1))
    assert (again[:, keep] == codes[:, keep]).all()


def test_a_dalle_of_pairs_is_refused():
    dalle = make_dalle(pictures=2)
    with pytest.raises(UserError, match="of pairs"):
        Prior(dalle)
