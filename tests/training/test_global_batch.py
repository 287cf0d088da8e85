"""CLIP's gradient is that of the global batch, however the batch is divided.

Over 2 and 4 processes, over micro-batches, over both: for the encoders and for the temperature.
"""

from dataclasses import replace

import pytest
import torch
from helpers import systems
from helpers.marks import at_once
from helpers.processes import together

from minimodal.training import distributed
from minimodal.training.engine import train_step
from minimodal.training.prepare import build, micro_rows, wrap
from minimodal.training.recipes import clip, recipe_for

SETTINGS = {
    "softmax": {},
    "blocked": {"loss_rows": 3},
    "sigmoid": {"loss": "sigmoid"},
}


def gradients(name: str, *, accumulate: int = 1) -> dict[str, torch.Tensor]:
    """What one step of the engine gives the optimiser, and the loss that it reports."""
    engine = replace(systems.ENGINE, batch_size=16, accumulate=accumulate, clip_norm=0.0)
    recipe = recipe_for("clip", "shapes")
    training = replace(recipe.training, difference_weight=0.0, **SETTINGS[name])
    model = replace(
        recipe.model, stem=(8,), vision_width=16, vision_depth=1, vision_heads=2, text_width=16,
        text_depth=1, text_heads=2, embed_width=16,
    )  # fmt: skip
    here = distributed.start("cpu")
    task = clip.build(recipe._replace(model=model, training=training, engine=engine), "shapes:400")
    run = build(task, engine, here=here)
    wrap(run)
    found = {}

    def step() -> None:
        for parameter, value in task.model.named_parameters():
            found[parameter] = value.grad.clone()

    run.phases[0].optimizer.step = step
    metrics = train_step(run, [task.batch(0, rows) for rows in micro_rows(engine, here)], lr=0.0)
    found["loss"] = distributed.mean_over_ranks(metrics["loss"])
    return found


SCRIPT = """
import sys, torch, test_global_batch
from minimodal.training import distributed
found = {(name, k): test_global_batch.gradients(name, accumulate=k)
         for name in test_global_batch.SETTINGS for k in (1, 2)}
if distributed.start("cpu").main:
    torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, torch.Tensor]]:
    """The gradients of one process and one batch."""
    return {name: gradients(name) for name in SETTINGS}


@pytest.fixture(scope="module", params=at_once([2, 4], 2))
def spread(request, tmp_path_factory) -> dict:
    """Those of several processes, by setting and number of micro-batches."""
    out = tmp_path_factory.mktemp("spread") / "gradients.pt"
    together(["-c", SCRIPT, str(out)], ranks=request.param)
    return torch.load(out, weights_only=True)


def check(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal to a millionth: the encoders' gradients as one vector, the temperature's, the loss."""
    scalars = [name for name in wanted if name.startswith("log")] + ["loss"]
    inner = [name for name in wanted if name not in scalars]
    for names in (inner, *([name] for name in scalars)):
        a, b = (torch.cat([g[name].double().flatten() for name in names]) for g in (found, wanted))
        assert b.norm() > 1e-3  # there is something to be equal to
        assert (a - b).norm() < 1e-6 * b.norm(), names[0]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("chunks", [2, 4])
def test_chunks_give_the_gradient_of_one_batch(whole, name, chunks):
    check(gradients(name, accumulate=chunks), whole[name])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_give_the_gradient_of_one(whole, spread, name, accumulate):
    check(spread[name, accumulate], whole[name])
