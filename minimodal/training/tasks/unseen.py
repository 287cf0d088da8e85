"""What a run says of pictures that it is not trained on: its scores, and a picture to look at.

A model, in eval mode, and a data source in; numbers, or one uint8 picture (3, H, W), out.
"""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minimodal.clip import CLIP
from minimodal.data.cifar import TEMPLATES, class_captions
from minimodal.data.sources import DataSource
from minimodal.evaluation.metrics import psnr, recall_at_k, usage, zero_shot_accuracy
from minimodal.evaluation.scoreboard import reconstruct
from minimodal.uses.embedding import embed_captions, embed_pictures
from minimodal.uses.zero_shot import class_embeddings
from minimodal.vqgan import VQGAN

EVALUATION_PICTURES = 512  # unseen ones that the scores of a run are measured on


def all_pictures(source: DataSource, n: int) -> np.ndarray:
    """The first n pictures of a source, or all if it has fewer.

    returns: (N, 3, H, W) uint8
    """
    return source.images(np.arange(min(n, len(source))))


def tile(pictures: Tensor, columns: int) -> Tensor:
    """Pictures side by side.

    pictures: (N, 3, H, W) uint8, N a multiple of the columns
    returns: (3, rows*H, columns*W) uint8
    """
    return rearrange(pictures, "(r c) C H W -> C (r H) (c W)", c=columns)


def vqgan_scores(model: VQGAN, source: DataSource) -> dict[str, float]:
    """PSNR, and how the codes are used."""
    images = torch.from_numpy(all_pictures(source, EVALUATION_PICTURES))
    again = reconstruct(model, images)
    scores = {"val_psnr": psnr(again.pictures, images)}
    parts = model.quantizer.factors(again.indices)
    for name, part, size in zip(("", "_2"), parts, model.config.codes, strict=False):
        used = usage(part, size)
        scores |= {f"codes_used{name}": used.share, f"perplexity{name}": used.perplexity}
    return scores


def reconstructions(model: VQGAN, source: DataSource) -> Tensor:
    """Pictures and their reconstructions side by side.

    returns: (3, H, W) uint8
    """
    images = torch.from_numpy(all_pictures(source, 32))
    images = images[: len(images) // 4 * 4] if len(images) >= 4 else images[:1]
    pairs = torch.stack([images, reconstruct(model, images).pictures], dim=1).flatten(0, 1)
    return tile(pairs, 8 if len(pairs) % 8 == 0 else 2)


@torch.no_grad()
def clip_scores(model: CLIP, source: DataSource) -> dict[str, float]:
    """Zero-shot accuracy where the data has classes, else retrieval."""
    pictures = torch.from_numpy(all_pictures(source, 2 * EVALUATION_PICTURES))
    image = embed_pictures(model, pictures)
    if source.class_names is not None:
        names = [class_captions(name)[0] for name in source.class_names]  # "an airplane"
        classes = class_embeddings(model, names, list(TEMPLATES))
        labels = torch.from_numpy(source.labels[: len(image)]).to(image.device)
        return {"val_zero_shot": zero_shot_accuracy(image @ classes.T, labels)}
    captions = [source.all_captions(i)[0] for i in range(len(image))]
    # Pictures with the same caption cannot be told apart by it: one of each is kept.
    first = np.sort(np.unique(captions, return_index=True)[1])[:256]
    text = embed_captions(model, [captions[i] for i in first])
    by_image, by_text = recall_at_k(image[torch.from_numpy(first)], text, 1)
    return {"val_recall_at_1_image": by_image, "val_recall_at_1_text": by_text}


@torch.no_grad()
def similarities(model: CLIP, source: DataSource) -> Tensor:
    """Similarities of 24 pictures (rows) and their captions (columns), dark to bright.

    returns: (3, H, W) uint8
    """
    images = torch.from_numpy(all_pictures(source, 24))
    captions = [source.all_captions(i)[0] for i in range(len(images))]
    text = embed_captions(model, captions)
    similarity = (embed_pictures(model, images) @ text.T).cpu()  # (24, 24)
    low, high = similarity.min(), similarity.max()
    levels = ((similarity - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    return levels.repeat_interleave(10, 0).repeat_interleave(10, 1).expand(3, -1, -1)
