"""The real tasks at toy size on the Shapes world, and a script that trains one.

`python systems.py KIND OUT [STEPS] [--resume]` trains vqgan, vqgan-gradient (or another of its
quantizers), vqgan-prior, clip or dalle; two of them make a VQGAN run of their own beside OUT. With
the engine's own settings but for the sizes.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minimodal.training import probe
from minimodal.training.contract import Task, TrainConfig
from minimodal.training.engine import run
from minimodal.training.recipes import SYSTEMS, clip, dalle, decoder, recipe_for, vqgan, vqgan_prior
from minimodal.training.recipes.decoder import on_codes
from minimodal.training.tasks import codes, embeddings, unseen

probe.PEAK_SECONDS = 0.01  # the tests do not look at the peak
for module in (unseen, codes, embeddings):
    module.EVALUATION_PICTURES = 32  # nor at how many pictures a score is of

ENGINE = TrainConfig(
    steps=12, batch_size=8, lr=1e-3, warmup=2, ema_decay=0.9, precision="float32",
    log_every=3, checkpoint_every=3,
)  # fmt: skip


def make_vqgan(engine: TrainConfig = ENGINE, *, codes: tuple[int, ...] = (8, 8)) -> Task:
    """Warm start, k-means, discriminator and its ramp all happen within ten steps."""
    recipe = recipe_for("vqgan", "shapes")
    model = replace(recipe.model, channels=16, codes=codes, code_width=8)
    training = replace(
        recipe.training, warm_start=3, discriminator_start=4, gan_start=6, gan_ramp=3,
        discriminator_channels=8,
    )  # fmt: skip
    recipe = recipe._replace(model=model, training=training, engine=engine)
    return vqgan.build(recipe, "shapes:400")


def make_plain_vqgan(engine: TrainConfig = ENGINE, *, quantizer: str) -> Task:
    """A VQGAN with another quantizer. With groups of one channel the norms would leave the biases
    before them without a gradient but for rounding, which Adam turns into steps."""
    recipe = recipe_for("vqgan", "cifar10")
    model = replace(
        recipe.model, patch=4, channels=24, multipliers=(1,), quantizer=quantizer, code_width=8,
        codes=(12,),
    )  # fmt: skip
    training = replace(
        recipe.training, warm_start=3, discriminator_start=4, gan_start=6, gan_ramp=3,
        discriminator_channels=8,
    )  # fmt: skip
    recipe = recipe._replace(model=model, training=training, engine=engine)
    return vqgan.build(recipe, "shapes:400")


def make_clip(engine: TrainConfig = ENGINE) -> Task:
    """A CLIP of one layer a tower."""
    recipe = recipe_for("clip", "shapes")
    model = replace(
        recipe.model, stem=(8,), vision_width=16, vision_depth=1, vision_heads=2, text_width=16,
        text_depth=1, text_heads=2, embed_width=16,
    )  # fmt: skip
    return clip.build(recipe._replace(model=model, engine=engine), "shapes:400")


def short(kind: str, make: Callable[[TrainConfig], Task], out: Path, *, steps: int) -> Path:
    """A run of a few steps beside a run that needs it."""
    beside = out.parent / f"{out.name}-{kind}"
    if not (beside / "model.safetensors").exists():
        engine = replace(ENGINE, steps=steps)
        run(make(engine), engine, beside, data_spec="shapes:400", device="cpu")
    return beside


def short_vqgan(out: Path) -> Path:
    """A VQGAN run of five steps beside a run."""
    return short("vqgan", make_vqgan, out, steps=5)


def make_vqgan_prior(out: Path, engine: TrainConfig = ENGINE) -> Task:
    """A prior of one layer on the codes of a VQGAN trained for five steps."""
    recipe = recipe_for("vqgan-prior", "shapes")
    model = replace(recipe.model, width=16, depth=1, heads=2)
    recipe = recipe._replace(model=model, engine=engine)
    return vqgan_prior.build(recipe, "shapes:400", {"vqgan": short_vqgan(out)})


def make_dalle(out: Path, engine: TrainConfig = ENGINE) -> Task:
    """A DALL·E of one layer on the codes of a VQGAN trained for five steps."""
    recipe = recipe_for("dalle", "shapes")
    model = replace(recipe.model, width=16, depth=1, heads=2)
    recipe = recipe._replace(model=model, engine=engine)
    return dalle.build(recipe, "shapes:400", {"vqgan": short_vqgan(out)})


def short_clip(out: Path) -> Path:
    """A CLIP run of two steps beside a run."""
    return short("clip", make_clip, out, steps=2)


def make_unclip(kind: str, out: Path, engine: TrainConfig = ENGINE, **sizes: Any) -> Task:
    """unCLIP's prior, decoder or up-sampler, on the embeddings of a CLIP trained for two steps."""
    recipe = recipe_for(kind, "shapes")
    recipe = recipe._replace(model=replace(recipe.model, **sizes), engine=engine)
    runs = {need: short_clip(out) for need in SYSTEMS[kind].needs}
    return SYSTEMS[kind].build(recipe, "shapes:400", runs, "cpu")


def make_latent_decoder(out: Path, engine: TrainConfig = ENGINE) -> Task:
    """A decoder of the code vectors of a VQGAN trained for five steps."""
    recipe = on_codes(short_vqgan(out))
    recipe = recipe._replace(model=replace(recipe.model, channels=8, depth=1), engine=engine)
    return decoder.build(recipe, "shapes:400", {"clip": short_clip(out)})


# One line a system, for the tests that look at all of them: of a run folder and the engine's
# settings the task at toy size.
TINY: dict[str, Callable[[Path, TrainConfig], Task]] = {
    "vqgan": lambda out, engine: make_vqgan(engine),
    "clip": lambda out, engine: make_clip(engine),
    "vqgan-prior": make_vqgan_prior,
    "dalle": make_dalle,
    "prior": lambda out, engine: make_unclip("prior", out, engine, width=16, depth=1, heads=2),
    # Of 8 channels each would be a group of its own: its norm takes away the bias before it, whose
    # gradient is then rounding, which Adam turns into steps.
    "decoder": lambda out, engine: make_unclip("decoder", out, engine, channels=12),
    "upsampler": lambda out, engine: make_unclip("upsampler", out, engine, channels=12),
}


def make(kind: str, out: Path, engine: TrainConfig = ENGINE) -> Task:
    """One of them, to be trained into a run folder."""
    if kind in TINY:
        return TINY[kind](out, engine)
    return make_plain_vqgan(engine, quantizer=kind.removeprefix("vqgan-"))


def train(kind: str, out: Path, engine: TrainConfig = ENGINE, *, resume: bool = False) -> None:
    """Train one of them into a run folder."""
    task = make(kind, out, engine)
    run(task, engine, out, data_spec="shapes:400", resume=resume, device="cpu")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--resume"]
    settings = replace(ENGINE, steps=int(words[2])) if len(words) > 2 else ENGINE
    train(words[0], Path(words[1]), settings, resume="--resume" in sys.argv)
