"""The pool of pictures that VQGAN+CLIP's search begins with: drawn once a run, then kept beside it.

A demo folder in, models and a `Pool` out. The file `pool-….safetensors` is named after the weights
that drew it, and holds the embeddings of each CLIP that has seen it. Read `vqgan_clip/pool.py`.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from minimodal.errors import UserError
from minimodal.files import asking, write_atomically
from minimodal.runs import load
from minimodal.uses.search import fingerprint
from minimodal.vqgan_clip.guide import Guide
from minimodal.vqgan_clip.pool import Pool, Prior, draw_pool, embed_codes

SIZE = 8192


@contextmanager
def told(loss: str) -> Iterator[None]:
    """Say what Ctrl-C costs."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{loss}", file=sys.stderr)
        raise


def prior_of(folder: Path, device: str | torch.device) -> Prior:
    """What draws without a prompt: the VQGAN's own prior in a demo folder, or its DALL·E."""
    for kind in ("vqgan-prior", "dalle"):
        if (folder / kind / "config.json").exists():
            return Prior(load(folder / kind, kind=kind).to(device))
    raise UserError(
        f"{folder} has no vqgan-prior and no dalle to draw the pool: train one there, or give "
        "--init codes --steps 200"
    )


def pool_of(folder: Path, prior: Prior, guides: Sequence[Guide], size: int = 0) -> Pool:
    """The pool of a folder, drawn where it is not kept already.

    guides: one for each CLIP
    size: 0 for SIZE
    """
    size = size or SIZE
    place = folder / f"pool-{fingerprint(prior.model)[:12]}.safetensors"
    kept: dict[str, Tensor] = {}
    if place.exists():
        try:
            kept = load_file(place)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{place} is damaged ({error}): remove it") from None
    before = len(kept)
    if len(kept.get("codes", ())) < size:
        print(f"drawing {size} pictures to begin with, once (kept in {place})", file=sys.stderr)
        bar = tqdm(total=size, desc="pool", file=sys.stderr, disable=None, leave=False)
        with told("the pool is kept when all of it is drawn: nothing is saved"), bar:
            codes, likely = draw_pool(prior, size, progress=bar.update)
        kept, before = {"codes": codes.to(torch.int32), "log_likelihood": likely}, 0
    codes = kept["codes"].long()
    names = [f"clip.{fingerprint(guide.clip)[:12]}" for guide in guides]
    for name, guide in zip(names, guides, strict=True):
        if name not in kept:
            kept[name] = embed_codes(prior, guide, codes)
    if len(kept) > before:
        with asking("write", place):
            write_atomically(place, lambda file: save_file(kept, file))
    found = Pool(codes, kept["log_likelihood"], tuple(kept[name] for name in names))
    return found.part(torch.arange(size)) if len(codes) > size else found
