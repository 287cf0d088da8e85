"""Tensors out of foreign files, without running what the files say.

`read_tensors` understands safetensors, what `torch.save` writes (read with weights_only=True),
TorchScript archives, in which OpenAI published CLIP and which torch would compile, and checkpoints
of Lightning, which hold objects of its classes. The last two are read by `data/pickles.py`: a class
becomes an empty object. What is a tensor at path a.b.c is called "a.b.c"; in these names a model is
found by a tensor that all of its kind have (ANCHORS), however it was wrapped.

A path or a state dict in, names and tensors of one model out.
"""

import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from minimodal import files
from minimodal.data.pickles import BYSTANDERS, StandIn, read_archive
from minimodal.errors import UserError
from minimodal.files import asking


def _walk(stored: Any) -> Iterator[tuple[str, Tensor]]:
    seen, todo = set(), [((), stored)]  # a pickle can contain itself
    while todo:
        path, here = todo.pop()
        if isinstance(here, Tensor):
            yield ".".join(path), here
        elif id(here) not in seen and isinstance(here, (Mapping, list, tuple, StandIn)):
            seen.add(id(here))
            here = vars(here) if isinstance(here, StandIn) else here
            parts = here.items() if isinstance(here, Mapping) else enumerate(here)
            todo += [((*path, str(name)), part) for name, part in parts]


# Of each kind of model a tensor that all have; what stands before its name is where the model lies.
ANCHORS = (
    "transformer.tok_emb.weight",  # a transformer of taming, ahead of the VQGAN in its checkpoint
    "visual_projection.weight",  # a CLIP of Hugging Face
    "visual.conv1.weight",  # one of OpenAI or OpenCLIP
    "quantize.embedding.weight",  # a VQGAN
    "quantize.embed.weight",
    "features.0.weight",  # VGG16, LPIPS's weights
    "lin0.model.1.weight",
)
AVERAGED = re.compile(r"ema|av(era)?g|swa|shadow", re.IGNORECASE)


def one_model(stored: Any, *, source: str) -> dict[str, Tensor]:
    """The tensors of a model under its own names, and on stderr where they were.

    Of several, such as the trained and the averaged weights, the averaged ones are taken.
    """
    tensors = dict(_walk(stored))
    places: list[str] = []
    for anchor in ANCHORS:
        found = [name.removesuffix(anchor) for name in tensors if name.endswith(anchor)]
        places = places or [place for place in found if place == "" or place[-1] == "."]
    if not places:
        return tensors
    place, *others = sorted(places, key=lambda p: (not AVERAGED.search(p), len(p), p))
    if others or place not in ("", "state_dict."):
        more = f"; not {', '.join(map(repr, others))}, which it holds too" if others else ""
        print(f"{source}: its model is what lies under {place!r}{more}", file=sys.stderr)
    return {n.removeprefix(place): t for n, t in tensors.items() if n.startswith(place)}


SAFETENSORS = b"\0\0\0\0{"  # the end of its header's length and the header's start
STARTS = {  # what is often taken for a checkpoint, by its first bytes
    b"version https://git-lfs": "a Git LFS pointer: get the file that it stands for (git lfs pull)",
    b"<": "a web page: get the file itself, not the page that shows it",
    b"GGUF": "GGUF", b"\x89HDF": "HDF5, of Keras", b"\x1f\x8b": "a compressed file: unpack it",
    b"\x93NUMPY": "an array of NumPy", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture",
}  # fmt: skip
OTHERS = {".gguf": "GGUF", ".h5": "HDF5, of Keras", ".onnx": "ONNX", ".msgpack": "Flax",
          ".pb": "TensorFlow", ".tflite": "TensorFlow", ".mlmodel": "Core ML"}  # fmt: skip


def check_file(path: Path) -> None:
    """Refuse what is no file; opening a pipe may take for ever."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path} is no file but a folder, pipe or device; give the file itself")


def _no_checkpoint(path: Path, head: bytes) -> str | None:
    """What a file is instead of a checkpoint; None where it may be one."""
    start = next((what for first, what in STARTS.items() if head.lstrip().startswith(first)), None)
    if start or not head or path.suffix in OTHERS:
        return start or OTHERS.get(path.suffix, "empty: get it again")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        pickled = any(name.endswith("data.pkl") for name in names)
        return None if pickled else f"a zip file of {', '.join(names[:3])}: unpack it"
    if head[257:262] == b"ustar":
        return "a tar file: unpack it"
    text = not re.search(rb"[^\t\n\r -~]", head)
    return f"text ({head[:30].decode()!r}…)" if text else None


def _read(path: Path) -> Any:
    with asking("read", path), open(path, "rb") as file:
        head = file.read(512)
    zipped = zipfile.is_zipfile(path)
    safe = head[4:9] == SAFETENSORS
    if not safe and (other := _no_checkpoint(path, head)):
        raise UserError(f"{path} is no checkpoint of PyTorch or safetensors but {other}")
    if safe or (path.suffix == ".safetensors" and not zipped):
        return load_file(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(name.split("/")[1:2] == ["code"] for name in archive.namelist()):
                return read_archive(path, stand_ins=("__torch__",))  # of TorchScript
    try:
        # Of a path torch would believe the suffix; and it warns of pickles that it then refuses.
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it names classes that torch does not let in
        if not zipped:
            raise
        return read_archive(path, stand_ins=BYSTANDERS)


def _tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by dotted names; what is wrong with it is one line."""
    check_file(path)
    try:
        return dict(_walk(_read(path)))
    except UserError:
        raise
    except (pickle.UnpicklingError, ValueError) as error:
        # torch's message goes on for a screen about how to switch the check off.
        named = re.search(r"GLOBAL (\S+)|(it asks .*)", str(error))
        reason = f"it asks for {named[1]}" if named and named[1] else named and named[2]
        reason = reason or "it is not what torch.save writes"
        with open(path, "rb") as file:
            if b"_backward_hooks" in file.read(1 << 26):  # torch does not compress
                reason = "it is a whole pickled model, which has to run its code"
        raise UserError(
            f"{path} is no checkpoint that can be read safely: {reason}; where it was made, save "
            "model.state_dict() and give that file"
        ) from None
    except Exception as error:  # a damaged file can raise nearly anything
        # Only the first sentence: some of torch's go on about how to switch the check off.
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise UserError(
            f"{path} is damaged, or no checkpoint ({reason}); get the file again"
        ) from None


def read_tensors(path: str | Path, *more: Path) -> dict[str, Tensor]:
    """The tensors of a model, on the CPU: of a .safetensors, a .pt or .bin file, or a TorchScript
    archive, or of several such parts."""
    tensors = {n: t for part in (path, *more) for n, t in _tensors_of(Path(part)).items()}
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return one_model(tensors, source=str(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    check_file(path)
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected a JSON object")
    return content
