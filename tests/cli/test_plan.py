import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from minimodal.cli import demo
from minimodal.cli.plan import (
    LEAST,
    MOST,
    REACHED,
    Costs,
    Plan,
    Speed,
    make_plan,
    planned,
    read_plan,
)
from minimodal.errors import UserError
from minimodal.files import write_json
from minimodal.training.recipes import recipe_for

RECIPES = {name: recipe_for(name, "shapes") for name in demo.STAGES}
STEPS = {name: recipe.engine.steps for name, recipe in RECIPES.items()}


def costs(slower: float = 1.0) -> tuple[Costs, Speed]:
    """A machine on which all takes so many times longer."""
    speed = {n: Speed("float32", s * slower, 9e10) for n, s in
             (("vqgan", 0.1), ("clip", 0.3), ("dalle", 0.4))}  # fmt: skip
    rest = {"build": 3 * slower, "encode": 2e-3 * slower, "draw": 0.02 * slower,
            "read": 5e-3 * slower}  # fmt: skip
    return Costs(speed["vqgan"], speed["dalle"], **rest), speed["clip"]


def plan_for(minutes: float, slower: float = 1.0, *, beside: bool = True, spent=5.0) -> Plan:
    return make_plan(minutes, 0, *costs(slower), spent=spent, beside=beside, machine="a CPU")


def main_seconds(plan: Plan, slower: float) -> float:
    """What VQGAN's and DALL·E's process would take."""
    other, _ = costs(slower)
    steps = plan.steps["vqgan"] * other.vqgan.step + plan.steps["dalle"] * other.dalle.step
    return 5 + other.build + steps + plan.pool * other.encode + plan.scores


@pytest.mark.parametrize("slower", [1.0, 3.0])
@pytest.mark.parametrize("minutes", [5, 10, 25])
def test_what_is_planned_fits_the_minutes(minutes, slower):
    plan = plan_for(minutes, slower)
    assert 0.93 * 60 * minutes < main_seconds(plan, slower) <= 60 * minutes
    clip = 5 + plan.steps["clip"] * costs(slower)[1].step + plan.scores
    assert 0.93 * 60 * minutes < clip <= 60 * minutes
    assert plan.seconds == pytest.approx(60 * minutes, rel=0.03)


def test_without_a_process_beside_all_three_stages_share_the_time():
    plan = plan_for(10, beside=False)
    _, clip = costs()
    assert main_seconds(plan, 1.0) + plan.steps["clip"] * clip.step <= 600
    shares = [plan.steps[name] / STEPS[name] for name in STEPS]
    assert max(shares) - min(shares) < 0.01


def test_a_fast_machine_ends_earlier_at_twice_the_recipes():
    plan = plan_for(10, 0.02)
    assert plan.steps == {name: MOST * steps for name, steps in STEPS.items()}
    assert plan.seconds < 200
    assert "reaches more" not in plan.text()


def test_no_time_at_all_still_takes_a_few_steps_and_draws_a_few_pictures():
    plan = plan_for(0.05, 3.0)
    assert set(plan.steps.values()) == {LEAST}
    assert plan.pictures == 16 and plan.candidates == 32


def test_minutes_0_are_the_recipes_own_steps_on_any_machine():
    for slower in (0.02, 30.0):
        plan = plan_for(0, slower)
        assert plan.steps == STEPS and plan.training_seconds is None
        assert plan.pool == RECIPES["dalle"].training.pool and plan.pictures == 500


def test_the_line_says_machine_steps_time_and_what_more_minutes_are_for():
    least, most = min(REACHED), max(REACHED)
    plan = replace(plan_for(10, 3.0), steps={"vqgan": 160, "clip": 1100, "dalle": least})
    seen, held_out = (round(100 * share) for share in REACHED[least])
    assert plan.text() == (
        f"plan: a CPU; VQGAN 160 steps, CLIP 1,100 steps, DALL·E {least:,} steps; about 10 minutes;"
        f" --minutes 30 reaches more\nexpect about {seen} % of DALL·E's pictures of seen captions "
        f"to be right, {held_out} % of held-out ones"
    )
    few, many = (replace(plan, steps={**plan.steps, "dalle": n}) for n in (100, 6000))
    assert f"less than {seen} %" in few.expected()
    assert f"at least {round(100 * REACHED[most][0])} %" in many.expected()


def test_planned_recipes_keep_vqgans_events_at_their_places():
    plan = plan_for(10, 3.0)
    given, recipe = RECIPES["vqgan"], planned("vqgan", plan)
    share = plan.steps["vqgan"] / given.engine.steps
    assert recipe.engine.steps == plan.steps["vqgan"]
    assert recipe.training.gan_start == round(given.training.gan_start * share)


def test_a_plan_is_kept_and_not_changed(tmp_path):
    assert read_plan(tmp_path, minutes=None, seed=0) is None
    plan = plan_for(10)
    write_json(tmp_path / "plan.json", asdict(plan))
    assert read_plan(tmp_path, minutes=None, seed=0) == plan
    assert read_plan(tmp_path, minutes=10, seed=0) == plan
    with pytest.raises(UserError, match="begun with --minutes 10, not 30"):
        read_plan(tmp_path, minutes=30, seed=0)
    with pytest.raises(UserError, match="begun with --seed 0, not 1"):
        read_plan(tmp_path, minutes=None, seed=1)
    (tmp_path / "plan.json").write_text('{"minutes": 10}')
    with pytest.raises(UserError, match="plan.json is damaged"):
        read_plan(tmp_path, minutes=None, seed=0)


def done_demo(out: Path) -> None:
    """What a finished demo leaves, without its contents."""
    plan = plan_for(10)
    for name in demo.STAGES:
        (out / name).mkdir(parents=True)
        (out / name / "model.safetensors").write_bytes(name.encode())
    write_json(out / "plan.json", asdict(plan))
    board = {"vqgan": {"psnr": 36.5}, "plan": asdict(plan) | {"weights": demo.digests(out)}}
    (out / "scoreboard.json").write_text(json.dumps(board))
    (out / "samples.png").write_bytes(b"")


def arguments(out: Path, **other) -> Namespace:
    return Namespace(
        **{"out": out, "minutes": None, "seed": 0, "device": "cpu", "further": None, **other}
    )


def test_a_finished_demo_says_what_it_knows_and_does_nothing(tmp_path, monkeypatch, capsys):
    done_demo(tmp_path)
    monkeypatch.setattr(demo, "Beside", None)  # would be a TypeError
    demo.run_demo(arguments(tmp_path))
    assert "psnr" in capsys.readouterr().out


def test_other_weights_than_those_scored_are_scored_again(tmp_path):
    done_demo(tmp_path)
    assert demo.finished(tmp_path)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"trained on")
    assert demo.finished(tmp_path) is None


def test_runs_that_no_demo_began_are_refused_in_one_line(tmp_path):
    (tmp_path / "vqgan").mkdir()
    (tmp_path / "vqgan" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no plan.json of a demo"):
        demo.plan_of(arguments(tmp_path), None, 0.0)
