"""unCLIP's priors: from a caption to a CLIP image embedding (Ramesh et al. 2022, section 2.2).

A caption leaves open what else is in its picture, so there are many right embeddings, and a prior
draws one of them. Both read the caption's tokens and its CLIP text embedding, and both are a causal
Transformer. The diffusion prior, here, takes noise away from an embedding; the other one draws the
embedding's principal components one after the other (`prior_autoregressive.py`).

tokens (B, T) of CLIP's tokenizer and text embeddings (B, E), unit vectors, in; image embeddings
(B, E), unit vectors, out. Read `blocks/transformer.py`, `blocks/diffusion.py` and `embeddings.py`
before.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.attention import Attend, attend, causal_mask
from minimodal.blocks.diffusion import (
    DiffusionConfig,
    Path,
    Sampler,
    diffusion_loss,
    guided,
    training_times,
    walk,
)
from minimodal.blocks.sampling import Generators, normal
from minimodal.blocks.transformer import KVCache, Transformer
from minimodal.blocks.unet import time_features
from minimodal.errors import UserError, check_choice, check_range
from minimodal.unclip.embeddings import EmbeddingSpace

SAMPLER = Sampler()


@dataclass(frozen=True)
class PriorConfig(DiffusionConfig):
    """The shape of a prior, and how it diffuses if it does."""

    kind: str = "diffusion"  # diffusion or autoregressive
    width: int = 128
    depth: int = 4
    heads: int = 4
    levels: int = 4  # of noise that a caption's embedding is trained at in one step (diffusion)
    buckets: int = 256  # of a component (autoregressive)
    vocab_size: int = 512
    text_length: int = 16
    embed_width: int = 128
    components: int = 0  # of an embedding: those that lose less than 1 % (autoregressive)
    guidance: float = 1.0  # that embeddings are drawn with by default

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, ("diffusion", "autoregressive"))
        check_range(self, 1, math.inf, "levels")
        if self.buckets < 2 or self.buckets % 2:
            raise UserError(f"buckets {self.buckets}: expected an even number, 2 or more")
        Sampler(guidance=self.guidance).check()


class Chance(NamedTuple):
    """The random numbers of a training batch.

    unsaid: (B,) bool, True where the caption is left out
    times: (B, n) uniform between 0 and 1, for the noise levels of the diffusion prior
    noise: (B, n, E) standard normal
    """

    unsaid: Tensor
    times: Tensor
    noise: Tensor


class Text(nn.Module):
    """What a prior is told: the caption's tokens, then its CLIP text embedding."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        D, T = config.width, config.text_length
        self.tokens = nn.Embedding(config.vocab_size, D)
        self.positions = nn.Parameter(torch.randn(T, D) * 0.3)
        self.space = EmbeddingSpace(config.embed_width)
        self.embedding = nn.Linear(config.embed_width, D)
        self.unsaid = nn.Parameter(torch.randn(1 + T, D) * 0.5)
        nn.init.normal_(self.tokens.weight, std=0.5)

    def forward(self, tokens: Tensor, text: Tensor, unsaid: Tensor) -> Tensor:
        """The tokens that all else follows.

        tokens: (B, T) int64
        text: (B, E) unit vectors
        unsaid: (B,) bool, True where all of it is left out
        returns: (B, T+1, D)
        """
        words = self.tokens(tokens) + self.positions  # (B, T, D)
        summary = self.embedding(self.space.standardize(text))[:, None]  # (B, 1, D)
        x = torch.cat([words, summary], dim=1)  # (B, T+1, D)
        return torch.where(unsaid[:, None, None], self.unsaid.to(x.dtype), x)


def better(found: Tensor, text: Tensor) -> Tensor:
    """Of several embeddings the one that goes best with the caption, by dot product.

    found: (B, n, E) unit vectors
    text: (B, E)
    returns: (B, E)
    """
    best = torch.einsum("bne,be->bn", found, text).argmax(dim=1)  # (B,)
    return found[torch.arange(len(found), device=found.device), best]


def repeated(generator: Generators, n: int) -> Generators:
    """A generator for each of n candidates of a row, where each row has its own."""
    if isinstance(generator, torch.Generator):
        return generator
    return [one for one in generator for _ in range(n)]


def with_and_without(tokens: Tensor, text: Tensor, guidance: float) -> tuple[Tensor, ...]:
    """What is asked for a guided drawing: with the text, and if need be without it.

    tokens: (B, T) int64
    text: (B, E)
    returns: (B', T), (B', E), (B',) bool, True where the text is left out; B' = B or 2 B
    """
    unsaid = torch.full((len(text),), guidance == 0, device=text.device)
    if guidance in (0, 1):
        return tokens, text, unsaid
    return torch.cat([tokens, tokens]), torch.cat([text, text]), torch.cat([unsaid, ~unsaid])


# --- the diffusion prior -------------------------------------------------------------------------

BRANCH = 3  # tokens of a noise level: time, noised embedding, query


