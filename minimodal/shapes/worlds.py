"""The synthetic worlds, one record each: what draws them, what reads their captions, who judges.

    shapes    one or two objects on a lattice; every result of the README is on it
    hard      up to three objects anywhere, upon each other, on textured ground
    edits     pairs of pictures, with a caption of what makes the second of the first

A key is what stands behind the colon of a data SPEC (`shapes:hard`), and the key of its recipes.
Each world's files have its name; read `world.py`, `language.py` and `oracle.py` first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minimodal.shapes.edits import EditsSource, EditVerdict, expected, matches_edit
from minimodal.shapes.hard import HardSource
from minimodal.shapes.language import parse
from minimodal.shapes.oracle import Reading, Verdict, matches, read
from minimodal.shapes.oracle_hard import read_hard
from minimodal.shapes.source import ShapesSource, WorldSource

AnyVerdict = Verdict | EditVerdict


class World(NamedTuple):
    """A world: its data source, and the oracle that knows no more than the pictures.

    parse: what a caption asks for; of edits, what it makes of a first picture (3, S, S) uint8
    read: what is in each of N pictures (N, 3, S, S) uint8
    matches: whether that is what `parse` gave
    """

    source: type[WorldSource]
    parse: Callable[..., Any]
    read: Callable[[np.ndarray], list[Reading]]
    matches: Callable[[Any, Reading], AnyVerdict]

    def score(self, wanted: Sequence, pictures: np.ndarray) -> list[AnyVerdict]:
        """One verdict per picture; captions need not be parsed but for edits.

        pictures: (N, 3, S, S) uint8
        """
        if len(wanted) != len(pictures):
            many = f"{len(wanted)} captions for {len(pictures)} pictures"
            raise ValueError(f"{many}: expected as many")
        return [self.matches(w, r) for w, r in zip(wanted, self.read(pictures), strict=True)]


WORLDS = {
    "shapes": World(ShapesSource, parse, read, matches),
    "hard": World(HardSource, parse, read_hard, matches),
    "edits": World(EditsSource, expected, read, matches_edit),
}
