"""A study of a DALL·E: how hard a caption may be, how to sample, whether it copies.

    python benchmarks/dalle_study.py runs/demo/dalle
    python benchmarks/dalle_study.py RUN --data cifar10:PATH     # copies alone: there is no oracle

On the Shapes world `template_scores` asks for scenes in words of growing difficulty,
`reading_scores` has the model say what pictures show, `sweep` tries guidance against temperature
(also as heat maps) and `variety` counts where objects are drawn; on any data `copies_of_training`
looks for the training picture nearest to each drawn one. The numbers are printed as JSON and kept
in RUN/study.json, with RUN/sweep-seen.png and RUN/sweep-held_out.png beside.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minimodal.dalle import DALLE
from minimodal.data.loading import open_data, parse_spec
from minimodal.data.sources import DataSource
from minimodal.drawing import INK, MARGIN, PAPER, save_png
from minimodal.errors import UserError
from minimodal.evaluation.metrics import usage
from minimodal.evaluation.scoreboard import Draw, by_attribute, draw_with, exact, rounded, shares
from minimodal.runs import load
from minimodal.shapes.language import article, parse, plural
from minimodal.shapes.oracle import read
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Scenes
from minimodal.shapes.worlds import WORLDS
from minimodal.training.distributed import pick_device
from minimodal.uses.reading import caption_scores, describe

score = WORLDS["shapes"].score
GUIDANCES = (1.0, 1.25, 1.5, 2.0, 3.0)
TEMPERATURES = (0.2, 0.5, 0.8, 1.0)
WORDS_OF = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def named(scenes: Scenes, row: int, slot: int, *, color: bool = True, size: bool = False) -> str:
    """An object in words, such as "large red circle"."""
    words = [tuple(SIZES)[scenes.size[row, slot]]] if size else []
    words += [tuple(COLORS)[scenes.color[row, slot]]] if color else []
    return " ".join([*words, SHAPES[scenes.shape[row, slot]]])


def two_of(scenes: Scenes, row: int) -> str:
    """Two of a scene's first object, such as "two red circles"."""
    *color, shape = named(scenes, row, 0).split()
    return " ".join(["two", *color, plural(shape)])


def asked(scenes: Scenes, row: int) -> dict[str, str]:
    """A scene in the words of each template that fits it, from easy to hard.

    All are in whole phrases; `ShapesSource.loose_captions` are as people type.
    """
    ground = f"on {tuple(BACKGROUNDS)[scenes.background[row]]}"
    first = article(named(scenes, row, 0))
    full = article(named(scenes, row, 0, size=True))
    if scenes.count[row] == 1:
        return {
            "shape": article(named(scenes, row, 0, color=False)),
            "color_shape": first,
            "all_of_one": f"{full} {ground}",
        }
    second = article(named(scenes, row, 1))
    relation = WORDS_OF[RELATIONS[scenes.relation[row]]]
    found = {
        "relation": f"{first} {relation} {second}",
        "all_of_two": f"{full} {relation} {article(named(scenes, row, 1, size=True))} {ground}",
    }
    if named(scenes, row, 0) == named(scenes, row, 1):
        found["counting"] = two_of(scenes, row)
    return found


def of_one_object(source: ShapesSource, n: int) -> np.ndarray:
    """The numbers of a source's first n scenes of one object: two in five are. returns: (n,)"""
    return np.flatnonzero(source.scenes(np.arange(8 * n)).count == 1)[:n]


