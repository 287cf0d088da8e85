"""minimodal/data/cifar.py: the official layout, captions from class names, refused pickles."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
from helpers.cifar import NAMES_10, batch, write

from minimodal.data.cifar import class_captions, open_cifar, read_pickle
from minimodal.errors import UserError


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    for i, rows in ((1, 7), (2, 3), (5, 2)):
        write(folder / f"data_batch_{i}", batch(rows, i))
    write(folder / "test_batch", batch(4, 9))
    write(folder / "batches.meta", {"label_names": NAMES_10, "num_vis": 3072})
    return tmp_path


@pytest.fixture
def cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    names = [f"aquarium_fish_{i}" for i in range(100)]
    for part, rows in (("train", 6), ("test", 5)):
        write(folder / part, batch(rows, rows, key="fine_labels", classes=100))
    write(folder / "meta", {"fine_label_names": names, "coarse_label_names": ["fish"] * 20})
    return tmp_path


# --- reading -------------------------------------------------------------------------------------


def test_train_is_all_batches_in_order_and_val_the_test_batch(cifar10):
    train, val = open_cifar(cifar10, 10), open_cifar(cifar10, 10, split="val")
    rows = [batch(7, 1), batch(3, 2), batch(2, 5)]
    wanted = np.concatenate([b["data"] for b in rows]).reshape(-1, 3, 32, 32)
    assert np.array_equal(train.images(np.arange(12)), wanted)
    assert train.labels.tolist() == sum((b["labels"] for b in rows), [])
    assert train.labels.dtype == np.int64 and train.name == "cifar10"
    assert train.class_names == tuple(NAMES_10) and train.group == 1
    assert val.labels.tolist() == batch(4, 9)["labels"] and len(val) == 4


def test_the_inner_folder_may_be_given_too(cifar10):
    inner = open_cifar(cifar10 / "cifar-10-batches-py", 10)
    assert inner.fingerprint() == open_cifar(str(cifar10), 10).fingerprint()


def test_cifar100_has_fine_labels_with_spaces(cifar100):
    data = open_cifar(cifar100, 100)
    assert data.labels.tolist() == batch(6, 6, key="fine_labels", classes=100)["fine_labels"]
    assert data.class_names[3] == "aquarium fish 3"
    assert "an aquarium fish" in data.all_captions(0)[0]
    assert len(open_cifar(cifar100, 100, split="val")) == 5


def test_pictures_are_resized_only_when_asked(cifar10):
    assert open_cifar(cifar10, 10).image_size == 32
    assert open_cifar(cifar10, 10, image_size=16).images(np.array([0])).shape == (1, 3, 16, 16)


def test_a_limit_keeps_pictures_and_labels_together(cifar10):
    whole, some = open_cifar(cifar10, 10), open_cifar(cifar10, 10, limit=5, seed=1)
    assert len(some) == 5
    for i in range(5):
        at = [np.array_equal(some.pixels[i], p) for p in whole.pixels].index(True)
        assert some.labels[i] == whole.labels[at]
        assert some.all_captions(i) == whole.all_captions(at)


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_reads_the_same(tmp_path, protocol):
    content = batch(3, 0)
    write(tmp_path / "file", content, protocol)
    got = read_pickle(tmp_path / "file")
    assert np.array_equal(got["data"], content["data"]) and got["labels"] == content["labels"]
    assert got["filenames"] == content["filenames"]


def test_bytes_keys_fortran_order_and_numpy_labels_read_the_same(tmp_path):
    content = batch(3, 0)
    odd = {
        b"data": np.asfortranarray(content["data"]),
        b"labels": [np.int64(label) for label in content["labels"]],
        b"more": np.array(content["labels"], ">i4"),
    }
    write(tmp_path / "file", odd)
    got = read_pickle(tmp_path / "file")
    assert np.array_equal(got["data"], content["data"])
    assert got["labels"] == got["more"].tolist() == content["labels"]


def test_bytes_written_by_python_2_are_read(tmp_path):
    # SHORT_BINSTRING opcodes, which Python 3 never writes and the published files consist of.
    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    array += b"(K\x01K\x02K\x03\x86" + dtype + b"\x89" + text(bytes([250, 1, 2, 3, 4, 5])) + b"tb"
    data = b"\x80\x02}(" + text(b"data") + array + text(b"name") + text(b"caf\xe9") + b"u."
    (tmp_path / "file").write_bytes(data)
    got = read_pickle(tmp_path / "file")
    assert got["data"].tolist() == [[250, 1, 2], [3, 4, 5]] and got["name"] == "caf\u00e9"


# --- refusing ------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_by_file_and_global_and_does_not_run(tmp_path, protocol):
    target = tmp_path / "ran"
    write(tmp_path / "data_batch_1", {"data": Calls(os.mkdir, str(target))}, protocol)
    with pytest.raises(UserError, match=r"data_batch_1: .*mkdir, which is refused"):
        read_pickle(tmp_path / "data_batch_1")
    assert not target.exists()


@pytest.mark.parametrize(
    "function",
    [eval, exec, getattr, __import__, np.load, np.fromfile, pickle.loads, io.open, np.dtype],
    ids=lambda f: f.__name__,
)
def test_only_what_arrays_need_can_be_called(tmp_path, function):
    write(tmp_path / "f", {"data": Calls(function, "O")})
    with pytest.raises(UserError):
        read_pickle(tmp_path / "f")


def test_an_attribute_path_through_an_allowed_name_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")
    with pytest.raises(UserError, match="refused"):
        read_pickle(tmp_path / "f")


@pytest.mark.parametrize(
    "state",
    [
        (1, (10**12,), np.dtype("u1"), False, b"abc"),
        (1, (-1, -3), np.dtype("u1"), False, b"abc"),
        (1, (3,), np.dtype("O"), False, [1, 2, 3]),
        (1, (3,), np.dtype("S1"), False, b"abc"),
        (1, 3),
    ],
    ids=["huge", "negative", "objects", "strings", "short"],
)
def test_an_array_that_is_not_what_it_says_is_refused(tmp_path, state):
    class Array:
        def __reduce__(self):
            return np.zeros(1).__reduce__()[:2] + (state,)

    write(tmp_path / "f", {"data": Array()})
    with pytest.raises(UserError, match="not a CIFAR file"):
        read_pickle(tmp_path / "f")


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps([1, 2]), struct.pack("<Q", 5)])
def test_other_files_are_an_error_with_their_name(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_1: not a CIFAR file"):
        read_pickle(tmp_path / "data_batch_1")


def test_a_cut_file_is_an_error_with_its_name(cifar10):
    file = cifar10 / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="data_batch_2.*damaged"):
        open_cifar(cifar10, 10)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": np.zeros((7, 100), np.uint8)}, "expected uint8"),
        ({"data": np.zeros((7, 3072), np.float32)}, "expected uint8"),
        ({"labels": [0] * 6}, "one whole number"),
        ({"labels": [0.5] * 7}, "one whole number"),
        ({"labels": [10] * 7}, "outside"),
        ({"labels": [-1] * 7}, "outside"),
        ({"labels": [[1], [1, 2]]}, "no list of numbers"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_an_error(cifar10, change, message):
    write(cifar10 / "cifar-10-batches-py" / "data_batch_1", {**batch(7, 1), **change})
    with pytest.raises(UserError, match=f"data_batch_1.*{message}"):
        open_cifar(cifar10, 10)


def test_missing_files_are_named(cifar10, tmp_path):
    with pytest.raises(UserError, match="cifar-100-python/meta"):
        open_cifar(cifar10, 100)
    (cifar10 / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(UserError, match="test_batch: no such file"):
        open_cifar(cifar10, 10, split="val")


# --- captions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, noun",
    [
        ("airplane", "an airplane"),
        ("truck", "a truck"),
        ("aquarium_fish", "an aquarium fish"),
        ("oak_tree", "an oak tree"),
        ("unicycle", "a unicycle"),
        ("umbrella", "an umbrella"),
        ("cattle", "cattle"),
    ],
)
def test_captions_have_the_right_article(name, noun):
    captions = class_captions(name)
    assert f"a photo of {noun}" in captions and f"a picture of {noun}" in captions
    assert len(set(captions)) == len(captions) >= 3


# --- the real data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder, classes, train, val",
    [("cifar10", 10, 8336, 517), ("cifar10_jpeg", 10, 6000, 1483), ("cifar100", 100, 1117, 500)],
)
def test_published_files_are_read_whole(shared, folder, classes, train, val):
    path = shared / "data" / folder
    assert len(open_cifar(path, classes)) == train
    data = open_cifar(path, classes, split="val")
    assert len(data) == val and set(data.labels) <= set(range(classes))
    assert len(data.class_names) == classes


def test_published_pixels_agree_with_a_plain_unpickler(shared):
    file = shared / "data" / "cifar10" / "cifar-10-batches-py" / "test_batch"
    with open(file, "rb") as stream:
        plain = pickle.load(stream, encoding="latin1")
    assert np.array_equal(read_pickle(file)["data"], plain["data"])
    assert read_pickle(file)["labels"] == plain["labels"]
