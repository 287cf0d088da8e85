"""What each ingredient of VQGAN+CLIP's gradient brings: one row each, all else as it is.

    python benchmarks/guidance_study.py shapes runs/demo [-n 40] [--only PATTERN]
    python benchmarks/guidance_study.py search runs/demo [-n 24]
    python benchmarks/guidance_study.py photographs RUNS --judge FILE --second CLIP [-n 40]

On the Shapes world the oracle says what is right; on CIFAR-10 a judge that was not optimised says
which class it sees, and so does a second CLIP. Pictures are followed side by side, each for its
own prompt: 60 steps, 8 views a step. Shapes begin with the best of a pool (rate 0.05) or with
random codes (100 steps at 0.1), photographs with random codes (0.1). What is not in the package
(regularisers, AdamW, a search's flips that the gradient proposes) is written below, in as few lines
as it would take.
"""

import argparse
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.cutouts import CAPTION_TRUE, PHOTOGRAPHS, Draws, Views, see
from minimodal.blocks.drawers import Drawer, VQGANDrawer, make_drawer, tables
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.cli.pool import pool_of, prior_of
from minimodal.evaluation.guided import prompts_of
from minimodal.evaluation.judge import load_judge
from minimodal.evaluation.scoreboard import exact
from minimodal.runs import load
from minimodal.shapes.language import BACKGROUND_WORDS, COLOR_WORDS, SHAPE_WORDS, SIZE_WORDS
from minimodal.shapes.worlds import WORLDS
from minimodal.vqgan_clip import search as moves
from minimodal.vqgan_clip.guide import Guide, make_guide
from minimodal.vqgan_clip.optimise import Optimisation, OptimiseConfig
from minimodal.vqgan_clip.pool import find
from minimodal.vqgan_clip.prompts import Prompt
from minimodal.vqgan_clip.search import Dice, Parents, SearchConfig

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
Score = Callable[[Tensor], Tensor]  # of pictures (B, 3, H, W): (B,)

# --- regularisers ---------------------------------------------------------------------------------


def total_variation(x: Tensor) -> Tensor:
    """x: (B, 3, H, W); returns: (B,)"""
    return sum(x.diff(dim=d).abs().mean((1, 2, 3)) for d in (2, 3))


def smoothness(x: Tensor) -> Tensor:
    """Squared differences of neighbours. x: (B, 3, H, W); returns: (B,)"""
    return sum(x.diff(dim=d).square().mean((1, 2, 3)) for d in (2, 3))


def saturation(x: Tensor) -> Tensor:
    """Minus Hasler and Süsstrunk's colourfulness. x: (B, 3, H, W); returns: (B,)"""
    r, g, b = x.flatten(2).unbind(1)
    pair = torch.stack([r - g, (r + g) / 2 - b], dim=1)  # (B, 2, H*W)
    return -(pair.std(-1).norm(dim=1) + 0.3 * pair.mean(-1).norm(dim=1))


CORNERS = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)  # (27, 3)


def palette(x: Tensor) -> Tensor:
    """Distance to the nearest of 27 colours. x: (B, 3, H, W); returns: (B,)"""
    pixels = x.flatten(2).mT  # (B, H*W, 3)
    return torch.cdist(pixels, CORNERS.expand(len(x), -1, -1)).amin(-1).mean(1)


def symmetry(x: Tensor) -> Tensor:
    """Left less right. x: (B, 3, H, W); returns: (B,)"""
    return (x - x.flip(-1)).square().mean((1, 2, 3))


def edge(x: Tensor) -> Tensor:
    """A margin of an eighth of the side in white. x: (B, 3, H, W); returns: (B,)"""
    m = x.shape[-1] // 8
    inner = F.pad(torch.zeros_like(x[..., m:-m, m:-m]), (m,) * 4, value=1.0)
    return ((x - 1).square() * inner).mean((1, 2, 3))


