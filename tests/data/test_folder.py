"""minimodal/data/folder.py: three ways to write captions, and what people get wrong in them."""

import csv
import json
import os
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from minimodal.data.captions import read_csv, read_jsonl
from minimodal.data.folder import open_folder, read_folder
from minimodal.data.images import split_by_name
from minimodal.drawing import grid, save_gif, save_png
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
        read_folder(forty)
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
        read_folder(tmp_path)


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
        read_folder(forty)


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


# --- captions in the forms of others -------------------------------------------------------------

TEN = [f"p{i}.jpg" for i in range(10)]


def write(root, name: str, text: str, encoding: str = "utf-8") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding=encoding)


KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": name, "split": split,
         "sentences": [{"raw": f"of {name}", "tokens": []}]}
        for name, split in zip(TEN, ["train", "restval", "val", "test", "train"] * 2, strict=True)
    ],
}  # fmt: skip
COCO = {
    "images": [{"id": i, "file_name": name} for i, name in enumerate(TEN)],
    "annotations": [{"image_id": i, "caption": f"of {name}"} for i, name in enumerate(TEN)],
}
TABLES = {
    "metadata.jsonl": "\n".join(json.dumps({"file_name": n, "text": f"of {n}"}) for n in TEN),
    "metadata.csv": "file_name,text\n" + "\n".join(f"{n},of {n}" for n in TEN),
    "data.CSV": "Title;FilePath\n" + "\n".join(f"of {n};{n}" for n in TEN),
    "excel.csv": "sep=;\r\nfile;caption\r\n" + "".join(f"{n};of {n}\r\n" for n in TEN),
    "quoted.csv": '"sep=\t"\nfile\tcaption\n' + "".join(f"{n}\tof {n}\n" for n in TEN),
    "captions.tsv": "Image Path\tCaption\n" + "\n".join(f"{n}\tof {n}" for n in TEN),
    "results.csv": "image_name| comment_number| comment\n"
    + "\n".join(f"{n}| 0| of {n}" for n in TEN),
    "captions.txt": "image,caption\n" + "\n".join(f"{n},of {n}" for n in TEN),
    "Flickr8k.token.txt": "\n".join(f"{n}#0\tof {n}" for n in TEN),
    "bare.csv": "\n".join(f"{n},of {n}" for n in TEN),
    "captions.json": json.dumps({n: f"of {n}" for n in TEN}),
    "lists.json": json.dumps({n: [f"of {n}"] for n in TEN}),
    "objects.json": json.dumps([{"path": f"/elsewhere/{n}", "Prompt": f"of {n}"} for n in TEN]),
    "stems.json": json.dumps([{"image_id": n[:-4], "caption": f"of {n}"} for n in TEN]),
    "coco.json": json.dumps(COCO),
    "dataset_coco.json": json.dumps(KARPATHY),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_of_a_common_form_gives_each_picture_its_caption(tmp_path, name, encoding):
    draw(tmp_path, *TEN)
    write(tmp_path, name, TABLES[name], encoding)
    assert read_folder(tmp_path).captions == {n: [f"of {n}"] for n in TEN}


@pytest.mark.parametrize(
    "called",
    ["{root}/a/CAT.JPG", "a\\CAT.JPG", "./a/cat.jpg", "A/Cat.jpg", "CAT", "../a/cat.jpg",
     "/home/me/a/cat.jpg"],
)  # fmt: skip
def test_a_picture_is_found_by_what_a_list_calls_it(tmp_path, called):
    draw(tmp_path, "a/CAT.JPG", "b/dog.jpg")
    called = called.format(root=tmp_path)
    write(tmp_path, "captions.json", json.dumps([{"image": called, "caption": "a cat"}]))
    assert read_folder(tmp_path).captions["a/CAT.JPG"] == ["a cat"]


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_may_be_written_in_either_form(tmp_path, listed, stored):
    name = unicodedata.normalize(stored, "café.png")
    draw(tmp_path, name)
    write(tmp_path, "captions.csv", f"image,caption\n{unicodedata.normalize(listed, name)},x")
    assert read_folder(tmp_path).captions == {name: ["x"]}


def test_a_name_that_two_pictures_could_have_is_not_guessed(tmp_path, capsys):
    draw(tmp_path, "a/cat.png", "b/cat.png", "c.png")
    write(tmp_path, "captions.csv", "image,caption\ncat.png,x\nc.png,y")
    assert read_folder(tmp_path).captions == {"a/cat.png": [], "b/cat.png": [], "c.png": ["y"]}
    assert "left out 1 of 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("picture", "file", "text"),
    [
        ("cat.jpg", "cat.caption", "a cat"),
        ("cat.jpg", "cat.jpg.txt", "a cat"),
        ("cat.jpg", "cat.jpg.caption", "a cat"),
        ("CAT.JPG", "cat.txt", "a cat"),
        ("cat.jpg", "cat.json", '{"url": "x", "Caption": "a cat"}'),
        ("images/a/cat.jpg", "text/a/cat.txt", "a cat"),
        ("img/cat.jpg", "labels/cat.txt", "a cat"),
        ("cat.jpg", "captions/cat.txt", "a cat"),
        ("train/images/cat.jpg", "train/captions/cat.txt", "a cat"),
    ],
)
def test_a_text_belongs_to_the_picture_of_its_name(tmp_path, picture, file, text):
    draw(tmp_path, picture, "dog.jpg")
    write(tmp_path, file, text)
    assert read_folder(tmp_path).captions[picture] == ["a cat"]


