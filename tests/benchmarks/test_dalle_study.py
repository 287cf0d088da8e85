"""Studies of a DALL·E against painters whose answers are known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import script
from helpers.commands import write_demo
from helpers.tiny import generator
from helpers.worlds import Painter, scenes_of, wrong_background
from PIL import Image

from minimodal.data.loading import open_data
from minimodal.data.words import KnownWords
from minimodal.shapes.language import parse
from minimodal.shapes.oracle import read
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import render
from minimodal.shapes.worlds import WORLDS
from minimodal.training.captions import captions_of

dalle_study = script("dalle_study")


class Filling(Painter):
    """Paints what is said, and anything where nothing is said: red, small, white, side by side."""

    def __call__(self, prompts, n, seed):
        specs = []
        for spec in (parse(p) for p in prompts for _ in range(n)):
            objects = tuple(
                o._replace(color=o.color or "red", size=o.size or "small") for o in spec.objects
            )
            relation = spec.relation or ("left" if spec.count == 2 else None)
            background = spec.background or "white"
            specs.append(spec._replace(objects=objects, relation=relation, background=background))
        return torch.from_numpy(render(self.spoil(scenes_of(specs), n == 1)))


def test_templates_ask_for_more_and_more_of_a_scene():
    scenes = ShapesSource(0, split="val").scenes(np.arange(40))
    one, two = (int(np.flatnonzero(scenes.count == count)[0]) for count in (1, 2))
    assert list(dalle_study.asked(scenes, one)) == ["shape", "color_shape", "all_of_one"]
    assert list(dalle_study.asked(scenes, two))[:2] == ["relation", "all_of_two"]
    for prompts in (dalle_study.asked(scenes, one), dalle_study.asked(scenes, two)):
        said = [parse(prompt) for prompt in prompts.values()]
        assert all(spec.count == said[0].count for spec in said)
    full = parse(dalle_study.asked(scenes, two)["all_of_two"])
    assert full.background and full.relation and all(all(thing) for thing in full.objects)


def test_templates_ask_in_words_that_the_captions_of_training_have():
    known = KnownWords.of(captions_of(ShapesSource(0), 3000))
    scenes = ShapesSource(0, split="val", pairs="all").scenes(np.arange(300))
    known.check(prompt for row in range(300) for prompt in dalle_study.asked(scenes, row).values())


def test_a_painter_who_does_what_is_said_has_full_marks_in_every_template():
    scores = dalle_study.template_scores(Filling(), n=8)
    names = ("shape", "color_shape", "all_of_one", "relation", "all_of_two", "counting")
    templates = {f"{pairs}_{name}" for pairs in ("seen", "held_out") for name in names}
    templates.remove("held_out_shape")  # names no colour
    assert templates < set(scores)
    assert {scores[name] for name in templates} == {1.0}


class Eyes:
    """Its codes are the pictures themselves, so the oracle can play the rest of the model."""

    rows = torch.zeros(1)

    painter = SimpleNamespace(encode=lambda pictures: pictures)


def likelihood(dalle, codes, captions):
    """Of the oracle: 1 if a caption is true."""
    verdicts = WORLDS["shapes"].score(captions, codes.expand(len(captions), -1, -1, -1).numpy())
    return torch.tensor([[float(verdict.exact) for verdict in verdicts]])


def whole_caption(seen) -> str:
    thing = seen.objects[0]
    return f"a {thing.size} {thing.color} {thing.shape} on {seen.background}"


@pytest.mark.parametrize(
    ("says", "true", "whole"),
    [
        (whole_caption, 1, 1),
        (lambda seen: f"a {seen.objects[0].shape}", 1, 0),
        (lambda seen: f"two {seen.objects[0].shape}s", 0, 0),
        (lambda seen: "of the the", 0, 0),  # no caption at all
    ],
)
def test_what_a_model_reads_is_scored_by_the_oracle(says, true, whole, monkeypatch):
    def describe(dalle, codes, *, generator):
        return SimpleNamespace(caption=says(read(codes[None].numpy())[0]))

    monkeypatch.setattr(dalle_study, "caption_scores", likelihood)
    monkeypatch.setattr(dalle_study, "describe", describe)
    scores = dalle_study.reading_scores(Eyes(), n=10, written=4)
    for pairs in ("seen", "held_out"):
        found = {name: scores[f"{pairs}_{name}"] for name in ("color", "shape", "true", "whole")}
        assert found == {"color": 1, "shape": 1, "true": true, "whole": whole}


def test_a_classifier_that_always_says_the_same_is_right_where_that_is_so(monkeypatch):
    monkeypatch.setattr(
        dalle_study, "caption_scores", lambda dalle, codes, captions: -torch.arange(8.0)[None]
    )
    told = SimpleNamespace(caption="a circle")
    monkeypatch.setattr(dalle_study, "describe", lambda dalle, codes, *, generator: told)
    scenes = ShapesSource(0, split="val").scenes(np.arange(320))
    single = scenes[np.flatnonzero(scenes.count == 1)[:40]]
    scores = dalle_study.reading_scores(Eyes(), n=40, written=1)
    assert scores["seen_color"] == round(float((single.color[:, 0] == 0).mean()), 4) < 0.5
    assert scores["seen_shape"] == round(float((single.shape[:, 0] == 0).mean()), 4) < 0.5


def test_a_wrong_background_fails_only_the_templates_that_name_one():
    scores = dalle_study.template_scores(Filling(wrong_background), n=8)
    assert scores["seen_all_of_one"] == scores["held_out_all_of_two"] == 0
    assert scores["seen_shape"] == scores["held_out_relation"] == 1
    assert scores["seen_all_of_two_background"] == 0
    assert scores["seen_all_of_two_relation"] == scores["seen_all_of_two_color"] == 1
    assert "seen_relation_background" not in scores  # which that template does not name


def test_the_sweep_scores_every_pair_of_settings():
    painter = Painter()
    tables = dalle_study.sweep(painter, guidances=(1.0, 2.0, 3.0), temperatures=(0.5, 1.0), n=4)
    assert {table.shape for table in tables.values()} == {(3, 2)}
    assert all((table == 1).all() for table in tables.values())
    assert {(t, g) for _, t, g in painter.calls} == {
        (t, g) for t in (0.5, 1.0) for g in (1.0, 2.0, 3.0)
    }


def test_a_heat_map_shows_every_share():
    table = np.array([[0.0, 0.5], [1.0, 0.25]])
    picture = np.asarray(
        dalle_study.heat_map(table, ["guidance 1", "guidance 2"], ["T 0.5", "T 1"])
    )
    colors = {tuple(row) for row in picture.reshape(-1, 3)}
    for share in table.flatten():
        wanted = (round(230 * min(1, 2 - 2 * share)), round(200 * min(1, 2 * share)), 80)
        assert wanted in colors


def test_the_nearest_distance_is_that_of_a_plain_loop():
    a, b = (torch.randint(256, (n, 3, 4, 4), generator=generator(n)).byte() for n in (5, 7))
    differences = (a[:, None].float() - b[None].float()).square().mean(dim=(2, 3, 4)).sqrt()
    torch.testing.assert_close(
        dalle_study.nearest_distance(a, b.split(3)), differences.amin(1), rtol=1e-4, atol=1e-3
    )


def test_a_copier_is_found_out_and_the_world_itself_is_not():
    train, val = ShapesSource(0), ShapesSource(0, split="val")
    copied = dalle_study.copying(
        torch.from_numpy(train.images(np.arange(60))), train, val, pool=300
    )
    assert copied["nearest_training_picture"] == 0 and copied["nearer"] == 1
    fresh = ShapesSource(5, split="val").images(np.arange(60))
    assert 0.2 < dalle_study.copying(torch.from_numpy(fresh), train, val, pool=300)["nearer"] < 0.8


class Mirrors(ShapesSource):
    """The plain world seen in a mirror."""

    def images(self, indices):
        return np.ascontiguousarray(super().images(indices)[..., ::-1])


def test_a_mirrored_copy_is_a_copy_where_training_had_mirror_images():
    train, val = ShapesSource(0), ShapesSource(0, split="val")
    drawn = torch.from_numpy(Mirrors(0).images(np.arange(40)))
    plain = dalle_study.copying(drawn, train, val, pool=40)
    mirrored = dalle_study.copying(drawn, train, val, pool=40, flip=True)
    assert plain["nearest_training_picture"] > 0 == mirrored["nearest_training_picture"]


def trained(spec: str, *, side: int = 32, pool: int = 60, flip: bool = False, limit=None):
    """A DALL·E as far as its run is concerned."""
    data = open_data(spec, image_size=side, limit=limit).fingerprint()
    training = {"pictures": pool * (2 if flip else 1), "flip": flip, "data": data}
    return SimpleNamespace(run={"data": spec, "model": {"training": training}})


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("flip", [False, True])
def test_copies_are_looked_for_in_the_runs_own_training_pictures(side, flip):
    inside, outside = (
        torch.from_numpy(ShapesSource(0, image_size=side).images(np.arange(first, first + 20)))
        for first in (40, 60)
    )
    run = trained("shapes", side=side, flip=flip)
    assert dalle_study.copies_of_training(run, inside)["nearer"] == 1
    assert dalle_study.copies_of_training(run, outside)["nearest_training_picture"] > 0
    limited = trained("shapes", side=side, flip=flip, limit=60)
    assert dalle_study.copies_of_training(limited, inside)["nearest_training_picture"] == 0


def test_where_the_training_data_has_changed_or_gone_it_is_said(capsys):
    drawn = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    changed, gone = trained("shapes"), trained("shapes")
    changed.run["model"]["training"]["data"] = "another"
    gone.run["data"] = "folder:nowhere"
    for run, said in ((changed, "no longer what it was"), (gone, "no such folder")):
        assert dalle_study.copies_of_training(run, drawn) == {} and said in capsys.readouterr().err


def test_training_data_that_has_moved_is_found_where_the_run_is_measured():
    moved = trained("shapes")
    moved.run["data"] = "folder:nowhere"
    inside = torch.from_numpy(ShapesSource(0).images(np.arange(40, 50)))
    assert dalle_study.copies_of_training(moved, inside, "shapes")["nearest_training_picture"] == 0


def test_objects_in_one_place_have_one_place_and_a_painter_of_the_world_has_all_of_its():
    scenes = ShapesSource(0, split="val").scenes(np.arange(300))
    single = scenes[np.flatnonzero(scenes.count == 1)]
    assert dalle_study.places(render(single[np.zeros(20, int)])) == pytest.approx(1)
    two = single[np.array([0, np.flatnonzero(single.y[:, 0] != single.y[0, 0])[0]])]
    assert dalle_study.places(render(two)) == pytest.approx(2)
    found = dalle_study.variety(Filling(), n=60)
    assert found["places_of_world"] > 15 > found["places"] >= 1  # it places them as it pleases


def test_the_command_prints_and_keeps_all_numbers_and_the_heat_maps(tmp_path, monkeypatch, capsys):
    folder = write_demo(tmp_path / "own", temperature=0.8, guidance=1.0) / "dalle"
    for name, value in (
        ("template_scores", {"seen_shape": 0.5}),
        ("copies_of_training", {"nearer": 0.5}),
        ("reading_scores", {"seen_color": 0.75}),
        ("variety", {"places": 12.0}),
        ("sweep", {"seen": np.full((5, 4), 0.25)}),
    ):
        monkeypatch.setattr(dalle_study, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(dalle_study, "draw_with", lambda *_: lambda *_: None)
    dalle_study.main([str(folder), "--device", "cpu"])
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((folder / "study.json").read_text())
    assert scores["reads_seen_color"] == 0.75 and scores["template_seen_shape"] == 0.5
    assert scores["sweep_seen_g1.5_t0.5"] == 0.25 and scores["nearer"] == 0.5
    assert (folder / "sweep-seen.png").exists()


def test_on_other_data_it_looks_for_copies_alone(tmp_path, capsys):
    (tmp_path / "own").mkdir()
    for i in range(30):
        Image.new("RGB", (9, 9), (8 * i, 0, 99)).save(tmp_path / "own" / f"{i:02}.png")
        (tmp_path / "own" / f"{i:02}.txt").write_text(f"number {i}")
    data = f"folder:{tmp_path / 'own'}"
    own = open_data(data, image_size=6).fingerprint()
    training = {"pictures": 20, "flip": False, "data": own}
    folder = write_demo(tmp_path / "demo", data=data, training=training, temperature=1.0) / "dalle"
    dalle_study.main([str(folder), "--device", "cpu"])
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"nearest_training_picture", "nearest_of_unseen_real", "nearer"}
