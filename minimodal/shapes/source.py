"""The Shapes world as a data source: pictures and captions without end, without a file.

`ShapesSource` has the interface of every source: images(indices) -> uint8 (B, 3, S, S) and
captions(indices, rng) -> list of B strings. With contrast=True indices come in groups of four
whose captions differ in one thing (colours, shapes or places exchanged): hard negatives that a
batch of CLIP should hold together. Read `world.py`, `language.py` and `base.py` before.
"""

from typing import Any

import numpy as np

from minimodal.errors import UserError
from minimodal.shapes.base import ENDLESS, WorldSource
from minimodal.shapes.language import DRAWS, LOOSE_DRAWS, captions
from minimodal.shapes.world import Scenes, draw_contrast, draw_scenes, render, without_relation

GROUPS = 4  # version of contrast groups
LOOSE_SHARE = 0.6  # of training captions
UNSAID_SHARE = 0.4  # of loose contrast groups, those whose captions do not say where objects are


class ShapesSource(WorldSource):
    """Captioned pictures of the Shapes world; `length` of them, made when asked for."""

    world = "shapes"
    version = 3

    def __init__(
        self,
        seed: int = 0,
        *,
        split: str = "train",
        image_size: int = 32,
        pairs: str = "seen",
        contrast: bool = False,
        length: int = ENDLESS,
    ) -> None:
        """contrast: groups of four; the others as `WorldSource` has them"""
        super().__init__(seed, split=split, image_size=image_size, pairs=pairs, length=length)
        if contrast and pairs == "held_out":
            raise UserError("shapes: contrast groups need pairs 'seen' or 'all', not 'held_out'")
        if contrast and length % 4:
            raise UserError(f"shapes: contrast groups have 4 pictures; length {length} has a rest")
        self.contrast, self.group = contrast, 4 if contrast else 1

    @property
    def stream(self) -> int:
        """Which of a seed's random streams it draws from: contrast groups have their own."""
        return 2 * (self.split == "val") + self.contrast

    def scenes(self, indices: np.ndarray) -> Scenes:
        """The scenes themselves.

        indices: (B,) int64
        """
        draw = draw_contrast if self.contrast else draw_scenes
        return draw(self.seed, self.numbers(indices), stream=self.stream, pairs=self.pairs)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """The pictures, made now.

        indices: (B,) int64
        returns: (B, 3, S, S) uint8
        """
        return render(self.scenes(indices), self.image_size)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One caption per picture, six in ten loose. In a contrast group all state the same, by
        the same template: all but what is the same for all (the background) or leaves the four
        different (where objects are)."""
        indices = np.atleast_1d(np.asarray(indices))
        if not self.contrast:
            draws = rng.random((len(indices), LOOSE_DRAWS))
            return captions(self.scenes(indices), draws, loose=LOOSE_SHARE)
        groups, of = np.unique(indices // self.group, return_inverse=True)
        draws = rng.random((len(groups), LOOSE_DRAWS))
        members = (groups[:, None] * self.group + np.arange(self.group)).ravel()
        scenes = self.scenes(members)  # (G * 4,) of which the batch may have asked for a part
        grounds = scenes.background.reshape(-1, self.group)
        said = np.sort(without_relation(scenes).reshape(-1, self.group))
        same = (grounds == grounds[:, :1]).all(axis=1)
        differ = (np.diff(said) > 0).all(axis=1)
        return captions(
            scenes[of * self.group + indices % self.group],
            draws[of],
            full=True,
            omit_background=np.where(same, 0.5, 0.0)[of],
            loose=LOOSE_SHARE,
            unsaid=np.where(differ, UNSAID_SHARE, 0.0)[of],
        )

    def loose_captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """Captions as people type: each has something that a strict one never has."""
        scenes = self.scenes(indices)
        return captions(scenes, rng.random((len(scenes), LOOSE_DRAWS)), loose=1.0)

    def full_captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """Strict captions that state every size, colour, background and relation."""
        scenes = self.scenes(indices)
        return captions(scenes, rng.random((len(scenes), DRAWS)), full=True)

    def all_captions(self, index: int) -> list[str]:
        """Five captions of one picture, the first of them a full one; always the same."""
        rng = np.random.default_rng((self.seed % 2**64, index))
        five = np.full(5, index)
        return self.full_captions(five[:1], rng) + captions(
            self.scenes(five[1:]), rng.random((4, LOOSE_DRAWS)), loose=LOOSE_SHARE
        )

    def described(self) -> dict[str, Any]:
        """All that decides the pictures and captions."""
        groups = {"groups": GROUPS} if self.contrast else {}
        return super().described() | {"contrast": self.contrast} | groups
