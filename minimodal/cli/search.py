"""`python -m minimodal search FOLDER "a red circle"`: the pictures that go best with words.

Or with other pictures, or with both at once, weighted. The first search of a folder embeds its
pictures, later ones what has changed; read `uses/search.py` for how. Pictures are read as
`CLIP.preprocess` does.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimodal.cli.common import add_clip_flags, check_name, load_clip, read_each
from minimodal.clip import CLIP
from minimodal.data.images import centre_square, open_rgb
from minimodal.drawing import grid, save_png
from minimodal.errors import UserError
from minimodal.evaluation.metrics import top_k
from minimodal.files import make_folder
from minimodal.uses.embedding import embed_captions
from minimodal.uses.search import combine, embed_queries, refresh
from minimodal.uses.zero_shot import begun_as_captions

ABOUT = "the pictures of a folder that go best with words or with other pictures"
TILE = 128  # pixels of a picture in the grid


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="the pictures, also those in folders in it")
    add("prompts", nargs="*", metavar="PROMPT", help="what to look for; several are added up")
    add("--image", nargs="+", action="extend", default=[], type=Path, metavar="PIC",
        help="pictures to look for, alone or added to the prompts (default: none)")  # fmt: skip
    add("--weights", metavar="W,W,…",
        help="how much each prompt, then each picture counts; less than 0 for what is not "
             "wanted; --weights=-1,1 where the first is (default: 1 each)")  # fmt: skip
    add("-k", type=int, default=9, metavar="K", help="how many pictures to find (default: 9)")
    add("--out", type=Path, metavar="PNG", help="draw them as a grid (default: none)")
    add("--json", action="store_true", help="print one JSON object instead of words")
    add_clip_flags(parser)
    parser.set_defaults(rest="prompts")


def weights_of(arguments: argparse.Namespace) -> list[float]:
    """A weight for each prompt, then for each picture."""
    count = len(arguments.prompts) + len(arguments.image)
    if arguments.weights is None:
        return [1.0] * count
    try:
        weights = [float(part) for part in arguments.weights.split(",")]
    except ValueError:
        weights = [math.nan]
    if not all(map(math.isfinite, weights)):
        raise UserError(f"--weights {arguments.weights}: expected numbers such as 1,0.5")
    if len(weights) != count:
        raise UserError(
            f"--weights {arguments.weights}: expected {count}, one for each prompt and picture"
        )
    return weights


def check(arguments: argparse.Namespace) -> None:
    if not arguments.prompts and not arguments.image:
        raise UserError("nothing to look for: give a prompt such as 'a red circle', or --image PIC")
    for prompt in arguments.prompts:
        if not prompt.strip():
            raise UserError("a prompt is empty; say what to look for, such as 'a red circle'")
    if arguments.k < 1:
        raise UserError(f"-k {arguments.k}: expected 1 or more pictures")
    for path in arguments.image:
        if not path.is_file():
            raise UserError(f"--image {path}: no such file (prompts stand before --image)")
    if arguments.out is not None:
        check_name(arguments.out)


def query_of(clip: CLIP, arguments: argparse.Namespace, weights: list[float]) -> Tensor:
    """What is looked for, as one vector.

    returns: (E,) a unit vector
    """
    units = []
    if arguments.prompts:
        if not arguments.allow_unseen:
            clip.words.check(arguments.prompts)
        texts = begun_as_captions(clip, arguments.prompts)
        clip.tokenize(texts)  # embed_captions would cut one that is too long
        units.append(embed_captions(clip, texts).float().cpu())
    if arguments.image:
        units.append(embed_queries(clip, arguments.image))
    return combine(torch.cat(units), weights)


def draw(out: Path, files: list[Path], scores: list[float]) -> None:
    """The pictures that were found as a grid, with names and scores; those that are there yet."""

    def tile(name: str) -> np.ndarray:
        return centre_square(open_rgb(name, at_least=TILE), TILE)

    score = dict(zip(map(str, files), scores, strict=True))
    read, _ = read_each(list(score), tile)
    tiles = torch.from_numpy(np.stack([pixels for _, pixels in read]))
    captions = [f"{score[name]:.3f} {Path(name).name}" for name, _ in read]
    columns = min(8, math.ceil(math.sqrt(len(tiles))))
    save_png(grid(tiles, captions, columns=columns, tile=TILE), out)


def run(arguments: argparse.Namespace) -> int:
    check(arguments)
    weights, out = weights_of(arguments), arguments.out
    if out is not None:
        make_folder(out.parent)
    clip = load_clip(arguments)
    query = query_of(clip, arguments, weights)  # before the index, which takes longest
    index, changes = refresh(clip, arguments.folder)
    hits = top_k(index.embeddings, query[None], arguments.k)
    names, scores = list(index.stamps), hits.scores[0].tolist()
    files = [arguments.folder / names[i] for i in hits.indices[0].tolist()]
    if out is not None:
        draw(out, files, scores)
    if arguments.json:
        images = [str(path) for path in arguments.image]
        made = {
            "query": {"prompts": arguments.prompts, "images": images, "weights": weights},
            "results": [{"file": str(f), "score": s} for f, s in zip(files, scores, strict=True)],
            "index": {"pictures": len(index.stamps), **changes._asdict(),
                      "broken": len(index.broken)},
        }  # fmt: skip
        print(json.dumps(made | ({} if out is None else {"grid": str(out)})))
    else:
        for file, score in zip(files, scores, strict=True):
            print(f"{score:7.4f}  {file}")
        if out is not None:
            print(f"{out}: the grid")
    return 1 if index.broken else 0
