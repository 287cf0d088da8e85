"""Named configurations, as functions: what `train.py` uses where no flag says otherwise.

A recipe is three frozen dataclasses: the model's shape, what its training has of its own, and the
engine's settings. There is one for the Shapes world, one for small pictures with class names
(CIFAR) and one for captioned photographs, each derived from the one before. Read the docstrings
for what a recipe needs; the README has the scores that each has reached.
"""

from dataclasses import replace
from typing import NamedTuple

from minimodal.clip import CLIPConfig
from minimodal.dalle import DALLEConfig
from minimodal.training.contract import TrainConfig
from minimodal.training.tasks import (
    CLIPTraining,
    DALLETraining,
    VQGANPriorTraining,
    VQGANTraining,
)
from minimodal.vqgan import VQGANConfig
from minimodal.vqgan_prior import VQGANPriorConfig


class VQGANRecipe(NamedTuple):
    """All of a VQGAN's settings."""

    model: VQGANConfig
    training: VQGANTraining
    engine: TrainConfig


class CLIPRecipe(NamedTuple):
    """All of a CLIP's settings; the vocabulary and the caption length come from the captions."""

    model: CLIPConfig
    training: CLIPTraining
    engine: TrainConfig


class DALLERecipe(NamedTuple):
    """All of a DALL·E's settings; the codes come from the VQGAN, the rest from the captions."""

    model: DALLEConfig
    training: DALLETraining
    engine: TrainConfig


class VQGANPriorRecipe(NamedTuple):
    """All of a prior's settings; codes and grid come from the VQGAN, classes from the data."""

    model: VQGANPriorConfig
    training: VQGANPriorTraining
    engine: TrainConfig


Recipe = VQGANRecipe | CLIPRecipe | DALLERecipe | VQGANPriorRecipe

# --- VQGAN ---------------------------------------------------------------------------------------


def vqgan_shapes() -> VQGANRecipe:
    """The Shapes world at 32 pixels, f = 4, structure and appearance codebooks.

    Seventy seconds of one core in float32, sixty-five in bfloat16. Muon is what makes it short:
    after 1,000 steps of 16 pictures the oracle reads 100 % of them again, with AdamW 69 %.
    """
    return VQGANRecipe(
        VQGANConfig(
            patch=4,
            channels=96,
            multipliers=(1,),
            depth=1,
            encoder_kernel=1,
            decoder_kernel=1,
            codes=(64, 40),
            code_width=16,
            codebook_decay=0.98,
        ),
        VQGANTraining(
            warm_start=330,
            discriminator_start=1670,
            gan_start=1810,
            gan_ramp=80,
        ),
        TrainConfig(
            steps=2000,
            batch_size=8,
            optimizer="muon",
            lr=2e-3,
            ema_decay=0.99,
            checkpoint_every=1000,
        ),
    )


def vqgan_hard() -> VQGANRecipe:
    """The hard Shapes world: more structures (centres on any pixel) and more pairs of colours; nine
    minutes of one core."""
    recipe = vqgan_shapes()
    return recipe._replace(
        model=replace(recipe.model, codes=(1024, 256)),
        engine=replace(recipe.engine, optimizer="adamw", lr=4e-3, batch_size=16, steps=9600),
        training=replace(
            recipe.training, warm_start=1600, discriminator_start=8000, gan_start=8700,
            gan_ramp=400,
        ),
    )  # fmt: skip


def vqgan_small() -> VQGANRecipe:
    """CIFAR-sized pictures, f = 4, one codebook of 1024; ten minutes on two cores."""
    return VQGANRecipe(
        VQGANConfig(patch=2, channels=64, multipliers=(1, 2), codes=(1024,), code_width=32),
        VQGANTraining(
            warm_start=500, discriminator_start=4000, gan_start=5000, gan_ramp=1000, flip=True
        ),
        TrainConfig(steps=6000, batch_size=16, lr=1e-3, ema_decay=0.999),
    )


