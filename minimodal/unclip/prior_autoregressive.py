"""unCLIP's autoregressive prior: an embedding's components, one after the other (section 2.2).

Principal components of CLIP's image embeddings, as many as leave out less than 1 % of their
variance, each rounded to one of some hundred buckets, are a sequence of tokens like any other. The
text and a token for how well the embedding is to go with it come first.

tokens (B, T) and text embeddings (B, E) in, image embeddings (B, E) out. Read `prior.py` before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.sampling import Generators, SamplingConfig, guide, sample_token
from minimodal.blocks.transformer import Transformer
from minimodal.unclip.embeddings import EmbeddingSpace
from minimodal.unclip.prior import Chance, PriorConfig, Text, with_and_without

LOST = 0.01  # share of the embeddings' variance that the components may leave out


def enough_components(embeddings: Tensor) -> int:
    """How many components leave out less than 1 % of the embeddings' variance.

    embeddings: (N, E)
    """
    space = EmbeddingSpace(embeddings.shape[1])
    space.learn(embeddings, "standard")
    spread = space.components(embeddings, embeddings.shape[1]).var(0, correction=0)  # (E,)
    kept = (spread / spread.sum()).cumsum(0)
    return min(int((kept < 1 - LOST).sum()) + 1, embeddings.shape[1])


class Buckets(nn.Module):
    """Numbers of several distributions as the buckets of their quantiles, and back."""

    def __init__(self, dimensions: int, count: int) -> None:
        super().__init__()
        # differs from the paper: 256 buckets instead of 1,024, bounded by quantiles, so that all
        # are used alike; the paper does not say where its bounds lie.
        self.register_buffer("bounds", torch.zeros(dimensions, count - 1))
        self.register_buffer("centres", torch.zeros(dimensions, count))

    @torch.no_grad()
    def learn(self, values: Tensor) -> None:
        """Take the quantiles: k/K are the bounds, those half-way between them the centres.

        values: (N, n)
        """
        K = self.centres.shape[1]
        ordered = values.sort(dim=0).values  # (N, n)
        where = torch.arange(1, 2 * K, device=values.device) / (2 * K) * (len(values) - 1)
        low, share = where.long(), (where % 1)[:, None]
        high = (low + 1).clamp(max=len(values) - 1)
        found = (ordered[low] * (1 - share) + ordered[high] * share).T  # (n, 2*K-1)
        self.bounds.copy_(found[:, 1::2])
        self.centres.copy_(found[:, ::2])

    def quantize(self, values: Tensor) -> Tensor:
        """values: (B, n); returns: (B, n) int64"""
        return torch.searchsorted(self.bounds, values.T.contiguous()).T

    def restore(self, indices: Tensor) -> Tensor:
        """indices: (B, n) int64; returns: (B, n) the buckets' centres"""
        return self.centres.gather(1, indices.T).T


