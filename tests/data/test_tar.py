"""minimodal/data/tar.py: samples in shards, read by number; what is damaged or hostile in them."""

import gzip
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fuzz import COMMANDS
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from minimodal.cli import doctor
from minimodal.cli.train import main
from minimodal.data import tar as tar_module
from minimodal.data.loading import open_data, parse_spec
from minimodal.data.tar import open_tar, shards_of
from minimodal.errors import UserError


def picture(level: int, suffix: str = "png", side: int = 6) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (level, 0, 0)).save(file, suffix)
    return file.getvalue()


def noisy(seed: int) -> bytes:
    file, rng = io.BytesIO(), np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def pack(path, files: dict[str, bytes | str] | list, **changes) -> str:
    """A shard of these files, in this order; `changes` are fields of all headers."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in changes.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def sample(i: int, level: int | None = None) -> dict[str, bytes | str]:
    return {f"{i:04}.png": picture(i if level is None else level), f"{i:04}.txt": f"number {i}"}


def samples(*numbers: int) -> dict[str, bytes | str]:
    return {name: content for i in numbers for name, content in sample(i).items()}


def both(path, **options) -> list:
    return [open_tar(path, image_size=6, split=split, **options) for split in ("train", "val")]


def levels(source) -> list[int]:
    return source.images(np.arange(len(source)))[:, 0, 0, 0].tolist()


def captions(source) -> list[str]:
    return [text for i in range(len(source)) for text in source.all_captions(i)]


@pytest.fixture
def shards(tmp_path) -> str:
    """Sixty samples in three shards."""
    for n in range(3):
        pack(tmp_path / f"x-{n:02}.tar", samples(*range(20 * n, 20 * n + 20)))
    return str(tmp_path / "x-{00..02}.tar")


# --- what is read --------------------------------------------------------------------------------


def test_each_picture_has_the_caption_of_its_own_sample(shards):
    train, val = both(shards)
    assert len(train) + len(val) == 60 and len(val) > 0
    for source in (train, val):
        assert captions(source) == [f"number {level}" for level in levels(source)]
        drawn = source.captions(np.arange(len(source)), np.random.default_rng(0))
        assert drawn == captions(source)


def test_pictures_are_those_of_the_folder_that_was_packed(tmp_path):
    (tmp_path / "f").mkdir()
    for i in range(20):
        for name, content in {f"{i}.png": noisy(i), f"{i}.txt": f"{i}".encode()}.items():
            (tmp_path / "f" / name).write_bytes(content)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "f", "f")
    packed, loose = (
        {text: source.images(np.array([i]))
         for split in ("train", "val")
         for source in [open_data(spec, image_size=8, split=split)]
         for i in range(len(source)) for text in source.all_captions(i)}
        for spec in (f"tar:{tmp_path}/x.tar", f"folder:{tmp_path}/f")
    )  # fmt: skip
    assert packed.keys() == loose.keys() and len(packed) == 20
    assert all(np.array_equal(packed[text], loose[text]) for text in packed)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff", "ppm"])
def test_pictures_of_all_kinds_that_a_folder_may_have_are_read(tmp_path, kind):
    path = pack(tmp_path / "x.tar", {f"a.{kind.upper()}": picture(200, kind), "a.txt": "x"})
    assert levels(open_tar(path, image_size=6))[0] > 190


def test_a_name_ends_at_its_first_dot_and_folders_belong_to_it(tmp_path, capsys):
    files = {"d.1/a.png": picture(1), "d.1/a.seg.png": picture(9), "d.1/a.txt": "one",
             "e/a.png": picture(2), "e/a.txt": "two"}  # fmt: skip
    path = pack(tmp_path / "x.tar", files)
    assert sorted(sum(map(captions, both(path)), [])) == ["one", "two"]
    assert sorted(sum(map(levels, both(path)), [])) == [1, 2]
    assert "not used: 1 .seg.png" in capsys.readouterr().err


def test_files_of_a_sample_need_not_lie_side_by_side(tmp_path):
    files = dict(sorted(samples(*range(10)).items(), key=lambda pair: pair[0][::-1]))
    assert list(files)[0][-4:] == list(files)[1][-4:]
    for source in both(pack(tmp_path / "x.tar", files)):
        assert captions(source) == [f"number {level}" for level in levels(source)]


def test_a_text_counts_before_json_and_json_with_a_caption_where_there_is_none(tmp_path, capsys):
    files = {"a.png": picture(1), "a.json": json.dumps({"url": "x", "caption": "json a"}),
             "a.txt": "a\n\nmore of a\n", "b.json": json.dumps({"caption": "json b", "key": "b"}),
             "b.png": picture(2), "c.png": picture(3), "c.json": '{"url": "x"}'}  # fmt: skip
    found = sum(map(captions, both(pack(tmp_path / "x.tar", files))), [])
    assert sorted(found) == ["a", "json b", "more of a"]
    said = capsys.readouterr().err
    assert "1 .json without a caption" in said and "1 pictures without a caption" in said


def test_without_captions_classes_are_labels_as_those_of_folders_are(tmp_path):
    files = {}
    for i in range(30):
        files |= {f"{i}.png": picture(i), f"{i}.cls": ("hot_dog", "cat")[i % 2]}
    for source in both(pack(tmp_path / "x.tar", files)):
        assert source.class_names == ("cat", "hot dog") and source.labels.dtype == np.int64
        assert source.labels.tolist() == [(i + 1) % 2 for i in levels(source)]
        assert (
            source.all_captions(0)[1]
            == ("a photo of a hot dog", "a photo of a cat")[levels(source)[0] % 2]
        )


def test_pictures_alone_can_train_a_vqgan_only(tmp_path):
    source = open_tar(pack(tmp_path / "x.tar", {"a.png": picture(1)}), image_size=6)
    assert not source.has_captions and source.class_names is None
    with pytest.raises(UserError, match=r"\.txt of the same name"):
        source.all_captions(0)


def test_the_line_counts_what_is_not_used(tmp_path, capsys):
    files = samples(*range(5)) | {"7.png": picture(7), "8.txt": "x", "a.mp3": "x", "README": "x"}
    open_tar(pack(tmp_path / "x.tar", files), image_size=6)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "of 5 pictures (a tenth, by name, is val)" in said
    for kind in ("1 pictures without a caption", "1 samples without a picture", "1 .mp3",
                 "1 without a suffix"):  # fmt: skip
        assert kind in said


# --- specs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "names"),
    [("a.tar", ["a.tar"]), ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
     ("{008..010}", ["008", "009", "010"]), ("a{3..1}", []), ("a{x..y}", ["a{x..y}"]),
     ("{0..1}{0..1}", ["0{0..1}", "1{0..1}"])],
)  # fmt: skip
def test_braces_stand_for_numbers(path, names):
    assert shards_of(path) == names


def test_a_spec_may_have_a_limit_and_doctor_reads_it(shards, capsys):
    assert parse_spec(f"tar:{shards}:7") == ("tar", shards, None, 7)
    assert len(open_data(f"tar:{shards}:7", image_size=6)) == 7
    assert doctor.look_at(f"tar:{shards}", split="train")["captions"] > 40


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tar:{path}/no.tar", "no such file, .*no.tar$"),
        ("tar:{path}/a{{3..1}}.tar", "no such file"),
        ("tar:{path}/a{{0..3}}.tar", "3 of 4 files are not there: .*a1.tar"),
        ("tar:{path}", "not there"),
        ("tar:", "write tar:PATH"),
        ("folder:{path}/a0.tar", "is a file, expected a folder; of tar shards write tar:"),
        ("tar:{path}/a0.tar,shapes", "endless"),
        ("tar:{path}/a0.tar,tar:{path}/a0.tar", "number them in one series"),
        ("tar:{path}/a0.tar:x", "'x' is not a number"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_line(tmp_path, spec, message):
    pack(tmp_path / "a0.tar", samples(1))
    with pytest.raises(UserError, match=message) as caught:
        open_data(spec.format(path=tmp_path), image_size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(bytes(2048), mtime=0), "is compressed.*gunzip it first"),
        (b"BZh91AY", "bunzip2"),
        (b"\xfd7zXZ\x00", "unxz"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"", "no tar file"),
        (b"PK\x03\x04" * 300, "no tar file"),
        (bytes(10240), "no pictures"),
    ],
)
def test_what_is_no_tar_is_refused_with_what_to_do(tmp_path, content, message):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_tar(tmp_path / "x.tar", image_size=6)
    assert "\n" not in str(caught.value)


# --- damage and malice ---------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["picture", "header", "end"])
def test_of_a_cut_shard_what_is_before_the_cut_is_used_and_it_is_named(tmp_path, capsys, at):
    path = pack(tmp_path / "x.tar", samples(*range(40)))
    with tarfile.open(path) as tar:
        member = tar.getmember("0030.png")
        end = max(m.offset_data + 512 for m in tar.getmembers())
    cut = {"picture": member.offset_data + 9, "header": member.offset + 99, "end": end}[at]
    os.truncate(path, cut)
    train, val = both(path)
    assert len(train) + len(val) == (40 if at == "end" else 30)
    assert f"skipped 1 broken of {41 if at == 'end' else 31}: {path} (damaged or cut at byte" in (
        capsys.readouterr().err
    )


def test_a_header_of_garbage_is_not_taken_for_the_end(tmp_path, capsys):
    path = pack(tmp_path / "x.tar", samples(*range(40)))
    with tarfile.open(path) as tar:
        start = tar.getmember("0030.png").offset
    content = bytearray(Path(path).read_bytes())
    content[start : start + 512] = b"\xa7" * 512
    Path(path).write_bytes(content)
    assert sum(map(len, both(path))) == 30
    assert "damaged or cut" in capsys.readouterr().err


def test_pictures_that_are_none_are_named_and_left_out_and_too_many_stop(tmp_path, capsys):
    files = samples(*range(60)) | {"0007.png": b"", "0008.png": b"no picture"}
    assert sum(map(len, both(pack(tmp_path / "x.tar", files)))) == 58
    said = capsys.readouterr().err
    assert "'0007.png'" in said and "'0008.png'" in said and "2 samples without a picture" in said
    with pytest.raises(UserError, match="2 of 10 are broken"):
        open_tar(pack(tmp_path / "y.tar", dict(list(files.items())[:20])), image_size=6)


def test_a_picture_that_is_damaged_behind_its_beginning_is_grey_and_named_once(tmp_path, capsys):
    files = {f"{i}.png": noisy(i) for i in range(60)}
    files["11.png"] = files["11.png"][:1500]
    train, val = both(pack(tmp_path / "x.tar", files))
    source = next(s for s in (train, val) if "x.tar/11" in s.pixels.names)
    i = source.pixels.names.index("x.tar/11")
    capsys.readouterr()
    for _ in range(2):
        pictures = source.images(np.array([i, (i + 1) % len(source)]))
        assert (pictures[0] == 127).all() and pictures[1].std() > 9
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "x.tar/11" in said and "truncated" in said


def test_too_many_that_are_damaged_behind_their_beginning_stop(tmp_path, capsys):
    files = {f"{i}.png": noisy(i)[: 1500 if i < 9 else None] for i in range(40)}
    source = open_tar(pack(tmp_path / "x.tar", files), image_size=6)
    with pytest.raises(UserError, match=r"2 of 34 pictures are broken, more than 5%"):
        source.images(np.arange(len(source)))


def test_nothing_outside_a_shard_is_read_or_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "secret.png").write_bytes(picture(99))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE),
                           ("f.png", tarfile.FIFOTYPE), ("c.png", tarfile.CHRTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, f"{tmp_path}/secret.png"
            tar.addfile(member)
        for name, level in ((f"{tmp_path}/abs.png", 1), ("../../up.png", 2)):
            member, content = tarfile.TarInfo(name), picture(level)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = sorted(os.walk(tmp_path))
    sources = both(tmp_path / "x.tar")
    # An odd name is a name: its content is in the shard, and nothing is ever written under it.
    assert sorted(sum(map(levels, sources), [])) == [1, 2]
    assert sorted(os.walk(tmp_path)) == before
    assert "4 links, devices or sparse files" in capsys.readouterr().err


def test_a_name_cannot_write_to_the_terminal_or_break_a_line(tmp_path, capsys):
    files = samples(*range(40)) | {"a\x1b[2J\nb.png": b"", "c.\x1b\n": ""}
    open_tar(pack(tmp_path / "x.tar", files), image_size=6)
    said = capsys.readouterr().err
    assert "\x1b" not in said and said.count("\n") == 2


def test_a_file_that_claims_to_be_huge_is_not_read_into_memory(tmp_path, capsys, monkeypatch):
    path = pack(tmp_path / "x.tar", samples(*range(40)))
    monkeypatch.setattr(tar_module, "MOST", 2000)
    files = samples(*range(40)) | {"0003.png": noisy(0)}
    assert sum(map(len, both(pack(path, files)))) == 39
    assert "more than 2000" in capsys.readouterr().err


TWO = {"0000.png": picture(1), "0000.txt": "x", "é" * 120 + ".png": picture(2)}


def _bytes_of(format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, content in TWO.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


VALID = [_bytes_of(format) for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=12)), max_size=4),
    st.integers(0, 6000),
)
@example(VALID[0], [(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\x00")], 6000)  # size < 0
def test_whatever_bytes_a_shard_has_it_is_read_or_refused(tmp_path, content, changes, cut):
    content = bytearray(content)
    for at, new in changes:
        content[at : at + len(new)] = new
    (tmp_path / "x.tar").write_bytes(content[:cut])
    try:
        source = open_tar(tmp_path / "x.tar", image_size=6)
        source.images(np.arange(len(source)))
    except UserError as error:
        assert "\n" not in str(error)


# --- a training ----------------------------------------------------------------------------------


def test_the_fingerprint_tells_other_pictures_captions_and_choices_apart(tmp_path):
    files = samples(*range(20))
    path = pack(tmp_path / "x.tar", files)
    first = open_tar(path, image_size=6).fingerprint()
    pack(path, files, mtime=7)
    assert open_tar(path, image_size=6).fingerprint() == first  # packed again
    others = [open_tar(path, image_size=8), open_tar(path, image_size=6, limit=5),
              open_tar(path, image_size=6, split="val")]  # fmt: skip
    for change in ({"0003.txt": "number 4"}, {"0003.png": picture(77)}):
        others.append(open_tar(pack(path, files | change), image_size=6))
    assert len({first, *(source.fingerprint() for source in others)}) == 6


def test_opening_keeps_places_and_no_pictures(tmp_path):
    path = pack(tmp_path / "x.tar", {f"{i}.png": noisy(i) for i in range(50)})
    source = open_tar(path, image_size=64)
    held = source.pixels.places.nbytes + sum(map(sys.getsizeof, source.pixels.names))
    assert held < 150 * len(source) < 64 * 64 * 3 * len(source)
    assert not [v for v in vars(source.pixels).values() if isinstance(v, (bytes, torch.Tensor))]


SMALL = ("--image-size", "16", "--patch-size", "8")


def test_a_training_reads_shards_and_goes_on_with_them_elsewhere_to_the_same_weights(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    files = {f"{i}.png": noisy(i) for i in range(40)}
    pack("x-0.tar", files | {f"{i}.txt": f"number {i}" for i in range(40)})
    command = COMMANDS["train clip"]

    def train(data: str, out: str, steps: int, *more: str) -> dict[str, torch.Tensor]:
        flags = ["--data", data, "--out", out, "--steps", str(steps), "--min-lr-ratio", "1", *SMALL]
        assert main([*command.start, *command.good, *flags, *more]) == 0
        return load_file(f"{out}/model.safetensors")

    whole = train("tar:x-{0..0}.tar", "whole", 4)
    train("tar:x-{0..0}.tar", "halves", 2)
    os.mkdir("elsewhere")
    os.rename("x-0.tar", "elsewhere/x-0.tar")
    halves = train("tar:elsewhere/x-0.tar", "halves", 4, "--resume")
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    pack("elsewhere/x-0.tar", samples(*range(40)))
    capsys.readouterr()
    argv = [*command.start, *command.good, "--data", "tar:elsewhere/x-0.tar", "--out", "halves"]
    assert main([*argv, "--steps", "5", "--resume", "--min-lr-ratio", "1", *SMALL]) == 2
    assert "its pictures or captions were others" in capsys.readouterr().err
