"""What the commands share with one's own files: one reading, known words, exit statuses, output."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.commands import TOKENIZER, make_reader, write_demo, write_run
from helpers.tiny import make_clip
from PIL import Image

import minimodal
import minimodal.__main__ as start
from minimodal.cli import common
from minimodal.cli import train as training
from minimodal.cli.common import HOME, run_command
from minimodal.cli.main import main
from minimodal.clip import CLIP
from minimodal.data.preprocessing import clip_preprocess
from minimodal.data.words import KnownWords
from minimodal.runs import load
from minimodal.training.recipes import clip, recipe_for
from minimodal.uses.search import read_picture
from minimodal.uses.zero_shot import ZeroShotClassifier, default_prompts

UPRIGHT, TURNED = 1, 6  # EXIF orientations


def save_kinds(folder: Path) -> list[Path]:
    """Pictures that two readings tell apart."""
    halves = np.zeros((40, 60, 3), np.uint8)
    halves[:, :30, 0] = halves[:, 30:, 2] = 255  # red, blue
    picture = Image.fromarray(halves)
    exif = Image.Exif()
    exif[0x0112] = TURNED
    picture.save(folder / "phone.jpg", exif=exif, quality=95)
    picture.save(folder / "turned.tif", exif=exif)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    clear.save(folder / "clear.png")
    clear.quantize(8).save(folder / "palette.png")
    Image.fromarray(halves[..., 0].astype(np.uint16) * 100).save(folder / "deep.png")
    noise = np.random.default_rng(0).integers(0, 256, (1333, 2000, 3), np.uint8)
    Image.fromarray(noise).resize((2000, 1333)).save(folder / "large.jpg", quality=80)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("preprocessing", ["square", "openai"])
def test_a_file_is_read_in_one_way_by_the_commands_and_by_preprocess(preprocessing, tmp_path):
    clip = make_clip(preprocessing=preprocessing, image_size=336, patch_size=336)
    files = save_kinds(tmp_path)
    assert len(files) == 6
    for file in files:
        with Image.open(file) as picture:
            assert torch.equal(read_picture(clip, file), clip.preprocess(picture)), file.name


def test_a_run_reads_upright_and_on_white_and_an_original_as_openai_does(tmp_path):
    save_kinds(tmp_path)
    run, original = make_clip(), make_clip(preprocessing="openai")

    def red(clip: CLIP, name: str, row: int, column: int) -> bool:
        pixels = read_picture(clip, tmp_path / name)
        return bool(pixels[0, row, column] > 0 > pixels[2, row, column])

    # Turned by 90 degrees to the right, what was left is above.
    assert red(run, "phone.jpg", 0, 7) and not red(run, "phone.jpg", 7, 0)
    assert red(original, "phone.jpg", 7, 0) and not red(original, "phone.jpg", 0, 7)
    clear = read_picture(run, tmp_path / "clear.png")[1, 0]  # the upper row is transparent
    assert (clear > 1).all() and (read_picture(original, tmp_path / "clear.png")[1, 0] < 0).all()
    with Image.open(tmp_path / "deep.png") as picture:
        assert torch.equal(
            clip_preprocess(picture, 8), read_picture(original, tmp_path / "deep.png")
        )


# --- the command on several pictures -------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call a command in a folder with a demo, two pictures and two broken files."""
    monkeypatch.chdir(tmp_path)
    demo = write_demo(tmp_path / "demo", data="folder:x")
    write_run(demo / "clip", "clip", make_reader(), data="folder:x")
    KnownWords.of(["a red circle", "a blue square", "a photo"]).save(demo / "clip" / "words.json")
    KnownWords.of(["a red circle", "a blue square", "a photo"]).save(demo / "dalle" / "words.json")
    os.mkdir("photos")
    for name, level in (("a.png", 40), ("z.png", 200)):
        Image.fromarray(np.full((12, 14, 3), level, np.uint8)).save(f"photos/{name}")
    Path("photos/notes.txt").write_text("no picture")
    Path("photos/broken.jpg").write_bytes(b"\xff\xd8\xff")

    def call(*words) -> tuple[int, str, str]:
        try:
            status = main([*words, "--device", "cpu"])
        except SystemExit as leave:
            status = leave.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


