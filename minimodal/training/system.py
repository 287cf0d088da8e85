"""What the commands know of a system: its recipes, and how to build and restore it.

Read `contract.py` before; `recipes.SYSTEMS` has one record for each system.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from minimodal.training.contract import Recipe, Task


class System(NamedTuple):
    """A system as the commands see it; `recipes.SYSTEMS` has one record of each."""

    about: str  # its line in --help
    recipes: dict[str, Callable[[], Recipe]]  # by the kind of data; "": of any other
    # Of a recipe, a data SPEC, the runs that the system needs and a device makes the task.
    build: Callable[[Recipe, str, dict[str, Path], str], Task]
    # Of the model's part of a config.json and the run's folder makes the model, without weights.
    restore: Callable[[dict[str, Any], Path], nn.Module]
    needs: tuple[str, ...] = ()  # systems of which it is given a trained run
    decided: tuple[str, ...] = ()  # fields of its model that the data or a run decides: no flags
    events: tuple[str, ...] = ()  # fields of its training that are steps, moved with their number
