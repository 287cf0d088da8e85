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

from minimodal.blocks.given import check_counts, paste
from minimodal.blocks.packed import packed_linears
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.sampling import Generators, SamplingConfig, draw, guide, one_each
from minimodal.blocks.transformer import KVCache, Transformer
from minimodal.errors import UserError

MOST_CACHES = 32  # windows whose keys and values are kept at a time


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
        if not 0 <= self.pkeep <= 1:
            raise UserError(f"pkeep {self.pkeep}: expected 0 to 1")
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
        self.encode_pictures: Callable[[Tensor], Tensor] | None = None
        self.decode_indices: Callable[[Tensor], Tensor] | None = None
        self.factor = 0  # pixels a side of a code

    def paint_with(self, vqgan: nn.Module) -> None:
        """Take a trained VQGAN for going to and from pixels; it is no part of these weights."""
        self.factor = vqgan.config.factor
        self.encode_pictures = lambda x: vqgan.to(x.device).encode(x).indices
        self.decode_indices = lambda codes: vqgan.to(codes.device).decode_indices(codes)

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
        x = x + self.positions[first : first + x.shape[1]]
        return self.head(self.norm_out(self.transformer(x, cache=cache)))

    def code_logits(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Predict every code of a picture from those before it.

        codes: (B, h, w) int64, h = w = grid
        labels: (B,) int64, -1 for none
        returns: (B, N, K)
        """
        # The last code is predicted, never read.
        stream = torch.cat([self.condition(labels), codes.flatten(1)[:, :-1]], dim=1)
        return self.forward(stream)[..., : self.config.codes]

    def loss(self, codes: Tensor, labels: Tensor, *, replaced: Tensor | None = None) -> Tensor:
        """-E log p(sᵢ | s₍<ᵢ₎, c) (equation 8), the mean over codes, in nats.

        A model that draws reads its own mistakes; in training it reads `replaced`, codes of which
        some are random, while what it shall predict stays true.

        codes: (B, h, w) int64
        labels: (B,) int64, -1 for none
        replaced: (B, h, w) int64, or None to read the true codes
        returns: ()
        """
        logits = self.code_logits(codes if replaced is None else replaced, labels)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())

    # --- drawing ---------------------------------------------------------------------------------

    def window(self, place: tuple[int, int], size: tuple[int, int], stride: int) -> tuple[int, int]:
        """The upper left corner of the window that a code is predicted from.

        The place is in its middle, but for the window staying inside of the picture (figure 3 of
        the paper) and moving in steps of `stride`.
        """
        g, corner = self.config.grid, []
        for here, full in zip(place, size, strict=True):
            middle = (here - g // 2) // stride * stride
            corner.append(min(max(middle, 0), full - g))
        return corner[0], corner[1]

    def begin(
        self, labels: Tensor, size: tuple[int, int], start: Tensor | None
    ) -> tuple[Tensor, list[int]]:
        """A grid with the given codes in it, and the places that are left to draw, row by row.

        A side shorter than the window is drawn as long as the window, and cut.

        labels: (B,) int64, -1 for none
        start: (B, n) int64 the first n codes of a grid of this size
        returns: (B, H, W) int64 codes, no side shorter than the window, and numbers of places
        """
        c, (height, width) = self.config, size
        if min(size) < 1:
            raise UserError(f"{height} x {width} codes: expected 1 or more a side")
        most = c.classes or c.shared_rows
        if not all(-1 <= label < most for label in labels.tolist()):
            raise UserError(f"labels {labels.tolist()}: expected -1 (none) to {most - 1}")
        H, W = max(height, c.grid), max(width, c.grid)
        canvas = torch.zeros(len(labels), H, W, dtype=torch.int64, device=labels.device)
        known = torch.zeros(H, W, dtype=torch.bool)
        if start is not None:
            n = start.shape[1]
            if len(start) != len(labels) or n > height * width:
                raise UserError(
                    f"{n} codes to start from for {len(start)} pictures: expected at most "
                    f"{height * width} for {len(labels)}"
                )
            if n and not 0 <= int(start.min()) <= int(start.max()) < c.codes:
                raise UserError(f"codes to start from: expected 0 to {c.codes - 1}")
            places = torch.arange(n)
            i, j = places // width, places % width
            canvas[:, i, j], known[i, j] = start, True
        return canvas, (~known[:height]).flatten().nonzero().flatten().tolist()

    @torch.no_grad()
    def generate_codes(
        self,
        labels: Tensor,
        *,
        generator: Generators,
        sampling: SamplingConfig = SamplingConfig(),
        size: tuple[int, int] | None = None,
        start: Tensor | None = None,
        stride: int = 1,
        use_cache: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Draw grids of codes of any size, row by row, with a sliding window.

        A window keeps its keys and values while its rows stay the same: its next code costs only
        the codes that were drawn since. With a stride s windows have s rows and s columns in which
        to do so, at the price of a place that is up to s - 1 off the middle.

        labels: (B,) int64 class numbers, -1 for none
        size: height and width in codes; by default those of training
        start: (B, n) int64 the first n codes, row by row; they stay as they are
        progress: called with the share of the codes that is drawn, 0 to 1
        returns: (B, h, w) int64
        """
        c, B, g = self.config, len(labels), self.config.grid
        if not 1 <= stride <= g - g // 2:
            raise UserError(
                f"stride {stride}: expected 1 to {g - g // 2}, half of the window's {g} codes"
            )
        height, width = size or (g, g)
        canvas, places = self.begin(labels, (height, width), start)
        H, W = canvas.shape[1:]
        guided = sampling.guided
        if c.shared_rows and sampling.guidance != 1:
            raise UserError(
                f"guidance {sampling.guidance}: this prior never learned to draw without what is "
                "said, so it cannot be guided; expected 1"
            )
        nothing = torch.full_like(labels, -1)
        said = nothing if sampling.ignores_caption else labels
        ahead = self.condition(torch.cat([said, nothing]) if guided else said)  # (B', 1)
        caches: dict[int, KVCache] = {}
        caches_top = 0
        with packed_linears([self.transformer, self.head] if use_cache else [], len(ahead)):
            for number, place in enumerate(places):
                i, j = divmod(place, W)
                top, left = self.window((i, j), (H, W), stride)
                if top != caches_top:
                    caches, caches_top = {}, top
                if use_cache and left not in caches:
                    # The window to the left is of use to the next row only if that has it, too. Of
                    # too many the latest goes: every row begins with the earliest.
                    again = self.window((i + 1, j), (H, W), stride)[0] == top
                    if caches and (not again or len(caches) >= MOST_CACHES):
                        caches.popitem()
                    caches[left] = self.new_cache(len(ahead))
                before = (i - top) * g + (j - left)  # codes of the window that are drawn already
                inside = canvas[:, top : top + g, left : left + g].flatten(1)[:, :before]
                stream = torch.cat([ahead, inside.repeat(len(ahead) // B, 1)], dim=1)  # (B', 1+n)
                cache = caches.get(left)
                seen = cache.length if cache is not None else 0
                logits = self.forward(stream[:, seen:], cache=cache)[:, -1, : c.codes].float()
                if guided:
                    logits = guide(*logits.chunk(2), sampling.guidance)  # (B, K)
                canvas[:, i, j] = draw(logits, sampling, generator)
                if progress is not None:
                    progress((number + 1) / len(places))
        return canvas[:, :height, :width]

    def new_cache(self, batch: int) -> KVCache:
        """A cache for a window of each of `batch` pictures."""
        weight = self.positions
        return self.transformer.new_cache(
            batch, self.config.length, device=weight.device, dtype=weight.dtype
        )

    def label_of(self, name: str) -> int:
        """A class's number by its name."""
        if name not in self.class_names:
            close = difflib.get_close_matches(name, self.class_names, n=1, cutoff=0.5)
            meant = f" did you mean {close[0]}?" if close else ""
            known = ", ".join(self.class_names) or "none: it was trained without classes"
            raise UserError(f"no class '{name}';{meant} this prior's classes are {known}")
        return self.class_names.index(name)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Pixels, width and height, to codes, height and width."""
        f = self.factor
        for side in size:
            if side < f or side % f:
                low = max(side // f, 1) * f
                raise UserError(
                    f"{side} pixels are no multiple of {f}, the pixels of a code: {low} or "
                    f"{low + f} are"
                )
        return size[1] // f, size[0] // f

    @torch.no_grad()
    def first_rows(self, picture: Tensor, share: float, size: tuple[int, int]) -> Tensor:
        """The codes of the upper share of a picture, at least a row and not all.

        picture: (3, H, W) uint8
        returns: (1, n) int64
        """
        height, width = size
        pixels = (height * self.factor, width * self.factor)
        if tuple(picture.shape[1:]) != pixels:
            raise UserError(
                f"the picture to complete has {picture.shape[2]} x {picture.shape[1]} pixels: "
                f"expected {pixels[1]} x {pixels[0]}, the size that is drawn"
            )
        if not 0 < share < 1:
            raise UserError(f"keep {share}: expected a share between 0 and 1 of the picture's rows")
        rows = min(max(round(share * height), 1), height - 1)
        codes = self.encode_pictures(to_float(picture[None]))  # (1, h, w)
        return codes[:, :rows].flatten(1)

    @torch.no_grad()
    def generate(
        self,
        classes: list[str] | None = None,
        n: int = 1,
        *,
        generator: torch.Generator | None = None,
        seeds: list[int] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 1.0,
        size: tuple[int, int] | None = None,
        complete: Tensor | None = None,
        keep: float = 0.5,
        stride: int = 1,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw n pictures of each class, or n of anything without classes.

        generator: a torch.Generator on the model's device
        seeds: instead of the generator one seed for each picture, which is then the same beside
            any others
        size: width and height in pixels; by default those of training
        complete: (3, H, W) uint8 a picture whose upper share `keep` is kept
        progress: called with the share done, 0 to 1
        returns: (N, 3, H, W) uint8, N = n times the classes
        """
        if self.decode_indices is None:
            raise UserError("this prior has no VQGAN to paint with: load it with minimodal.load")
        sampling = SamplingConfig(temperature, top_k, top_p, guidance, min_p)
        numbers = [self.label_of(name) for name in classes or []] or [-1]
        check_counts(len(numbers), n, batch_size, generator=generator, seeds=seeds)
        if numbers == [-1] and guidance not in (0.0, 1.0):
            raise UserError(f"guidance {guidance}: there is no class to be guided by")
        g = self.config.grid
        grid = (g, g) if size is None else self.grid_of(size)
        device = self.positions.device
        start = None if complete is None else self.first_rows(complete.to(device), keep, grid)
        labels = torch.tensor(numbers, device=device).repeat_interleave(n)  # (N,)
        codes = []
        for chunk in labels.split(batch_size):
            first = sum(map(len, codes))
            own = None if seeds is None else one_each(seeds[first : first + len(chunk)], device)

            def told(drawn: float, first: int = first, part: int = len(chunk)) -> None:
                if progress is not None:
                    progress((first + drawn * part) / len(labels))

            codes.append(
                self.generate_codes(
                    chunk, generator=own or generator, sampling=sampling, size=grid, stride=stride,
                    start=None if start is None else start.expand(len(chunk), -1), progress=told,
                )
            )  # fmt: skip
        images = torch.cat([self.decode_indices(part) for part in codes])  # (N, 3, H, W)
        pictures, stays = to_uint8(images), None
        if start is not None:
            stays = torch.arange(grid[0] * grid[1], device=device) < start.shape[1]
            stays = stays.view(grid)  # (h, w)
        return paste(pictures, complete, stays)
