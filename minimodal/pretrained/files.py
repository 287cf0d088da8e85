"""Tensors out of foreign files, without running what the files say.

`read_tensors` understands safetensors, what `torch.save` writes (read with weights_only=True) and
TorchScript archives, in which OpenAI published CLIP. The last are zip files with a pickle that
names classes of the archive's own code; torch would compile that code. Here the pickle is read by
an unpickler that knows tensors and nothing else: a class becomes an empty object that collects
its attributes, and what is a tensor at path a.b.c is called "a.b.c". Checkpoints of Lightning,
which keep their callbacks and settings as objects of its classes, are read in the same way: of
the libraries named in BYSTANDERS every class becomes such an object, and none is imported.

Checkpoints wrap their model in dictionaries and in modules of other names; here all of it is one
level of dotted names, in which a model is found by a tensor that all of its kind have (ANCHORS).
A path or a state dict in, names and tensors of one model out. Read nothing before.
"""

import json
import math
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from minimodal.errors import UserError

STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "ByteStorage": torch.uint8,
    "BFloat16Storage": torch.bfloat16, "DoubleStorage": torch.float64, "BoolStorage": torch.bool,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
}  # fmt: skip
# Whose objects lie in checkpoints beside the tensors. They are not needed, and not made.
BYSTANDERS = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities",
              "omegaconf", "argparse", "numpy", "typing", "pathlib", "collections",
              "datetime")  # fmt: skip
PLAIN = ("dict", "list", "set", "tuple", "int", "float", "str", "bool", "object", "complex",
         "slice", "range", "xrange", "bytes", "bytearray", "frozenset")  # fmt: skip

# --- TorchScript archives ------------------------------------------------------------------------


class _Module:
    """Stands for any class of the archive: it keeps its attributes and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Module":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "_Module":
        return self

    def __hash__(self) -> int:
        return id(self)

    def append(self, *_: Any) -> None:
        """What the stand-in of a list, a dictionary or a set is asked to do: nothing."""

    extend = add = __setitem__ = append

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    # Checked here: as_strided would read beyond the storage's end, or let torch abort.
    if min((offset, *size, *stride), default=0) < 0:
        raise ValueError("a tensor with a negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and last >= storage.numel():
        raise ValueError("a tensor beyond the end of its storage")
    return storage.as_strided(size, stride, offset).clone()


def _first(value: Any, *_: Any) -> Any:
    return value


class _ArchiveUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str, *, bystanders: bool = False) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root, self.bystanders = archive, root, bystanders
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        allowed = {
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _first,
            "collections.OrderedDict": OrderedDict,
        }
        if module == "torch.jit._pickle":  # lists of one type
            return _first
        if f"{module}.{name}" in allowed:
            return allowed[f"{module}.{name}"]
        plain = module in ("builtins", "__builtin__") and name in PLAIN
        # Sizes, devices and dtypes lie in torch itself; numpy's arrays keep their bytes as text.
        beside = module == "torch" or (module, name) == ("_codecs", "encode")
        if self.bystanders and (plain or beside or module.split(".")[0] in BYSTANDERS):
            return _Module
        raise ValueError(f"it asks for {module}.{name}, which is refused: it could run code")

    def persistent_load(self, saved: Any) -> Tensor:
        _, dtype, key, _, count = saved
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            if len(data) < count * torch.empty((), dtype=dtype).element_size():
                raise ValueError(f"storage {key} is cut off")
            empty = torch.empty(0, dtype=dtype)  # frombuffer refuses to make one
            self.storages[key] = (
                torch.frombuffer(data, dtype=dtype, count=count) if count else empty
            )
        return self.storages[key]


def _walk(stored: Any) -> Iterator[tuple[str, Tensor]]:
    seen, todo = set(), [((), stored)]  # a pickle can contain itself
    while todo:
        path, here = todo.pop()
        if isinstance(here, Tensor):
            yield ".".join(path), here
        elif id(here) not in seen and isinstance(here, (Mapping, list, tuple, _Module)):
            seen.add(id(here))
            here = vars(here) if isinstance(here, _Module) else here
            parts = here.items() if isinstance(here, Mapping) else enumerate(here)
            todo += [((*path, str(name)), part) for name, part in parts]


def _unpickle(path: Path, *, bystanders: bool) -> Any:
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        return _ArchiveUnpickler(archive, root, bystanders=bystanders).load()


# --- one model of what is stored -----------------------------------------------------------------

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


# --- any file ------------------------------------------------------------------------------------

SAFETENSORS = b"\0\0\0\0{"  # the end of its header's length and the header's start
STARTS = {  # what is often taken for a checkpoint, by its first bytes
    b"version https://git-lfs": "a Git LFS pointer: get the file that it stands for (git lfs pull)",
    b"<": "a web page: get the file itself, not the page that shows it",
    b"GGUF": "GGUF", b"\x89HDF": "HDF5, of Keras", b"\x1f\x8b": "a compressed file: unpack it",
    b"\x93NUMPY": "an array of NumPy", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture",
}  # fmt: skip
SUFFIXES = {".onnx": "ONNX", ".msgpack": "Flax", ".pb": "TensorFlow", ".tflite": "TensorFlow"}


def _no_checkpoint(path: Path, head: bytes) -> str | None:
    """What a file is instead of a checkpoint; None where it may be one."""
    start = next((what for first, what in STARTS.items() if head.lstrip().startswith(first)), None)
    if start or not head or path.suffix in SUFFIXES:
        return start or SUFFIXES.get(path.suffix, "empty: get it again")
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
    with open(path, "rb") as file:
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
                return _unpickle(path, bystanders=False)  # a TorchScript archive
    try:
        with open(path, "rb") as file:  # of a path torch would believe the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it names classes that torch does not let in
        if not zipped:
            raise
        return _unpickle(path, bystanders=True)


def _tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by dotted names; what is wrong with it is one line."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():  # opening a pipe may take for ever
        raise UserError(f"{path} is no file but a folder, pipe or device; give a checkpoint's file")
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


def read_state(given: str | Path | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file or of a state dict, and what to call it in messages."""
    if isinstance(given, Mapping):
        return one_model(given, source="this state dict"), "this state dict"
    return read_tensors(given), str(given)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected a JSON object")
    return content
