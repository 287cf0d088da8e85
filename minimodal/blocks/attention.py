"""Attention, and who attends to whom in a stream of caption and picture.

`attend` is attention itself (Vaswani et al. 2017). The patterns are DALL·E's sparse ones (Ramesh
et al. 2021, appendix B.1 and figure 11). A caption token sees the caption so far. A picture
token sees the whole caption and, of the picture tokens up to itself,

    full    all of them
    row     the last w + 1 in raster order: back to the one above it (w codes a row)
    column  those in its column
    conv    those in a kernel x kernel window about it, wrapping around at the picture's sides

A pattern says so as a mask (`allows`), and computes fewer scores than the full one: over rows or
columns of queries with the few keys that they see (`blocked`), and in drawing over the keys that
one new token sees (`visible`). What that saves is said at `Pattern`. Read nothing before this file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minimodal.errors import UserError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

KINDS = ("full", "row", "column", "conv")


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Which key each query may attend to, when the queries are the last of the keys' positions.

    returns: (queries, keys) bool, True = may attend
    """
    past = keys - queries
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(past)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """softmax(q kᵀ / √d) v (Vaswani et al. 2017, equation 1).

    q: (B, H, T, d) queries
    k: (B, H, S, d) keys
    v: (B, H, S, d) values
    mask: (T, S) bool, True = may attend, or None for all
    causal: instead of a mask that is causal; faster, since half of the scores are left out
    returns: (B, H, T, d)
    """
    # On a CPU in bfloat16 the fused kernel falls back to a slow path at the sizes of our small
    # models; written out it is faster (benchmarks/kernels.py).
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= 256:
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)  # (B, H, T, S)
        if causal:
            mask = causal_mask(q.shape[2], k.shape[2], q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.softmax(scores, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


@dataclass(frozen=True)
class Pattern:
    """One layer's pattern over a stream of `ahead` tokens and a picture of `grid` codes a row.

    Fewer scores are not always less time. Seconds of a training step, one CPU thread:

                                                  full   row  column  conv
        32 tokens + 16x16 codes, bfloat16         0.37  0.29    0.27  0.34
        the same, float32 (a fused full one)      0.54  0.50    0.48  0.56
        14 tokens +  8x8 codes,  bfloat16         0.14  0.17    0.15  0.18

    So they pay from 16x16 codes on, and conv hardly; on smaller grids they are what the paper did
    and cost more. Drawing takes about as long with any.

    Why not `flex_attention`, which is made for such masks: in torch 2.13 it has no backward pass on
    a CPU, and without torch.compile it writes out all scores on CUDA. Drawing uses neither
    torch.compile nor CUDA graphs; what they would bring on a GPU is not measured.
    """

    kind: str
    ahead: int
    grid: int
    kernel: int = 5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"attention {self.kind}: expected {', '.join(KINDS)}")
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
        w, first = self.grid, self.ahead
        if self.kind == "column":
            runs = [range(first + (place - first) % w, place + 1, w)]
        elif self.kind == "row":
            runs = [range(max(first, place - w), place + 1)]
        else:
            runs, start, r = [], first, self.kernel // 2
            for up in range(r, -1, -1):  # in a narrow picture the window's rows overlap
                middle = place - up * w
                runs.append(range(max(start, middle - r), min(middle + r, place) + 1))
                start = max(start, runs[-1].stop)
        ahead = torch.arange(first, device=device)
        picture = [
            torch.arange(run.start, run.stop, run.step, device=device) for run in runs if len(run)
        ]
        return torch.cat([ahead, *picture])

    def attention(self, past: int, queries: int, device: torch.device) -> Attend:
        """How the tokens at places past, past + 1, … attend to all up to themselves."""
        if queries == 1:
            chosen = self.visible(past, device)
            if chosen is None:
                return attend
            return lambda q, k, v: attend(q, k[:, :, chosen], v[:, :, chosen])
        if past == 0 and (self.kind == "full" or queries <= self.ahead):
            return partial(attend, causal=True)
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
            q_, k_, v_ = (rearrange(x, order, w=w) for x in (q_, k_, v_))  # (B, H, w, h, d)
            places = torch.arange(rows, device=q.device)
            near = places[:, None] >= places[None]  # (h, h)
        else:
            q_ = rearrange(q_, "B H (h w) d -> B H h w d", w=w)
            k_, v_ = (self.windows(x) for x in (k_, v_))  # (B, H, h, (reach + 1) w, d)
            keys = torch.arange((self.reach + 1) * w, device=q.device)
            block = Pattern(self.kind, 0, w, self.kernel)
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


def schedule(kind: str, depth: int, *, ahead: int, grid: int, kernel: int) -> tuple[Pattern, ...]:
    """The patterns of all layers: one kind, or "paper" for the paper's order of three.

    Appendix B.1 counts layers from 1: column attention where (i - 2) mod 4 = 0, convolutional in
    the last, row attention in all others.
    """
    kinds = [kind] * depth
    if kind == "paper":
        kinds = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth + 1)]
        kinds[-1:] = ["conv"]
    elif kind not in KINDS:
        raise UserError(f"attention {kind}: expected {', '.join(KINDS)} or paper")
    return tuple(Pattern(each, ahead, grid, kernel) for each in kinds)


def rotary_angles(places: Tensor, *, ahead: int, grid: int, pairs: int) -> Tensor:
    """Angles for rotary positions in two dimensions, in the manner of Qwen2-VL (Wang et al. 2024).

    Half of the pairs of channels turn with a token's row, half with its column; caption tokens
    count as lying on a diagonal that ends where the picture begins.

    places: (T,) int64 in a stream of `ahead` tokens and a picture of `grid` codes a row
    pairs: pairs of channels that turn with the row, and as many with the column
    returns: (T, p) radians, p = 2 pairs
    """
    image = places - ahead  # raster place, below 0 in the caption
    end = torch.full_like(places, ahead)
    row = torch.where(image < 0, places, end + image // grid)
    column = torch.where(image < 0, places, end + image % grid)
    turns = 100 ** (-torch.arange(pairs, device=places.device) / pairs)
    return torch.cat([row[:, None] * turns, column[:, None] * turns], dim=1)
