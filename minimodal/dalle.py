"""DALL·E: one stream of caption and picture tokens (Ramesh et al. 2021, sections 2 and 2.2).

A caption's T tokens are followed by the N codes that VQGAN gives the picture, and one causal
Transformer learns to predict every next token of that stream:

    log p(text, picture) = Σ_t log p(text_t | text_<t) + Σ_n log p(code_n | text, code_<n)

To draw, give it the caption and let it continue; VQGAN's decoder turns the codes into pixels. text
(B, T) and codes (B, h, w) in; logits of each next token out. Read `blocks/transformer.py`,
`blocks/factor_head.py` and `blocks/painter.py` before. What is optional lies beside: sparse
attention (`blocks/sparse.py`), rotary positions (`blocks/rotary.py`), codes that are given
(`blocks/given.py`), captions and classes by the same weights (`uses/reading.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.factor_head import FactorHeads
from minimodal.blocks.given import NOTHING, Given, what_stays
from minimodal.blocks.packed import packed_linears
from minimodal.blocks.painter import Painter, Request
from minimodal.blocks.rotary import rotary_angles
from minimodal.blocks.sampling import Generators, SamplingConfig
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
    pictures: int = 1  # of a stream; 2: the first is given, the one below it drawn (section 3.3)
    codes: tuple[int, ...] = (1024,)  # image vocabulary: VQGAN's codebook sizes
    width: int = 128
    depth: int = 4
    heads: int = 4
    # differs from the paper: full attention in every layer by default: at 8 x 8 codes the sparse
    # patterns save no time.
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
        D, L, T = config.width, config.depth, config.text_length
        self.start = nn.Parameter(torch.zeros(D))
        self.text_tokens = nn.Embedding(config.text_vocab, D)
        self.text_positions = nn.Parameter(torch.zeros(T, D))
        # differs from the paper: the codes are a VQGAN's, not those of a discrete VAE, which is
        # trained by the relaxed draws of `--quantizer gumbel`.
        self.image_tokens = nn.ModuleList(nn.Embedding(size, D) for size in config.codes)
        self.rows = nn.Parameter(torch.zeros(config.pictures * config.grid, D))
        self.columns = nn.Parameter(torch.zeros(config.grid, D))
        places = {"ahead": 1 + T, "grid": config.grid, "kernel": config.kernel}
        patterns = schedule(config.attention, L, **places)
        self.transformer = Transformer(D, L, config.heads, causal=True, patterns=patterns)
        self.norm_out = nn.LayerNorm(D)
        self.text_head = nn.Linear(D, config.text_vocab)
        self.image_heads = FactorHeads(D, config.codes)
        # From 0.02 a token's own identity is drowned, and a small model takes long to mend that.
        for table in (self.start, self.text_positions, self.rows, self.columns):
            nn.init.normal_(table, std=0.3)
        for table in (self.text_tokens, *self.image_tokens):
            # differs from the paper: embeddings start at 0.5 instead of 0.02, the size of what the
            # first block adds to them.
            nn.init.normal_(table.weight, std=0.5)
        nn.init.normal_(self.text_head.weight, std=0.02)
        # Set by whoever builds or loads the model, to go from prompts to pixels.
        self.tokenizer, self.words = None, KnownWords()  # both of training
        self.painter: Painter | None = None  # a trained VQGAN, no part of these weights

    def with_padding(self, text: Tensor) -> Tensor:
        """Give each caption position a padding token of its own (section 2.2 of the paper).

        text: (B, T) int64 with pad_id after the caption
        returns: (B, T) int64 where position t is padded by vocab_size + t
        """
        positions = torch.arange(text.shape[1], device=text.device) + self.config.vocab_size
        return torch.where(text == self.config.pad_id, positions, text)

    def embed_text(self, text: Tensor) -> Tensor:
        """The start vector and the caption.

        text: (B, T) int64
        returns: (B, 1+T, D)
        """
        x = self.text_tokens(self.with_padding(text)) + self.text_positions  # (B, T, D)
        return torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)

    def embed_codes(self, codes: Tensor, first: int = 0) -> Tensor:
        """Picture tokens: the sum of their factors' vectors, their row's and their column's.

        codes: (B, n) int64
        first: raster position of the first of the n tokens
        returns: (B, n, D)
        """
        places = torch.arange(first, first + codes.shape[1], device=codes.device)
        x = self.rows[places // self.config.grid] + self.columns[places % self.config.grid]
        for table, part in zip(self.image_tokens, self.image_heads.factors(codes), strict=True):
            x = x + table(part)  # (B, n, D)
        return x

    def angles(self, first: int, n: int) -> Tensor | None:
        """Rotary angles of n places of the stream, or None without rotary positions.

        returns: (n, p) radians for half of a head's channels
        """
        c, places = self.config, torch.arange(first, first + n, device=self.rows.device)
        if not c.rotary:
            return None
        pairs = c.width // c.heads // 4
        return rotary_angles(places, ahead=1 + c.text_length, grid=c.grid, pairs=pairs)

    def forward(self, text: Tensor, codes: Tensor) -> DALLELogits:
        """Predict every token of the stream from those before it.

        text: (B, T) int64 caption tokens, pad_id after the caption
        codes: (B, h, w) int64 the picture's codes
        """
        B, T = text.shape
        codes = codes.flatten(1)  # (B, N)
        # The last picture token is predicted, never read.
        picture = self.embed_codes(codes[:, :-1])  # (B, N-1, D)
        x = torch.cat([self.embed_text(text), picture], dim=1)  # (B, T+N, D)
        h = self.norm_out(self.transformer(x, angles=self.angles(0, x.shape[1])))  # (B, T+N, D)
        # One head for each kind of token, where the paper has one over both vocabularies with the
        # impossible half masked: the same probabilities. A vector predicts what comes after it:
        # the start vector the first text token, the last text token the first code.
        text_logits = self.text_head(h[:, :T])  # (B, T, V)
        image_logits = self.image_heads(h[:, T:], codes)  # (B, N, K), for each factor
        return DALLELogits(text_logits, image_logits)

    def loss(self, text: Tensor, codes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L = 1/8 L_text + 7/8 L_image, means of the cross-entropies (section 2.2).

        text: (B, T) int64
        codes: (B, h, w) int64
        returns: () loss, and its parts
        """
        out = self.forward(text, codes)
        # L_text = -1/T Σ_t log p(text_t | text_<t), padding tokens included
        wanted = self.with_padding(text)  # (B, T)
        text_loss = F.cross_entropy(out.text.flatten(0, 1).float(), wanted.flatten())
        # L_image = -1/N Σ_n log p(code_n | text, code_<n), where a code of two factors has
        # log p(a, b) = log p(a) + log p(b | a)
        # differs from the paper: of two pictures in a stream the first, which is always given, has
        # no loss.
        N = self.config.grid**2
        parts = self.image_heads.factors(codes.flatten(1)[:, -N:])  # (B, N) each
        image_loss = sum(
            F.cross_entropy(logits[:, -N:].flatten(0, 1).float(), part.flatten())
            for logits, part in zip(out.image, parts, strict=True)
        )
        losses = {"text_loss": text_loss.detach(), "image_loss": image_loss.detach()}
        # Pictures are what one is here for; the captions still shape the same weights.
        return text_loss / 8 + image_loss * 7 / 8, losses

    # --- drawing ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate_codes(
        self, text: Tensor, *, generator: Generators, sampling: SamplingConfig = SamplingConfig(),
        use_cache: bool = True, known: Tensor | None = None, keep: Tensor | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Continue captions with picture tokens: code_n ~ p(code_n | text, code_<n), one after one.

        text: (B, T) int64 caption tokens, pad_id after the caption
        known: (B, h, w) int64 codes of pictures to complete
        keep: (h, w) bool, True where the known codes stay as they are
        progress: called with the share of the codes that is drawn, 0 to 1
        returns: (B, h, w) int64
        """
        c, B = self.config, len(text)
        empty = torch.full_like(text, c.pad_id)  # what guidance compares with
        stream = torch.cat([text, empty]) if sampling.guided else text  # (B', T)
        prompt = self.embed_text(empty if sampling.ignores_caption else stream)  # (B', 1+T, D)
        codes = torch.zeros(B, c.image_length, dtype=torch.int64, device=text.device)  # (B, N)
        drawn = list(range(c.image_length))
        if known is not None:
            drawn = (~keep.flatten()).nonzero().flatten().tolist()  # read once, before the loop
            codes = torch.where(keep.flatten(), known.flatten(1), codes)
        cache = self.new_cache(len(prompt)) if use_cache else None
        quick = [self.transformer, self.image_heads] if use_cache else []
        with packed_linears(quick, len(prompt)):
            for number, n in enumerate(drawn):
                # With a cache only what it lacks: the code drawn last and those kept after it.
                held = cache.length if cache else 0
                first = max(held - prompt.shape[1], 0)
                x = self.embed_codes(codes[:, first:n], first=first)  # (B, n - first, D)
                x = x.repeat(len(prompt) // B, 1, 1)  # (B', n - first, D)
                x = x if held else torch.cat([prompt, x], dim=1)
                h = self.transformer(x, cache=cache, angles=self.angles(held, x.shape[1]))
                h = self.norm_out(h[:, -1:])  # (B', 1, D)
                codes[:, n] = self.image_heads.sample(h, sampling, generator)
                if progress is not None:
                    progress((number + 1) / len(drawn))
        return codes.view(B, -1, c.grid)

    def new_cache(self, batch: int) -> KVCache:
        """A cache for a whole stream of each of `batch` captions."""
        length = 1 + self.config.text_length + self.config.image_length
        where = self.rows
        return self.transformer.new_cache(batch, length, device=where.device, dtype=where.dtype)

    def tokenize(self, prompts: list[str], *, truncate: bool = False) -> Tensor:
        """Captions to tokens, padded.

        returns: (B, T) int64
        """
        if self.tokenizer is None:
            raise UserError("this DALL·E has no tokenizer: load it with minimodal.load")
        texts, length = [*map(self.words.readable, prompts)], self.config.text_length
        return self.tokenizer(texts, length, truncate=truncate, start_and_end=False)

    def generate(
        self, prompts: str | list[str], n: int = 1, *, generator: torch.Generator,
        temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, guidance: float = 1.0,
        allow_unseen: bool = False,
    ) -> Tensor:  # fmt: skip
        """Draw n pictures for each prompt; `draw` takes all else that one can ask for.

        generator: a torch.Generator on the model's device
        allow_unseen: draw also for words that training never had
        returns: (N, 3, H, W) uint8, N = n times the prompts
        """
        sampling = SamplingConfig(temperature, top_k, top_p, guidance)
        return self.draw(prompts, Request(n, generator), sampling, allow_unseen=allow_unseen)

    def draw(
        self, prompts: str | list[str], request: Request,
        sampling: SamplingConfig = SamplingConfig(), *, given: Given = NOTHING,
        truncate: bool = False, allow_unseen: bool = False,
    ) -> Tensor:  # fmt: skip
        """Draw `request.n` pictures for each prompt; a prompt's pictures follow one another.

        given: a picture to complete, or the first picture of pairs
        returns: (N, 3, H, W) uint8, N = n times the prompts
        """
        if self.painter is None:
            raise UserError("this DALL·E has no VQGAN to decode with: load it with minimodal.load")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        request.check(len(prompts))
        given.check(self.config.pictures)
        if not allow_unseen:
            self.words.check(prompts)
        device, grid, P = self.rows.device, self.config.grid, len(prompts)
        text = self.tokenize(prompts, truncate=truncate).repeat_interleave(request.n, 0)  # (N, T)
        kept = what_stays(given, self.painter, grid=grid, prompts=P, n=request.n, device=device)
        pictures = []
        for chunk in request.chunks(len(text), device):
            codes = self.generate_codes(
                text[chunk.rows].to(device), generator=chunk.generator, sampling=sampling,
                known=kept.codes[chunk.rows], keep=kept.keep, progress=chunk.tell,
            )  # fmt: skip
            pictures.append(kept.paste(self.painter.decode(codes[:, -grid:])))  # of two the second
        return torch.cat(pictures)