PICTURE = {
    "total variation": (total_variation, (0.3, 3.0)), "smoothness": (smoothness, (1.0, 10.0)),
    "saturation": (saturation, (0.3, 1.0)), "palette": (palette, (0.3, 3.0)),
    "symmetry": (symmetry, (0.3, 3.0)), "edge": (edge, (0.3, 3.0)),
}  # fmt: skip


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one row does otherwise than the first."""

    name: str
    views: Views = CAPTION_TRUE
    config: OptimiseConfig = OptimiseConfig()
    drawer: str = "vqgan"
    add: Score | None = None  # to the loss
    anchor: tuple[str, float] = ("", 0.0)  # mse or circle, and its weight
    bank: str = ""  # of captions for the contrastive score: random, near, classes
    adamw: bool = False
    last: bool = False  # the last step's picture instead of the best's
    plateau: int = 0  # steps without a new best that end a picture
    rounded: bool = True
    clips: tuple[int, ...] = (0,)  # which of the guides are followed


class Continuous(VQGANDrawer):
    """Vectors that are decoded as they are."""

    def pictures(self, generator: torch.Generator | None = None) -> Tensor:
        """returns: (B, 3, H, W)"""
        return self.vqgan.decode_unclamped(self.parameters[0]).clamp(-1, 1)


class Side(Optimisation):
    """Pictures side by side, each for a prompt of its own.

    wanted: (B, E) for each guide
    banks: (B, M, E) for each guide, or None
    """

    row: Row
    banks: list[Tensor] | None = None

    def begin(self) -> None:
        """Adam, or AdamW; and the first latent."""
        super().begin()
        self.first = [p.detach().clone() for p in self.drawer.parameters]

    def prepare(self, row: Row, banks: list[Tensor] | None) -> None:
        """Everything that the package's loop does not have."""
        self.row, self.banks = row, banks
        if row.adamw:
            how = {"lr": self.config.lr, "weight_decay": 0.1}
            self.optimizer = torch.optim.AdamW(self.drawer.parameters, **how)
        for p, z in zip(self.drawer.parameters, self.first, strict=True):
            if row.anchor[1]:
                p.register_hook(lambda grad, p=p, z=z: grad + self.pull(p, z))

    def pull(self, p: Tensor, z: Tensor) -> Tensor:
        """The gradient of staying near z. p, z: (B, C, h, w); returns: (B, C, h, w)"""
        kind, weight = self.row.anchor
        with torch.enable_grad():
            q = p.detach().requires_grad_()
            if kind == "mse":
                loss = (q - z).square().mean((1, 2, 3)).sum()
            else:
                a, b = (F.normalize(x.flatten(1), dim=1) for x in (q, z))
                theta = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
                loss = theta.square().div(2).sum()
            return weight * torch.autograd.grad(loss, q)[0]

    def view_losses(self, guide: Guide, wanted, pictures: Tensor, draws: Draws) -> Tensor:
        """pictures: (N, 3, H, W); returns: (N,)"""
        n = self.config.views
        with self.autocast():
            x = guide.embed(see(pictures, draws, guide.size, fill=self.views.fill))
        own = wanted.embeddings.repeat_interleave(n, 0)  # (N, E)
        if self.banks is None:
            loss = torch.atan2((x - own).norm(dim=1), (x + own).norm(dim=1)).square() * 2
        else:
            scale = guide.clip.logit_scale.exp().detach()
            bank = self.banks[self.guides.index(guide)].repeat_interleave(n, 0)  # (N, M, E)
            others = (scale * torch.einsum("ne,nme->nm", x, bank)).logsumexp(1)
            loss = others / scale - (x * own).sum(1)
        if self.row.add is not None:
            loss = loss + self.row.add(pictures)
        return loss


