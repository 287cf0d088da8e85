"""DALL·E's sparse attention: who attends to whom in a stream of caption and picture.

Ramesh et al. 2021, appendix B.1 and figure 11. A caption token sees the caption so far. A picture
token sees the whole caption and, of the picture tokens up to itself,

    full    all of them
    row     the last w + 1 in raster order: back to the one above it (w codes a row)
    column  those in its column
    conv    those in a kernel x kernel window around it, wrapping around at the picture's sides

A pattern says so as a mask (`allows`), and computes fewer scores than the full one: over rows or
columns of queries with the few keys that they see (`blocked`), and in drawing over the keys that
one new token sees (`visible`).

Fewer scores are not always less time. Seconds of a training step, one CPU thread:

                                              full   row  column  conv
    32 tokens + 16x16 codes, bfloat16         0.37  0.29    0.27  0.34
    the same, float32 (a fused full one)      0.54  0.50    0.48  0.56
    14 tokens +  8x8 codes,  bfloat16         0.14  0.17    0.15  0.18

So they pay from 16x16 codes on, and conv hardly. Drawing takes about as long with any. Not by
`flex_attention`: in torch 2.13 it has no backward pass on a CPU. Read `attention.py` before.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minimodal.blocks.attention import Attend, attend, causal_pattern
from minimodal.errors import UserError, check_choice

KINDS = ("full", "row", "column", "conv")


@dataclass(frozen=True)
class SparsePattern:
    """One layer's pattern over a stream of `ahead` tokens and a picture of `grid` codes a row."""

    kind: str
    ahead: int
    grid: int
    kernel: int = 5

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"attention kernel {self.kernel}: expected an odd number")

    @property
    def reach(self) -> int:
        """Rows above its own that a picture token sees something of (row, conv)."""
        r = self.kernel // 2
        return 1 if self.kind == "row" else r + math.ceil(r / self.grid)  # windows wrap around

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether a query may attend to a key, by their places in the stream.

        queries: (T, 1) int64
        keys: (1, S) int64
        returns: (T, S) bool
        """
        w, r, back = self.grid, self.kernel // 2, queries - keys
        if self.kind == "full":
            return back >= 0
        if self.kind == "row":
            near = back <= w
        elif self.kind == "column":
            near = back % w == 0
        else:
            # The window's rows lie w apart in the raster: how far is the nearest one's middle?
            up = torch.div(back + w // 2, w, rounding_mode="floor").clamp(max=r)
            near = (back - up * w).abs() <= r
        return (back >= 0) & ((queries < self.ahead) | (keys < self.ahead) | near)

    def mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """The pattern written out, when the queries are the last of the keys' places.

        returns: (queries, keys) bool, True = may attend
        """
        places = torch.arange(keys, device=device)
        return self.allows(places[keys - queries :, None], places[None])

    @lru_cache(maxsize=4096)  # noqa: B019 - a pure function of small values, asked at every step
    def visible(self, place: int, device: torch.device) -> Tensor | None:
        """The keys that the token at a place sees; None: all so far.

        returns: (S,) int64 places
        """
        if self.kind == "full" or place < self.ahead:
            return None
        places = torch.arange(place + 1, device=device)
        return places[self.allows(places[-1:, None], places[None])[0]]

    def __call__(self, past: int, queries: int, device: torch.device) -> Attend:
        """How the tokens at places past, past + 1, … attend to all up to themselves."""
        if queries == 1:
            chosen = self.visible(past, device)
            if chosen is None:
                return attend
            return lambda q, k, v: attend(q, k[:, :, chosen], v[:, :, chosen])
        if self.kind == "full" or (past == 0 and queries <= self.ahead):
            return causal_pattern(past, queries, device)
        if past == 0:
            return self.blocked
        return partial(attend, mask=self.mask(queries, past + queries, device))

    def blocked(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a whole stream, without the scores that the pattern leaves out.

        The picture's queries are taken a row (a column) at a time. Each block has scores for the
        caption and for the rows about it (its column) only, and one softmax over both.

        q: (B, H, T, d) queries of the caption and of n picture tokens
        k: (B, H, T, d) keys
        v: (B, H, T, d) values
        returns: (B, H, T, d)
        """
        P, w, n = self.ahead, self.grid, q.shape[2] - self.ahead
        text = attend(q[:, :, :P], k[:, :, :P], v[:, :, :P], causal=True)
        rows = math.ceil(n / w)
        # The last row may be incomplete: keys that are not there yet come after all queries.
        q_, k_, v_ = (F.pad(x[:, :, P:], (0, 0, 0, rows * w - n)) for x in (q, k, v))
        if self.kind == "column":
            order = "B H (h w) d -> B H w h d"
            q_, k_, v_ = (rearrange(x, order, w=w) for x in (q_, k_, v_))  # (B, H, w, h, d) each
            places = torch.arange(rows, device=q.device)
            near = places[:, None] >= places[None]  # (h, h)
        else:
            q_ = rearrange(q_, "B H (h w) d -> B H h w d", w=w)
            k_, v_ = (self.windows(x) for x in (k_, v_))  # (B, H, h, S, d) each, S = (reach + 1) w
            keys = torch.arange((self.reach + 1) * w, device=q.device)
            block = SparsePattern(self.kind, 0, w, self.kernel)
            near = block.allows(self.reach * w + keys[:w, None], keys[None])
            # The rows above the picture's first are padding.
            above = torch.arange(rows, device=q.device)[:, None] * w + keys >= self.reach * w
            near = near & above[:, None]  # (h, w, (reach + 1) w)
        scale = 1 / math.sqrt(q.shape[-1])
        said = torch.einsum("bhrqd,bhtd->bhrqt", q_, k[:, :, :P])  # (B, H, h, w, P)
        seen = torch.einsum("bhrqd,bhrkd->bhrqk", q_, k_).masked_fill(~near, float("-inf"))
        weights = torch.softmax(torch.cat([said, seen], dim=-1) * scale, dim=-1).to(v.dtype)
        y = torch.einsum("bhrqt,bhtd->bhrqd", weights[..., :P], v[:, :, :P])
        y = y + torch.einsum("bhrqk,bhrkd->bhrqd", weights[..., P:], v_)
        back = "B H w h d -> B H (h w) d" if self.kind == "column" else "B H h w d -> B H (h w) d"
        return torch.cat([text, rearrange(y, back)[:, :, :n]], dim=2)

    def windows(self, x: Tensor) -> Tensor:
        """For each row of the picture the rows that it sees, itself the last.

        x: (B, H, N, d) keys or values, N = h w
        returns: (B, H, h, S, d), S = (reach + 1) w
        """
        w, r = self.grid, self.reach
        padded = F.pad(x, (0, 0, r * w, 0))  # rows above the first
        return padded.unfold(2, (r + 1) * w, w).transpose(-2, -1)


def schedule(
    kind: str, depth: int, *, ahead: int, grid: int, kernel: int
) -> tuple[SparsePattern, ...]:
    """The patterns of all layers: one kind, or "paper" for the paper's order of three.

    Appendix B.1 counts layers from 1: column attention where (i - 2) mod 4 = 0, convolutional in
    the last, row attention in all others.
    """
    check_choice("attention", kind, (*KINDS, "paper"))
    kinds = [kind] * depth
    if kind == "paper":
        kinds = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth + 1)]
        kinds[-1:] = ["conv"]
    return tuple(SparsePattern(each, ahead, grid, kernel) for each in kinds)
