"""`minimodal.load`: from a run folder back to a model.

A run folder says in config.json which system it holds and how it was shaped; the weights are in
model.safetensors, a tokenizer beside them where there are captions. A DALL·E run carries a copy
of its VQGAN, so that it draws wherever it is moved. Read `training/checkpoint.py` before.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from minimodal.clip import CLIP, CLIPConfig
from minimodal.dalle import DALLE, DALLEConfig
from minimodal.data.tokenizer import Tokenizer
from minimodal.errors import UserError
from minimodal.training.checkpoint import load_run_config, load_weights
from minimodal.vqgan import VQGAN, VQGANConfig

Config = TypeVar("Config", VQGANConfig, CLIPConfig, DALLEConfig)


def rebuild(kind: type[Config], stored: dict[str, Any]) -> Config:
    """A configuration from the JSON of a run; what else the JSON holds is left out."""
    names = {field.name for field in dataclasses.fields(kind)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items() if k in names}
    return kind(**values)


def fill(model: nn.Module, path: Path) -> None:
    """Put a run's weights into a model of its shape."""
    try:
        model.load_state_dict(load_weights(path))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{path}: model.safetensors does not fit config.json ({first}); "
            "the two files are from different runs"
        ) from None


def painter(vqgan: VQGAN) -> Callable[[Tensor], Tensor]:
    """VQGAN's decoder for DALL·E to call: no part of its weights, but on the device of its codes.

    returns: a function from codes (B, h, w) int64 to pictures (B, 3, H, W) in [-1, 1]
    """
    return lambda codes: vqgan.to(codes.device).decode_indices(codes)


def load(path: str | Path, *, kind: str | None = None) -> VQGAN | CLIP | DALLE:
    """The model of a run folder, in eval mode, on the CPU; `model.run` is its config.json.

    With `kind` ("vqgan", "clip", "dalle") a run of another system is an error.
    """
    path = Path(path)
    run = load_run_config(path, kind=kind)
    model: VQGAN | CLIP | DALLE
    try:
        if run["kind"] == "vqgan":
            model = VQGAN(rebuild(VQGANConfig, run["model"]))
        elif run["kind"] == "clip":
            model = CLIP(rebuild(CLIPConfig, run["model"]))
            model.tokenizer = Tokenizer.load(path / "tokenizer.json")
        elif run["kind"] == "dalle":
            model = DALLE(rebuild(DALLEConfig, run["model"]))
            model.tokenizer = Tokenizer.load(path / "tokenizer.json")
            model.decode_indices = painter(load(path / "vqgan", kind="vqgan"))
        else:
            raise UserError(f"{path} holds a '{run['kind']}', which this version cannot load")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'config.json'} is damaged: it lacks {error}") from None
    fill(model, path)
    model.run = run
    return model.eval()
