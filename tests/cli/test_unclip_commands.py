"""unCLIP's commands on runs of two steps: all tools draw, scores are read, bad input is a line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import pixels, refusal
from helpers.systems import TINY, make_latent_decoder
from PIL import Image
from safetensors.torch import load_file, save_file

from minimodal.blocks.diffusion import Sampler
from minimodal.cli.generate import main
from minimodal.cli.main import main as commands
from minimodal.cli.unclip import add_unclip, load_unclip
from minimodal.evaluation.scoreboard import format_scoreboard
from minimodal.files import digest
from minimodal.training.contract import TrainConfig
from minimodal.training.engine import run as train
from minimodal.training.recipes import SYSTEMS
from minimodal.unclip.decoder import Decoder

TWO = TrainConfig(steps=2, batch_size=8, warmup=1, precision="float32")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """prior, decoder and upsampler of one CLIP."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    for name in ("prior", "decoder", "upsampler"):
        # One CLIP for both: `short_clip` lies beside the folder that it is asked for.
        task = TINY[name](out, TWO)
        train(task, TWO, out / name, data_spec="shapes:400", device="cpu")
    return out


@pytest.fixture
def draw(demo, tmp_path, monkeypatch, capsys):
    """The command in a fresh folder with two pictures; status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", 32), ("b.png", 32), ("large.png", 50)):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(name)

    def command(*words: str) -> tuple[int, str, str]:
        common = ["--method", "unclip", "--run", str(demo), "--steps", "2", "-n", "2"]
        try:
            status = main([*common, "--device", "cpu", *words])
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()

    return command


@pytest.mark.parametrize(
    "words",
    [
        ["a red circle", "a blue square"],
        ["a red circle", "--no-caption", "--seeds", "3,4"],
        ["a red circle", "--sampler", "ddim", "--eta", "0.5", "--guidance", "2"],
        ["a red circle", "--complete", "a.png", "--redraw", "0,16,32,32"],
        ["a red circle", "--begin", "a.png", "--strength", "0.3"],
        ["--variations-of", "a.png"],
        ["--interpolate", "a.png", "b.png"],
        ["--edit", "a.png", "a red square", "a blue circle"],
        ["--mix", "a red circle:0.5", "a.png:0.5"],
        ["--strip", "a.png"],
    ],
)
def test_each_tool_writes_pictures(draw, words):
    status, out, _ = draw(*words)
    assert status == 0 and "pictures" in out
    assert pixels("pictures/000-1.png").shape == (32, 32, 3)


def test_what_is_kept_of_a_picture_to_complete_is_kept_to_the_pixel(draw):
    draw("a red circle", "--complete", "a.png", "--redraw", "0,16,32,32")
    assert (pixels("pictures/000-0.png")[:16] == pixels("a.png")[:16]).all()
    assert (pixels("pictures/000-0.png")[16:] != pixels("a.png")[16:]).any()


def test_the_denoising_is_a_moving_picture_of_its_steps(draw):
    assert draw("a red circle", "--gif", "steps.gif")[0] == 0
    with Image.open("steps.gif") as film:
        assert film.n_frames == 2


def test_a_picture_that_is_not_noised_stays(draw):
    assert draw("a red circle", "--begin", "a.png", "--strength", "0", "--gif", "still.gif")[0] == 0
    assert (pixels("pictures/000-1.png") == pixels("a.png")).all()


def test_a_picture_with_its_seed_is_the_same_beside_any_others(draw):
    draw("a red circle", "--seeds", "4,5", "--out", "two.png")
    draw("a red circle", "-n", "1", "--seeds", "5", "--out", "one.png")
    two, one = pixels("two/000-1.png"), pixels("one/000-0.png")
    assert abs(two.astype(int) - one).max() <= 1  # products of other sizes round differently


def test_an_up_sampler_enlarges_what_is_drawn(draw, demo):
    assert draw("a red circle", "--upsampler", str(demo / "upsampler"))[0] == 0
    assert pixels("pictures/000-0.png").shape == (64, 64, 3)


def test_the_decoders_own_clip_chooses_among_more(draw):
    status, out, _ = draw("a red circle", "--rerank", "3", "--json")
    (first, second) = json.loads(out)["pictures"]
    assert status == 0 and first["clip"] >= second["clip"]


def test_a_picture_of_another_size_is_resized_and_that_is_said(draw):
    status, _, err = draw("--variations-of", "large.png")
    assert status == 0 and "large.png: 50 x 50 pixels, made 32 x 32" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no PROMPT"),
        (["a red circle", "--variations-of", "a.png"], "--variations-of takes no PROMPT"),
        (["--variations-of", "a.png", "--strip", "a.png"], "do not go together"),
        (["--variations-of", "nothing.png"], "nothing.png"),
        (["--mix", "a red circle"], "its weight"),
        (["--edit", "a.png", "a red square", "a blue circle", "--strength", "2"], "from 0 to 1"),
        (["a red circle", "--strength", "0.5"], "--strength is for --begin"),
        (["a red circle", "--begin", "a.png", "--complete", "b.png"], "do not go together"),
        (["a red circle", "--redraw", "0,0,8,8"], "--complete IMG"),
        (["a red circle", "--eta", "0.5"], "eta 0.5 is DDIM's"),
        (["a red circle", "--gif", "film.png"], "ends in .gif"),
        (["a red circle", "--prior", "nowhere"], "nowhere: no such file or folder"),
        (["a red circle", "--run", "no"], "no: no such file or folder"),
        (["a red circle", "--run", "."], ". has no decoder: `python train.py demo --with unclip`"),
        (["a red circle", "--upsampler", "no"], "no: no such file or folder"),
        (["a red circle", "--upsampler", "a.png"], "a.png"),
        (["a red circle", "--complete", "no.png"], "no.png"),
        (["a red circle", "--complete", "a.png", "--redraw", "0,0,99,9"], "not inside a picture"),
        (["a red circle", "--seeds", "1"], "1 --seeds for 2 pictures"),
        (["a red circle", "--clip", "nope"], "--clip is for --rerank"),
        (
            ["a red circle", "--begin", "a.png", "--strength", "nan"],
            "strength nan: expected from 0",
        ),
        (["a red circle", "--steps", "0"], "steps 0: expected from 1 to 1000"),
        (["a red circle", "--steps", "2000"], "steps 2000: expected from 1 to 1000"),
        (["a red circle", "--guide-to", "2"], "guide_to 2.0: expected 0 to 1"),
        (["a red circle", "--guidance", "-1"], "guidance -1.0: expected 0 or more"),
        (["a red circle", "--sampler", "ddim", "--eta", "2"], "eta 2.0: expected 0 to 1"),
        (["a red circle", "--sampler", "euler"], "invalid choice: 'euler'"),
        (["a red circle", "--temperature", "1"], "--temperature is for --method dalle"),
        (["a red zebra"], "no caption of the training had 'zebra'"),
        (["--edit", "a.png", "a red square", "a zebra"], "no caption of the training had 'zebra'"),
        (["--mix", "a zebra:1"], "no caption of the training had 'zebra'"),
        (["--mix", "a red circle:1", "no.png:1"], "--mix no.png: no such file"),
        (["--mix", "a.png:1", "a.png:-1"], "leave nothing of what is mixed"),
        (["--strip", "a.png", "--prior", "."], "--prior is for prompts"),
        (["--edit", "a.png"], "--edit takes a picture and two captions"),
        (["--edit", "a.png", "a red square"], "--edit takes a picture and two captions"),
        (["--edit", "no.png", "a red square", "a red circle"], "no.png"),
        (
            ["--strip", "a.png", "--no-caption"],
            "--no-caption is for prompts and --edit, not for --strip",
        ),
        (["--strip", "a.png", "--rerank", "3"], "--rerank is for prompts, not for --strip"),
        (["--strip", "a.png", "--begin", "a.png"], "--begin is for prompts, not for --strip"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(draw, words, message):
    assert message in refusal(draw(*words))
    assert not Path("pictures.png").exists()


def test_a_prior_of_another_clip_is_refused_by_its_hash(draw, demo, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(demo / "prior", other)
    config = json.loads((other / "config.json").read_text())
    mine = config["model"]["training"]["clip"]
    config["model"]["training"]["clip"] = "0123456789abcdef"
    (other / "config.json").write_text(json.dumps(config))
    message = refusal(draw("a red circle", "--prior", str(other)))
    assert "0123456789ab" in message and mine[:12] in message


def changed(run: Path, copy: Path, **model) -> Path:
    """A copy of a run with other words in its config.json."""
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["model"] |= model
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_decoder_whose_clip_was_exchanged_is_refused_by_both_hashes(draw, demo, tmp_path):
    run = changed(demo / "decoder", tmp_path / "decoder")
    trained_with = json.loads((run / "config.json").read_text())["model"]["training"]["clip"]
    weights = load_file(run / "clip" / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, run / "clip" / "model.safetensors")
    message = refusal(draw("--variations-of", "a.png", "--run", str(run)))
    found = digest(run / "clip" / "model.safetensors")
    assert trained_with[:12] in message and found[:12] in message


def test_without_a_prior_pictures_are_drawn_and_prompts_refused(draw, demo, tmp_path):
    run = str(changed(demo / "decoder", tmp_path / "alone"))
    assert draw("--variations-of", "a.png", "--run", run)[0] == 0
    for words in (["a red circle"], ["--mix", "a red circle:1"]):
        message = refusal(draw(*words, "--run", run, "--out", "other.png"))
        assert "train.py prior makes one" in message
    assert draw("a red circle", "--run", run, "--prior", str(demo / "prior"))[0] == 0


def test_words_that_no_caption_had_may_be_allowed(draw):
    assert draw("a red zebra", "--allow-unseen")[0] == 0


def test_the_runs_own_sampling_is_the_default_and_flags_win(draw, demo, tmp_path, monkeypatch):
    own = {"name": "ddim", "steps": 2, "guidance": 1.5}
    shutil.copytree(demo / "prior", tmp_path / "prior")
    run = str(changed(demo / "decoder", tmp_path / "decoder", sampling=own))
    seen, drawn = [], Decoder.draw

    def spy(self, told, how, **more):
        seen.append(how)
        return drawn(self, told, how, **more)

    monkeypatch.setattr(Decoder, "draw", spy)
    draw("a red circle", "--run", run, "--eta", "0.5")
    draw("a red circle", "--run", run, "--sampler", "2m", "--guidance", "2", "--guide-to", "0.75")
    assert seen == [Sampler("ddim", 2, 0.5, 1.5), Sampler("2m", 2, 0.0, 2.0, guide_to=0.75)]


@pytest.mark.parametrize("trained", ["bfloat16", "float32"])
def test_a_decoder_draws_in_bfloat16_where_it_was_trained_in_it_and_the_device_has_it(
    trained, demo, tmp_path, monkeypatch
):
    run = shutil.copytree(demo / "decoder", tmp_path / "decoder")
    config = json.loads((run / "config.json").read_text())
    config["train"]["precision"] = trained
    (run / "config.json").write_text(json.dumps(config))
    for native in (True, False):
        monkeypatch.setattr("minimodal.cli.unclip.multiplies_bfloat16", lambda device, n=native: n)
        assert load_unclip(run, "cpu")[0].bfloat16 == (native and trained == "bfloat16")


def test_a_decoder_of_code_vectors_draws_with_the_vqgan_in_its_run(draw, demo, tmp_path):
    """`short_vqgan` and `short_clip` lie beside the folder that they are asked for."""
    task = make_latent_decoder(demo, TWO)
    train(task, TWO, tmp_path / "decoder", data_spec="shapes:400", device="cpu")
    run = str(tmp_path / "decoder")
    for words in (
        ["a red circle", "--prior", str(demo / "prior"), "--complete", "a.png"],
        ["--interpolate", "a.png", "b.png"],
    ):
        assert draw(*words, "--run", run)[0] == 0
    assert pixels("pictures/000-0.png").shape == (32, 32, 3)


def test_the_demo_adds_unclip_once(tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    TINY["prior"](out, TWO)  # makes the CLIP beside it
    shutil.copytree(tmp_path / "demo-clip", out / "clip")
    (out / "scoreboard.json").write_text(json.dumps({"seconds": {}}))
    tiny = {"prior": {"width": 16, "depth": 1, "heads": 2}, "decoder": {"channels": 8}}

    def recipe(name: str):
        whole = SYSTEMS[name].recipes["shapes"]()
        training = replace(whole.training, pool=64)
        return whole._replace(
            model=replace(whole.model, **tiny[name]), training=training, engine=TWO
        )

    monkeypatch.setattr("minimodal.cli.unclip.recipe_for", lambda name, data: recipe(name))
    monkeypatch.setattr("minimodal.cli.unclip.on_codes", lambda vqgan: recipe("decoder"))
    add_unclip(out, 0, "auto", n=8)
    board = json.loads((out / "scoreboard.json").read_text())
    wanted = {"seen", "seen_one_object", "held_out_one_object", "true_embedding_one_object", "edit"}
    assert wanted <= board["unclip"].keys() and (out / "unclip.png").exists()
    assert "edit" in format_scoreboard(board)  # as the demo shows it when it is called again
    before = (out / "scoreboard.json").stat().st_mtime_ns
    add_unclip(out, 0, "auto", n=8)
    assert (out / "scoreboard.json").stat().st_mtime_ns == before


# --- evaluate ------------------------------------------------------------------------------------


def evaluate(run: Path, *words: str) -> int:
    return commands(["evaluate", str(run), "--device", "cpu", "-n", "2", *words])


def test_a_decoder_is_scored_with_the_prior_beside_it(demo, tmp_path, capsys):
    assert evaluate(demo / "decoder", "--data", "shapes", "--out", str(tmp_path / "s.json")) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert {"seen", "held_out", "true_embedding", "variation_keeps"} <= set(found["scores"])
    assert found["manifest"]["sampling"]["guidance"] == 1.5
    assert "true_embedding" in capsys.readouterr().out


def test_on_pictures_without_an_oracle_a_clip_looks_at_what_a_decoder_draws(
    demo, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i in range(80):
        Image.new("RGB", (9, 9), (3 * i, 0, 0)).save(f"photos/{i}.png")
        Path(f"photos/{i}.txt").write_text("a large red circle")
    words = ("--data", "folder:photos", "--clip", str(demo / "decoder" / "clip"))
    assert evaluate(demo / "decoder", *words, "--out", "s.json") == 0
    found = json.loads(Path("s.json").read_text())
    assert found["scores"]["clip_frechet"] > found["scores"]["of_halves"] > 0
    assert found["manifest"]["pictures"] == {"clip": 1, "clip_frechet": 2}


def test_without_a_prior_a_decoder_is_not_scored(demo, tmp_path, capsys):
    shutil.copytree(demo / "decoder", tmp_path / "alone")
    assert evaluate(tmp_path / "alone", "--data", "shapes") == 2
    assert "prompts need a prior and there is none in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["prior", "upsampler"])
def test_what_draws_nothing_for_a_prompt_has_its_scores_from_training(demo, name, capsys):
    assert evaluate(demo / name) == 2
    said = capsys.readouterr().err
    assert f"holds a trained {name}: its scores on unseen pictures are in its" in said