def test_all_forms_of_captions_count_together(tmp_path, capsys):
    draw(tmp_path, *TEN)
    write(tmp_path, "metadata.jsonl", TABLES["metadata.jsonl"])
    for name in TEN[:5]:
        write(tmp_path, f"{name[:-4]}.txt", "more")
    train, val = (open_folder(tmp_path, image_size=4, split=split) for split in ("train", "val"))
    assert len(train) + len(val) == 10
    assert "captions from metadata.jsonl, .txt\n" in capsys.readouterr().err


def test_boxes_of_numbers_are_no_captions(tmp_path, capsys):
    draw(tmp_path, "images/a.jpg", "images/b.jpg")
    write(tmp_path, "labels/a.txt", "0 0.5 0.5 0.25 0.1\n3 0.1 0.1 0.2 0.2\n")
    assert not open_folder(tmp_path, image_size=4).has_captions
    assert "1 .txt of boxes" in capsys.readouterr().err


def test_a_row_below_excels_first_line_is_named_by_its_line_in_the_file(tmp_path):
    draw(tmp_path, "a.jpg")
    write(tmp_path, "captions.csv", "sep=;\nfile;caption\na.jpg;x;y\n")
    with pytest.raises(UserError, match="line 3: 3 fields, the header has 2"):
        read_folder(tmp_path)


def test_a_table_that_cannot_be_used_says_why(tmp_path, capsys):
    draw(tmp_path, "a.jpg")
    write(tmp_path, "metadata.csv", "datei;text\na.jpg;x")
    assert read_folder(tmp_path).captions == {"a.jpg": []}
    assert "not used: line 1: no column of pictures" in (said := capsys.readouterr().err)
    assert "['datei', 'text']" in said and said.count("\n") == 1


# --- classes and splits --------------------------------------------------------------------------


def test_a_folder_a_class_gives_labels_and_captions(tmp_path, capsys):
    draw(tmp_path, *(f"{label}/{i}.png" for label in ("cat", "hot_dog") for i in range(20)))
    data = open_folder(tmp_path, image_size=4)
    assert data.class_names == ("cat", "hot dog")
    level = data.images(np.arange(len(data)))[:, 0, 0, 0]
    assert data.labels.tolist() == (level >= 20).tolist()
    assert data.all_captions(0)[:2] == ["a cat", "a photo of a cat"]
    assert "from the names of 2 folders, as classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [["cat/0.png", "1.png"], ["cat/0.png", "cat/1.png"], ["images/0.png", "masks/1.png"],
     ["a/b/0.png", "c/1.png"]],
)  # fmt: skip
def test_other_folders_are_no_classes(tmp_path, names):
    draw(tmp_path, *names)
    assert open_folder(tmp_path, image_size=4).labels is None


def test_with_one_caption_folders_are_no_classes(tmp_path):
    draw(tmp_path, "cat/0.png", "dog/1.png")
    write(tmp_path, "cat/0.txt", "my cat")
    data = open_folder(tmp_path, image_size=4)
    assert data.labels is None and data.all_captions(0) == ["my cat"]


@pytest.mark.parametrize("held", ["val", "validation", "test"])
def test_folders_called_train_and_val_are_the_split(tmp_path, capsys, held):
    draw(tmp_path, *(f"d/{s}/{c}/{i}.png" for s in ("train", held) for c in "xy" for i in range(3)))
    for split, first in (("train", 0), ("val", 6)):
        data = open_folder(tmp_path, image_size=4, split=split)
        assert sorted(data.images(np.arange(6))[:, 0, 0, 0]) == list(range(first, first + 6))
        assert data.class_names == ("x", "y") and data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert "say what is train and" in capsys.readouterr().err


