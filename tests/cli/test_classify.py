"""`python -m minimodal classify`: captions of labels as a classifier, and what it refuses."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.commands import make_reader, refusal, write_run
from helpers.shape_check import check_shapes
from helpers.tiny import noise
from PIL import Image

from minimodal.cli.main import COMMANDS, main, make_parser
from minimodal.clip import CLIP
from minimodal.errors import UserError
from minimodal.runs import load
from minimodal.uses.zero_shot import ZeroShotClassifier, check_templates, default_prompts

LABELS = ["red", "a blue square", "circle"]


def pictures() -> list[Image.Image]:
    """A tall, a wide and a square one."""
    sizes = [(8, 12), (20, 9), (8, 8)]
    return [Image.effect_noise(size, 90).convert("RGB") for size in sizes]


def with_data(data: str) -> CLIP:
    clip = make_reader()
    clip.run = {"data": data}
    return clip


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory) -> Path:
    """A demo folder with a clip run alone."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    write_run(out / "clip", "clip", make_reader(), data="folder:pictures")
    return out


@pytest.fixture
def run(clip_run, tmp_path, monkeypatch, capsys):
    """Call the command beside two pictures: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for name, picture in zip(("a.png", "b.png"), pictures(), strict=False):
        picture.save(name)

    def call(*words: str, clip: Path = clip_run) -> tuple[int, str, str]:
        device = [] if "--device" in words else ["--device", "cpu"]
        try:
            status = main(["classify", *words, "--clip", str(clip), *device])
        except SystemExit as leave:
            status = leave.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


# --- the classifier ------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"logit_bias": True}])
def test_probabilities_are_those_of_a_computation_by_hand(changes):
    clip, templates = make_reader(**changes), ["{}", "a large {}"]
    shown = pictures()
    found = ZeroShotClassifier(clip, LABELS, templates).probabilities(shown)
    for picture, row in zip(shown, found, strict=True):
        u = clip.encode_image(clip.preprocess(picture)[None])[0]
        u = u / u.norm()
        powers = []
        for label in LABELS:
            vectors = [clip.encode_text(clip.tokenize(t.format(label)))[0] for t in templates]
            mean = sum(v / v.norm() for v in vectors) / len(vectors)
            cosine = (u @ mean / mean.norm()).item()
            powers.append(math.exp(math.exp(clip.logit_scale.item()) * cosine))
        by_hand = torch.tensor(powers) / sum(powers)
        torch.testing.assert_close(row, by_hand, atol=1e-5, rtol=1e-4)


def test_with_labels_as_captions_the_logits_are_clips_own():
    clip, images = make_reader(logit_bias=True), noise(2, 3, 8, 8)
    own = clip(images, clip.tokenize(LABELS)).per_image
    torch.testing.assert_close(ZeroShotClassifier(clip, LABELS, ["{}"]).logits(images), own)


def test_the_text_encoder_runs_once_for_all_pictures(monkeypatch):
    calls = []
    original = CLIP.encode_text
    monkeypatch.setattr(
        CLIP, "encode_text", lambda self, t: calls.append(len(t)) or original(self, t)
    )
    classifier = ZeroShotClassifier(make_reader(), LABELS, ["{}", "a {}"])
    made = len(calls)
    for _ in range(2):
        classifier.probabilities(pictures())
    assert sum(calls) == 6 and len(calls) == made


def test_batches_give_what_one_picture_at_a_time_gives():
    classifier, shown = ZeroShotClassifier(make_reader(), LABELS), pictures() * 30
    single = torch.cat([classifier.probabilities([picture]) for picture in shown])
    torch.testing.assert_close(classifier.probabilities(shown), single)
    assert classifier.probabilities([]).shape == (0, 3)


def test_the_shapes_in_the_docstrings_are_true():
    classifier, images = ZeroShotClassifier(make_reader(), LABELS), noise(2, 3, 8, 8)
    check_shapes(ZeroShotClassifier.logits, {"images": images}, classifier.logits(images))
    found = classifier.probabilities(pictures())
    check_shapes(ZeroShotClassifier.probabilities, {}, found)


def test_the_captions_are_such_as_the_model_was_trained_with():
    assert default_prompts(make_reader(), ["cat"]) == (["cat"], ["a photo of a {}"])
    assert default_prompts(with_data("coco:somewhere"), ["cat"])[1] == ["a photo of a {}"]
    assert default_prompts(with_data("shapes:64"), ["a red circle"]) == (["a red circle"], ["{}"])
    names, templates = default_prompts(with_data("cifar10:x"), ["airplane", "cat", "a dog"])
    assert names == ["an airplane", "a cat", "a dog"] and "a blurry photo of {}" in templates


def test_a_label_of_the_shapes_world_begins_as_its_captions_do():
    labels = ["red circle", "ring", "large red circle", "two red circles", "on white a star"]
    expected = ["a red circle", "a ring", *labels[2:]]
    assert default_prompts(with_data("shapes"), labels) == (expected, ["{}"])


@pytest.mark.parametrize("labels", [[], [""], ["a", " "], ["a", "b", " a "]])
def test_labels_that_cannot_be_told_apart_are_refused(labels):
    with pytest.raises(UserError, match="label"):
        ZeroShotClassifier(make_reader(), labels)


def test_a_label_is_stripped_and_may_have_braces():
    classifier = ZeroShotClassifier(make_reader(), [" {0} ", "{"], ["a {}"])
    assert classifier.labels == ["{0}", "{"]


@pytest.mark.parametrize(
    "template", ["", "a photo", "{", "}", "{} and {}", "{0}", "{name}", "{:d}", "{!r}", "{{}}"]
)
def test_a_template_without_one_place_for_the_label_is_refused(template):
    with pytest.raises(UserError, match="needs {} once"):
        check_templates(["a {}", template])


# --- the command ---------------------------------------------------------------------------------


def test_each_picture_is_named_with_its_labels_best_first(run, clip_run):
    status, out, err = run("a.png", "b.png", "--labels", "red, a blue square ,circle")
    lines = out.splitlines()
    assert status == 0 and err == "" and len(lines) == 8
    assert lines[0] == "a.png" and lines[4] == "b.png"
    shares = [float(line.rsplit(maxsplit=1)[1].rstrip("%")) for line in lines[1:4]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.2)
    assert len({len(line) for line in lines[1:4]}) == 1
    row = ZeroShotClassifier(load(clip_run / "clip"), LABELS).probabilities([Image.open("a.png")])
    assert lines[1].split("  ")[1].strip() == LABELS[int(row.argmax())]


def test_json_is_one_object_and_all_that_stdout_has(run):
    status, out, err = run("a.png", "b.png", "--labels", ",".join(LABELS), "--json")
    told = json.loads(out)
    assert status == 0 and err == "" and out.count("\n") == 1
    assert told["templates"] == ["a photo of a {}"]
    for name, picture in zip(("a.png", "b.png"), told["pictures"], strict=True):
        values = list(picture["probabilities"].values())
        assert picture["file"] == name and set(picture["probabilities"]) == set(LABELS)
        assert sum(values) == pytest.approx(1) and values == sorted(values, reverse=True)
        assert picture["label"] == next(iter(picture["probabilities"]))


def test_pictures_may_stand_after_a_flag(run):
    out = run("a.png", "--labels", "red,circle", "b.png", "--json", "a.png")[1]
    assert [p["file"] for p in json.loads(out)["pictures"]] == ["a.png", "b.png", "a.png"]


def test_templates_come_out_of_a_file_and_the_command_line(run):
    Path("templates.txt").write_text("\ufeffa {}\n\n the {} \r\n", encoding="utf-8")
    words = ("--templates", "templates.txt", "--template", "{}", "--json")
    told = json.loads(run("a.png", "--labels", ",".join(LABELS), *words)[1])
    assert told["templates"] == ["{}", "a {}", "the {}"]
    assert set(told["pictures"][0]["probabilities"]) == set(LABELS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "IMG"),
        (("--labels", "a,b"), "IMG"),
        (("a.png",), "arguments are required: --labels"),
        (("a.png", "--labels", ""), "--labels is empty"),
        (("a.png", "--labels", "zebra"), "'zebra' alone is 100 % of any picture"),
        (
            ("a.png", "--labels", "a; b|c"),
            "'a; b|c' alone is 100 % of any picture: give",
        ),
        (("a.png", "--labels", "a,,b"), "label 2 of 3 is empty"),
        (("a.png", "--labels", "a,b, a"), "the label 'a' occurs twice"),
        (("a.png", "--labels", "Cat,b,cat"), "the label 'Cat' occurs twice"),
        (("a.png", "--labels", "a,b", "--template", "a photo"), "'a photo' needs {} once"),
        (("a.png", "--labels", "a,b", "--template", "{label}"), "'{label}' needs {} once"),
        (("a.png", "--labels", "a,b", "--templates", "absent"), "cannot read absent: No such"),
        (("a.png", "--labels", "a,b", "--templates", "empty"), "empty is empty; expected"),
        (("a.png", "--labels", "a,b", "--templates", "a.png"), "a.png is no text in UTF-8"),
        (("a.png", "--labels", "a," + "red " * 99), "label 'red red"),
        (
            ("absent.png", "--labels", "a,b"),
            "absent.png: cannot be read as a picture: no such",
        ),
        (("folder", "--labels", "a,b"), "folder: cannot be read as a picture: is a folder"),
        (("bad.png", "absent", "--labels", "a,b"), "bad.png: cannot be read as a picture"),
        (("a.png", "--labels", "a,b", "--device", "tpu"), "tpu: expected auto, cpu or cuda"),
        (("a.png", "--labels", "a,b", "--tmplate", "x"), "did you mean --template"),
    ],
)
def test_bad_input_is_refused_in_one_line(run, words, message):
    Path("bad.png").write_text("no picture")
    Path("empty").write_text(" \n\n")
    Path("folder").mkdir()
    assert message in refusal(run(*words))


def test_a_missing_clip_says_how_to_get_one(run, tmp_path):
    said = refusal(run("a.png", "--labels", "a,b", clip=tmp_path / "absent"))
    assert "python -m minimodal train demo" in said and "--clip with a run or an original" in said


# --- what the commands share ---------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["serch"]])
def test_an_unknown_command_is_refused_in_one_line(argv, capsys):
    with pytest.raises(SystemExit) as leave:
        main(argv)
    said = capsys.readouterr().err
    assert leave.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1


def test_help_names_the_default_of_every_flag():
    commands = next(action for action in make_parser()._actions if action.dest == "command")
    for name in COMMANDS:
        for action in commands.choices[name]._actions:
            if action.option_strings and action.nargs != 0:
                assert "default" in action.help, action.option_strings
