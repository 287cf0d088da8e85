"""What the methods of generate.py share: flags and their checks, CLIP's choice, the oracle's
verdicts, the grid and the files.

A command line in; pictures (N, 3, H, W) uint8 become files and words. Read `blocks/painter.py`
(`Request`) and `drawing.grid` before.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minimodal.blocks.painter import Request
from minimodal.blocks.sampling import SamplingConfig
from minimodal.cli.common import Parser, add_merges_flag, check_name, check_seed
from minimodal.clip import CLIP
from minimodal.drawing import grid, save_png, to_picture
from minimodal.errors import UserError
from minimodal.evaluation.scoreboard import rerank
from minimodal.runs import load
from minimodal.shapes.worlds import WORLDS, AnyVerdict

MOST = 4096  # pictures of one command: more than anyone looks at, less than memory holds
Verdicts = list[AnyVerdict | None]


# --- flags ---------------------------------------------------------------------------------------


def read_seeds(text: str) -> list[int]:
    """`3,7` as a list of seeds."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\d{1,19}", part) and int(part) < 2**63 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text[:60]}': expected numbers such as 3,7")
    return [int(part) for part in parts]


def add_common_flags(parser: Parser) -> None:
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="captions; classes or nothing for vqgan-prior")
    add("--run", type=Path, default=Path("runs/demo"), metavar="RUN",
        help="a demo folder or a run of the method (default: runs/demo)")  # fmt: skip
    add("-n", type=int, default=4, metavar="N", help="pictures per prompt (default: 4)")
    add("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    add("--seeds", type=read_seeds, metavar="S,S,…",
        help="one seed for each picture, which is then the same beside any others "
             "(default: --seed for all together)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--out", type=Path, default=Path("pictures.png"), metavar="PNG",
        help="the grid; the single pictures go into a folder of that name "
             "(default: pictures.png)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of words")


def add_sampling_flags(parser: Parser) -> None:
    """The flags of methods that sample codes one after the other."""
    add = parser.add_argument
    add("--temperature", type=float, metavar="T",
        help="below 1 is safer, above 1 wilder (default: the run's own)")  # fmt: skip
    add("--top-k", type=int, default=0, metavar="K",
        help="draw among the K likeliest codes (default: 0, all)")  # fmt: skip
    add("--top-p", type=float, default=1.0, metavar="P",
        help="draw among the likeliest that hold P together (default: 1, all)")  # fmt: skip
    add("--guidance", type=float, metavar="S",
        help="how much the prompt counts; 1 is plain (default: the run's own)")  # fmt: skip


def add_rerank_flags(parser: Parser) -> None:
    """The flags of methods among whose pictures CLIP may choose."""
    add = parser.add_argument
    add("--rerank", type=int, default=0, metavar="K",
        help="draw K per prompt (at least N), keep the N that CLIP finds best "
             "(default: 0, off)")  # fmt: skip
    add("--clip", type=Path, metavar="RUN|CHECKPOINT",
        help="the CLIP for --rerank, a run or an original checkpoint "
             "(default: the one of the demo or of the run)")  # fmt: skip
    add_merges_flag(parser)


def read_box(text: str) -> tuple[int, ...]:
    """`0,16,32,32` as left, top, right and bottom."""
    parts = text.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"\s*-?\d{1,9}\s*", part) for part in parts):
        raise argparse.ArgumentTypeError(f"'{text[:60]}': expected four numbers such as 0,16,32,32")
    return tuple(int(part) for part in parts)


def add_complete_flags(parser: Parser) -> None:
    """The flags of methods that complete a picture."""
    add = parser.add_argument
    add("--complete", type=Path, metavar="IMG",
        help="a picture that is kept but for a rectangle (default: none)")  # fmt: skip
    add("--redraw", type=read_box, metavar="L,T,R,B",
        help="the rectangle to draw anew: left, top, right, bottom in pixels "
             "(default: the lower half)")  # fmt: skip


def check_complete(arguments: argparse.Namespace) -> None:
    if arguments.redraw and not arguments.complete:
        raise UserError("--redraw needs the picture: --complete IMG")


