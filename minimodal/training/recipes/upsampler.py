"""The recipes of unCLIP's up-sampler, and from one of them to a task.

Read `minimodal/unclip/upsampler.py` before.
"""

from pathlib import Path

from minimodal.runs import rebuild
from minimodal.training.contract import Recipe, System, TrainConfig
from minimodal.training.opening import open_both
from minimodal.training.tasks.upsampler import UpsamplerTask, UpsamplerTraining
from minimodal.unclip.upsampler import Upsampler, UpsamplerConfig


def upsampler_shapes() -> Recipe:
    """From 32 to 64 pixels; six minutes in float32, three and a half in bfloat16."""
    return Recipe(
        UpsamplerConfig(),
        UpsamplerTraining(),
        TrainConfig(
            steps=1000, batch_size=16, optimizer="muon", lr=8e-4, warmup=50, ema_decay=0.99
        ),
    )


def upsampler_photos() -> Recipe:
    """Pictures that may be mirrored."""
    return upsampler_shapes()._replace(training=UpsamplerTraining(flip=True))


def build(recipe: Recipe, spec: str, runs: dict[str, Path], device: str = "cpu") -> UpsamplerTask:
    """An up-sampler on a SPEC."""
    return UpsamplerTask(recipe, *open_both(spec, recipe.model.image_size, recipe.engine.limit))


SYSTEM = System(
    about="unCLIP: larger pictures from small ones",
    recipes={"shapes": upsampler_shapes, "": upsampler_photos},
    build=build,
    restore=lambda stored, path: Upsampler(rebuild(UpsamplerConfig, stored)),
)
