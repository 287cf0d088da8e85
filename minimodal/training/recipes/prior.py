"""The recipes of unCLIP's priors, and from one of them to a task.

Read `minimodal/unclip/prior.py` before.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from minimodal.runs import rebuild
from minimodal.training.contract import Recipe, System, TrainConfig
from minimodal.training.opening import embed_data
from minimodal.training.tasks.prior import PriorTask, PriorTraining
from minimodal.unclip.prior import DiffusionPrior, PriorConfig
from minimodal.unclip.prior_autoregressive import AutoregressivePrior, enough_components


def prior_shapes() -> Recipe:
    """The Shapes world; six minutes in float32, four in bfloat16."""
    return Recipe(
        PriorConfig(time_mean=0.8, guidance=2.0),
        PriorTraining(pool=24_576),
        TrainConfig(
            steps=1500, batch_size=64, optimizer="muon", lr=8e-4, warmup=100, ema_decay=0.99
        ),
    )


def prior_photos() -> Recipe:
    """Photographs, or small pictures with class captions."""
    return prior_shapes()._replace(training=PriorTraining(flip=True))


def build(recipe: Recipe, spec: str, runs: dict[str, Path], device: str = "cpu") -> PriorTask:
    """A prior on a SPEC and the embeddings of a trained CLIP."""
    embedded = embed_data(recipe, spec, runs["clip"], device)
    clip, components = embedded.clip.config, 0
    if recipe.model.kind == "autoregressive":
        components = enough_components(embedded.embeddings)
    model = replace(
        recipe.model,
        vocab_size=clip.vocab_size,
        text_length=clip.text_length,
        embed_width=clip.embed_width,
        components=components,
    )
    return PriorTask(recipe._replace(model=model), embedded)


def restore(stored: dict[str, Any], path: Path) -> DiffusionPrior | AutoregressivePrior:
    """The model of a run; its CLIP lies beside it."""
    config = rebuild(PriorConfig, stored)
    return (DiffusionPrior if config.kind == "diffusion" else AutoregressivePrior)(config)


SYSTEM = System(
    about="unCLIP: CLIP's image embeddings from captions",
    recipes={"shapes": prior_shapes, "": prior_photos},
    build=build,
    restore=restore,
    needs=("clip",),
    decided=("vocab_size", "text_length", "embed_width", "components"),
)