def template_scores(draw: Draw, *, seed: int = 0, n: int = 100) -> dict[str, float]:
    """Share of pictures that hold what a caption says, for each template and kind of pairs: all of
    it, and each attribute that it names.

    Counting ("two red circles") asks for two equal objects of a scene's first pair.
    """
    scores = {}
    for pairs in ("seen", "held_out"):
        source = ShapesSource(seed, split="val", pairs=pairs)
        scenes = source.scenes(np.arange(12 * n))
        prompts: dict[str, list[str]] = {}
        for row in range(len(scenes)):
            wanted = asked(scenes, row)
            if scenes.count[row] == 1:
                wanted["counting"] = two_of(scenes, row)
            for template, prompt in wanted.items():
                if len(prompts.setdefault(template, [])) < n:
                    prompts[template].append(prompt)
        if pairs == "held_out":
            prompts.pop("shape", None)  # names no colour, so nothing that was held out
        for template, texts in prompts.items():
            verdicts = score(texts, draw(texts, 1, seed).numpy())
            scores[f"{pairs}_{template}"] = exact(verdicts).mean()
            scores |= shares(by_attribute(f"{pairs}_{template}", verdicts))
    return rounded(scores)


@torch.no_grad()
def reading_scores(
    dalle: DALLE, *, seed: int = 0, n: int = 100, written: int = 20
) -> dict[str, float]:
    """DALL·E read the other way: does it know what true pictures of one object show?

    As a classifier it chooses the one of all eight colours, and of all eight shapes, that makes a
    picture likeliest. As a captioner it writes: `true` is the share of its captions that hold of
    the picture, `whole` of those that also say all there is to say.

    n: pictures that are classified
    written: pictures that are described, which takes a second each
    """
    device, scores = dalle.rows.device, {}
    generator = torch.Generator(device).manual_seed(seed)
    for pairs in ("seen", "held_out"):
        source = ShapesSource(seed, split="val", pairs=pairs)
        numbers = of_one_object(source, n)
        scenes, pictures = source.scenes(numbers), source.images(numbers)
        codes = dalle.painter.encode(torch.from_numpy(pictures).to(device))
        for what, names in (("color", tuple(COLORS)), ("shape", SHAPES)):
            true = getattr(scenes, what)[:, 0]
            found = [
                caption_scores(dalle, codes[row : row + 1], variants(scenes, row, what, names))
                for row in range(len(scenes))
            ]
            chosen = torch.cat(found).argmax(dim=1).cpu().numpy()
            scores[f"{pairs}_{what}"] = (chosen == true).mean()
        said = [describe(dalle, one, generator=generator).caption for one in codes[:written]]
        held = [holds(text, picture) for text, picture in zip(said, pictures, strict=False)]
        scores[f"{pairs}_true"] = np.mean([true for true, _ in held])
        scores[f"{pairs}_whole"] = np.mean([true and whole for true, whole in held])
    return rounded(scores)


def holds(caption: str, picture: np.ndarray) -> tuple[bool, bool]:
    """Whether a caption is true of a picture, and whether it names every attribute.

    picture: (3, H, W) uint8
    """
    try:
        said = parse(caption)
    except UserError:  # no sentence of this world: true of nothing
        return False, False
    whole = said.background is not None and all(None not in thing for thing in said.objects)
    return bool(exact(score([caption], picture[None]))[0]), whole


def variants(scenes: Scenes, row: int, what: str, names: Sequence[str]) -> list[str]:
    """A scene of one object in words, once with each of the names as its colour or shape."""
    ground = f"on {tuple(BACKGROUNDS)[scenes.background[row]]}"
    size, color, shape = named(scenes, row, 0, size=True).split()
    words = [(size, name, shape) if what == "color" else (size, color, name) for name in names]
    return [f"{article(' '.join(three))} {ground}" for three in words]


def sweep(
    dalle: DALLE,
    *,
    guidances: Sequence[float] = GUIDANCES,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    n: int = 100,
) -> dict[str, np.ndarray]:
    """Exact match at each guidance and temperature: a (G, T) table for seen and held-out pairs."""
    tables = {}
    for pairs in ("seen", "held_out"):
        source = ShapesSource(seed, split="val", pairs=pairs)
        prompts = source.full_captions(np.arange(n), np.random.default_rng(seed))
        table = np.zeros((len(guidances), len(temperatures)))
        for i, guidance in enumerate(guidances):
            for j, temperature in enumerate(temperatures):
                draw = draw_with(dalle, {"guidance": guidance, "temperature": temperature})
                table[i, j] = exact(score(prompts, draw(prompts, 1, seed).numpy())).mean()
        tables[pairs] = table
    return tables


