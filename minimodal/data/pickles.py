"""Pickles, read without running what they say.

A pickle can run any program when it is opened: it names functions and calls them. `Restricted`
understands numbers, texts, lists and dictionaries by itself, and of names only those that it is
given; ARRAYS are those of plain numeric arrays, built with the few lines below instead of with the
code that the file names. `read_archive` reads what `torch.save` and TorchScript write: a zip file
of a pickle and the tensors' bytes. Of the libraries that it is told of, classes become empty
objects that keep their attributes, and none is imported; anything else is refused by name.

A file in; plain Python, arrays and tensors out, or a ValueError. Read nothing before.
"""

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor


class StandIn:
    """Stands for any class: it keeps its attributes and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "StandIn":
        """What a stand-in for a function returns: itself."""
        return self

    def append(self, *_: Any) -> None:
        """What the stand-in of a list, a dictionary or a set is asked to do: nothing."""

    extend = add = __setitem__ = append

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class Restricted(pickle.Unpickler):
    """An unpickler that knows the names it is given and no others.

    known: what a full name such as "collections.OrderedDict" stands for
    stand_ins: names and modules, all of whose classes become a `StandIn`
    load_storage: what a tensor's bytes are, by what the pickle calls them
    """

    def __init__(
        self, file: BinaryIO, known: Mapping[str, Any], *, stand_ins: tuple[str, ...] = (),
        load_storage: Callable[[Any], Tensor] | None = None, encoding: str = "ASCII",
    ) -> None:  # fmt: skip
        super().__init__(file, encoding=encoding)
        self.known, self.stand_ins, self.load_storage = known, stand_ins, load_storage

    def find_class(self, module: str, name: str) -> Any:
        """What a name of the pickle stands for, called by `load`."""
        # numpy.core before numpy 2, numpy._core since.
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if full in self.known:
            return self.known[full]
        if any(f"{full}.".startswith(f"{place}.") for place in self.stand_ins):
            return StandIn
        raise ValueError(f"it asks for {module}.{name}, which is refused: it could run code")

    def persistent_load(self, saved: Any) -> Tensor:
        """The bytes of a tensor, which lie outside of the pickle."""
        if self.load_storage is None:
            raise ValueError("it asks for bytes outside of the pickle")
        return self.load_storage(saved)


# --- arrays of numpy ------------------------------------------------------------------------------


class _Dtype:
    """Stands for numpy's dtype: booleans, integers and floats only."""

    def __init__(self, code, *_) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not (isinstance(code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]", code)):
            raise ValueError(f"an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        if state[1] in (b">", ">"):
            self.dtype = self.dtype.newbyteorder(">")


def _array(buffer, dtype: _Dtype, shape, order: str) -> np.ndarray:
    # Checked before numpy allocates: the shape comes from the file, the bytes are there.
    if math.prod(shape) * dtype.dtype.itemsize != len(buffer) or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} in {len(buffer)} bytes")
    return np.frombuffer(buffer, dtype.dtype).reshape(shape, order=order)


class Array:
    """Stands for the empty array that a pickle makes first and fills afterwards."""

    array: np.ndarray

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _latin1(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes into the old protocol 2.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: _Dtype, data: bytes):
    return _array(data, dtype, (1,), "C")[0].item()


ARRAYS = {
    "numpy.ndarray": "ndarray",  # only ever an argument of _reconstruct, which ignores it
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "_codecs.encode": _latin1,
}

# --- archives of torch ----------------------------------------------------------------------------


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


DTYPES = [name for name, value in vars(torch).items() if isinstance(value, torch.dtype)]
PLAIN = ("dict", "list", "set", "tuple", "int", "float", "str", "bool", "object", "complex",
         "slice", "range", "xrange", "bytes", "bytearray", "frozenset")  # fmt: skip
# Whose objects lie in checkpoints beside the tensors. They are not needed, and not made.
BYSTANDERS = (
    "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf",
    "argparse", "numpy", "typing", "pathlib", "collections", "datetime", "_codecs.encode",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in PLAIN),
    *(f"torch.{name}" for name in ("Size", "device", *DTYPES)),
)  # fmt: skip
TYPED_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist",
               "restore_type_tag")  # fmt: skip
TENSORS = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "collections.OrderedDict": OrderedDict,
    **{f"torch.jit._pickle.{name}": _first for name in TYPED_LISTS},
    "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool,
}  # fmt: skip


def read_archive(path: Path, *, stand_ins: tuple[str, ...]) -> Any:
    """What a zip file of torch.save or of TorchScript holds, with its tensors on the CPU."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        storages: dict[str, Tensor] = {}

        def load_storage(saved: Any) -> Tensor:
            _, dtype, key, _, count = saved
            if key not in storages:
                data = bytearray(archive.read(f"{root}/data/{key}"))
                if len(data) < count * dtype.itemsize:
                    raise ValueError(f"storage {key} is cut off")
                empty = torch.empty(0, dtype=dtype)  # frombuffer refuses to make one
                storages[key] = torch.frombuffer(data, dtype=dtype, count=count) if count else empty
            return storages[key]

        with archive.open(f"{root}/data.pkl") as file:
            return Restricted(file, TENSORS, stand_ins=stand_ins, load_storage=load_storage).load()
