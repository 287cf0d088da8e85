"""--method vqgan-clip on a tiny untrained demo: what it draws and refuses, how it stops."""

import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import FIXTURES
from helpers.commands import SIDE, TOKENIZER, pixels, refusal, write_run
from helpers.tiny import make_clip, make_prior, noise
from PIL import Image
from safetensors.torch import load_file, save_file

from minimodal.cli import pool as pool_file
from minimodal.cli.generate import vqgan_clip
from minimodal.vqgan_clip import pool as pools
from minimodal.vqgan_clip.optimise import Optimisation
from minimodal.vqgan_clip.search import SearchConfig

RED = "a large red circle"


@pytest.fixture
def guided(run, monkeypatch):
    """The method with a small pool and a short search."""
    sized = pool_file.pool_of
    monkeypatch.setattr(vqgan_clip, "pool_of", lambda *given: sized(*given, size=6))
    monkeypatch.setattr(vqgan_clip, "SearchConfig",
        lambda evaluations=8: SearchConfig(min(evaluations, 8), members=2, children=1))  # fmt: skip

    def call(*words: str, **folder: Path) -> tuple[int, str, str]:
        return run(*words, "--method", "vqgan-clip", **folder)

    return call


def test_the_pool_is_drawn_once_which_is_said_and_a_seed_gives_the_same_picture(guided, demo):
    status, out, first = guided(RED, "-n", "2", "--json", "--out", "a.png")
    kept = list(demo.glob("pool-*.safetensors"))
    before = kept[0].stat().st_mtime_ns
    torch.rand(3)  # others use the global generator, too
    _, _, second = guided(RED, "-n", "2", "--out", "b.png")
    assert f"once (kept in {kept[0]})" in first and "once" not in second
    told = json.loads(out)["pictures"]
    assert status == 0 and len(told) == 2 and all("right" in one for one in told)
    assert len(kept) == 1 and kept[0].stat().st_mtime_ns == before
    assert (pixels("a/000-1.png") == pixels("b/000-1.png")).all()
    assert pixels("a/000-0.png").shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(("data", "enough"), [("shapes", pools.ENOUGH), ("folder:x", math.inf)])
def test_only_on_the_shapes_world_a_known_cosine_ends_a_search(
    guided, tmp_path, monkeypatch, data, enough
):
    asked, find = [], pools.find
    monkeypatch.setattr(pools, "find", lambda *x, **how: (asked.append(how), find(*x, **how))[1])
    model = make_clip(
        vocab_size=TOKENIZER.vocab_size, text_length=20, image_size=SIDE, patch_size=3
    )
    write_run(tmp_path / "clip", "clip", model, data=data)
    assert guided(RED, "-n", "1", "--clip", str(tmp_path / "clip"))[0] == 0
    assert [how["enough"] for how in asked] == [enough]


def test_settings_and_seed_are_in_the_file(guided, run):
    guided(RED, "--search", "0", "-n", "1", "--seed", "5")
    run(RED, "-n", "1", "--seed", "6", "--out", "dalle.png")
    for file, method, seed in (("pictures", "vqgan-clip", 5), ("dalle", "dalle", 6)):
        for place in (f"{file}.png", f"{file}/000-0.png"):
            with Image.open(place) as picture:
                settings = json.loads(picture.text["settings"])
                assert picture.text["prompt"] == RED
                assert (settings["method"], settings["seed"]) == (method, seed)


@pytest.mark.parametrize("init", ["codes", "noise", "gradient", "dalle", "pool", "start.png"])
def test_steps_begin_anywhere(guided, init):
    Image.new("RGB", (9, 7), (200, 0, 0)).save("start.png")
    status, _, err = guided(RED, "--steps", "2", "--cutouts", "2", "-n", "1", "--init", init)
    assert status == 0 and "memory of a step: about" in err
    assert pixels("pictures/000-0.png").shape == (SIDE, SIDE, 3)


def test_a_picture_that_is_no_square_is_drawn_without_a_verdict(guided):
    words = ["--steps", "1", "--cutouts", "2", "-n", "1", "--init", "codes", "--size", "48x32"]
    status, out, err = guided(RED, *words, "--json")
    assert status == 0 and "right" not in json.loads(out)["pictures"][0], err
    assert pixels("pictures/000-0.png").shape == (32, 48, 3)


@pytest.mark.parametrize("prompt", [f"{RED} | a small blue star:0.5", f"{RED} ^ a blue star"])
def test_what_is_no_single_caption_gets_no_verdict_and_no_complaint(guided, prompt):
    words = ["--steps", "2", "--cutouts", "2", "-n", "1", "--init", "codes"]
    status, out, err = guided(prompt, *words)
    assert status == 0 and "oracle" not in out and "verdict" not in err


