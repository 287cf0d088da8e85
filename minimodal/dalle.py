"""DALL·E: one stream of caption and picture tokens (Ramesh et al. 2021, sections 2 and 2.2).

A caption's T tokens are followed by the N codes that VQGAN gives the picture, and one causal
Transformer learns to predict every next token of that stream. To draw, give it the caption and
let it continue; VQGAN's decoder turns the codes into pixels.

text (B, T) and codes (B, h, w) in; logits of each next token out. Read `blocks/transformer.py`
and `blocks/sampling.py` before; what else one can ask of the same weights (captions, classes) is
in `uses/reading.py`.

Every layer attends to all that came before, or by the paper's sparse patterns (`attention="paper"`,
see `blocks/sparse.py`). Where VQGAN has two codebooks a position's code is predicted as two
factors in turn, the second given the first, as in the RQ-Transformer (Lee et al. 2022); the stream
stays as long.

With two pictures in the stream (section 3.3) a caption says what becomes of the first, which is
given: they are one picture of 2 h rows to the model, of which the lower half is drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.factor_head import FactorHead
from minimodal.blocks.given import Box, Given, check_counts, negatives, paste, what_stays
from minimodal.blocks.packed import packed_linears
from minimodal.blocks.pixels import grey_unless, to_uint8
from minimodal.blocks.precision import full_float32
from minimodal.blocks.rotary import rotary_angles
from minimodal.blocks.sampling import Generators, SamplingConfig, draw, guide, one_each
from minimodal.blocks.sparse import schedule
from minimodal.blocks.transformer import KVCache, Transformer
from minimodal.data.words import KnownWords
from minimodal.errors import UserError


@dataclass(frozen=True)
class DALLEConfig:
    """The shape of a DALL·E."""

    vocab_size: int = 512  # text tokens
    text_length: int = 14  # T
    grid: int = 8  # codes a side of a picture: w, and h but for pairs; N = h w
    pictures: int = 1  # of a stream; 2: a first one is given, and the one below it drawn
    codes: tuple[int, ...] = (1024,)  # image vocabulary: VQGAN's codebook sizes
    width: int = 128
    depth: int = 4
    heads: int = 4
    attention: str = "full"  # full, row, column, conv, or paper: the last three in its order
    kernel: int = 5  # of conv attention, in codes a side (the paper: 11)
    rotary: bool = False  # turn queries and keys by row and column as well
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.rotary and self.width % (4 * max(self.heads, 1)):
            raise UserError(f"rotary: width {self.width} / {self.heads} heads is no multiple of 4")
        if self.pictures not in (1, 2):
            raise UserError(f"pictures {self.pictures}: expected 1 or 2 in a stream")

    @property
    def image_length(self) -> int:
        """N: picture tokens of a stream."""
        return self.pictures * self.grid**2

    @property
    def text_vocab(self) -> int:
        """Text tokens and the padding token of each caption position."""
        return self.vocab_size + self.text_length


class DALLELogits(NamedTuple):
    """Predictions of every token of the stream.

    text: (B, T, V) over the text vocabulary, padding tokens included
    image: (B, N, K) over the codes, one tensor for each factor of a code
    """

    text: Tensor
    image: tuple[Tensor, ...]


class DALLE(nn.Module):
    """Embeddings, one causal Transformer, and a head for each vocabulary."""

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__()
        self.config = config
        D, T = config.width, config.text_length
        self.start = nn.Parameter(torch.zeros(D))
        self.text_tokens = nn.Embedding(config.text_vocab, D)
        self.text_positions = nn.Parameter(torch.zeros(T, D))
        self.image_tokens = nn.ModuleList(nn.Embedding(size, D) for size in config.codes)
        self.rows = nn.Parameter(torch.zeros(config.pictures * config.grid, D))
        self.columns = nn.Parameter(torch.zeros(config.grid, D))
        self.transformer = Transformer(
            D,
            config.depth,
            config.heads,
            causal=True,
            patterns=schedule(
                config.attention, config.depth, ahead=1 + T, grid=config.grid, kernel=config.kernel
            ),
        )
        self.norm_out = nn.LayerNorm(D)
        self.text_head = nn.Linear(D, config.text_vocab)
        sizes = config.codes
        self.image_heads = nn.ModuleList(
            FactorHead(D, size, sizes[i - 1] if i else None) for i, size in enumerate(sizes)
        )
        # Embeddings start at the size of what the first blocks add to them. From the usual 0.02
        # a token's own identity is drowned there, and a small model takes long to mend that.
        for table in (self.start, self.text_positions, self.rows, self.columns):
            nn.init.normal_(table, std=0.3)
        for table in (self.text_tokens, *self.image_tokens):
            nn.init.normal_(table.weight, std=0.5)
        nn.init.normal_(self.text_head.weight, std=0.02)
        # Set by whoever builds or loads the model, to go from prompts to pixels.
        self.tokenizer = None
        self.encode_pictures: Callable[[Tensor], Tensor] | None = None
        self.decode_indices: Callable[[Tensor], Tensor] | None = None
        self.factor = 0  # pixels a side of a code
        self.words = KnownWords()  # of training

    def paint_with(self, vqgan: nn.Module) -> None:
        """Take a trained VQGAN for going to and from pixels; it is no part of these weights."""
        self.factor = vqgan.config.factor

        def encode(x: Tensor) -> Tensor:
            with full_float32(x.device):
                return vqgan.to(x.device).encode(x).indices

        self.encode_pictures = encode
        self.decode_indices = lambda codes: vqgan.to(codes.device).decode_indices(codes)

    # --- the stream ------------------------------------------------------------------------------

    def with_padding(self, text: Tensor) -> Tensor:
        """Give each caption position a padding token of its own (section 2.2 of the paper).

        text: (B, T) int64 with pad_id after the caption
        returns: (B, T) int64 where position t is padded by vocab_size + t
        """
        positions = torch.arange(text.shape[1], device=text.device) + self.config.vocab_size
        return torch.where(text == self.config.pad_id, positions, text)

    def factors(self, codes: Tensor) -> list[Tensor]:
        """A code's number as its factors (as `Quantizer.factors`).

        codes: (B, N) int64
        returns: (B, N) int64, one for each factor
        """
        parts = []
        for size in reversed(self.config.codes):
            parts.append(codes % size)
            codes = codes // size
        return parts[::-1]

    def embed_text(self, text: Tensor) -> Tensor:
        """The start vector and the caption.

        text: (B, T) int64
        returns: (B, 1+T, D)
        """
        x = self.text_tokens(self.with_padding(text)) + self.text_positions  # (B, T, D)
        return torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)

    def embed_codes(self, parts: list[Tensor], first: int = 0) -> Tensor:
        """Picture tokens: the sum of their factors' vectors, their row's and their column's.

        parts: factors of the codes, (B, n) int64 each
        first: raster position of the first of the n tokens
        returns: (B, n, D)
        """
        n = parts[0].shape[1]
        places = torch.arange(first, first + n, device=parts[0].device)
        x = self.rows[places // self.config.grid] + self.columns[places % self.config.grid]
        for table, part in zip(self.image_tokens, parts, strict=True):
            x = x + table(part)
        return x

    def angles(self, first: int, n: int) -> Tensor | None:
        """Rotary angles of n places of the stream, or None without rotary positions.

        returns: (n, p) radians for half of a head's channels
        """
        c = self.config
        if not c.rotary:
            return None
        places = torch.arange(first, first + n, device=self.rows.device)
        pairs = c.width // c.heads // 4
        return rotary_angles(places, ahead=1 + c.text_length, grid=c.grid, pairs=pairs)

    def forward(self, text: Tensor, codes: Tensor, *, hidden: Tensor | None = None) -> DALLELogits:
        """Predict every token of the stream from those before it.

        text: (B, T) int64 caption tokens, pad_id after the caption
        codes: (B, h, w) int64 the picture's codes
        hidden: (B, T) bool, True for caption tokens that are read as padding
        """
        if hidden is not None:
            text = text.masked_fill(hidden, self.config.pad_id)
        B, T = text.shape
        parts = self.factors(codes.flatten(1))  # (B, N) each
        # The last picture token is predicted, never read.
        read = self.embed_codes([p[:, :-1] for p in parts])  # (B, N-1, D)
        x = torch.cat([self.embed_text(text), read], dim=1)  # (B, T+N, D)
        h = self.norm_out(self.transformer(x, angles=self.angles(0, x.shape[1])))  # (B, T+N, D)
        mixed = h[:, T:]  # (B, N, D) the last text position predicts code 0
        logits, previous = [], None
        for head, part in zip(self.image_heads, parts, strict=True):
            mixed, predicted = head(mixed, previous)  # (B, N, D), (B, N, K)
            logits.append(predicted)
            previous = part
        return DALLELogits(self.text_head(h[:, :T]), tuple(logits))

    def loss(
        self,
        text: Tensor,
        codes: Tensor,
        *,
        hidden: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L = 1/8 L_text + 7/8 L_image, means of the cross-entropies (section 2.2).

        text: (B, T) int64
        codes: (B, h, w) int64
        hidden: (B, T) bool, caption tokens that are predicted, but not read
        smoothing: share of each code's label that is spread evenly over all codes
        returns: () loss, and its parts
        """
        out = self.forward(text, codes, hidden=hidden)
        wanted = self.with_padding(text)
        text_loss = F.cross_entropy(out.text.flatten(0, 1).float(), wanted.flatten())
        N = self.config.grid**2  # differs from the paper: a first picture is given, so not learned
        last = codes.flatten(1)[:, -N:]
        image_loss = torch.stack(
            [
                F.cross_entropy(
                    logits[:, -N:].flatten(0, 1).float(), part.flatten(), label_smoothing=smoothing
                )
                for logits, part in zip(out.image, self.factors(last), strict=True)
            ]
        ).sum()  # the chain rule: log p(a, b) = log p(a) + log p(b | a)
        parts = {"text_loss": text_loss.detach(), "image_loss": image_loss.detach()}
        return text_loss / 8 + image_loss * 7 / 8, parts

    # --- drawing ---------------------------------------------------------------------------------

    def next_code(
        self,
        h: Tensor,
        config: SamplingConfig,
        generator: Generators,
    ) -> Tensor:
        """Draw one code, factor by factor. With guidance the second half of h has no caption.

        h: (B', 1, D) the stream's last vectors; B' = 2 B with guidance
        returns: (B,) int64
        """
        joint, previous = None, None
        for size, head in zip(self.config.codes, self.image_heads, strict=True):
            h, logits = head(h, previous)
            logits = logits[:, 0].float()  # (B', K)
            if config.guided:
                logits = guide(*logits.chunk(2), config.guidance)  # (B, K)
            part = draw(logits, config, generator)  # (B,)
            joint = part if joint is None else joint * size + part
            previous = (torch.cat([part, part]) if config.guided else part)[:, None]  # (B', 1)
        return joint

    @torch.no_grad()
    def generate_codes(
        self,
        text: Tensor,
        *,
        generator: Generators,
        sampling: SamplingConfig = SamplingConfig(),
        use_cache: bool = True,
        negative: Tensor | None = None,
        known: Tensor | None = None,
        keep: Tensor | None = None,
        on_row: Callable[[Tensor, int], None] | None = None,
    ) -> Tensor:
        """Continue captions with picture tokens.

        text: (B, T) int64 caption tokens, pad_id after the caption
        negative: (B, T) int64 tokens of what guidance pushes away from; nothing said by default
        known: (B, h, w) int64 codes of pictures to complete
        keep: (h, w) bool, True where the known codes stay as they are
        on_row: called after each row in which something is drawn, with all codes and the number
            of rows that are done
        returns: (B, h, w) int64
        """
        c = self.config
        B = len(text)
        empty = torch.full_like(text, c.pad_id) if negative is None else negative
        if sampling.ignores_caption:
            stream = empty
        else:
            stream = torch.cat([text, empty]) if sampling.guided else text  # (B', T)
        repeats = len(stream) // B
        codes = torch.zeros(B, c.image_length, dtype=torch.int64, device=text.device)
        drawn = list(range(c.image_length))
        if known is not None:
            drawn = (~keep.flatten()).nonzero().flatten().tolist()  # read once, before the loop
            codes = torch.where(keep.flatten(), known.flatten(1), codes)
        ends = {n // c.grid: n for n in drawn}.values()  # the last that is drawn of each row
        cache = self.new_cache(len(stream)) if use_cache else None
        prompt = self.embed_text(stream)  # (B', 1+T, D)

        def embed(first: int, stop: int) -> Tensor:
            parts = [p.repeat(repeats, 1) for p in self.factors(codes[:, first:stop])]
            return self.embed_codes(parts, first=first)

        quick = [self.transformer, self.image_heads] if use_cache else []
        with packed_linears(quick, len(stream)):
            for n in drawn:
                # With a cache only what it lacks: the code drawn last and those kept after it.
                held = cache.length if cache else 0
                x = embed(max(held - prompt.shape[1], 0), n)
                x = x if held else torch.cat([prompt, x], dim=1)
                angles = self.angles(held, x.shape[1])
                h = self.transformer(x, cache=cache, angles=angles)
                h = self.norm_out(h[:, -1:])  # (B', 1, D)
                codes[:, n] = self.next_code(h, sampling, generator)
                if on_row is not None and n in ends:
                    on_row(codes.view(B, -1, c.grid), n // c.grid + 1)
        return codes.view(B, -1, c.grid)

    def new_cache(self, batch: int) -> KVCache:
        """A cache for a whole stream of each of `batch` captions."""
        length = 1 + self.config.text_length + self.config.image_length
        weight = self.rows
        return self.transformer.new_cache(batch, length, device=weight.device, dtype=weight.dtype)

    def tokenize(self, prompts: list[str], *, truncate: bool = False) -> Tensor:
        """Captions to tokens, padded.

        returns: (B, T) int64
        """
        if self.tokenizer is None:
            raise UserError("this DALL·E has no tokenizer: load it with minimodal.load")
        texts, length = [*map(self.words.readable, prompts)], self.config.text_length
        return self.tokenizer(texts, length, truncate=truncate, start_and_end=False)

    def generate(
        self,
        prompts: str | list[str],
        n: int = 1,
        *,
        generator: torch.Generator | None = None,
        seeds: list[int] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 1.0,
        negative: str | list[str] | None = None,
        complete: Tensor | None = None,
        redraw: Box | None = None,
        first: Tensor | None = None,
        batch_size: int = 64,
        truncate: bool = False,
        allow_unseen: bool = False,
        progress: Callable[[int], None] | None = None,
        partial: Callable[[Tensor, int], None] | None = None,
    ) -> Tensor:
        """Draw n pictures for each prompt; a prompt's pictures follow one another.

        generator: a torch.Generator on the model's device
        seeds: instead of the generator one seed for each picture, which is then the same in every
            batch and beside any others
        negative: what not to draw, one caption for all or one for each prompt: guidance pushes away
            from it instead of from the empty caption, p(z | prompt)^s / p(z | negative)^(s - 1)
        complete: (3, H, W) uint8 a picture of which all stays but a rectangle, to whole codes
        redraw: the rectangle's left, top, right and bottom in pixels; the lower half by default
        first: (…, 3, H, W) uint8 the first picture of the pairs, or one for each prompt
        allow_unseen: draw also for words that training never had
        progress: called after each row of codes with the share of all that is done, 0 to 1
        partial: called after each row of codes with the batch's pictures so far, (B, 3, H, W) uint8
            and grey where nothing is drawn yet, and the number of pictures that are done already
        returns: (N, 3, H, W) uint8, N = n times the prompts
        """
        if self.decode_indices is None:
            raise UserError("this DALL·E has no VQGAN to paint with: load it with minimodal.load")
        sampling = SamplingConfig(temperature, top_k, top_p, guidance, min_p)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        check_counts(len(prompts), n, batch_size, generator=generator, seeds=seeds)
        given = Given(complete, redraw, first)
        given.check(self.config.pictures)
        against = negatives(negative, prompts, sampling)
        if not allow_unseen:
            self.words.check([*prompts, *against])
        device = self.rows.device
        tokens = self.tokenize([*prompts, *against], truncate=truncate).to(device)
        text, *avoided = tokens.repeat_interleave(n, dim=0).split(n * len(prompts))  # (N, T) each
        known, keep = what_stays(
            given, self.encode_pictures, grid=self.config.grid, factor=self.factor,
            prompts=len(prompts), device=device,
        )  # fmt: skip
        pictures = []
        for chunk in text.split(batch_size):
            done = sum(map(len, pictures))
            own = None if seeds is None else one_each(seeds[done : done + len(chunk)], device)

            def on_row(codes: Tensor, rows: int, done: int = done) -> None:
                if progress is not None:
                    progress((done + len(codes) * rows / codes.shape[1]) / len(text))
                if partial is not None:
                    shown = torch.zeros_like(codes[0], dtype=torch.bool) if keep is None else keep
                    shown = shown.index_fill(0, torch.arange(rows, device=device), True)
                    shown = shown[-self.config.grid :]
                    partial(grey_unless(shown, paste(self.paint(codes), complete, keep)), done)

            theirs = None if known is None else known.repeat_interleave(n, 0)[done:][: len(chunk)]
            codes = self.generate_codes(
                chunk, generator=own or generator, sampling=sampling, on_row=on_row,
                known=theirs, keep=keep,
                negative=avoided[0][done : done + len(chunk)] if avoided else None,
            )  # fmt: skip
            pictures.append(paste(self.paint(codes), complete, keep))
            if progress is not None:
                progress(sum(map(len, pictures)) / len(text))
        return torch.cat(pictures)

    @torch.no_grad()
    def paint(self, codes: Tensor) -> Tensor:
        """The picture of a stream's codes, the second of two.

        codes: (B, h, w) int64
        returns: (B, 3, H, W) uint8
        """
        return to_uint8(self.decode_indices(codes[:, -self.config.grid :]))