LABELS = ("--labels", "red circle,blue square")
COMMANDS = [
    ["classify", *LABELS, "--clip", "demo"],
    ["caption", *LABELS, "--run", "demo"],
    ["reconstruct", "--vqgan", "demo"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_broken_files_are_left_out_by_name_with_status_1(run, words):
    files = sorted(map(str, Path("photos").iterdir()))
    status, out, err = run(*words, *files, "--json")
    told = json.loads(out)
    assert status == 1 and [one["file"] for one in told["pictures"]] == [files[0], files[3]]
    assert [line.split(": ")[1] for line in err.splitlines() if "left out" in line] == files[1:3]
    assert len(told["left_out"]) == 2
    alone = json.loads(run(*words, files[0], files[3], "--json")[1])
    assert alone["pictures"] == told["pictures"] and alone["left_out"] == []
    status, out, err = run(*words, *files[1:3])
    assert status == 2 and out == "" and "(and 1 more)" in err and err.count("\n") == 1


def test_a_search_beside_a_broken_picture_ends_with_status_1(run):
    status, out, err = run("search", "photos", "red circle", "--clip", "demo")
    assert status == 1 and out.count("\n") == 2 and "broken.jpg" in err
    os.remove("photos/broken.jpg")
    assert run("search", "photos", "red circle", "--clip", "demo")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["classify", "photos/a.png", "--labels", "red circle,zebra", "--clip", "demo"],
        ["classify", "photos/a.png", *LABELS, "--template", "zebra {}", "--clip", "demo"],
        ["search", "photos", "zebra", "--clip", "demo"],
        ["caption", "photos/a.png", "--labels", "red circle,zebra", "--run", "demo"],
        ["generate", "zebra", "-n", "1", "--run", "demo"],
    ],
    ids=lambda words: words[0],
)
def test_words_that_training_never_had_are_refused_by_every_command(run, words):
    status, out, err = run(*words)
    assert status == 2 and out == "" and "no caption of the training had 'zebra'" in err
    assert run(*words, "--allow-unseen")[0] in (0, 1)  # 1: the search meets broken.jpg


def test_a_known_first_word_is_read_as_captions_had_it(run):
    clip = load(Path("demo/clip"))
    within = TOKENIZER("a red", 40)[0]
    assert clip.tokenize("red")[0, 1] == within[2] and clip.tokenize(["a red"])[0].equal(within)


def test_a_clip_keeps_the_words_of_its_training(tmp_path):
    task = clip.build(recipe_for("clip", "shapes"), "shapes:64")
    task.save_files(tmp_path)
    known = KnownWords.load(tmp_path / "words.json")
    assert known.unknown("a large red circle") == [] and known.unknown("a zebra") == ["zebra"]


def test_the_template_has_words_of_the_training():
    clip = make_reader()
    clip.words = KnownWords.of(["a cat", "a dog"])
    assert default_prompts(clip, ["cat"])[1] == ["{}"]
    clip.words = KnownWords.of(["a photo of a cat"])
    assert default_prompts(clip, ["cat"])[1] == ["a photo of a {}"]


def test_what_is_not_parted_by_commas_is_said(run):
    labels = "red circle;red,blue square"
    status, _, err = run(*COMMANDS[0][:1], "photos/a.png", "--labels", labels, "--clip", "demo",
                         "--allow-unseen")  # fmt: skip
    assert (
        status == 0 and err == "--labels: 'red circle;red' is taken for one: commas part labels\n"
    )


def test_classify_prints_what_the_classifier_computes(run):
    told = json.loads(run(*COMMANDS[0], "photos/a.png", "--json")[1])["pictures"][0]
    with Image.open("photos/a.png") as picture:
        classifier = ZeroShotClassifier(load(Path("demo/clip")), ["red circle", "blue square"])
        row = classifier.probabilities([picture])[0].tolist()
    found = told["probabilities"]
    assert [found["red circle"], found["blue square"]] == pytest.approx(row, abs=1e-6)


