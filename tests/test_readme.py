"""README and docs keep their word: what they tell people to type runs, flags and files exist, and
the list of what differs from the papers is the list of such marks in the code.

Every line of a code block without a language is a command. It is run here for two steps, in the
order of its page, on tiny models and data of the names that the page uses, or `.ci/run` runs it.
"""

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import FIXTURES, ROOT, cifar, systems
from helpers.tiny import noise, pictures
from PIL import Image
from safetensors.torch import load_file, save_file

from minimodal.cli import pool
from minimodal.cli.generate import METHODS
from minimodal.cli.main import main
from minimodal.evaluation.judge import Judge

PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
LONG = ("docs/results.md", "docs/unclip.md")  # many trainings: among the slow tests
# What `.ci/run` does, and the line there that does it.
BY_CI = {
    "pip install -e . && python train.py demo": "python train.py demo --minutes",
    "pip install -e '.[test]' && python -m pytest": "pip install -e '.[test]' && python -m pytest",
}
# Too long even for tiny models: the test that has run it, and what shows it there.
BY_TEST = {
    "python train.py demo --with unclip": (
        "tests/cli/test_unclip_commands.py", "add_unclip(out, 0",
    ),
    "python benchmarks/dalle_study.py runs/demo/dalle": (
        "tests/benchmarks/test_dalle_study.py", "dalle_study.main([str(folder)",
    ),
    # one process is refused
    "torchrun --nproc_per_node=2 train.py dalle --data shapes --vqgan runs/demo/vqgan "
    "--out runs/shares --fsdp": (
        "tests/training/test_world_size.py", "spread(kind, folder, fsdp=fsdp)",
    ),
}  # fmt: skip
STARTS = {
    ("python", "train.py"): ["train"],
    ("python", "generate.py"): ["generate"],
    ("python", "-m", "minimodal"): [],
    # several processes: tests/training/test_parallel.py
    ("torchrun", "--nproc_per_node=2", "train.py"): ["train"],
    ("torchrun", "--nproc_per_node=2", "--max-restarts=3", "train.py"): ["train"],
}
SHORT = "--steps 2 --minutes 0 --batch-size 16 --limit 600 --precision float32 --device cpu"
TINY = {
    "vqgan": "--channels 8 --warm-start 0 --discriminator-start 1 --gan-start 1 --gan-ramp 1 "
    "--discriminator-channels 8",
    "clip": "--vision-width 16 --vision-depth 1 --vision-heads 2 --text-width 16 --text-depth 1 "
    "--text-heads 2 --embed-width 16 --stem 8,8 --patch-size 8",
    "dalle": "--width 16 --depth 1 --heads 2 --pool 48",
    "vqgan-prior": "--width 16 --depth 1 --heads 2 --pool 48",
    "prior": "--width 16 --depth 1 --heads 2 --pool 48",
    "decoder": "--channels 8 --pool 48",
    "upsampler": "--channels 8",
}
LONG_CAPTION = "a face screaming in fear, heart hands and a clock"
FOREIGN = {"--nproc_per_node", "--max-restarts", "--index-url"}  # flags of other programs
GONE = ("docs/composition.md", "docs/results.md")  # these name options of their time


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "") -> list[str]:
    """The code blocks of a page in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [text for own, text in found if own == language]


def commands(page: str) -> list[str]:
    """The commands of a page, each in one line, without comments."""
    lines = "".join(blocks(page)).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"  +#.*", "", line).strip() for line in lines]
    return [line for line in lines if line and not line.startswith("export ")]


def arguments(command: str) -> list[str]:
    """The words of a command after the program's name, as `python -m minimodal` takes them."""
    words = shlex.split(command)
    for start, first in STARTS.items():
        if tuple(words[: len(start)]) == start:
            return [*first, *words[len(start) :]]
    raise AssertionError(f"neither run here nor listed in BY_CI: {command}")


