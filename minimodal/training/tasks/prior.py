"""The training of unCLIP's priors: CLIP's image embeddings from captions.

Embeddings were made once by a trained CLIP, which also reads the captions; no pixel is touched.
Read `minimodal/unclip/prior.py` before.
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimodal.data.sources import batch_indices
from minimodal.errors import UserError, check_range
from minimodal.training.contract import Recipe, Task
from minimodal.training.tasks.common import draws, seeded
from minimodal.training.tasks.embeddings import (
    Embedded,
    caption_embeddings,
    copy_clip,
    unseen_embeddings,
)
from minimodal.unclip.decoder import read_captions
from minimodal.unclip.prior import Chance, DiffusionPrior
from minimodal.unclip.prior_autoregressive import AutoregressivePrior


@dataclass(frozen=True)
class PriorTraining:
    """What a prior's training has beyond the engine's settings."""

    pool: int = 65_536  # pictures embedded at the start, at most
    flip: bool = False  # the pool holds every picture and its mirror image
    caption_dropout: float = 0.1  # share of captions left out, for classifier-free guidance

    def __post_init__(self) -> None:
        check_range(self, 1, inf, "pool")
        check_range(self, 0, 1, "caption_dropout")


class PriorTask(Task):
    """Image embeddings from captions."""

    name = "prior"

    def __init__(self, recipe: Recipe, embedded: Embedded) -> None:
        kind = {"diffusion": DiffusionPrior, "autoregressive": AutoregressivePrior}
        make = kind[recipe.model.kind]
        if recipe.model.guidance != 1 and not recipe.training.caption_dropout:
            raise UserError(
                f"guidance {recipe.model.guidance} needs empty captions to have been trained: give "
                "a caption_dropout above 0, or guidance 1"
            )
        model = seeded(lambda: make(recipe.model), recipe.engine.seed)
        super().__init__(recipe, model)
        self.embedded = self.made = embedded
        self.train, self.val = embedded.train, embedded.val
        model.learn(embedded.embeddings, caption_embeddings(embedded, self.seed))

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Embeddings, captions, and all random numbers of the step."""
        rng, c, B = draws(self.seed, step), self.model.config, self.batch_size
        N, n = len(self.embedded.embeddings), self.embedded.pictures
        indices = batch_indices(N, B, step, seed=self.seed)
        captions = self.train.captions(indices % n, rng)
        unsaid = rng.random(B) < self.training.caption_dropout
        times = rng.random((B, c.levels), dtype=np.float32)
        noise = rng.standard_normal((B, c.levels, c.embed_width), dtype=np.float32)
        return {
            "image": self.embedded.embeddings[torch.from_numpy(indices[rows])],
            "tokens": self.embedded.clip.tokenize(captions[rows], truncate=True),
            "unsaid": torch.from_numpy(unsaid[rows]),
            "times": torch.from_numpy(times[rows]),
            "noise": torch.from_numpy(noise[rows]),
        }

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error about noised embeddings, or the cross-entropy of buckets."""
        chance = Chance(batch["unsaid"], batch["times"], batch["noise"])
        text = read_captions(self.embedded.clip, batch["tokens"]).summary  # (B, E)
        return self.model.loss(batch["tokens"], text, batch["image"], chance), {}

    @torch.no_grad()
    def evaluate(self, model: DiffusionPrior | AutoregressivePrior) -> dict[str, float]:
        """How near embeddings drawn for unseen captions come to the true ones, as a cosine, and to
        those of other pictures. A sign of health, no score: the mean of all right embeddings has
        the best cosine, and no picture."""
        image = unseen_embeddings(self.embedded)  # (N, E)
        captions = [self.val.all_captions(i)[0] for i in range(len(image))]
        device = next(model.parameters()).device
        tokens = self.embedded.clip.tokenize(captions, truncate=True).to(device)
        generator = torch.Generator(device).manual_seed(self.seed)
        drawn = []
        for some in tokens.split(128):
            text = read_captions(self.embedded.clip, some).summary
            drawn.append(model.embed(some, text, generator=generator).float().cpu())
        drawn = torch.cat(drawn)  # (N, E)
        return {
            "cosine": float((drawn * image).sum(1).mean()),
            "cosine_to_others": float((drawn * image.roll(1, 0)).sum(1).mean()),
        }

    def save_files(self, out: Path) -> None:
        """A copy of the CLIP: the run works wherever it is moved."""
        copy_clip(self.embedded, out)
