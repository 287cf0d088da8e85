"""Pictures as CLIP's embeddings, once: what unCLIP's parts are trained on.

uint8 pictures (B, 3, H, W) of a data source in, unit vectors (N, E) out, kept in a file beside the
CLIP. Read `minimodal/clip.py` and `tasks/codes.py` before.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimodal.clip import CLIP, embed_pictures
from minimodal.data.loading import DataSource


class Embedded(NamedTuple):
    """A trained CLIP and what it makes of a data source.

    embeddings: (N, E) float32 unit vectors of the training pictures
    """

    train: DataSource
    val: DataSource
    clip: CLIP
    run: Path  # where the CLIP is from: a run folder or an original checkpoint
    digest: str  # of its weights
    embeddings: Tensor

    @property
    def pictures(self) -> int:
        """How many the embeddings are of."""
        return len(self.embeddings)

    def inputs(self) -> dict[str, Any]:
        """What a training on the embeddings depends on."""
        data = self.train.fingerprint()
        return {"pictures": self.pictures, "clip": self.digest, "data": data}


@torch.no_grad()
def embed_source(clip: CLIP, source: DataSource, n: int) -> Tensor:
    """The embeddings of a source's first n pictures.

    returns: (N, E) float32 unit vectors
    """
    parts = []
    for start in range(0, n, 256):
        images = source.images(np.arange(start, min(start + 256, n)))
        parts.append(embed_pictures(clip, torch.from_numpy(np.ascontiguousarray(images))).cpu())
    return torch.cat(parts)
