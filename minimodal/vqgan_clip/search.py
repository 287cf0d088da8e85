"""Search beside gradients: try moves on codes, keep what is better.

CLIP ranks pictures of the world it knows nearly without fault and misjudges others, and a gradient
leads straight to the others. So: begin with the best of a pool that an unconditional prior drew,
change them by moves that mostly stay in the world, and let every change be judged by the exact
score together with the prior's likelihood,

    J(codes) = score(codes) + λ min(0, log p(codes) - log p₀)

p₀ is what a tenth of the pool is less likely than: an ordinary picture loses nothing for having
more in it than another, and a chimera does.

Each of M members has n children a round by one kind of move, and the best child takes its place if
J rises (or, warm, by Metropolis' rule). From time to time the worst quarter are replaced by the
best. The models come in as callables, so the search knows of codes alone:

    score(codes (N, h, w)) -> (N,)            in nats, such as CLIP's scale times its cosine
    log_likelihood(codes) -> (N,)
    redraw(codes, keep (h, w) bool) -> codes  what is not kept drawn anew by the prior

Read nothing before this file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minimodal.errors import UserError, check_choice

Score = Callable[[Tensor], Tensor]
Redraw = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SearchConfig:
    """How long and how the search looks."""

    evaluations: int = 4096  # of the score, beside the pool
    members: int = 32
    donors: int = 64  # of the pool, to copy from
    children: int = 2  # of each member a round
    likelihood: float = 1.0  # λ
    ordinary: float = 0.1  # the share of the pool that is less likely than p₀
    temperature: float = 0.0  # nats, falls to 0 at the end; 0: only what is better
    moves: tuple[str, ...] = ("redraw", "redraw", "exchange", "transplant", "copy", "shift")
    renew: int = 16  # rounds after which the worst quarter give way to the best; 0: never
    sides: tuple[int, int] = (3, 6)  # of rectangles, in codes
    enough: float = float("inf")  # a J that ends the search

    def __post_init__(self) -> None:
        if min(self.evaluations, self.members, self.children) < 1 or self.renew < 0:
            raise UserError("a search has 1 or more evaluations, members and children")
        for name in self.moves:
            check_choice("move", name, MOVES)
        if not self.moves or not 1 <= self.sides[0] <= self.sides[1]:
            raise UserError("a search needs moves, and rectangles of 1 code or more a side")


class Found(NamedTuple):
    """What a search ends with, best first.

    codes: (M, h, w) int64
    scores: (M,) without the likelihood
    evaluations: how often the score was asked, beside the pool
    """

    codes: Tensor
    scores: Tensor
    evaluations: int


class Dice:
    """Small random numbers from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def below(self, n: int) -> int:
        """0 to n - 1, evenly."""
        return int(torch.randint(n, (1,), generator=self.generator))

    def of(self, values: Tensor) -> Tensor:
        """One of some values.

        values: (N,)
        returns: ()
        """
        return values[self.below(len(values))]

    def rectangle(self, h: int, w: int, sides: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width within a grid."""
        tall, wide = (min(n, sides[0] + self.below(sides[1] - sides[0] + 1)) for n in (h, w))
        return self.below(h - tall + 1), self.below(w - wide + 1), tall, wide


class Parents(NamedTuple):
    """What a move on one picture may use.

    codes: (h, w) the picture's
    donor: (h, w) another good picture's
    sizes: of the code's factors
    """

    codes: Tensor
    donor: Tensor
    sizes: tuple[int, ...]
    sides: tuple[int, int]


def exchange(p: Parents, dice: Dice) -> Tensor:
    """One or two values of a code's last factor for values of the donor's, everywhere: with a
    factor for appearance an object takes another colour, in a pair it never had.

    returns: (h, w)
    """
    last, out = p.sizes[-1], p.codes.clone()
    theirs = (p.donor % last).unique()
    for _ in range(1 + dice.below(2)):
        old, new = dice.of((out % last).unique()), dice.of(theirs)
        out = torch.where(out % last == old, out - old + new, out)
    return out


def transplant(p: Parents, dice: Dice) -> Tensor:
    """The donor's last factor in a rectangle or everywhere, on the picture's own first ones.

    returns: (h, w)
    """
    h, w = p.codes.shape
    y, x, tall, wide = dice.rectangle(h, w, p.sides) if dice.below(2) else (0, 0, h, w)
    there = (slice(y, y + tall), slice(x, x + wide))
    last, out = p.sizes[-1], p.codes.clone()
    out[there] = out[there] - out[there] % last + p.donor[there] % last
    return out


def copy(p: Parents, dice: Dice) -> Tensor:
    """A rectangle of the donor, here or elsewhere.

    returns: (h, w)
    """
    h, w = p.codes.shape
    y, x, tall, wide = dice.rectangle(h, w, p.sides)
    v, u = (y, x) if dice.below(2) else (dice.below(h - tall + 1), dice.below(w - wide + 1))
    out = p.codes.clone()
    out[v : v + tall, u : u + wide] = p.donor[y : y + tall, x : x + wide]
    return out


def shift(p: Parents, dice: Dice) -> Tensor:
    """The picture by one code to a side; the edge it leaves is repeated.

    returns: (h, w)
    """
    rows, columns = (
        (torch.arange(n, device=p.codes.device) + dice.below(3) - 1).clamp(0, n - 1)
        for n in p.codes.shape
    )
    return p.codes[rows][:, columns]


ALONE = {"exchange": exchange, "transplant": transplant, "copy": copy, "shift": shift}
MOVES = ("redraw", *ALONE)


def rectangle_about(codes: Tensor, dice: Dice, sides: tuple[int, int]) -> Tensor:
    """A rectangle about a code that is not the picture's most frequent one: where something is.

    codes: (h, w)
    returns: (h, w) bool, False in the rectangle
    """
    h, w = codes.shape
    elsewhere = (codes != codes.flatten().mode().values).flatten().nonzero().flatten()
    at = int(dice.of(elsewhere)) if len(elsewhere) and dice.below(4) else dice.below(h * w)
    _, _, tall, wide = dice.rectangle(h, w, sides)
    y = min(max(at // w - dice.below(tall), 0), h - tall)
    x = min(max(at % w - dice.below(wide), 0), w - wide)
    keep = torch.ones_like(codes, dtype=torch.bool)
    keep[y : y + tall, x : x + wide] = False
    return keep


class Breeding(NamedTuple):
    """How children are made of members."""

    dice: Dice
    config: SearchConfig
    sizes: tuple[int, ...]
    redraw: Redraw

    def children(self, name: str, members: Tensor, donors: Tensor) -> Tensor:
        """n children of each member by a move, those of one member side by side.

        members: (M, h, w) int64
        donors: (D, h, w) int64 what they may take from, beside each other
        returns: (N, h, w) int64, n times the members
        """
        dice, c = self.dice, self.config
        parents = members.repeat_interleave(c.children, 0)  # (M n, h, w)
        if name == "redraw":
            about = members[dice.below(len(members))]
            return self.redraw(parents, rectangle_about(about, dice, c.sides))
        others = torch.cat([donors, members])
        return torch.stack([
            ALONE[name](Parents(own, dice.of(others), self.sizes, c.sides), dice)
            for own in parents
        ])  # fmt: skip


def search(
    pool: Tensor, *, score: Score, log_likelihood: Score, redraw: Redraw, sizes: tuple[int, ...],
    generator: torch.Generator, config: SearchConfig = SearchConfig(),
    on_round: Callable[[Tensor, Tensor], bool | None] | None = None,
) -> Found:  # fmt: skip
    """Improve the best of a pool.

    pool: (P, h, w) int64 codes to begin with
    sizes: of a code's factors
    on_round: called with all members (M, h, w) and their J (M,); True ends the search
    """
    dice, c = Dice(generator), config
    breeding = Breeding(dice, c, sizes, redraw)
    floor = log_likelihood(pool).quantile(c.ordinary)

    def strange(codes: Tensor) -> Tensor:
        """λ min(0, log p - log p₀). codes: (N, h, w); returns: (N,)"""
        return c.likelihood * (log_likelihood(codes) - floor).clamp(max=0)

    scores, penalties = score(pool), strange(pool)  # (P,)
    ranked = (scores + penalties).argsort(descending=True, stable=True)
    donors, first = pool[ranked[: c.donors]], ranked[: c.members]
    members = pool[first]  # (M, h, w)
    scores, values = scores[first], (scores + penalties)[first]  # (M,)
    M, (h, w) = len(members), members.shape[1:]
    best, best_score, best_value = members[:1], scores[:1], float(values[0])
    used = rounds = 0
    while used < c.evaluations and best_value < c.enough:
        name = c.moves[dice.below(len(c.moves))]
        children = breeding.children(name, members, donors)  # (M n, h, w)
        found, at = score(children).view(M, -1).max(dim=1)  # (M,), (M,)
        used, rounds = used + len(children), rounds + 1
        children = children.view(M, -1, h, w)[torch.arange(M), at]  # each member's best
        warm = max(0.0, c.temperature * (1 - used / c.evaluations))
        luck = torch.rand(M, generator=generator).clamp(min=1e-9).log() * warm
        # J is at most the score: what that rules out needs no likelihood.
        close, value = found - values > luck, torch.full_like(found, -torch.inf)
        if close.any():
            value[close] = found[close] + strange(children[close])
        taken = value - values > luck
        members = torch.where(taken[:, None, None], children, members)
        scores, values = torch.where(taken, found, scores), torch.where(taken, value, values)
        top = int(values.argmax())
        if float(values[top]) > best_value:
            best, best_score = members[top : top + 1], scores[top : top + 1]
            best_value = float(values[top])
        if on_round is not None and on_round(members, values):
            break
        if c.renew and rounds % c.renew == 0 and M >= 4:
            order, q = values.argsort(descending=True), M // 4
            for what in (members, scores, values):
                what[order[-q:]] = what[order[:q]].clone()
    order = values.argsort(descending=True)
    codes, scores = torch.cat([best, members[order]]), torch.cat([best_score, scores[order]])
    return Found(codes[:M], scores[:M], used)
