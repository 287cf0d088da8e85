"""Many pictures or captions through CLIP: unit vectors, whose products are cosines.

uint8 pictures (N, 3, H, W), a data source or captions in, (N, E) out. Read `clip.py` before.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minimodal.clip import CLIP
from minimodal.data.preprocessing import normalize
from minimodal.data.sources import DataSource, first_pictures


@torch.no_grad()
def embed_pictures(clip: CLIP, images: Tensor) -> Tensor:
    """Unit vectors of pictures.

    images: (N, 3, H, W) uint8
    returns: (N, E)
    """
    device, size = clip.logit_scale.device, clip.config.image_size
    if images.shape[2:] != (size, size):  # an original CLIP reads larger ones than we draw
        pictures = (Image.fromarray(one.permute(1, 2, 0).cpu().numpy()) for one in images)
        parts = torch.stack([clip.preprocess(picture) for picture in pictures]).split(256)
    else:
        parts = (normalize(part.to(device), clip.reading) for part in images.split(256))
    found = [clip.encode_image(part.to(device)) for part in parts]
    return F.normalize(torch.cat(found), dim=-1)


def embed_source(
    clip: CLIP, source: DataSource, n: int | None = None, *, flip: bool = False
) -> Tensor:
    """Unit vectors of a source's first n pictures, of all by default, on the CPU.

    returns: (N, E) float32; with flip those of the mirror images follow, N = 2 n
    """
    parts = first_pictures(source, len(source) if n is None else n, some=256, flip=flip)
    return torch.cat([embed_pictures(clip, part).float().cpu() for part in parts])


@torch.no_grad()
def embed_captions(clip: CLIP, texts: list[str]) -> Tensor:
    """Unit vectors of captions.

    returns: (N, E)
    """
    tokens = clip.tokenize(texts, truncate=True).to(clip.logit_scale.device)
    return F.normalize(torch.cat([clip.encode_text(x) for x in tokens.split(256)]), dim=-1)
