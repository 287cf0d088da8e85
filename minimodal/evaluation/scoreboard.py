"""Scores of the Shapes world: is what the models make *right*?

The oracle reads pictures back into scenes, with nothing learned. VQGAN is scored by what survives
its codes, CLIP by whether it finds the caption among captions that differ in little, and what draws
from text by whether its pictures hold what the caption says, for combinations of colour and shape
that it was trained on ("seen") and for those that its training never had ("held out").

Models in, dicts of numbers between 0 and 1 out. Captions state every attribute.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.given import NOTHING, Given
from minimodal.blocks.painter import Request
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.sampling import SamplingConfig
from minimodal.clip import CLIP
from minimodal.dalle import DALLE
from minimodal.evaluation.metrics import psnr, recall_at_k, usage
from minimodal.shapes.language import LOOSE_DRAWS, captions, parse
from minimodal.shapes.oracle import Verdict
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scenes,
    has_held_out,
    statements,
    swap,
)
from minimodal.shapes.worlds import WORLDS, World
from minimodal.uses.embedding import embed_captions, embed_pictures
from minimodal.vqgan import VQGAN

ATTRIBUTES = ("count", "shape", "color", "size", "background", "relation")
PLAIN = WORLDS["shapes"]
# Pictures for prompts, (prompts, n, seed) -> (N, 3, H, W) uint8 on the CPU, n for each in turn: all
# that a score knows of a system that draws.
Draw = Callable[[Sequence[str], int, int], Tensor]


def rounded(scores: dict[str, float]) -> dict[str, float]:
    """Four digits are enough, and readable."""
    return {name: round(float(value), 4) for name, value in scores.items()}


def exact(verdicts: Sequence[Verdict]) -> np.ndarray:
    """Which pictures hold all that their captions say.

    returns: (N,) bool
    """
    return np.array([verdict.exact for verdict in verdicts])


def share_right(wanted: Sequence, pictures: Tensor, world: World = PLAIN) -> float:
    """The share of pictures that hold all that their captions say.

    pictures: (N, 3, S, S) uint8
    """
    return float(exact(world.score(wanted, pictures.numpy())).mean())


def by_attribute(name: str, verdicts: Sequence[Verdict]) -> dict[str, list[bool]]:
    """Whether each attribute is right, where captions name it."""
    return {
        f"{name}_{a}": [h for v in verdicts if (h := getattr(v, a)) is not None] for a in ATTRIBUTES
    }


def shares(cases: dict[str, np.ndarray | list[bool]]) -> dict[str, float]:
    """How much of each list holds; of nothing there is no share."""
    return {name: float(np.mean(holds)) for name, holds in cases.items() if len(holds)}


# --- VQGAN ---------------------------------------------------------------------------------------


class Reconstructed(NamedTuple):
    """What VQGAN makes of pictures.

    pictures: (N, 3, H, W) uint8 reconstructions
    indices: (N, h, w) int64
    used: the share of codes in use, of the least used codebook
    """

    pictures: Tensor
    indices: Tensor
    used: float


@torch.no_grad()
def reconstruct(vqgan: VQGAN, images: Tensor) -> Reconstructed:
    """Pictures through the codes and back, on the CPU.

    images: (N, 3, H, W) uint8
    """
    device = vqgan.last_layer.device
    decoded, indices = [], []
    for part in images.split(250):
        codes = vqgan.encode(to_float(part.to(device)))
        decoded.append(to_uint8(vqgan.decode(codes.z)).cpu())
        indices.append(codes.indices.cpu())
    codes = torch.cat(indices)
    parts = zip(vqgan.quantizer.factors(codes), vqgan.config.codes, strict=True)
    return Reconstructed(torch.cat(decoded), codes, min(usage(part, k).share for part, k in parts))


def vqgan_scores(
    vqgan: VQGAN, *, seed: int = 0, n: int = 2000, world: World = PLAIN
) -> dict[str, float]:
    """The ceiling of what its codes can draw: the oracle on reconstructions of unseen scenes."""
    source = world.source(seed, split="val", pairs="all", image_size=vqgan.config.image_size)
    numbers = np.arange(n)
    images = torch.from_numpy(source.images(numbers))
    again = reconstruct(vqgan, images)
    texts = source.full_captions(numbers, np.random.default_rng(seed))
    scores = {"oracle_exact": share_right(texts, again.pictures, world), "codes_used": again.used}
    return rounded(scores | {"psnr": psnr(again.pictures, images)})


# --- CLIP ----------------------------------------------------------------------------------------


def replace_one(scenes: Scenes, what: str, rng: np.random.Generator) -> Scenes:
    """Scenes whose first object has another colour or shape.

    what: "color" or "shape"
    """
    changed = getattr(scenes, what).copy()
    size = len(COLORS) if what == "color" else len(SHAPES)
    changed[:, 0] = (changed[:, 0] + rng.integers(1, size, len(scenes))) % size
    return replace(scenes, **{what: changed})


def clip_scores(clip: CLIP, *, seed: int = 0, n: int = 1000, sets: int = 8) -> dict[str, float]:
    """Retrieval among 256 distinct captions, and choices between a caption and its near twin.

    Captions are strict; recall_at_1_loose has the same statements as people type them.
    A swap exchanges the two objects' colours, shapes or places, so that the same words are true
    of something else; a replacement changes one object's colour or shape to another.
    """
    source = ShapesSource(seed, split="val", image_size=clip.config.image_size)
    rng = np.random.default_rng(seed)
    scenes = source.scenes(np.arange(sets * 400))
    draws = rng.random((len(scenes), LOOSE_DRAWS))
    image = embed_pictures(clip, torch.from_numpy(source.images(np.arange(len(scenes)))))  # (N, E)
    text = embed_captions(clip, captions(scenes, draws, full=True))  # (N, E)
    typed = embed_captions(clip, captions(scenes, draws, full=True, loose=1.0))  # (N, E)
    said, recalls = statements(scenes), []
    for start in range(0, len(scenes), 400):
        # Distinct in what they say: no one could tell "a tiny disc" from "a small circle".
        first = np.unique(said[start : start + 400], axis=0, return_index=True)[1]
        rows = torch.from_numpy(start + np.sort(first)[:256])
        strict, loose = (recall_at_k(image[rows], by[rows], 1) for by in (text, typed))
        recalls.append((*strict, min(loose)))
    by_image, by_text, by_loose = np.mean(recalls, axis=0)
    scores = {
        "recall_at_1": min(by_image, by_text),
        "recall_at_1_image": by_image,
        "recall_at_1_text": by_text,
        "recall_at_1_loose": by_loose,
    }
    two = np.flatnonzero(scenes.count == 2)
    for what in ("swap_color", "swap_shape", "swap_relation", "replace_color", "replace_shape"):
        kind, field = what.split("_")
        other = swap(scenes[two], field) if kind == "swap" else replace_one(scenes[two], field, rng)
        twins = captions(other, draws[two], full=True)
        # A twin must say something else, and nothing that CLIP was never shown. Two equal
        # objects that change places are still what the other words say.
        fair = (statements(other) != said[two]).any(axis=1)
        chosen = np.flatnonzero(fair & ~has_held_out(other))[:n]
        rows = torch.from_numpy(two[chosen])
        twin = embed_captions(clip, [twins[i] for i in chosen])
        right = (image[rows] * text[rows]).sum(1) > (image[rows] * twin).sum(1)
        scores[what] = float(right.float().mean())
    return rounded(scores)


def rerank(clip: CLIP, prompts: Sequence[str], pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each prompt's pictures by how well CLIP finds that they fit, best first.

    pictures: (P, n, 3, H, W) uint8, n pictures for each of P prompts
    returns: (P, n) int64 order, (P, n) cosine similarities in that order
    """
    P, n = pictures.shape[:2]
    image = embed_pictures(clip, pictures.flatten(0, 1)).view(P, n, -1)  # (P, n, E)
    text = embed_captions(clip, list(prompts))  # (P, E)
    similarity = torch.einsum("pne,pe->pn", image, text).cpu()
    ordered = similarity.sort(dim=1, descending=True, stable=True)
    return ordered.indices, ordered.values