def each(arguments: argparse.Namespace) -> int:
    """Pictures that are drawn per prompt."""
    return max(arguments.n, getattr(arguments, "rerank", 0))


def check(arguments: argparse.Namespace) -> None:
    if arguments.n < 1:
        raise UserError(f"-n {arguments.n}: expected 1 or more pictures a prompt")
    prompts = max(len(arguments.prompts), 1)
    if arguments.seeds and len(arguments.seeds) != each(arguments) * prompts:
        raise UserError(f"{len(arguments.seeds)} --seeds for {each(arguments) * prompts} pictures")
    if each(arguments) * prompts > MOST:
        raise UserError(
            f"{each(arguments)} pictures for each of {prompts} prompts: expected {MOST} in all or "
            "fewer"
        )
    check_seed(arguments.seed)
    check_name(arguments.out)
    if gif := getattr(arguments, "gif", None):
        check_name(gif, "--gif", ".gif")
    for prompt in arguments.prompts:
        if not prompt.strip():
            raise UserError("a prompt is empty; say what to draw, such as 'a red circle'")


def sampling_of(arguments: argparse.Namespace, own: dict[str, float]) -> SamplingConfig:
    """How codes are sampled: by the flags, and where they say nothing as the run has it."""
    temperature, guidance = (
        own.get(name, 1.0) if getattr(arguments, name) is None else getattr(arguments, name)
        for name in ("temperature", "guidance")
    )
    return SamplingConfig(temperature, arguments.top_k, arguments.top_p, guidance)


@contextmanager
def requested(
    arguments: argparse.Namespace, device: str,
    *, partial: Callable[[Tensor, int], None] | None = None,
) -> Iterator[Request]:  # fmt: skip
    """What a command line asks a model for, with a bar of progress while it draws."""
    with tqdm(total=100, unit="%", file=sys.stderr, disable=None, leave=False) as bar:
        yield Request(
            each(arguments),
            None if arguments.seeds else torch.Generator(device).manual_seed(arguments.seed),
            arguments.seeds,
            progress=lambda done: bar.update(int(100 * done) - bar.n),
            partial=partial,
        )


# --- what becomes of pictures --------------------------------------------------------------------


class Drawn(NamedTuple):
    """What a method drew, n pictures for each prompt.

    pictures: (N, 3, H, W) uint8 on the CPU
    """

    pictures: Tensor
    verdicts: Verdicts | None = None  # the oracle's
    scores: list[float] | None = None  # CLIP's
    seeds: list[int] | None = None


def clip_for(arguments: argparse.Namespace, own: Path, device: str) -> CLIP | None:
    """The CLIP for --rerank, by default the run's own."""
    if arguments.rerank < 0:
        raise UserError(f"--rerank {arguments.rerank}: expected 0 (off) or more")
    if not arguments.rerank:
        for flag in ("clip", "merges", "activation"):
            if getattr(arguments, flag):
                raise UserError(f"--{flag} is for --rerank K")
        return None
    place = arguments.clip or own
    if not place.exists():
        raise UserError(f"--rerank needs a CLIP and there is none in {place}; give --clip RUN")
    clip = load(place, kind="clip", merges=arguments.merges, activation=arguments.activation)
    if not arguments.allow_unseen:
        clip.words.check(arguments.prompts)
    clip.tokenize(arguments.prompts, truncate=True)  # say before the drawing that it cannot
    return clip.to(device)


def choose(arguments: argparse.Namespace, clip: CLIP | None, pictures: Tensor) -> Drawn:
    """The pictures that CLIP finds best, or all without one.

    pictures: (N, 3, H, W) uint8 all that were drawn
    """
    seeds, n = arguments.seeds, arguments.n
    if clip is None:
        return Drawn(pictures, seeds=seeds)
    sets = pictures.unflatten(0, (len(arguments.prompts), -1))  # (P, K, 3, H, W)
    order, similarity = rerank(clip, arguments.prompts, sets)
    best = [one[rank[:n]] for one, rank in zip(sets, order, strict=True)]
    if seeds:
        seeds = torch.tensor(seeds).view(order.shape).gather(1, order)[:, :n].flatten().tolist()
    return Drawn(torch.cat(best), None, similarity[:, :n].flatten().tolist(), seeds)


