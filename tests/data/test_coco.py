"""minimodal/data/folder.py: COCO as it unpacks, all captions, broken entries, no val2017."""

import json

import numpy as np
import pytest
from PIL import Image

from minimodal.data.folder import open_coco, read_folder
from minimodal.errors import UserError


def write_part(root, part: str, count: int, *, bare: int = 0, first: int = 0) -> dict:
    """`count` pictures, grey level = id, two captions each but for the last `bare`."""
    (root / part).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(first, first + count):
        name = f"{i:012}.png"
        Image.new("L", (9, 7), i).save(root / part / name)
        images.append({"id": i, "file_name": name, "width": 9, "height": 7})
        if i < first + count - bare:
            for text in ("one", "two"):
                entry = {"id": len(annotations), "image_id": i, "caption": f"{text} of {i}"}
                annotations.append(entry)
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations[::-1]}
    write_json(root, part, content)
    return content


def write_json(root, part: str, content) -> None:
    (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))


def read_part(root, part: str) -> dict:
    return read_folder(root / part, root / "annotations" / f"captions_{part}.json").captions


def ids(source) -> list[int]:
    return source.images(np.arange(len(source)))[:, 0, 0, 0].tolist()


@pytest.fixture
def coco(tmp_path):
    write_part(tmp_path, "train2017", 40)
    write_part(tmp_path, "val2017", 5, first=100)
    return tmp_path


def test_every_picture_has_its_own_captions_and_all_of_them(coco):
    data = open_coco(coco, image_size=8)
    assert data.name == "coco" and data.image_size == 8 and data.labels is None
    assert ids(data) == list(range(40))
    for i in range(40):
        assert sorted(data.all_captions(i)) == [f"one of {i}", f"two of {i}"]


def test_the_split_chooses_the_part_unless_the_part_is_given(coco):
    assert ids(open_coco(coco, split="val")) == [100, 101, 102, 103, 104]
    assert ids(open_coco(coco, "val2017", split="train")) == [100, 101, 102, 103, 104]
    assert len(open_coco(coco, "train2017", split="val")) == 40


def test_pictures_without_a_caption_are_left_out_and_counted(tmp_path, capsys):
    write_part(tmp_path, "train2017", 10, bare=3)
    write_part(tmp_path, "val2017", 2)
    assert ids(open_coco(tmp_path)) == list(range(7))
    said = capsys.readouterr().err
    assert (
        "7 of 7 pictures, 14 captions from captions_train2017.json; not used: 3 pictures without"
        in said
    )


def test_without_val2017_a_part_of_train_is_kept_out(tmp_path):
    write_part(tmp_path, "train2017", 60)
    train, val = (ids(open_coco(tmp_path, split=split)) for split in ("train", "val"))
    assert sorted(train + val) == list(range(60)) and 1 <= len(val) < 20
    assert val == ids(open_coco(tmp_path, split="val"))
    assert len(open_coco(tmp_path, "train2017")) == 60


def test_an_explicit_part_that_is_missing_is_an_error(tmp_path):
    write_part(tmp_path, "train2017", 4)
    with pytest.raises(UserError, match="captions_val2017.json"):
        open_coco(tmp_path, "val2017")


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="annotations/captions_train2017.json"):
        open_coco(tmp_path)


def test_a_limit_decodes_only_that_many(coco):
    data = open_coco(coco, limit=6, seed=2)
    assert len(data) == 6
    assert all(f"of {i}" in data.all_captions(at)[0] for at, i in enumerate(ids(data)))


