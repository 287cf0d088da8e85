"""`minimodal.load`: from a run folder, or an original checkpoint, to a model.

A run folder says in config.json which system it holds and how it was shaped; the weights are in
model.safetensors, a tokenizer beside them where there are captions. A DALL·E run carries a copy
of its VQGAN, so that it draws wherever it is moved. A file, or a folder that others wrote, is
taken for an original CLIP; which loader it needs shows in its names. Read
`training/checkpoint.py` before, and `pretrained/` for the originals.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from minimodal.clip import CLIP, CLIPConfig
from minimodal.dalle import DALLE, DALLEConfig
from minimodal.data.tokenizer import Tokenizer
from minimodal.data.words import KnownWords
from minimodal.errors import UserError
from minimodal.pretrained import huggingface_clip, openai_clip, taming, taming_transformer
from minimodal.pretrained.clip_tokenizer import CLIPTokenizer, load_clip_tokenizer
from minimodal.pretrained.files import read_json, read_tensors
from minimodal.pretrained.huggingface_clip import load_huggingface_clip
from minimodal.pretrained.openai_clip import load_open_clip
from minimodal.training.checkpoint import load_run_config, load_weights
from minimodal.vqgan import VQGAN, VQGANConfig
from minimodal.vqgan_prior import VQGANPrior, VQGANPriorConfig

Config = TypeVar("Config", VQGANConfig, CLIPConfig, DALLEConfig, VQGANPriorConfig)


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
            "the two files are from different runs, or the run is of an older minimodal"
        ) from None


def is_original(path: Path) -> bool:
    """Whether a path is a checkpoint that others wrote, and no run folder."""
    if not path.is_dir():
        return path.exists()
    if (path / "open_clip_config.json").exists():
        return True
    config = path / "config.json"
    return config.exists() and "model_type" in read_json(config)


def original_tokenizer(clip: CLIP, path: Path, merges: str | Path | None) -> CLIPTokenizer | None:
    """CLIP's tokenizer: of a merges file, of the checkpoint's folder, or of an installed package.

    None where there is none, or none of the model's vocabulary: pictures can still be embedded.
    """
    if merges is None and path.is_dir() and (path / "merges.txt").exists():
        merges = path / "merges.txt"
    try:
        tokenizer = load_clip_tokenizer(merges)
    except UserError:
        if merges is not None:
            raise
        return None
    if tokenizer.vocab_size != clip.config.vocab_size:
        if merges is not None:
            raise UserError(
                f"{merges} makes {tokenizer.vocab_size} tokens and {path} knows "
                f"{clip.config.vocab_size}: it is the merges file of another model"
            )
        return None
    return tokenizer


def stated(beside: Path) -> dict[str, Any] | None:
    """The configuration beside an original VQGAN's checkpoint, if it is one of a VQGAN."""
    config = read_json(beside) if beside.exists() else {}
    known = ("ddconfig", "model", "transformer", "first_stage")
    return config if any(name in config for name in known) else None


def load_original(
    path: Path, *, merges: str | Path | None, kind: str | None
) -> CLIP | VQGAN | VQGANPrior:
    """An original CLIP (OpenAI's, OpenCLIP's, Hugging Face's), VQGAN or its transformer."""
    if path.is_dir():
        theirs = (path / "open_clip_config.json").exists()
        clip = load_open_clip(path) if theirs else load_huggingface_clip(path)
    else:
        tensors, beside = read_tensors(path), path.parent / "config.json"
        if taming_transformer.is_transformer(tensors) and kind != "vqgan":
            return taming_transformer.convert(tensors, stated(beside), source=str(path))
        if taming.is_taming(tensors):
            return taming.convert(tensors, stated(beside), source=str(path))
        if "visual_projection.weight" in tensors:
            config = read_json(beside) if beside.exists() else None
            clip = huggingface_clip.convert(tensors, config, source=str(path))
        else:
            # OpenAI's archives hold this number, and no others do.
            theirs = "input_resolution" in tensors
            activation = "quick_gelu" if theirs else "gelu"
            if not theirs:
                print(
                    f"{path}: taken for OpenCLIP's, with the exact GELU and heads of 64; where that"
                    " is wrong, use a loader of minimodal.pretrained and say so",
                    file=sys.stderr,
                )
            clip = openai_clip.convert(
                tensors, source=str(path), activation=activation, vision={}, text={}
            )
    clip.tokenizer = original_tokenizer(clip, path, merges)
    return clip


def load(
    path: str | Path, *, kind: str | None = None, merges: str | Path | None = None
) -> VQGAN | CLIP | DALLE | VQGANPrior:
    """The model of a run folder or an original checkpoint, in eval mode, on the CPU.

    `model.run` is the run's config.json. With `kind` ("vqgan", "vqgan-prior", "clip", "dalle")
    another system is an error. `merges` is the file of an original CLIP's tokenizer
    (bpe_simple_vocab_16e6.txt.gz).
    """
    path = Path(path)
    if is_original(path):
        if kind == "dalle":
            raise UserError(f"{path} is no run folder; a trained {kind} is expected here")
        original = load_original(path, merges=merges, kind=kind)
        if kind not in (None, original.run["kind"]):
            raise UserError(f"{path} holds a {original.run['kind']}; a {kind} is expected here")
        return original
    run = load_run_config(path, kind=kind)
    model: VQGAN | CLIP | DALLE | VQGANPrior
    try:
        if run["kind"] == "vqgan":
            model = VQGAN(rebuild(VQGANConfig, run["model"]))
        elif run["kind"] == "clip":
            model = CLIP(rebuild(CLIPConfig, run["model"]))
            model.tokenizer = Tokenizer.load(path / "tokenizer.json")
            model.words = KnownWords.load(path / "words.json")
        elif run["kind"] == "vqgan-prior":
            model = VQGANPrior(rebuild(VQGANPriorConfig, run["model"]))
            model.class_names = run["model"]["class_names"]
            model.paint_with(load(path / "vqgan", kind="vqgan"))
        elif run["kind"] == "dalle":
            model = DALLE(rebuild(DALLEConfig, run["model"]))
            model.tokenizer = Tokenizer.load(path / "tokenizer.json")
            model.paint_with(load(path / "vqgan", kind="vqgan"))
            model.words = KnownWords.load(path / "words.json")
        else:
            raise UserError(f"{path} holds a '{run['kind']}', which this version cannot load")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'config.json'} is damaged: it lacks {error}") from None
    fill(model, path)
    model.run = run
    return model.eval()


def run_of(kind: str, path: Path, flag: str) -> Path:
    """The run of a system ("vqgan", "vqgan-prior", "clip", "dalle") in a demo folder, or the path
    itself, which the user gave with a flag."""
    if not path.exists():
        raise UserError(
            f"{flag} {path}: no such file or folder; `python -m minimodal train demo` makes "
            f"runs/demo, or give {flag} with a run or an original checkpoint"
        )
    inside = path / kind
    demo = (inside / "config.json").exists() and not (path / "config.json").exists()
    return inside if demo else path
