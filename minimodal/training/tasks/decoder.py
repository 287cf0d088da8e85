"""The training of unCLIP's decoder: take noise away from pictures.

Pictures come from the data source, their embeddings were made once by a trained CLIP. Read
`minimodal/unclip/decoder.py` before.
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minimodal.blocks.diffusion import Sampler, training_times
from minimodal.blocks.painter import Painter
from minimodal.blocks.pixels import to_float
from minimodal.data.sources import DataSource, batch_indices
from minimodal.errors import UserError, check_range
from minimodal.training.contract import Recipe, Task
from minimodal.training.tasks.codes import Encoded, copy_vqgan
from minimodal.training.tasks.common import draws, flip_some, seeded
from minimodal.training.tasks.embeddings import (
    Embedded,
    caption_embeddings,
    copy_clip,
    unseen_embeddings,
)
from minimodal.training.tasks.unseen import tile
from minimodal.unclip.decoder import Conditions, Decoder, read_captions, tell
from minimodal.uses.embedding import embed_source


@dataclass(frozen=True)
class DecoderTraining:
    """What a decoder's training has beyond the engine's settings."""

    pool: int = 65_536  # pictures embedded at the start, at most
    flip: bool = False  # the pool holds every picture and its mirror image
    embedding_dropout: float = 0.1  # share of pictures whose embedding is left out
    caption_dropout: float = 0.5  # share of pictures whose caption is
    # differs from the paper: noise of a told level in the embedding (Rombach's Stable unCLIP), so
    # that what a prior makes of a caption, which is never quite an embedding, is no surprise.
    embedding_noise: float = 0.5  # its deviation at most, where the embedding's own is 1
    vqgan: str = ""  # a trained VQGAN, whose codes are diffused instead of pixels
    guidance: float = 1.0  # that generate.py samples with by default
    sampler: str = "2m"  # that generate.py samples by by default
    sampling_steps: int = 16  # that generate.py takes by default

    def __post_init__(self) -> None:
        check_range(self, 1, inf, "pool")
        check_range(self, 0, 1, "embedding_dropout", "caption_dropout")
        check_range(self, 0, 4, "embedding_noise")
        self.sampling.check()
        if self.guidance != 1 and not self.embedding_dropout * self.caption_dropout:
            raise UserError(
                f"guidance {self.guidance} needs pictures of which nothing is told to have been "
                "trained: give both dropouts above 0, or guidance 1"
            )

    @property
    def sampling(self) -> Sampler:
        """How generate.py samples by default."""
        return Sampler(self.sampler, self.sampling_steps, guidance=self.guidance)


class DecoderTask(Task):
    """Denoising of pictures that are told by embedding and caption."""

    name = "decoder"

    def __init__(
        self, recipe: Recipe, embedded: Embedded, pictures: tuple[DataSource, DataSource],
        encoded: Encoded | None,
    ) -> None:  # fmt: skip
        """pictures: for training and unseen ones, of the size that is drawn
        encoded: the codes that are diffused instead of pixels, if any
        """
        model = seeded(lambda: Decoder(recipe.model), recipe.engine.seed)
        super().__init__(recipe, model)
        self.train, self.val = pictures
        self.embedded, self.encoded = embedded, encoded
        model.space.learn(embedded.embeddings, recipe.model.scale)
        if recipe.model.captions:
            model.summaries.learn(caption_embeddings(embedded, self.seed), "standard")
        if encoded is not None:
            some = self.code_vectors(encoded.codes[:4096]).cpu()
            model.latents.learn(rearrange(some, "B C h w -> (B h w) C"), "standard")

    def code_vectors(self, codes: Tensor) -> Tensor:
        """What stands for codes.

        codes: (B, h, w) integers
        returns: (B, C, h, w)
        """
        vqgan = self.encoded.vqgan
        return vqgan.quantizer.vectors(codes.long().to(vqgan.last_layer.device))

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Pictures (or their codes), embeddings, captions, and all random numbers of the step."""
        rng, c = draws(self.seed, step), self.model.config
        N, B, n = len(self.embedded.embeddings), self.batch_size, self.embedded.pictures
        indices = batch_indices(N, B, step, seed=self.seed)
        captions = self.train.captions(indices % n, rng)
        dropped = rng.random((B, 3)) < (
            self.training.embedding_dropout, self.training.caption_dropout, 0
        )  # fmt: skip
        numbers = rng.random((B, 2), dtype=np.float32)
        noise = rng.standard_normal((B, *c.shape), dtype=np.float32)[rows]
        shift = rng.standard_normal((B, c.embed_width), dtype=np.float32)[rows]
        mine = indices[rows]
        found = {
            "embedding": self.embedded.embeddings[torch.from_numpy(mine)],
            "tokens": self.embedded.clip.tokenize(captions[rows], truncate=True),
            "embedded": torch.from_numpy(~dropped[rows, 0]),
            "captioned": torch.from_numpy(~dropped[rows, 1]),
            "numbers": torch.from_numpy(numbers[rows]),
            "noise": torch.from_numpy(noise),
            "shift": torch.from_numpy(shift),
        }
        if self.encoded is not None:
            return found | {"codes": self.encoded.codes[torch.from_numpy(mine)].long()}
        images = flip_some(self.train.images(mine % n), mine >= n)
        return found | {"images": torch.from_numpy(images)}

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of what is said of noised pictures."""
        model = self.model
        x = self.clean(batch)  # (B, C, H, W)
        level = batch["numbers"][:, 1] * self.training.embedding_noise  # (B,)
        embedding = model.space.standardize(batch["embedding"]) + level[:, None] * batch["shift"]
        caption = read_captions(self.embedded.clip, batch["tokens"])
        told = Conditions(embedding, level, *caption, batch["embedded"], batch["captioned"])
        t = training_times(batch["numbers"][:, 0], model.config)
        return model.loss(x, told, noise=batch["noise"], t=t), {}

    def clean(self, batch: dict) -> Tensor:
        """What is diffused: pictures, or standardised code vectors.

        returns: (B, C, H, W)
        """
        if "codes" in batch:
            return self.model.latents.standardize(self.code_vectors(batch["codes"]))
        return to_float(batch["images"])

    @torch.no_grad()
    def evaluate(self, model: Decoder) -> dict[str, float]:
        """The loss on unseen pictures, with everything told and nothing left out."""
        z = unseen_embeddings(self.embedded)
        rng, c, sums = draws(self.seed, 0), model.config, 0.0
        device = model.no_embedding.device
        for start in range(0, len(z), 64):
            numbers = np.arange(start, min(start + 64, len(z)))
            pictures = torch.from_numpy(self.val.images(numbers)).to(device)
            x = model.encode(pictures, self.painter)
            told = self.told([self.val.all_captions(i)[0] for i in numbers], z[numbers], model)
            told = told._replace(embedding=model.space.standardize(told.embedding))
            noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(device)
            u = torch.from_numpy(rng.random(len(x), dtype=np.float32)).to(device)
            loss = model.loss(x, told, noise=noise, t=training_times(u, c))
            sums += float(loss) * len(numbers) / len(z)
        return {"val_loss": sums}

    @property
    def painter(self) -> Painter | None:
        """The VQGAN that decodes code vectors."""
        return None if self.encoded is None else Painter(self.encoded.vqgan)

    def told(self, captions: list[str], embeddings: Tensor, model: Decoder) -> Conditions:
        """All that can be told of pictures."""
        device = model.no_embedding.device
        tokens = self.embedded.clip.tokenize(captions, truncate=True).to(device)
        return tell(embeddings.to(device), read_captions(self.embedded.clip.to(device), tokens))

    @torch.no_grad()
    def sample(self, model: Decoder, step: int) -> Tensor:
        """16 unseen pictures, and below each what their embeddings and captions are decoded to."""
        device, numbers = model.no_embedding.device, np.arange(16) % len(self.val)
        pictures = torch.from_numpy(self.val.images(numbers))
        z = embed_source(self.embedded.clip, self.embedded.val, min(16, len(self.val)))
        told = self.told([self.val.all_captions(i)[0] for i in numbers], z[numbers], model)
        generator = torch.Generator(device).manual_seed(self.seed)
        x = model.draw(told, self.training.sampling, generator=generator)
        drawn = model.decode(x, self.painter).cpu()
        rows = torch.stack([pictures.unflatten(0, (2, 8)), drawn.unflatten(0, (2, 8))], dim=1)
        return tile(rows.flatten(0, 2), 8)

    def inputs(self) -> dict[str, Any]:
        """The data, the CLIP that made embeddings of it, and the VQGAN that made codes."""
        codes = {} if self.encoded is None else {"vqgan_digest": self.encoded.digest}
        return self.embedded.inputs() | codes

    def config(self) -> dict[str, Any]:
        """The model's configuration, how it is sampled, and what else shaped the training."""
        how = self.training.sampling
        sampling = {name: getattr(how, name) for name in ("name", "steps", "guidance")}
        return {**super().config(), "sampling": sampling}

    def save_files(self, out: Path) -> None:
        """Copies of the CLIP and the VQGAN: the run works wherever it is moved."""
        copy_clip(self.embedded, out)
        if self.encoded is not None:
            copy_vqgan(self.encoded, out)
