"""generate.py on tiny untrained runs: what it writes, what it says, how it refuses."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.commands import SIDE, pixels, refusal, write_demo
from PIL import Image

from minimodal.blocks.sampling import SamplingConfig
from minimodal.cli.common import Parser, run_command
from minimodal.cli.generate import METHODS, make_parser, shared
from minimodal.cli.generate.shared import in_rows
from minimodal.dalle import DALLE
from minimodal.data.words import KnownWords
from minimodal.drawing import grid
from minimodal.errors import UserError
from minimodal.evaluation.scoreboard import rerank
from minimodal.runs import load


def command(words: list, demo: Path, folder: Path) -> subprocess.Popen:
    """The script itself, in a process and a folder of its own."""
    script = ROOT / "generate.py"
    return subprocess.Popen(
        [sys.executable, str(script), *words, "--run", str(demo), "--device", "cpu"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )


# --- what it writes ------------------------------------------------------------------------------


def test_a_grid_and_the_single_pictures_are_written(run):
    status, out, _ = run("a large red circle", "a blue square", "-n", "3", "--out", "new/set.png")
    assert status == 0 and "6 pictures" in out and "oracle: " in out
    names = [f"{p:03d}-{i}.png" for p in range(2) for i in range(3)]
    assert sorted(p.name for p in Path("new/set").iterdir()) == names
    assert pixels("new/set/000-0.png").shape == (SIDE, SIDE, 3)
    assert pixels("new/set.png").shape[1] > 3 * 96


def test_the_seed_decides_the_pictures(run):
    for out, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        run("a red circle", "-n", "2", "--seed", seed, "--out", out)
    assert (pixels("a/000-1.png") == pixels("b/000-1.png")).all()
    assert (pixels("a/000-0.png") != pixels("a/000-1.png")).any()
    assert (pixels("a/000-0.png") != pixels("c/000-0.png")).any()


def test_json_is_one_object_and_all_that_stdout_has(run):
    status, out, _ = run("a red circle", "a dragon", "-n", "2", "--rerank", "3", "--json")
    told = json.loads(out)
    assert status == 0 and told["grid"] == "pictures.png" and len(told["pictures"]) == 4
    first, last = told["pictures"][0], told["pictures"][3]
    assert first["prompt"] == "a red circle" and set(first["verdict"]) >= {"count", "color"}
    assert isinstance(first["right"], bool) and "right" not in last
    assert all(Path(p["file"]).is_file() and -1 <= p["clip"] <= 1 for p in told["pictures"])
    assert first["clip"] >= told["pictures"][1]["clip"]


def test_rerank_shows_the_best_of_more(run):
    common = ("a red circle", "--seed", "3")
    few = json.loads(run(*common, "-n", "2", "--rerank", "9", "--json")[1])["pictures"]
    every = json.loads(run(*common, "-n", "9", "--rerank", "9", "--json", "--out", "all.png")[1])
    assert [p["clip"] for p in few] == [p["clip"] for p in every["pictures"][:2]]
    assert (pixels(few[0]["file"]) == pixels(every["pictures"][0]["file"])).all()


def test_the_first_picture_is_the_one_that_clip_finds_best(run, demo):
    run("a red circle", "-n", "9", "--out", "plain.png")
    drawn = np.stack([pixels(f"plain/000-{i}.png") for i in range(9)]).transpose(0, 3, 1, 2)
    order, _ = rerank(load(demo / "clip"), ["a red circle"], torch.from_numpy(drawn)[None])
    run("a red circle", "-n", "2", "--rerank", "9", "--out", "best.png")
    assert order[0, :2].tolist() != [0, 1]
    for place, number in enumerate(order[0, :2].tolist()):
        assert (pixels(f"best/000-{place}.png") == pixels(f"plain/000-{number}.png")).all()


def test_rerank_writes_clips_scores_below_the_pictures_best_first(run, monkeypatch):
    seen = []
    monkeypatch.setattr(shared, "grid", lambda *x, **how: (seen.append(how), grid(*x, **how))[1])
    run("a red circle", "-n", "2", "--out", "plain.png")
    told = json.loads(run("a red circle", "-n", "2", "--rerank", "9", "--json")[1])["pictures"]
    assert [how["notes"] for how in seen] == [[], [f"CLIP {one['clip']:.4f}" for one in told]]
    assert pixels("pictures.png").shape[0] > pixels("plain.png").shape[0]


def test_the_pictures_of_a_prompt_begin_a_new_row():
    drawn = torch.arange(18, dtype=torch.uint8)[:, None, None, None].expand(18, 3, SIDE, SIDE)
    both = np.asarray(in_rows(drawn, ["a", "b"], 9))
    second = np.asarray(grid(drawn[9:], ["b"] * 9, columns=8))
    assert (both[-len(second) :] == second).all()


def test_prompts_of_one_picture_each_stand_side_by_side():
    drawn = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8)
    assert in_rows(drawn, list("abcd"), 1).size == in_rows(drawn, ["a"], 4).size


def test_rerank_below_n_still_shows_n(run):
    status, out, _ = run("a red circle", "-n", "3", "--rerank", "2", "--json")
    assert status == 0 and len(json.loads(out)["pictures"]) == 3


def test_the_runs_own_sampling_is_the_default_and_flags_win(run, demo, tmp_path, monkeypatch):
    seen = []
    original = DALLE.draw

    def spy(self, prompts, request, sampling, **named):
        seen.append((sampling.temperature, sampling.guidance))
        return original(self, prompts, request, sampling, **named)

    monkeypatch.setattr(DALLE, "draw", spy)
    run("a red circle", "-n", "1")
    run("a red circle", "-n", "1", "--temperature", "0", "--guidance", "1")
    run("a red circle", "-n", "1", folder=write_demo(tmp_path / "plain"))
    assert seen == [(0.8, 2.0), (0.0, 1.0), (1.0, 1.0)]


def test_every_flag_of_drawing_reaches_the_model(run, monkeypatch):
    Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save("half.png")
    words = """a red circle|a blue square|-n|2|--temperature|0.7|--top-k|3|--top-p|0.9|--guidance|3
        |--complete|half.png|--redraw|2,2,6,4
        |--seeds|4,5,6,7|--truncate|--allow-unseen""".split("|")
    seen, original = [], DALLE.draw

    def spy(self, *args, **named):
        seen.extend((*args, named))
        return original(self, *args, **named)

    monkeypatch.setattr(DALLE, "draw", spy)
    assert run(*map(str.strip, words))[0] == 0
    prompts, request, sampling, named = seen
    assert prompts == ["a red circle", "a blue square"]
    assert (request.n, request.seeds, request.generator) == (2, [4, 5, 6, 7], None)
    assert callable(request.progress)
    assert sampling == SamplingConfig(0.7, 3, 0.9, 3.0)
    given = named.pop("given")
    assert (given.complete == 90).all() and given[1:] == ((2, 2, 6, 4), None)
    assert named == {"truncate": True, "allow_unseen": True}


def test_a_dalle_run_by_itself_will_do_and_finds_the_clip_beside_it(run, demo):
    assert run("a red circle", "-n", "1", "--rerank", "2", folder=demo / "dalle")[0] == 0


def test_the_oracle_judges_the_shapes_world_only(run, tmp_path):
    other = write_demo(tmp_path / "other", data="coco:somewhere")
    status, out, err = run("a red circle", "-n", "1", folder=other)
    assert status == 0 and "oracle" not in out and "verdict" not in err


def test_a_prompt_that_the_oracle_cannot_read_is_drawn_and_said_once(run):
    status, out, err = run("a dragon", "-n", "3")
    assert status == 0 and err.count("no verdict for 'a dragon'") == 1 and "oracle:" not in out


@pytest.mark.parametrize("prompt", ["🎉 star", "日本", "a\nb", "\x00", "RED"])
def test_any_short_prompt_can_be_drawn(run, prompt):
    assert run(prompt, "-n", "1")[0] == 0


def test_a_prompt_of_invalid_bytes_can_be_drawn(demo, tmp_path):
    done = command([b"a \xff circle", "-n", "1", "--rerank", "2"], demo, tmp_path)
    _, err = done.communicate(timeout=600)
    assert done.returncode == 0 and b"Traceback" not in err
    assert (tmp_path / "pictures" / "000-0.png").exists()


def test_a_picture_with_its_seed_is_the_same_beside_any_others(run):
    run("a red circle", "-n", "3", "--seeds", "4,5,6", "--out", "three.png")
    run("a red circle", "-n", "1", "--seeds", "5", "--out", "one.png")
    assert (pixels("three/000-1.png") == pixels("one/000-0.png")).all()


def test_a_picture_is_completed(run):
    Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save("half.png")
    asked = ("a red circle", "-n", "1", "--complete", "half.png")
    assert run(*asked, "--redraw", "2,2,6,6")[0] == 0
    assert run(*asked)[0] == 0


def test_words_that_training_never_had_are_named_unless_they_are_allowed(run, tmp_path):
    folder = write_demo(tmp_path / "strict")
    KnownWords.of(["a large red circle"]).save(folder / "dalle" / "words.json")
    said = refusal(run("a large zebra", folder=folder))
    assert "no caption of the training had 'zebra'" in said
    assert run("a large zebra", "--allow-unseen", folder=folder)[0] == 0
    for prompt in ("a large red circle", "red  circle ", "Circle."):
        assert run(prompt, "-n", "1", folder=folder)[0] == 0


def test_guidance_needs_a_run_that_saw_empty_captions(run, tmp_path):
    folder = write_demo(tmp_path / "always", training={"caption_dropout": 0.0})
    said = refusal(run("a red circle", "--guidance", "2", folder=folder))
    assert "--guidance 2: the run never saw an empty caption" in said
    assert run("a red circle", "-n", "1", folder=folder)[0] == 0


def test_json_gives_each_picture_the_seed_that_draws_it_again(run):
    asked = ("a red circle", "a blue square", "-n", "2", "--rerank", "3", "--json")
    told = json.loads(run(*asked, "--seeds", "4,5,6,7,8,9", "--out", "six.png")[1])
    seeds = [picture["seed"] for picture in told["pictures"]]
    assert "seed" not in told and set(seeds[:2]) < {4, 5, 6} and set(seeds[2:]) < {7, 8, 9}
    for number, picture in enumerate(told["pictures"]):
        run(picture["prompt"], "-n", "1", "--seeds", str(seeds[number]), "--out", "one.png")
        assert (pixels("one/000-0.png") == pixels(picture["file"])).all()


def test_a_long_prompt_is_refused_unless_it_may_be_cut(run):
    assert "truncate" in refusal(run("red " * 2500, "-n", "1"))
    assert run("red " * 2500, "-n", "1", "--truncate")[0] == 0


# --- how it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "PROMPT"),
        (("",), "a prompt is empty"),
        (("a", " \n"), "a prompt is empty"),
        (("a", "-n", "0"), "-n 0: expected 1 or more"),
        (("a", "-n", "many"), "invalid int value: 'many'"),
        (("a", "-n", "99999999999"), "expected 4096 in all or fewer"),
        (("a", "--rerank", "5000"), "expected 4096 in all or fewer"),
        (("a", "--rerank", "-1"), "--rerank -1: expected 0"),
        (("a", "--top-k", "-1"), "top-k -1: expected 0"),
        (("a", "--top-p", "0"), "top-p 0.0: expected more than 0"),
        (("a", "--top-p", "1.5"), "top-p 1.5: expected more than 0"),
        (("a", "--temperature", "nan"), "temperature nan: expected 0"),
        (("a", "--guidance", "-2"), "guidance -2.0: expected 0"),
        (("a", "--seed", "-1"), "--seed -1: expected from 0"),
        (("a", "--method", "magic"), "invalid choice: 'magic'"),
        (("a", "--temprature", "1"), "did you mean --temperature?"),
        (("a", "--out", "picture.jpg"), "ends in .png"),
        (("a", "--device", "tpu"), "tpu: expected auto, cpu or cuda"),
        (("a red circle", "--seeds", "1,2"), "2 --seeds for 4 pictures"),
        (("a red circle", "--seeds", "x"), "expected numbers"),
        (("a red circle", "--seeds", "9" * 5000), "expected numbers"),
        (("a red circle", "--redraw", "0,0,2,2"), "needs the picture"),
        (("a red circle", "--complete", "no.png", "--redraw", "0,0,2"), "four numbers"),
        (("a red circle", "--complete", "no.png"), "no.png"),
        (("a red circle", "--redraw=--5,0,3,6"), "'--5,0,3,6': expected four numbers"),
        (("a red circle", "--keep", "0.2"), "--keep is for --method vqgan-prior"),
        (("a red circle", "--size", "9"), "--size is for --method vqgan-prior"),
        (("a red circle", "--clip", "nope"), "--clip is for --rerank"),
        (("a red circle", "--merges", "nope"), "--merges is for --rerank"),
        (("--method", "vqgan-prior", "--rerank", "4"), "--rerank is for --method dalle"),
        (("--method=vqgan-prior", "--redraw=0,0,1,1"), "--redraw is for --method dalle"),
        (("--method", "vqgan-prior", "--kep", "3"), "did you mean --keep?"),
        (("--method", "vqgan-prior", "--seeds", "1"), "1 --seeds for 4 pictures"),
        (("a red circle", "--temperature", "1e-40"), "temperature 1e-40: expected 0 (the"),
        (("a red circle", "--guidance", "1e38"), "guidance 1e+38: expected 0 to 1000"),
    ],
)
def test_a_bad_flag_is_refused_in_one_line(run, words, message):
    assert message in refusal(run(*words))


def test_a_missing_or_wrong_run_is_named(run, demo, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "absent", "absent: no such file or folder"),
        (tmp_path / "file", "file is no run folder"),
        (tmp_path / "empty", "empty is no run folder"),
        (demo / "clip", "holds a trained clip, not a dalle"),
    ):
        assert message in refusal(run("a red circle", folder=folder))


def test_rerank_without_a_clip_says_how_to_give_one(run, demo, tmp_path):
    lonely = write_demo(tmp_path / "lonely")
    (lonely / "clip").rename(tmp_path / "elsewhere")
    asked = ("a red circle", "-n", "1", "--rerank", "2")
    assert "give --clip RUN" in refusal(run(*asked, folder=lonely))
    assert run(*asked, "--clip", str(tmp_path / "elsewhere"), folder=lonely)[0] == 0
    wrong = run(*asked, "--clip", str(demo / "vqgan"), folder=lonely)
    assert "holds a trained vqgan, not a clip" in refusal(wrong)


def test_a_place_that_cannot_be_written_is_refused_before_drawing(run, monkeypatch):
    monkeypatch.setattr(DALLE, "draw", lambda *_, **__: pytest.fail("it drew"))
    Path("file").touch()
    Path("folder.png").mkdir()
    for out, message in (
        ("file/x.png", "file is a file, not a folder"),
        ("file.png", "file is a file, not a folder"),  # the folder of the single pictures
        ("folder.png", "is a folder"),
    ):
        assert message in refusal(run("a red circle", "--out", out))


def test_what_is_refused_leaves_no_folder(run, tmp_path, monkeypatch):
    folder = write_demo(tmp_path / "strict")
    KnownWords.of(["a red circle"]).save(folder / "dalle" / "words.json")
    Path("here").mkdir()
    monkeypatch.chdir("here")
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save("whole.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("large.png")
    for words in (
        ("a zebra",),
        ("a red circle", "--complete", "large.png"),
        ("a red circle", "--complete", "whole.png", "--redraw", "0,0,99,99"),
    ):
        refusal(run(*words, "--out", "a/b.png", folder=folder))
        assert sorted(place.name for place in Path().iterdir()) == ["large.png", "whole.png"]


def test_a_rectangle_that_begins_left_of_the_picture_is_said_to_be_outside(run):
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save("whole.png")
    asked = ("a red circle", "--complete", "whole.png")
    for words in (("--redraw", "-5,0,3,6"), ("--redraw=-5,0,3,6",)):
        said = refusal(run(*asked, *words))
        assert "the rectangle -5,0,3,6 (left, top, right, bottom) is not inside" in said


def test_no_bar_is_drawn_before_a_refusal(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "tqdm", lambda **_: pytest.fail("a bar"))
    folder = write_demo(tmp_path / "always", training={"caption_dropout": 0.0})
    refusal(run("a red circle", "--guidance", "2", folder=folder))


def test_ctrl_c_leaves_with_130_and_no_picture(run, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(DALLE, "draw", stop)
    status, out, err = run("a red circle")
    assert status == 130 and out == "" and "Traceback" not in err
    assert not Path("pictures.png").exists()


# --- what all commands share ---------------------------------------------------------------------


def test_the_exit_status_says_what_happened(capsys):
    def refuse(argv):
        raise UserError("no good")

    assert run_command(lambda argv: None, []) == 0
    assert run_command(refuse, []) == 2
    assert capsys.readouterr().err == "error: no good\n"


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: 1 / 0, [])


@pytest.mark.parametrize("method", METHODS)
def test_help_names_the_default_of_every_flag_and_has_no_other_methods_flags(method):
    parser = make_parser(method)
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            assert "default:" in action.help, action.option_strings
    assert ("--rerank" in parser.format_help()) == (method in ("dalle", "unclip"))
    assert ("--keep" in parser.format_help()) == (method == "vqgan-prior")


def test_an_abbreviated_flag_is_no_flag(capsys):
    parser = Parser(prog="x")
    parser.add_argument("--temperature", type=float)
    with pytest.raises(SystemExit):
        parser.parse_args(["--temp", "1"])
    assert "did you mean --temperature?" in capsys.readouterr().err
    assert parser.parse_args(["--temperature", "1"]) == argparse.Namespace(temperature=1.0)


def test_a_closed_pipe_is_quiet(demo, tmp_path):
    process = command(["a red circle", "-n", "1", "--json"], demo, tmp_path)
    process.stdout.close()  # nobody reads
    err = process.stderr.read().decode()
    assert process.wait(60) == 1
    assert "Traceback" not in err and "Exception" not in err
    assert (tmp_path / "pictures.png").exists()
