"""The recipes of VQGAN's second stage, and from one of them to a task. Read
`minimodal/vqgan_prior.py` before.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from minimodal.blocks.painter import Painter
from minimodal.runs import load, rebuild
from minimodal.training.contract import Recipe, System, TrainConfig
from minimodal.training.opening import encode_data
from minimodal.training.tasks.vqgan_prior import VQGANPriorTask, VQGANPriorTraining
from minimodal.vqgan_prior import VQGANPrior, VQGANPriorConfig


def vqgan_prior_shapes() -> Recipe:
    """The Shapes world without its captions; ten minutes in float32, five in bfloat16."""
    return Recipe(
        VQGANPriorConfig(width=128, depth=4, heads=4),
        VQGANPriorTraining(pool=24_576),
        TrainConfig(steps=2400, batch_size=32, lr=2e-3, warmup=100, ema_decay=0.995),
    )


def vqgan_prior_small() -> Recipe:
    """CIFAR-sized pictures with classes."""
    recipe = vqgan_prior_shapes()
    return Recipe(
        replace(recipe.model, width=192, heads=6),
        VQGANPriorTraining(flip=True, guidance=2.0),
        TrainConfig(
            steps=4000, batch_size=32, lr=1e-3, warmup=200, weight_decay=0.1, ema_decay=0.999
        ),
    )


def build(recipe: Recipe, spec: str, runs: dict[str, Path], device: str = "cpu") -> VQGANPriorTask:
    """The prior on a SPEC and the codes of a trained VQGAN; the classes come from the data."""
    encoded = encode_data(recipe, spec, runs["vqgan"], device)
    names = encoded.train.class_names if recipe.training.labels else None
    model = replace(
        recipe.model,
        grid=encoded.vqgan.config.grid,
        codes=encoded.vqgan.quantizer.size,
        classes=len(names or []),
    )
    return VQGANPriorTask(recipe._replace(model=model), encoded)


def restore(stored: dict[str, Any], path: Path) -> VQGANPrior:
    """The model of a run, with its VQGAN."""
    model = VQGANPrior(rebuild(VQGANPriorConfig, stored))
    model.class_names = stored["class_names"]
    model.painter = Painter(load(path / "vqgan", kind="vqgan"))
    return model


SYSTEM = System(
    about="pictures from nothing or from classes",
    recipes={
        "shapes": vqgan_prior_shapes,
        "hard": vqgan_prior_shapes,
        "": vqgan_prior_small,
    },
    build=build,
    restore=restore,
    needs=("vqgan",),
    decided=("grid", "codes", "classes", "shared_rows", "sos"),
)
