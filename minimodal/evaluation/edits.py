"""Scores of editing: does a system do to a picture what the caption says?

A first picture and a caption such as "the circle in blue" are given, and the oracle compares the
second picture with the scene that the edit makes of the first. "seen": pairs of colour and shape
that training had; "held out": the right second picture has one that it never had, be it copied
from the first or made by the edit ("made"). Read `shapes/edits.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.given import Given
from minimodal.dalle import DALLE
from minimodal.evaluation.scoreboard import draw_with, exact, rounded, shares
from minimodal.shapes.edits import KINDS, EditsSource
from minimodal.shapes.world import has_held_out
from minimodal.shapes.worlds import WORLDS

# Second pictures, (prompts, first pictures, seed) -> (N, 3, S, S) uint8 on the CPU.
Edit = Callable[[Sequence[str], Tensor, int], Tensor]


def edit_with(dalle: DALLE, sampling: dict) -> Edit:
    """How a DALL·E of pairs edits: it draws the second picture of a pair."""

    def edit(prompts: Sequence[str], first: Tensor, seed: int) -> Tensor:
        return draw_with(dalle, sampling, given=Given(first=first))(prompts, 1, seed)

    return edit


def edit_scores(
    edit: Edit, *, size: int, reconstruct: Callable[[Tensor], Tensor], seed: int = 0, n: int = 500
) -> dict[str, float]:
    """Share of second pictures that are right in all, and by kind of edit; one sample per pair.

    Beside them what the first picture gets if it is taken for the answer (`unchanged`), and the
    right answer as the system can draw it at all (`ceiling`, by `reconstruct`).
    """
    scores: dict[str, float] = {}
    for name in ("seen", "held_out"):
        source = EditsSource(seed, split="val", pairs=name, image_size=size)
        numbers = np.arange(n)
        before, edits, after = source.scenes(numbers)
        first, second = torch.from_numpy(source.images(numbers)).split(size, dim=2)
        prompts = source.captions(numbers, np.random.default_rng(seed))
        found, unchanged, ceiling = (
            exact(WORLDS["edits"].score(after, pictures.numpy()))
            for pictures in (edit(prompts, first, seed), first, reconstruct(second))
        )
        cases = {name: found}
        if name == "held_out":
            cases["held_out_made"] = found[~has_held_out(before)]
        cases |= {f"{name}_{kind}": found[edits.kind == k] for k, kind in enumerate(KINDS)}
        scores |= shares(cases | {f"{name}_unchanged": unchanged, f"{name}_ceiling": ceiling})
    return rounded(scores)
