"""minimodal/data/loading.py, sources.py: SPECs as people type them, and the order of the data."""

import io
import json
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from minimodal.data import sources
from minimodal.data.loading import Spec, open_data, parse_spec, split_spec
from minimodal.data.sources import batch_indices, first_pictures
from minimodal.errors import UserError


def folder(root, count: int = 12):
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (5, 5), (i, 0, 0)).save(root / f"{i:02}.png")
        (root / f"{i:02}.txt").write_text(f"number {i}")
    return root


# --- the SPEC ------------------------------------------------------------------------------------


def test_a_spec_is_taken_apart(tmp_path):
    path = str(tmp_path)
    assert parse_spec("shapes") == Spec("shapes")
    assert parse_spec("shapes:500") == Spec("shapes", limit=500)
    assert parse_spec(f"cifar10:{path}") == Spec("cifar10", path)
    assert parse_spec(f"folder:{path}:7") == Spec("folder", path, limit=7)
    assert parse_spec(f"coco:{path}:val2017") == Spec("coco", path, "val2017")
    assert parse_spec(f"coco:{path}:train2017:9") == Spec("coco", path, "train2017", 9)
    assert parse_spec(f"coco:{path}:9") == Spec("coco", path, limit=9)


def test_a_path_with_colons_works_where_it_exists(tmp_path):
    plain, colon = tmp_path / "a", tmp_path / "a:3"
    plain.mkdir()
    assert parse_spec(f"folder:{plain}:3") == Spec("folder", str(plain), limit=3)
    colon.mkdir()
    assert parse_spec(f"folder:{plain}:3") == Spec("folder", str(colon))
    assert parse_spec(f"folder:{colon}:5") == Spec("folder", str(colon), limit=5)


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert parse_spec("folder:~/mine").path == str(tmp_path / "mine")


@pytest.mark.parametrize(
    "spec, message",
    [
        ("shape", "did you mean shapes"),
        ("cifar-10:x", "did you mean cifar10"),
        ("COCO:x", "did you mean coco"),
        (
            "imagenet:x",
            "unknown kind of data 'imagenet'; known are shapes, shapes:hard, shapes:edits, ",
        ),
        ("", "unknown kind"),
        ("shapes:", "not a number"),
        ("shapes:many", "'many' is not a number"),
        ("folder", "write folder:PATH"),
        ("folder:", "write folder:PATH"),
        ("folder:nowhere/at/all", "no such folder, nowhere/at/all$"),
        ("coco:nowhere:val2017:5", "no such folder, nowhere$"),
        ("folder:{path}:0", "'0' is not a number"),
        ("folder:{path}:-1", "'-1' is not a number"),
        ("folder:{path}:2.5", "'2.5' is not a number"),
        ("folder:{path}:val2017", "'val2017' is not a number"),
        ("folder:{path}:1:2", "cannot read '1:2'"),
        ("coco:{path}:test2017", "'test2017' is not a number"),
        ("cifar10:{path}/file", "is a file"),
        ("{path}", "write folder:"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong_in_one_line(tmp_path, spec, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message) as caught:
        open_data(spec.format(path=tmp_path), image_size=8)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_characters="\0"), max_size=20),
    st.sampled_from(["", "coco:", "folder:", "shapes:"]),
)
@example("~\ud800", "coco:")
def test_any_text_is_a_spec_or_a_user_error(text, start):
    try:
        assert parse_spec(start + text).kind
    except UserError:
        pass


# --- opening -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"split": "test"},
        {"limit": 0},
        {"limit": -3},
        {"limit": 2.5},
        {"limit": True},
        {"image_size": 0},
    ],
)
def test_impossible_options_are_user_errors(tmp_path, options):
    with pytest.raises(UserError):
        open_data(f"folder:{folder(tmp_path)}", **{"image_size": 8, **options})