def test_broken_pictures_take_their_captions_with_them(coco, capsys):
    (coco / "train2017" / f"{3:012}.png").write_bytes(b"cut")
    (coco / "train2017" / f"{8:012}.png").unlink()
    data = open_coco(coco)
    assert ids(data) == [i for i in range(40) if i not in (3, 8)]
    assert all(f"of {i}" in data.all_captions(at)[0] for at, i in enumerate(ids(data)))
    assert "000000000003.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad",
    [
        {"image_id": 999, "caption": "of nothing"},
        {"image_id": 1, "caption": "  "},
        {"image_id": 1, "caption": None},
        {"image_id": [1], "caption": "x"},
        {"caption": "x"},
        "x",
        None,
    ],
)
def test_a_broken_annotation_is_skipped_and_named(tmp_path, capsys, bad):
    content = write_part(tmp_path, "train2017", 20)
    content["annotations"].insert(4, bad)
    write_json(tmp_path, "train2017", content)
    captions = read_part(tmp_path, "train2017")
    assert sum(map(len, captions.values())) == 40
    assert "skipped 1 broken of 41: entry 5: " in capsys.readouterr().err


def test_many_broken_annotations_stop_with_a_list(tmp_path):
    content = write_part(tmp_path, "train2017", 20)
    for entry in content["annotations"][:3]:
        entry["image_id"] = 999
    write_json(tmp_path, "train2017", content)
    with pytest.raises(UserError, match="3 of 40.*entry 1: .*entry 3: "):
        open_coco(tmp_path)


def test_a_file_name_outside_the_folder_is_never_opened(tmp_path, capsys):
    content = write_part(tmp_path, "train2017", 40)
    content["images"][0]["file_name"] = "../../secret.png"
    write_json(tmp_path, "train2017", content)
    captions = read_part(tmp_path, "train2017")
    assert sum(map(len, captions.values())) == 78
    said = capsys.readouterr().err
    assert "left out 2 of 80, whose pictures are not there" in said and "secret.png" in said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"images": []}', '{"images": 1, "annotations": 2}']
)
def test_a_file_that_is_no_coco_file_is_an_error_with_its_name(tmp_path, text):
    write_part(tmp_path, "train2017", 2)
    (tmp_path / "annotations" / "captions_train2017.json").write_text(text)
    with pytest.raises(UserError, match="captions_train2017.json"):
        open_coco(tmp_path)


def test_the_published_layout_is_read_whole(shared):
    data = open_coco(shared / "data" / "coco_mini", image_size=32)
    assert len(data) == 281
    assert sum(len(data.all_captions(i)) for i in range(281)) == 1406
    val = open_coco(shared / "data" / "coco_mini", image_size=32, split="val")
    assert len(val) == 45 and sum(len(val.all_captions(i)) for i in range(45)) == 225


# --- what people have of it ----------------------------------------------------------------------


def test_half_of_the_pictures_missing_leaves_the_other_half_and_is_said(coco, capsys):
    for i in range(20):
        (coco / "train2017" / f"{i:012}.png").unlink()
    assert ids(open_coco(coco)) == list(range(20, 40))
    said = capsys.readouterr().err
    assert "left out 40 of 80, whose pictures are not there" in said
    assert "train2017, all: 20 of 20 pictures, 40 captions from captions_train2017.json" in said


def test_a_limit_is_a_number_of_pictures_that_are_there(coco):
    for i in range(20):
        (coco / "train2017" / f"{i:012}.png").unlink()
    assert len(open_coco(coco, limit=20)) == 20


def test_without_any_of_its_pictures_coco_is_an_error(coco):
    for file in (coco / "train2017").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no picture"):
        open_coco(coco)


def test_coco_2014_is_read_where_2017_is_not_there(tmp_path):
    write_part(tmp_path, "train2014", 6)
    write_part(tmp_path, "val2014", 3, first=50)
    assert ids(open_coco(tmp_path)) == list(range(6))
    assert ids(open_coco(tmp_path, split="val")) == [50, 51, 52]
    assert ids(open_coco(tmp_path, "val2014")) == [50, 51, 52]


def test_a_part_that_is_there_is_named_where_another_was_meant(tmp_path):
    write_part(tmp_path, "val2017", 3)
    with pytest.raises(UserError, match=":val2017 uses the part that is there"):
        open_coco(tmp_path)
