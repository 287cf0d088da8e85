"""The recipes of unCLIP's decoder, and from one of them to a task.

Read `minimodal/unclip/decoder.py` before.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from minimodal.errors import UserError
from minimodal.runs import rebuild
from minimodal.training.contract import Recipe, System, TrainConfig
from minimodal.training.opening import embed_data, encode_data, open_both
from minimodal.training.tasks.decoder import DecoderTask, DecoderTraining
from minimodal.unclip.decoder import Decoder, DecoderConfig


def decoder_shapes() -> Recipe:
    """The Shapes world, in pixels; 42 minutes in float32, 25 in bfloat16."""
    return Recipe(
        DecoderConfig(depth=1, time_mean=0.8),
        DecoderTraining(pool=24_576, guidance=1.5),
        TrainConfig(
            steps=5200, batch_size=32, optimizer="muon", lr=6e-4, warmup=100, ema_decay=0.995,
            checkpoint_every=1000,
        ),
    )  # fmt: skip


def on_codes(vqgan: Path) -> Recipe:
    """The Shapes world, as the code vectors of a VQGAN: a flat network over its 8 x 8 codes; 43
    minutes in float32, 24 in bfloat16."""
    recipe = decoder_shapes()
    return recipe._replace(
        model=replace(recipe.model, patch=4, channels=96, multipliers=(1,), depth=2),
        # Of three samplers and six guidances these draw two objects best (docs/unclip.md).
        training=replace(recipe.training, vqgan=str(vqgan), guidance=3.0, sampler="ddpm"),
        engine=replace(recipe.engine, steps=5600),
    )


def decoder_small() -> Recipe:
    """CIFAR-sized pictures with class captions."""
    recipe = decoder_shapes()
    return recipe._replace(training=DecoderTraining(flip=True, guidance=3.0))


def build(recipe: Recipe, spec: str, runs: dict[str, Path], device: str = "cpu") -> DecoderTask:
    """A decoder on a SPEC and the embeddings of a trained CLIP; on the codes of a VQGAN where the
    training names one."""
    training, encoded = recipe.training, None
    size = recipe.model.image_size
    if training.vqgan:
        encoded = encode_data(recipe, spec, Path(training.vqgan), device, captions=True)
        config = encoded.vqgan.config
        size = config.image_size
        recipe = recipe._replace(
            model=replace(recipe.model, image_size=size, latent=config.latent, grid=config.grid)
        )
    # What is told is CLIP's reading of whole pictures, as a prior learns it; drawn may be smaller.
    embedded = embed_data(recipe, spec, runs["clip"], device)
    source = encoded or embedded
    pictures = (source.train, source.val)
    if source.train.image_size != size:
        pictures = open_both(spec, size, recipe.engine.limit)
    if encoded is not None and len(encoded.codes) != len(embedded.embeddings):
        raise UserError(f"{len(encoded.codes)} codes for {len(embedded.embeddings)} embeddings")
    clip = embedded.clip.config
    model = replace(recipe.model, embed_width=clip.embed_width, word_width=clip.text_width)
    return DecoderTask(recipe._replace(model=model), embedded, pictures, encoded)


def restore(stored: dict[str, Any], path: Path) -> Decoder:
    """The model of a run; its CLIP, and its VQGAN if it has one, lie beside it."""
    return Decoder(rebuild(DecoderConfig, stored))


SYSTEM = System(
    about="unCLIP: pictures from CLIP's image embeddings",
    recipes={"shapes": decoder_shapes, "cifar10": decoder_small, "": decoder_small},
    build=build,
    restore=restore,
    needs=("clip",),
    decided=("embed_width", "word_width", "latent", "grid"),
)