class World:
    """Prompts, guides, starts, and who says what is right."""

    def __init__(self, texts: list[str], clips: list[nn.Module], vqgan: nn.Module) -> None:
        self.texts, self.clips = texts, [clip.requires_grad_(False) for clip in clips]
        self.vqgan = vqgan.requires_grad_(False)
        self.guides = [make_guide(clip, [Prompt(text) for text in texts]) for clip in clips]

    def bank(self, clip: nn.Module, captions: list[list[str]]) -> Tensor:
        """As many captions for each prompt. returns: (B, M, E)"""
        flat = [text for some in captions for text in some]
        with torch.no_grad():
            found = torch.cat([
                clip.encode_text(clip.tokenize(flat[i : i + 256], truncate=True)).float()
                for i in range(0, len(flat), 256)
            ])  # fmt: skip
        return F.normalize(found, dim=-1).view(len(captions), -1, found.shape[-1])

    def random_codes(self) -> Tensor:
        """returns: (B, h, w) int64"""
        side = self.vqgan.config.grid
        size, chance = (len(self.texts), side, side), torch.Generator().manual_seed(0)
        return torch.randint(self.vqgan.quantizer.size, size, generator=chance)

    def drawer(self, row: Row, codes: Tensor) -> Drawer:
        """The row's drawer at codes."""
        with torch.no_grad():
            start = self.vqgan.decode_indices(codes)
        if row.drawer not in ("vqgan", "codes"):
            return make_drawer(row.drawer, start)
        drawer = make_drawer(row.drawer, start, vqgan=self.vqgan)
        if not row.rounded:
            drawer = Continuous(self.vqgan, start)
        drawer.begin(codes)
        return drawer

    def follow(self, row: Row, codes: Tensor, banks: list[Tensor] | None) -> tuple[Tensor, float]:
        """The pictures of a row, and how many steps they took in the mean."""
        guides = [self.guides[i] for i in row.clips]
        run = Side(self.drawer(row, codes), guides, row.config, views=row.views, seed=0)
        run.prepare(row, banks)
        done, waits = run.best.clone(), torch.zeros(len(codes))
        ends = torch.full((len(codes),), float(row.config.steps))

        def on_step(run: Optimisation, losses: Tensor) -> None:
            waits.copy_(torch.where(losses == run.best_loss, 0, waits + 1))
            over = (waits >= (row.plateau or math.inf)) & (ends == row.config.steps)
            ends[over], done[over] = float(run.number), run.best[over]

        run.run(on_step)
        with torch.no_grad():
            last = run.drawer.pictures() if row.last else run.best
        early = (ends < row.config.steps)[:, None, None, None]
        return to_uint8(torch.where(early, done, last)), float(ends.mean())

    def cosines(self, pictures: Tensor, which: int = 0) -> Tensor:
        """Of each picture and each prompt. returns: (B, B)"""
        guide = self.guides[which]
        with torch.no_grad():
            return guide.embed(to_float(pictures)) @ guide.wanted[0].embeddings.T


def near(caption: str) -> list[str]:
    """Captions that differ in one word's meaning, as many for each caption: 24."""
    found, words = [], caption.split()
    for group in (SHAPE_WORDS, COLOR_WORDS, SIZE_WORDS, BACKGROUND_WORDS):
        for i, word in enumerate(words):
            if any(word in same for same in group):
                others = [same[0] for same in group if word not in same]
                found += [" ".join([*words[:i], other, *words[i + 1 :]]) for other in others]
    return (found * 24)[:24]


# --- the two studies ------------------------------------------------------------------------------


def regularised(base: Row, anchors: tuple[float, ...]) -> Iterator[Row]:
    """The rows of regularisers."""
    for name, (function, weights) in PICTURE.items():
        for w in weights:
            yield replace(base, name=f"+ {name} {w:g}", add=lambda x, f=function, w=w: w * f(x))
    for kind in ("mse", "circle"):
        for w in anchors:
            yield replace(base, name=f"+ near the start, {kind} {w:g}", anchor=(kind, w))