# --- the surroundings ----------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["classify", "--help"], [*COMMANDS[0], "photos/a.png"]])
def test_a_full_device_is_one_line(run, words, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([*words]) == 2
    assert capsys.readouterr().err == "error: output: No space left on device\n"


def test_what_the_encoding_lacks_is_escaped(run, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    os.rename("photos/a.png", "photos/é.png")
    words = ["classify", "photos/é.png", "--labels", "🙂,red", "--allow-unseen", "--clip", "demo"]
    assert main(words) == 0
    printed = stdout.buffer.getvalue()
    assert b"photos/\\xe9.png" in printed and b"\\U0001f642" in printed


def test_a_tilde_that_no_shell_fills_in_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    asked = [
        "--out=~/x",
        "~/x",
        "folder:~/x",
        "--data=cifar10:~/a,cifar10:~/b",
        "a face :~/",
        "a~/b",
    ]
    seen = []
    assert run_command(seen.extend, asked) == 0
    assert seen == ["--out=/h/x", "/h/x", "folder:/h/x", "--data=cifar10:/h/a,cifar10:/h/b",
                    "a face :~/", "a~/b"]  # fmt: skip
    assert HOME.search("~") is None


@pytest.mark.parametrize("module", ["main", "train", "generate"])
def test_ctrl_c_while_pytorch_is_imported_is_one_word(module, monkeypatch, capsys):
    left, handlers = [], []
    monkeypatch.setattr(start.os, "_exit", left.append)
    monkeypatch.setattr(start.signal, "getsignal", lambda _: signal.default_int_handler)
    monkeypatch.setattr(start.signal, "signal", lambda _, handler: handlers.append(handler))

    class Module:
        main = staticmethod(lambda argv: 7)

    def interrupted(name):
        handlers[-1](signal.SIGINT, None)
        return Module

    monkeypatch.setattr(start, "import_module", interrupted)
    assert start.main([], module=module) == 7
    assert left == [130] and capsys.readouterr().err == "stopped\n"
    assert handlers[-1] is signal.default_int_handler  # what follows can be stopped as ever


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_output_is_no_error(monkeypatch, stream):
    monkeypatch.setattr(sys, stream, None)
    assert run_command(lambda argv: getattr(sys, stream).isatty() and print("words"), []) == 0


@pytest.mark.parametrize("script", ["train.py", "generate.py", "minimodal/__main__.py"])
def test_pytorch_is_not_imported_before_a_command_can_answer_ctrl_c(script):
    code = f"import runpy, sys; runpy.run_path({script!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_training_and_drawing_are_commands_too(run, capsys):
    for name in ("train", "generate"):
        status, out, _ = run(name, "--help")
        assert status == 0 and out.startswith(f"usage: python -m minimodal {name}")
    assert run("generate", "a red circle", "-n", "1", "--run", "demo")[0] == 0
    assert Path("pictures.png").exists()


@pytest.mark.parametrize("command", [[], ["search"], ["train"], ["train", "clip"], ["generate"]])
def test_without_arguments_a_command_prints_its_help(command, capsys):
    try:
        status = main(command)
    except SystemExit as leave:
        status = leave.code
    printed = capsys.readouterr()
    assert status == 2 and printed.out.startswith("usage: ")
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1


def test_the_version_is_that_of_the_package(capsys):
    for command in (main, training.main):
        with pytest.raises(SystemExit) as leave:
            command(["--version"])
        assert leave.value.code == 0
        assert capsys.readouterr().out == f"minimodal {minimodal.__version__}\n"


def test_the_help_says_what_each_exit_status_means(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert " ".join(common.STATUSES.split()) in " ".join(capsys.readouterr().out.split())


def test_load_and_the_systems_are_there_on_first_use():
    assert minimodal.load is load and minimodal.clip.CLIP is CLIP
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        minimodal.lod  # noqa: B018
