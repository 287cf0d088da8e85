"""From a recipe and a data SPEC to a task that the engine can run.

Here the pieces meet: data sources are opened, a tokenizer learns the captions, pictures become
codes, and configurations get the numbers that only the data can tell (vocabulary, caption
length, grid of codes). Read `tasks/` and `recipes.py` before.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from minimodal.blocks.perceptual import PerceptualDistance, lpips_heads, tower_maps, vgg16
from minimodal.data.images import ImageSource
from minimodal.data.loading import DataSource, open_data, parse_spec, split_spec
from minimodal.data.preprocessing import normalize
from minimodal.data.tokenizer import Tokenizer
from minimodal.data.words import KnownWords
from minimodal.errors import UserError
from minimodal.files import digest
from minimodal.pretrained.files import read_tensors
from minimodal.runs import load
from minimodal.shapes.source import ShapesSource
from minimodal.training import distributed
from minimodal.training.recipes import CLIPRecipe, DALLERecipe, VQGANPriorRecipe, VQGANRecipe
from minimodal.training.tasks import (
    CLIPTask,
    DALLETask,
    VQGANPriorTask,
    VQGANTask,
    VQGANTraining,
)
from minimodal.training.tasks.codes import cached_codes
from minimodal.vqgan import VQGAN

TOKENIZER_PICTURES = 5_000  # whose captions a tokenizer learns from


def open_both(spec: str, image_size: int, limit: int | None) -> tuple[DataSource, DataSource]:
    """The training and the validation split of a SPEC."""
    kind, _, part, _ = parse_spec(split_spec(spec)[0])
    if kind == "coco" and part is not None:
        print(f"{spec}: scores of the run are on {part}, which it trains on too", file=sys.stderr)
    train = open_data(spec, image_size=image_size, split="train", limit=limit)
    val = open_data(spec, image_size=image_size, split="val", limit=limit)
    return train, val


def need_captions(source: DataSource, spec: str) -> None:
    """Say at once, not at the first batch, that a folder has no captions."""
    if not source.has_captions:
        raise UserError(
            f"--data {spec} has no captions: put a .txt beside each picture, or a captions.jsonl "
            "or captions.csv into the folder"
        )


class Words(NamedTuple):
    """What captions teach: a tokenizer, and the length of the longest caption."""

    tokenizer: Tokenizer
    longest: int


def learn_words(source: DataSource, vocab: int, longest: int, *, dropout: float = 0.0) -> Words:
    """Learn a tokenizer of captions; those of more than `longest` tokens will be cut, and are
    counted here.

    dropout: chance that a merge is left out in training, which makes captions longer
    """
    numbers = range(min(TOKENIZER_PICTURES, len(source)))
    captions = [caption for i in numbers for caption in source.all_captions(i)]
    tokenizer = Tokenizer.train(captions, vocab, lower=True)
    lengths = [len(tokenizer.encode(caption)) for caption in captions]
    cut = sum(length > longest for length in lengths)
    if cut:
        print(f"{cut} of {len(captions)} captions are cut to {longest} tokens", file=sys.stderr)
    if dropout > 0:
        rng = np.random.default_rng(0)
        lengths += [len(tokenizer.encode(text, dropout=dropout, rng=rng)) for text in captions]
    return Words(tokenizer, min(max(lengths), longest))


def captions_of(source: DataSource, n: int) -> Iterator[str]:
    """All captions of the first n pictures; of a world without end one of each, which all its
    words are in long before."""
    if isinstance(source, ImageSource):
        yield from (caption for i in range(n) for caption in source.all_captions(i))
        return
    rng = np.random.default_rng(0)
    for start in range(0, n, 4096):  # worlds write many captions at once much faster
        yield from source.captions(np.arange(start, min(start + 4096, n)), rng)
    yield from (caption for i in range(min(n, 100)) for caption in source.all_captions(i))


def open_perceptual(training: VQGANTraining) -> PerceptualDistance | None:
    """The network that a VQGAN's pictures are compared by: a CLIP's image tower or a VGG16."""
    if not training.perceptual:
        return None
    path = Path(training.perceptual)
    tensors = read_tensors(path) if path.is_file() else {}
    if "features.0.weight" in tensors:
        heads = None
        if training.perceptual_heads:
            place = Path(training.perceptual_heads)
            heads = lpips_heads(read_tensors(place), source=str(place))
        net = vgg16(tensors, source=str(path))
        return PerceptualDistance(net, features=net, heads=heads)
    if training.perceptual_heads:
        raise UserError(f"perceptual_heads are for a VGG16, and {path} is none")
    clip = load(path, kind="clip")
    tower, layers = clip.image_encoder, training.perceptual_layers
    # differs from LPIPS: the first maps only. They hold edges and textures; what the late ones see
    # can be imitated by faint patterns that mean nothing to any other network or eye.
    return PerceptualDistance(
        tower,
        features=lambda images: tower_maps(
            tower, normalize((images + 1) * 127.5, clip.reading), layers=layers
        ),
        size=clip.config.image_size,
    )


def build_vqgan(recipe: VQGANRecipe, spec: str, *, limit: int | None = None) -> VQGANTask:
    """VQGAN on a SPEC."""
    train, val = open_both(spec, recipe.model.image_size, limit)
    perceptual = open_perceptual(recipe.training)
    return VQGANTask(
        recipe.model,
        recipe.training,
        train=train,
        val=val,
        batch_size=recipe.engine.batch_size,
        seed=recipe.engine.seed,
        perceptual=perceptual,
    )


def build_clip(recipe: CLIPRecipe, spec: str, *, limit: int | None = None) -> CLIPTask:
    """CLIP on a SPEC."""
    train, val = open_both(spec, recipe.model.image_size, limit)
    need_captions(train, spec)
    tokenizer, longest = learn_words(
        train, recipe.training.vocab, recipe.training.max_text_length - 2
    )
    if isinstance(train, ShapesSource):
        # Captions that differ in one exchange only, side by side in a batch: among random
        # captions a bag of words is enough, and who is left of whom is never learned.
        train = ShapesSource(
            train.seed, image_size=train.image_size, contrast=True, length=len(train) // 4 * 4
        )
    whole = isinstance(train, ImageSource)  # a world without end has all its words early
    words = captions_of(train, len(train) if whole else min(len(train), TOKENIZER_PICTURES))
    model = replace(
        recipe.model,
        vocab_size=tokenizer.vocab_size,
        text_length=longest + 2,  # start and end
        end_id=tokenizer.end_id,
        logit_bias=recipe.training.loss == "sigmoid",
    )
    return CLIPTask(
        model,
        recipe.training,
        train=train,
        val=val,
        tokenizer=tokenizer,
        words=KnownWords.of(words),
        batch_size=recipe.engine.batch_size,
        seed=recipe.engine.seed,
    )


class Encoded(NamedTuple):
    """A trained VQGAN and what it makes of a SPEC.

    codes: (N, h, w) int32 of the training pictures
    """

    vqgan: VQGAN
    digest: str
    train: DataSource
    val: DataSource
    codes: Tensor


def encode_data(
    spec: str, vqgan_run: Path, *, pool: int, flip: bool, device: str, limit: int | None,
    captions: bool = False,
) -> Encoded:  # fmt: skip
    """Open a SPEC at the size of a VQGAN, and turn its pictures into codes, once."""
    here = distributed.start(device)
    vqgan = load(vqgan_run, kind="vqgan").to(here.device)
    quantizer, original = vqgan.quantizer, not vqgan_run.is_dir()
    if (
        not original
        and quantizer.needs_start
        and not any(counts.any() for counts in quantizer.usage_counts)
    ):
        raise UserError(
            f"{vqgan_run} has no codes yet: its training ended before they were placed; train it "
            "longer or with a smaller --warm-start"
        )
    train, val = open_both(spec, vqgan.config.image_size, limit)
    if captions:
        need_captions(train, spec)
    pictures = min(len(train), pool)
    weights = digest(vqgan_run if original else vqgan_run / "model.safetensors")
    kept = vqgan_run.with_name(f"{vqgan_run.name}.codes") if original else vqgan_run / "codes"
    described = f"{weights} {train.fingerprint()} {pictures}"
    key = hashlib.sha256(f"{described} {flip}".encode()).hexdigest()[:16]
    codes = cached_codes(
        kept / f"{key}.npy",
        vqgan,
        train,
        n=pictures,
        flip=flip,
        write=here.main,  # several writers would take each other's files away
    )
    return Encoded(vqgan, weights, train, val, codes)


def build_dalle(
    recipe: DALLERecipe,
    spec: str,
    *,
    vqgan_run: Path,
    device: str = "cpu",
    limit: int | None = None,
) -> DALLETask:
    """DALL·E on a SPEC and the codes of a trained VQGAN."""
    encoded = encode_data(
        spec, vqgan_run, pool=recipe.training.pool, flip=recipe.training.flip, device=device,
        limit=limit, captions=True,
    )  # fmt: skip
    return dalle_task(recipe, encoded, vqgan_run)


def dalle_task(recipe: DALLERecipe, encoded: Encoded, vqgan_run: Path) -> DALLETask:
    """DALL·E on pictures that are codes already."""
    vqgan, train = encoded.vqgan, encoded.train
    words = learn_words(
        train, recipe.training.vocab, recipe.training.max_text_length,
        dropout=recipe.training.bpe_dropout,
    )  # fmt: skip
    model = replace(
        recipe.model,
        vocab_size=words.tokenizer.vocab_size,
        text_length=words.longest,
        pad_id=words.tokenizer.pad_id,
        grid=vqgan.config.grid,
        pictures=encoded.codes.shape[1] // vqgan.config.grid,
        codes=vqgan.config.vocabulary,
    )
    return DALLETask(
        model,
        recipe.training,
        train=train,
        val=encoded.val,
        tokenizer=words.tokenizer,
        words=KnownWords.of(captions_of(train, len(encoded.codes) // (1 + recipe.training.flip))),
        vqgan=vqgan,
        vqgan_run=vqgan_run,
        vqgan_digest=encoded.digest,
        codes=encoded.codes,
        batch_size=recipe.engine.batch_size,
        seed=recipe.engine.seed,
    )


def build_vqgan_prior(
    recipe: VQGANPriorRecipe,
    spec: str,
    *,
    vqgan_run: Path,
    device: str = "cpu",
    limit: int | None = None,
) -> VQGANPriorTask:
    """VQGAN's second stage on a SPEC and the codes of a trained VQGAN."""
    encoded = encode_data(
        spec, vqgan_run, pool=recipe.training.pool, flip=recipe.training.flip, device=device,
        limit=limit,
    )  # fmt: skip
    names = encoded.train.class_names if recipe.training.labels else None
    model = replace(
        recipe.model,
        grid=encoded.vqgan.config.grid,
        codes=encoded.vqgan.quantizer.size,
        classes=len(names or []),
    )
    return VQGANPriorTask(
        model,
        recipe.training,
        train=encoded.train,
        val=encoded.val,
        vqgan=encoded.vqgan,
        vqgan_run=vqgan_run,
        vqgan_digest=encoded.digest,
        codes=encoded.codes,
        batch_size=recipe.engine.batch_size,
        seed=recipe.engine.seed,
    )
