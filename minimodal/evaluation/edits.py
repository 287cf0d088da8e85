"""Scores of image-to-image prompting: does a DALL·E do to a picture what the caption says?

A first picture and a caption such as "the circle in blue" are given, and the oracle compares the
second picture with the scene that the edit makes of the first. "seen": pairs of colour and shape
that training had; "held out": the right second picture has one that it never had, be it copied
from the first or made by the edit ("made"). Read `shapes/edits.py` and `oracle_edits.py`.
"""

import numpy as np
import torch

from minimodal.blocks.given import Given
from minimodal.dalle import DALLE
from minimodal.evaluation.scoreboard import draw, exact, rounded, shares
from minimodal.shapes.edits import KINDS, EditsSource
from minimodal.shapes.oracle_edits import score_edits
from minimodal.shapes.world import Scenes, has_held_out


@torch.no_grad()
def through_codes(dalle: DALLE, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures as their codes draw them, on the CPU: the best that could be.

    pictures: (N, 3, H, W) uint8
    returns: (N, 3, H, W) uint8
    """
    parts, painter = pictures.to(dalle.rows.device).split(64), dalle.painter
    return torch.cat([painter.decode(painter.encode(part)) for part in parts]).cpu()


def edit_scores(dalle: DALLE, *, seed: int = 0, n: int = 500, sampling: dict) -> dict[str, float]:
    """Share of second pictures that are right in all, and by kind of edit; one sample a pair.

    Beside them what the first picture gets if it is taken for the answer (`unchanged`), and the
    right answer after its way through VQGAN's codes (`ceiling`).

    sampling: temperature and guidance (the others as `SamplingConfig` has them)
    """
    size, scores = dalle.config.grid * dalle.painter.factor, {}
    for name in ("seen", "held_out"):
        source = EditsSource(seed, split="val", pairs=name, image_size=size)
        numbers = np.arange(n)
        before, edits, after = source.scenes(numbers)
        first, second = torch.from_numpy(source.images(numbers)).split(size, dim=2)
        prompts = source.captions(numbers, np.random.default_rng(seed))

        def right(pictures: torch.Tensor, after: Scenes = after) -> np.ndarray:
            return exact(score_edits(after, pictures.numpy()))

        found = right(
            draw(dalle, prompts, 1, seed=seed, sampling=sampling, given=Given(first=first))
        )
        cases = {name: found}
        if name == "held_out":
            cases["held_out_made"] = found[~has_held_out(before)]
        cases |= {f"{name}_{kind}": found[edits.kind == k] for k, kind in enumerate(KINDS)}
        cases[f"{name}_unchanged"] = right(first)
        cases[f"{name}_ceiling"] = right(through_codes(dalle, second))
        scores |= shares(cases)
    return rounded(scores)