def shapes(folder: Path, n: int, only: str) -> None:
    """The oracle's table."""
    clip, prior = load(folder / "clip", kind="clip"), prior_of(folder, "cpu")
    pool = pool_of(folder, prior, [Guide(clip, ())])
    codes_of_pool, others = {}, prompts_of("seen_one_object", 256, seed=7)
    config = OptimiseConfig(steps=60, lr=0.05, views=8, bfloat16=True)
    for kind in ("seen_one_object", "held_out_one_object"):
        world = World(prompts_of(kind, n, seed=1), [clip], prior.painter.vqgan)
        guides = [make_guide(clip, [Prompt(text)]) for text in world.texts]
        found = [find(prior, [guide], pool, seed=1, config=None).codes[:1] for guide in guides]
        codes_of_pool = torch.cat(found)
        banks = {
            "random": [world.bank(clip, [others] * len(world.texts))],
            "near": [world.bank(clip, [near(text) for text in world.texts])],
        }

        def told(name: str, pictures: Tensor, began: float, world=world, kind=kind) -> None:
            right = exact(WORLDS["shapes"].score(world.texts, pictures.numpy())).mean()
            cosine = world.cosines(pictures).diagonal().mean()
            seconds = (time.process_time() - began) / len(world.texts)
            print(f"{kind}, {name}: right {right:.1%}, cosine {cosine:.3f}, {seconds:.1f} CPU s",
                  flush=True)  # fmt: skip

        told("best of the pool", prior.painter.decode(codes_of_pool), time.process_time())
        base = Row("60 steps", config=config)
        rows = [base]
        rows += [replace(base, name=f"contrastive, {bank} bank", bank=bank) for bank in banks]
        rows += regularised(base, (10.0, 100.0))
        long = replace(base, name="100 steps", config=replace(config, steps=100, lr=0.1))
        starts = {"pool": (codes_of_pool, rows)}
        if kind.startswith("seen"):
            codes = [long, *(replace(long, name=f"contrastive, {b} bank", bank=b) for b in banks)]
            codes += regularised(long, (10.0,))
            starts["random codes"] = (world.random_codes(), codes)
        for start, (codes, chosen) in starts.items():
            for row in chosen:
                if re.search(only, f"{kind}, {start}, {row.name}"):
                    began = time.process_time()
                    pictures, _ = world.follow(row, codes, banks.get(row.bank))
                    told(f"from {start}, {row.name}", pictures, began)


