"""Training of VQGAN's second stage: next-code prediction, with or without a class.

A trained VQGAN turns the pictures into codes once. Read `minimodal/vqgan_prior.py` before.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.pixels import to_uint8
from minimodal.blocks.sampling import SamplingConfig
from minimodal.data.sources import DataSource, batch_indices
from minimodal.errors import check_range
from minimodal.training.contract import Phase, Recipe, Task
from minimodal.training.tasks.codes import Encoded, copy_vqgan, unseen_codes
from minimodal.training.tasks.common import draws, seeded
from minimodal.training.tasks.unseen import tile
from minimodal.vqgan_prior import VQGANPrior


@dataclass(frozen=True)
class VQGANPriorTraining:
    """What the prior's training has beyond the engine's settings."""

    labels: bool = True  # say the class, where the data has classes
    class_dropout: float = 0.1  # share of classes left unsaid, for classifier-free guidance
    pool: int = 65_536  # pictures tokenised at the start, at most
    flip: bool = False  # the pool holds every picture and its mirror image
    temperature: float = 1.0  # that generate.py samples at by default
    guidance: float = 1.0  # that generate.py samples with by default

    def __post_init__(self) -> None:
        check_range(self, 1, math.inf, "pool")
        check_range(self, 0, 1, "class_dropout")
        SamplingConfig(temperature=self.temperature, guidance=self.guidance)  # checks them


class VQGANPriorTask(Task):
    """Next-code prediction over the codes of pictures."""

    name = "vqgan-prior"

    def __init__(self, recipe: Recipe, encoded: Encoded) -> None:
        super().__init__(recipe, seeded(lambda: VQGANPrior(recipe.model), recipe.engine.seed))
        self.phases = (Phase("prior", (self.model,)),)
        self.encoded = self.made = encoded
        self.train, self.val, self.codes = encoded.train, encoded.val, encoded.codes
        self.names = list(encoded.train.class_names or []) if recipe.model.classes else []

    def labels(self, source: DataSource, numbers: np.ndarray) -> np.ndarray:
        """The classes of pictures, -1 where none is said.

        numbers: (n,) int64 of pictures
        returns: (n,) int64
        """
        if not self.names:
            return np.full(len(numbers), -1)
        return np.asarray(source.labels)[numbers]

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """True codes, what is read instead of them, and classes, some of which are dropped."""
        config, rng = self.model.config, draws(self.seed, step)
        indices = batch_indices(len(self.codes), self.batch_size, step, seed=self.seed)
        labels = self.labels(self.train, indices % self.encoded.pictures)
        dropped = rng.random(len(indices)) < self.training.class_dropout
        labels = np.where(dropped, -1, labels)[rows]
        codes = self.codes[torch.from_numpy(indices[rows])].long()  # (b, h, w)
        shape = (len(indices), config.grid, config.grid)
        kept = torch.from_numpy((rng.random(shape) < config.pkeep)[rows])
        noise = torch.from_numpy(rng.integers(config.codes, size=shape)[rows])
        read = torch.where(kept, codes, noise)
        return {"codes": codes, "read": read, "labels": torch.from_numpy(labels)}

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over codes."""
        return self.model.loss(batch["codes"], batch["labels"], replaced=batch["read"]), {}

    @torch.no_grad()
    def evaluate(self, model: VQGANPrior) -> dict[str, float]:
        """The loss on unseen pictures, in nats and in bits a code."""
        device = model.positions.device
        codes = unseen_codes(self.encoded, device)
        n = len(codes)
        labels = torch.from_numpy(self.labels(self.val, np.arange(n)))
        total = 0.0
        for part, said in zip(codes.split(64), labels.split(64), strict=True):
            loss = model.loss(part.long().to(device), said.to(device))
            total += float(loss) * len(part) / n
        return {"val_loss": total, "val_bits_per_code": total / math.log(2)}

    @torch.no_grad()
    def sample(self, model: VQGANPrior, step: int) -> Tensor:
        """Two pictures of each of the first classes, or sixteen of anything."""
        device = model.positions.device
        labels = torch.arange(min(len(self.names), 16) or 16).repeat_interleave(2)[:32]
        labels = labels.to(device) if self.names else torch.full((16,), -1, device=device)
        guidance = self.training.guidance if self.names else 1.0
        codes = model.generate_codes(
            labels,
            generator=torch.Generator(device).manual_seed(self.seed),
            sampling=SamplingConfig(self.training.temperature, guidance=guidance),
        )
        pictures = self.encoded.vqgan.to(device).decode_indices(codes)
        pictures = to_uint8(pictures).cpu()
        return tile(pictures, 8 if len(pictures) % 8 == 0 else 2)

    def config(self) -> dict[str, Any]:
        """The model's configuration, how it is sampled, and what else shaped the training."""
        guidance = self.training.guidance if self.names else 1.0
        sampling = {"temperature": self.training.temperature, "guidance": guidance}
        return {**super().config(), "class_names": self.names, "sampling": sampling}

    def save_files(self, out: Path) -> None:
        """A copy of the VQGAN: the run works wherever it is moved."""
        copy_vqgan(self.encoded, out)
