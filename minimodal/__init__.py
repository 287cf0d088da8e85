"""minimodal: CLIP, VQGAN and DALL·E from scratch, in files that one can read in a sitting.

`minimodal.load(path)` gives the model of a run folder, or of an original checkpoint. Each system is
a module here, such as `minimodal.clip`; what they are built from is in `minimodal.blocks`, and
loaders for each kind of original in `minimodal.pretrained`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]  # noqa: F822


def __getattr__(name: str) -> Any:
    """What needs PyTorch, on first use: a Ctrl-C in the seconds that PyTorch's import takes is then
    one that a command can answer."""
    if name == "load":
        return import_module("minimodal.runs").load
    if find_spec(f"minimodal.{name}"):
        return import_module(f"minimodal.{name}")
    raise AttributeError(f"module 'minimodal' has no attribute '{name}'")