def photographs(folder: Path, judge_file: Path, second: Path, n: int, only: str) -> None:
    """The judge's table: n pictures, as many of each of the ten classes."""
    judge = load_judge(judge_file)
    clips = [load(place, kind="clip") for place in (folder / "clip", second)]
    of = torch.arange(10).repeat_interleave(max(1, n // 10))
    texts = [f"a photo of a{'n' * (c[0] == 'a')} {c}" for c in CLASSES]
    world = World([texts[i] for i in of], clips, load(folder / "vqgan", kind="vqgan"))
    banks = {"classes": [world.bank(clips[0], [texts[:i] + texts[i + 1 :] for i in of.tolist()])]}
    v, config = PHOTOGRAPHS, OptimiseConfig(steps=60, lr=0.1, views=8, bfloat16=True)
    base = Row("everything", views=v, config=config)
    grey = {"saturation": 0.0, "hue": 0.0, "contrast": 0.0}

    def seen(name: str, **changes: float) -> Row:
        return replace(base, name=name, views=replace(v, **changes))

    rows = [
        base, seen("no crops", smallest=1.0), seen("no padding", padding=0.0),
        seen("no flip", flip=0.0), seen("no rotation", rotate=0.0),
        seen("no perspective", perspective=0.0), seen("no colour jitter", **grey),
        seen("no noise", noise=0.0), seen("+ blur", blur=1.0), seen("+ erasing", erase=0.5),
        seen("crops alone", **grey, flip=0, rotate=0, perspective=0, noise=0, padding=0),
        replace(base, name="no changes at all", views=Views()),
        replace(base, name="one view", config=replace(config, views=1)),
        replace(base, name="contrastive", bank="classes"),
        replace(base, name="two CLIPs", clips=(0, 1)),
        replace(base, name="no drop of the rate", config=replace(config, drops=())),
        replace(base, name="AdamW", adamw=True), replace(base, name="last step", last=True),
        replace(base, name="ends on a plateau of 12", plateau=12),
        replace(base, name="not rounded to codes", rounded=False),
        replace(base, name="drawer codes", drawer="codes", config=replace(config, lr=0.3)),
        *(replace(base, name=f"drawer {d}", drawer=d, config=replace(config, lr=0.05))
          for d in ("pixels", "fourier", "stack")),
        *regularised(base, (10.0,)),
    ]  # fmt: skip
    first = torch.arange(0, len(of), max(1, n // 10))  # a prompt of each class
    for row in rows:
        if not re.search(only, row.name):
            continue
        began = time.process_time()
        pictures, steps = world.follow(row, world.random_codes(), banks.get(row.bank))
        seconds = (time.process_time() - began) / len(of)
        found, other = (world.cosines(pictures, i) for i in (0, 1))
        sees = (other[:, first].argmax(1) == of).float().mean()
        judged = (judge.classify(pictures) == of).float().mean()
        print(f"{row.name}: judge {judged:.1%}, second CLIP {sees:.1%}, cosine "
              f"{found.diagonal().mean():.3f}, {seconds:.1f} CPU s, "
              f"{steps:.0f} steps", flush=True)  # fmt: skip


def flips(guide: Guide, vqgan: nn.Module, *, top: int = 64) -> Callable[[Parents, Dice], Tensor]:
    """A move: one to four codes of those whose change the gradient likes best."""
    books = tables(vqgan.quantizer)

    def flip(p: Parents, dice: Dice) -> Tensor:
        """returns: (h, w) int64"""
        z = vqgan.quantizer.vectors(p.codes[None]).requires_grad_()
        seen = guide.embed(vqgan.decode_unclamped(z).clamp(-1, 1))
        grad = torch.autograd.grad((seen @ guide.wanted[0].embeddings.T).sum(), z)[0]
        parts, gains = [x[0] for x in vqgan.quantizer.factors(p.codes[None])], []
        for book, g, old in zip(books, grad[0].split([b.shape[1] for b in books]), parts,
                                strict=True):  # fmt: skip
            change = torch.einsum("dhw,kd->hwk", g, book)  # to first order
            gains.append((change - change.gather(-1, old[..., None])).flatten())
        best = torch.cat(gains).topk(top).indices
        for _ in range(1 + dice.below(4)):
            at, factor = int(dice.of(best)), 0
            while at >= gains[factor].numel():
                at, factor = at - gains[factor].numel(), factor + 1
            place, code = divmod(at, len(books[factor]))
            parts[factor].view(-1)[place] = code
        return vqgan.quantizer.combined(parts)

    return flip


def searched(folder: Path, n: int, only: str) -> None:
    """The oracle's table of the search with flips that the gradient proposes."""
    clip, prior = load(folder / "clip", kind="clip"), prior_of(folder, "cpu")
    for model in (clip, prior.painter.vqgan):
        model.requires_grad_(False)
    pool = pool_of(folder, prior, [Guide(clip, ())]).part(torch.arange(2048))
    plain = SearchConfig(evaluations=1024)
    rows = {
        "as it is": plain.moves, "with flips": (*plain.moves, "flip", "flip"),
        "flips alone": ("flip",),
    }  # fmt: skip
    moves.MOVES = (*moves.MOVES, "flip")
    texts = prompts_of("held_out_one_object", n, seed=1)
    for name, chosen in rows.items():
        if not re.search(only, name):
            continue
        began, found = time.process_time(), []
        for i, text in enumerate(texts):
            guide = make_guide(clip, [Prompt(text)])
            moves.ALONE["flip"] = flips(guide, prior.painter.vqgan)
            config = replace(plain, moves=chosen)
            how = {"config": config, "enough": math.inf}  # all tries, in each row
            found.append(find(prior, [guide], pool, seed=1 + i, **how).codes[:1])
        right = exact(WORLDS["shapes"].score(texts, prior.painter.decode(torch.cat(found)).numpy()))
        seconds = (time.process_time() - began) / n
        print(f"search, {name}: right {right.mean():.1%}, {seconds:.1f} CPU s", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", choices=("shapes", "search", "photographs"))
    parser.add_argument("folder", type=Path, help="with clip, vqgan, and for shapes dalle")
    parser.add_argument("--judge", type=Path, help="cifar10_resnet20.safetensors")
    parser.add_argument("--second", type=Path, help="a CLIP that is not followed")
    parser.add_argument("-n", type=int, default=40, help="pictures a row (default: 40)")
    parser.add_argument("--only", default="", help="rows that fit this pattern (default: all)")
    given = parser.parse_args()
    if given.world == "shapes":
        shapes(given.folder, given.n, given.only)
    elif given.world == "search":
        searched(given.folder, given.n, given.only)
    else:
        photographs(given.folder, given.judge, given.second, given.n, given.only)


if __name__ == "__main__":
    main()
