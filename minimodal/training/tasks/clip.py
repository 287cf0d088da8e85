"""CLIP's training: symmetric cross-entropy over the pictures and captions of the global batch.

Read `minimodal/clip.py` before. Whether a batch holds captions that differ in little (hard
negatives) is a matter of the data source, which keeps groups of pictures together.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.clip import (
    CLIP,
    CLIPConfig,
    class_embeddings,
    contrastive_loss,
    difference_loss,
    embed_pictures,
    normalize,
)
from minimodal.data.cifar import TEMPLATES, class_captions
from minimodal.data.loading import DataSource, batch_indices
from minimodal.data.tokenizer import Tokenizer
from minimodal.errors import UserError
from minimodal.evaluation.metrics import recall_at_k, zero_shot_accuracy
from minimodal.training.contract import Phase
from minimodal.training.tasks.common import (
    EVALUATION_PICTURES,
    all_pictures,
    draws,
    flip_some,
    identity,
    seeded,
)


@dataclass(frozen=True)
class CLIPTraining:
    """What CLIP's training has beyond the engine's settings."""

    vocab: int = 2048  # at most so many tokens; fewer where the captions have fewer words
    max_text_length: int = 48  # tokens, start and end included; longer captions are cut
    flip: bool = False  # mirror half of the pictures
    difference_weight: float = 0.0  # of the loss on differences between neighbours of the batch


class CLIPTask:
    """Symmetric cross-entropy over the captions and pictures of the global batch."""

    name = "clip"

    def __init__(
        self,
        config: CLIPConfig,
        training: CLIPTraining,
        *,
        train: DataSource,
        val: DataSource,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
    ) -> None:
        if training.difference_weight > 0 and batch_size % 4:
            raise UserError(f"batch_size {batch_size}: difference_weight needs a multiple of 4")
        self.training, self.train, self.val = training, train, val
        self.batch_size, self.seed, self.tokenizer = batch_size, seed, tokenizer
        self.model = seeded(lambda: CLIP(config), seed)
        self.phases = (Phase("clip", (self.model,)),)
        self.extra: dict[str, nn.Module] = {}
        self.gather: Callable[[Tensor], Tensor] = identity

    def tokens(self, captions: list[str]) -> Tensor:
        """Captions as the text tower reads them; too long ones are cut."""
        return self.tokenizer(captions, self.model.config.text_length, truncate=True)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Pictures, a caption for each, and a number for each caption, equal where they are."""
        rng = draws(self.seed, step)
        indices = batch_indices(
            len(self.train), self.batch_size, step, seed=self.seed, group=self.train.group
        )
        images = self.train.images(indices[rows])
        if self.training.flip:
            images = flip_some(images, rng.random(len(indices))[rows] < 0.5)
        captions = self.train.captions(indices, rng)
        _, numbers = np.unique(captions, return_inverse=True)
        return {
            "images": torch.from_numpy(np.ascontiguousarray(images)),
            "tokens": self.tokens(captions[rows]),
            "captions": torch.from_numpy(numbers[rows].astype(np.int64)),
        }

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's pairs against those of all processes."""
        image = self.model.encode_image(normalize(batch["images"])).float()  # (b, E)
        text = self.model.encode_text(batch["tokens"]).float()  # (b, E)
        if self.training.difference_weight > 0 and len(image) % 4:
            raise UserError(
                f"difference_weight needs micro-batches of 4, 8, … rows, these have {len(image)}: "
                "choose another --batch-size or a smaller --accumulate"
            )
        scale = self.model.logit_scale.exp()
        all_image, all_text = self.gather(image), self.gather(text)  # (B, E)
        loss = contrastive_loss(
            image,
            text,
            scale,
            captions=batch["captions"],
            all_image=all_image,
            all_text=all_text,
            all_captions=self.gather(batch["captions"]),
        )
        metrics = {"logit_scale": scale.detach().squeeze(), "contrastive": loss.detach()}
        if self.training.difference_weight > 0:
            differences = difference_loss(all_image, all_text, scale)
            loss = loss + self.training.difference_weight * differences
            metrics["differences"] = differences.detach()
        return loss, metrics

    def after_step(self, step: int, batches: list[dict]) -> dict[str, Tensor | float]:
        """Keep the temperature in bounds."""
        self.model.clamp_temperature()
        return {}

    @torch.no_grad()
    def evaluate(self, model: CLIP) -> dict[str, float]:
        """Zero-shot accuracy where the data has classes, else retrieval among unseen pairs."""
        image = embed_pictures(
            model, torch.from_numpy(all_pictures(self.val, 2 * EVALUATION_PICTURES))
        )
        if self.val.class_names is not None:
            model.tokenizer = self.tokenizer
            names = [class_captions(name)[0] for name in self.val.class_names]  # "an airplane"
            classes = class_embeddings(model, names, list(TEMPLATES))
            labels = torch.from_numpy(self.val.labels[: len(image)]).to(image.device)
            return {"val_zero_shot": zero_shot_accuracy(image @ classes.T, labels)}
        captions = [self.val.all_captions(i)[0] for i in range(len(image))]
        # Pictures with the same caption cannot be told apart by it: one of each is kept.
        first = np.sort(np.unique(captions, return_index=True)[1])[:256]
        tokens = self.tokens([captions[i] for i in first]).to(image.device)
        text = F.normalize(model.encode_text(tokens), dim=-1)
        by_image, by_text = recall_at_k(image[torch.from_numpy(first)], text, 1)
        return {"val_recall_at_1_image": by_image, "val_recall_at_1_text": by_text}

    @torch.no_grad()
    def sample(self, model: CLIP, step: int) -> Tensor:
        """Similarities of 24 pictures (rows) and their captions (columns), dark to bright."""
        images = torch.from_numpy(all_pictures(self.val, 24))
        captions = [self.val.all_captions(i)[0] for i in range(len(images))]
        device = model.logit_scale.device
        text = F.normalize(model.encode_text(self.tokens(captions).to(device)), dim=-1)
        similarity = (embed_pictures(model, images) @ text.T).cpu()  # (24, 24)
        low, high = similarity.min(), similarity.max()
        levels = ((similarity - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
        return levels.repeat_interleave(10, 0).repeat_interleave(10, 1).expand(3, -1, -1)

    def config(self) -> dict[str, Any]:
        """The model's configuration and what else shaped the training."""
        training = {**asdict(self.training), "data": self.train.fingerprint()}
        return {**asdict(self.model.config), "training": training}

    def save_files(self, out: Path) -> None:
        """The tokenizer."""
        self.tokenizer.save(out / "tokenizer.json")
