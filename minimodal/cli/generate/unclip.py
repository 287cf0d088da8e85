"""`python generate.py PROMPT … --method unclip`: pictures from unCLIP, and its toolbox.

    generate.py "a red circle" --method unclip                     a prompt's pictures
    generate.py --method unclip --variations-of IMG                pictures with the same embedding
    generate.py --method unclip --interpolate A B                  the way from one to the other
    generate.py --method unclip --edit IMG "a red square" "a blue circle"
    generate.py --method unclip --mix "a red circle:0.5" IMG:0.5   of a weighted sum of embeddings
    generate.py --method unclip --strip IMG                        of ever more of its embedding

Read `minimodal/uses/unclip.py` before.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from minimodal.blocks.diffusion import SAMPLERS, Held, Sampler, Start
from minimodal.blocks.given import outside
from minimodal.blocks.painter import Request
from minimodal.blocks.sampling import normal
from minimodal.cli.common import Parser, read_picture
from minimodal.cli.generate.shared import (
    Drawn,
    add_complete_flags,
    add_rerank_flags,
    check_complete,
    choose,
    clip_for,
    each,
    in_rows,
    judged,
    requested,
)
from minimodal.cli.unclip import load_unclip, prior_beside
from minimodal.clip import CLIP
from minimodal.data.images import centre_square
from minimodal.data.listing import SUFFIXES, suffix_of
from minimodal.drawing import save_gif, to_picture
from minimodal.errors import UserError
from minimodal.runs import find
from minimodal.uses.unclip import UnCLIP

TOOLS = ("variations_of", "interpolate", "edit", "mix", "strip")


def add_flags(parser: Parser) -> None:
    """The flags of the method."""
    add = parser.add_argument
    add("--steps", type=int, metavar="N", help="of denoising (default: the run's own)")
    add("--sampler", choices=SAMPLERS, help="(default: the run's own)")
    add("--eta", type=float, default=0.0, metavar="E",
        help="noise that DDIM adds on the way, 0 to 1 (default: 0)")  # fmt: skip
    add("--guidance", type=float, metavar="S",
        help="how much the prompt counts; 1 is plain (default: the run's own)")  # fmt: skip
    add("--guide-to", type=float, metavar="T",
        help="guidance from time 1, noise, down to this one: the first steps alone are faster, and "
             "worse for what no caption of the training had (default: 0, all steps)")  # fmt: skip
    add("--no-caption", action="store_true",
        help="the decoder sees embeddings alone, not the words of prompts and --edit")  # fmt: skip
    add("--prior", type=Path, metavar="RUN", help="(default: the one beside the decoder)")
    add("--upsampler", type=Path, metavar="RUN", help="enlarges the pictures (default: none)")
    add("--variations-of", type=Path, metavar="IMG",
        help="draw what has its embedding (default: none)")  # fmt: skip
    add("--interpolate", type=Path, nargs=2, metavar=("A", "B"),
        help="draw -n pictures on the way from A to B (default: none)")  # fmt: skip
    add("--edit", nargs="+", metavar="IMG BEFORE AFTER",
        help="move IMG along the difference of two captions (default: none)")  # fmt: skip
    add("--mix", nargs="+", metavar="ITEM:W",
        help="draw a weighted sum of pictures and prompts (default: none)")  # fmt: skip
    add("--strip", type=Path, metavar="IMG",
        help="draw what ever more principal directions know (default: none)")  # fmt: skip
    add_complete_flags(parser)
    add("--begin", type=Path, metavar="IMG",
        help="begin with this picture, noised, instead of noise (default: none)")  # fmt: skip
    add("--strength", type=float, metavar="S",
        help="how much --begin is noised (default: 0.6), or how far --edit goes (default: 0.5); "
             "0 to 1")  # fmt: skip
    add_rerank_flags(parser)
    add("--allow-unseen", action="store_true",
        help="draw for words, too, that no caption of the training had")  # fmt: skip
    add("--gif", type=Path, metavar="GIF",
        help="the denoising, as a moving picture (default: none)")  # fmt: skip


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    tools = [tool for tool in TOOLS if getattr(arguments, tool)]
    flags = [f"--{tool.replace('_', '-')}" for tool in tools]
    if len(tools) > 1:
        raise UserError(f"{flags[0]} and {flags[1]} do not go together: leave one of them out")
    if not tools and not arguments.prompts:
        raise UserError("no PROMPT; say what to draw, such as 'a red circle', or give a picture "
                        "to --variations-of, --interpolate, --edit, --mix or --strip")  # fmt: skip
    if tools and arguments.prompts:
        raise UserError(f"{flags[0]} takes no PROMPT beside it: '{arguments.prompts[0][:60]}'")
    if arguments.no_caption and tools and not arguments.edit:
        raise UserError(f"--no-caption is for prompts and --edit, not for {flags[0]}")
    for flag in ("rerank", "complete", "begin"):
        if tools and getattr(arguments, flag):
            raise UserError(f"--{flag.replace('_', '-')} is for prompts, not for {flags[0]}")
    if arguments.edit and len(arguments.edit) != 3:
        raise UserError("--edit takes a picture and two captions, of what it shows and of what is "
                        "wanted: --edit IMG 'a red square' 'a blue circle'")  # fmt: skip
    if arguments.complete and arguments.begin:
        raise UserError("--complete and --begin do not go together: leave one of them out")
    check_complete(arguments)
    if arguments.strength is not None:
        if not (arguments.begin or arguments.edit):
            raise UserError("--strength is for --begin IMG or --edit")
        if not 0 <= arguments.strength <= 1:
            raise UserError(f"--strength {arguments.strength}: expected from 0 to 1")
    for item in arguments.mix or []:
        weight_of(item)


def weight_of(item: str) -> tuple[str, float]:
    """`a red circle:0.5` as what and how much."""
    what, _, number = item.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        weight = float("nan")
    if not what.strip() or not -1000 <= weight <= 1000:
        raise UserError(f"--mix '{item[:60]}': expected a prompt or a picture and its weight, such "
                        "as 'a red circle:0.5'")  # fmt: skip
    return what, weight


def sampler_of(arguments: argparse.Namespace, own: Sampler) -> Sampler:
    """How to denoise: by the flags, and where they say nothing as the run has it."""
    asked = {"name": arguments.sampler, "steps": arguments.steps, "guidance": arguments.guidance,
             "guide_to": arguments.guide_to}  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    how = own._replace(**given, eta=arguments.eta)
    how.check()
    return how


def load(arguments: argparse.Namespace, device: str) -> tuple[UnCLIP, Sampler, CLIP | None]:
    """The models of a command line and how they draw, with what it asks for checked."""
    check(arguments)
    sampler_of(arguments, Sampler("ddim"))  # refuses what is out of range for any sampler
    folder, prior, upsampler = find(arguments.run, "decoder", flag="--run"), None, None
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no decoder: `python train.py demo --with unclip` trains one with its "
            "prior, or give --run with a run of train.py decoder"
        )
    mixed = [weight_of(item)[0] for item in arguments.mix or ()]
    for what in mixed:
        if suffix_of(what) in SUFFIXES and not Path(what).is_file():
            raise UserError(f"--mix {what}: no such file")
    texts = arguments.prompts + [what for what in mixed if not Path(what).is_file()]
    if arguments.prior and not texts:
        raise UserError("--prior is for prompts: there is none here, so leave it out")
    if texts:
        prior = prior_beside(folder, arguments.prior)
    if arguments.upsampler:
        upsampler = find(arguments.upsampler, "upsampler", flag="--upsampler")
    model, own = load_unclip(folder, device, prior=prior, upsampler=upsampler)
    if not arguments.allow_unseen:
        model.clip.words.check(texts + (arguments.edit or [])[1:])
    return model, sampler_of(arguments, own), clip_for(arguments, folder / "clip", device)


def sized(path: Path, size: int) -> Tensor:
    """A picture file in the size that is drawn; says so where it was of another.

    returns: (3, S, S) uint8
    """
    picture = read_picture(path)
    height, width = picture.shape[1:]
    if (height, width) == (size, size):
        return picture
    print(f"{path}: {width} x {height} pixels, made {size} x {size}", file=sys.stderr)
    return torch.from_numpy(centre_square(to_picture(picture), size))


def begin(arguments: argparse.Namespace, model: UnCLIP, device: str) -> Start:
    """Where the walk begins: in noise, in a picture that is noised, or around what is kept of one.

    Its tensors have one row, for all pictures.
    """
    place = arguments.complete or arguments.begin
    if place is None:
        return Start()
    x = model.latents(sized(place, model.decoder.config.image_size)[None])  # (1, C, H, W)
    noise = normal(x, torch.Generator(device).manual_seed(arguments.seed))
    if arguments.begin:
        strength = 0.6 if arguments.strength is None else arguments.strength
        return model.noised(x, noise, time=strength)
    factor = model.decoder.config.image_size // x.shape[-1]
    keep = outside(arguments.redraw, grid=x.shape[-1], factor=factor).to(device)
    return Start(held=Held(x, keep, noise))


def use_tool(
    arguments: argparse.Namespace, model: UnCLIP, request: Request, how: Sampler
) -> Tensor:
    """The pictures of one of TOOLS.

    returns: (n, 3, S, S) uint8
    """
    size = max(part.config.image_size for part in (model.clip, model.decoder))
    if arguments.variations_of:
        return model.vary(sized(arguments.variations_of, size), request, how)
    if arguments.interpolate:
        a, b = (sized(place, size) for place in arguments.interpolate)
        return model.interpolate(a, b, request, how)
    if arguments.edit:
        place, before, after = arguments.edit
        strength = 0.5 if arguments.strength is None else arguments.strength
        steps = strength * torch.arange(1, request.n + 1) / request.n
        picture = sized(Path(place), size)[None]
        captioned = not arguments.no_caption
        return model.edit(
            picture, [before], [after], steps, request=request, how=how, captioned=captioned
        )
    if arguments.mix:
        items = [weight_of(item) for item in arguments.mix]
        generator = torch.Generator(model.device).manual_seed(arguments.seed)
        parts = [
            model.embed(sized(Path(what), size)[None]) if Path(what).is_file()
            else model.embed_prompt(what, generator) for what, _ in items
        ]  # fmt: skip
        weights = torch.tensor([weight for _, weight in items], device=model.device)
        return model.mix(torch.cat(parts), weights, request, how)
    most, n = model.clip.config.embed_width, request.n
    dims = [max(1, round(most ** ((i + 1) / n))) for i in range(n)]  # 1 … E, evenly in ratio
    return model.strip(sized(arguments.strip, size), dims, request, how)


def draw(
    arguments: argparse.Namespace, loaded: tuple[UnCLIP, Sampler, CLIP | None], device: str
) -> Drawn:
    """All pictures, chosen and judged; the denoising of the first ones as a GIF where asked for."""
    model, how, clip = loaded
    frames: list[Tensor] = []

    def step(pictures: Tensor, done: int) -> None:
        if done == 0:  # of the first batch
            frames.append(pictures.cpu())

    with requested(arguments, device, partial=step if arguments.gif else None) as request:
        if arguments.prompts:
            start = begin(arguments, model, device)
            captioned = not arguments.no_caption
            pictures = model.draw(arguments.prompts, request, how, start=start, captioned=captioned)
        else:
            pictures = use_tool(arguments, model, request, how)
    pictures = pictures.cpu()
    if arguments.gif:
        prompts = arguments.prompts or [""]
        save_gif([in_rows(f, prompts, each(arguments)) for f in frames], arguments.gif)
    if not arguments.prompts:
        return Drawn(pictures, seeds=arguments.seeds)
    drawn = choose(arguments, clip, pictures)
    return drawn._replace(
        verdicts=judged(str(model.decoder.run["data"]), arguments.prompts, drawn.pictures)
    )