def branches(past: int, queries: int, device: torch.device, *, stem: int) -> Attend:
    """The stem attends causally; of the branches behind it each sees the stem and itself."""
    places = torch.arange(past + queries, device=device)
    branch = torch.where(places < stem, -1, (places - stem) // BRANCH)
    mask = causal_mask(queries, past + queries, device)  # (queries, keys)
    mask = mask & ((branch[None] == branch[past:, None]) | (branch[None] == -1))
    return partial(attend, mask=mask)


class DiffusionPrior(nn.Module):
    """A Transformer that finds the embedding in a noised one."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config, D, E = config, config.width, config.embed_width
        self.text, self.space = Text(config), EmbeddingSpace(E)
        self.time = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        self.noised = nn.Linear(E, D)
        self.query = nn.Parameter(torch.randn(D) * 0.5)
        # differs from the paper: a caption is followed by several noise levels, which do not see
        # each other: the caption, most of the tokens, is computed once for all of them.
        pattern = partial(branches, stem=config.text_length + 1)
        self.transformer = Transformer(
            D, config.depth, config.heads, causal=True, patterns=(pattern,) * config.depth
        )
        self.norm_out = nn.LayerNorm(D)
        self.head = nn.Linear(D, E)
        nn.init.normal_(self.head.weight, std=0.02)
        self.path = Path(config.path)

    @torch.no_grad()
    def learn(self, image: Tensor, text: Tensor) -> None:
        """Take the statistics of training's embeddings.

        image: (N, E) unit vectors
        text: (M, E) unit vectors of captions of the first M
        """
        self.space.learn(image, "standard")
        self.text.space.learn(text, "standard")

    def forward(
        self, stem: Tensor | None, x_t: Tensor, t: Tensor, *, cache: KVCache | None = None
    ) -> Tensor:
        """The prediction at n noise levels of each embedding.

        stem: (B, T+1, D) the text, or None if the cache has it
        x_t: (B, n, E) noised
        t: (B, n) times
        returns: (B, n, E)
        """
        B, n, _ = x_t.shape
        time = self.time(time_features(t.flatten(), self.config.width)).view(B, n, -1)  # (B, n, D)
        noised, query = self.noised(x_t), self.query.expand(B, n, -1)  # (B, n, D) each
        noised, query = noised.to(time.dtype), query.to(time.dtype)
        x = rearrange([time, noised, query], "k B n D -> B (n k) D")  # (B, 3*n, D)
        x = x if stem is None else torch.cat([stem.to(x.dtype), x], dim=1)
        h = self.transformer(x, cache=cache)[:, -BRANCH * n :]  # (B, 3*n, D)
        return self.head(self.norm_out(h[:, BRANCH - 1 :: BRANCH]))  # (B, n, E)

    def loss(self, tokens: Tensor, text: Tensor, image: Tensor, chance: Chance) -> Tensor:
        """L = E ‖f(z_t, t, y) - z‖² (equation 2), with z standardised; `loss_on` weighs it.

        tokens: (B, T) int64
        text: (B, E) unit vectors
        image: (B, E) unit vectors
        returns: ()
        """
        B, n = chance.times.shape
        z = self.space.standardize(image).repeat_interleave(n, 0)  # (B*n, E)
        noise = chance.noise.flatten(0, 1)  # (B*n, E)
        t = training_times(chance.times.flatten(), self.config)  # (B*n,)
        z_t = self.path.noised(z, noise, t)  # (B*n, E)
        stem = self.text(tokens, text, chance.unsaid)  # (B, T+1, D)
        found = self(stem, z_t.view(B, n, -1), t.view(B, n))  # (B, n, E)
        return diffusion_loss(found.flatten(0, 1), z, noise, t, self.config)

    @torch.no_grad()
    def embed(
        self, tokens: Tensor, text: Tensor, *, generator: Generators,
        guidance: float | None = None, candidates: int = 2, sampler: Sampler = SAMPLER,
    ) -> Tensor:  # fmt: skip
        """Draw image embeddings for captions: of two each the better one.

        tokens: (B, T) int64
        text: (B, E) unit vectors
        guidance: None: the configuration's
        returns: (B, E) unit vectors
        """
        B, n, E = len(text), candidates, self.config.embed_width
        guidance = self.config.guidance if guidance is None else guidance
        sampler = sampler._replace(guidance=guidance)
        stem = self.text(*with_and_without(tokens, text, guidance))  # (B', T+1, D)
        length = stem.shape[1]
        cache = self.transformer.new_cache(
            len(stem), length + BRANCH * n, device=stem.device, dtype=stem.dtype
        )
        self.transformer(stem, cache=cache)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            """x_t: (N, E); t: (N,); returns: (N, E), N = n B, a caption's candidates together"""
            cache.length = length  # the text stays, the last step's branches go
            twice = len(stem) // B
            found = self(
                None, x_t.view(B, n, E).repeat(twice, 1, 1), t.view(B, n).repeat(twice, 1),
                cache=cache,
            ).view(twice, B * n, E)  # fmt: skip
            said, *unsaid = (self.path.estimate(x_t, t, f, self.config.predicts).x for f in found)
            return guided(said, unsaid[0], t, sampler) if unsaid else said

        many = repeated(generator, n)
        noise = normal(text.repeat_interleave(n, 0), many)  # (N, E)
        z = walk(denoise, noise, sampler, self.path, generator=many)  # (N, E)
        return better(self.space.restore(z).view(B, n, E), text)
