"""How many pictures, captions and words a second the parts go through that have no network.

The oracle reads pictures, the Shapes world renders and captions them, a tokenizer learns from
words: a run's preparation and its scores wait for these. One thread; the best of some rounds.

    python benchmarks/rates.py [--rounds 3]
"""

import argparse
import random
import time
from collections.abc import Callable

import numpy as np

from minimodal.data.tokenizer import Tokenizer
from minimodal.shapes.oracle import read
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import draw_scenes, render

PICTURES, CAPTIONS, WORDS = 10_000, 20_000, 50_000


def made_up(n: int) -> list[str]:
    """Words of two to five syllables, the same each time."""
    draw = random.Random(0)
    syllables = [consonant + vowel for consonant in "bcdfghklmnprst" for vowel in "aeiou"]
    words = {"".join(draw.choices(syllables, k=draw.randint(2, 5))) for _ in range(2 * n)}
    return sorted(words)[:n]


def rate(n: int, work: Callable[[], object], rounds: int) -> float:
    """Things a second, of `n` that `work` does."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return n / min(seconds)


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    scenes = draw_scenes(5, np.arange(PICTURES), pairs="all")
    pictures, source, words = render(scenes), ShapesSource(0), made_up(WORDS)
    numbers = np.arange(CAPTIONS)
    parts: dict[str, tuple[int, Callable[[], object]]] = {
        "pictures rendered": (PICTURES, lambda: render(scenes)),
        "pictures read by the oracle": (PICTURES, lambda: read(pictures)),
        "captions written": (CAPTIONS, lambda: source.captions(numbers, np.random.default_rng(0))),
        "words learned by a tokenizer": (WORDS, lambda: Tokenizer.train(words, 4096)),
    }
    for name, (n, work) in parts.items():
        print(f"{name:30} {rate(n, work, rounds):12,.0f} a second")


if __name__ == "__main__":
    main()
