"""Many pictures or captions through CLIP: unit vectors, whose products are cosines.

uint8 pictures (N, 3, H, W) or captions in, (N, E) out, on the CLIP's device. Read
`minimodal/clip.py` before.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minimodal.clip import CLIP
from minimodal.data.preprocessing import normalize


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


@torch.no_grad()
def embed_captions(clip: CLIP, texts: list[str]) -> Tensor:
    """Unit vectors of captions.

    returns: (N, E)
    """
    tokens = clip.tokenize(texts, truncate=True).to(clip.logit_scale.device)
    return F.normalize(torch.cat([clip.encode_text(x) for x in tokens.split(256)]), dim=-1)
