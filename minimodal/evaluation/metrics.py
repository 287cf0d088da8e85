"""Scores that any system may need: PSNR of pictures, recall of a retrieval, zero-shot accuracy.

    PSNR      10 log10(peak² / MSE), the mean over pictures of each picture's own
    recall@k  share of queries with a right answer among the k most similar
    accuracy  share of rows whose largest similarity is in the column of their label

Pictures are (N, 3, H, W), embeddings are rows of unit length (N, E). Numbers out, no models in.
"""

import torch
from torch import Tensor

from minimodal.evaluation.search import top_k


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio 10 log10(255² / MSE) in dB, the mean over the pictures.

    Pictures in [-1, 1] are brought to the scale of bytes, without rounding. Equal pictures count
    as 148 dB, so that the mean stays finite.

    first: (N, 3, H, W) uint8, or float in [-1, 1]
    second: (N, 3, H, W) of the same kind
    """
    if first.shape != second.shape or first.is_floating_point() != second.is_floating_point():
        raise ValueError(
            f"psnr compares pictures of one kind, got {first.dtype} {tuple(first.shape)} and "
            f"{second.dtype} {tuple(second.shape)}"
        )
    scale = 127.5 if first.is_floating_point() else 1.0
    difference = (first.double() - second.double()) * scale
    error = difference.square().mean(dim=(1, 2, 3))  # (N,)
    return float((10 * torch.log10(255.0**2 / error.clamp(min=1e-10))).mean())


def recall_at_k(
    image: Tensor, text: Tensor, k: int, *, image_of_text: Tensor | None = None
) -> tuple[float, float]:
    """How often a right caption is among a picture's k nearest, and the other way round.

    A picture may have several captions: any of them is right. One without captions asks nothing,
    but is there to be found wrongly.

    image: (N, E) unit vectors
    text: (M, E) unit vectors
    image_of_text: (M,) int64 the picture of each caption; None where caption i is picture i's
    """
    image, text = image.float().cpu(), text.float().cpu()
    owner = torch.arange(len(text)) if image_of_text is None else image_of_text.cpu()  # (M,)
    captions = top_k(text, image, k).indices  # (N, k) captions near each picture
    pictures = top_k(image, text, k).indices  # (M, k) pictures near each caption
    numbers = torch.arange(len(image))
    asked = torch.isin(numbers, owner)  # (N,) pictures that have a caption
    by_image = (owner[captions] == numbers[:, None]).any(dim=1)[asked]
    by_text = (pictures == owner[:, None]).any(dim=1)[owner < len(image)]
    return float(by_image.float().mean()), float(by_text.float().mean())


def zero_shot_accuracy(similarities: Tensor, labels: Tensor) -> float:
    """How often a picture is most similar to the caption of its own class.

    similarities: (N, K) of each picture with each class
    labels: (N,) int64
    """
    return float((similarities.argmax(dim=1) == labels).float().mean())
