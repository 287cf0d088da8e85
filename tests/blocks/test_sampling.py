"""Drawing tokens: cases with a known answer, and frequencies."""

import math

import pytest
import torch
from helpers.tiny import generator, noise

from minimodal.blocks.sampling import (
    COLDEST,
    MOST_GUIDANCE,
    SamplingConfig,
    filter_logits,
    guide,
    sample_token,
)
from minimodal.errors import UserError

P = torch.tensor([[0.15, 0.5, 0.05, 0.3]])


def kept(**settings) -> list[int]:
    """Which tokens of P a filter leaves."""
    return torch.isfinite(filter_logits(P.log(), **settings))[0].nonzero().flatten().tolist()


def frequencies(logits: torch.Tensor, n: int = 20_000, **settings) -> torch.Tensor:
    drawn = sample_token(logits.expand(n, -1), SamplingConfig(**settings), generator())
    return torch.bincount(drawn, minlength=logits.shape[-1]) / n


def chi_square(found: torch.Tensor, expected: torch.Tensor, n: int = 20_000) -> float:
    return float((n * (found - expected).square() / expected).sum())


def test_temperature_0_is_the_likeliest_token():
    logits = noise(50, 9)
    config = SamplingConfig(temperature=0.0, top_k=3, top_p=0.5)
    assert torch.equal(sample_token(logits, config, generator()), logits.argmax(1))


def test_draws_follow_the_softmax():
    # The 0.999 quantile of chi-square with 3 degrees of freedom.
    assert chi_square(frequencies(P.log()), P[0]) < 16.3


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    expected = (P[0].log() / temperature).softmax(0)
    assert chi_square(frequencies(P.log(), temperature=temperature), expected) < 16.3


def test_what_is_left_is_drawn_in_its_proportions():
    found = frequencies(P.log(), top_k=2)
    assert found[0] == found[2] == 0
    assert found[1].item() == pytest.approx(0.5 / 0.8, abs=0.015)


@pytest.mark.parametrize(
    ("k", "tokens"),
    [(0, [0, 1, 2, 3]), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]),
     (9, [0, 1, 2, 3])],
)  # fmt: skip
def test_top_k_keeps_the_k_likeliest(k, tokens):
    assert kept(top_k=k) == tokens


@pytest.mark.parametrize(
    ("p", "tokens"),
    [(0.01, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [0, 1, 3]),
     (0.96, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])],
)  # fmt: skip
def test_top_p_keeps_the_smallest_set_with_that_probability(p, tokens):
    assert kept(top_p=p) == tokens


def test_top_p_counts_among_what_top_k_left():
    # Of the two likeliest the first has 0.5 / 0.8 = 0.625.
    assert kept(top_k=2, top_p=0.62) == [1]
    assert kept(top_k=2, top_p=0.63) == [1, 3]


def test_rows_are_filtered_each_by_itself():
    logits = torch.stack([P[0].log(), P[0].flip(0).log()])
    found = torch.isfinite(filter_logits(logits, top_p=0.6))
    assert found.tolist() == [[False, True, False, True], [True, False, True, False]]


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0]])
    found = frequencies(logits, temperature=3.0)
    assert found[0] == found[2] == 0


def test_guidance_1_is_the_conditional_and_0_the_unconditional():
    conditional, unconditional = noise(3, 5), noise(3, 5, seed=1)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)


def test_the_coldest_draw_under_the_strongest_guidance_is_the_likeliest_token():
    config = SamplingConfig(temperature=COLDEST, guidance=MOST_GUIDANCE, top_p=0.9)
    logits = guide(100 * noise(50, 9), 100 * noise(50, 9, seed=1), config.guidance)
    assert torch.equal(sample_token(logits, config, generator()), logits.argmax(1))


def test_guidance_above_1_goes_beyond_the_conditional():
    assert guide(torch.tensor([[3.0]]), torch.tensor([[1.0]]), 2.5).item() == 6.0


def test_the_same_generator_draws_the_same_whatever_else_was_drawn():
    logits = noise(50, 9)
    first = sample_token(logits, SamplingConfig(), generator(4))
    torch.rand(3)
    assert torch.equal(first, sample_token(logits, SamplingConfig(), generator(4)))


def test_drawing_leaves_the_logits_and_the_global_generator_alone():
    logits, before = noise(50, 9), torch.get_rng_state()
    copy = logits.clone()
    sample_token(logits, SamplingConfig(temperature=0.7, top_k=3, top_p=0.9), generator())
    assert torch.equal(logits, copy) and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1: expected"),
        ({"temperature": math.nan}, "temperature nan: expected"),
        ({"top_k": -1}, "top-k -1: expected"),
        ({"top_p": 0.0}, "top-p 0.0: expected"),
        ({"top_p": 1.5}, "top-p 1.5: expected"),
        ({"top_p": math.nan}, "top-p nan: expected"),
        ({"guidance": -1.0}, "guidance -1.0: expected"),
        ({"guidance": math.nan}, "guidance nan: expected"),
        ({"guidance": 1e38}, "guidance 1e\\+38: expected"),
        ({"temperature": 1e-40}, "temperature 1e-40: expected"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**settings)
