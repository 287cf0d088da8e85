"""DALL·E's training: next-token prediction over captions and the codes of their pictures.

A trained VQGAN turns the pictures into codes once; training then never touches a pixel. Read
`minimodal/dalle.py` before.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minimodal.blocks.given import Given
from minimodal.blocks.painter import Request
from minimodal.blocks.sampling import SamplingConfig
from minimodal.dalle import DALLE, DALLEConfig
from minimodal.data.loading import DataSource, batch_indices
from minimodal.data.tokenizer import Tokenizer
from minimodal.data.words import KnownWords
from minimodal.errors import UserError
from minimodal.training.checkpoint import write_atomically
from minimodal.training.contract import Phase
from minimodal.training.tasks.codes import copy_vqgan, tokenize_pictures
from minimodal.training.tasks.common import (
    EVALUATION_PICTURES,
    draws,
    identity,
    seeded,
    tile,
)
from minimodal.vqgan import VQGAN


@dataclass(frozen=True)
class DALLETraining:
    """What DALL·E's training has beyond the engine's settings."""

    vocab: int = 2048
    max_text_length: int = 48  # tokens of a caption; longer ones are cut
    caption_dropout: float = 0.1  # share of captions left empty, for classifier-free guidance
    bpe_dropout: float = 0.0  # chance that a merge of the captions' tokens is left out
    pool: int = 65_536  # pictures tokenised at the start, at most
    flip: bool = False  # the pool holds every picture and its mirror image
    temperature: float = 1.0  # what generate.py uses by default; also the next
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise UserError(f"pool {self.pool}: expected at least 1")
        if self.max_text_length < 1:
            raise UserError(f"max_text_length {self.max_text_length}: expected at least 1")
        for name in ("caption_dropout", "bpe_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: expected 0 to 1")
        SamplingConfig(temperature=self.temperature, guidance=self.guidance)  # checks them
        if self.guidance != 1 and self.caption_dropout == 0:
            raise UserError(
                f"guidance {self.guidance} needs empty captions to have been trained: give a "
                "caption_dropout above 0, or guidance 1"
            )


class DALLETask:
    """Next-token prediction over captions and the codes of their pictures."""

    name = "dalle"

    def __init__(
        self,
        config: DALLEConfig,
        training: DALLETraining,
        *,
        train: DataSource,
        val: DataSource,
        tokenizer: Tokenizer,
        vqgan: VQGAN,
        vqgan_run: Path,
        vqgan_digest: str,
        codes: Tensor,
        batch_size: int,
        seed: int,
        words: KnownWords | None = None,
    ) -> None:
        self.words = words or KnownWords()
        self.training, self.train, self.val = training, train, val
        self.batch_size, self.seed, self.tokenizer = batch_size, seed, tokenizer
        self.vqgan, self.vqgan_run, self.codes = vqgan, vqgan_run, codes
        self.vqgan_digest = vqgan_digest
        self.mirrors = 2 if training.flip else 1
        self.model = seeded(lambda: DALLE(config), seed)
        self.phases = (Phase("dalle", (self.model,)),)
        self.extra: dict[str, nn.Module] = {}
        self.events: dict[str, int] = {}
        self.gather: Callable[[Tensor], Tensor] = identity

    def tokens(self, captions: list[str]) -> Tensor:
        """Captions as the stream reads them; too long ones are cut."""
        length = self.model.config.text_length
        return self.tokenizer(captions, length, truncate=True, start_and_end=False)

    def torn(self, captions: list[str], step: int, first: int) -> Tensor:
        """Captions of rows first, first + 1, … with some merges left out (BPE dropout).

        returns: (B, T) int64
        """
        # A generator for each row, so that N processes drop the same merges as one.
        return torch.cat(
            [
                self.tokenizer(
                    [caption],
                    self.model.config.text_length,
                    truncate=True,
                    start_and_end=False,
                    dropout=self.training.bpe_dropout,
                    rng=np.random.default_rng((self.seed, step, first + row)),
                )
                for row, caption in enumerate(captions)
            ]
        )

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Codes of pictures and a caption for each; some captions are dropped."""
        rng = draws(self.seed, step)
        indices = batch_indices(len(self.codes), self.batch_size, step, seed=self.seed)
        captions = self.train.captions(indices % (len(self.codes) // self.mirrors), rng)
        dropped = rng.random(len(indices)) < self.training.caption_dropout
        captions = ["" if d else c for c, d in zip(captions, dropped, strict=True)]
        codes = self.codes[torch.from_numpy(indices[rows])].long()
        whole = self.training.bpe_dropout == 0
        first = rows.start or 0
        text = self.tokens(captions[rows]) if whole else self.torn(captions[rows], step, first)
        return {"text": text, "codes": codes}

    def before_step(self, step: int, batches: list[dict]) -> None:
        """Nothing: each picture's loss is its own."""

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """1/8 text and 7/8 image."""
        return self.model.loss(batch["text"], batch["codes"])

    def after_step(self, step: int, batches: list[dict]) -> dict[str, Tensor | float]:
        """Nothing follows."""
        return {}

    @torch.no_grad()
    def evaluate(self, model: DALLE) -> dict[str, float]:
        """Losses on unseen pairs."""
        n = min(EVALUATION_PICTURES, len(self.val))
        device = model.rows.device
        codes = tokenize_pictures(self.vqgan.to(device), self.val, n=n, flip=False, device=device)
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
        model.tokenizer, model.words = self.tokenizer, self.words
        model.paint_with(self.vqgan)
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
        """The model's configuration and what else shaped the training."""
        sampling = {
            "temperature": self.training.temperature,
            "guidance": self.training.guidance,
        }
        training = {
            **asdict(self.training),
            "pictures": len(self.codes),
            "vqgan": self.vqgan_digest,  # so that resuming notices another VQGAN or other data
            "data": self.train.fingerprint(),
        }
        return {
            **asdict(self.model.config),
            "sampling": sampling,
            "training": training,
        }

    def save_files(self, out: Path) -> None:
        """The tokenizer, and a copy of the VQGAN: the run works wherever it is moved."""
        write_atomically(out / "tokenizer.json", self.tokenizer.save)
        write_atomically(out / "words.json", self.words.save)
        copy_vqgan(self.vqgan, self.vqgan_run, out)
