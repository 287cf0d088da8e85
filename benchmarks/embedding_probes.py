"""What an embedding says of its picture, and what a prior's keeps of that: one table on stdout.

    python benchmarks/embedding_probes.py runs/demo [--priors RUN …] [-n 1024]

A small network learns to read colour, shape, size, ground and relation off true image embeddings
of the Shapes world. On embeddings of other pictures it is the bound of any decoder that is told
nothing else; on those that were made for their captions it tells the priors apart, without one.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.runs import load
from minimodal.shapes.source import ShapesSource
from minimodal.uses.embedding import embed_captions, embed_source

CLASSES = {
    "relation": 3, "ground": 3, "color": 9, "color of the second": 9, "shape": 7,
    "shape of the second": 7, "size": 3, "size of the second": 3,
}  # fmt: skip
PICTURES, EPOCHS, ROWS, NOISE = 24_576, 14, 256, 0.1


def labels(source: ShapesSource, n: int) -> tuple[dict[str, Tensor], Tensor]:
    """What is in the first n pictures, the left or upper object first; and which have one."""
    scenes = source.scenes(np.arange(n))
    turned = np.isin(scenes.relation, (1, 3))  # right or below: the second comes first
    found = {
        "relation": np.where(scenes.relation < 0, 2, scenes.relation // 2),
        "ground": scenes.background,
    }
    for name in ("color", "shape", "size"):
        pair = getattr(scenes, name).copy()
        pair[turned] = pair[turned][:, ::-1]
        found[name] = pair[:, 0]
        missing = CLASSES[name] - 1  # the last class: there is no second object
        found[f"{name} of the second"] = np.where(pair[:, 1] < 0, missing, pair[:, 1])
    one = torch.from_numpy(scenes.count == 1)
    return {name: torch.from_numpy(np.asarray(v)).long() for name, v in found.items()}, one


class Probe:
    """A network of two hidden layers from standardised embeddings to all classes at once."""

    def __init__(self, embeddings: Tensor, wanted: dict[str, Tensor]) -> None:
        self.mean, self.deviation = embeddings.mean(0), embeddings.std(0)
        generator, width = torch.Generator().manual_seed(0), embeddings.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.net = nn.Sequential(
                nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(),
                nn.Linear(512, sum(CLASSES.values())),
            )  # fmt: skip
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=2e-3, weight_decay=0.05)
        steps = EPOCHS * -(-len(embeddings) // ROWS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        x = self.standard(embeddings)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x), generator=generator).split(ROWS):
                noise = torch.randn(len(rows), width, generator=generator)
                logits = self.logits(x[rows] + NOISE * noise)
                loss = sum(F.cross_entropy(logits[name], wanted[name][rows]) for name in CLASSES)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def standard(self, embeddings: Tensor) -> Tensor:
        """Embeddings as the network reads them: (N, E)."""
        return (embeddings - self.mean) / self.deviation

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        """By name, (N, K) each."""
        parts = self.net(x).split(list(CLASSES.values()), dim=1)
        return dict(zip(CLASSES, parts, strict=True))

    @torch.no_grad()
    def score(self, embeddings: Tensor, wanted: dict[str, Tensor], one: Tensor) -> list[float]:
        """Percent read right: of one object colour, shape, size, ground, all; of two the relation,
        colours, shapes, sizes, all."""
        logits = self.logits(self.standard(embeddings))
        right = {name: logits[name].argmax(1) == wanted[name] for name in CLASSES}
        kinds = ("color", "shape", "size")
        double = [(right[k] & right[f"{k} of the second"])[~one] for k in kinds]
        everything = torch.stack(list(right.values())).all(0)
        parts = [right[k][one] for k in (*kinds, "ground")] + [everything[one]]
        parts += [right["relation"][~one], *double, everything[~one]]
        return [100 * float(part.float().mean()) for part in parts]


def linear_guess(text: Tensor, image: Tensor, asked: Tensor) -> Tensor:
    """The mean image embedding of a caption, as far as it is linear in the text embedding's.

    text: (M, E) of training's captions
    image: (M, E) of their pictures
    asked: (N, E) of captions
    returns: (N, E) unit vectors
    """
    mean, centre = text.mean(0), image.mean(0)
    x = (text - mean).double()
    penalty = 1e-3 * x.square().mean() * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ (image - centre).double()).float()
    return F.normalize((asked - mean) @ weight + centre, dim=1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--priors", type=Path, nargs="*", default=[])
    parser.add_argument("-n", type=int, default=1024)
    arguments = parser.parse_args()
    n, clip = arguments.n, load(arguments.demo / "clip", kind="clip")
    train = ShapesSource(0)
    pool = embed_source(clip, train, n=PICTURES)  # (M, E)
    probe = Probe(pool, labels(train, PICTURES)[0])
    said = embed_captions(clip, train.captions(np.arange(4096), np.random.default_rng(0)))
    print("| embedding | captions | cosine | one: colour | shape | size | ground | all | "
          "two: relation | colours | shapes | sizes | all |\n|" + " --- |" * 13)  # fmt: skip
    for pairs in ("seen", "held_out"):
        source = ShapesSource(0, split="val", pairs=pairs)
        wanted, one = labels(source, n)
        image = embed_source(clip, source, n=n)
        captions = source.full_captions(np.arange(n), np.random.default_rng(0))
        tokens, text = clip.tokenize(captions, truncate=True), embed_captions(clip, captions)
        shifted = F.normalize(text - said.mean(0) + pool.mean(0), dim=1)
        found = {"true": image, "text": text, "text, moved to the images' mean": shifted}
        found["nearest training picture"] = pool[(text @ pool.T).argmax(1)]
        found["linear in the text"] = linear_guess(said, pool[: len(said)], text)
        for run in arguments.priors:
            prior = load(run, kind="prior")
            for guidance in (1.0, 1.5, 2.0):
                made = prior.embed(
                    tokens, text, generator=torch.Generator().manual_seed(0), guidance=guidance
                )
                found[f"{prior.config.kind}, guidance {guidance:g}"] = made
        for name, made in found.items():
            cosine = float((made * image).sum(1).mean())
            values = " | ".join(f"{v:.1f}" for v in probe.score(made, wanted, one))
            print(f"| {name} | {pairs} | {cosine:.3f} | {values} |", flush=True)


if __name__ == "__main__":
    main()
