"""The image index and `python -m minimodal search`: exact, kept, brought up to date, mended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT
from helpers.commands import TOKENIZER, pixels, refusal, write_run
from helpers.shape_check import check_shapes
from helpers.tiny import make_clip, noise, shake
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from minimodal import files
from minimodal.cli.main import main
from minimodal.clip import CLIP
from minimodal.errors import UserError
from minimodal.evaluation.metrics import top_k
from minimodal.runs import load
from minimodal.uses import search
from minimodal.uses.embedding import embed_captions
from minimodal.uses.search import (
    FILE,
    combine,
    embed_queries,
    fingerprint,
    refresh,
)

COLORS = {"blue": (0, 0, 255), "green": (0, 200, 0), "red": (250, 0, 0), "white": (255,) * 3}


def make(seed: int = 0) -> CLIP:
    """A CLIP of 8 pixels with a tokenizer; its weights are random."""
    clip = shake(make_clip(vocab_size=TOKENIZER.vocab_size, text_length=20), 0.2 + seed / 100)
    clip.tokenizer = TOKENIZER
    return clip


def paint(path: Path, color, size: int = 8) -> Path:
    """A picture of one colour with a black corner."""
    picture = Image.new("RGB", (size, size), color)
    picture.paste((0, 0, 0), (0, 0, size // 2, size // 4))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures, one of them in a folder of its own."""
    for name, color in COLORS.items():
        paint(tmp_path / "pics" / ("in/red.png" if name == "red" else f"{name}.png"), color)
    return tmp_path / "pics"


