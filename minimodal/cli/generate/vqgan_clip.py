"""`python generate.py PROMPT … --method vqgan-clip`: a picture by CLIP's judgement of a VQGAN's.

Without `--steps` the best of a pool is improved by search; with them CLIP's gradient is followed,
from there or from another `--init`. PROMPT has a grammar, see `vqgan_clip/prompts.py`. Read
`vqgan_clip/pool.py` and `vqgan_clip/optimise.py` before.
"""

import argparse
import json
import math
import pickle
import re
import sys
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from minimodal.blocks.cutouts import CAPTION_TRUE, PHOTOGRAPHS
from minimodal.blocks.drawers import DRAWERS, make_drawer
from minimodal.blocks.painter import Painter, Request
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.sampling import SamplingConfig
from minimodal.cli.common import Parser, add_merges_flag
from minimodal.cli.generate.shared import Drawn, in_rows, judged
from minimodal.cli.generate.vqgan_prior import read_size
from minimodal.cli.pool import pool_of, prior_of, told
from minimodal.data.images import open_rgb
from minimodal.drawing import save_gif, save_png, to_picture
from minimodal.errors import UserError
from minimodal.files import write_atomically
from minimodal.runs import find
from minimodal.runs import load as load_run
from minimodal.training.probe import multiplies_bfloat16
from minimodal.training.progress import Signals
from minimodal.uses.zero_shot import read_lines
from minimodal.vqgan_clip import pool as pools
from minimodal.vqgan_clip.guide import Guide, make_guide
from minimodal.vqgan_clip.optimise import Optimisation, OptimiseConfig
from minimodal.vqgan_clip.prompts import Chapter, read_story
from minimodal.vqgan_clip.search import SearchConfig

STARTS = ("pool", "codes", "noise", "gradient", "dalle")
RATES = {"vqgan": 0.1, "codes": 0.3}  # of learning; 0.05 where pixels are moved
DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError)  # torch.load's
OF_STEPS = "drawer gif every size cutouts chunk against resume zoom shift".split()


