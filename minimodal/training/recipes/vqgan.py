"""VQGAN's recipes, and from one of them to a task. Read `minimodal/vqgan.py` before."""

from dataclasses import replace
from pathlib import Path

from minimodal.runs import rebuild
from minimodal.training.contract import Recipe, System, TrainConfig
from minimodal.training.opening import open_both, open_perceptual
from minimodal.training.tasks.vqgan import VQGANTask, VQGANTraining
from minimodal.vqgan import VQGAN, VQGANConfig


def vqgan_shapes() -> Recipe:
    """The Shapes world at 32 pixels, f = 4, structure and appearance codebooks.

    Seventy seconds of one core in float32, sixty-five in bfloat16. Muon is what makes it short:
    after 1,000 steps of 16 pictures the oracle reads 100 % of them again, with AdamW 69 %.
    """
    return Recipe(
        VQGANConfig(
            patch=4, channels=96, multipliers=(1,), depth=1, encoder_kernel=1, decoder_kernel=1,
            codes=(64, 40), code_width=16, codebook_decay=0.98,
        ),
        VQGANTraining(
            warm_start=330, discriminator_start=1670, gan_start=1810, gan_ramp=80,
        ),
        TrainConfig(
            steps=2000, batch_size=8, optimizer="muon", lr=2e-3, ema_decay=0.99,
            checkpoint_every=1000,
        ),
    )  # fmt: skip


def vqgan_hard() -> Recipe:
    """The hard Shapes world: more structures (centres on any pixel) and more pairs of colours; nine
    minutes in float32, six in bfloat16."""
    recipe = vqgan_shapes()
    return recipe._replace(
        model=replace(recipe.model, codes=(1024, 256)),
        engine=replace(recipe.engine, optimizer="adamw", lr=4e-3, batch_size=16, steps=9600),
        training=replace(
            recipe.training, warm_start=1600, discriminator_start=8000, gan_start=8700,
            gan_ramp=400,
        ),
    )  # fmt: skip


def vqgan_small() -> Recipe:
    """CIFAR-sized pictures, f = 4, one codebook of 1024; 22 minutes in float32, 12 in bfloat16."""
    return Recipe(
        VQGANConfig(patch=2, channels=64, multipliers=(1, 2), codes=(1024,), code_width=32),
        VQGANTraining(
            warm_start=500, discriminator_start=4000, gan_start=5000, gan_ramp=1000, flip=True
        ),
        TrainConfig(steps=6000, batch_size=16, lr=1e-3, ema_decay=0.999),
    )


def vqgan_photos() -> Recipe:
    """Photographs at 64 pixels, f = 8 (64 codes a picture); 26 minutes in float32, 14 in
    bfloat16."""
    recipe = vqgan_small()
    return recipe._replace(
        model=replace(recipe.model, image_size=64, patch=2, channels=48, multipliers=(1, 2, 2)),
        training=replace(
            recipe.training, warm_start=150, discriminator_start=1500, gan_start=2000, gan_ramp=500
        ),
        engine=replace(recipe.engine, steps=3000, ema_decay=0.99),
    )


def build(
    recipe: Recipe, spec: str, runs: dict[str, Path] | None = None, device: str = "cpu"
) -> VQGANTask:
    """VQGAN on a SPEC."""
    train, val = open_both(spec, recipe.model.image_size, recipe.engine.limit)
    return VQGANTask(recipe, train, val, perceptual=open_perceptual(recipe.training))


SYSTEM = System(
    about="pictures as grids of codes",
    recipes={
        "shapes": vqgan_shapes,
        "hard": vqgan_hard,
        "cifar10": vqgan_small,
        "cifar100": vqgan_small,
        "": vqgan_photos,
    },
    build=build,
    restore=lambda stored, path: VQGAN(rebuild(VQGANConfig, stored)),
    events=("warm_start", "gumbel_steps", "discriminator_start", "gan_start", "gan_ramp"),
)
