"""What the sources of the harder Shapes worlds share: checks, length, numbers, fingerprint.

A world says its name and version and what it draws; see `HardSource` and `EditsSource`.
"""

import hashlib
import json

import numpy as np

from minimodal.errors import UserError


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
        length: int = 1_000_000,
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

    def fingerprint(self) -> str:
        """sha256 over all that decides the pictures and captions."""
        named = ("seed", "split", "image_size", "pairs", "length")
        described = {self.world: self.version} | {name: getattr(self, name) for name in named}
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
