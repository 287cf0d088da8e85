"""unCLIP's runs: how generate.py loads them, and how `train.py demo --with unclip` makes them.

The demo trains a prior and a decoder of code vectors on its own CLIP and VQGAN. Both have their
recipes' own steps: 27 minutes of one core where bfloat16 is native, 48 elsewhere.
Read `cli/demo.py` and `evaluation/unclip.py` before.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from minimodal.blocks.diffusion import Sampler
from minimodal.blocks.painter import Painter
from minimodal.drawing import grid, save_png
from minimodal.errors import UserError
from minimodal.evaluation.scoreboard import captions_to_show, format_scoreboard
from minimodal.evaluation.unclip import draw_with, unclip_scores
from minimodal.files import digest, read_json, write_json
from minimodal.runs import find, load
from minimodal.shapes.worlds import WORLDS
from minimodal.training import distributed
from minimodal.training.checkpoint import last_of_finished
from minimodal.training.engine import run
from minimodal.training.probe import multiplies_bfloat16
from minimodal.training.recipes import SYSTEMS, recipe_for
from minimodal.training.recipes.decoder import on_codes
from minimodal.training.report import write_report
from minimodal.uses.unclip import UnCLIP

UNCLIP = ("prior", "decoder")


def prior_beside(folder: Path, given: Path | None = None) -> Path:
    """The run of a decoder's prior: the one that --prior gives, or the one beside the decoder."""
    beside = folder.parent / "prior"
    if given is None and not beside.exists():
        raise UserError(
            f"prompts need a prior and there is none in {beside}: train.py prior makes one, with "
            "the decoder's --clip; give it by --prior RUN"
        )
    return find(given or beside, "prior", flag="--prior")


def load_unclip(
    folder: Path, device: str, *, prior: Path | None = None, upsampler: Path | None = None
) -> tuple[UnCLIP, Sampler]:
    """An unCLIP of a decoder's run, and how it draws by default; its CLIP, and the VQGAN of code
    vectors, lie within the run. It draws in bfloat16 where it was trained in it and the device has
    instructions for it.

    prior: a run trained with the same CLIP, for prompts
    """
    decoder = load(folder, kind="decoder").to(device)
    trained = decoder.run["model"]
    clip = load(folder / "clip", kind="clip").to(device)
    mine, found = trained["training"]["clip"][:12], digest(folder / "clip" / "model.safetensors")
    if found[:12] != mine:
        raise UserError(
            f"{folder} was trained with the CLIP {mine}, and the one in it is another, "
            f"{found[:12]}: put the first back, or train a decoder with the second"
        )
    painter, first, last = None, None, None
    if decoder.config.latent:
        painter = Painter(load(folder / "vqgan", kind="vqgan").to(device))
    if prior is not None:
        first = load(prior, kind="prior").to(device)
        its = first.run["model"]["training"]["clip"][:12]
        if mine != its:
            raise UserError(
                f"{prior} was trained with the CLIP {its}, and {folder} with another, {mine}: "
                "train one of them again, with the same --clip"
            )
    if upsampler is not None:
        last = load(upsampler, kind="upsampler").to(device)
    native = decoder.run["train"]["precision"] == "bfloat16" and multiplies_bfloat16(
        torch.device(device)
    )
    model = UnCLIP(
        clip, decoder, prior=first, painter=painter, upsampler=last, bfloat16=native
    )  # fmt: skip
    return model, Sampler(**trained["sampling"])


def train_unclip(out: Path, seed: int, device: str) -> None:
    """Train what is not trained yet, in the demo's folder."""
    for name in UNCLIP:
        if last_of_finished(out / name):
            continue
        recipe = recipe_for(name, "shapes") if name == "prior" else on_codes(out / "vqgan")
        recipe = recipe._replace(engine=replace(recipe.engine, seed=seed))
        task = SYSTEMS[name].build(recipe, "shapes", {"clip": out / "clip"}, device)
        run(
            task, recipe.engine, out / name, data_spec="shapes", resume=(out / name).exists(),
            device=device,
        )  # fmt: skip


def add_unclip(out: Path, seed: int, device: str, *, n: int = 200) -> None:
    """Train, score and draw; the scores join the demo's scoreboard."""
    began, path = time.time(), out / "scoreboard.json"
    train_unclip(out, seed, device)
    here = distributed.start(device)
    if not here.main:
        return
    board = read_json(path)
    weights = {name: digest(out / name / "model.safetensors") for name in UNCLIP}
    if board.get("unclip_weights") != weights:
        print("scoring unCLIP", file=sys.stderr)
        unclip, how = load_unclip(out / "decoder", here.device.type, prior=out / "prior")
        with torch.no_grad():
            board["unclip"] = unclip_scores(unclip, how, seed=seed, n=n)
        captions = captions_to_show(seed)  # two rows of seen ones, one of held-out ones
        pictures = draw_with(unclip, how)(captions, 1, seed)
        verdicts = WORLDS["shapes"].score(captions, pictures.numpy())
        save_png(grid(pictures, captions, verdicts, columns=8), out / "unclip.png")
        board["unclip_weights"] = weights
        board["seconds"]["unclip"] = round(time.time() - began, 1)
        write_json(path, board)
        for name in UNCLIP:
            write_report(out / name)
    print(format_scoreboard({"unclip": board["unclip"]}))
    print(f"pictures: {out / 'unclip.png'}")
