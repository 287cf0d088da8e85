"""`python generate.py PROMPT …`: pictures for prompts, as a labelled grid and one by one.

With DALL·E here, with VQGAN's second stage in `generate_prior.py`.

With `--first` a run on pairs draws what a prompt makes of that picture ("the same in red").
With a run of the Shapes world the oracle's verdict stands under each picture, and `--rerank`
lets CLIP choose among more than are shown. Read `dalle.DALLE.generate` and `drawing.grid`.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minimodal.blocks.sampling import SamplingConfig
from minimodal.cli.common import Parser, check_seed, randomness, read_picture, run_command
from minimodal.cli.generate_prior import add_prior_flags, draw_prior, load_prior
from minimodal.cli.which_clip import add_merges_flag
from minimodal.clip import CLIP
from minimodal.dalle import DALLE
from minimodal.drawing import grid, save_gif, save_png, to_picture
from minimodal.errors import UserError
from minimodal.evaluation.scoreboard import rerank
from minimodal.files import folders
from minimodal.runs import load, run_of
from minimodal.shapes.worlds import WORLDS, AnyVerdict
from minimodal.training.distributed import pick_device
from minimodal.vqgan_prior import VQGANPrior

ABOUT = "draw pictures for prompts"
OF_PRIORS = ("size", "keep", "stride")  # flags of generate_prior.py alone
OF_CAPTIONS = (  # those that it has no use for
    "rerank", "clip", "merges", "activation", "truncate", "allow_unseen", "redraw", "gif", "first",
    "negative",
)  # fmt: skip
MOST = 4096  # pictures of one command: more than anyone looks at, less than memory holds


def read_seeds(text: str) -> list[int]:
    """`3,7` as a list of seeds."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\d{1,19}", part) and int(part) < 2**63 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text[:60]}': expected numbers such as 3,7")
    return [int(part) for part in parts]


def read_box(text: str) -> tuple[int, ...]:
    """`0,16,32,32` as left, top, right and bottom."""
    parts = text.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"\s*-?\d{1,9}\s*", part) for part in parts):
        raise argparse.ArgumentTypeError(f"'{text[:60]}': expected four numbers such as 0,16,32,32")
    return tuple(int(part) for part in parts)


def make_parser(prog: str = "generate.py") -> Parser:
    """The flags of generate.py."""
    parser = Parser(prog=prog, description=ABOUT)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT",
        help="what to draw: captions, or classes of a vqgan-prior, which needs none")  # fmt: skip
    add("--method", choices=["dalle", "vqgan-prior"], default="dalle",
        help="which system draws (default: dalle)")  # fmt: skip
    add("--run", type=Path, default=Path("runs/demo"), metavar="RUN",
        help="a demo folder or a run of the method (default: runs/demo)")  # fmt: skip
    add("-n", type=int, default=4, metavar="N", help="pictures a prompt (default: 4)")
    add("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    add("--temperature", type=float, metavar="T",
        help="below 1 is safer, above 1 wilder (default: the run's own)")  # fmt: skip
    add("--top-k", type=int, default=0, metavar="K",
        help="draw among the K likeliest codes (default: 0, all)")  # fmt: skip
    add("--top-p", type=float, default=1.0, metavar="P",
        help="draw among the likeliest that hold P together (default: 1, all)")  # fmt: skip
    add("--min-p", type=float, default=0.0, metavar="P",
        help="drop codes less than P times as likely as the best (default: 0, none)")  # fmt: skip
    add("--guidance", type=float, metavar="S",
        help="how much the caption counts; 1 is plain (default: the run's own)")  # fmt: skip
    add("--negative", metavar="PROMPT",
        help="what not to draw; guidance pushes away from it (default: none)")  # fmt: skip
    add("--rerank", type=int, default=0, metavar="K",
        help="draw K a prompt (at least N), keep the N that CLIP finds best "
             "(default: 0, off)")  # fmt: skip
    add("--clip", type=Path, metavar="RUN|CHECKPOINT",
        help="the CLIP for --rerank, a run or an original checkpoint "
             "(default: the run beside the dalle run)")  # fmt: skip
    add_merges_flag(parser)
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--out", type=Path, default=Path("pictures.png"), metavar="PNG",
        help="the grid; the single pictures go into a folder of that name "
             "(default: pictures.png)")  # fmt: skip
    add("--truncate", action="store_true", help="cut prompts that are too long")
    add("--allow-unseen", action="store_true",
        help="draw for words, too, that no caption of the training had")  # fmt: skip
    add("--seeds", type=read_seeds, metavar="S,S,…",
        help="one seed for each picture, which is then the same beside any others "
             "(default: --seed for all together)")  # fmt: skip
    add("--complete", type=Path, metavar="IMG",
        help="a picture that stays but for a rectangle (vqgan-prior: but for its lower part; "
             "default: none)")  # fmt: skip
    add("--redraw", type=read_box, metavar="L,T,R,B",
        help="the rectangle to draw anew: left, top, right, bottom in pixels "
             "(default: the lower half)")  # fmt: skip
    add("--first", type=Path, metavar="IMG",
        help="of a run on pairs: the picture that the prompts say how to change "
             "(default: none)")  # fmt: skip
    add("--gif", type=Path, metavar="GIF",
        help="the drawing, row by row, as a moving picture (default: none)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of words")
    add_prior_flags(parser)
    return parser


def refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse flags that would be ignored, where they have another value than their default."""
    defaults = make_parser()
    for name in names:
        if getattr(arguments, name) != defaults.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} {why}")


def check(arguments: argparse.Namespace) -> None:
    """Say what is wrong with the flags before anything is loaded."""
    if arguments.n < 1:
        raise UserError(f"-n {arguments.n}: expected 1 or more pictures a prompt")
    if arguments.rerank < 0:
        raise UserError(f"--rerank {arguments.rerank}: expected 0 (off) or more")
    if arguments.method == "dalle":
        if not arguments.prompts:
            raise UserError("no PROMPT; say what to draw, such as 'a red circle'")
        refuse(arguments, OF_PRIORS, "is for --method vqgan-prior")
        if not arguments.rerank:
            refuse(arguments, ("clip", "merges", "activation"), "is for --rerank K")
        if arguments.redraw and not arguments.complete:
            raise UserError("--redraw needs the picture: --complete IMG")
        if arguments.first and (arguments.complete or arguments.rerank):
            other = "--complete" if arguments.complete else "--rerank"
            raise UserError(f"--first and {other} do not go together: leave one of them out")
    else:
        refuse(arguments, OF_CAPTIONS, "is for --method dalle; vqgan-prior has none")
    each, prompts = max(arguments.n, arguments.rerank), max(len(arguments.prompts), 1)
    if arguments.seeds and len(arguments.seeds) != each * prompts:
        raise UserError(f"{len(arguments.seeds)} --seeds for {each * prompts} pictures")
    if each * prompts > MOST:
        raise UserError(
            f"{each} pictures for each of {prompts} prompts: expected {MOST} in all or fewer"
        )
    check_seed(arguments.seed)
    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"--out {arguments.out}: expected a name that ends in .png")
    for prompt in arguments.prompts:
        if not prompt.strip():
            raise UserError("a prompt is empty; say what to draw, such as 'a red circle'")
    values = (arguments.temperature, arguments.guidance)
    temperature, guidance = (1.0 if value is None else value for value in values)
    SamplingConfig(temperature, arguments.top_k, arguments.top_p, guidance, arguments.min_p)
    if arguments.gif and arguments.gif.suffix.lower() != ".gif":
        raise UserError(f"--gif {arguments.gif}: expected a name that ends in .gif")


def clip_for(arguments: argparse.Namespace, folder: Path, device: str) -> CLIP:
    """The CLIP that reranks."""
    place = arguments.clip or folder.parent / "clip"
    if not place.exists():
        raise UserError(f"--rerank needs a CLIP and there is none in {place}; give --clip RUN")
    clip = load(place, kind="clip", merges=arguments.merges, activation=arguments.activation)
    if not arguments.allow_unseen:
        clip.words.check(arguments.prompts)
    clip.tokenize(arguments.prompts, truncate=True)  # say before the drawing that it cannot
    return clip.to(device)


def judged(
    prompts: list[str], pictures: Tensor, *, world: str, first: Tensor | None
) -> list[AnyVerdict | None]:
    """The oracle's verdict of each picture; None where it cannot read the prompt.

    world: a key of WORLDS, or else the plain world
    pictures: (N, 3, H, W) uint8
    first: (3, H, W) uint8 what edits begin with
    """
    readable, wanted, oracle = [], [], WORLDS.get(world, WORLDS["shapes"])
    given = () if first is None else (first.numpy(),)
    for i, prompt in enumerate(prompts):
        try:
            wanted.append(oracle.parse(prompt, *given))
            readable.append(i)
        except UserError as error:
            if prompt not in prompts[:i]:
                print(f"no verdict for '{prompt[:60]}': {error}", file=sys.stderr)
    verdicts: list[AnyVerdict | None] = [None] * len(prompts)
    if readable:
        found = oracle.score(wanted, pictures[readable].numpy())
        for i, verdict in zip(readable, found, strict=True):
            verdicts[i] = verdict
    return verdicts


def in_rows(
    pictures: Tensor,
    prompts: list[str],
    n: int,
    *,
    verdicts: list[AnyVerdict | None] | None = None,
    scores: list[float] | None = None,
) -> Image.Image:
    """The grid of n pictures a prompt, each prompt's in rows of their own.

    pictures: (N, 3, H, W) uint8, N = n times the prompts; of an unfinished drawing the first ones
    """
    shown = [prompt for prompt in prompts for _ in range(n)]
    notes = [f"CLIP {score:.4f}" for score in scores or []]
    columns = min(n, 8) if len(prompts) > 1 else 4
    return grid(pictures, shown, verdicts, notes=notes, columns=columns, each=n)


def draw(arguments: argparse.Namespace, dalle: DALLE, device: str) -> Tensor:
    """All pictures, on the CPU; the first ones row by row as a GIF where that is asked for.

    returns: (N, 3, H, W) uint8
    """
    own = dalle.run["model"].get("sampling", {})
    each = max(arguments.n, arguments.rerank)
    frames: list[Tensor] = []

    def chosen(value: float | None, name: str) -> float:
        return own.get(name, 1.0) if value is None else value

    def row(pictures: Tensor, done: int) -> None:
        if done == 0:
            frames.append(pictures.cpu())

    guidance = chosen(arguments.guidance, "guidance")
    compares = guidance != 1 and arguments.negative is None
    if compares and dalle.run["model"].get("training", {}).get("caption_dropout") == 0:
        raise UserError(
            f"--guidance {guidance:g}: the run never saw an empty caption (caption_dropout 0), "
            "which guidance compares with; give --guidance 1"
        )
    with tqdm(total=100, unit="%", file=sys.stderr, disable=None, leave=False) as bar:
        pictures = dalle.generate(
            arguments.prompts,
            each,
            temperature=chosen(arguments.temperature, "temperature"),
            guidance=guidance,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_p=arguments.min_p,
            negative=arguments.negative,
            complete=read_picture(arguments.complete) if arguments.complete else None,
            redraw=arguments.redraw,
            first=read_picture(arguments.first) if arguments.first else None,
            truncate=arguments.truncate,
            allow_unseen=arguments.allow_unseen,
            progress=lambda done: bar.update(int(100 * done) - bar.n),
            partial=row if arguments.gif else None,
            **randomness(arguments, device),
        ).cpu()
    if arguments.gif:
        save_gif([in_rows(frame, arguments.prompts, each) for frame in frames], arguments.gif)
    return pictures


def told(
    arguments: argparse.Namespace,
    shown: list[str],
    files: list[Path],
    verdicts: list[AnyVerdict | None] | None,
    scores: list[float] | None,
    seeds: list[int] | None,
) -> None:
    """Print what was made, in words or as JSON."""
    known = [verdict for verdict in verdicts or [] if verdict is not None]
    if not arguments.json:
        for similarity, file in zip(scores or [], files, strict=False):
            print(f"{file}  CLIP {similarity:.4f}")
        noun = "picture" if len(shown) == 1 else "pictures"
        print(f"{arguments.out}: {len(shown)} {noun}; single ones in {files[0].parent}")
        if known:
            right = sum(verdict.exact for verdict in known)
            print(f"oracle: {right} of {len(known)} right")
        return
    pictures = []
    for i, (prompt, file) in enumerate(zip(shown, files, strict=True)):
        one = {"prompt": prompt, "file": str(file)}
        if seeds:
            one["seed"] = seeds[i]
        if scores is not None:
            one["clip"] = round(scores[i], 4)
        if verdicts and verdicts[i] is not None:
            one |= {"right": verdicts[i].exact, "verdict": verdicts[i]._asdict()}
        pictures.append(one)
    common = {} if seeds else {"seed": arguments.seed}
    print(json.dumps({"grid": str(arguments.out), **common, "pictures": pictures}))


def show(
    arguments: argparse.Namespace, model: DALLE | VQGANPrior, clip: CLIP | None, pictures: Tensor
) -> None:
    """Choose, judge and write.

    pictures: (N, 3, H, W) uint8 all that were drawn
    """
    prompts, n = arguments.prompts or [""], arguments.n
    scores, seeds = None, arguments.seeds
    if clip is not None:
        sets = pictures.unflatten(0, (len(prompts), -1))  # (P, K, 3, H, W)
        order, similarity = rerank(clip, prompts, sets)
        best = [each[rank[:n]] for each, rank in zip(sets, order, strict=True)]
        pictures, scores = torch.cat(best), similarity[:, :n].flatten().tolist()
        if seeds:
            seeds = torch.tensor(seeds).view(order.shape).gather(1, order)[:, :n].flatten().tolist()
    shown = [prompt for prompt in prompts for _ in range(n)]
    data = str(model.run.get("data")).split(":")
    verdicts = None
    if data[0] == "shapes" and arguments.method == "dalle":
        first = read_picture(arguments.first) if arguments.first else None
        verdicts = judged(shown, pictures, world=data[1] if len(data) > 1 else "", first=first)
    save_png(in_rows(pictures, prompts, n, verdicts=verdicts, scores=scores), arguments.out)
    singles = arguments.out.with_suffix("")
    files = [singles / f"{i // n:03d}-{i % n}.png" for i in range(len(shown))]
    for picture, file in zip(pictures, files, strict=True):
        save_png(to_picture(picture), file)
    told(arguments, shown, files, verdicts, scores, seeds)


def generate(arguments: argparse.Namespace) -> None:
    """Load, draw and show."""
    check(arguments)
    device = pick_device(arguments.device)
    clip = None
    if arguments.method == "dalle":
        folder = run_of("dalle", arguments.run, "--run")
        model = load(folder, kind="dalle").to(device)
        clip = clip_for(arguments, folder, device) if arguments.rerank else None
    else:
        model = load_prior(arguments, device)
    places = {"--out": arguments.out} | ({"--gif": arguments.gif} if arguments.gif else {})
    parents = [place.parent for place in places.values()]
    with folders(arguments.out.with_suffix(""), *parents):  # before the drawing: it takes longest
        for flag, place in places.items():
            if place.is_dir():
                raise UserError(f"{flag} {place} is a folder; give the name of a picture in it")
        paint = draw if arguments.method == "dalle" else draw_prior
        show(arguments, model, clip, paint(arguments, model, device))


def main(argv: Sequence[str] | None = None, *, prog: str = "generate.py") -> int:
    """The command; returns the exit status."""
    return run_command(lambda argv: generate(make_parser(prog).parse_args(argv)), argv)