def test_every_kind_has_the_same_interface(tmp_path):
    coco, mine = tmp_path / "coco", folder(tmp_path / "mine")
    folder(coco / "train2017")
    (coco / "annotations").mkdir()
    content = {
        "images": [{"id": i, "file_name": f"{i:02}.png"} for i in range(12)],
        "annotations": [{"image_id": i, "caption": f"number {i}"} for i in range(12)],
    }
    (coco / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    for spec in ("shapes:8", f"coco:{coco}", f"folder:{mine}"):
        data = open_data(spec, image_size=16)
        indices = np.array([1, 0, 1])
        pictures = data.images(indices)
        assert pictures.shape == (3, 3, 16, 16) and pictures.dtype == np.uint8
        texts = data.captions(indices, np.random.default_rng(0))
        assert len(texts) == 3 and all(isinstance(text, str) and text for text in texts)
        assert all(data.all_captions(int(i)) for i in indices)
        assert data.name == spec.split(":")[0] and data.group == 1
        assert data.image_size == 16 and len(data.fingerprint()) == 64


def test_the_smaller_of_two_limits_counts(tmp_path):
    mine = folder(tmp_path)
    assert len(open_data(f"folder:{mine}:5", image_size=4, limit=3)) == 3
    assert len(open_data(f"folder:{mine}:3", image_size=4, limit=5)) == 3
    assert len(open_data("shapes:64", image_size=16)) == 64


def test_a_limit_is_the_same_pictures_each_time(tmp_path):
    mine = folder(tmp_path)
    prints = [open_data(f"folder:{mine}:4", image_size=4, seed=s).fingerprint() for s in (0, 0)]
    assert prints[0] == prints[1]


def test_cifar_opens_by_spec(shared):
    data = open_data(f"cifar10:{shared / 'data' / 'cifar10'}:50", image_size=32, split="val")
    assert len(data) == 50 and data.has_captions
    data = open_data(f"cifar100:{shared / 'data' / 'cifar100'}", image_size=16, limit=10)
    assert data.name == "cifar100" and data.image_size == 16


# --- the order -----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9), st.integers(0, 2**63))
def test_batches_laid_end_to_end_are_whole_epochs(length, batch_size, seed, far):
    stream = np.concatenate([batch_indices(length, batch_size, t, seed=seed) for t in range(9)])
    for start in range(0, len(stream) - length + 1, length):
        assert sorted(stream[start : start + length]) == list(range(length))
    assert len(batch_indices(length, batch_size, far // 2**30, seed=seed)) == batch_size


def test_a_batch_depends_on_nothing_but_its_arguments():
    first = batch_indices(1000, 64, 37, seed=5)
    for step in (3, 500, 0):
        batch_indices(1000, 64, step, seed=5)
    np.random.seed(9)
    again = batch_indices(1000, 64, 37, seed=5)
    assert np.array_equal(first, again) and again.dtype == np.int64


def test_changing_a_batch_does_not_change_the_next():
    first = batch_indices(10, 10, 0, seed=0)
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(batch_indices(10, 10, 0, seed=0), kept)


def test_epochs_and_seeds_have_different_orders():
    orders = [batch_indices(50, 50, step, seed=seed) for step in (0, 1) for seed in (0, 1, -1)]
    assert len({tuple(order) for order in orders}) == 6


def test_a_batch_may_be_larger_than_the_data():
    out = batch_indices(4, 11, 0, seed=0)
    assert np.bincount(out).sum() == 11 and set(np.bincount(out)) <= {2, 3}


@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 5), st.integers(0, 30))
def test_groups_stay_together(group, groups, per_batch, step):
    out = batch_indices(group * groups + group - 1, group * per_batch, step, seed=1, group=group)
    rows = out.reshape(per_batch, group)
    assert (rows[:, 0] % group == 0).all() and rows.max() < group * groups
    assert np.array_equal(rows, rows[:, :1] + np.arange(group))


@pytest.mark.parametrize("arguments", [(10, 6, 4), (3, 4, 4), (0, 1, 1), (10, 0, 1)])
def test_an_impossible_batch_is_a_user_error(arguments):
    length, batch_size, group = arguments
    with pytest.raises(UserError):
        batch_indices(length, batch_size, 0, seed=0, group=group)


# --- several data sets at once -------------------------------------------------------------------


def test_data_joined_by_commas_is_trained_on_together_and_scored_on_the_first(tmp_path):
    first, second = folder(tmp_path / "a", 12), folder(tmp_path / "b", 20)
    spec = f"folder:{first},folder:{second}"
    parts = [open_data(f"folder:{place}", image_size=4) for place in (first, second)]
    joined = open_data(spec, image_size=4)
    assert len(joined) == len(parts[0]) + len(parts[1])
    last = np.array([len(joined) - 1])
    assert np.array_equal(joined.images(last), parts[1].images(np.array([len(parts[1]) - 1])))
    assert joined.all_captions(last[0]) == parts[1].all_captions(len(parts[1]) - 1)
    val = open_data(spec, image_size=4, split="val")
    alone = open_data(f"folder:{first}", image_size=4, split="val")
    assert val.fingerprint() == alone.fingerprint()


def test_a_comma_in_a_path_does_not_divide_a_spec(tmp_path):
    assert split_spec("folder:a,b") == ["folder:a,b"]
    assert split_spec("cifar10:a,cifar10:b:5") == ["cifar10:a", "cifar10:b:5"]


def test_the_shapes_world_joins_no_other_data(tmp_path):
    with pytest.raises(UserError, match="joins no other"):
        open_data(f"folder:{folder(tmp_path / 'a')},shapes", image_size=4)


# --- all pictures of a source --------------------------------------------------------------------


class Terminal(io.StringIO):
    """Where a person looks."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("patience, shown", [(0.0, True), (60.0, False)])
def test_what_takes_long_shows_a_bar_on_a_terminal(monkeypatch, patience, shown):
    monkeypatch.setattr(sources, "PATIENCE", patience)
    monkeypatch.setattr(sys, "stderr", Terminal())
    source = open_data("shapes:40", image_size=32)
    parts = list(first_pictures(source, 10, some=4, flip=True))
    assert [len(part) for part in parts] == [4, 4, 2] * 2
    assert np.array_equal(parts[3], parts[0].flip(-1))
    assert ("pictures" in sys.stderr.getvalue()) is shown