# --- text to picture -----------------------------------------------------------------------------


def draw_with(dalle: DALLE, sampling: dict, *, given: Given = NOTHING) -> Draw:
    """How a DALL·E draws, in batches of 32. Whether it knows the words is what is asked; captions
    that are too long are cut, as in training.

    sampling: settings of `SamplingConfig`, such as temperature and guidance
    """

    def draw(prompts: Sequence[str], n: int, seed: int) -> Tensor:
        generator = torch.Generator(dalle.rows.device).manual_seed(seed)
        request, how = Request(n, generator, batch_size=32), SamplingConfig(**sampling)
        return dalle.draw(
            list(prompts), request, how, given=given, truncate=True, allow_unseen=True
        ).cpu()

    return draw


def text_to_picture_scores(
    draw: Draw, clip: CLIP | None = None, *, unguided: Draw | None = None, seed: int = 0,
    n: int = 500, world: World = PLAIN,
) -> dict[str, float]:  # fmt: skip
    """Share of pictures that hold all that their captions say; one sample per prompt.

    The best of 4 are picked by CLIP among the scored sample and three more, for n/2 prompts. As
    many prompts are loose ones, as people type them, about the same scenes ("seen_loose"); they may
    leave attributes out, which then may be anything.

    unguided: the same system without guidance, which is scored on n/2 prompts and timed
    """
    scores: dict[str, float] = {}
    few = max(1, n // 2)
    for name in ("seen", "held_out"):
        source = world.source(seed, split="val", pairs=name)
        numbers = np.arange(n)
        prompts = source.full_captions(numbers, np.random.default_rng(seed))
        if name == "seen":  # the first batch is slower than those that are timed
            draw(prompts[:32], 1, seed)
        began = time.perf_counter()
        pictures = draw(prompts, 1, seed)
        if name == "seen":
            scores["images_per_second_guided"] = n / (time.perf_counter() - began)
        verdicts = world.score(prompts, pictures.numpy())
        right, one = exact(verdicts), source.scenes(numbers).count == 1
        cases = {name: right, f"{name}_one_object": right[one]}
        cases |= by_attribute(name, verdicts)
        if unguided is not None:
            began = time.perf_counter()
            plain = unguided(prompts[:few], 1, seed)
            if name == "seen":
                scores["images_per_second"] = few / (time.perf_counter() - began)
            cases[f"{name}_no_guidance"] = exact(world.score(prompts[:few], plain.numpy()))
        if world is PLAIN:
            typed = source.loose_captions(numbers[:few], np.random.default_rng(seed))
            cases[f"{name}_loose"] = exact(world.score(typed, draw(typed, 1, seed).numpy()))
        if clip is not None:
            more = draw(prompts[:few], 3, seed + 1)
            sets = torch.cat([pictures[:few, None], more.unflatten(0, (few, 3))], dim=1)
            best = rerank(clip, prompts[:few], sets)[0][:, 0]  # sets: (P, 4, 3, H, W)
            kept = sets[torch.arange(few), best]
            cases[f"{name}_rerank4"] = exact(world.score(prompts[:few], kept.numpy()))
        scores |= shares(cases)
    return rounded(scores)


def dalle_scores(
    dalle: DALLE, clip: CLIP | None = None, *, seed: int = 0, n: int = 500, sampling: dict,
    world: World = PLAIN,
) -> dict[str, float]:  # fmt: skip
    """The scores of a DALL·E, which draws with guidance and without."""
    draw, unguided = (draw_with(dalle, s) for s in (sampling, {**sampling, "guidance": 1.0}))
    return text_to_picture_scores(draw, clip, unguided=unguided, seed=seed, n=n, world=world)


def captions_to_show(seed: int) -> list[str]:
    """Captions of unseen scenes for a picture of samples: two rows of eight seen, one held out."""
    captions = []
    for pairs, n in (("seen", 16), ("held_out", 8)):
        source = PLAIN.source(seed, split="val", pairs=pairs)
        numbers = np.arange(1000, 1000 + n)
        captions += source.full_captions(numbers, np.random.default_rng(seed))
    return captions


# --- what the scores are to be compared with -----------------------------------------------------


WORDS = (*SHAPES, *COLORS, *SIZES, *BACKGROUNDS, *RELATIONS)


def words(texts: Sequence[str]) -> np.ndarray:
    """Which words each caption has, whatever their spelling: a disc is a circle.

    returns: (N, V) float32 of 0 and 1
    """
    column = {word: i for i, word in enumerate(WORDS)}
    found = np.zeros((len(texts), len(WORDS)), np.float32)
    for row, text in enumerate(texts):
        said = parse(text)
        for word in (said.relation, said.background, *(w for o in said.objects for w in o)):
            if word is not None:
                found[row, column[word]] = 1
    return found


def nearest_captions(*, seed: int = 0, pool: int = 20_000, world: World = PLAIN) -> Draw:
    """A system without a model: the training picture of the nearest caption, the one that shares
    most words (the highest Jaccard index |A ∩ B| / |A ∪ B|)."""
    train, numbers = world.source(seed), np.arange(pool)
    have = words(train.full_captions(numbers, np.random.default_rng(seed + 1)))  # (P, V)

    def draw(prompts: Sequence[str], n: int, seed: int) -> Tensor:
        want = words(prompts)  # (N, V)
        both = want @ have.T  # (N, P)
        either = want.sum(1)[:, None] + have.sum(1)[None] - both
        found = train.images((both / either).argmax(axis=1))
        return torch.from_numpy(found).repeat_interleave(n, 0)

    return draw


def baseline_scores(
    *, seed: int = 0, n: int = 500, pool: int = 20_000, world: World = PLAIN
) -> dict[str, float]:
    """Two answers without a generator: any training picture, and that of the nearest caption."""
    nearest = nearest_captions(seed=seed, pool=pool, world=world)
    anything = torch.from_numpy(world.source(seed).images(np.arange(n) % pool))
    scores = {}
    for name, pairs in (("", "seen"), ("_held_out", "held_out")):
        source = world.source(seed, split="val", pairs=pairs)
        prompts = source.full_captions(np.arange(n), np.random.default_rng(seed))
        scores[f"chance{name}"] = share_right(prompts, anything, world)
        drawn = nearest(prompts, 1, seed)
        scores[f"nearest_caption{name}"] = share_right(prompts, drawn, world)
    return rounded(scores)


def format_scoreboard(board: dict) -> str:
    """A table for the terminal."""
    no_scores = ("seconds", "machine", "plan", "unclip_weights")
    lines = [
        f"{system:10s} {name:28s} {value:8.4g}"
        for system, scores in board.items()
        if isinstance(scores, dict) and system not in no_scores
        for name, value in scores.items()
    ]
    if spent := board.get("seconds"):
        lines.append("seconds    " + "  ".join(f"{name} {s:g}" for name, s in spent.items()))
    return "\n".join(lines)