def judged(
    data: str, prompts: Sequence[str | None], pictures: Tensor, *, first: Tensor | None = None
) -> Verdicts | None:
    """The oracle's verdict of each picture, with a run on the Shapes world; None where it cannot
    read the prompt, and of all pictures that are no squares.

    data: the SPEC of the run, such as "shapes:hard"
    prompts: None where one is no caption
    pictures: (N, 3, H, W) uint8, n for each prompt
    first: (3, H, W) uint8 what edits begin with
    """
    kind, world, *_ = f"{data}::".split(":")
    if kind != "shapes" or pictures.shape[-1] != pictures.shape[-2]:
        return None
    n, verdicts, wanted = len(pictures) // len(prompts), [], {}
    oracle, given = WORLDS.get(world, WORLDS["shapes"]), () if first is None else (first.numpy(),)
    for prompt in dict.fromkeys(filter(None, prompts)):
        try:
            wanted[prompt] = oracle.parse(prompt, *given)
        except UserError as error:
            print(f"no verdict for '{prompt[:60]}': {error}", file=sys.stderr)
    for prompt, drawn in zip(prompts, pictures.split(n), strict=True):
        known = prompt in wanted
        verdicts += oracle.score([wanted[prompt]] * n, drawn.numpy()) if known else [None] * n
    return verdicts


def in_rows(
    pictures: Tensor, prompts: list[str], n: int, *, verdicts: Verdicts | None = None,
    scores: list[float] | None = None,
) -> Image.Image:  # fmt: skip
    """The grid of n pictures per prompt, each prompt's in rows of their own unless it has but one.

    pictures: (N, 3, H, W) uint8, N = n times the prompts; of an unfinished drawing the first ones
    """
    shown = [prompt for prompt in prompts for _ in range(n)]
    notes = [f"CLIP {score:.4f}" for score in scores or []]
    apart = n > 1 and len(prompts) > 1
    how = {"columns": min(n, 8), "each": n} if apart else {"columns": 4}
    return grid(pictures, shown, verdicts, notes=notes, **how)


def asked(arguments: argparse.Namespace) -> dict[str, str]:
    """What a picture's file says about how it was made: the prompts, and all settings as JSON."""
    apart = ("prompts", "out", "json", "gif", "resume", "device")
    settings = {
        k: v for k, v in vars(arguments).items() if k not in apart and v not in (None, False)
    }
    prompts = " / ".join(arguments.prompts)
    return {"prompt": prompts, "settings": json.dumps(settings, default=str, sort_keys=True)}


def show(arguments: argparse.Namespace, drawn: Drawn) -> None:
    prompts, n, (pictures, verdicts, scores, seeds) = arguments.prompts or [""], arguments.n, drawn
    told_in_file = asked(arguments)
    shown = in_rows(pictures, prompts, n, verdicts=verdicts, scores=scores)
    save_png(shown, arguments.out, told=told_in_file)
    singles, told = arguments.out.with_suffix(""), []
    for i, picture in enumerate(pictures):
        one = {"prompt": prompts[i // n], "file": str(singles / f"{i // n:03d}-{i % n}.png")}
        own = {"prompt": one["prompt"], "number": str(i)}  # of all that the seed has drawn
        if seeds:
            one["seed"] = seeds[i]
            own["seed"] = str(seeds[i])
        save_png(to_picture(picture), Path(one["file"]), told=told_in_file | own)
        if scores is not None:
            one["clip"] = round(scores[i], 4)
        if verdicts and verdicts[i] is not None:
            one |= {"right": verdicts[i].exact, "verdict": verdicts[i]._asdict()}
        told.append(one)
    if arguments.json:
        common = {} if seeds else {"seed": arguments.seed}
        print(json.dumps({"grid": str(arguments.out), **common, "pictures": told}))
        return
    for one in told if scores is not None else []:
        print(f"{one['file']}  CLIP {one['clip']:.4f}")
    noun = "picture" if len(told) == 1 else "pictures"
    print(f"{arguments.out}: {len(told)} {noun}; single ones in {singles}")
    if right := [one["right"] for one in told if "right" in one]:
        print(f"oracle: {sum(right)} of {len(right)} right")
