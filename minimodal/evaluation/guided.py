"""Scores of what draws with CLIP's help, beside what it has to beat.

Systems come in as callables that draw (`scoreboard.Draw`), a table of shares comes out: for each
system and each kind of prompt how many pictures hold all that it says, and CPU seconds a picture.
Read `scoreboard.py` before.
"""

import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

from minimodal.evaluation.scoreboard import Draw, exact
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.worlds import WORLDS

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


def guided_scores(
    systems: Mapping[str, Draw], *, n: int, seed: int,
    told: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, dict[str, float]]:  # fmt: skip
    """The table, one picture a prompt.

    told: hears of each row, as some take long
    """
    found: dict[str, dict[str, float]] = {name: {} for name in systems}
    for kind in KINDS:
        prompts = prompts_of(kind, n, seed=seed)
        for name, draw in systems.items():
            began = time.process_time()
            pictures = draw(prompts, 1, seed)
            seconds = (time.process_time() - began) / len(prompts)
            right = float(exact(WORLDS["shapes"].score(prompts, pictures.numpy())).mean())
            found[name] |= {kind: round(right, 4), f"{kind}_cpu_seconds": round(seconds, 3)}
            told(f"{name}: {kind} {right:.1%} of {len(prompts)}, {seconds:.2f} CPU s a picture")
    return found
