"""Studies of a DALL·E: how hard a caption may be, how to sample, whether it copies.

`template_scores` asks for scenes of the Shapes world in words of growing difficulty,
`reading_scores` has the model say what pictures show, `sweep` tries guidance against temperature,
`variety` counts where objects are drawn, `copies_of_training` looks for the training picture
nearest to each drawn one, and `class_scores` and `recall_of_captions` have a judge or a CLIP say
what was drawn where there is no oracle.

Models in, dicts of numbers between 0 and 1 out. Read `scoreboard.py` before.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.pixels import to_float
from minimodal.blocks.quantizer import usage
from minimodal.clip import CLIP, embed_captions, embed_pictures
from minimodal.dalle import DALLE
from minimodal.data.loading import DataSource, open_data
from minimodal.errors import UserError
from minimodal.evaluation.judge import Judge
from minimodal.evaluation.scoreboard import by_attribute, draw, exact, rounded, shares
from minimodal.shapes.language import article, parse, plural
from minimodal.shapes.oracle import read, score
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Scenes
from minimodal.uses.reading import caption_scores, describe

GUIDANCES = (1.0, 1.25, 1.5, 2.0, 3.0)
TEMPERATURES = (0.2, 0.5, 0.8, 1.0)
NEGATION = 2.0  # guidance away from what is not to be drawn
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


def negation_scores(dalle: DALLE, scenes: Scenes, *, sampling: dict, seed: int) -> dict[str, float]:
    """A circle, but not a red one: the caption "a circle", and "a red circle" as the negative.

    Captions have no word for "not", so guidance says it. Right is a circle that is not red, which
    is likely without any negative, too: `negation_ignored` is the share among pictures without.
    """
    rows = range(len(scenes))
    prompts = [article(named(scenes, row, 0, color=False)) for row in rows]
    negative = [article(named(scenes, row, 0)) for row in rows]
    scores = {}
    for name, how in (
        ("negation", {"guidance": NEGATION, "negative": negative}),
        ("negation_ignored", {"guidance": 1.0}),
    ):
        pictures = draw(dalle, prompts, 1, seed=seed, sampling={**sampling, **how}).numpy()
        right = exact(score(prompts, pictures)) & ~exact(score(negative, pictures))
        scores[name] = right.mean()
    return scores


def template_scores(
    dalle: DALLE, *, sampling: dict, seed: int = 0, n: int = 100
) -> dict[str, float]:
    """Share of pictures that hold what a caption says, for each template and kind of pairs: all of
    it, and each attribute that it names.

    Counting ("two red circles") asks for two equal objects of a scene's first pair.
    sampling: settings of `DALLE.generate`
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
            pictures = draw(dalle, texts, 1, seed=seed, sampling=sampling)
            verdicts = score(texts, pictures.numpy())
            scores[f"{pairs}_{template}"] = exact(verdicts).mean()
            scores |= shares(by_attribute(f"{pairs}_{template}", verdicts))
        if pairs == "seen":
            single = scenes[np.flatnonzero(scenes.count == 1)[:n]]
            scores |= negation_scores(dalle, single, sampling=sampling, seed=seed)
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
        codes = dalle.encode_pictures(to_float(torch.from_numpy(pictures).to(device)))
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
    settings: dict | None = None,
) -> dict[str, np.ndarray]:
    """Exact match at each guidance and temperature: a (G, T) table for seen and held-out pairs."""
    tables = {}
    for pairs in ("seen", "held_out"):
        source = ShapesSource(seed, split="val", pairs=pairs)
        prompts = source.full_captions(np.arange(n), np.random.default_rng(seed))
        table = np.zeros((len(guidances), len(temperatures)))
        for i, guidance in enumerate(guidances):
            for j, temperature in enumerate(temperatures):
                sampling = {**(settings or {}), "guidance": guidance, "temperature": temperature}
                pictures = draw(dalle, prompts, 1, seed=seed, sampling=sampling)
                table[i, j] = exact(score(prompts, pictures.numpy())).mean()
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


def variety(dalle: DALLE, *, sampling: dict, seed: int = 0, n: int = 300) -> dict[str, float]:
    """Whether single objects are in as many places as in the world (`places`); n scenes at most.

    sampling: settings of `DALLE.generate`
    """
    source = ShapesSource(seed, split="val")
    one = of_one_object(source, n)
    prompts = source.full_captions(one, np.random.default_rng(seed))
    drawn = draw(dalle, prompts, 1, seed=seed, sampling=sampling).numpy()
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
        # cdist subtracts sums of squares, which leaves a rest where a picture is the same: it
        # says which is the nearest, and the difference of the two how far that is.
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
    """Does a model copy? How near drawn pictures are to training pictures, beside how near unseen
    real pictures are: `nearer` is the share of drawn ones that are nearer than half of the unseen
    real ones, ½ for a model that copies as little as the world itself does.

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


def class_scores(
    dalle: DALLE, names: Sequence[str], captions: Sequence[str], judge: Judge, *, seed: int,
    n: int, sampling: dict,
) -> dict[str, float]:  # fmt: skip
    """How often a judge sees the class that was asked for, in all and for each class.

    captions: one for each class
    n: pictures in all
    """
    each = max(1, n // len(names))
    pictures = draw(dalle, list(captions), each, seed=seed, sampling=sampling)
    seen = judge.classify(pictures).view(len(names), each)  # (K, n / K)
    right = (seen == torch.arange(len(names))[:, None]).float()
    scores = {"judge_agrees": right.mean()}
    scores |= {f"judge_agrees_{name}": row.mean() for name, row in zip(names, right, strict=True)}
    return rounded(scores)


@torch.no_grad()
def recall_of_captions(
    dalle: DALLE, clip: CLIP, captions: Sequence[str], *, seed: int, sampling: dict
) -> dict[str, float]:
    """Whether a CLIP finds each drawn picture's caption among all of them."""
    pictures = draw(dalle, list(captions), 1, seed=seed, sampling=sampling)
    image, text = embed_pictures(clip, pictures), embed_captions(clip, list(captions))
    # The right one's similarity is taken from the same product: another sum rounds differently.
    similarity = image @ text.T  # (N, N)
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)  # (N,) 0 = the first
    scores = {f"clip_recall_at_{k}": (rank < k).float().mean() for k in (1, 5)}
    return rounded(scores | {"chance_at_1": 1 / len(captions)})