STEPS = (f"{RED} ^ 3: a small blue square:0.5", "--init", "noise", "--steps", "4", "--cutouts", "2",
         "-n", "2", "--drawer", "stack")  # fmt: skip


@pytest.mark.parametrize("film", [(), ("--every", "2", "--zoom", "1.2", "--shift", "1,-0.5")])
def test_stopped_and_resumed_is_as_if_never_stopped(guided, monkeypatch, film):
    words = (*STEPS, *film)
    assert guided(*words, "--out", "whole.png")[0] == 0
    step, done = Optimisation.step, []

    def interrupted(self):
        losses = step(self)
        done.append(self.number)
        if len(done) == 13:  # between two frames of the second picture, after the move
            signal.raise_signal(signal.SIGINT)
        return losses

    monkeypatch.setattr(Optimisation, "step", interrupted)
    status, _, err = guided(*words, "--out", "parts.png")
    assert status == 130 and "--resume goes on" in err and Path("parts.state.pt").exists()
    other = refusal(guided(*words, "--out", "parts.png", "--resume", "--seed", "3"))
    assert "seed was 0 and is 3" in other
    assert guided(*words, "--out", "parts.png", "--resume")[0] == 0
    assert not Path("parts.state.pt").exists()
    for name in ("000-0.png", "000-1.png"):
        assert (pixels(f"whole/{name}") == pixels(f"parts/{name}")).all()


def test_steps_are_written_and_moved(guided):
    assert guided(RED, "--init", "noise", "--steps", "4", "--drawer", "stack", "-n", "1",
                  "--every", "2", "--gif", "film.gif")[0] == 0  # fmt: skip
    names = [file.name for file in sorted(Path("pictures/steps").iterdir())]
    assert names == ["000-0-00002.png", "000-0-00004.png"]
    with Image.open("film.gif") as film:
        assert film.n_frames == 2


def test_other_captions_change_what_is_followed(guided):
    words = (RED, "--init", "noise", "--steps", "4", "--drawer", "stack", "-n", "1")
    Path("others.txt").write_text(f"{RED}\na small blue square\n", encoding="utf-8")
    assert guided(*words)[0] == guided(*words, "--against", "others.txt", "--out", "b.png")[0] == 0
    assert (pixels("pictures/000-0.png") != pixels("b/000-0.png")).any()


def test_zoom_and_shift_move_the_film_and_not_its_first_frame(guided):
    words = (
        RED,
        "--init",
        "start.png",
        "--steps",
        "4",
        "--drawer",
        "stack",
        "-n",
        "1",
        "--every",
        "2",
    )
    Image.new("RGB", (9, 7), (200, 0, 0)).save("start.png")
    for name, moves in {"still": (), "film": ("--zoom", "1.5", "--shift", "-2,0")}.items():
        assert guided(*words, *moves, "--out", f"{name}.png")[0] == 0
    first, second = (
        [pixels(f"{name}/steps/000-0-0000{step}.png") for name in ("still", "film")]
        for step in (2, 4)
    )
    assert (first[0] == first[1]).all() and (second[0] != second[1]).any()


def memory(err: str) -> int:
    """MiB that the command expects to need."""
    return int(re.search(r"memory of a step: about (\d+) MiB", err)[1])


def originals(place: Path) -> list[str]:
    """Flags of two tiny checkpoints of the originals' kinds."""
    clip = load_file(FIXTURES / "clip_openai_vit" / "model.safetensors")
    clip["token_embedding.weight"] = noise(574, clip["token_embedding.weight"].shape[1])
    save_file(clip, place / "ViT.pt")  # with as many tokens as the merges make
    merges, vqgan = FIXTURES / "tiny_merges.txt", FIXTURES / "vqgan_taming" / "last.ckpt"
    return ["--vqgan", str(vqgan), "--clip", str(place / "ViT.pt"), "--merges", str(merges)]


def test_the_originals_draw_without_a_run_and_larger_than_they_were_trained(guided, tmp_path):
    words = [RED, *originals(tmp_path), "--init", "codes", "--steps", "2", "-n", "1"]
    words += ["--size", "96x64"]
    # No run of ours is there, and neither model was trained on pictures of this size.
    few, many = (guided(*words, "--cutouts", n, folder=tmp_path / "none") for n in ("4", "64"))
    assert few[0] == many[0] == 0 and "are resized to the" in few[2]
    assert pixels("pictures/000-0.png").shape == (64, 96, 3)
    assert memory(many[2]) > memory(few[2])
    chunked = guided(*words, "--cutouts", "64", "--chunk", "4", folder=tmp_path / "none")
    assert memory(chunked[2]) == memory(few[2])