@pytest.fixture
def kept(folder) -> Path:
    """Where the index of the folder is kept."""
    return folder.parent / ".pics.minimodal" / FILE


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """How many pictures the encoder was given at each call."""
    sizes = []
    original = CLIP.encode_image

    def spy(self, images):
        sizes.append(len(images))
        return original(self, images)

    monkeypatch.setattr(CLIP, "encode_image", spy)
    return sizes


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory) -> Path:
    """A demo folder with a clip run alone."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    write_run(out / "clip", "clip", make())
    return out


@pytest.fixture
def run(clip_run, folder, monkeypatch, capsys):
    """Call the command beside the folder `pics`: status, stdout, stderr."""
    monkeypatch.chdir(folder.parent)

    def call(*words: str, clip: Path = clip_run) -> tuple[int, str, str]:
        device = [] if "--device" in words else ["--device", "cpu"]
        try:
            status = main(["search", *words, "--clip", str(clip), *device])
        except SystemExit as leave:
            status = leave.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def names_of(out: str) -> list[str]:
    return [Path(found["file"]).name for found in json.loads(out)["results"]]


# --- exact search --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 40),
    queries=st.integers(1, 3),
    k=st.integers(1, 45),
    block=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_top_k_is_the_plain_argsort_and_of_ties_the_lower_index(count, queries, k, block, seed):
    draw = torch.Generator().manual_seed(seed)
    # Small whole numbers: exact in float32, and full of ties, of zeros and of minus zeros.
    embeddings = torch.randint(-1, 2, (count, 3), generator=draw).float()
    asked = torch.randint(-2, 3, (queries, 3), generator=draw).float()
    hits = top_k(embeddings, asked, k, block=block)
    plain = (asked @ embeddings.T).numpy()
    order = np.argsort(-plain, axis=1, kind="stable")[:, :k]
    assert (hits.indices.numpy() == order).all() and hits.indices.shape == (queries, min(k, count))
    assert (hits.scores.numpy() == np.take_along_axis(plain, order, 1)).all()


def test_top_k_returns_the_very_scores_of_any_float():
    values = torch.tensor([0.5, -0.0, 1e-42, -1e-42, -3.5, 3.4e38, -3.4e38, float("-inf"), 0.0])
    hits = top_k(values[:, None], torch.ones(1, 1), 9)
    expected = values.sort(descending=True, stable=True)
    assert (hits.scores[0] == expected.values).all() and (hits.indices[0] == expected.indices).all()


def test_top_k_of_what_is_no_number_says_so_instead_of_failing():
    values = torch.tensor([0.5, float("nan"), float("nan"), 2.0])
    assert top_k(values[:, None], torch.ones(1, 1), 3).indices.tolist() == [[1, 2, 3]]
    assert top_k(values[:, None], torch.ones(1, 1), 1).indices.tolist() == [[1]]


def test_the_shapes_in_the_docstrings_are_true():
    queries = noise(2, 4)
    check_shapes(combine, {"units": queries}, combine(queries, [1, 1]))


def test_a_query_is_the_weighted_sum_at_unit_length():
    units = F.normalize(noise(3, 5), dim=-1)
    expected = 2 * units[0] - 0.5 * units[1] + units[2]
    torch.testing.assert_close(combine(units, [2, -0.5, 1]), expected / expected.norm())


@pytest.mark.parametrize("weights", [(1, -1), (0, 0), (1e6, -1e6)])
def test_a_query_that_cancels_out_is_refused(weights):
    unit = F.normalize(noise(1, 64), dim=-1)
    with pytest.raises(UserError, match="cancel out"):
        combine(torch.cat([unit, unit * (1 - 1e-7)]), weights)


# --- the model -----------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_tensors_and_the_configuration():
    assert fingerprint(make()) == fingerprint(make())
    other = make()
    with torch.no_grad():
        other.image_encoder.positions[0, 0] += 1e-6
    renamed = make_clip(vocab_size=TOKENIZER.vocab_size, text_length=20, preprocessing="openai")
    renamed.load_state_dict(make().state_dict())
    assert len({fingerprint(clip) for clip in (make(), other, renamed)}) == 3


# --- what is read again --------------------------------------------------------------------------


def test_the_index_has_a_unit_row_for_each_picture(folder, kept):
    clip = make()
    index, changes = refresh(clip, folder)
    assert list(index.stamps) == ["blue.png", "green.png", "in/red.png", "white.png"]
    assert changes == (4, 0) and index.embeddings.dtype == torch.float32
    torch.testing.assert_close(index.embeddings.norm(dim=1), torch.ones(4))
    for row, name in zip(index.embeddings, list(index.stamps), strict=True):
        with Image.open(folder / name) as picture:
            wanted = clip.encode_image(clip.preprocess(picture)[None])[0].detach()
        torch.testing.assert_close(row, wanted / wanted.norm())
    assert torch.equal(load_file(kept)["embeddings"], index.embeddings)


def test_nothing_is_read_or_written_again_when_nothing_changed(folder, kept, seen):
    first, _ = refresh(make(), folder)
    written = kept.stat().st_mtime_ns
    second, changes = refresh(make(), folder)
    assert seen == [4] and changes == (0, 0) and kept.stat().st_mtime_ns == written
    assert second.stamps == first.stamps and torch.equal(second.embeddings, first.embeddings)


def test_only_new_and_changed_pictures_are_read(folder, kept, seen):
    refresh(make(), folder)
    paint(folder / "aqua.png", (0, 255, 255))
    paint(folder / "green.png", (9, 99, 9), size=9)
    index, changes = refresh(make(), folder)
    assert seen == [4, 2] and changes == (2, 0) and len(list(index.stamps)) == 5
    kept.unlink()
    afresh, _ = refresh(make(), folder)
    assert seen == [4, 2, 5] and afresh.stamps == index.stamps
    torch.testing.assert_close(afresh.embeddings, index.embeddings)


def test_a_file_of_the_same_size_counts_as_changed_by_its_time(folder, seen):
    refresh(make(), folder)
    os.utime(folder / "green.png", ns=(1, 1))
    assert refresh(make(), folder)[1] == (1, 0) and seen == [4, 1]


def test_what_is_deleted_is_dropped(folder, seen):
    refresh(make(), folder)
    (folder / "green.png").unlink()
    index, changes = refresh(make(), folder)
    assert list(index.stamps) == ["blue.png", "in/red.png", "white.png"] and changes == (0, 1)
    assert len(index.embeddings) == 3 and seen == [4]
    assert refresh(make(), folder)[1] == (0, 0)


def test_the_encoder_gets_batches(folder, kept, seen, monkeypatch):
    monkeypatch.setattr(search, "BATCH", 3)
    whole, _ = refresh(make(), folder)
    assert seen == [3, 1]
    monkeypatch.undo()
    kept.unlink()
    torch.testing.assert_close(refresh(make(), folder)[0].embeddings, whole.embeddings)


def test_a_broken_picture_is_named_and_tried_again_each_time(folder, seen, capsys, monkeypatch):
    (folder / "bad.jpg").write_text("no picture")
    (folder / "empty.png").touch()
    for _ in range(2):
        index, _ = refresh(make(), folder)
        assert list(index.broken) == ["bad.jpg", "empty.png"] and len(list(index.stamps)) == 4
        said = capsys.readouterr().err
        assert "skipped 2 broken of 6: bad.jpg (not a picture" in said and "empty.png" in said
    read, original = [], search.opened
    monkeypatch.setattr(search, "opened", lambda path: read.append(path.name) or original(path))
    paint(folder / "empty.png", COLORS["red"])
    mended, changes = refresh(make(), folder)
    assert set(read) == {"bad.jpg", "empty.png"} and seen == [4, 1]  # those that are sound stay
    assert changes == (1, 0) and list(mended.broken) == ["bad.jpg"]


def test_at_most_five_broken_pictures_are_listed(folder, capsys):
    for number in range(7):
        (folder / f"bad{number}.png").touch()
    refresh(make(), folder)
    said = capsys.readouterr().err
    assert "skipped 7 broken of 11" in said and "bad4.png" in said and "bad5.png" not in said


def test_a_row_that_is_no_number_is_left_out(folder, monkeypatch):
    original = CLIP.encode_image

    def spoil(self, images):
        rows = original(self, images)
        return torch.where(images.mean(dim=(1, 2, 3))[:, None] > 1, float("nan"), rows)

    monkeypatch.setattr(CLIP, "encode_image", spoil)
    index, _ = refresh(make(), folder)
    assert list(index.broken) == ["white.png"] and index.embeddings.isfinite().all()


# --- an index that cannot be used ----------------------------------------------------------------


def test_an_index_of_another_model_is_made_again(folder, seen, capsys):
    refresh(make(), folder)
    other, _ = refresh(make(1), folder)
    said = capsys.readouterr().err
    assert "is of another model or version: it is made again" in said and said.count("\n") == 1
    assert seen == [4, 4]
    torch.testing.assert_close(other.embeddings, refresh(make(1), folder)[0].embeddings)
    assert seen == [4, 4]


def test_an_index_of_another_version_is_made_again(folder, seen, capsys, monkeypatch):
    monkeypatch.setattr(search, "VERSION", 0)
    refresh(make(), folder)
    monkeypatch.undo()
    refresh(make(), folder)
    assert "is of another model or version: it is made again" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_index_is_made_again(folder, kept, seen, capsys, share):
    whole, _ = refresh(make(), folder)
    content = kept.read_bytes()
    kept.write_bytes(content[: int(share * len(content))])
    index, changes = refresh(make(), folder)
    assert "is damaged: it is made again" in capsys.readouterr().err
    assert changes == (4, 0) and torch.equal(index.embeddings, whole.embeddings)
    assert refresh(make(), folder)[1] == (0, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"pictures": [[', b'"pictures": [{'),
        (b'"version"', b'"verslon"'),
        (b'"model"', b'"\xff\x00del"'),
    ],
)
def test_a_damaged_manifest_is_made_again(folder, kept, capsys, before, after):
    refresh(make(), folder)
    content = kept.read_bytes()
    assert before in content and len(before) == len(after)
    kept.write_bytes(content.replace(before, after))
    assert refresh(make(), folder)[1] == (4, 0)
    assert "is damaged: it is made again" in capsys.readouterr().err


def test_rows_that_do_not_fit_the_names_are_made_again(folder, kept, capsys):
    index, _ = refresh(make(), folder)
    fewer = search.Index(index.embeddings[:3].clone(), index.stamps, {})
    search.write_index(kept, fewer, fingerprint(make()))
    assert refresh(make(), folder)[1] == (4, 0)
    assert "is damaged: it is made again" in capsys.readouterr().err


# --- an index that is written --------------------------------------------------------------------


def test_a_kill_while_writing_leaves_the_old_index_whole(folder, kept, seen, monkeypatch):
    refresh(make(), folder)
    before = kept.read_bytes()
    paint(folder / "aqua.png", (0, 255, 255))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        refresh(make(), folder)
    monkeypatch.undo()
    assert kept.read_bytes() == before
    assert refresh(make(), folder)[1] == (1, 0)


def test_ctrl_c_keeps_what_is_embedded_by_then(folder, kept, seen, monkeypatch):
    monkeypatch.setattr(search, "BATCH", 1)
    original = CLIP.encode_image

    def tire(self, images):
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(CLIP, "encode_image", tire)
    with pytest.raises(KeyboardInterrupt):
        refresh(make(), folder)
    monkeypatch.setattr(CLIP, "encode_image", original)
    index, changes = refresh(make(), folder)
    assert changes == (2, 0) and len(list(index.stamps)) == 4
    kept.unlink()
    torch.testing.assert_close(index.embeddings, refresh(make(), folder)[0].embeddings)


def test_where_the_folder_has_no_room_beside_it_the_search_goes_on(folder, kept, capsys):
    kept.parent.touch()  # a file where the index's folder should be
    index, _ = refresh(make(), folder)
    said = capsys.readouterr().err
    assert len(list(index.stamps)) == 4 and "cannot be kept: cannot write into" in said


def test_a_full_disk_does_not_stop_the_search(folder, kept, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert len(refresh(make(), folder)[0].stamps) == 4
    assert "cannot be kept" in capsys.readouterr().err and not list(kept.parent.iterdir())


def test_the_rows_of_a_kept_index_are_mapped_and_not_read(tmp_path):
    rows = F.normalize(noise(40_000, 128), dim=-1)  # 20 MB
    stamps = {f"{i:05d}.png": (1, 1) for i in range(len(rows))}
    search.write_index(tmp_path / FILE, search.Index(rows, stamps, {}), "model")
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from minimodal.evaluation.metrics import top_k\n"
        "from minimodal.uses.search import read_index\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(line for line in lines if line.startswith('RssAnon')).split()[1])\n"
        "torch.set_num_threads(1)\n"
        "top_k(torch.ones(99, 128), torch.ones(1, 128), 9, block=9)\n"
        "file = read_index(Path(sys.argv[1]).with_name('no'), 'model', width=128)\n"
        "index = read_index(Path(sys.argv[1]), 'model', width=128)\n"
        "before = anonymous()\n"
        "top_k(index.embeddings, torch.ones(1, 128), 9, block=4096)\n"
        "print(anonymous() - before, len(list(index.stamps)))\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    asked = [sys.executable, "-c", script, str(tmp_path / FILE)]
    root = ROOT
    done = subprocess.run(asked, capture_output=True, text=True, cwd=root, timeout=600)
    grown, count = map(int, done.stdout.split())
    assert count == 40_000 and grown < 5_000  # kB


# --- the command ---------------------------------------------------------------------------------


def test_a_picture_finds_itself_first(run):
    status, out, _ = run("pics", "--image", "pics/in/red.png", "--json")
    results = json.loads(out)["results"]
    assert status == 0 and results[0]["file"] == "pics/in/red.png" and len(results) == 4
    assert results[0]["score"] == pytest.approx(1, abs=1e-5)
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)


def test_scores_are_the_cosines_of_the_prompt(run, clip_run, folder):
    found = json.loads(run("pics", "a red circle", "--json")[1])["results"]
    clip = load(clip_run / "clip")
    text = embed_captions(clip, ["a red circle"])[0]
    for result in found:
        image = embed_queries(clip, [Path(result["file"])])[0]
        assert result["score"] == pytest.approx(float(text @ image), abs=1e-6)


def test_a_prompt_on_shapes_is_embedded_with_the_article_that_its_captions_have(run):
    said, meant = (json.loads(run("pics", p, "--json")[1]) for p in ("red circle", "a red circle"))
    assert said["results"] == meant["results"] and said["query"]["prompts"] == ["red circle"]


def test_prompts_and_pictures_are_added_with_their_weights(run, clip_run):
    words = ("pics", "a red circle", "a blue box", "--image", "pics/white.png")
    found = json.loads(run(*words, "--weights", "1,-0.5,2", "--json")[1])
    clip = load(clip_run / "clip")
    texts = embed_captions(clip, ["a red circle", "a blue box"])
    query = combine(torch.cat([texts, embed_queries(clip, [Path("pics/white.png")])]), [1, -0.5, 2])
    best = Path(found["results"][0]["file"])
    expected = float(query @ embed_queries(clip, [best])[0])
    assert found["results"][0]["score"] == pytest.approx(expected, abs=1e-5)
    assert found["query"] == {
        "prompts": ["a red circle", "a blue box"],
        "images": ["pics/white.png"],
        "weights": [1, -0.5, 2],
    }


def test_a_first_weight_below_zero_turns_the_order_round(run):
    plain = names_of(run("pics", "red", "--json")[1])
    assert names_of(run("pics", "red", "--weights=-1", "--json")[1]) == plain[::-1]


def test_json_is_one_object_and_all_that_stdout_has(run, folder):
    (folder / "bad.png").touch()
    status, out, err = run("pics", "a red circle", "-k", "2", "--json", "--out", "new/grid.png")
    told = json.loads(out)
    assert status == 1 and out.count("\n") == 1 and len(told["results"]) == 2
    assert told["index"] == {"pictures": 4, "new": 4, "removed": 0, "broken": 1}
    assert "bad.png" in err and pixels(told["grid"]).shape[1] > 2 * 128
    (folder / "green.png").unlink()
    again = json.loads(run("pics", "a red circle", "--json")[1])
    assert again["index"] == {"pictures": 3, "new": 0, "removed": 1, "broken": 1}


def test_words_are_a_line_for_each_picture(run):
    status, out, err = run("pics", "a red circle", "-k", "3")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0 and err == "" and len(lines) == 3
    assert all(Path(file).is_file() and -1 <= float(score) <= 1 for score, file in lines)


def test_prompts_may_stand_after_a_flag(run):
    first = run("pics", "a red circle", "blue", "-k", "2", "--json")[1]
    later = run("pics", "-k", "2", "a red circle", "--json", "blue")[1]
    assert json.loads(later)["query"] == json.loads(first)["query"]


def test_a_name_of_invalid_bytes_is_found_and_shown(run, folder):
    name = os.fsdecode(b"\xff.png")
    try:
        (folder / "red.png").write_bytes((folder / "in" / "red.png").read_bytes())
        (folder / "red.png").rename(folder / name)
    except OSError:
        pytest.skip("this file system has no such names")
    for _ in range(2):  # made, and read from the file
        status, out, _ = run("pics", "red", "--out", "grid.png")
        assert status == 0 and "udcff.png" in out
    assert json.loads(run("pics", "red", "--json")[1])["index"]["pictures"] == 5


def test_a_picture_that_goes_after_the_search_is_left_out_of_the_grid(run, folder, monkeypatch):
    import minimodal.cli.search as command

    def late(clip, folder, **more):
        found = refresh(clip, folder, **more)
        (folder / "green.png").unlink()
        return found

    monkeypatch.setattr(command, "refresh", late)
    status, out, err = run("pics", "red", "--out", "grid.png", "--json")
    assert status == 0 and "left out: pics/green.png" in err
    assert len(json.loads(out)["results"]) == 4 and Path("grid.png").exists()


def test_ctrl_c_leaves_with_130_and_a_part_of_the_index(run, folder, kept, monkeypatch):
    original, calls = CLIP.encode_image, []

    def stop(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(search, "BATCH", 1)
    monkeypatch.setattr(CLIP, "encode_image", stop)
    status, out, err = run("pics", "red")
    assert status == 130 and out == "" and "Traceback" not in err
    assert len(load_file(kept)["embeddings"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "FOLDER"),
        (("pics",), "nothing to look for"),
        (("pics", " "), "a prompt is empty"),
        (("absent", "red"), "absent: no such folder"),
        (("pics/white.png", "red"), "is a file, not a folder"),
        (("empty", "red"), "empty: no pictures in it"),
        (("broken", "red"), "none of its pictures can be read: bad.png"),
        (("pics", "red", "-k", "0"), "-k 0: expected 1 or more"),
        (("pics", "red", "-k", "few"), "invalid int value: 'few'"),
        (("pics", "--image", "absent.png"), "absent.png: no such file"),
        (("pics", "--image", "broken/bad.png"), "broken/bad.png: cannot be read as a picture"),
        (("pics", "--image", "pics/white.png", "red"), "prompts stand before --image"),
        (("pics", "red", "--weights", "1,2"), "expected 1, one for each"),
        (("pics", "red", "--weights", "much"), "--weights much: expected numbers"),
        (("pics", "red", "--weights", "nan"), "--weights nan: expected numbers"),
        (("pics", "red", "--weights", ""), "--weights : expected numbers"),
        (("pics", "red", "red", "--weights", "1,-1"), "cancel out"),
        (("pics", "red", "--out", "grid.jpg"), "ends in .png"),
        (("pics", "red", "--out", "folder.png"), "is a folder"),
        (("pics", "red", "--out", "broken/bad.png/x.png"), "bad.png is a file, not a folder"),
        (("pics", "red " * 99), "is too long"),
        (("pics", "red", "--device", "tpu"), "tpu: expected auto, cpu or cuda"),
        (("pics", "red", "--imag", "x"), "did you mean --image?"),
    ],
)
def test_bad_input_is_refused_in_one_line(run, words, message):
    Path("empty").mkdir()
    Path("folder.png").mkdir()
    Path("broken").mkdir()
    Path("broken/bad.png").touch()
    assert message in refusal(run(*words))


def test_a_missing_or_wrong_clip_is_named(run, tmp_path):
    (tmp_path / "bare").mkdir()
    said = refusal(run("pics", "red", clip=tmp_path / "absent"))
    assert "python -m minimodal train demo" in said and "give --clip with a run" in said
    assert "bare is no run folder" in refusal(run("pics", "red", clip=tmp_path / "bare"))


def test_a_clip_run_by_itself_will_do(run, clip_run):
    assert run("pics", "red", clip=clip_run / "clip")[0] == 0


def test_the_module_can_be_run(folder, clip_run):
    root = ROOT
    words = [str(folder), "red", "-k", "1", "--clip", str(clip_run), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "minimodal", "search", *words],
        capture_output=True, text=True, cwd=root, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and done.stderr == ""
