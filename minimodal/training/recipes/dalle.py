"""DALL·E's recipes, and from one of them to a task. Read `minimodal/dalle.py` before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from minimodal.blocks.painter import Painter
from minimodal.dalle import DALLE, DALLEConfig
from minimodal.data.tokenizer import Tokenizer
from minimodal.data.words import KnownWords
from minimodal.runs import load, rebuild
from minimodal.training.captions import captions_of, learn_words
from minimodal.training.contract import Recipe, System, TrainConfig
from minimodal.training.opening import encode_data
from minimodal.training.tasks.codes import Encoded
from minimodal.training.tasks.dalle import DALLETask, DALLETraining


def dalle_shapes() -> Recipe:
    """The Shapes world: 16 caption and 64 picture tokens.

    Ten minutes of one core in float32, six in bfloat16. Three layers instead of four leave time for
    a third more steps: 90 % of seen captions right instead of 63 % in the same three minutes.
    """
    return Recipe(
        DALLEConfig(width=128, depth=3, heads=4),
        DALLETraining(vocab=512, pool=24_576, temperature=0.25, guidance=1.25),
        TrainConfig(
            steps=3000, batch_size=32, optimizer="muon", lr=8e-4, warmup=100, ema_decay=0.99,
            checkpoint_every=1000,
        ),
    )  # fmt: skip


def dalle_hard() -> Recipe:
    """The hard Shapes world: 16 caption tokens, a larger model; 82 minutes in float32, 48 in
    bfloat16."""
    recipe = dalle_shapes()
    return recipe._replace(
        model=replace(recipe.model, width=192, depth=4, heads=6),
        # Textured grounds want warmer draws than flat ones.
        training=replace(recipe.training, pool=65_536, temperature=0.8, guidance=1.5),
        engine=replace(recipe.engine, optimizer="adamw", lr=1e-3, ema_decay=0.995, steps=9600),
    )


def dalle_edits() -> Recipe:
    """Edits in the Shapes world: a caption and 128 codes of two pictures; 20 minutes in float32,
    12 in bfloat16.

    Rotary positions, since most codes of the second picture are those of the first, a fixed number
    of rows above.
    """
    recipe = dalle_shapes()
    return recipe._replace(
        model=replace(recipe.model, depth=4, rotary=True),
        training=replace(recipe.training, temperature=0.5, guidance=1.0),
        engine=replace(recipe.engine, optimizer="adamw", lr=2e-3, ema_decay=0.995, steps=2400),
    )


def dalle_small() -> Recipe:
    """CIFAR-sized pictures with class captions; 29 minutes in float32, 16 in bfloat16."""
    recipe = dalle_shapes()
    return Recipe(
        replace(recipe.model, width=192, depth=4, heads=6),
        DALLETraining(flip=True, temperature=0.9, guidance=3.0),
        TrainConfig(
            steps=4000, batch_size=32, lr=1e-3, warmup=200, weight_decay=0.1, ema_decay=0.999
        ),
    )


def dalle_photos() -> Recipe:
    """Captioned photographs; 57 minutes in float32, 30 in bfloat16."""
    return dalle_small()._replace(training=DALLETraining(vocab=4096, guidance=2.0))


def build(recipe: Recipe, spec: str, runs: dict[str, Path], device: str = "cpu") -> DALLETask:
    """DALL·E on a SPEC and the codes of a trained VQGAN."""
    return on_codes(recipe, encode_data(recipe, spec, runs["vqgan"], device, captions=True))


def on_codes(recipe: Recipe, encoded: Encoded) -> DALLETask:
    """DALL·E on pictures that are codes already; the codes' number and grid come from the VQGAN,
    the vocabulary and the caption length from the captions."""
    vqgan, training = encoded.vqgan, recipe.training
    words = learn_words(
        encoded.train, training.vocab, training.max_text_length,
        read=captions_of(encoded.train, encoded.pictures),
    )  # fmt: skip
    model = replace(
        recipe.model,
        vocab_size=words.tokenizer.vocab_size,
        text_length=words.longest,
        pad_id=words.tokenizer.pad_id,
        grid=vqgan.config.grid,
        pictures=encoded.codes.shape[1] // vqgan.config.grid,
        codes=vqgan.config.codes,
    )
    return DALLETask(recipe._replace(model=model), encoded, words)


def restore(stored: dict[str, Any], path: Path) -> DALLE:
    """The model of a run, with its tokenizer and its VQGAN."""
    model = DALLE(rebuild(DALLEConfig, stored))
    model.tokenizer = Tokenizer.load(path / "tokenizer.json")
    model.painter = Painter(load(path / "vqgan", kind="vqgan"))
    model.words = KnownWords.load(path / "words.json")
    return model


SYSTEM = System(
    about="pictures from captions",
    recipes={
        "shapes": dalle_shapes,
        "hard": dalle_hard,
        "edits": dalle_edits,
        "cifar10": dalle_small,
        "cifar100": dalle_small,
        "": dalle_photos,
    },
    build=build,
    restore=restore,
    needs=("vqgan",),
    decided=("vocab_size", "text_length", "pad_id", "grid", "pictures", "codes"),
)
