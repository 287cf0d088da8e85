"""What the demo does with its time: measured at the start, decided once, kept.

Each stage's own step is timed for a moment, and drawing and encoding as well; the stages then get
the steps that fit, as a share of their recipes', and at most twice those. CLIP and DALL·E, the last
of each process, are also told by when to end (`training/pace.py`), so that the demo ends in time
when another program takes a part of the CPU. A demo that was stopped goes on with its plan. Read
`training/recipes/` before, `cli/demo.py` after.
"""

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from minimodal.blocks.sampling import SamplingConfig
from minimodal.errors import UserError
from minimodal.files import read_json
from minimodal.shapes.worlds import WORLDS
from minimodal.training import probe
from minimodal.training.contract import Recipe, Task
from minimodal.training.distributed import Distributed
from minimodal.training.engine import train_step
from minimodal.training.prepare import Training, build, measure, micro_rows
from minimodal.training.recipes import SYSTEMS, recipe_for, scale_events
from minimodal.training.recipes.dalle import on_codes
from minimodal.training.tasks.codes import Encoded, tokenize_pictures

# What DALL·E reached after so many steps: seen and held-out captions right (docs/results.md).
REACHED = {1308: (0.85, 0.75), 2118: (0.99, 0.92), 3710: (0.99, 0.91), 4750: (0.99, 0.94)}
STAGES = ("vqgan", "clip", "dalle")
MOST = 2.0  # recipes: then nearly all scores are near 100 %
LEAST = 8  # steps of a stage, however short the time
PICTURES = 500  # drawn for a score, where a tenth of the time is enough for them
SPARE = 0.02  # of the time, for what nothing here has timed
# For each picture of a score (`scoreboard.dalle_scores`): guided pictures drawn, pictures that the
# oracle reads. And the steps of CLIP whose time its scores take.
DRAWN, READ, CLIP_STEPS = 7.0, 5.5, 40
# VQGAN+CLIP's candidates, a share of the time for them, and the guided pictures of DALL·E that take
# as long as a candidate and its share of the searches.
CANDIDATES, GUIDED_SHARE, GUIDED = 2048, 0.07, 1.8


def most_steps(name: str) -> int:
    """The steps of a stage that no machine is too fast for."""
    return round(MOST * recipe_for(name, "shapes").engine.steps)


@dataclass(frozen=True)
class Plan:
    """The steps of each stage, and what else a demo decides by the clock."""

    minutes: float  # 0: the recipes' own steps, however long
    seed: int
    machine: str  # "float32, 95 GFLOP/s a core"
    precision: dict[str, str]
    steps: dict[str, int]
    pool: int  # pictures that become codes for dalle
    pictures: int  # a score of dalle
    candidates: int  # in VQGAN+CLIP's pool
    scores: float  # seconds that scores are expected to take
    seconds: float  # and all of it

    def text(self) -> str:
        """The plan in a line."""
        names = zip(("VQGAN", "CLIP", "DALL·E"), STAGES, strict=True)
        steps = ", ".join(f"{shown} {self.steps[name]:,} steps" for shown, name in names)
        if not self.minutes:
            return f"plan: {self.machine}; {steps}, however long they take"
        full = self.steps["dalle"] >= most_steps("dalle")
        more = "" if full else f"; --minutes {3 * self.minutes:g} reaches more"
        about = f"about {max(0.1, self.seconds / 60):.2g} minutes"
        return f"plan: {self.machine}; {steps}; {about}{more}\n{self.expected()}"

    def expected(self) -> str:
        """What DALL·E will about reach, from what it has reached elsewhere."""
        steps, known = self.steps["dalle"], sorted(REACHED)
        seen, held_out = (
            round(100 * np.interp(steps, known, [REACHED[n][k] for n in known])) for k in (0, 1)
        )
        about = "less than" if steps < known[0] else "about" if steps <= known[-1] else "at least"
        return (f"expect {about} {seen} % of DALL·E's pictures of seen captions to be right, "
                f"{held_out} % of held-out ones")  # fmt: skip

    @property
    def training_seconds(self) -> float | None:
        """From the demo's beginning to the end of its last stage; None: however long."""
        return 60 * self.minutes * (1 - SPARE) - self.scores if self.minutes else None


def read_plan(out: Path, *, minutes: float | None, seed: int) -> Plan | None:
    """The plan of a demo that was begun; None if there is none. A plan is not changed."""
    path = out / "plan.json"
    if not path.exists():
        return None
    try:
        plan = Plan(**read_json(path))
    except (ValueError, TypeError):
        raise UserError(
            f"{path} is damaged: expected what the demo wrote; start it in another --out"
        ) from None
    for name, given, kept in (("minutes", minutes, plan.minutes), ("seed", seed, plan.seed)):
        if given is not None and given != kept:
            raise UserError(
                f"{out} was begun with --{name} {kept:g}, not {given:g}; go on with the same or "
                "give another --out"
            )
    return plan


# --- measuring ---------------------------------------------------------------------------------


class Speed(NamedTuple):
    """How fast a stage is here."""

    precision: str
    step: float  # seconds
    peak: float  # FLOP/s of a large product


