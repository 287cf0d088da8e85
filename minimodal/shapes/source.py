"""The Shapes world as a data source: pictures and captions without end, without a file.

`ShapesSource` has the interface of every source: images(indices) -> uint8 (B, 3, S, S) and
captions(indices, rng) -> list of B strings. Picture number i depends on (seed, split, i) alone.
With contrast=True indices come in groups of four whose captions differ in one thing (colours,
shapes or places exchanged): hard negatives that a batch of CLIP should hold together.

The world itself (scenes, rendering, swaps) is in `shapes_world.py`, its captions and their parser
in `shapes_language.py`; both are importable from here. `oracle.py` reads pictures back.
"""

import hashlib
import json

import numpy as np

from minimodal.errors import UserError
from minimodal.shapes.language import (
    DRAWS,
    LOOSE_DRAWS,
    ObjectSpec,
    Spec,
    captions,
    parse,
)
from minimodal.shapes.world import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    LATTICE,
    OPPOSITE,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scenes,
    concatenate,
    coverage,
    draw_contrast,
    draw_scenes,
    has_held_out,
    render,
    statements,
    swap,
    without_relation,
)

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "HELD_OUT",
    "LATTICE",
    "OPPOSITE",
    "RADIUS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "ObjectSpec",
    "Scenes",
    "ShapesSource",
    "Spec",
    "captions",
    "concatenate",
    "coverage",
    "draw_contrast",
    "draw_scenes",
    "has_held_out",
    "parse",
    "render",
    "statements",
    "swap",
    "without_relation",
]

_VERSION = 3  # of the world: a change of what (seed, i) means must change the fingerprint
_GROUPS = 4  # the same of contrast groups
LOOSE_SHARE = 0.6  # of training captions
UNSAID_SHARE = 0.4  # of loose contrast groups, those whose captions do not say where objects are


class ShapesSource:
    """Captioned pictures of the Shapes world; `length` of them, made when asked for."""

    name = "shapes"
    class_names = None
    labels = None
    has_captions = True

    def __init__(
        self,
        seed: int = 0,
        *,
        split: str = "train",
        image_size: int = 32,
        pairs: str = "seen",
        contrast: bool = False,
        length: int = 1_000_000,
    ) -> None:
        """pairs: "seen" (no HELD_OUT pair), "held_out" (at least one in every scene) or "all"."""
        if split not in ("train", "val"):
            raise UserError(f"shapes: split '{split}' is unknown; expected 'train' or 'val'")
        if pairs not in ("seen", "held_out", "all"):
            raise UserError(f"shapes: pairs '{pairs}' is unknown; expected seen, held_out or all")
        if contrast and pairs == "held_out":
            raise UserError("shapes: contrast groups need pairs 'seen' or 'all', not 'held_out'")
        if contrast and length % 4:
            raise UserError(f"shapes: contrast groups have 4 pictures; length {length} has a rest")
        if image_size < 8:
            raise UserError(f"shapes: image_size {image_size} is too small; expected 8 or more")
        self.seed, self.split, self.image_size = seed, split, image_size
        self.pairs, self.contrast, self.length = pairs, contrast, length
        self.group = 4 if contrast else 1

    def __len__(self) -> int:
        return self.length

    def scenes(self, indices: np.ndarray) -> Scenes:
        """The scenes themselves.

        indices: (B,) int64
        """
        indices = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if len(indices) and not (0 <= indices.min() and indices.max() < self.length):
            raise IndexError(f"shapes has pictures 0 to {self.length - 1}")
        draw = draw_contrast if self.contrast else draw_scenes
        stream = 2 * (self.split == "val") + self.contrast
        return draw(self.seed, indices, stream=stream, pairs=self.pairs)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """The pictures, made now.

        indices: (B,) int64
        returns: (B, 3, S, S) uint8
        """
        return render(self.scenes(indices), self.image_size)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One caption a picture, six in ten loose. In a contrast group all state the same, by
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

    def fingerprint(self) -> str:
        """sha256 over all that decides the pictures and captions."""
        fields = ("seed", "split", "image_size", "pairs", "contrast", "length")
        described = {"shapes": _VERSION} | {f: getattr(self, f) for f in fields}
        if self.contrast:
            described["groups"] = _GROUPS
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