def places(pictures: np.ndarray) -> float:
    """In how many places single objects are, as the exponential of the entropy over cells of 4 x 4
    pixels: a cold drawing is right more often, and always in the same place.

    pictures: (N, 3, H, W) uint8
    """
    found = [reading.objects[0] for reading in read(pictures) if len(reading.objects) == 1]
    cells = torch.tensor([thing.y // 4 * 8 + thing.x // 4 for thing in found], dtype=torch.int64)
    return usage(cells, 64).perplexity


def variety(draw: Draw, *, seed: int = 0, n: int = 300) -> dict[str, float]:
    """Whether single objects are in as many places as in the world (`places`); n scenes at most."""
    source = ShapesSource(seed, split="val")
    one = of_one_object(source, n)
    prompts = source.full_captions(one, np.random.default_rng(seed))
    drawn = draw(prompts, 1, seed).numpy()
    return {"places": places(drawn), "places_of_world": places(source.images(one))}


def nearest_distance(pictures: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Root mean square difference to the nearest of other pictures, in steps of 1/255.

    pictures: (N, 3, H, W) uint8
    others: (M, 3, H, W) uint8 at a time, so that there may be more than memory holds as floats
    returns: (N,) float32
    """
    a = pictures.flatten(1).float()  # (N, D)
    nearest = torch.full((len(a),), float("inf"))
    for part in others:
        b = part.flatten(1).float()  # (M, D)
        # cdist subtracts sums of squares, which is not quite zero for equal pictures: it only says
        # which is the nearest, and the distance to that one is computed anew.
        closest = b[torch.cdist(a, b).argmin(dim=1)]  # (N, D)
        nearest = torch.minimum(nearest, (a - closest).square().mean(dim=1).sqrt())
    return nearest


def parts_of(source: DataSource, n: int, *, flip: bool) -> Iterator[Tensor]:
    """The first n pictures of a source, with flip their mirror images as well.

    returns: (M, 3, H, W) uint8 at a time
    """
    for start in range(0, n, 1024):
        part = torch.from_numpy(source.images(np.arange(start, min(start + 1024, n))))
        yield part
        if flip:
            yield part.flip(-1)


def copying(
    drawn: Tensor, train: DataSource, val: DataSource, *, pool: int, flip: bool = False
) -> dict[str, float]:
    """Distances of drawn pictures to the nearest training picture, and those of unseen real ones.

    `nearer` is the share of drawn pictures that are nearer than the median unseen one: ½ for a
    model that does not copy.

    drawn: (N, 3, H, W) uint8
    pool: pictures that the model was trained on, the first of `train`
    flip: their mirror images were, too
    """
    unseen = torch.from_numpy(val.images(np.arange(min(len(drawn), len(val)))))
    of_drawn, of_unseen = (
        nearest_distance(pictures, parts_of(train, pool, flip=flip)) for pictures in (drawn, unseen)
    )
    return rounded(
        {
            "nearest_training_picture": of_drawn.median(),
            "nearest_of_unseen_real": of_unseen.median(),
            "nearer": (of_drawn < of_unseen.median()).float().mean(),
        }
    )


def copies_of_training(
    dalle: DALLE, drawn: Tensor, measured: str | None = None
) -> dict[str, float]:
    """`copying` from the data that a run was trained on, whatever it is evaluated on; nothing
    where that data is gone or has changed.

    drawn: (N, 3, H, W) uint8
    measured: the SPEC that it is evaluated on, which may be where that data lies now
    """
    training, reason = dalle.run["model"]["training"], ""
    pool = training["pictures"] // (2 if training["flip"] else 1)
    specs = dict.fromkeys((dalle.run["data"], measured or dalle.run["data"]))
    # Was it trained on all that the SPEC names, or with --limit?
    for spec, limit in itertools.product(specs, (None, pool)):
        try:
            train, val = (
                open_data(spec, image_size=drawn.shape[-1], split=split, limit=limit)
                for split in ("train", "val")
            )
            if train.fingerprint() == training["data"]:
                return copying(drawn, train, val, pool=pool, flip=training["flip"])
            reason = reason or f"{spec} is no longer what it was"
        except UserError as error:
            reason = reason or str(error)
    print(f"not looked for copies of training pictures: {reason}", file=sys.stderr)
    return {}


# --- the command ---------------------------------------------------------------------------------


def heat_map(table: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """A table of shares as tiles, from red (0) over yellow to green (1), each with its percent.

    table: (R, C) between 0 and 1
    """
    font, (width, height) = ImageFont.load_default(size=12), (72, 40)
    left = 2 * MARGIN + int(max(font.getlength(row) for row in rows))
    canvas = Image.new("RGB", (left + len(columns) * width + MARGIN,
                               (len(rows) + 1) * height + MARGIN), PAPER)  # fmt: skip
    pen = ImageDraw.Draw(canvas)
    for j, name in enumerate(columns):
        pen.text((left + j * width + MARGIN, height // 2), name, fill=INK, font=font)
    for i, name in enumerate(rows):
        top = (i + 1) * height
        pen.text((MARGIN, top + height // 3), name, fill=INK, font=font)
        for j, share in enumerate(table[i]):
            color = (round(230 * min(1, 2 - 2 * share)), round(200 * min(1, 2 * share)), 80)
            x = left + j * width
            pen.rectangle((x, top, x + width - 2, top + height - 2), fill=color)
            pen.text((x + width // 4, top + height // 3), f"{100 * share:.0f} %", INK, font=font)
    return canvas


def study_on_shapes(dalle: DALLE, draw: Draw, folder: Path, *, seed: int) -> dict[str, float]:
    """All that the oracle can say, and the heat maps."""
    found = template_scores(draw, seed=seed)
    scores = {f"template_{name}": value for name, value in found.items()}
    scores |= {f"reads_{name}": value for name, value in reading_scores(dalle, seed=seed).items()}
    scores |= variety(draw, seed=seed)
    for pairs, table in sweep(dalle, seed=seed).items():
        rows, columns = [f"guidance {g:g}" for g in GUIDANCES], [f"T {t:g}" for t in TEMPERATURES]
        save_png(heat_map(table, rows, columns), folder / f"sweep-{pairs}.png")
        names = itertools.product(GUIDANCES, TEMPERATURES)
        scores |= {
            f"sweep_{pairs}_g{g:g}_t{t:g}": share
            for (g, t), share in zip(names, table.flatten(), strict=True)
        }
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Study a run, print the numbers and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a dalle")
    parser.add_argument("--data", metavar="SPEC", help="captions (default: the data of the run)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    given = parser.parse_args(argv)
    dalle = load(given.run, kind="dalle").to(pick_device(given.device))
    spec, seed = given.data or dalle.run["data"], given.seed
    how = dalle.run["model"]["sampling"]
    if parse_spec(spec).kind == "shapes":
        draw = draw_with(dalle, how)
        scores = study_on_shapes(dalle, draw, given.run, seed=seed)
        source = ShapesSource(seed, split="val")
        prompts = source.full_captions(np.arange(200), np.random.default_rng(seed))
    else:
        draw, scores = draw_with(dalle, how), {}
        val = open_data(spec, image_size=dalle.config.grid * dalle.painter.factor, split="val")
        prompts = [val.all_captions(i)[0] for i in range(min(100, len(val)))]
    scores |= copies_of_training(dalle, draw(prompts, 1, seed), spec)
    text = json.dumps(rounded(scores), indent=2)
    (given.run / "study.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
