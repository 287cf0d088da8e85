"""Scores of what draws with CLIP's help, beside what it has to beat.

`searching` and `following` make VQGAN+CLIP a system that draws (`scoreboard.Draw`): by search on
codes, and by CLIP's gradient alone. Systems in, a table of shares out: for each system and each
kind of prompt how many pictures hold all that it says, and CPU seconds a picture. Read
`scoreboard.py` and `vqgan_clip/pool.py` before.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minimodal.blocks.drawers import VQGANDrawer
from minimodal.blocks.pixels import to_uint8
from minimodal.evaluation.scoreboard import Draw, rounded, share_right
from minimodal.shapes.source import ShapesSource
from minimodal.vqgan_clip.guide import make_guide
from minimodal.vqgan_clip.optimise import Optimisation, OptimiseConfig
from minimodal.vqgan_clip.pool import Pool, Prior, find
from minimodal.vqgan_clip.prompts import Prompt
from minimodal.vqgan_clip.search import SearchConfig

# By name: which pairs of colour and shape, and how many objects.
KINDS = {
    "seen_one_object": ("seen", 1),
    "held_out_one_object": ("held_out", 1),
    "seen_two_objects": ("seen", 2),
}


def prompts_of(kind: str, n: int, *, seed: int) -> list[str]:
    """Full captions of unseen scenes of a kind."""
    pairs, count = KINDS[kind]
    source, numbers = ShapesSource(seed, split="val", pairs=pairs), np.arange(8 * n + 64)
    texts = source.full_captions(numbers, np.random.default_rng(seed))
    return [texts[i] for i in np.flatnonzero(source.scenes(numbers).count == count)[:n]]


def searching(prior: Prior, clip: nn.Module, pool: Pool, config: SearchConfig | None) -> Draw:
    """How a search on codes draws; without a config how the best of the pool does."""

    def draw(prompts: Sequence[str], n: int, seed: int) -> Tensor:
        codes = [
            find(prior, [make_guide(clip, [Prompt(text)])], pool,
                 seed=seed + i, skip=j, config=config).codes[:1]
            for i, text in enumerate(prompts) for j in range(n)
        ]  # fmt: skip
        return prior.painter.decode(torch.cat(codes).to(prior.device)).cpu()

    return draw


def following(vqgan: nn.Module, clip: nn.Module, config: OptimiseConfig) -> Draw:
    """How CLIP's gradient alone draws, from random codes: Pixray's way."""
    side = vqgan.config.image_size // vqgan.config.factor

    def draw(prompts: Sequence[str], n: int, seed: int) -> Tensor:
        found = []
        for i, text in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed + i)
            codes = torch.randint(vqgan.quantizer.size, (n, side, side), generator=generator)
            codes = codes.to(clip.logit_scale.device)
            with torch.no_grad():
                drawer = VQGANDrawer(vqgan, vqgan.decode_indices(codes))
            drawer.begin(codes)  # encoding what was decoded may give others
            guide = make_guide(clip, [Prompt(text)])
            found.append(to_uint8(Optimisation(drawer, [guide], config, seed=seed + i).run()).cpu())
        return torch.cat(found)

    return draw


def guided_scores(systems: Mapping[str, Draw], *, n: int, seed: int) -> dict[str, dict[str, float]]:
    """The table, one picture a prompt; each row is told on stderr, as some take long."""
    found: dict[str, dict[str, float]] = {name: {} for name in systems}
    for kind in KINDS:
        prompts = prompts_of(kind, n, seed=seed)
        for name, draw in systems.items():
            began = time.process_time()
            pictures = draw(prompts, 1, seed)
            seconds = (time.process_time() - began) / len(prompts)
            right = share_right(prompts, pictures)
            found[name] |= {kind: round(right, 4), f"{kind}_cpu_seconds": round(seconds, 3)}
            print(f"{name}: {kind} {right:.1%} of {len(prompts)}, {seconds:.2f} CPU s a picture",
                  file=sys.stderr, flush=True)  # fmt: skip
    return found


class Shown(NamedTuple):
    """The demo's scores of VQGAN+CLIP, and some pictures of each kind.

    pictures: (N, 3, H, W) uint8; an array, as they come from another process, and a tensor can be
        received only while its sender lives
    """

    scores: dict[str, float]
    captions: list[str]
    pictures: np.ndarray


def demo_scores(search: Draw, gradient: Draw, *, n: int, seed: int) -> Shown:
    """How often the search is right, by kind, and the gradient alone.

    n: prompts of one object; of two, which take longest, half as many, and a quarter for the
        gradient
    """
    scores, captions, pictures = {}, [], []
    # By kind: prompts, and how many are shown in a row of eight.
    for kind, many, few in zip(KINDS, (n, n, -(-n // 2)), (3, 3, 2), strict=True):
        prompts = prompts_of(kind, many, seed=seed)
        drawn = search(prompts, 1, seed)
        scores[kind] = share_right(prompts, drawn)
        captions, pictures = captions + prompts[:few], [*pictures, drawn[:few]]
    prompts = prompts_of("seen_one_object", -(-n // 4), seed=seed)
    scores["gradient_only"] = share_right(prompts, gradient(prompts, 1, seed))
    return Shown(rounded(scores), captions, torch.cat(pictures).numpy())