def seconds_a_step(training: Training, step: int, *, times: int = 3) -> float:
    """The median of some of a task's own steps, its batches included; the first does not count."""
    rows, found = micro_rows(training.config, training.here), []
    for _ in range(times + 1):
        began = time.perf_counter()
        batches = [training.task.batch(step, part) for part in rows]
        device = training.here.device
        training.step = step
        train_step(training, [{k: v.to(device) for k, v in b.items()} for b in batches], lr=1e-4)
        probe.wait(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def speed_of(task: Task, recipe: Recipe, here: Distributed, *, at: dict[int, float]) -> Speed:
    """Time a task. It has taken steps afterwards, so it is of no other use.

    at: steps, which cost more or less by what happens there, and the share of a run that is so
    """
    config = recipe.engine
    training = build(task, config, here=here)
    precision, _, peak = measure(training, micro_rows(config, here)[0])
    training.config = replace(config, precision=precision)
    step = sum(share * seconds_a_step(training, place) for place, share in at.items())
    return Speed(precision, step, peak)


def clip_speed(here: Distributed) -> Speed:
    """CLIP's own step."""
    recipe = recipe_for("clip", "shapes")
    task = SYSTEMS["clip"].build(recipe, "shapes", {}, here.device.type)
    return speed_of(task, recipe, here, at={0: 1.0})


class Costs(NamedTuple):
    """Seconds of everything else that the demo does."""

    vqgan: Speed
    dalle: Speed
    build: float  # of making the stages ready
    encode: float  # a picture
    draw: float  # a guided picture
    read: float  # by the oracle


def other_costs(here: Distributed) -> Costs:
    """Time VQGAN's and DALL·E's steps, and with untrained weights encoding, drawing, reading."""
    began, recipe = time.perf_counter(), recipe_for("vqgan", "shapes")
    task = SYSTEMS["vqgan"].build(recipe, "shapes", {}, here.device.type)
    ready, steps, events = time.perf_counter() - began, recipe.engine.steps, recipe.training
    share = 1 - events.discriminator_start / steps
    vqgan = speed_of(task, recipe, here, at={events.warm_start: 1 - share, steps - 1: share})
    began, n = time.perf_counter(), 128
    model = task.model.eval()
    codes = tokenize_pictures(model, task.train, n=n, flip=False, device=here.device)
    encode = (time.perf_counter() - began) / n
    began, recipe = time.perf_counter(), recipe_for("dalle", "shapes")
    encoded = Encoded(task.train, task.val, model, Path(), "", codes, n)
    dalle = on_codes(recipe, encoded)
    ready += time.perf_counter() - began
    speed = speed_of(dalle, recipe, here, at={0: 1.0})
    captions = task.val.full_captions(np.arange(32), np.random.default_rng(0))
    sampling = SamplingConfig(guidance=recipe.training.guidance)
    text = dalle.tokens(captions).to(here.device)
    dalle.model.eval()
    began = time.perf_counter()
    generator = torch.Generator(here.device).manual_seed(0)
    grids = dalle.model.generate_codes(text, generator=generator, sampling=sampling)
    with torch.no_grad():
        model.decode_indices(grids)
    probe.wait(here.device)
    draw = (time.perf_counter() - began) / len(captions)
    began = time.perf_counter()
    WORLDS["shapes"].score(captions, task.val.images(np.arange(len(captions))))
    read = (time.perf_counter() - began) / len(captions)
    return Costs(vqgan, speed, ready, encode, draw, read)


# --- deciding ----------------------------------------------------------------------------------


def make_plan(
    minutes: float, seed: int, costs: Costs, clip: Speed,
    *, spent: float, beside: bool, machine: str,
) -> Plan:  # fmt: skip
    """Divide the time that is left.

    spent: seconds of the demo so far
    beside: CLIP has a process of its own, and so half of the machine
    """
    whole = {name: recipe_for(name, "shapes").engine.steps for name in STAGES}
    seconds, pool = 60 * minutes, recipe_for("dalle", "shapes").training.pool
    a_picture = DRAWN * costs.draw + READ * costs.read
    a_candidate = GUIDED * costs.draw
    pictures, candidates = PICTURES, CANDIDATES
    if minutes:
        pictures = max(16, min(PICTURES, int(0.1 * seconds / a_picture)))
        candidates = max(32, min(CANDIDATES, int(GUIDED_SHARE * seconds / a_candidate)))
    main_scores, guided = pictures * a_picture, candidates * a_candidate
    side_scores = CLIP_STEPS * clip.step + guided
    scores = max(main_scores, side_scores) if beside else main_scores + side_scores
    main = whole["vqgan"] * costs.vqgan.step + whole["dalle"] * costs.dalle.step
    side = whole["clip"] * clip.step
    fixed = spent + costs.build + scores + SPARE * seconds
    if not beside:
        main = main + side
    share, side_share = 1.0, 1.0
    if minutes:
        # Up to a recipe's length the pool of pictures grows with the steps.
        left = max(0.0, seconds - fixed)
        share = left / (main + pool * costs.encode)
        share = share if share <= 1 else (left - pool * costs.encode) / main
        share = min(MOST, share)
        side_share = share
        if beside:
            side_share = min(MOST, max(0.0, seconds - spent - scores - SPARE * seconds) / side)
    shares = {"vqgan": share, "clip": side_share, "dalle": share}
    steps = {name: max(LEAST, round(whole[name] * shares[name])) for name in whole}
    pool = max(1024, round(pool * min(1.0, share)))
    expected = max(fixed + share * main + pool * costs.encode, spent + side_share * side + scores)
    precision = {"vqgan": costs.vqgan.precision, "clip": clip.precision,
                 "dalle": costs.dalle.precision}  # fmt: skip
    return Plan(
        minutes, seed, machine, precision, steps, pool, pictures, candidates, scores, expected
    )


def planned(name: str, plan: Plan) -> Recipe:
    """A stage's recipe with the plan's steps."""
    given = recipe_for(name, "shapes")
    engine = replace(
        given.engine, steps=plan.steps[name], seed=plan.seed, precision=plan.precision[name]
    )
    recipe = scale_events(name, given._replace(engine=engine), given)
    if name == "dalle":
        return recipe._replace(training=replace(given.training, pool=plan.pool))
    return recipe
