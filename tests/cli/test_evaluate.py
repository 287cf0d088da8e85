"""`python -m minimodal evaluate`: numbers on known answers, and the manifest beside them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import FIXTURES
from helpers.cifar import NAMES_10, batch, write
from helpers.commands import TOKENIZER, write_demo, write_run
from helpers.tiny import make_clip, make_vqgan
from PIL import Image

from minimodal.cli.main import main
from minimodal.data.images import ImageSource
from minimodal.data.loading import open_data
from minimodal.evaluation import on_data
from minimodal.evaluation.on_data import clip_on_data
from minimodal.evaluation.scoreboard import reconstruct
from minimodal.training.checkpoint import save_config
from minimodal.uses import embedding


def cifar(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    write(folder / "data_batch_1", batch(30, 1))
    write(folder / "test_batch", batch(12, 9))
    write(folder / "batches.meta", {"label_names": NAMES_10})
    return root


def captioned(root: Path, count: int = 30) -> Path:
    root.mkdir()
    for i in range(count):
        Image.new("RGB", (9, 9), (8 * i, 0, 99)).save(root / f"{i:02}.png")
        (root / f"{i:02}.txt").write_text(f"number {i}\nthe same in other words {i}\n")
    return root


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("runs") / "demo", temperature=0.8, guidance=2.0)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call the command in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words) -> tuple[int, str, str]:
        try:
            status = main(["evaluate", *map(str, words), "--device", "cpu"])
        except SystemExit as leave:
            status = leave.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


# --- the numbers ---------------------------------------------------------------------------------


class Blocks:
    """A data source whose pictures and captions a fake CLIP can tell apart perfectly."""

    def __new__(cls, n: int) -> ImageSource:
        pixels = np.zeros((n, 3, 4, 4), np.uint8)
        pixels[np.arange(n), 0, 0, 0] = np.arange(n)
        captions = [[f"{i} {j}" for j in range(7)] for i in range(n)]
        return ImageSource(name="blocks", pixels=pixels, caption_lists=captions)


def test_recall_counts_up_to_five_captions_a_picture(monkeypatch):
    n = 12
    seen = []

    def pictures(clip, images):
        return torch.eye(n)[images[:, 0, 0, 0].long()]

    def captions(clip, texts):
        seen.extend(texts)
        return torch.eye(n)[[int(text.split()[0]) for text in texts]]

    monkeypatch.setattr(embedding, "embed_pictures", pictures)
    monkeypatch.setattr(on_data, "embed_captions", captions)
    found = clip_on_data(make_clip(image_size=4), Blocks(n), Blocks(n))
    assert len(seen) == 5 * n
    assert found.scores["image_to_text_recall_at_1"] == 1.0
    assert found.scores["text_to_image_recall_at_10"] == 1.0
    assert found.scores["text_to_image_chance_at_5"] == pytest.approx(5 / 12)
    assert found.manifest["captions"] == 5 * n


def test_a_classifier_that_sees_nothing_is_at_chance(run, demo, tmp_path):
    data = f"cifar10:{cifar(tmp_path / 'cifar')}"
    status, out, _ = run(demo / "clip", "--data", data, "--json", "--out", "e.json")
    assert status == 0
    scores = json.loads(out)["scores"]
    assert scores["chance"] == 0.1
    assert 0 <= scores["zero_shot"] <= 1 and 0 <= scores["linear_probe"] <= 1


# --- the manifest --------------------------------------------------------------------------------


def test_the_manifest_says_what_it_was_measured_on(run, demo, tmp_path):
    data = f"cifar10:{cifar(tmp_path / 'cifar')}"
    templates = tmp_path / "templates.txt"
    templates.write_text("a {}\nthe {}\n")
    words = (demo / "clip", "--data", data, "--templates", templates, "--out", "e.json")
    assert run(*words)[0] == 0
    manifest = json.loads(Path("e.json").read_text())["manifest"]
    assert manifest["templates"] == ["a {}", "the {}"]
    assert manifest["labels"] == NAMES_10
    assert manifest["pictures"] == 12 and manifest["linear_probe"]["train_pictures"] == 30
    assert manifest["preprocessing"]["mean"][0] == pytest.approx(0.4815, abs=1e-4)
    before = manifest["data_hash"], manifest["model_hash"]
    write(tmp_path / "cifar" / "cifar-10-batches-py" / "test_batch", batch(12, 8))
    assert run(*words)[0] == 0
    again = json.loads(Path("e.json").read_text())["manifest"]
    assert again["data_hash"] != before[0] and again["model_hash"] == before[1]


def test_scores_go_into_the_run_folder_and_are_the_same_again(run, tmp_path):
    clip = make_clip(vocab_size=TOKENIZER.vocab_size, text_length=20)
    write_run(tmp_path / "clip", "clip", clip, data=f"folder:{captioned(tmp_path / 'own')}")
    assert run(tmp_path / "clip")[0] == 0
    first = (tmp_path / "clip" / "evaluation.json").read_text()
    assert "text_to_image_recall_at_5" in first
    assert run(tmp_path / "clip")[0] == 0
    assert (tmp_path / "clip" / "evaluation.json").read_text() == first


def test_a_vqgan_is_scored_by_its_reconstructions(run, tmp_path):
    data = f"folder:{captioned(tmp_path / 'own')}"
    write_run(tmp_path / "vqgan", "vqgan", make_vqgan(), data=data)
    status, out, _ = run(tmp_path / "vqgan", "--json")
    scores = json.loads(out)["scores"]
    assert status == 0 and 0 < scores["psnr"] < 40 and 0 < scores["codes_used"] <= 1


def test_an_original_checkpoint_needs_to_be_told_the_data(run):
    checkpoint = FIXTURES / "clip_huggingface"
    status, out, error = run(checkpoint)
    assert status == 2 and not out and "--data" in error and error.count("\n") == 1


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nowhere",), "no such run"),
        (("{demo}/dalle", "--data", "folder:{demo}"), "oracle"),
        (("{demo}", "--data", "folder:{demo}"), "several runs"),
        (("{demo}/clip", "--data", "folder:{demo}/nowhere"), "no such folder"),
        (
            ("{demo}/vqgan", "--templates", "t.txt"),
            "is for a clip; {demo}/vqgan is a vqgan",
        ),
        (("{demo}/dalle", "-n", "0"), "-n 0: expected 1 or more"),
        (("{demo}/dalle", "--pictures", "p"), "--pictures is for a vqgan"),
        (("{demo}", "--pictures", "p"), "give one of them with --pictures"),
        (("{demo}/vqgan", "--pictures", "p"), "--pictures is for other data"),
        (("{demo}/clip", "--dta", "shapes"), "--data"),
        (("{demo}/dalle", "--judge", "no.pth"), "--judge is for other data"),
        (("{demo}/dalle", "--clip", "no"), "--clip is for other data"),
        (("{demo}/vqgan", "--limit", "9"), "--limit is for other data"),
        (("{demo}/dalle", "--seed", "-1"), "--seed -1: expected"),
        (("{demo}", "--seed", str(2**64)), f"--seed {2**64}: expected"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, demo, words, says):
    status, out, error = run(*(word.format(demo=demo) for word in words))
    assert status == 2 and not out
    assert says.format(demo=demo) in error and error.count("\n") == 1


def test_a_folder_of_runs_of_which_none_is_the_demos_has_no_scoreboard(run, tmp_path):
    save_config(tmp_path / "runs" / "prior", {"kind": "prior"})
    status, out, error = run(tmp_path / "runs")
    assert status == 2 and not out
    assert f"give one of them, {tmp_path}/runs/prior" in error and error.count("\n") == 1
    assert not (tmp_path / "runs" / "evaluation.json").exists()


def test_pictures_and_reconstructions_go_into_two_folders(run, tmp_path):
    data, vqgan = f"folder:{captioned(tmp_path / 'own')}", make_vqgan(image_size=8).eval()
    write_run(tmp_path / "vqgan", "vqgan", vqgan, data=data)
    status, _, error = run(tmp_path / "vqgan", "--pictures", "new/place")
    val = open_data(data, image_size=8, split="val")
    images = torch.from_numpy(val.images(np.arange(len(val))))
    assert status == 0 and f"new/place: {len(val)} originals" in error and len(val) > 1
    again = reconstruct(vqgan, images).pictures
    for name, expected in (("originals", images), ("reconstructions", again)):
        files = sorted(Path("new/place", name).iterdir())
        found = np.stack([np.asarray(Image.open(file)) for file in files])
        assert np.array_equal(found.transpose(0, 3, 1, 2), expected.numpy()), name


@pytest.mark.parametrize("place", ["full", "full/file"])
def test_pictures_do_not_go_where_something_is(run, demo, tmp_path, place):
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    data = f"folder:{captioned(tmp_path / 'own')}"
    status, _, error = run(demo / "vqgan", "--data", data, "--pictures", place)
    assert status == 2 and f"--pictures {place}: there is something already" in error
    assert [path.name for path in Path("full").iterdir()] == ["file"]
    assert Path("full/file").read_text() == "mine" and not (demo / "vqgan/evaluation.json").exists()


def test_a_run_on_shapes_is_scored_by_the_oracle(run, demo, monkeypatch):
    asked = {}

    def scores(clip, *, seed):
        asked["seed"] = seed
        return {"recall_at_1": 0.5}

    monkeypatch.setattr("minimodal.cli.evaluate.clip_scores", scores)
    status, out, _ = run(demo / "clip", "--seed", "7", "--json")
    assert status == 0 and asked == {"seed": 7}
    assert json.loads(out)["manifest"]["world_seed"] == 7


def test_a_dalle_on_pictures_with_captions_is_scored_by_a_clip(run, tmp_path):
    data = f"folder:{captioned(tmp_path / 'own')}"
    demo = write_demo(tmp_path / "demo", data=data, temperature=1.0)
    words = (demo / "dalle", "--data", data, "--clip", demo / "clip", "-n", "4", "--out", "e.json")
    status, out, _ = run(*words, "--json")
    assert status == 0 and 0 <= json.loads(out)["scores"]["clip_recall_at_1"] <= 1


def test_captions_longer_than_those_of_training_are_cut_and_counted(run, tmp_path):
    own = captioned(tmp_path / "own")
    data = f"folder:{own}"
    val = open_data(data, image_size=6, split="val")
    number = int(val.all_captions(0)[0].split()[1])
    (own / f"{number:02}.txt").write_text("far more words than any caption of the training had")
    demo = write_demo(tmp_path / "demo", data=data, temperature=1.0)
    words = (demo / "dalle", "--data", data, "--clip", demo / "clip", "-n", "4", "--out", "e.json")
    status, out, err = run(*words, "--json")
    assert status == 0 and f"1 of {min(4, len(val))} captions are cut to 20 tokens" in err
    assert json.loads(out)["manifest"]["captions_cut"] == 1


def test_the_manifest_counts_the_pictures_drawn_for_each_score(run, tmp_path, monkeypatch):
    data, seen = f"cifar10:{cifar(tmp_path / 'cifar')}", []
    judge = SimpleNamespace(classify=lambda x: (seen.append(len(x)), torch.zeros(len(x)).long())[1])
    judge.to = lambda device: judge
    monkeypatch.setattr("minimodal.cli.evaluate.load_judge", lambda path: judge)
    monkeypatch.setattr("minimodal.cli.evaluate.class_captions", lambda name: [name[:3]])
    demo = write_demo(tmp_path / "demo", data=data, temperature=1.0)
    words = (demo / "dalle", "--data", data, "--judge", "j", "--clip", demo / "clip", "-n", "25")
    status, out, _ = run(*words, "--json")
    assert status == 0 and seen == [20]  # two of each of ten classes
    assert json.loads(out)["manifest"]["pictures"] == {
        "judge": 20, "clip": 10, "clip_frechet": 12
    }  # fmt: skip
