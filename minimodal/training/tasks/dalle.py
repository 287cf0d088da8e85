"""DALL·E's training: next-token prediction over captions and the codes of their pictures.

A trained VQGAN turns the pictures into codes once; training then never touches a pixel. Read
`minimodal/dalle.py` before.
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.given import Given
from minimodal.blocks.painter import Painter, Request
from minimodal.blocks.sampling import SamplingConfig
from minimodal.dalle import DALLE
from minimodal.data.sources import batch_indices
from minimodal.errors import UserError, check_range
from minimodal.files import write_atomically
from minimodal.training.captions import Words
from minimodal.training.contract import Recipe, Task
from minimodal.training.tasks.codes import Encoded, copy_vqgan, unseen_codes
from minimodal.training.tasks.common import draws, seeded
from minimodal.training.tasks.unseen import tile


@dataclass(frozen=True)
class DALLETraining:
    """What DALL·E's training has beyond the engine's settings."""

    vocab: int = 2048  # tokens of captions at most; fewer where they have fewer words
    max_text_length: int = 48  # tokens of a caption; longer ones are cut
    # differs from the paper: a share of the captions is left out in training, so that drawing can
    # be guided (Ho & Salimans 2022).
    caption_dropout: float = 0.1  # share of captions left empty, for classifier-free guidance
    pool: int = 65_536  # pictures tokenised at the start, at most
    flip: bool = False  # the pool holds every picture and its mirror image
    temperature: float = 1.0  # that generate.py samples at by default
    guidance: float = 1.0  # that generate.py samples with by default

    def __post_init__(self) -> None:
        check_range(self, 1, inf, "pool", "max_text_length")
        check_range(self, 0, 1, "caption_dropout")
        SamplingConfig(temperature=self.temperature, guidance=self.guidance)  # checks them
        if self.guidance != 1 and self.caption_dropout == 0:
            raise UserError(
                f"guidance {self.guidance} needs empty captions to have been trained: give a "
                "caption_dropout above 0, or guidance 1"
            )


class DALLETask(Task):
    """Next-token prediction over captions and the codes of their pictures."""

    name = "dalle"

    def __init__(self, recipe: Recipe, encoded: Encoded, words: Words) -> None:
        super().__init__(recipe, seeded(lambda: DALLE(recipe.model), recipe.engine.seed))
        self.encoded = self.made = encoded
        self.train, self.val, self.codes = encoded.train, encoded.val, encoded.codes
        self.tokenizer, self.known = words.tokenizer, words.known

    def tokens(self, captions: list[str]) -> Tensor:
        """Captions as the stream reads them; too long ones are cut."""
        length = self.model.config.text_length
        return self.tokenizer(captions, length, truncate=True, start_and_end=False)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Codes of pictures and a caption for each; some captions are dropped."""
        rng = draws(self.seed, step)
        indices = batch_indices(len(self.codes), self.batch_size, step, seed=self.seed)
        captions = self.train.captions(indices % self.encoded.pictures, rng)
        dropped = rng.random(len(indices)) < self.training.caption_dropout
        captions = ["" if d else c for c, d in zip(captions, dropped, strict=True)]
        codes = self.codes[torch.from_numpy(indices[rows])].long()
        # differs from the paper: captions are read without BPE dropout.
        return {"text": self.tokens(captions[rows]), "codes": codes}

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """1/8 text and 7/8 image."""
        return self.model.loss(batch["text"], batch["codes"])

    @torch.no_grad()
    def evaluate(self, model: DALLE) -> dict[str, float]:
        """Losses on unseen pairs."""
        device = model.rows.device
        codes = unseen_codes(self.encoded, device)
        n = len(codes)
        text = self.tokens([self.val.all_captions(i)[0] for i in range(n)])
        sums = {"val_text_loss": 0.0, "val_image_loss": 0.0}
        for t, c in zip(text.split(64), codes.split(64), strict=True):
            _, parts = model.loss(t.to(device), c.long().to(device))
            for name, value in parts.items():
                sums[f"val_{name}"] += float(value) * len(t) / n
        return sums

    @torch.no_grad()
    def sample(self, model: DALLE, step: int) -> Tensor:
        """Pictures drawn for 16 unseen captions; of pairs the second, below the given first."""
        device = model.rows.device
        captions = [self.val.all_captions(i % len(self.val))[0] for i in range(16)]
        model.tokenizer, model.words = self.tokenizer, self.known
        model.painter = Painter(self.encoded.vqgan)
        first = None
        if model.config.pictures > 1:
            pairs = torch.from_numpy(self.val.images(np.arange(16) % len(self.val)))
            first = pairs[:, :, : pairs.shape[3]]  # (16, 3, S, S)
        pictures = model.draw(
            captions,
            Request(generator=torch.Generator(device).manual_seed(self.seed)),
            SamplingConfig(self.training.temperature, guidance=self.training.guidance),
            given=Given(first=first),
            truncate=True,
            allow_unseen=True,
        ).cpu()
        return tile(pictures if first is None else torch.cat([first, pictures], dim=2), 8)

    def config(self) -> dict[str, Any]:
        """The model's configuration, how it is sampled, and what else shaped the training."""
        names = ("temperature", "guidance")
        sampling = {name: getattr(self.training, name) for name in names}
        return {**super().config(), "sampling": sampling}

    def save_files(self, out: Path) -> None:
        """The tokenizer, and a copy of the VQGAN: the run works wherever it is moved."""
        write_atomically(out / "tokenizer.json", self.tokenizer.save)
        write_atomically(out / "words.json", self.known.save)
        copy_vqgan(self.encoded, out)
