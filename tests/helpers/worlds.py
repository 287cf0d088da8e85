"""Models that know the Shapes world perfectly, or are blind to a part of it."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from minimodal.data.preprocessing import MEAN, ORIGINAL, STD
from minimodal.shapes.language import parse
from minimodal.shapes.oracle import read
from minimodal.shapes.world import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scenes,
    render,
    statements,
)

PLACES = {  # x and y of the first and the second object
    "left": ((8, 24), (16, 16)), "right": ((24, 8), (16, 16)),
    "above": ((16, 16), (8, 24)), "below": ((16, 16), (24, 8)), None: ((16, -1), (16, -1)),
}  # fmt: skip


def scenes_of(specs) -> Scenes:
    """What captions, or the oracle's readings of pictures, say; anything where they say nothing."""
    names = {"shape": list(SHAPES), "color": list(COLORS), "size": list(SIZES)}
    table = {name: np.full((len(specs), 2), -1) for name in names}
    for row, spec in enumerate(specs):
        for slot, thing in enumerate(spec.objects):
            for name, known in names.items():
                said = getattr(thing, name)
                table[name][row, slot] = 0 if said is None else known.index(said)
    relations = [s.relation or ("left" if len(s.objects) == 2 else None) for s in specs]
    places = np.array([PLACES[relation] for relation in relations])
    return Scenes(
        count=np.array([len(s.objects) for s in specs]),
        x=places[:, 0],
        y=places[:, 1],
        background=np.array([list(BACKGROUNDS).index(s.background or "white") for s in specs]),
        relation=np.array([-1 if r is None else RELATIONS.index(r) for r in relations]),
        **table,
    )


class Painter:
    """Draws what the captions say; `spoil` changes the scenes before. Also plays a DALL·E."""

    def __init__(self, spoil=lambda scenes, first: scenes) -> None:
        self.rows, self.spoil, self.calls = torch.zeros(1), spoil, []

    def __call__(self, prompts, n, seed) -> Tensor:
        scenes = scenes_of([parse(p) for p in prompts for _ in range(n)])
        return torch.from_numpy(render(self.spoil(scenes, n == 1)))

    def draw(self, prompts, request, sampling, **settings) -> Tensor:
        self.calls.append((len(prompts) * request.n, sampling.temperature, sampling.guidance))
        return self(prompts, request.n, 0)


class Reader:
    """A CLIP that understands: what says the same has the same vector."""

    logit_scale, config = torch.zeros(1), SimpleNamespace(image_size=32)
    reading = ORIGINAL

    def embed(self, said: np.ndarray) -> Tensor:
        rows = [np.random.default_rng(row + 1).standard_normal(64) for row in said]
        return torch.from_numpy(np.array(rows))

    def tokenize(self, texts, *, truncate) -> Tensor:
        return torch.from_numpy(statements(scenes_of([parse(text) for text in texts])))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens.numpy())

    def encode_image(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        pictures = ((images * std + mean) * 255).round().to(torch.uint8)
        return self.embed(statements(scenes_of(read(pictures.numpy()))))


class Blind(Reader):
    """A CLIP to which everything is the same."""

    def embed(self, said: np.ndarray) -> Tensor:
        return torch.ones(len(said), 4)

    encode_image = encode_text = lambda self, x: self.embed(x)


def wrong_background(scenes: Scenes, first: bool = True) -> Scenes:
    values = {name: getattr(scenes, name) for name in Scenes.__dataclass_fields__}
    return Scenes(**(values | {"background": (scenes.background + 1) % len(BACKGROUNDS)}))
