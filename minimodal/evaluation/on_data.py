"""Scores on any data: what a CLIP finds, how well a VQGAN draws again, what drawn pictures show.

Classes give zero-shot accuracy (section 3.1 of the CLIP paper) and a linear probe (3.2); captions
give recall at 1, 5 and 10 in both directions with up to five captions per picture, COCO's protocol.
Pictures drawn from text are shown to a judge of classes or to a CLIP. The Shapes world has scores
of its own, in `scoreboard.py`.

A model and data sources in, numbers and the manifest of how they came about out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimodal.clip import CLIP
from minimodal.data.sources import DataSource
from minimodal.drawing import to_picture
from minimodal.errors import UserError
from minimodal.evaluation.judge import Judge
from minimodal.evaluation.linear_probe import linear_probe
from minimodal.evaluation.metrics import (
    frechet_distance,
    psnr,
    recall_at_k,
    ssim,
    zero_shot_accuracy,
)
from minimodal.evaluation.scoreboard import Draw, reconstruct, rounded
from minimodal.files import asking, make_folder
from minimodal.uses.embedding import embed_captions, embed_pictures, embed_source
from minimodal.uses.zero_shot import ZeroShotClassifier
from minimodal.vqgan import VQGAN

CAPTIONS = 5  # of a picture, as in COCO's protocol


class Evaluation(NamedTuple):
    """Numbers, and what one has to know to get them again."""

    scores: dict[str, float]
    manifest: dict[str, Any]


def clip_on_classes(
    clip: CLIP, train: DataSource, val: DataSource, *, templates: list[str] | None
) -> Evaluation:
    """Zero-shot accuracy on `val`, and a linear probe fitted on `train`."""
    classifier = ZeroShotClassifier(clip, list(val.class_names), templates)
    image, labels = embed_source(clip, val), torch.from_numpy(val.labels)
    similarity = image @ classifier.weights.cpu().T  # (N, K)
    known, classes = torch.from_numpy(train.labels), len(val.class_names)
    accuracy, penalty = linear_probe(
        embed_source(clip, train), known, image, labels, classes=classes
    )
    zero_shot = zero_shot_accuracy(similarity, labels)
    scores = {"zero_shot": zero_shot, "chance": 1 / classes, "linear_probe": accuracy}
    manifest = {
        "templates": classifier.templates,
        "labels": classifier.labels,
        "linear_probe": {"features": "unit image embeddings", "train": train.fingerprint(),
                         "train_pictures": len(train), "penalty": penalty},
    }  # fmt: skip
    return Evaluation(scores, manifest)


def clip_on_captions(clip: CLIP, val: DataSource) -> Evaluation:
    """Recall at 1, 5 and 10: any caption of a picture is right for it, and it for each of them."""
    captions = [val.all_captions(i)[:CAPTIONS] for i in range(len(val))]
    texts = [text for several in captions for text in several]
    owner = torch.tensor([i for i, several in enumerate(captions) for _ in several])
    image, text = embed_source(clip, val), embed_captions(clip, texts).cpu()
    scores = {}
    for k in (1, 5, 10):
        by_image, by_text = recall_at_k(image, text, k, image_of_text=owner)
        scores |= {f"image_to_text_recall_at_{k}": by_image}
        scores |= {f"text_to_image_recall_at_{k}": by_text}
        scores |= {f"text_to_image_chance_at_{k}": min(1.0, k / len(val))}
    return Evaluation(scores, {"captions": len(texts), "captions_a_picture": CAPTIONS})


def clip_on_data(
    clip: CLIP, train: DataSource, val: DataSource, *, templates: list[str] | None = None
) -> Evaluation:
    """What fits the data: classes or captions."""
    if val.class_names is not None:
        found = clip_on_classes(clip, train, val, templates=templates)
    elif val.has_captions:
        found = clip_on_captions(clip, val)
    else:
        raise UserError(f"{val.name}: pictures without captions or classes say nothing of a CLIP")
    size = clip.config.image_size
    steps = f"largest centred square, bicubic to {size} x {size}, RGB"
    reading = {"picture": steps, "mean": clip.reading.mean, "std": clip.reading.std}
    more = {"preprocessing": reading, "captions_longer_than_the_model": "cut"}
    return Evaluation(found.scores, found.manifest | more)


def save_both(images: Tensor, decoded: Tensor, folder: Path) -> None:
    """Write true and decoded pictures into two folders, for packages that compare such.

    images: (N, 3, H, W) uint8
    decoded: (N, 3, H, W) uint8
    """
    for name, pictures in (("originals", images), ("reconstructions", decoded)):
        make_folder(folder / name)
        for i, picture in enumerate(pictures):
            path = folder / name / f"{i:06d}.png"
            with asking("write", path):
                to_picture(picture).save(path)


def frechet_features(clip: CLIP, pictures: Tensor) -> Tensor:
    """What a CLIP's Fréchet distance is taken on: unit embeddings stretched to the size that
    features usually have.

    pictures: (N, 3, H, W) uint8
    returns: (N, E)
    """
    units = embed_pictures(clip, pictures).cpu()
    return units * units.shape[1] ** 0.5


def vqgan_on_data(
    vqgan: VQGAN, val: DataSource, *, clip: CLIP | None = None, judge: Judge | None = None,
    folder: Path | None = None,
) -> Evaluation:  # fmt: skip
    """PSNR and SSIM of reconstructions, how much of the codebook they use, and what networks
    say of them: the distance between true and decoded pictures, whether the judge sees the class.
    With a folder both are kept there."""
    if len(val) < 2 and clip is not None:
        raise UserError(
            f"{val.name}: a single picture: the distance (--clip) needs 2 or more, and means "
            "little below hundreds"
        )
    images = torch.from_numpy(val.images(np.arange(len(val))))
    again = reconstruct(vqgan, images)
    decoded = again.pictures
    if folder is not None:
        save_both(images, decoded, folder)
    scores = {"psnr": psnr(decoded, images), "ssim": ssim(decoded, images)}
    scores["codes_used"] = again.used
    manifest: dict[str, Any] = {}
    if clip is not None:
        sets = (frechet_features(clip, part) for part in (images, decoded))
        scores["clip_frechet"] = frechet_distance(*sets)
        manifest["clip_features"] = "unit image embeddings times the root of their length"
    if judge is not None:
        seen, again_seen = (judge.classify(part) for part in (images, decoded))
        scores["judge_class_kept"] = float((seen == again_seen).float().mean())
        if val.labels is not None:
            labels = torch.from_numpy(val.labels)
            scores["judge_right_on_originals"] = float((seen == labels).float().mean())
            scores["judge_right"] = float((again_seen == labels).float().mean())
    return Evaluation(scores, manifest)


# --- text to picture, where no oracle is ---------------------------------------------------------


def class_scores(
    draw: Draw, names: Sequence[str], captions: Sequence[str], judge: Judge, *, each: int, seed: int
) -> dict[str, float]:
    """How often a judge sees the class that was asked for, in all and for each class.

    captions: one per class
    each: pictures of each
    """
    seen = judge.classify(draw(captions, each, seed)).view(len(names), each)  # (K, N)
    right = (seen == torch.arange(len(names))[:, None]).float()
    scores = {"judge_agrees": right.mean()}
    scores |= {f"judge_agrees_{name}": row.mean() for name, row in zip(names, right, strict=True)}
    return rounded(scores)


@torch.no_grad()
def recall_of_captions(
    draw: Draw, clip: CLIP, captions: Sequence[str], *, seed: int
) -> dict[str, float]:
    """Whether a CLIP finds each drawn picture's caption among all of them."""
    image, text = embed_pictures(clip, draw(captions, 1, seed)), embed_captions(clip, captions)
    # The right one's similarity is taken from the same product: another sum rounds differently.
    similarity = image @ text.T  # (N, N)
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)  # (N,) 0 = the first
    scores = {f"clip_recall_at_{k}": (rank < k).float().mean() for k in (1, 5)}
    return rounded(scores | {"chance_at_1": 1 / len(captions)})


@torch.no_grad()
def distance_of_drawn(
    draw: Draw, clip: CLIP, val: DataSource, *, n: int, seed: int
) -> dict[str, float]:
    """The Fréchet distance between unseen pictures and those drawn for the first n's captions;
    and, below which no drawing comes, between the two halves of the unseen ones."""
    if len(val) < 4:
        raise UserError(f"{val.name}: {len(val)} pictures: a distance (--clip) needs 4 or more")
    true = frechet_features(clip, torch.from_numpy(val.images(np.arange(len(val)))))
    captions = [val.all_captions(i)[0] for i in range(min(n, len(val)))]
    drawn = frechet_features(clip, draw(captions, 1, seed))
    halves = frechet_distance(true[::2], true[1::2])
    return rounded({"clip_frechet": frechet_distance(true, drawn), "of_halves": halves})
