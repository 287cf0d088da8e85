"""What a search begins with and how it ends: a pool of pictures of anything, and CLIP's choice.

    pool    what a prior draws when it is told nothing, once for all prompts
    score   CLIP's scale times the cosine of picture and prompt
    find    the best of the pool, improved by `search.py` until it is good enough

A prior is a trained DALL·E, which then reads an empty caption, or a VQGAN's own. Codes (N, h, w)
live on the CPU, models where they are. Read `search.py` and `guide.py` before.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minimodal.blocks.pixels import resized, to_float
from minimodal.errors import UserError
from minimodal.vqgan_clip.guide import Guide
from minimodal.vqgan_clip.search import Found, SearchConfig, search

BATCH = 64
ENOUGH = 0.88  # cosine that nine in ten true pairs exceed with the demo's CLIP


class Prior:
    """Codes of pictures in general, and how likely they are."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.painter = model, model.painter
        self.by_caption = hasattr(model, "image_heads")  # a DALL·E
        if self.by_caption and model.config.pictures > 1:
            raise UserError("a DALL·E of pairs draws no single pictures; give another run")
        self.grid = model.config.grid

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of a code's factors."""
        return tuple(self.painter.vqgan.config.codes)

    def nothing(self, n: int) -> Tensor:
        """What stands before the codes where nothing is asked for: empty captions, or no class."""
        if self.by_caption:
            length, pad = self.model.config.text_length, self.model.config.pad_id
            return torch.full((n, length), pad, dtype=torch.int64, device=self.device)
        return torch.full((n,), -1, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Codes at temperature 1.

        returns: (n, h, w) int64
        """
        return self.model.generate_codes(self.nothing(n), generator=generator).cpu()

    @torch.no_grad()
    def redraw(self, codes: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
        """Codes with a part drawn anew.

        codes: (N, h, w) int64
        keep: (h, w) bool
        returns: (N, h, w) int64
        """
        here, ahead = codes.to(self.device), self.nothing(len(codes))
        if self.by_caption:
            how = {"known": here, "keep": keep.to(self.device)}
            return self.model.generate_codes(ahead, generator=generator, **how).cpu()
        before = int((~keep.flatten()).nonzero()[0])  # a window draws all that follows
        start = here.flatten(1)[:, :before]
        drawn = self.model.generate_codes(ahead, generator=generator, start=start).cpu()
        return torch.where(keep, codes, drawn)

    @torch.no_grad()
    def log_likelihood(self, codes: Tensor) -> Tensor:
        """log p(codes), where nothing is asked for.

        codes: (N, h, w) int64
        returns: (N,)
        """
        found = []
        for part in codes.split(BATCH):
            here, ahead = part.to(self.device), self.nothing(len(part))
            if self.by_caption:
                logits = self.model(ahead, here).image  # (B, N, K) each
                parts = self.model.image_heads.factors(here.flatten(1))
            else:
                logits, parts = [self.model.code_logits(here, ahead)], [here.flatten(1)]
            found.append(sum(
                x.float().log_softmax(-1).gather(-1, code[..., None]).sum(dim=(1, 2))
                for x, code in zip(logits, parts, strict=True)
            ).cpu())  # fmt: skip
        return torch.cat(found)


class Pool(NamedTuple):
    """Pictures that a prior drew.

    codes: (P, h, w) int64
    log_likelihood: (P,)
    embeddings: (P, E) unit vectors of the whole pictures, one for each CLIP
    """

    codes: Tensor
    log_likelihood: Tensor
    embeddings: tuple[Tensor, ...]

    def part(self, rows: Tensor) -> "Pool":
        """Some of them.

        rows: (p,) int64
        """
        chosen = tuple(x[rows] for x in self.embeddings)
        return Pool(self.codes[rows], self.log_likelihood[rows], chosen)


def draw_pool(
    prior: Prior, size: int, *, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> tuple[Tensor, Tensor]:
    """Codes and their likelihoods; in a pool twice as large the first half is the same.

    progress: called with how many more are drawn
    returns: (P, h, w) int64, (P,)
    """
    generator = torch.Generator(prior.device).manual_seed(seed)
    codes, likely = [], []
    for first in range(0, size, BATCH):
        drawn = prior.draw(BATCH, generator)[: size - first]
        codes.append(drawn)
        likely.append(prior.log_likelihood(drawn))
        progress(len(drawn))
    return torch.cat(codes), torch.cat(likely)


@torch.no_grad()
def embed_codes(
    prior: Prior, guide: Guide, codes: Tensor, region: Callable = lambda x: x
) -> Tensor:
    """What a CLIP makes of codes, decoded and rounded to bytes as a file of them would be.

    codes: (N, h, w) int64
    region: of pictures (N, 3, H, W), all by default
    returns: (N, E) unit vectors
    """
    found = []
    for part in codes.split(2 * BATCH):
        decoded = to_float(prior.painter.decode(part.to(prior.device)))
        found.append(guide.embed(resized(region(decoded), guide.size)).cpu())
    return torch.cat(found)


def agreement(guide: Guide, embeddings: Sequence[Tensor]) -> Tensor:
    """The score of pictures: CLIP's scale times the weighted mean of cosines, a mean over regions.
    What lies beyond a prompt's stop counts no more.

    embeddings: (N, E) unit vectors, of each of the guide's regions
    returns: (N,)
    """
    total = torch.zeros(len(embeddings[0]))
    for wanted, seen in zip(guide.wanted, embeddings, strict=True):
        most = torch.cos((2 * wanted.stops.cpu().clamp(min=0)).sqrt())
        most = torch.where(wanted.weights.cpu() > 0, most, torch.inf)  # a stop is of what attracts
        cosine = torch.minimum(seen @ wanted.embeddings.cpu().T, most)  # (N, P)
        total += cosine @ wanted.weights.cpu() / wanted.weights.abs().sum().cpu()
    return total * float(guide.clip.logit_scale.detach().exp()) / len(guide.wanted)


class Judges:
    """The score of codes for a search: the mean over all CLIPs."""

    def __init__(self, prior: Prior, guides: Sequence[Guide], pool: Pool) -> None:
        self.prior, self.guides, self.pool = prior, list(guides), pool

    @property
    def scale(self) -> float:
        """What a cosine of 1 gives."""
        scales = [float(guide.clip.logit_scale.detach().exp()) for guide in self.guides]
        return sum(scales) / len(scales)

    def score(self, codes: Tensor) -> Tensor:
        """codes: (N, h, w) int64; returns: (N,)"""
        known = codes is self.pool.codes
        total = torch.zeros(len(codes))
        for i, guide in enumerate(self.guides):
            seen = [
                self.pool.embeddings[i]
                if known and wanted.region.box is None and wanted.region.mask is None
                else embed_codes(self.prior, guide, codes, wanted.region.of)
                for wanted in guide.wanted
            ]
            total += agreement(guide, seen)
        return total / len(self.guides)

    def log_likelihood(self, codes: Tensor) -> Tensor:
        """codes: (N, h, w) int64; returns: (N,)"""
        if codes is self.pool.codes:
            return self.pool.log_likelihood
        return self.prior.log_likelihood(codes)


def find(
    prior: Prior, guides: Sequence[Guide], pool: Pool, *, seed: int, skip: int = 0,
    config: SearchConfig | None, seconds: float = float("inf"), enough: float = ENOUGH,
) -> Found:  # fmt: skip
    """The best codes for what the guides want: of the pool, and where that is not good enough
    searched for.

    skip: leave out so many of the pool's best, for another picture of the same prompt
    config: None for the best of the pool alone
    seconds: the search takes no longer; with them the machine's speed has a say in the picture
    enough: a cosine that ends it; the default is of the Shapes world
    """
    if skip:
        ranked = Judges(prior, guides, pool).score(pool.codes).argsort(descending=True, stable=True)
        pool = pool.part(ranked[min(skip, len(ranked) - 1) :])
    judges = Judges(prior, guides, pool)
    if config is None:
        scores = judges.score(pool.codes)
        best = scores.argsort(descending=True, stable=True)[:1]
        return Found(pool.codes[best], scores[best], 0)
    generator, ends = torch.Generator().manual_seed(seed), time.monotonic() + seconds
    chance = torch.Generator(prior.device).manual_seed(seed)
    return search(
        pool.codes, score=judges.score, log_likelihood=judges.log_likelihood,
        redraw=lambda codes, keep: prior.redraw(codes, keep, chance), sizes=prior.sizes,
        generator=generator, config=replace(config, enough=enough * judges.scale),
        on_round=lambda members, values: time.monotonic() > ends,
    )  # fmt: skip
