"""From a data SPEC, and a trained run where one is needed, to what a task trains on.

Here data sources are opened, pictures become codes, and the network is loaded that a VQGAN's
pictures are compared by. Read `data/loading.py` and `tasks/codes.py` before.
"""

import sys
from pathlib import Path

import numpy as np

from minimodal.blocks.perceptual import PerceptualDistance, lpips_heads, tower_maps, vgg16
from minimodal.data.loading import open_data, parse_spec, split_spec
from minimodal.data.preprocessing import normalize
from minimodal.data.sources import DataSource
from minimodal.errors import UserError
from minimodal.files import digest
from minimodal.pretrained.files import read_tensors
from minimodal.runs import is_original, load
from minimodal.training import distributed
from minimodal.training.contract import Recipe
from minimodal.training.tasks.cached import cached, place_of
from minimodal.training.tasks.codes import Encoded, cached_codes
from minimodal.training.tasks.embeddings import Embedded
from minimodal.training.tasks.vqgan import VQGANTraining
from minimodal.uses.embedding import embed_source


def open_both(
    spec: str, image_size: int, limit: int | None, *, captions: bool = False
) -> tuple[DataSource, DataSource]:
    """The training and the validation split of a SPEC, with captions where they are needed."""
    kind, _, part, _ = parse_spec(split_spec(spec)[0])
    if kind == "coco" and part is not None:
        print(f"{spec}: scores of the run are on {part}, which it trains on too", file=sys.stderr)
    train = open_data(spec, image_size=image_size, split="train", limit=limit)
    val = open_data(spec, image_size=image_size, split="val", limit=limit)
    if captions and not train.has_captions:
        raise UserError(
            f"--data {spec} has no captions: put a .txt beside each picture, or a captions.jsonl "
            "or captions.csv into the folder"
        )
    return train, val


def encode_data(
    recipe: Recipe, spec: str, vqgan_run: Path, device: str, *, captions: bool = False
) -> Encoded:
    """Open a SPEC at the size of a VQGAN, and turn its pictures into codes, once: as many as the
    recipe's training has in its `pool`, with their mirror images if it says `flip`."""
    flip, limit = recipe.training.flip, recipe.engine.limit
    here = distributed.start(device)
    vqgan = load(vqgan_run, kind="vqgan").to(here.device)
    original = not vqgan_run.is_dir()
    counts = vqgan.quantizer.usage_counts
    if not original and vqgan.quantizer.needs_start and not any(part.any() for part in counts):
        raise UserError(
            f"{vqgan_run} has no codes yet: its training ended before they were placed; train it "
            "longer or with a smaller --warm-start"
        )
    train, val = open_both(spec, vqgan.config.image_size, limit, captions=captions)
    pictures = min(len(train), recipe.training.pool)
    weights = digest(vqgan_run if original else vqgan_run / "model.safetensors")
    kept = vqgan_run.with_name(f"{vqgan_run.name}.codes") if original else vqgan_run / "codes"
    codes = cached_codes(
        place_of(kept, weights, train.fingerprint(), pictures, flip), vqgan, train,
        n=pictures, flip=flip, write=here.main,
    )  # fmt: skip
    return Encoded(train, val, vqgan, vqgan_run, weights, codes, pictures)


def embed_data(recipe: Recipe, spec: str, clip_run: Path, device: str) -> Embedded:
    """Open a SPEC at the size of a CLIP, and turn its pictures into embeddings, once: as many as
    the recipe's training has in its `pool`, with their mirror images if it says `flip`."""
    flip, limit = recipe.training.flip, recipe.engine.limit
    here = distributed.start(device)
    if is_original(clip_run):
        raise UserError(
            f"--clip {clip_run} is an original checkpoint; unCLIP's parts are trained on a CLIP "
            "run of train.py, whose words they share"
        )
    clip = load(clip_run, kind="clip").to(here.device)
    size = clip.config.image_size
    train, val = open_both(spec, size, limit, captions=True)
    pictures = min(len(train), recipe.training.pool)
    weights = digest(clip_run / "model.safetensors")
    kept = clip_run / "embeddings"
    embeddings = cached(
        place_of(kept, weights, train.fingerprint(), pictures, flip, size),
        lambda: embed_source(clip, train, pictures, flip=flip),
        shape=(pictures * (1 + flip), clip.config.embed_width), dtype=np.float32,
        what=f"{pictures} pictures into embeddings",
        write=here.main,  # several writers would take each other's files away
    )  # fmt: skip
    return Embedded(train, val, clip, clip_run, weights, embeddings, pictures)


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
    # differs from the paper: no perceptual loss by default, and where one is asked for the first
    # maps of a CLIP: they hold edges and textures; what the late ones see can be imitated by
    # patterns that mean nothing to other networks.
    return PerceptualDistance(
        tower,
        features=lambda images: tower_maps(
            tower, normalize((images + 1) * 127.5, clip.reading), layers=layers
        ),
        size=clip.config.image_size,
    )