def read_shift(text: str) -> tuple[float, float]:
    """`2,-1` as pixels to the right and down."""
    if not re.fullmatch(r"-?\d{1,4}(\.\d+)?,-?\d{1,4}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"'{text[:60]}': expected pixels X,Y such as 2,-1")
    x, y = text.split(",")
    return float(x), float(y)


def add_flags(parser: Parser) -> None:
    """The flags of the method."""
    add = parser.add_argument
    add("--steps", type=int, default=0, metavar="N",
        help="follow CLIP's gradient for N steps (default: 0, search alone)")  # fmt: skip
    add("--init", default="pool", metavar="HOW",
        help=f"{', '.join(STARTS)}, or the path of a picture (default: pool)")  # fmt: skip
    add("--search", type=float, metavar="SECONDS",
        help="search no longer than that for a picture; 0: the best of the pool (default: "
             f"until it is good, {SearchConfig().evaluations} tries at most)")  # fmt: skip
    add("--drawer", choices=DRAWERS, help="what the gradient moves (default: vqgan)")
    add("--size", metavar="WxH", help="width and height in pixels (default: as trained)")
    add("--cutouts", type=int, metavar="N", help="views of a picture in a step (default: 16)")
    add("--chunk", type=int, metavar="N", help="views in memory at a time (default: all)")
    add("--clip", type=Path, action="append", metavar="RUN|CHECKPOINT",
        help="who judges; given again, several do together (default: the run's)")  # fmt: skip
    add("--vqgan", type=Path, metavar="RUN|CHECKPOINT",
        help="who paints, for another --init than pool (default: the run's)")  # fmt: skip
    add_merges_flag(parser)
    add("--allow-unseen", action="store_true",
        help="words, too, that no caption of the CLIP's training had")  # fmt: skip
    add("--against", type=Path, metavar="FILE",
        help="follow how much better the prompt fits than these captions, one a line "
             "(default: how well)")  # fmt: skip
    add("--gif", type=Path, metavar="GIF", help="the steps as a moving picture (default: none)")
    add("--every", type=int, metavar="N",
        help="write a picture every N steps, and so many into --gif (default: for --gif a "
             "twentieth of the steps)")  # fmt: skip
    add("--zoom", type=float, metavar="F",
        help="enlarge the picture F times between frames (default: 1)")  # fmt: skip
    add("--shift", type=read_shift, metavar="X,Y",
        help="move it X pixels to the right and Y down between frames (default: 0,0)")  # fmt: skip
    add("--resume", action="store_true", help="go on where Ctrl-C has stopped the steps")


class Loaded(NamedTuple):
    """What a command line asks for, read."""

    stories: list[list[Chapter]]
    clips: list[nn.Module]
    guides: dict[Chapter, list[Guide]]  # what each CLIP wants in a chapter
    painter: Painter
    prior: pools.Prior | None  # of the pool
    picture: Image.Image | None  # to begin with


def check(arguments: argparse.Namespace) -> list[list[Chapter]]:
    """The prompts, and a refusal of flags that mean nothing, before anything is loaded."""
    if not arguments.prompts:
        raise UserError("no PROMPT; say what to draw, such as 'a red circle'")
    stories = [read_story(prompt) for prompt in arguments.prompts]
    if arguments.steps < 0 or (arguments.every is not None and arguments.every < 1):
        raise UserError("--steps: expected 0 or more; --every: 1 or more")
    if arguments.search is not None and not 0 <= arguments.search < 1e6:
        raise UserError(f"--search {arguments.search:g}: expected seconds, 0 or more")
    if not arguments.steps:
        for flag in OF_STEPS:
            if getattr(arguments, flag):
                raise UserError(f"--{flag} is for gradient steps: give --steps N")
        if arguments.init != "pool" or any(len(story) > 1 for story in stories):
            what = "a story (^)" if arguments.init == "pool" else f"--init {arguments.init}"
            raise UserError(f"{what} needs --steps N: the search is from the pool, for one prompt")
    settings(arguments, stories[0])  # refuses what is out of range
    if arguments.init == "pool":
        for flag in ("vqgan", "size"):
            if getattr(arguments, flag):
                raise UserError(f"--{flag}: the pool is of the run's own; give another --init")
    elif arguments.search is not None:
        raise UserError("--search begins with the pool: leave out --init")
    if arguments.zoom is not None and not 0.1 <= arguments.zoom <= 10:
        raise UserError(f"--zoom {arguments.zoom:g}: expected a factor from 0.1 to 10")
    if (arguments.zoom or arguments.shift) and not (arguments.gif or arguments.every):
        raise UserError("--zoom and --shift move the picture between frames: give --gif or --every")
    return stories


def settings(arguments: argparse.Namespace, story: list[Chapter]) -> OptimiseConfig:
    """How the gradient is followed through a story."""
    views = 16 if arguments.cutouts is None else arguments.cutouts
    steps = sum(chapter.steps or arguments.steps for chapter in story)
    rate = RATES.get(arguments.drawer or "vqgan", 0.05)
    return OptimiseConfig(steps=steps or 1, lr=rate, views=views, chunk=arguments.chunk or 0)


def load(arguments: argparse.Namespace, device: str) -> Loaded:
    """The models of a command line and its prompts, with what it asks for checked."""
    stories = check(arguments)
    own = arguments.vqgan and arguments.clip and arguments.init not in ("pool", "dalle")
    folder, picture = arguments.run if own else find(arguments.run, flag="--run"), None
    if arguments.init not in STARTS:
        if not Path(arguments.init).exists():
            raise UserError(
                f"--init {arguments.init}: no such picture, and none of {', '.join(STARTS)}"
            )
        picture = open_rgb(arguments.init)
    how = {"merges": arguments.merges, "activation": arguments.activation}
    places = [find(place, "clip", flag="--clip") for place in arguments.clip or [folder / "clip"]]
    clips = [load_run(place, kind="clip", **how).to(device) for place in places]
    against = read_lines(arguments.against) if arguments.against else []
    texts = [p.content for c in chain(*stories) for p in c.prompts if p.kind == "text"] + against
    for clip in clips if not arguments.allow_unseen else []:
        clip.words.check(texts)
    prior = prior_of(folder, device) if arguments.init == "pool" else None
    if prior is not None:
        painter = prior.painter
    else:
        place = find(arguments.vqgan or folder / "vqgan", "vqgan", flag="--vqgan")
        painter = Painter(load_run(place, kind="vqgan").to(device))
    for model in (*clips, painter.vqgan):
        model.requires_grad_(False)
    width, height = size_of(arguments, painter)
    for clip in clips:
        if (side := clip.config.image_size) not in (width, height):
            print(f"pictures of {width} x {height} are resized to the {side} x {side} that this "
                  "CLIP reads", file=sys.stderr)  # fmt: skip
    guides = {
        chapter: [make_guide(c, chapter.prompts, read=open_rgb, against=against) for c in clips]
        for chapter in chain(*stories)
    }
    return Loaded(stories, clips, guides, painter, prior, picture)


def size_of(arguments: argparse.Namespace, painter: Painter) -> tuple[int, int]:
    """Width and height in pixels."""
    side = painter.vqgan.config.image_size
    size = read_size(arguments.size) or (side, side)
    painter.grid_of(size)  # refuses what is no multiple of a code's pixels
    return size


def start_of(
    arguments: argparse.Namespace, loaded: Loaded, story: list[Chapter], seed: int, device: str
) -> Tensor:
    """What the gradient begins with, where that is no picture of the pool.

    returns: (1, 3, H, W) in [-1, 1]
    """
    width, height = size_of(arguments, loaded.painter)
    chance = torch.Generator().manual_seed(seed)
    if loaded.picture is not None:
        picture = loaded.picture.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        found = to_float(pixels.view(height, width, 3).permute(2, 0, 1))[None]
    elif arguments.init == "codes":
        grid = (1, *loaded.painter.grid_of((width, height)))
        codes = torch.randint(loaded.painter.vqgan.quantizer.size, grid, generator=chance)
        found = to_float(loaded.painter.decode(codes.to(device)))
    elif arguments.init == "noise":
        found = torch.rand(1, 3, height, width, generator=chance) * 2 - 1
    elif arguments.init == "gradient":  # from one colour to another, at some angle
        first, last = (torch.rand(2, 3, 1, 1, generator=chance) * 2 - 1).unbind()  # (3, 1, 1)
        x, y = torch.linspace(0, 1, width)[None], torch.linspace(0, 1, height)[:, None]
        share = torch.rand((), generator=chance)
        found = torch.lerp(first, last, share * x + (1 - share) * y)[None]
    else:
        dalle = load_run(find(arguments.run, "dalle", flag="--run"), kind="dalle").to(device)
        request = Request(1, torch.Generator(device).manual_seed(seed))
        how = SamplingConfig(**dalle.run["model"].get("sampling", {}))
        found = to_float(dalle.draw(story[0].prompts[0].content, request, how, truncate=True))
    return found.to(device)


class Work:
    """Pictures one after the other, and what is kept of them when somebody stops the steps."""

    def __init__(self, arguments: argparse.Namespace, loaded: Loaded, device: str) -> None:
        self.arguments, self.loaded, self.device = arguments, loaded, device
        self.on_shapes = str(loaded.clips[0].run.get("data")).startswith("shapes")
        self.place = arguments.out.with_suffix(".state.pt")
        self.pictures: list[Tensor] = []  # (3, H, W) uint8, that are finished
        self.frames: list[list[Tensor]] = []  # of each picture
        self.inside: dict[str, Any] | None = None  # the state of the one that is not
        asked = {k: v for k, v in vars(arguments).items() if k not in ("resume", "json", "chunk")}
        self.asked = json.dumps(asked, default=str, sort_keys=True)
        if arguments.resume:
            self.read()

    def read(self) -> None:
        """Go on from a state file."""
        if not self.place.exists():
            raise UserError(f"--resume: there is no {self.place}, so nothing was stopped")
        try:
            state = torch.load(self.place, map_location=self.device, weights_only=True)
        except DAMAGED:
            raise UserError(f"{self.place} is damaged: remove it and begin again") from None
        if state["asked"] != self.asked:
            old, new = json.loads(state["asked"]), json.loads(self.asked)
            other = next(k for k in new if old.get(k) != new[k])
            raise UserError(
                f"--resume: {other} was {old.get(other)} and is {new[other]}; give the same command"
            )
        self.pictures, self.frames = state["pictures"], state["frames"]
        self.inside = state["inside"]

    def stop(self, optimisation: Optimisation) -> None:
        """Write the state file and leave."""
        state = {"asked": self.asked, "pictures": self.pictures, "frames": self.frames,
                 "inside": optimisation.state()}  # fmt: skip
        write_atomically(self.place, lambda file: torch.save(state, file))
        print(f"{self.place} is kept: the same command with --resume goes on", file=sys.stderr)
        raise KeyboardInterrupt

    def seed(self, number: int) -> int:
        """Of a picture."""
        seeds = self.arguments.seeds
        return seeds[number] if seeds else (self.arguments.seed + number) % 2**63

    def all(self) -> Tensor:
        """All pictures.

        returns: (N, 3, H, W) uint8
        """
        # Before the first step: a pool may take a minute.
        found = {} if self.loaded.prior is None else self.searched()
        n = self.arguments.n
        for number in range(len(self.pictures), n * len(self.loaded.stories)):
            picture = found.get(number)
            if self.arguments.steps:
                picture = self.followed(number, picture)
            self.pictures.append(to_uint8(picture).cpu()[0])
        self.place.unlink(missing_ok=True)
        return torch.stack(self.pictures)

    def searched(self) -> dict[int, Tensor]:
        """What the search finds for each picture that is not begun yet.

        returns: (1, 3, H, W) in [-1, 1] each
        """
        a, loaded, found = self.arguments, self.loaded, {}
        first = len(self.pictures) + (self.inside is not None)
        numbers = range(first, a.n * len(loaded.stories))
        wanted = [loaded.guides[story[0]] for story in loaded.stories]
        pool = pool_of(find(a.run), loaded.prior, wanted[0])
        config = SearchConfig(evaluations=10**9) if a.search else SearchConfig()
        with told("searched pictures are kept when all are found: none is saved"):
            for number in tqdm(numbers, desc="search", file=sys.stderr, disable=None, leave=False):
                codes = pools.find(
                    loaded.prior, wanted[number // a.n], pool, seed=self.seed(number),
                    skip=number % a.n, config=None if a.search == 0 else config,
                    seconds=a.search or math.inf,
                    enough=pools.ENOUGH if self.on_shapes else math.inf,
                ).codes[:1]  # fmt: skip
                found[number] = to_float(loaded.painter.decode(codes.to(self.device)))
        return found

    def followed(self, number: int, start: Tensor | None) -> Tensor:
        """A picture after all steps.

        start: (1, 3, H, W) what the search has found, in [-1, 1]
        returns: (1, 3, H, W) in [-1, 1]
        """
        a, story = self.arguments, self.loaded.stories[number // self.arguments.n]
        if start is None and self.inside is not None:  # only its size matters
            start = torch.zeros(1, 3, *size_of(a, self.loaded.painter)[::-1], device=self.device)
        if start is None:
            start = start_of(a, self.loaded, story, self.seed(number), self.device)
        drawer = make_drawer(a.drawer or "vqgan", start, vqgan=self.loaded.painter.vqgan)
        ends = [0, *accumulate(chapter.steps or a.steps for chapter in story)]
        native = multiplies_bfloat16(torch.device(self.device))
        config = replace(settings(a, story), bfloat16=native)
        optimisation = Optimisation(
            drawer, self.loaded.guides[story[0]], config, seed=self.seed(number),
            views=CAPTION_TRUE if self.on_shapes else PHOTOGRAPHS,
        )  # fmt: skip
        if self.inside is not None:
            optimisation.restore(self.inside)
            chapter = next(i for i, end in enumerate(ends[1:]) if optimisation.number <= end)
            optimisation.guides = self.loaded.guides[story[chapter]]
            self.inside = None
        else:
            self.frames.append([])
        if number == 0:
            print(f"memory of a step: about {optimisation.memory() / 2**20:.0f} MiB",
                  file=sys.stderr)  # fmt: skip
        return self.run(optimisation, dict(zip(ends[1:-1], story[1:], strict=True)), number)

    def run(self, optimisation: Optimisation, later: dict[int, Chapter], number: int) -> Tensor:
        """All steps that are left, with a bar; a signal ends them after a step.

        later: chapters by the step they begin with
        returns: (1, 3, H, W) in [-1, 1]
        """
        a, total = self.arguments, optimisation.config.steps
        every = a.every or (max(1, total // 20) if a.gif else math.inf)
        bar = tqdm(total=total, initial=optimisation.number, desc=f"picture {number}",
                   file=sys.stderr, disable=None, leave=False)  # fmt: skip
        with bar, Signals("vqgan-clip") as signals:
            while not optimisation.done:
                if optimisation.number in later:
                    optimisation.ask(self.loaded.guides[later[optimisation.number]])
                loss = optimisation.step()
                bar.update()
                bar.set_postfix(loss=f"{float(loss.mean()):.4f}")
                if optimisation.number % every == 0:
                    self.frame(optimisation, number)
                    if (a.zoom or a.shift) and not optimisation.done:
                        optimisation.move(a.zoom or 1, a.shift or (0, 0))
                if signals.received and not optimisation.done:
                    self.stop(optimisation)
        return optimisation.best

    def frame(self, optimisation: Optimisation, number: int) -> None:
        """Keep a step's picture for the GIF, and write it where asked for."""
        with torch.no_grad():
            picture = to_uint8(optimisation.drawer.pictures())[0].cpu()
        self.frames[number].append(picture)
        if self.arguments.every:
            folder, n = self.arguments.out.with_suffix("") / "steps", self.arguments.n
            name = f"{number // n:03d}-{number % n}-{optimisation.number:05d}.png"
            save_png(to_picture(picture), folder / name)


def draw(arguments: argparse.Namespace, loaded: Loaded, device: str) -> Drawn:
    """All pictures, and the oracle's verdicts of prompts that are one caption."""
    work = Work(arguments, loaded, device)
    pictures = work.all()
    if arguments.gif:
        most = max(map(len, work.frames))
        steps = [[frames[min(i, len(frames) - 1)] for frames in work.frames] for i in range(most)]
        save_gif([in_rows(torch.stack(s), arguments.prompts, arguments.n) for s in steps],
                 arguments.gif)  # fmt: skip
    said = [
        one.content if len(story) == len(story[0].prompts) == 1 and one.kind == "text" else None
        for story in loaded.stories
        for one in story[0].prompts[:1]
    ]
    verdicts = judged(str(loaded.clips[0].run.get("data")), said, pictures)
    return Drawn(pictures, verdicts, seeds=arguments.seeds)
