"""The systems: what `train.py` can train, with the settings that it uses where no flag says
otherwise.

One file a system. A recipe is a function that returns three frozen dataclasses: the model's shape,
what its training has of its own, and the engine's settings. Each file has one for the Shapes world
and ones for small pictures with class names (CIFAR) and captioned photographs, derived from it.
Their docstrings say what a recipe needs; docs/results.md has the scores that each has reached.

CONTRIBUTING.md shows what a further system takes: a module, a file here, a line in SYSTEMS.

Minutes are those of one core of an AMD EPYC (Zen 4), by the process's own clock beside other work:
in float32 as on a CPU with AVX2 only, in bfloat16 with AVX-512.
"""

from dataclasses import replace

from minimodal.training.contract import Recipe, System
from minimodal.training.recipes import clip, dalle, decoder, prior, upsampler, vqgan, vqgan_prior

SYSTEMS: dict[str, System] = {
    "vqgan": vqgan.SYSTEM,
    "clip": clip.SYSTEM,
    "vqgan-prior": vqgan_prior.SYSTEM,
    "dalle": dalle.SYSTEM,
    "prior": prior.SYSTEM,
    "decoder": decoder.SYSTEM,
    "upsampler": upsampler.SYSTEM,
}


def recipe_for(system: str, data: str) -> Recipe:
    """The recipe of a system ("vqgan", "clip", …) for a kind of data ("cifar10", "hard", …)."""
    recipes = SYSTEMS[system].recipes
    return recipes.get(data, recipes[""])()


def scale_events(system: str, recipe: Recipe, given: Recipe) -> Recipe:
    """A system's recipe with other steps than the `given` one: its events keep their places in it.

    Events that differ from the given ones were chosen by someone, and stay.
    """
    share = recipe.engine.steps / given.engine.steps
    moved = {}
    for event in SYSTEMS[system].events:
        before, now = getattr(given.training, event), getattr(recipe.training, event)
        moved[event] = max(1, round(before * share)) if now == before else now
    return recipe._replace(training=replace(recipe.training, **moved))
