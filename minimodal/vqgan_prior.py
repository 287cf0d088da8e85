"""VQGAN's second stage: an autoregressive transformer over codes (Esser et al. 2021, section 3.2).

A picture's grid of h x w codes is read row by row, after one token that says its class (or that
nothing is said), and a causal Transformer learns to predict every code from those before it.
Pictures larger than those it was trained on are drawn with a sliding window: each code is predicted
from a window of the trained size about its place.

codes (B, h, w) and labels (B,) in; logits of each next code out. Read `blocks/transformer.py`,
`blocks/sampling.py` and `vqgan.py` before.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.given import nothing_kept, upper_rows
from minimodal.blocks.packed import packed_linears
from minimodal.blocks.painter import Painter, Request
from minimodal.blocks.sampling import Generators, SamplingConfig, guide, sample_token
from minimodal.blocks.sliding_window import corner, make_canvas
from minimodal.blocks.transformer import KVCache, Transformer
from minimodal.errors import UserError, check_range


@dataclass(frozen=True)
class VQGANPriorConfig:
    """The shape of a transformer over codes."""

    grid: int = 8  # h = w of a window: the codes a side of the pictures in training
    codes: int = 1024  # K, of all factors of a code together
    classes: int = 0
    width: int = 128
    depth: int = 4
    heads: int = 4
    pkeep: float = 0.9  # share of the codes read in training that are true; others are random
    shared_rows: int = 0  # rows of a table that codes and classes share from row 0; 0: not shared
    sos: int = 0  # with shared rows, the one that stands ahead where there are no classes

    def __post_init__(self) -> None:
        if min(self.grid, self.codes, self.width, self.depth, self.heads) < 1 or self.classes < 0:
            raise UserError(
                "a prior's grid, codes, width, depth and heads are numbers of 1 or more"
            )
        check_range(self, 0, 1, "pkeep")
        if not 0 <= self.sos < max(self.shared_rows, 1):
            raise UserError(f"sos {self.sos}: expected a shared row, 0 to {self.shared_rows - 1}")

    @property
    def length(self) -> int:
        """N: codes of a window."""
        return self.grid**2

    @property
    def rows(self) -> int:
        """Rows of the token table: codes, classes, and one for "nothing is said"."""
        return self.shared_rows or self.codes + self.classes + 1


class VQGANPrior(nn.Module):
    """One table of tokens, learned positions, a causal Transformer and a head."""

    def __init__(self, config: VQGANPriorConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        # differs from the paper: classes and "no class" have rows of their own in the table of
        # tokens, so that a model can be guided.
        self.tokens = nn.Embedding(config.rows, D)
        self.positions = nn.Parameter(torch.zeros(config.length, D))
        self.transformer = Transformer(D, config.depth, config.heads, causal=True)
        self.norm_out = nn.LayerNorm(D)
        self.head = nn.Linear(D, config.shared_rows or config.codes, bias=False)
        # As in DALL·E: at the size of what the first blocks add to them.
        nn.init.normal_(self.tokens.weight, std=0.5)
        nn.init.normal_(self.positions, std=0.3)
        nn.init.normal_(self.head.weight, std=0.02)
        # Set by whoever builds or loads the model, to go from classes to pixels.
        self.class_names: list[str] = []
        self.painter: Painter | None = None  # a trained VQGAN, no part of these weights

    # --- the stream ------------------------------------------------------------------------------

    def condition(self, labels: Tensor) -> Tensor:
        """The token ahead of the codes: the class's, or for -1 the one that says nothing.

        labels: (B,) int64 class numbers, -1 for none
        returns: (B, 1) int64
        """
        c = self.config
        if c.shared_rows:  # the original has no row for "nothing": without classes it is a code's
            if c.classes and (labels < 0).any():
                raise UserError("this prior was trained with a class for every picture: name one")
            return torch.where(labels < 0, c.sos, labels)[:, None]
        said = c.codes + labels
        return torch.where(labels < 0, torch.full_like(said, c.codes + c.classes), said)[:, None]

    def forward(
        self, tokens: Tensor, *, ahead: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """What follows each token. With a cache, `tokens` are only those that it has not seen.

        tokens: (B, T) int64 rows of the table
        ahead: (B, P, D) vectors in front of the tokens, instead of tokens
        returns: (B, S, V) logits, S = T + P with vectors ahead
        """
        x = self.tokens(tokens)  # (B, T, D)
        if ahead is not None:
            x = torch.cat([ahead, x], dim=1)  # (B, S, D)
        first = cache.length if cache is not None else 0
        x = x + self.positions[first : first + x.shape[1]]  # (B, S, D)
        h = self.norm_out(self.transformer(x, cache=cache))  # (B, S, D)
        return self.head(h)  # (B, S, V)

    def code_logits(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Predict every code of a picture from those before it.

        codes: (B, h, w) int64, h = w = grid
        labels: (B,) int64, -1 for none
        returns: (B, N, K)
        """
        # The last code is predicted, never read.
        stream = torch.cat([self.condition(labels), codes.flatten(1)[:, :-1]], dim=1)  # (B, N)
        return self.forward(stream)[..., : self.config.codes]  # (B, N, K)

    def loss(self, codes: Tensor, labels: Tensor, *, replaced: Tensor | None = None) -> Tensor:
        """-E log p(sᵢ | s₍<ᵢ₎, c) (equations 9 and 10), the mean over codes, in nats.

        A model that draws reads its own mistakes; in training it reads `replaced`, codes of which
        some are random, while what it shall predict stays true.

        codes: (B, h, w) int64
        labels: (B,) int64, -1 for none
        replaced: (B, h, w) int64, or None to read the true codes
        returns: ()
        """
        logits = self.code_logits(codes if replaced is None else replaced, labels)  # (B, N, K)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())

    # --- drawing ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate_codes(
        self, labels: Tensor, *, generator: Generators, sampling: SamplingConfig = SamplingConfig(),
        size: tuple[int, int] | None = None, start: Tensor | None = None, use_cache: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw sᵢ ~ p(sᵢ | s₍<ᵢ₎, c) for grids of any size, row by row, with a sliding window.

        labels: (B,) int64 class numbers, -1 for none
        size: height and width in codes; by default those of training
        start: (B, n) int64 the first n codes, row by row; they stay as they are
        progress: called with the share of the codes that is drawn, 0 to 1
        returns: (B, h, w) int64
        """
        c, B, g = self.config, len(labels), self.config.grid
        if c.shared_rows and sampling.guidance != 1:
            raise UserError(
                f"guidance {sampling.guidance}: this prior never learned to draw without what is "
                "said, so it cannot be guided; expected 1"
            )
        if not all(-1 <= label < (c.classes or c.shared_rows) for label in labels.tolist()):
            most = (c.classes or c.shared_rows) - 1
            raise UserError(f"labels {labels.tolist()}: expected -1 (none) to {most}")
        height, width = size or (g, g)
        start = labels.new_zeros(B, 0) if start is None else start  # (B, n)
        canvas, places = make_canvas(start, (height, width), window=g, codes=c.codes)
        H, W = canvas.shape[1:]
        nothing = torch.full_like(labels, -1)
        said = torch.cat([labels, nothing]) if sampling.guided else labels  # (B',)
        ahead = self.condition(nothing if sampling.ignores_caption else said)  # (B', 1)
        cache, here = None, None
        with packed_linears([self.transformer, self.head] if use_cache else [], len(ahead)):
            for number, (i, j) in enumerate(divmod(place, W) for place in places):
                top, left = corner((i, j), (H, W), window=g)
                if use_cache and here != (top, left):  # while it stays, a code costs one token
                    cache, here = self.new_cache(len(ahead)), (top, left)
                before = (i - top) * g + (j - left)  # codes of the window that are drawn already
                inside = canvas[:, top : top + g, left : left + g].flatten(1)[:, :before]  # (B, m)
                stream = torch.cat([ahead, inside.repeat(len(ahead) // B, 1)], dim=1)  # (B', 1+m)
                seen = cache.length if cache is not None else 0
                logits = self.forward(stream[:, seen:], cache=cache)[:, -1, : c.codes].float()
                if sampling.guided:  # u + s (c - u)
                    logits = guide(*logits.chunk(2), sampling.guidance)  # (B, K)
                canvas[:, i, j] = sample_token(logits, sampling, generator)
                if progress is not None:
                    progress((number + 1) / len(places))
        return canvas[:, :height, :width]

    def new_cache(self, batch: int) -> KVCache:
        """A cache for a window of each of `batch` pictures."""
        where = {"device": self.positions.device, "dtype": self.positions.dtype}
        return self.transformer.new_cache(batch, self.config.length, **where)

    # --- from classes to pictures ----------------------------------------------------------------

    def label_of(self, name: str) -> int:
        """A class's number by its name."""
        if name not in self.class_names:
            close = difflib.get_close_matches(name, self.class_names, n=1, cutoff=0.5)
            meant = f" did you mean {close[0]}?" if close else ""
            known = ", ".join(self.class_names) or "none: it was trained without classes"
            raise UserError(f"no class '{name}';{meant} this prior's classes are {known}")
        return self.class_names.index(name)

    def draw(
        self, classes: list[str] | None, request: Request,
        sampling: SamplingConfig = SamplingConfig(), *, size: tuple[int, int] | None = None,
        complete: Tensor | None = None, keep: float = 0.5,
    ) -> Tensor:  # fmt: skip
        """Draw `request.n` pictures of each class, or of anything without classes.

        size: width and height in pixels; by default those of training
        complete: (3, H, W) uint8 a picture whose upper share `keep` is kept
        returns: (N, 3, H, W) uint8, N = n times the classes
        """
        if self.painter is None:
            raise UserError("this prior has no VQGAN to decode with: load it with minimodal.load")
        numbers = [self.label_of(name) for name in classes or []] or [-1]
        request.check(len(numbers))
        if not classes and sampling.guidance not in (0.0, 1.0):
            raise UserError(f"guidance {sampling.guidance}: there is no class to be guided by")
        g, device = self.config.grid, self.positions.device
        grid = (g, g) if size is None else self.painter.grid_of(size)
        kept = nothing_kept(1, grid, device)
        if complete is not None:
            kept = upper_rows(complete.to(device), keep, self.painter, grid=grid)
        labels = torch.tensor(numbers, device=device).repeat_interleave(request.n)  # (N,)
        start = kept.codes[:, kept.keep].expand(len(labels), -1)  # (N, n)
        pictures = []
        for chunk in request.chunks(len(labels), device):
            codes = self.generate_codes(
                labels[chunk.rows], generator=chunk.generator, sampling=sampling, size=grid,
                start=start[chunk.rows], progress=chunk.tell,
            )  # fmt: skip
            pictures.append(kept.paste(self.painter.decode(codes)))
        return torch.cat(pictures)
