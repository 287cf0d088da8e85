"""Synthetic worlds as data sources: pictures and captions without end, without a file.

`WorldSource` is what all worlds share: from picture numbers it makes scenes, pictures uint8
(B, 3, S, S) and captions, each a pure function of (seed, split, number). `ShapesSource` is the
plain world. With contrast=True its indices come in groups of four whose captions differ in one
thing (colours, shapes or places exchanged): hard negatives that a batch of CLIP should hold
together. Read `world.py` and `language.py` before.
"""

import hashlib
import json
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from minimodal.errors import UserError
from minimodal.shapes.language import DRAWS, LOOSE_DRAWS, captions
from minimodal.shapes.world import Scenes, draw_contrast, draw_scenes, render, without_relation

ENDLESS = 1_000_000  # pictures, where no other number is asked for
GROUPS = 4  # version of contrast groups
LOOSE_SHARE = 0.6  # of training captions
UNSAID_SHARE = 0.4  # of loose contrast groups, those whose captions do not say where objects are


@dataclass(eq=False)
class WorldSource:
    """A world of `length` captioned pictures, made when asked for.

    pairs: "seen" (no HELD_OUT pair), "held_out" (at least one in what is drawn) or "all"
    """

    seed: int = 0
    _: KW_ONLY
    split: str = "train"
    image_size: int = 32
    pairs: str = "seen"
    length: int = ENDLESS

    # What a world says of itself; from (seed, numbers, stream=, pairs=) `draw` makes its scenes,
    # and `paint` pictures of them at a size.
    name = "shapes"
    world = ""  # as in a data SPEC
    version = 0  # a change of what (seed, i) means must change the fingerprint
    items = "pictures"
    class_names = None
    labels = None
    has_captions = True
    group = 1

    def __post_init__(self) -> None:
        if self.split not in ("train", "val"):
            raise UserError(f"{self.world}: split '{self.split}' is unknown; expected train or val")
        if self.pairs not in ("seen", "held_out", "all"):
            raise UserError(f"{self.world}: pairs '{self.pairs}': expected seen, held_out or all")
        if self.image_size < 8:
            raise UserError(f"{self.world}: image_size {self.image_size}: expected 8 or more")

    def __len__(self) -> int:
        return self.length

    @property
    def stream(self) -> int:
        """Which of a seed's random streams the split draws from."""
        return int(self.split == "val")

    def scenes(self, indices: np.ndarray) -> Any:
        """The scenes themselves; an index that this source does not have is an IndexError.

        indices: (B,) int64
        """
        numbers = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if len(numbers) and not (0 <= numbers.min() and numbers.max() < self.length):
            raise IndexError(f"{self.world} has {self.items} 0 to {self.length - 1}")
        return self.draw(self.seed, numbers, stream=self.stream, pairs=self.pairs)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """The pictures, made now; of edits the second below the first.

        indices: (B,) int64
        returns: (B, 3, S, S) uint8
        """
        return self.paint(self.scenes(indices), self.image_size)

    def described(self) -> dict[str, Any]:
        """All that decides the pictures and captions."""
        named = ("seed", "split", "image_size", "pairs", "length")
        return {self.world: self.version} | {name: getattr(self, name) for name in named}

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides the pictures and captions."""
        return hashlib.sha256(json.dumps(self.described(), sort_keys=True).encode()).hexdigest()


@dataclass(eq=False)
class ShapesSource(WorldSource):
    """Captioned pictures of the Shapes world.

    contrast: groups of four
    """

    contrast: bool = field(default=False, kw_only=True)

    world = "shapes"
    version = 3
    paint = staticmethod(render)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrast and self.pairs == "held_out":
            # A held-out pair loses itself when colours are exchanged.
            raise UserError("shapes: contrast groups need pairs 'seen' or 'all', not 'held_out'")
        if self.contrast and self.length % 4:
            rest = f"length {self.length} has a rest"
            raise UserError(f"shapes: contrast groups have 4 pictures; {rest}")
        self.group = 4 if self.contrast else 1
        self.draw = draw_contrast if self.contrast else draw_scenes

    @property
    def stream(self) -> int:
        """Which of a seed's random streams it draws from: contrast groups have their own."""
        return 2 * (self.split == "val") + self.contrast

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One caption per picture, six in ten loose. In a contrast group all state the same, by
        the same template: all but what is the same for all (the background) or leaves the four
        different (where objects are)."""
        if not self.contrast:
            draws = rng.random((np.size(indices), LOOSE_DRAWS))
            return captions(self.scenes(indices), draws, loose=LOOSE_SHARE)
        groups, of = np.unique(indices // self.group, return_inverse=True)
        draws = rng.random((len(groups), LOOSE_DRAWS))
        members = (groups[:, None] * self.group + np.arange(self.group)).ravel()
        scenes: Scenes = self.scenes(members)  # (G * 4,) of which the batch may have asked a part
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
