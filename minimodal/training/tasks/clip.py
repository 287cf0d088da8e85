"""CLIP's training: each picture of the global batch against each caption of it.

Global means over all processes and all micro-batches of a step. The embeddings of other processes
are gathered, with gradients. Micro-batches are embedded twice (Gao et al. 2021, GradCache): once
without gradients, to know the loss and its derivative by each embedding, and once more, a
micro-batch at a time, to pass that derivative on to the weights. Both give the very gradient of
one large batch.

Read `minimodal/clip.py` before. Whether a batch holds captions that differ in little (hard
negatives) is a matter of the data source, which keeps groups of pictures together.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.blocks.contrastive import difference_loss
from minimodal.blocks.contrastive_rows import gathered_loss, rows_sigmoid
from minimodal.clip import (
    CLIP,
    class_embeddings,
    contrastive_loss,
    embed_captions,
    embed_pictures,
)
from minimodal.data.cifar import TEMPLATES, class_captions
from minimodal.data.loading import DataSource, batch_indices
from minimodal.data.preprocessing import normalize
from minimodal.errors import UserError
from minimodal.evaluation.metrics import recall_at_k, zero_shot_accuracy
from minimodal.files import write_atomically
from minimodal.training.captions import Words
from minimodal.training.contract import Recipe, Task
from minimodal.training.tasks.common import (
    EVALUATION_PICTURES,
    all_pictures,
    draws,
    flip_some,
    seeded,
    shift_all,
)

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
        if self.loss not in ("softmax", "sigmoid"):
            raise UserError(f"loss {self.loss}: expected softmax or sigmoid")
        for name in ("shift", "loss_rows", "difference_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} {getattr(self, name)}: expected 0 or more")


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
        all_image, all_text = self.gather(image), self.gather(text)  # (B, E) each
        others, B = self.gather(captions), len(all_image)
        most = LOGITS if image.device.type == "cpu" else 64 * LOGITS  # a GPU wants larger pieces
        rows = training.loss_rows or (max(1, most // B) if len(image) * B > most else 0)
        if training.loss == "sigmoid":
            queries, keys = F.normalize(image, dim=-1), F.normalize(all_text, dim=-1)
            loss = rows_sigmoid(
                queries, keys, scale, model.logit_bias,
                own=captions, others=others, rows=rows or B,
            )  # fmt: skip
        elif all_image is image and not rows:  # one process, and not too many logits
            loss = contrastive_loss(image, text, scale, captions=captions)
        else:
            columns = {"all_image": all_image, "all_text": all_text, "all_captions": others}
            loss = gathered_loss(image, text, scale, captions=captions, rows=rows, **columns)
        metrics = {"logit_scale": scale.detach().squeeze(), "contrastive": loss.detach()}
        if training.difference_weight > 0:
            # differs from the paper: on the Shapes world a second loss compares differences between
            # neighbours of a batch (`contrastive.difference_loss`): it reads who is left of whom
            # sooner, recall@1 98.7 instead of 95.3 % after 1,500 steps.
            differences = difference_loss(all_image, all_text, scale)
            loss = loss + training.difference_weight * differences
            metrics["differences"] = differences.detach()
        return loss, metrics

    def before_step(self, step: int, batches: list[dict]) -> None:
        """With several micro-batches: the loss of all of them, and its derivative by each
        embedding, by the temperature and by the bias."""
        if len(batches) > 1:
            self.whole(lambda: self.embed_ahead(batches))

    def embed_ahead(self, batches: list[dict]) -> None:
        """Leave in each micro-batch how the loss of all of them pulls at its embeddings."""
        # differs from the paper: micro-batches are embedded twice (GradCache, Gao et al. 2021), so
        # that `--accumulate` does not change the loss.
        pairs = [self.embed(batch) for batch in batches]
        image, text = (torch.cat(tensors).requires_grad_() for tensors in zip(*pairs, strict=True))
        numbers = torch.cat([batch["captions"] for batch in batches])
        scalars = [p for p in (self.model.logit_scale, self.model.logit_bias) if p is not None]
        with torch.enable_grad():
            loss, metrics = self.objective(image, text, numbers)
            d_image, d_text, *d_scalars = torch.autograd.grad(loss, [image, text, *scalars])
        size = len(batches[0]["captions"])
        parts = zip(d_image.split(size), d_text.split(size), strict=True)
        for batch, (d_i, d_t) in zip(batches, parts, strict=True):
            batch["pulls"] = (d_i, d_t, scalars, d_scalars, len(batches), loss.detach(), metrics)

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's pairs against those of all processes."""
        image, text = self.embed(batch)
        if self.training.difference_weight > 0 and len(image) % 4:
            raise UserError(
                f"difference_weight needs micro-batches of 4, 8, … rows, these have {len(image)}: "
                "choose another --batch-size or a smaller --accumulate"
            )
        if "pulls" not in batch:
            return self.objective(image, text, batch["captions"])
        d_image, d_text, scalars, d_scalars, count, value, metrics = batch["pulls"]
        # Linear in the embeddings, with the loss's own derivatives as slopes. The engine takes the
        # mean over the micro-batches: theirs add up, the temperature's must count once.
        pulled = count * ((image * d_image).sum() + (text * d_text).sum())
        for scalar, slope in zip(scalars, d_scalars, strict=True):
            pulled = pulled + (scalar * slope).sum()
        return value + pulled - pulled.detach(), metrics

    def after_step(self, step: int, batches: list[dict]) -> dict[str, Tensor | float]:
        """Keep the temperature in bounds."""
        self.model.clamp_temperature()
        return {}

    @torch.no_grad()
    def evaluate(self, model: CLIP) -> dict[str, float]:
        """Zero-shot accuracy where the data has classes, else retrieval among unseen pairs."""
        model.tokenizer = self.tokenizer
        pictures = torch.from_numpy(all_pictures(self.val, 2 * EVALUATION_PICTURES))
        image = embed_pictures(model, pictures)
        if self.val.class_names is not None:
            names = [class_captions(name)[0] for name in self.val.class_names]  # "an airplane"
            classes = class_embeddings(model, names, list(TEMPLATES))
            labels = torch.from_numpy(self.val.labels[: len(image)]).to(image.device)
            return {"val_zero_shot": zero_shot_accuracy(image @ classes.T, labels)}
        captions = [self.val.all_captions(i)[0] for i in range(len(image))]
        # Pictures with the same caption cannot be told apart by it: one of each is kept.
        first = np.sort(np.unique(captions, return_index=True)[1])[:256]
        text = embed_captions(model, [captions[i] for i in first])
        by_image, by_text = recall_at_k(image[torch.from_numpy(first)], text, 1)
        return {"val_recall_at_1_image": by_image, "val_recall_at_1_text": by_text}

    @torch.no_grad()
    def sample(self, model: CLIP, step: int) -> Tensor:
        """Similarities of 24 pictures (rows) and their captions (columns), dark to bright."""
        images = torch.from_numpy(all_pictures(self.val, 24))
        captions = [self.val.all_captions(i)[0] for i in range(len(images))]
        model.tokenizer = self.tokenizer
        text = embed_captions(model, captions)
        similarity = (embed_pictures(model, images) @ text.T).cpu()  # (24, 24)
        low, high = similarity.min(), similarity.max()
        levels = ((similarity - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
        return levels.repeat_interleave(10, 0).repeat_interleave(10, 1).expand(3, -1, -1)

    def save_files(self, out: Path) -> None:
        """The tokenizer and the known words."""
        write_atomically(out / "tokenizer.json", self.tokenizer.save)
        write_atomically(out / "words.json", self.known.save)
