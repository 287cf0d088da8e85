"""Tensors out of foreign files, without running what the files say.

`read_tensors` understands safetensors, what `torch.save` writes (read with weights_only=True) and
TorchScript archives, in which OpenAI published CLIP. The last are zip files with a pickle that
names classes of the archive's own code; torch would compile that code. Here the pickle is read by
an unpickler that knows tensors and nothing else: a class becomes an empty object that collects
its attributes, and what is a tensor at path a.b.c is called "a.b.c". Checkpoints of Lightning,
which keep their callbacks and settings as objects of its classes, are read in the same way: of
the libraries named in BYSTANDERS every class becomes such an object, and none is imported.

A path in, names and tensors out. Read nothing before.
"""

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from minimodal.errors import UserError

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# Whose objects lie in checkpoints beside the tensors. They are not needed, and not made.
BYSTANDERS = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "argparse",
    "numpy",
    "typing",
    "pathlib",
    "collections",
    "datetime",
)
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

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """What a list's stand-in is asked to do."""

    def extend(self, values: Any) -> None:
        """The same."""

    def add(self, value: Any) -> None:
        """What a set's stand-in is asked to do."""

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
            "torch.jit._pickle.build_intlist": _first,
            "torch.jit._pickle.build_doublelist": _first,
            "torch.jit._pickle.build_boollist": _first,
            "torch.jit._pickle.build_tensorlist": _first,
            "torch.jit._pickle.restore_type_tag": _first,
        }
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


def _walk(module: Any) -> Iterator[tuple[str, Tensor]]:
    seen, todo = set(), [((), module)]  # a pickle can contain itself
    while todo:
        path, here = todo.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        for name, value in vars(here).items():
            if isinstance(value, Tensor):
                yield ".".join((*path, name)), value
            elif isinstance(value, _Module):
                todo.append(((*path, name), value))


def _read_archive(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    root = archive.namelist()[0].split("/")[0]
    return dict(_walk(_ArchiveUnpickler(archive, root).load()))


def _read_lightning(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        return _flat(_ArchiveUnpickler(archive, root, bystanders=True).load())


# --- any file ------------------------------------------------------------------------------------


def _is_torchscript(archive: zipfile.ZipFile) -> bool:
    return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def _flat(stored: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint: of "state_dict" where there is one, without "module."."""
    for key in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict):
        raise ValueError("it holds no dictionary of tensors")
    return {
        str(name).removeprefix("module."): value
        for name, value in stored.items()
        if isinstance(value, Tensor)
    }


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if _is_torchscript(archive):
                return _read_archive(archive)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it names classes that torch does not let in
        if not zipfile.is_zipfile(path):
            raise
        return _read_lightning(path)
    return _flat(stored)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, a .pt or .bin file, or a TorchScript archive, on the CPU."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        tensors = _read(path)
    except (pickle.UnpicklingError, ValueError) as error:
        # torch's message goes on for a screen about how to switch the check off.
        reason = str(error).split(". ")[0].splitlines()[0]
        raise UserError(f"{path} is no checkpoint that can be read safely: {reason}") from None
    except Exception as error:  # a damaged file can raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is damaged, or no checkpoint ({reason}); get the file again"
        ) from None
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors


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
