"""Scores of unCLIP on the Shapes world: from captions, from true embeddings, and of its toolbox.

What a decoder draws from a picture's own embedding bounds what any prior can reach; a variation
must keep what is in a picture and may move it; an edit must change the attribute that its two
captions differ in, and nothing else. Read `scoreboard.py` and `uses/unclip.py` before.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.diffusion import Sampler
from minimodal.blocks.painter import Request
from minimodal.evaluation.scoreboard import (
    PLAIN,
    Draw,
    exact,
    replace_one,
    rounded,
    shares,
    text_to_picture_scores,
)
from minimodal.shapes.language import DRAWS, captions
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import COLORS, SHAPES
from minimodal.uses.unclip import UnCLIP

MOVED = 4  # 32nds of a picture: less is the same place


def request_of(unclip: UnCLIP, n: int, seed: int) -> Request:
    """Pictures of one seed, in batches of 64."""
    return Request(n, torch.Generator(unclip.device).manual_seed(seed))


def draw_with(unclip: UnCLIP, how: Sampler, *, captioned: bool = True) -> Draw:
    """How an unCLIP draws for prompts.

    captioned: whether the decoder reads the prompt beside its embedding
    """

    def draw(prompts: Sequence[str], n: int, seed: int) -> Tensor:
        request = request_of(unclip, n, seed)
        return unclip.draw(list(prompts), request, how, captioned=captioned).cpu()

    return draw


def true_embedding_scores(
    unclip: UnCLIP, how: Sampler, *, seed: int = 0, n: int = 200
) -> dict[str, float]:
    """The oracle on what pictures' own embeddings are decoded to, without captions."""
    source = PLAIN.source(seed, split="val", pairs="seen")
    numbers = np.arange(n)
    texts = source.full_captions(numbers, np.random.default_rng(seed))
    z = unclip.embed(torch.from_numpy(source.images(numbers)))  # (n, E)
    pictures = unclip.paint_all(unclip.told(z), None, request_of(unclip, 1, seed), how)
    right = exact(PLAIN.score(texts, pictures.cpu().numpy()))
    one = source.scenes(numbers).count == 1
    return shares({"true_embedding": right, "true_embedding_one_object": right[one]})


def one_object(source: ShapesSource, n: int) -> np.ndarray:
    """The first n scenes of a source with one object.

    returns: (n,) int64
    """
    return np.flatnonzero(source.scenes(np.arange(3 * n + 30)).count == 1)[:n]


def variation_scores(
    unclip: UnCLIP, how: Sampler, *, seed: int = 0, n: int = 100
) -> dict[str, float]:
    """How many variations of one-object pictures keep colour and shape, and how many move."""
    source = PLAIN.source(seed, split="val", pairs="seen")
    numbers = one_object(source, n)
    scenes, pictures = source.scenes(numbers), source.images(numbers)
    z = unclip.embed(torch.from_numpy(pictures))
    drawn = unclip.paint_all(unclip.told(z), None, request_of(unclip, 1, seed), how).cpu().numpy()
    kept, moved = [], []
    for i, (old, new) in enumerate(zip(PLAIN.read(pictures), PLAIN.read(drawn), strict=True)):
        wanted = (list(COLORS)[scenes.color[i, 0]], list(SHAPES)[scenes.shape[i, 0]])
        same = new.count == 1 and (new.objects[0].color, new.objects[0].shape) == wanted
        kept.append(same)
        if same:
            a, b = old.objects[0], new.objects[0]
            moved.append(max(abs(a.x - b.x), abs(a.y - b.y)) >= MOVED)
    return shares({"variation_keeps": np.array(kept), "variation_moves": np.array(moved)})


def edit_scores(
    unclip: UnCLIP, how: Sampler, *, strength: float = 0.5, seed: int = 0, n: int = 100
) -> dict[str, float]:
    """How many text diffs of one-object pictures, in colour or shape, end in exactly what the
    second caption says, all else as it was."""
    source = PLAIN.source(seed, split="val", pairs="seen")
    numbers, rng = one_object(source, n), np.random.default_rng(seed)
    scenes, pictures = source.scenes(numbers), torch.from_numpy(source.images(numbers))
    draws = rng.random((len(scenes), DRAWS))
    before, cases = captions(scenes, draws, full=True), {}
    for what in ("color", "shape"):
        after = captions(replace_one(scenes, what, rng), draws, full=True)
        drawn = unclip.edit(
            pictures, before, after, torch.full((len(before),), strength),
            request=request_of(unclip, 1, seed), how=how,
        )  # fmt: skip
        cases[f"edit_{what}"] = exact(PLAIN.score(after, drawn.cpu().numpy()))
    return shares(cases | {"edit": np.concatenate(list(cases.values()))})


def unclip_scores(unclip: UnCLIP, how: Sampler, *, seed: int = 0, n: int = 200) -> dict[str, float]:
    """All of them; from captions for combinations seen in training and for those never seen."""
    scores = text_to_picture_scores(draw_with(unclip, how), seed=seed, n=n)
    scores |= true_embedding_scores(unclip, how, seed=seed, n=n)
    scores |= variation_scores(unclip, how, seed=seed, n=n // 2)
    return rounded(scores | edit_scores(unclip, how, seed=seed, n=n // 2))
