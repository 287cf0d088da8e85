"""`minimodal.load`: from a run folder, or an original checkpoint, to a model.

A run folder says in config.json which system it holds and how it was shaped; the weights are in
model.safetensors, a tokenizer beside them where there are captions. A run that needs another's
model, as DALL·E a VQGAN, carries a copy, so that it works wherever it is moved. A file, or a folder
that others wrote, is taken for an original; which loader it needs shows in its names. Read
`training/checkpoint.py` before, and `pretrained/` for the originals.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from minimodal.errors import UserError, check_choice
from minimodal.pretrained import huggingface_clip, openai_clip, taming, taming_transformer
from minimodal.pretrained.beside import look, vqgan_settings
from minimodal.pretrained.clip_tokenizer import load_clip_tokenizer
from minimodal.pretrained.files import read_json, read_tensors
from minimodal.pretrained.naming import check_known
from minimodal.training.checkpoint import load_run_config, load_weights

ORIGINALS = ("clip", "vqgan", "vqgan-prior")  # systems of which others' weights can be read
Config = TypeVar("Config")


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


def is_original(path: Path, kind: str | None = None) -> bool:
    """Whether a path is a checkpoint that others wrote, and no run folder. A folder of runs is a
    `UserError`, which names those of the system `kind`."""
    if not path.is_dir() or (path / "open_clip_config.json").exists():
        return True
    if (path / "config.json").exists():
        return "kind" not in read_json(path / "config.json")
    inside = sorted(path.glob("*/config.json"))
    runs = {str(config.parent): read_json(config).get("kind") for config in inside}
    runs = {run: its for run, its in runs.items() if its}
    if fitting := [run for run, its in runs.items() if kind in (None, its)]:
        raise UserError(f"{path} is a folder of runs: give one of them, {' or '.join(fitting)}")
    if runs:
        raise UserError(
            f"{path} is a folder of runs, and none of them is a {kind}, which train.py {kind} makes"
        )
    return True


def find(path: str | Path, kind: str | None = None, *, flag: str = "") -> Path:
    """The run or checkpoint that a path means: of a file of a run the run, of a folder of runs, as
    the demo's, the one of the system `kind`, else the path itself.

    flag: by which the user gave the path, to be named where there is nothing
    """
    path = Path(path)
    if not path.exists():
        way = f"give {flag} with a run" if flag else "give a run"
        raise UserError(
            f"{flag} {path}: no such file or folder, and nothing is downloaded by its name: "
            f"`python -m minimodal train demo` makes runs/demo, or {way} or an original checkpoint "
            "that you have, such as OpenAI's ViT-B-32.pt or a folder from huggingface.co".lstrip()
        )
    if path.is_file():
        up = path.parent.parent if path.parent.name == "state" else path.parent
        part = up != path.parent or path.name in ("model.safetensors", "config.json")
        config = up / "config.json"
        if part and config.is_file() and "kind" in read_json(config):
            print(f"{path} is a part of the run {up}, which is used", file=sys.stderr)
            return up
    elif kind and not (path / "config.json").exists() and (path / kind / "config.json").exists():
        return path / kind
    return path


def load_original(
    path: Path, *, merges: str | Path | None, kind: str | None, activation: str | None
) -> nn.Module:
    """An original CLIP (OpenAI's, OpenCLIP's, Hugging Face's), VQGAN or its transformer."""
    beside, source = look(path), str(path)
    tensors = read_tensors(*beside.weights)
    check_known(tensors, source=source)
    if taming.is_taming(tensors) or taming_transformer.is_transformer(tensors):
        prior = taming_transformer.is_transformer(tensors) and kind != "vqgan"
        read = taming_transformer.convert if prior else taming.convert
        return read(tensors, vqgan_settings(beside.weights[0]), source=source)
    if "visual_projection.weight" in tensors:
        clip = huggingface_clip.convert(
            tensors, beside.huggingface, source=source, pictures=beside.pictures,
            activation=activation,
        )  # fmt: skip
    elif "visual.conv1.weight" not in tensors:
        raise UserError(
            f"{path} is no model that this program knows: it lacks visual.conv1.weight (of a CLIP) "
            f"and quantize.embedding.weight (of a VQGAN) and has {', '.join(sorted(tensors)[:3])}"
        )
    else:
        clip = openai_clip.convert_unnamed(tensors, beside, source=source, activation=activation)
    # Without one, or with none of the model's vocabulary, pictures can still be embedded.
    merges, known = merges or beside.merges, clip.config.vocab_size
    try:
        tokenizer = load_clip_tokenizer(merges)
    except UserError:
        if merges is not None:
            raise
        return clip
    if tokenizer.vocab_size == known:
        clip.tokenizer = tokenizer
    elif merges is not None:
        raise UserError(
            f"{merges} makes {tokenizer.vocab_size} tokens and {path} knows {known}: it is the "
            "merges file of another model"
        )
    return clip


def load(
    path: str | Path, *, kind: str | None = None, merges: str | Path | None = None,
    activation: str | None = None,
) -> nn.Module:  # fmt: skip
    """The model of a run folder or an original checkpoint, in eval mode, on the CPU.

    `model.run` is the run's config.json. With `kind` ("vqgan", "clip", …) another system is an
    error. `merges` is the file of an original CLIP's tokenizer (bpe_simple_vocab_16e6.txt.gz), and
    `activation` what it computes with ("gelu" or "quick_gelu") where nothing beside it says so.
    """
    from minimodal.training.recipes import SYSTEMS  # here, since recipes load the runs they need

    path = find(path, kind)
    if activation is not None:
        check_choice("activation", activation, ("gelu", "quick_gelu"))
    if is_original(path, kind):
        if kind not in (None, *ORIGINALS):
            raise UserError(f"{path} is no run folder; a trained {kind} is expected here")
        original = load_original(path, merges=merges, kind=kind, activation=activation)
        if kind not in (None, original.run["kind"]):
            raise UserError(f"{path} holds a {original.run['kind']}; a {kind} is expected here")
        return original
    if activation is not None:
        raise UserError(f"{path} is a run, which knows its activation; leave that out")
    run = load_run_config(path, kind=kind)
    if run["kind"] not in SYSTEMS:
        raise UserError(f"{path} holds a '{run['kind']}', which this version cannot load")
    try:
        model = SYSTEMS[run["kind"]].restore(run["model"], path)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'config.json'} is damaged: it lacks {error}") from None
    fill(model, path)
    model.run = run
    return model.eval()
