"""minimodal/data/folder.py: three ways to write captions, and what people get wrong in them."""

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minimodal.data.captions import read_csv, read_jsonl
from minimodal.data.folder import open_folder, read_folder
from minimodal.data.images import split_by_name
from minimodal.errors import UserError


def draw(root, *names: str) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (i, 0, 0)).save(root / name)


def write_jsonl(root, *records) -> None:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")


def write_csv(root, *rows) -> None:
    with open(root / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def read_names(root, split: str) -> list[str]:
    """The pictures of a split of a folder."""
    names = sorted(read_folder(root).captions)
    return [names[i] for i in split_by_name(names, split)]


# --- the three forms -----------------------------------------------------------------------------


def test_each_line_of_a_text_file_is_a_caption(tmp_path):
    draw(tmp_path, "a.png", "deep/er/b.JPG")
    (tmp_path / "a.txt").write_text("a cat\n\n  a  small cat \r\n")
    (tmp_path / "deep/er/b.txt").write_bytes(b"\xef\xbb\xbfa dog")
    assert read_folder(tmp_path).captions == {
        "a.png": ["a cat", "a small cat"],
        "deep/er/b.JPG": ["a dog"],
    }


@pytest.mark.parametrize("image_key", ["image", "file", "file_name", "path"])
@pytest.mark.parametrize("caption_key", ["caption", "captions", "text"])
def test_jsonl_and_csv_know_these_keys(tmp_path, image_key, caption_key):
    draw(tmp_path, "a.png", "b.png")
    write_jsonl(tmp_path, {"more": 1, image_key: "a.png", caption_key: "from jsonl"})
    write_csv(tmp_path, ["more", caption_key, image_key], ["x", "from csv", "b.png"])
    assert read_folder(tmp_path).captions == {"a.png": ["from jsonl"], "b.png": ["from csv"]}


def test_captions_of_one_picture_add_up_over_lines_and_files(tmp_path):
    draw(tmp_path, "a.png")
    write_jsonl(
        tmp_path,
        {"image": "a.png", "captions": ["1", "2", ""]},
        "",
        {"image": "a.png", "text": "3"},
    )
    write_csv(tmp_path, ["image", "caption"], ["./a.png", "4, with a comma\nand a line"])
    (tmp_path / "a.txt").write_text("5")
    wanted = ["1", "2", "3", "4, with a comma and a line", "5"]
    assert sorted(read_folder(tmp_path).captions["a.png"]) == wanted


def test_a_caption_file_below_speaks_of_its_own_folder(tmp_path):
    draw(tmp_path, "cats/a.png", "dogs/a.png")
    write_jsonl(tmp_path / "cats", {"image": "a.png", "caption": "cat"})
    write_jsonl(tmp_path / "dogs", {"image": "a.png", "caption": "dog"})
    assert read_folder(tmp_path).captions == {"cats/a.png": ["cat"], "dogs/a.png": ["dog"]}


def test_hidden_files_and_what_a_mac_adds_are_no_pictures(tmp_path):
    draw(tmp_path, "a.png", "._a.png", ".cache/b.png", "__MACOSX/c.png")
    assert list(read_folder(tmp_path).captions) == ["a.png"]


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    draw(tmp_path, "real/a.png", "elsewhere/b.png")
    root = tmp_path / "real"
    (root / "loop").symlink_to(root)
    (root / "more").symlink_to(tmp_path / "elsewhere")
    assert list(read_folder(root).captions) == ["a.png", "more/b.png"]


# --- as a source ---------------------------------------------------------------------------------


def test_pictures_and_captions_stay_together(tmp_path):
    names = [f"{i:02}.png" for i in range(40)]
    draw(tmp_path, *names)
    write_jsonl(tmp_path, *({"image": n, "caption": f"number {i}"} for i, n in enumerate(names)))
    (tmp_path / "07.png").write_bytes(b"cut")
    seen = []
    for split in ("train", "val"):
        data = open_folder(tmp_path, image_size=4, split=split)
        levels = data.images(np.arange(len(data)))[:, 0, 0, 0]
        for i, level in enumerate(levels):
            assert data.all_captions(i) == [f"number {level}"]
        seen += levels.tolist()
    assert sorted(seen) == [i for i in range(40) if i != 7]


def test_the_share_of_broken_pictures_is_that_of_the_whole_folder(tmp_path):
    names = [f"{i:02}.png" for i in range(40)]
    draw(tmp_path, *names)
    few = read_names(tmp_path, "val")
    assert len(few) < 20  # one of them is more than 5 % of this split
    (tmp_path / few[0]).write_bytes(b"cut")
    assert len(open_folder(tmp_path, image_size=4, split="val")) == len(few) - 1
    for name in few:
        (tmp_path / name).write_bytes(b"cut")
    with pytest.raises(UserError, match="are broken|broken pictures only"):
        open_folder(tmp_path, image_size=4, split="val")


def test_pictures_without_a_caption_are_left_out_and_counted(tmp_path, capsys):
    draw(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "b.txt").write_text("b")
    assert len(open_folder(tmp_path, image_size=4)) == 1
    assert "not used: 2 pictures without a caption" in capsys.readouterr().err


def test_a_folder_without_captions_serves_pictures_and_says_what_to_add(tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png")
    data = open_folder(tmp_path, image_size=4)
    assert not data.has_captions and data.images(np.array([0])).shape == (1, 3, 4, 4)
    with pytest.raises(UserError, match=r"\.txt.*captions\.jsonl.*captions\.csv"):
        data.captions(np.array([0]), np.random.default_rng(0))


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "a.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"no pictures \(\.jpg"):
        open_folder(tmp_path)


def test_the_limit_chooses_within_the_split(tmp_path):
    draw(tmp_path, *(f"{i}.png" for i in range(30)))
    assert len(open_folder(tmp_path, image_size=4, limit=5)) == 5
    same = [open_folder(tmp_path, image_size=4, limit=5, seed=1).fingerprint() for _ in range(2)]
    assert same[0] == same[1]


# --- what people get wrong -----------------------------------------------------------------------

BROKEN_JSON = [
    "{",
    "[]",
    '"a.png"',
    '{"image": "00.png"}',
    '{"caption": "x"}',
    '{"image": "00.png", "caption": ""}',
    '{"image": "00.png", "caption": []}',
    '{"image": "00.png", "caption": 3}',
    '{"image": "00.png", "caption": ["x", 3]}',
    '{"image": 3, "caption": "x"}',
    '{"image": "none.png", "caption": "x"}',
    '{"image": "../out.png", "caption": "x"}',
    '{"image": "/out.png", "caption": "x"}',
    '{"image": "a\\u0000b.png", "caption": "x"}',
    '{"image": "\\ud800.png", "caption": "x"}',
    '{"image": "00.png", "caption": "\\ud800"}',
    '{"image": "00.png", "caption": "x"',
    "[" * 100_000,
]


@pytest.fixture
def forty(tmp_path):
    root = tmp_path / "root"
    draw(tmp_path, "out.png")
    draw(root, *(f"{i:02}.png" for i in range(40)))
    return root


@pytest.mark.parametrize("line", BROKEN_JSON, ids=lambda line: line[:40])
def test_a_broken_line_is_skipped_and_named(forty, capsys, line):
    good = [{"image": f"{i:02}.png", "caption": "good"} for i in range(40)]
    write_jsonl(forty, *good[:6], line, *good[6:])
    captions = read_folder(forty).captions
    assert all(texts == ["good"] for texts in captions.values()) and len(captions) == 40
    printed = capsys.readouterr().err
    assert "line 7" in printed and "of 41" in printed and printed.count("\n") == 1


def test_many_broken_lines_stop_with_file_and_line_numbers(forty):
    write_jsonl(forty, *({"image": f"x{i}.png", "caption": "x"} for i in range(15)))
    with pytest.raises(
        UserError, match=r"captions\.jsonl.*line 1: no such picture.*line 9"
    ) as caught:
        read_folder(forty).captions
    assert str(caught.value).count("line ") == 10 and "\n" not in str(caught.value)


def test_lines_that_are_not_utf8_are_broken_lines(forty, capsys):
    good = [f"{i:02}.png,good" for i in range(40)]
    text = "\n".join(["image,caption", *good]).encode() + b"\n00.png,caf\xe9\n"
    (forty / "captions.csv").write_bytes(text)
    jsonl = b"".join(b'{"image": "00.png", "caption": "good"}\n' for _ in range(30))
    (forty / "captions.jsonl").write_bytes(jsonl + b'{"image": "00.png", "caption": "caf\xe9"}')
    assert set(sum(read_folder(forty).captions.values(), [])) == {"good"}
    printed = capsys.readouterr().err
    for number in (42, 31):
        assert f"line {number}: a caption is not valid Unicode: save the file as UTF-8" in printed


def test_a_text_file_that_is_not_utf8_is_broken(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt, line 1: .*save the file as UTF-8"):
        read_folder(tmp_path).captions


def test_a_row_with_another_number_of_fields_is_broken(forty):
    lines = ["image,caption", "00.png,good", "01.png,a red, round thing", "", "02.png"]
    (forty / "captions.csv").write_text("\n".join(lines))
    got = [(line.number, bool(line.error)) for line in read_csv(forty / "captions.csv")]
    assert got == [(2, False), (3, True), (5, True)]


def test_a_quote_that_is_never_closed_loses_each_line_it_swallows(forty):
    lines = ["image,caption", '00.png,"good"', '01.png,"open', "02.png,x", "03.png,x"]
    (forty / "captions.csv").write_text("\n".join(lines))
    got = [(line.number, bool(line.error)) for line in read_csv(forty / "captions.csv")]
    assert got == [(2, False), (3, True), (4, True), (5, True)]


@pytest.mark.parametrize("header", ["", "a,b", "image,b", "caption", '"x'])
def test_a_csv_without_the_columns_is_an_error(forty, header):
    (forty / "captions.csv").write_text(f"{header}\n00.png,x\n")
    with pytest.raises(UserError, match=r"captions\.csv, line 1"):
        read_folder(forty).captions


def test_files_from_windows_are_read(forty):
    draw(forty, "sub/a.png")
    (forty / "captions.csv").write_bytes(b"\xef\xbb\xbfimage,caption\r\nsub\\a.png,good\r\n")
    assert read_folder(forty).captions["sub/a.png"] == ["good"]


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_any_bytes_give_lines_or_a_user_error(tmp_path, data):
    (tmp_path / "captions.jsonl").write_bytes(data)
    (tmp_path / "captions.csv").write_bytes(b"image,caption\n" + data)
    for line in [*read_jsonl(tmp_path / "captions.jsonl"), *read_csv(tmp_path / "captions.csv")]:
        assert bool(line.error) != bool(line.captions)
    (tmp_path / "captions.csv").write_bytes(data)
    try:
        list(read_csv(tmp_path / "captions.csv"))
    except UserError:
        pass


# --- the real data -------------------------------------------------------------------------------


def test_the_emoji_folder_opens_as_it_is(shared):
    path = shared / "data" / "emoji"
    train, val = (open_folder(path, image_size=16, split=split) for split in ("train", "val"))
    assert len(train) + len(val) == 1720 and 120 < len(val) < 230
    assert "hash key" in sum((train.all_captions(i) for i in range(20)), [])
