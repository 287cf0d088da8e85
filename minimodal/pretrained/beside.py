"""What lies beside an original's weights, and tells what their shapes cannot.

    config.json, preprocessor_config.json    of Hugging Face; config.json also of a VQGAN, as JSON
    processor_config.json                    its part image_processor, which counts more
    open_clip_config.json, params.txt        of OpenCLIP, and of its trainings
    NAME.yaml, model.yaml, *-project.yaml    of taming-transformers, also in configs/
    merges.txt, tokenizer.json, bpe_….gz     CLIP's tokenizer

A file or a folder in, all that is found out; read `files.py` before.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from minimodal.errors import UserError
from minimodal.files import asking
from minimodal.pretrained.files import OTHERS, check_file, one_model, read_json, read_tensors
from minimodal.pretrained.stated import Stated

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors",
           "pytorch_model.bin")  # fmt: skip
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
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
    check_file(path)
    with asking("read", path):
        text = path.read_text(errors="replace")
    text = re.sub(r"(^|\s)#.*|^---.*", "", text, flags=re.MULTILINE)
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
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path}: {line[:60]!r} is more than the plain YAML that is read here; write its "
                "part `model` as JSON into a config.json beside the checkpoint"
            ) from None
    return found


def as_stated(config: str | Path | Mapping[str, Any] | Stated | None, *, source: str) -> Stated:
    """A configuration in any of the ways that it may be given: its file, its content, or none."""
    if isinstance(config, Stated):
        return config
    if isinstance(config, (str, Path)):
        return Stated(read_settings(Path(config)), source=source, file=str(config))
    return Stated({} if config is None else config, source=source)


class Beside(NamedTuple):
    """What was found; what was not says nothing."""

    weights: list[Path]  # the files of one model
    huggingface: Stated
    open_clip: Stated
    pictures: Stated  # of Hugging Face
    training: dict[str, str]  # of OpenCLIP
    merges: Path | None


def indexed(index: Path) -> list[Path]:
    """The files that an index of weights in parts names; all are there, and in its folder."""
    stated = Stated(read_json(index), source=str(index.parent), file=index.name)
    names = stated.part("weight_map", filled=True).fields.values()
    if not names:
        raise stated.wrong("weight_map", "the file of each tensor")
    for name in names:
        if not isinstance(name, str) or re.search(r"[/\\]|^\.*$", name):
            raise stated.wrong("weight_map", f"files beside it, and not {name!r:.60}")
    files = [index.parent / name for name in sorted({*names})]
    if missing := [file.name for file in files if not file.exists()]:
        raise UserError(
            f"{index.parent} lacks {', '.join(missing[:3])}: {len(missing)} of the {len(files)} "
            f"parts of its weights that {index.name} names; get them too"
        )
    return files


def weights_in(folder: Path) -> list[Path]:
    """The files of a folder that hold its model's tensors; an empty list where none do."""
    if named := [folder / name for name in WEIGHTS if (folder / name).exists()]:
        return named[:1]
    for index in (folder / f"{name}.index.json" for name in WEIGHTS):
        if index.exists():
            return indexed(index)
    places = (folder, folder / "checkpoints")
    files = [file for place in places for file in place.glob("*") if file.suffix in SUFFIXES]
    files = sorted(file for file in files if file.stem in ("last", "epoch_latest")) or sorted(files)
    if len(files) > 1 and not all("-of-" in file.name for file in files):
        names = ", ".join(file.name for file in files[:4])
        raise UserError(f"{folder} holds {len(files)} checkpoints ({names}): give one of them")
    return files


def vqgan_settings(path: Path) -> Stated:
    """The configuration beside a checkpoint of taming's: config.json, else the original's YAML."""
    config = look(path).huggingface
    if any(name in config.fields for name in ("ddconfig", "model", "transformer", "first_stage")):
        return config
    for place in (path.parent, path.parent / "configs", path.parent.parent / "configs"):
        for name in (f"{path.stem}.y*ml", *SETTINGS):
            # Of several -project.yaml, whose names begin with their dates, the last.
            for file in sorted(place.glob(name))[-1:]:
                print(f"{path}: read with {file}", file=sys.stderr)
                return Stated(read_settings(file), source=str(path), file=file.name)
    return Stated({}, source=str(path))


def read_params(weights: Path) -> dict[str, str]:
    """The params.txt of a training of OpenCLIP: `name: value` a line, above its checkpoints/."""
    for file in (weights.parent / "params.txt", weights.parent.parent / "params.txt"):
        if file.is_file():
            with asking("read", file):
                lines = file.read_text(errors="replace").splitlines()
            return {name.strip(): value.strip() for name, _, value in
                    (line.partition(":") for line in lines)}  # fmt: skip
    return {}


def look(path: Path) -> Beside:
    """What lies beside the weights of a file, or in a folder, that others wrote."""
    folder = path if path.is_dir() else path.parent
    # A part of a model's weights stands for all.
    weights = weights_in(folder) if path.is_dir() or "-of-" in path.name else [path]
    if not weights:
        why = {suffix: f" ({kind}: give what it was made from)" for suffix, kind in OTHERS.items()}
        held = sorted(file.name + why.get(file.suffix, "") for file in folder.iterdir())
        raise UserError(
            f"{path} is no run folder and holds no weights ({', '.join(SUFFIXES)}) but "
            f"{', '.join(held[:5]) or 'nothing'}"
        )

    def stated(name: str) -> Stated:
        file = folder / name
        fields = read_json(file) if file.exists() else {}
        if file.exists() and not fields:
            raise UserError(f"{file} says nothing ({{}}): get it again, or delete it")
        return Stated(fields, source=str(path), file=name)

    config, pictures = stated("config.json"), stated("processor_config.json")
    if "kind" in config.fields:  # a run of ours
        config = Stated({}, source=str(path))
    pictures = pictures.part("image_processor")
    if not pictures.fields:
        pictures = stated("preprocessor_config.json")
    merges = next((folder / name for name in MERGES if (folder / name).exists()), None)
    return Beside(weights, config, stated("open_clip_config.json"), pictures,
                  read_params(weights[0]), merges)  # fmt: skip


def read_beside(
    given: str | Path | Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], str, Beside | None]:
    """Tensors, what to call them, and what lies beside them, which is nothing for a state dict."""
    if isinstance(given, Mapping):
        source = "this state dict"
        return one_model(given, source=source), source, None
    beside = look(Path(given))
    return read_tensors(*beside.weights), str(given), beside
