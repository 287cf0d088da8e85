"""What each part of an unCLIP brings, by the oracle: one table on stdout.

    python benchmarks/unclip_study.py runs/demo [--priors RUN …] [-n 200]

With the decoder of a demo folder: where the embedding comes from (true, a prior, the text's own,
the nearest training picture's), with and without the caption; guidance; each sampler's steps.
Shares of exact pictures, of one object and of all; captions are full ones of unseen scenes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.diffusion import Sampler
from minimodal.cli.unclip import load_unclip
from minimodal.evaluation.scoreboard import PLAIN, exact
from minimodal.evaluation.unclip import draw_with
from minimodal.runs import load
from minimodal.uses.embedding import embed_source
from minimodal.uses.unclip import UnCLIP


class Itself:
    """A prior that takes a caption's text embedding for a picture's."""

    def embed(self, tokens: Tensor, text: Tensor, *, generator: torch.Generator) -> Tensor:
        return text


class Nearest:
    """A prior that takes the training picture that CLIP finds best."""

    def __init__(self, pool: Tensor) -> None:
        self.pool = pool

    def embed(self, tokens: Tensor, text: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.pool[(text @ self.pool.T).argmax(dim=1)]


class Known:
    """A prior that knows the pictures."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings, self.at = embeddings, 0

    def embed(self, tokens: Tensor, text: Tensor, *, generator: torch.Generator) -> Tensor:
        rows = self.embeddings[self.at : self.at + len(text)]
        self.at += len(text)
        return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--priors", type=Path, nargs="*", default=[])
    parser.add_argument("--only", choices=("embeddings", "guidance", "samplers"))
    parser.add_argument("-n", type=int, default=200)
    arguments = parser.parse_args()
    unclip, how = load_unclip(arguments.demo / "decoder", "cpu", prior=arguments.demo / "prior")
    n, numbers = arguments.n, np.arange(arguments.n)
    texts, one, true = {}, {}, {}
    for pairs in ("seen", "held_out"):
        source = PLAIN.source(0, split="val", pairs=pairs)
        texts[pairs] = source.full_captions(numbers, np.random.default_rng(0))
        one[pairs] = source.scenes(numbers).count == 1
        true[pairs] = embed_source(unclip.clip, source, n=n)

    def row(name: str, prior, how: Sampler, *, captioned: bool, pairs: str = "seen") -> None:
        model = UnCLIP(unclip.clip, unclip.decoder, painter=unclip.painter)
        model.prior = prior  # which may be one that has no network
        began = time.process_time()
        pictures = draw_with(model, how, captioned=captioned)(texts[pairs], 1, 0)
        spent = (time.process_time() - began) / n
        right = exact(PLAIN.score(texts[pairs], pictures.numpy()))
        words = "with caption" if captioned else "without"
        print(f"| {name} | {words} | {pairs} | {100 * right[one[pairs]].mean():.0f} | "
              f"{100 * right.mean():.0f} | {1000 * spent:.0f} |", flush=True)  # fmt: skip

    print(
        "| | | captions | one object, % | all, % | CPU ms |\n| --- | --- | --- | --- | --- | --- |"
    )
    if arguments.only in (None, "embeddings"):
        pool = embed_source(unclip.clip, PLAIN.source(0), n=4096)
        for captioned in (True, False):
            for pairs in ("seen", "held_out"):
                some = {"true embedding": Known(true[pairs]), "diffusion prior": unclip.prior}
                some |= {str(run): load(run, kind="prior") for run in arguments.priors}
                some |= {"text embedding itself": Itself(), "nearest of 4,096": Nearest(pool)}
                for name, prior in some.items():
                    row(name, prior, how, captioned=captioned, pairs=pairs)
    if arguments.only in (None, "guidance"):
        for guidance in (0.0, 1.0, 1.5, 2.0, 3.0, 5.0):
            other = how._replace(guidance=guidance)
            row(f"guidance {guidance:g}", unclip.prior, other, captioned=True)
    if arguments.only in (None, "samplers"):
        for sampler in ("ddpm", "ddim", "2m"):
            for steps in (4, 8, 16, 32, 64):
                row(f"{sampler}, {steps} steps", unclip.prior,
                    how._replace(name=sampler, steps=steps), captioned=True)  # fmt: skip


if __name__ == "__main__":
    main()
