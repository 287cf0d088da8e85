"""A synthetic world as a data source: checks, length, numbers, fingerprint.

What the worlds of `worlds.py` share. Each says its name and version, and from picture numbers
makes scenes, pictures uint8 (B, 3, S, S) and captions. Picture number i depends on (seed, split,
i) alone, so that a world is endless and needs no file.
"""

import hashlib
import json
from typing import Any

import numpy as np

from minimodal.errors import UserError

ENDLESS = 1_000_000  # pictures, where no other number is asked for


class WorldSource:
    """A world of `length` captioned pictures, made when asked for."""

    name = "shapes"
    world = ""  # as in a data SPEC
    version = 0  # a change of what (seed, i) means must change the fingerprint
    items = "pictures"
    class_names = None
    labels = None
    has_captions = True
    group = 1

    def __init__(
        self,
        seed: int = 0,
        *,
        split: str = "train",
        image_size: int = 32,
        pairs: str = "seen",
        length: int = ENDLESS,
    ) -> None:
        """pairs: "seen" (no HELD_OUT pair), "held_out" (at least one in what is drawn) or "all"."""
        if split not in ("train", "val"):
            raise UserError(f"{self.world}: split '{split}' is unknown; expected 'train' or 'val'")
        if pairs not in ("seen", "held_out", "all"):
            raise UserError(f"{self.world}: pairs '{pairs}': expected seen, held_out or all")
        if image_size < 8:
            raise UserError(f"{self.world}: image_size {image_size}: expected 8 or more")
        self.seed, self.split, self.image_size = seed, split, image_size
        self.pairs, self.length = pairs, length

    def __len__(self) -> int:
        return self.length

    @property
    def stream(self) -> int:
        """Which of a seed's random streams the split draws from."""
        return int(self.split == "val")

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """Indices that this source has, as an array; others are an IndexError.

        returns: (B,) int64
        """
        indices = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if len(indices) and not (0 <= indices.min() and indices.max() < self.length):
            raise IndexError(f"{self.world} has {self.items} 0 to {self.length - 1}")
        return indices

    def described(self) -> dict[str, Any]:
        """All that decides the pictures and captions."""
        named = ("seed", "split", "image_size", "pairs", "length")
        return {self.world: self.version} | {name: getattr(self, name) for name in named}

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides the pictures and captions."""
        return hashlib.sha256(json.dumps(self.described(), sort_keys=True).encode()).hexdigest()
