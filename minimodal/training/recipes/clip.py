"""CLIP's recipes, and from one of them to a task. Read `minimodal/clip.py` before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from minimodal.clip import CLIP, CLIPConfig
from minimodal.data.images import ImageSource
from minimodal.data.tokenizer import Tokenizer
from minimodal.data.words import KnownWords
from minimodal.runs import rebuild
from minimodal.shapes.source import ShapesSource
from minimodal.training.captions import TOKENIZER_PICTURES, captions_of, learn_words
from minimodal.training.contract import Recipe, System, TrainConfig
from minimodal.training.opening import open_both
from minimodal.training.tasks.clip import CLIPTask, CLIPTraining


def clip_shapes() -> Recipe:
    """The Shapes world; half of a batch are scenes that differ in one exchange (hard negatives).

    Ten and a half minutes of one core in float32, seven in bfloat16. Without the stem shapes are
    told apart too late; without the loss on differences 1,500 steps find 95 % of the captions
    instead of 99.
    """
    return Recipe(
        CLIPConfig(
            patch_size=8, stem=(32, 64, 128), vision_width=128, vision_depth=3, vision_heads=4,
            text_width=128, text_depth=3, text_heads=4, embed_width=128,
        ),
        CLIPTraining(vocab=512, difference_weight=1.0),
        TrainConfig(
            steps=3000, batch_size=64, optimizer="muon", lr=6e-4, warmup=100, ema_decay=0.99,
            checkpoint_every=500,
        ),
    )  # fmt: skip


def clip_small() -> Recipe:
    """CIFAR-sized pictures with class captions; 36 minutes in float32, 20 in bfloat16.

    Residual blocks from the full size on (they see what a patch of 8 pixels blurs: 82 % instead
    of 70 % zero-shot in the same time), one block of attention behind them, and a small text
    tower for a few captions. With ten classes most captions of a batch are right for several
    pictures, hence `same_class`.
    """
    recipe = clip_shapes()
    return Recipe(
        replace(
            recipe.model, stem=(32, 64, 128), stem_depth=1, vision_depth=1, text_width=64,
            text_depth=1, text_heads=2,
        ),
        CLIPTraining(flip=True, shift=2, same_class=True),
        replace(recipe.engine, steps=6000, lr=1e-3, warmup=200, weight_decay=0.1, ema_decay=0.995),
    )  # fmt: skip


def clip_photos() -> Recipe:
    """Captioned photographs at 64 pixels; an hour in float32, 34 minutes in bfloat16. Not mirrored,
    since captions speak of left and right."""
    recipe = clip_small()
    return recipe._replace(
        model=replace(
            recipe.model, image_size=64, stem=(48, 96, 192), stem_depth=0, vision_depth=3,
            text_width=128, text_depth=2, text_heads=4,
        ),
        training=CLIPTraining(vocab=4096, shift=4),
    )  # fmt: skip


def build(
    recipe: Recipe, spec: str, runs: dict[str, Path] | None = None, device: str = "cpu"
) -> CLIPTask:
    """CLIP on a SPEC; the vocabulary and the caption length come from the captions."""
    training = recipe.training
    source, val = open_both(spec, recipe.model.image_size, recipe.engine.limit, captions=True)
    train = source
    if isinstance(source, ShapesSource):
        # Captions that differ in one exchange only, side by side in a batch: among random
        # captions a bag of words is enough, and who is left of whom is never learned.
        train = ShapesSource(
            source.seed, image_size=source.image_size, contrast=True, length=len(source) // 4 * 4
        )
    whole = isinstance(train, ImageSource)  # an endless world has all its words early
    read = captions_of(train, len(train) if whole else min(len(train), TOKENIZER_PICTURES))
    words = learn_words(source, training.vocab, training.max_text_length - 2, read=read)
    model = replace(
        recipe.model,
        vocab_size=words.tokenizer.vocab_size,
        text_length=words.longest + 2,  # start and end
        end_id=words.tokenizer.end_id,
        logit_bias=training.loss == "sigmoid",
    )
    return CLIPTask(recipe._replace(model=model), train, val, words)


def restore(stored: dict[str, Any], path: Path) -> CLIP:
    """The model of a run, with its tokenizer."""
    model = CLIP(rebuild(CLIPConfig, stored))
    model.tokenizer = Tokenizer.load(path / "tokenizer.json")
    model.words = KnownWords.load(path / "words.json")
    return model


SYSTEM = System(
    about="pictures and captions in one space",
    recipes={
        "shapes": clip_shapes,
        "hard": clip_shapes,
        "cifar10": clip_small,
        "cifar100": clip_small,
        "": clip_photos,
    },
    build=build,
    restore=restore,
    decided=(
        "vocab_size", "text_length", "end_id", "pooling", "preprocessing", "resnet", "logit_bias",
    ),
)  # fmt: skip