def vqgan_photos() -> VQGANRecipe:
    """Photographs at 64 pixels, f = 8 (64 codes a picture); ten minutes of two cores."""
    recipe = vqgan_small()
    return recipe._replace(
        model=replace(recipe.model, image_size=64, patch=2, channels=48, multipliers=(1, 2, 2)),
        training=replace(
            recipe.training, warm_start=150, discriminator_start=1500, gan_start=2000, gan_ramp=500
        ),
        engine=replace(recipe.engine, steps=3000, ema_decay=0.99),
    )


# --- CLIP ----------------------------------------------------------------------------------------


def clip_shapes() -> CLIPRecipe:
    """The Shapes world; half of a batch are scenes that differ in one exchange (hard negatives).

    Ten and a half minutes of one core in float32, seven in bfloat16. Without the stem shapes are
    told apart too late; without the loss on differences 1,500 steps find 95 % of the captions
    instead of 99.
    """
    return CLIPRecipe(
        CLIPConfig(
            patch_size=8,
            stem=(32, 64, 128),
            vision_width=128,
            vision_depth=3,
            vision_heads=4,
            text_width=128,
            text_depth=3,
            text_heads=4,
            embed_width=128,
        ),
        CLIPTraining(vocab=512, difference_weight=1.0),
        TrainConfig(
            steps=3000,
            batch_size=64,
            optimizer="muon",
            lr=6e-4,
            warmup=100,
            ema_decay=0.99,
            checkpoint_every=500,
        ),
    )


def clip_small() -> CLIPRecipe:
    """CIFAR-sized pictures with class captions; ten minutes of one core.

    Residual blocks from the full size on (they see what a patch of 8 pixels blurs: 82 % instead
    of 70 % zero-shot in the same time), one block of attention behind them, and a small text
    tower for a few captions. With ten classes most captions of a batch are right for several
    pictures, hence `same_class`.
    """
    recipe = clip_shapes()
    return CLIPRecipe(
        replace(
            recipe.model,
            stem=(32, 64, 128),
            stem_depth=1,
            vision_depth=1,
            text_width=64,
            text_depth=1,
            text_heads=2,
        ),  # fmt: skip
        CLIPTraining(flip=True, shift=2, same_class=True),
        replace(recipe.engine, steps=6000, lr=1e-3, warmup=200, weight_decay=0.1, ema_decay=0.995),
    )


def clip_photos() -> CLIPRecipe:
    """Captioned photographs at 64 pixels; not mirrored, since captions speak of left and right."""
    recipe = clip_small()
    return recipe._replace(
        model=replace(
            recipe.model,
            image_size=64,
            stem=(48, 96, 192),
            stem_depth=0,
            vision_depth=3,
            text_width=128,
            text_depth=2,
            text_heads=4,
        ),  # fmt: skip
        training=CLIPTraining(vocab=4096, shift=4),
    )


# --- DALL·E --------------------------------------------------------------------------------------


def dalle_shapes() -> DALLERecipe:
    """The Shapes world: 16 caption and 64 picture tokens.

    Ten minutes of one core in float32, six in bfloat16. Three layers instead of four leave time for
    a third more steps: 90 % of seen captions right instead of 63 % in the same three minutes.
    """
    return DALLERecipe(
        DALLEConfig(width=128, depth=3, heads=4),
        DALLETraining(vocab=512, pool=24_576, temperature=0.25, guidance=1.25),
        TrainConfig(
            steps=3000,
            batch_size=32,
            optimizer="muon",
            lr=8e-4,
            warmup=100,
            ema_decay=0.99,
            checkpoint_every=1000,
        ),
    )


def dalle_hard() -> DALLERecipe:
    """The hard Shapes world: 16 caption tokens, a larger model; half an hour of one core."""
    recipe = dalle_shapes()
    return recipe._replace(
        model=replace(recipe.model, width=192, depth=4, heads=6),
        # Textured grounds want warmer draws than flat ones.
        training=replace(recipe.training, pool=65_536, temperature=0.8, guidance=1.5),
        engine=replace(recipe.engine, optimizer="adamw", lr=1e-3, ema_decay=0.995, steps=9600),
    )