def shortened(words: list[str]) -> list[str]:
    """The same command, for two steps, few pictures and small models."""
    kind = words[0]
    if kind == "train":
        few = [] if "shapes" in words or words[1] != "vqgan" else ["--codes", "16"]
        return [*words, *SHORT.split(), *TINY[words[1]].split(), *few]
    if kind == "evaluate":
        return [*words, "-n", "4", "--device", "cpu"]
    few = ["--steps", "2"] if kind == "generate" and "--steps" in words else []
    return [*words, *few, "--device", "cpu"]


def run(command: str) -> None:
    assert main(shortened(arguments(command))) == 0, command


# --- what lies in the folder where people type ---------------------------------------------------


def write_photos(folder: Path) -> None:
    """Pictures with captions beside them."""
    folder.mkdir(parents=True)
    for i in range(40):
        Image.new("RGB", (40, 36), (6 * i, 90, 40)).save(folder / f"{i:02}.png")
        what = ("cat", "dog", "horse")[i % 3]
        (folder / f"{i:02}.txt").write_text(f"a photo of a {what} on gray\n{LONG_CAPTION}")


def write_coco(folder: Path) -> None:
    """COCO's own layout."""
    for part, n in (("train2017", 40), ("val2017", 12)):
        write_photos(folder / part)
        images = [{"id": i, "file_name": f"{i:02}.png"} for i in range(n)]
        notes = [{"id": i, "image_id": i, "caption": f"a dog, {i} times"} for i in range(n)]
        (folder / "annotations").mkdir(exist_ok=True)
        file = folder / "annotations" / f"captions_{part}.json"
        file.write_text(json.dumps({"images": images, "annotations": notes}))


def write_cifar(folder: Path) -> None:
    """CIFAR-10's own layout."""
    inner = folder / "cifar-10-batches-py"
    for number in range(1, 6):
        cifar.write(inner / f"data_batch_{number}", cifar.batch(20, number))
    cifar.write(inner / "test_batch", cifar.batch(20, 0))
    cifar.write(inner / "batches.meta", {"label_names": cifar.NAMES_10})


def write_originals(here: Path) -> None:
    """Tiny checkpoints of the originals' kinds under the names that the pages give them."""
    clip = load_file(FIXTURES / "clip_openai_vit" / "model.safetensors")
    clip["token_embedding.weight"] = noise(574, clip["token_embedding.weight"].shape[1])
    save_file(clip, here / "ViT-B-32.pt")  # with as many tokens as the merges make
    merges = (FIXTURES / "tiny_merges.txt").read_bytes()
    (here / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges))
    for name in ("vqgan_imagenet_f16_1024", "cin_transformer"):
        shutil.copytree(FIXTURES / "vqgan_taming", here / name)
    state = Judge().state_dict()
    weights = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    save_file(weights, here / "cifar10_resnet20.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a demo of two steps and all data that the pages name."""
    here = tmp_path_factory.mktemp("place")
    demo = here / "runs" / "demo"
    needs = {"dalle": " --vqgan ", "prior": " --clip ", "decoder": " --clip "}
    for system in ("vqgan", "clip", "dalle", "prior", "decoder"):
        given = needs[system] + str(demo / needs[system].strip(" -")) if system in needs else ""
        run(f"python train.py {system} --data shapes --out {demo / system}{given}")
    for name in ("data/cifar10", "PATH", "MORE"):
        write_cifar(here / name)
    write_coco(here / "data" / "coco")
    for name in ("data/photos", "data/emoji", "photos"):
        write_photos(here / name)
    for name in ("photo.jpg", "horse.png", "half.png", "circle.png", "clock.png"):
        Image.new("RGB", (32, 32), (200, 30, 30)).save(here / name)
    write_originals(here)
    return here


@pytest.fixture
def here(place, tmp_path, monkeypatch) -> Path:
    """A copy of it, as the current folder."""
    monkeypatch.setattr(systems.probe, "PEAK_SECONDS", 0.01)
    monkeypatch.setattr(pool, "SIZE", 64)
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# --- commands and code ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p in LONG else []) for p in PAGES]
)
def test_every_command_runs_for_two_steps(page, here):
    for command in dict.fromkeys(commands(page)):  # a page may say one twice
        if command not in BY_CI and command not in BY_TEST:
            run(command)


