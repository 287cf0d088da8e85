"""DALL·E read the other way: what the same weights say of captions for a given picture.

The stream is caption, then picture, so a DALL·E knows p(text) and p(picture | text). The second
makes it a classifier (`caption_scores`): which caption explains the picture best? With captions
that it writes itself from the first (`write_captions`) it is a captioner (`describe`). Captions as
tokens (B, T) and codes (B, h, w) in. Read `dalle.py` before.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.blocks.packed import packed_linears
from minimodal.blocks.sampling import SamplingConfig, sample_token
from minimodal.dalle import DALLE


class Likelihood(NamedTuple):
    """Log probabilities of pairs, in nats.

    text: (B,) log p(text)
    image: (B,) log p(picture | text), of pairs log p(second picture | text, first picture)
    """

    text: Tensor
    image: Tensor


def log_p(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log probability of whole sequences.

    logits: (B, T, V)
    tokens: (B, T) int64
    returns: (B,)
    """
    return -F.cross_entropy(logits.float().mT, tokens, reduction="none").sum(1)


@torch.no_grad()
def log_likelihood(
    dalle: DALLE, text: Tensor, codes: Tensor, *, batch_size: int = 64
) -> Likelihood:
    """How likely pairs of caption and picture are.

    text: (B, T) int64 caption tokens, pad_id after the caption
    codes: (B, h, w) int64
    """
    of_text, of_image = [], []
    N = dalle.config.grid**2  # a first picture is given: training teaches nothing about it
    for t, c in zip(text.split(batch_size), codes.split(batch_size), strict=True):
        logits, factors = dalle(t, c), dalle.image_heads.factors(c.flatten(1)[:, -N:])
        of_text.append(log_p(logits.text, dalle.with_padding(t)))
        of_image.append(
            sum(log_p(a[:, -N:], b) for a, b in zip(logits.image, factors, strict=True))
        )
    return Likelihood(torch.cat(of_text), torch.cat(of_image))


def caption_scores(dalle: DALLE, codes: Tensor, captions: Sequence[str]) -> Tensor:
    """log p(picture | caption) of every picture with every caption: a classifier of pictures.

    codes: (B, h, w) int64
    returns: (B, L), L captions
    """
    text = dalle.tokenize(list(captions)).to(codes.device)  # (L, T)
    B, L = len(codes), len(text)
    pairs = log_likelihood(dalle, text.repeat(B, 1), codes.repeat_interleave(L, dim=0))
    return pairs.image.view(B, L)


@torch.no_grad()
def write_captions(
    dalle: DALLE,
    n: int,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    begin: Tensor | None = None,
) -> Tensor:
    """Captions from p(text), without looking at any picture.

    begin: (P,) int64 tokens that all of them begin with
    returns: (n, T) int64, pad_id after the caption
    """
    c = dalle.config
    device = dalle.rows.device
    text = torch.full((n, c.text_length), c.pad_id, dtype=torch.int64, device=device)
    first = 0 if begin is None else len(begin)
    if first:
        text[:, :first] = begin
    cache = dalle.new_cache(n)
    # A position can only be followed by a token of a caption or by its own padding token.
    possible = torch.zeros(c.text_length, c.text_vocab, dtype=torch.bool, device=device)
    possible[:, : c.vocab_size] = True
    possible[:, c.pad_id] = False
    places = torch.arange(c.text_length, device=device)
    possible[places, c.vocab_size + places] = True
    config = SamplingConfig(temperature=temperature)
    ended = torch.zeros(n, dtype=torch.bool, device=device)
    x = dalle.embed_text(text)[:, : 1 + first]  # (n, 1 + P, D)
    with packed_linears([dalle.transformer], n):
        for t in range(first, c.text_length):
            h = dalle.transformer(x, cache=cache, angles=dalle.angles(cache.length, x.shape[1]))
            logits = dalle.text_head(dalle.norm_out(h[:, -1])).float()  # (n, V)
            token = sample_token(logits.masked_fill(~possible[t], float("-inf")), config, generator)
            ended = ended | (token >= c.vocab_size)
            text[:, t] = torch.where(ended, c.pad_id, token)
            x = dalle.embed_text(text)[:, t + 1 : t + 2]
    return text


class Description(NamedTuple):
    """A caption that a picture was given.

    caption: in words
    text: (T,) int64 its tokens
    score: log p(picture | caption) in nats
    """

    caption: str
    text: Tensor
    score: float


def describe(
    dalle: DALLE, codes: Tensor, *, generator: torch.Generator, n: int = 64, rounds: int = 8
) -> Description:
    """The caption that explains a picture best, of those that a search comes upon.

    First n captions are drawn from p(text); then come rounds that keep a beginning of the best so
    far and draw n other ends for it. The beginnings are of random length, so that every word comes
    up for change. Captions are compared by log p(picture | text): by p(text, picture) the emptiest
    would win, since there are so many ways to say more. An empty caption says nothing, so it is no
    answer, though it may beat all wrong ones.

    codes: (h, w) int64
    """
    best, best_score = None, -float("inf")
    for _ in range(rounds):
        begin = None
        if best is not None:
            length = int((best != dalle.config.pad_id).sum())
            kept = int(
                torch.randint(max(length, 1), (1,), generator=generator, device=codes.device)
            )
            begin = best[:kept]
        text = write_captions(dalle, n, generator=generator, begin=begin)  # (n, T)
        text = text.unique(dim=0)
        said = text[text[:, 0] != dalle.config.pad_id]
        text = said if len(said) else text
        scores = log_likelihood(dalle, text, codes.expand(len(text), -1, -1)).image
        top = int(scores.argmax())
        if float(scores[top]) > best_score:
            best, best_score = text[top], float(scores[top])
    words = dalle.tokenizer.decode(token for token in best.tolist() if token)
    return Description(words, best, best_score)