def test_several_clips_judge_together(guided, demo, tmp_path):
    small = tmp_path / "small"
    model = make_clip(vocab_size=TOKENIZER.vocab_size, text_length=20, image_size=4, patch_size=2)
    write_run(small, "clip", model)
    words = (RED, "--steps", "9", "--init", "noise", "--drawer", "stack", "-n", "1")
    kinds = {"own": (demo / "clip",), "other": (small,), "both": (demo / "clip", small)}
    for name, clips in kinds.items():
        flags = [word for clip in clips for word in ("--clip", str(clip))]
        status, _, err = guided(*words, *flags, "--out", f"{name}.png")
        assert status == 0 and ("resized to the 4 x 4" in err) == (small in clips)
    drawn = [pixels(f"{name}/000-0.png").tolist() for name in kinds]
    assert drawn[0] != drawn[2] != drawn[1]


@pytest.fixture
def of_prior(demo, tmp_path) -> Path:
    """A demo folder whose VQGAN has a prior of its own."""
    folder = tmp_path / "with-prior"
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("pool-*"))
    prior = make_prior(codes=11)
    write_run(folder / "vqgan-prior", "vqgan-prior", prior, class_names=["cat", "dog"])
    shutil.copytree(folder / "vqgan", folder / "vqgan-prior" / "vqgan")
    return folder


def test_a_vqgan_prior_draws_the_pool_where_there_is_one(guided, of_prior):
    shutil.rmtree(of_prior / "dalle")  # which is not needed then
    status, _, err = guided(RED, "-n", "1", folder=of_prior)
    assert status == 0, err
    assert len(list(of_prior.glob("pool-*.safetensors"))) == 1


@pytest.mark.parametrize("where", ["draw_pool", "find"])
def test_ctrl_c_before_the_steps_says_that_nothing_is_saved(guided, of_prior, monkeypatch, where):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool_file if where == "draw_pool" else pools, where, interrupted)
    status, out, err = guided(RED, folder=of_prior)
    assert status == 130 and out == ""
    said = {"draw_pool": "nothing is saved", "find": "none is saved"}[where]
    assert said in err and "Traceback" not in err
    # What took longest is kept all the same: the pool, once it is whole.
    assert len(list(of_prior.glob("pool-*.safetensors"))) == (where == "find")


@pytest.mark.parametrize("left", [b"", b"PK", b"no archive at all", 0.5])
def test_a_damaged_state_is_one_line(guided, left):
    if left == 0.5:  # of a real one
        torch.save({"asked": torch.zeros(999)}, "pictures.state.pt")
        whole = Path("pictures.state.pt").read_bytes()
        left = whole[: len(whole) // 2]
    Path("pictures.state.pt").write_bytes(left)
    said = refusal(guided(RED, *GRADIENT, "--resume"))
    assert "pictures.state.pt is damaged: remove it" in said


GRADIENT = ("--steps", "2", "--init", "noise")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no PROMPT"),
        ([f"{RED} | | a star"], "an empty prompt between two bars"),
        ([f"{RED}:1x"], "is no number"),
        ([f"[0, 0, 2, 1] {RED}"], "is not within the picture"),
        (["image=none.png"], "none.png"),
        ([RED, "--steps", "2", "--init", "none.png"], "no such picture"),
        ([RED, "--steps", "2", "--init", "broken.png"], "broken.png"),
        ([RED, *GRADIENT, "--size", "7x6"], "no multiple of"),
        ([RED, *GRADIENT, "--drawer", "vqgam"], "--drawer: invalid choice"),
        ([RED, "--drawer", "stack"], "--drawer is for gradient steps"),
        ([RED, "--init", "noise"], "needs --steps"),
        ([RED, *GRADIENT, "--search", "2"], "--search begins with the pool"),
        ([RED, *GRADIENT, "--resume"], "nothing was stopped"),
        ([RED, "--clip", "nowhere"], "--clip nowhere: no such file"),
        ([RED, *GRADIENT, "--every", "1", "--zoom", "0"], "--zoom 0: expected a factor"),
        ([RED, *GRADIENT, "--every", "1", "--shift", "1"], "'1': expected pixels X,Y"),
        ([RED, *GRADIENT, "--shift", "1,nan", "--every", "1"], "expected pixels X,Y"),
        ([RED, *GRADIENT, "--shift", "1,0"], "give --gif or --every"),
        ([RED, "--zoom", "2"], "--zoom is for gradient steps"),
        ([RED, *GRADIENT, "--against", "none.txt"], "none.txt"),
        ([RED, *GRADIENT, "--against", "itself.txt"], "but itself"),
        ([RED, "--against", "itself.txt"], "--against is for gradient steps"),
        ([RED, "--steps", "-1"], "--steps: expected 0 or more"),
    ],
)
def test_what_cannot_be_is_one_line(guided, words, said):
    Path("broken.png").write_bytes(b"\x89PNG no more")
    Path("itself.txt").write_text(RED, encoding="utf-8")
    assert said in refusal(guided(*words))
