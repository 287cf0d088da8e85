"""CLIP's training: each picture of the global batch against each caption of it.

Global means over all processes and all micro-batches of a step: the embeddings of other processes
are gathered, with gradients, and several micro-batches are what `gradcache.py` is about.

Read `minimodal/clip.py` before. Whether a batch holds captions that differ in little (hard
negatives) is a matter of the data source, which keeps groups of pictures together.
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.contrastive import difference_loss
from minimodal.blocks.contrastive_rows import Everyone, gathered_loss
from minimodal.clip import CLIP, contrastive_loss
from minimodal.data.preprocessing import normalize
from minimodal.data.sources import DataSource, batch_indices
from minimodal.errors import UserError, check_choice, check_range
from minimodal.files import write_atomically
from minimodal.training.captions import Words
from minimodal.training.contract import Recipe, Task
from minimodal.training.tasks.common import draws, flip_some, seeded
from minimodal.training.tasks.gradcache import embed_ahead, pulled
from minimodal.training.tasks.unseen import clip_scores, similarities

# differs from the paper: large batches get the loss some rows of logits at a time, so that the
# memory does not grow with the batch's square.
LOGITS = 2**21  # more than these are made some rows at a time


@dataclass(frozen=True)
class CLIPTraining:
    """What CLIP's training has beyond the engine's settings."""

    vocab: int = 2048  # at most so many tokens; fewer where the captions have fewer words
    max_text_length: int = 48  # tokens, start and end included; longer captions are cut
    flip: bool = False  # mirror half of the pictures
    shift: int = 0  # move pictures by up to so many pixels, edges repeated
    same_class: bool = False  # captions of one class are positives of each other
    loss: str = "softmax"  # softmax (CLIP) or sigmoid (SigLIP)
    loss_rows: int = 0  # rows of logits at a time; 0: all, or two million logits if more
    difference_weight: float = 0.0  # of the loss on differences between neighbours of the batch

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, ("softmax", "sigmoid"))
        check_range(self, 0, inf, "shift", "loss_rows", "difference_weight")


def shift_all(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Move each picture down and to the right; what comes in is the edge, repeated.

    images: (B, 3, H, W) pictures
    shifts: (B, 2) int64 pixels, negative for up and left
    returns: (B, 3, H, W)
    """
    H, W = images.shape[2:]
    y = (np.arange(H) - shifts[:, :1]).clip(0, H - 1)  # (B, H)
    x = (np.arange(W) - shifts[:, 1:]).clip(0, W - 1)  # (B, W)
    moved = np.take_along_axis(images, y[:, None, :, None], axis=2)
    return np.take_along_axis(moved, x[:, None, None, :], axis=3)


class CLIPTask(Task):
    """Symmetric cross-entropy over the captions and pictures of the global batch."""

    name = "clip"

    def __init__(self, recipe: Recipe, train: DataSource, val: DataSource, words: Words) -> None:
        training, batch_size = recipe.training, recipe.engine.batch_size
        if training.difference_weight > 0 and batch_size % 4:
            raise UserError(f"batch_size {batch_size}: difference_weight needs a multiple of 4")
        if training.same_class and train.labels is None:
            raise UserError(f"same_class: the pictures of {train.name} have no classes")
        super().__init__(recipe, seeded(lambda: CLIP(recipe.model), recipe.engine.seed))
        self.train, self.val = train, val
        self.tokenizer, self.known = words.tokenizer, words.known

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
        if self.training.shift > 0:
            most = self.training.shift
            images = shift_all(images, rng.integers(-most, most + 1, (len(indices), 2))[rows])
        captions = self.train.captions(indices, rng)
        # differs from the paper: where ten classes fill a batch with right answers (CIFAR), all
        # pictures of a class are positives of its captions (`--same-class yes`).
        if self.training.same_class:
            numbers = self.train.labels[indices]
        else:
            _, numbers = np.unique(captions, return_inverse=True)
        return {
            "images": torch.from_numpy(np.ascontiguousarray(images)),
            "tokens": self.tokens(captions[rows]),
            "captions": torch.from_numpy(numbers[rows].astype(np.int64)),
        }

    def embed(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Pictures and captions of a micro-batch, not normalised.

        returns: (b, E) float32, (b, E) float32
        """
        image = self.model.encode_image(normalize(batch["images"])).float()  # (b, E)
        return image, self.model.encode_text(batch["tokens"]).float()

    def objective(
        self, image: Tensor, text: Tensor, captions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's pairs against those of all processes, and its parts.

        image: (b, E) picture embeddings
        text: (b, E) caption embeddings
        captions: (b,) int64, equal where captions are equal
        """
        model, training = self.model, self.training
        scale = model.logit_scale.exp()
        everyone = Everyone(*map(self.gather, (image, text, captions)))
        most = LOGITS if image.device.type == "cpu" else 64 * LOGITS  # a GPU wants larger pieces
        B = len(everyone.image)
        rows = training.loss_rows or (max(1, most // B) if len(image) * B > most else 0)
        if everyone.image is image and not rows and training.loss == "softmax":
            loss = contrastive_loss(image, text, scale, captions=captions)
        else:  # several processes, more logits than fit into memory, or SigLIP's loss
            bias = model.logit_bias if training.loss == "sigmoid" else None
            loss = gathered_loss(
                image, text, scale, bias, captions=captions, everyone=everyone, rows=rows
            )
        metrics = {"logit_scale": scale.detach().squeeze(), "contrastive": loss.detach()}
        if training.difference_weight > 0:
            # differs from the paper: on the Shapes world a second loss compares differences between
            # neighbours of a batch (`contrastive.difference_loss`): it reads who is left of whom
            # sooner, recall@1 98.7 instead of 95.3 % after 1,500 steps.
            differences = difference_loss(everyone.image, everyone.text, scale)
            loss = loss + training.difference_weight * differences
            metrics["differences"] = differences.detach()
        return loss, metrics

    def before_step(self, step: int, batches: list[dict]) -> None:
        """Find how the loss of several micro-batches pulls at the embeddings of each."""
        if len(batches) > 1:
            scalars = [p for p in (self.model.logit_scale, self.model.logit_bias) if p is not None]
            self.whole(lambda: embed_ahead(batches, self.embed, self.objective, scalars=scalars))

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's pairs against those of all processes."""
        image, text = self.embed(batch)
        if self.training.difference_weight > 0 and len(image) % 4:
            raise UserError(
                f"difference_weight needs micro-batches of 4, 8, … rows, these have {len(image)}: "
                "choose another --batch-size or a smaller --accumulate"
            )
        if "ahead" in batch:  # one of several micro-batches
            return pulled(image, text, batch["ahead"])
        return self.objective(image, text, batch["captions"])

    def after_step(self, step: int, batches: list[dict]) -> dict[str, Tensor | float]:
        """Keep the temperature in bounds."""
        self.model.clamp_temperature()
        return {}

    def evaluate(self, model: CLIP) -> dict[str, float]:
        """Zero-shot accuracy where the data has classes, else retrieval among unseen pairs."""
        model.tokenizer = self.tokenizer
        return clip_scores(model, self.val)

    def sample(self, model: CLIP, step: int) -> Tensor:
        """Similarities of 24 pictures (rows) and their captions (columns), dark to bright."""
        model.tokenizer = self.tokenizer
        return similarities(model, self.val)

    def save_files(self, out: Path) -> None:
        """The tokenizer and the known words."""
        write_atomically(out / "tokenizer.json", self.tokenizer.save)
        write_atomically(out / "words.json", self.known.save)