def test_what_is_not_run_here_is_run_elsewhere():
    steps = text_of(".ci/run")
    assert set(BY_CI) | set(BY_TEST) <= {command for page in PAGES for command in commands(page)}
    assert all(line in steps for line in BY_CI.values())
    assert all(line in text_of(file) for file, line in BY_TEST.values())


def test_the_code_of_the_pages_runs(here):
    own = {"images": pictures(2, 3, 32, 32)}
    heads = json.loads((FIXTURES / "vqgan_taming" / "config.json").read_text())["transformer"]
    for page in PAGES:
        for code in blocks(page, "python"):
            exec(code.replace('"n_head": 24', f'"n_head": {heads["n_head"]}'), own)
    assert own["prior"].config.heads == heads["n_head"]


def shown_flags(capsys) -> set[str]:
    """All flags that some --help shows, and those of benchmarks."""
    sources = "".join(file.read_text() for file in (ROOT / "benchmarks").glob("*.py"))
    shown = set(re.findall(r'add_argument\("(--[a-z-]+)"', sources))
    trained = [["train", system, "--data", "shapes"] for system in TINY]
    drawn = [["generate", "--method", method] for method in METHODS]
    others = ("classify", "search", "reconstruct", "caption", "evaluate", "doctor")
    for words in (["train", "demo"], *trained, *drawn, *([name] for name in others)):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        shown |= set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    return shown


def test_every_flag_that_is_named_exists(capsys):
    shown = shown_flags(capsys)
    for page in PAGES:
        if page not in GONE:
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", text_of(page)))
            assert named <= shown | FOREIGN, (page, named - shown - FOREIGN)


# --- files, places, figures ----------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """What a link may end with, as GitHub makes it of a page's titles."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/RESULTS.md"])
def test_links_and_files_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.resolve().relative_to(ROOT).as_posix())
    inside = r"`((?:minimodal|tests|benchmarks|docs|notebooks)/[\w/.]+)`"
    for name in re.findall(inside, text_of(page)):
        assert (ROOT / name).exists(), name


def test_the_readme_is_short_and_counts_lines_right():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 230
    rows = re.findall(r"\]\((minimodal/\w+\.py)\) \| (\d+) \|", text)
    assert len(rows) == 4
    found = {file: len(text_of(file).splitlines()) for file, _ in rows}
    told = {file: int(count) for file, count in rows}
    assert all(abs(found[file] - told[file]) <= 0.1 * found[file] for file in told), found


# --- what differs from the papers ----------------------------------------------------------------

MARK = "# differs from the paper: "


def marks(text: str) -> list[str]:
    """What the marks of a file say: each a comment of one sentence, in lines of its own."""
    found, lines = [], text.splitlines()
    for i, line in enumerate(lines):
        if MARK in line:
            said = line.split(MARK)[1]
            while not (said.endswith(".") and not said.endswith("al.")):
                i += 1
                assert lines[i].lstrip().startswith("# "), f"no full stop: {said}"
                said += " " + lines[i].strip()[2:]
            found.append(said)
    return found


def test_a_mark_is_read_to_the_end_of_its_sentence():
    text = f"x = 1  {MARK}a b et al.\n    # (2021), so c.\n    # Another.\ny = 2\n{MARK}d."
    assert marks(text) == ["a b et al. (2021), so c.", "d."]


def test_papers_md_lists_the_marks_of_the_code():
    in_code = {
        f"{said[:-1]} (`{file.relative_to(ROOT).as_posix()}`)"
        for file in (ROOT / "minimodal").rglob("*.py")
        for said in marks(file.read_text(encoding="utf-8"))
    }
    listed = re.findall(r"^- (.*(?:\n  .*)*)", text_of("docs/papers.md"), re.MULTILINE)
    in_page = {re.sub(r"\s+", " ", one) for one in listed}
    assert in_code - in_page == set(), "in the code, not in docs/papers.md"
    assert in_page - in_code == set(), "in docs/papers.md, not in the code"


def test_no_mark_is_written_in_another_way():
    for file in (ROOT / "minimodal").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        said = re.findall(r"differs from (?:the paper|the original|LPIPS)", text)
        assert len(said) == text.count(MARK), file
