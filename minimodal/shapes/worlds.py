"""The synthetic worlds, one record each: what draws them, what reads their captions, who judges.

    shapes    one or two objects on a lattice; every result of the README is on it
    hard      up to three objects anywhere, upon each other, on textured ground
    edits     pairs of pictures, with a caption of what makes the second of the first

A key is what stands behind the colon of a data SPEC (`shapes:hard`), and the key of its recipes.
Each world's files have its name; read `world.py`, `language.py` and `oracle.py` first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from minimodal.shapes.base import WorldSource
from minimodal.shapes.edits import EditsSource
from minimodal.shapes.hard import HardSource
from minimodal.shapes.language import parse
from minimodal.shapes.oracle import Verdict, score
from minimodal.shapes.oracle_edits import EditVerdict, expected, score_edits
from minimodal.shapes.oracle_hard import score_hard
from minimodal.shapes.source import ShapesSource

AnyVerdict = Verdict | EditVerdict


class World(NamedTuple):
    """A world: its data source, and the oracle that knows no more than the pictures.

    parse: what a caption asks for; of edits, what it makes of a first picture (3, S, S) uint8
    score: the verdicts of N pictures (N, 3, S, S) uint8 on N such answers of `parse`
    """

    source: type[WorldSource]
    parse: Callable[..., Any]
    score: Callable[..., list[AnyVerdict]]


WORLDS = {
    "shapes": World(ShapesSource, parse, score),
    "hard": World(HardSource, parse, score_hard),
    "edits": World(EditsSource, expected, score_edits),
}
