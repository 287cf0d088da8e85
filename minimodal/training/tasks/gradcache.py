"""GradCache (Gao et al. 2021): CLIP's loss of a batch that is embedded in several micro-batches.

Each micro-batch is embedded twice: once without gradients, to know the loss of all of them and its
derivative by each embedding, and once more, by itself, to pass that derivative on to the weights.
Together that is the very gradient of one large batch. Read `tasks/clip.py` before.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Embed = Callable[[dict], tuple[Tensor, Tensor]]
Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


class Ahead(NamedTuple):
    """The loss of all micro-batches, and where it pulls this one.

    image: (b, E) its derivative by each picture embedding
    text: (b, E) by each caption embedding
    scalars: parameters that it depends on directly, with its derivative by each
    count: micro-batches of the step
    value: () the loss
    """

    image: Tensor
    text: Tensor
    scalars: list[tuple[Tensor, Tensor]]
    count: int
    value: Tensor
    metrics: dict[str, Tensor]


def embed_ahead(
    batches: list[dict], embed: Embed, objective: Objective, *, scalars: list[Tensor]
) -> None:
    """Leave in each micro-batch, as "ahead", how the loss of all of them pulls at it."""
    # differs from the paper: micro-batches are embedded twice (GradCache, Gao et al. 2021), so
    # that `--accumulate` does not change the loss.
    pairs = [embed(batch) for batch in batches]
    image, text = (torch.cat(tensors).requires_grad_() for tensors in zip(*pairs, strict=True))
    numbers = torch.cat([batch["captions"] for batch in batches])
    with torch.enable_grad():
        loss, metrics = objective(image, text, numbers)
        d_image, d_text, *slopes = torch.autograd.grad(loss, [image, text, *scalars])
    size = len(batches[0]["captions"])
    common = (list(zip(scalars, slopes, strict=True)), len(batches), loss.detach(), metrics)
    for batch, d_i, d_t in zip(batches, d_image.split(size), d_text.split(size), strict=True):
        batch["ahead"] = Ahead(d_i, d_t, *common)


def pulled(image: Tensor, text: Tensor, ahead: Ahead) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of the value of the whole batch's, and of its gradient by these embeddings.

    image: (b, E) picture embeddings
    text: (b, E) caption embeddings
    returns: (), and the whole batch's metrics
    """
    # Linear in the embeddings, with the loss's own derivatives as slopes. The engine takes the
    # mean over the micro-batches: theirs add up, the temperature's must count once.
    linear = ahead.count * ((image * ahead.image).sum() + (text * ahead.text).sum())
    for scalar, slope in ahead.scalars:
        linear = linear + (scalar * slope).sum()
    return ahead.value + linear - linear.detach(), ahead.metrics
