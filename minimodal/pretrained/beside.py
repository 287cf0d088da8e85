"""What lies beside an original's weights, and tells what their shapes cannot.

    config.json, preprocessor_config.json    of Hugging Face; config.json also of a VQGAN, as JSON
    open_clip_config.json                    of OpenCLIP
    NAME.yaml, model.yaml, *-project.yaml    of taming-transformers, also in configs/
    merges.txt, tokenizer.json, bpe_….gz     CLIP's tokenizer

A file or a folder in, all that is found out; read `files.py` before.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from minimodal.errors import UserError
from minimodal.pretrained.files import read_json

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors",
           "pytorch_model.bin")  # fmt: skip
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
CONFIGS = ("config.json", "open_clip_config.json", "preprocessor_config.json")
MERGES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "tokenizer.json")
SETTINGS = ("model.yaml", "project.yaml", "config.yaml", "*-project.yaml")


def _value(text: str) -> Any:
    """A number, a word or a list of numbers, which YAML writes as JSON does."""
    words = {"": "null", "~": "null", "True": "true", "False": "false"}
    try:
        return json.loads(words.get(text, text))
    except ValueError:
        if re.fullmatch(r"'[^']*'|[\w./-]([^:{}\[\]]|:\S)*", text):
            return text.strip("'")
        raise


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file, or the part `model` (if there is none, all) of YAML of the plain kind."""
    if path.suffix not in (".yaml", ".yml"):
        return read_json(path)
    text = re.sub(r"(^|\s)#.*|^---.*", "", path.read_text(errors="replace"), flags=re.MULTILINE)
    text = re.sub(r"\[[^\[\]]*\]", lambda match: " ".join(match[0].split()), text)
    model = re.search(r"^model:.*\n(?:[ \t-].*\n|\n)*", text + "\n", re.MULTILINE)
    found, name = {}, ""
    parts: list[tuple[int, dict[str, Any]]] = [(0, found)]  # from the outside in
    for row in (model[0] if model else text).splitlines():
        line = row.lstrip(" ").rstrip()
        depth = len(row) - len(row.lstrip(" "))
        try:
            if line[:2] in ("-", "- "):  # an item of what the last name stands for
                parts[-1][1][name] = [*(parts[-1][1][name] or []), _value(line[1:].strip())]
            elif line:
                if depth > parts[-1][0] and parts[-1][1][name] is None:
                    parts[-1][1][name] = inner = {}
                    parts.append((depth, inner))
                while depth < parts[-1][0]:
                    parts.pop()
                name, colon, value = line.partition(":")
                if depth != parts[-1][0] or not colon or name in parts[-1][1] or "\t" in row:
                    raise ValueError
                parts[-1][1][name] = _value(value.strip())
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: {line[:60]!r} is more than the plain YAML that is read here; write its "
                "part `model` as JSON into a config.json beside the checkpoint"
            ) from None
    return found


class Beside(NamedTuple):
    """What was found; {} and None for what was not."""

    weights: list[Path]  # the files of one model
    huggingface: dict[str, Any]
    open_clip: dict[str, Any]
    pictures: dict[str, Any]  # of Hugging Face
    merges: Path | None


def weights_in(folder: Path) -> list[Path]:
    """The files of a folder that hold its model's tensors; an empty list where none do."""
    if named := [folder / name for name in WEIGHTS if (folder / name).exists()]:
        return named[:1]
    for index in (folder / f"{name}.index.json" for name in WEIGHTS):
        if index.exists():
            return [folder / name for name in sorted({*read_json(index)["weight_map"].values()})]
    places = (folder, folder / "checkpoints")
    files = [file for place in places for file in place.glob("*") if file.suffix in SUFFIXES]
    files = sorted(file for file in files if file.stem in ("last", "epoch_latest")) or sorted(files)
    if len(files) > 1 and not all("-of-" in file.name for file in files):
        names = ", ".join(file.name for file in files[:4])
        raise UserError(f"{folder} holds {len(files)} checkpoints ({names}): give one of them")
    return files


def vqgan_settings(path: Path) -> dict[str, Any]:
    """The configuration beside a checkpoint of taming's: config.json, else the original's YAML."""
    config = look(path).huggingface
    if any(name in config for name in ("ddconfig", "model", "transformer", "first_stage")):
        return config
    for place in (path.parent, path.parent / "configs", path.parent.parent / "configs"):
        for name in (f"{path.stem}.y*ml", *SETTINGS):
            # Of several -project.yaml, whose names begin with their dates, the last.
            for file in sorted(place.glob(name))[-1:]:
                print(f"{path}: read with {file}", file=sys.stderr)
                return read_settings(file)
    return {}


def look(path: Path) -> Beside:
    """What lies beside the weights of a file, or in a folder, that others wrote."""
    folder = path if path.is_dir() else path.parent
    # A part of a model's weights stands for all.
    weights = weights_in(folder) if path.is_dir() or "-of-" in path.name else [path]
    if not weights:
        held = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise UserError(f"{path} holds no weights ({', '.join(SUFFIXES)}) but {held}")
    found = [read_json(folder / name) if (folder / name).exists() else {} for name in CONFIGS]
    merges = next((folder / name for name in MERGES if (folder / name).exists()), None)
    return Beside(weights, {} if "kind" in found[0] else found[0], *found[1:], merges)