def dalle_edits() -> DALLERecipe:
    """Edits in the Shapes world: a caption and 128 codes of two pictures; a quarter of an
    hour of one core.

    Rotary positions, since most codes of the second picture are those of the first, a fixed number
    of rows above.
    """
    recipe = dalle_shapes()
    return recipe._replace(
        model=replace(recipe.model, depth=4, rotary=True),
        training=replace(recipe.training, temperature=0.5, guidance=1.0),
        engine=replace(recipe.engine, optimizer="adamw", lr=2e-3, ema_decay=0.995, steps=2400),
    )


def dalle_small() -> DALLERecipe:
    """CIFAR-sized pictures with class captions."""
    recipe = dalle_shapes()
    return DALLERecipe(
        replace(recipe.model, width=192, depth=4, heads=6),
        DALLETraining(flip=True, temperature=0.9, guidance=3.0),
        TrainConfig(
            steps=4000, batch_size=32, lr=1e-3, warmup=200, weight_decay=0.1, ema_decay=0.999
        ),
    )


def dalle_photos() -> DALLERecipe:
    """Captioned photographs."""
    return dalle_small()._replace(training=DALLETraining(vocab=4096, guidance=2.0))


# --- VQGAN's prior -------------------------------------------------------------------------------


def vqgan_prior_shapes() -> VQGANPriorRecipe:
    """The Shapes world without its captions."""
    return VQGANPriorRecipe(
        VQGANPriorConfig(width=128, depth=4, heads=4),
        VQGANPriorTraining(pool=24_576),
        TrainConfig(steps=2400, batch_size=32, lr=2e-3, warmup=100, ema_decay=0.995),
    )


def vqgan_prior_small() -> VQGANPriorRecipe:
    """CIFAR-sized pictures with classes."""
    recipe = vqgan_prior_shapes()
    return VQGANPriorRecipe(
        replace(recipe.model, width=192, heads=6),
        VQGANPriorTraining(flip=True, guidance=2.0),
        TrainConfig(
            steps=4000, batch_size=32, lr=1e-3, warmup=200, weight_decay=0.1, ema_decay=0.999
        ),
    )


# --- choosing ------------------------------------------------------------------------------------


EVENTS = ("warm_start", "gumbel_steps", "discriminator_start", "gan_start", "gan_ramp")


def scale_events(recipe: VQGANRecipe, given: VQGANRecipe) -> VQGANRecipe:
    """A VQGAN recipe with other steps than the `given` one: its events keep their places in it.

    Events that differ from the given ones were chosen by someone, and stay.
    """
    share = recipe.engine.steps / given.engine.steps
    moved = {}
    for event in EVENTS:
        before, now = getattr(given.training, event), getattr(recipe.training, event)
        moved[event] = max(1, round(before * share)) if now == before else now
    return recipe._replace(training=replace(recipe.training, **moved))


# By the kind of data in a SPEC: shapes, small pictures with classes, or captioned photographs.
VQGAN_RECIPES = {
    "shapes": vqgan_shapes,
    "hard": vqgan_hard,
    "cifar10": vqgan_small,
    "cifar100": vqgan_small,
}
CLIP_RECIPES = {
    "shapes": clip_shapes,
    "hard": clip_shapes,
    "cifar10": clip_small,
    "cifar100": clip_small,
}
DALLE_RECIPES = {
    "shapes": dalle_shapes,
    "hard": dalle_hard,
    "edits": dalle_edits,
    "cifar10": dalle_small,
    "cifar100": dalle_small,
}
PRIOR_RECIPES = {"shapes": vqgan_prior_shapes, "hard": vqgan_prior_shapes}


def recipe_for(system: str, data: str) -> Recipe:
    """The recipe of a system ("vqgan", "clip", …) for a kind of data ("cifar10", "hard", …)."""
    if system == "vqgan":
        return VQGAN_RECIPES.get(data, vqgan_photos)()
    if system == "clip":
        return CLIP_RECIPES.get(data, clip_photos)()
    if system == "vqgan-prior":
        return PRIOR_RECIPES.get(data, vqgan_prior_small)()
    return DALLE_RECIPES.get(data, dalle_photos)()
