"""A data source's pictures as CLIP's embeddings: what unCLIP's parts are trained on.

`opening.embed_data` makes them, once. Unit vectors (N, E) out. Read `uses/embedding.py` before.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from minimodal.clip import CLIP
from minimodal.data.sources import DataSource
from minimodal.training.tasks.cached import copy_files
from minimodal.training.tasks.common import draws
from minimodal.training.tasks.unseen import EVALUATION_PICTURES
from minimodal.uses.embedding import embed_captions, embed_source

SUMMARIES = 2048  # captions whose embeddings' statistics are taken


class Embedded(NamedTuple):
    """A trained CLIP and what it makes of a data source.

    embeddings: (N, E) float32 unit vectors of the training pictures; mirror images, if any, behind
    """

    train: DataSource
    val: DataSource
    clip: CLIP
    run: Path  # of the CLIP
    digest: str  # of its weights
    embeddings: Tensor
    pictures: int  # that the embeddings are of, mirror images not counted

    def inputs(self) -> dict[str, Any]:
        """What a training on the embeddings depends on."""
        data = self.train.fingerprint()
        return {"pictures": len(self.embeddings), "clip": self.digest, "data": data}


def unseen_embeddings(embedded: Embedded) -> Tensor:
    """The embeddings of the pictures that scores are measured on.

    returns: (N, E) float32
    """
    n = min(EVALUATION_PICTURES, len(embedded.val))
    return embed_source(embedded.clip, embedded.val, n)


def caption_embeddings(embedded: Embedded, seed: int) -> Tensor:
    """CLIP's embeddings of some of the training's captions, for their statistics.

    returns: (N, E) unit vectors
    """
    numbers = np.arange(min(SUMMARIES, embedded.pictures))
    captions = embedded.train.captions(numbers, draws(seed, 0))
    return embed_captions(embedded.clip, captions).cpu()


def copy_clip(embedded: Embedded, out: Path) -> None:
    """Copy the CLIP into the run `out`, which then works wherever it is moved."""
    names = ("config.json", "model.safetensors", "tokenizer.json", "words.json")
    copy_files(embedded.run, out / "clip", *names)