def test_the_split_that_captions_state_comes_first_and_test_is_kept_out(tmp_path, capsys):
    draw(tmp_path, *(f"val2014/{name}" for name in TEN))
    write(tmp_path, "dataset_coco.json", json.dumps(KARPATHY))
    levels = [
        open_folder(tmp_path, image_size=4, split=split).pixels[:, 0, 0, 0].tolist()
        for split in ("train", "val")
    ]
    assert [len(levels[0]), len(levels[1])] == [6, 2]
    assert "2 pictures of test" in capsys.readouterr().err


# --- one line of what was used and what was not --------------------------------------------------


def test_the_line_counts_what_is_not_read_by_kind(tmp_path, capsys):
    draw(tmp_path, *TEN)
    for name in ("a.HEIC", "b.heic", "c.mp4", "d.cr2", "e.txt"):
        write(tmp_path, name, "x")
    write(tmp_path, "p0.txt", "x")
    open_folder(tmp_path, image_size=4)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "train: 1 of 1 pictures" in said
    for kind in ("2 .heic (save as JPEG)", "1 .mp4", "1 .cr2", "9 pictures without a caption",
                 "1 .txt without a picture"):  # fmt: skip
        assert kind in said


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".pjpeg", ".JPEG"])
def test_a_jpeg_of_any_suffix_is_read(tmp_path, suffix):
    Image.new("RGB", (8, 8), "red").save(tmp_path / f"a{suffix}", "JPEG")
    assert open_folder(tmp_path, image_size=4).images(np.array([0]))[0, 0, 0, 0] > 250


def test_avif_is_read_where_pillow_can(tmp_path, capsys):
    draw(tmp_path, "a.png")
    if features.check("avif"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "b.avif")
        assert set(read_folder(tmp_path).captions) == {"a.png", "b.avif"}
    else:
        write(tmp_path, "b.avif", "x")
        assert read_folder(tmp_path).unused == {".avif (save as JPEG)": 1}


def test_what_is_no_file_is_counted_and_never_opened(tmp_path, capsys):
    draw(tmp_path, "a.png")
    for name in ("p.jpg", "a.txt", "captions.csv"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "d.jpg").mkdir()
    (tmp_path / "l.png").symlink_to("nowhere")
    assert len(open_folder(tmp_path, image_size=4)) == 1
    said = capsys.readouterr().err
    for kind in ("3 pipes, sockets", "1 folders named as pictures", "1 dangling links"):
        assert kind in said


def test_a_run_and_a_drawn_grid_beside_the_pictures_are_no_data(tmp_path):
    draw(tmp_path, *TEN)
    before = open_folder(tmp_path, image_size=4).fingerprint()
    draw(tmp_path, "run/samples/step-1.png")
    write(tmp_path, "run/config.json", "{}")
    (tmp_path / "run" / "state").mkdir()
    save_png(grid(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), tmp_path / "grid.png")
    frames = [grid(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))] * 2
    save_gif(frames, tmp_path / "grid.gif")
    found = read_folder(tmp_path)
    assert list(found.captions) == TEN and found.unused == {"run folders": 1, "drawn grids": 2}
    assert open_folder(tmp_path, image_size=4).fingerprint() == before


def test_half_of_the_listed_pictures_missing_is_said_and_the_others_are_used(tmp_path, capsys):
    draw(tmp_path, *TEN[:5])
    write(tmp_path, "captions.csv", TABLES["metadata.csv"])
    assert sum(map(len, read_folder(tmp_path).captions.values())) == 5
    assert "left out 5 of 10, whose pictures are not there: line 7" in capsys.readouterr().err


def test_a_limit_that_meets_mostly_broken_pictures_stops(tmp_path):
    draw(tmp_path, *(f"{i:03}.png" for i in range(200)))
    data = open_folder(tmp_path, image_size=4, limit=4)
    for level in data.pixels[:3, 0, 0, 0]:
        (tmp_path / f"{level:03}.png").write_bytes(b"cut")
    with pytest.raises(UserError, match="3 of the 4 pictures chosen are broken"):
        open_folder(tmp_path, image_size=4, limit=4)


# --- the real data -------------------------------------------------------------------------------


def test_the_emoji_folder_opens_as_it_is(shared):
    path = shared / "data" / "emoji"
    train, val = (open_folder(path, image_size=16, split=split) for split in ("train", "val"))
    assert len(train) + len(val) == 1720 and 120 < len(val) < 230
    assert "hash key" in sum((train.all_captions(i) for i in range(20)), [])