class AutoregressivePrior(nn.Module):
    """A Transformer that draws an embedding's components, the largest first."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        D, E, n, K = config.width, config.embed_width, config.components, config.buckets
        self.config, self.text = config, Text(config)
        self.space = EmbeddingSpace(E)
        self.buckets, self.dot_buckets = Buckets(n, K), Buckets(1, K)
        self.dots = nn.Embedding(K + 1, D)  # the last: the text is left out
        self.values = nn.Embedding(K, D)
        self.places = nn.Parameter(torch.randn(n, D) * 0.5)
        self.transformer = Transformer(D, config.depth, config.heads, causal=True)
        self.norm_out = nn.LayerNorm(D)
        self.head = nn.Linear(D, K)
        for table in (self.dots, self.values):
            nn.init.normal_(table.weight, std=0.5)
        nn.init.normal_(self.head.weight, std=0.02)

    @torch.no_grad()
    def learn(self, image: Tensor, text: Tensor) -> None:
        """Take the components of training's embeddings, and the buckets of all that is drawn.

        image: (N, E) unit vectors
        text: (M, E) unit vectors of captions of the first M
        """
        self.text.space.learn(text, "standard")
        self.space.learn(image, "standard")
        self.buckets.learn(self.space.components(image, self.config.components))
        self.dot_buckets.learn((image[: len(text)] * text).sum(1, keepdim=True))

    def quantize(self, image: Tensor) -> Tensor:
        """Embeddings as buckets of their components.

        image: (B, E)
        returns: (B, n) int64
        """
        return self.buckets.quantize(self.space.components(image, self.config.components))

    def restore(self, codes: Tensor) -> Tensor:
        """Buckets as embeddings.

        codes: (B, n) int64
        returns: (B, E) unit vectors
        """
        return self.space.composed(self.buckets.restore(codes))

    def prefix(self, tokens: Tensor, text: Tensor, dot: Tensor, unsaid: Tensor) -> Tensor:
        """The text, and how well the embedding to come goes with it.

        tokens: (B, T) int64
        text: (B, E)
        dot: (B,) int64 bucket of the dot product
        unsaid: (B,) bool
        returns: (B, T+2, D)
        """
        dot = torch.where(unsaid, self.config.buckets, dot)
        return torch.cat([self.text(tokens, text, unsaid), self.dots(dot)[:, None]], dim=1)

    def forward(self, prefix: Tensor, codes: Tensor) -> Tensor:
        """Predict every component from the text and the components before it.

        prefix: (B, P, D)
        codes: (B, n) int64
        returns: (B, n, K) logits
        """
        n = codes.shape[1]
        x = self.values(codes[:, :-1]) + self.places[: n - 1]  # (B, n-1, D)
        h = self.transformer(torch.cat([prefix, x.to(prefix.dtype)], dim=1))[:, -n:]  # (B, n, D)
        return self.head(self.norm_out(h))  # (B, n, K)

    def loss(self, tokens: Tensor, text: Tensor, image: Tensor, chance: Chance) -> Tensor:
        """L = -1/n Σ_i log p(c_i | y, z_y · z, c_<i), the mean over the components.

        tokens: (B, T) int64
        text: (B, E) unit vectors
        image: (B, E) unit vectors
        returns: ()
        """
        codes = self.quantize(image)  # (B, n)
        dot = self.dot_buckets.quantize((text * image).sum(1, keepdim=True))[:, 0]  # (B,)
        logits = self(self.prefix(tokens, text, dot, chance.unsaid), codes)  # (B, n, K)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())

    @torch.no_grad()
    def embed(
        self, tokens: Tensor, text: Tensor, *, generator: Generators,
        guidance: float | None = None, use_cache: bool = True,
    ) -> Tensor:  # fmt: skip
        """Draw image embeddings for captions, component by component.

        tokens: (B, T) int64
        text: (B, E) unit vectors
        guidance: None: the configuration's
        returns: (B, E) unit vectors
        """
        guidance = self.config.guidance if guidance is None else guidance
        how = SamplingConfig(guidance=guidance)
        B, K, n = len(text), self.config.buckets, self.config.components
        # Of a dot product's buckets the upper half, all as likely as they are in training.
        half = torch.full((B, K), float("-inf"), device=text.device)
        half[:, K // 2 :] = 0
        dot = sample_token(half, SamplingConfig(), generator)  # (B,)
        asked = with_and_without(tokens, text, guidance)
        prefix = self.prefix(asked[0], asked[1], dot.repeat(len(asked[0]) // B), asked[2])
        P = prefix.shape[1]
        cache = self.transformer.new_cache(
            len(prefix), P + n, device=prefix.device, dtype=prefix.dtype
        ) if use_cache else None  # fmt: skip
        codes = torch.zeros(B, 0, dtype=torch.int64, device=text.device)
        for i in range(n):
            x = self.values(codes) + self.places[:i]  # (B, i, D)
            x = torch.cat([prefix, x.repeat(len(prefix) // B, 1, 1)], dim=1)
            h = self.transformer(x[:, cache.length if cache else 0 :], cache=cache)[:, -1]
            logits = self.head(self.norm_out(h)).float()
            logits = guide(*logits.chunk(2), guidance) if how.guided else logits  # (B, K)
            codes = torch.cat([codes, sample_token(logits, how, generator)[:, None]], dim=1)
        return self.restore(codes)
