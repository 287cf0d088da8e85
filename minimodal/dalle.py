"""DALL·E: one stream of caption and picture tokens (Ramesh et al. 2021, sections 2 and 2.2).

A caption's T tokens are followed by the N codes that VQGAN gives the picture, and one causal
Transformer learns to predict every next token of that stream. To draw, give it the caption and
let it continue; VQGAN's decoder turns the codes into pixels.

text (B, T) and codes (B, h, w) in; logits of each next token out. Read `blocks/transformer.py`
and `blocks/sampling.py` before.

Where VQGAN has two codebooks a position's code is predicted as two factors in turn, the second
given the first, as in the RQ-Transformer (Lee et al. 2022); the stream stays as long.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.pixels import to_uint8
from minimodal.blocks.sampling import SamplingConfig, draw, guide
from minimodal.blocks.transformer import KVCache, Transformer
from minimodal.errors import UserError


@dataclass(frozen=True)
class DALLEConfig:
    """The shape of a DALL·E."""

    vocab_size: int = 512  # text tokens
    text_length: int = 14  # T
    grid: int = 8  # h = w; N = h w
    codes: tuple[int, ...] = (1024,)  # image vocabulary: VQGAN's codebook sizes
    width: int = 128
    depth: int = 4
    heads: int = 4
    pad_id: int = 0

    @property
    def image_length(self) -> int:
        """N: picture tokens of a stream."""
        return self.grid**2

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


class FactorHead(nn.Module):
    """The distribution of a code's next factor, given the stream and the factors before it."""

    def __init__(self, width: int, size: int, previous: int | None) -> None:
        super().__init__()
        self.previous = None
        if previous is not None:
            self.previous = nn.Embedding(previous, width)
            self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
            self.mix_out = nn.Linear(2 * width, width)
            nn.init.normal_(self.previous.weight, std=width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, size)
        nn.init.normal_(self.logits.weight, std=0.02)

    def forward(self, h: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix in the factor just decided, then predict the next.

        h: (B, N, D) the stream's vectors
        previous: (B, N) int64 the factor before, or None for the first
        returns: (B, N, D) mixed vectors for the head after this, (B, N, K) logits
        """
        if self.previous is not None:
            h = h + self.previous(previous)
            h = h + self.mix_out(self.mix(self.norm(h)))
        return h, self.logits(self.norm(h))


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
        self.rows = nn.Parameter(torch.zeros(config.grid, D))
        self.columns = nn.Parameter(torch.zeros(config.grid, D))
        self.transformer = Transformer(D, config.depth, config.heads, causal=True)
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
        self.decode_indices: Callable[[Tensor], Tensor] | None = None

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

    def forward(self, text: Tensor, codes: Tensor) -> DALLELogits:
        """Predict every token of the stream from those before it.

        text: (B, T) int64 caption tokens, pad_id after the caption
        codes: (B, h, w) int64 the picture's codes
        """
        B, T = text.shape
        parts = self.factors(codes.flatten(1))
        # The last picture token is predicted, never read.
        x = torch.cat([self.embed_text(text), self.embed_codes([p[:, :-1] for p in parts])], dim=1)
        h = self.norm_out(self.transformer(x))  # (B, T+N, D)
        logits, mixed, previous = [], h[:, T:], None  # the last text position predicts code 0
        for head, part in zip(self.image_heads, parts, strict=True):
            mixed, predicted = head(mixed, previous)
            logits.append(predicted)
            previous = part
        return DALLELogits(self.text_head(h[:, :T]), tuple(logits))

    def full_logits(self, text: Tensor, codes: Tensor) -> Tensor:
        """The same predictions over one joint vocabulary [text; codes], the impossible masked.

        A caption position can only be followed by a text token and a picture position by a code.
        `forward` computes only the possible part; this is what it stands for (one factor only).

        text: (B, T) int64
        codes: (B, h, w) int64
        returns: (B, T+N, V+K)
        """
        out = self.forward(text, codes)
        image = torch.stack([part.float() for part in out.image[:1]]).squeeze(0)
        B, T, V = out.text.shape
        N, K = image.shape[1:]
        full = image.new_full((B, T + N, V + K), float("-inf"))
        full[:, :T, :V] = out.text
        full[:, T:, V:] = image
        return full

    def loss(self, text: Tensor, codes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L = 1/8 L_text + 7/8 L_image, means of the cross-entropies (section 2.2).

        text: (B, T) int64
        codes: (B, h, w) int64
        returns: () loss, and its parts
        """
        out = self.forward(text, codes)
        wanted = self.with_padding(text)
        text_loss = F.cross_entropy(out.text.flatten(0, 1).float(), wanted.flatten())
        image_loss = torch.stack(
            [
                F.cross_entropy(logits.flatten(0, 1).float(), part.flatten())
                for logits, part in zip(out.image, self.factors(codes.flatten(1)), strict=True)
            ]
        ).sum()  # the chain rule: log p(a, b) = log p(a) + log p(b | a)
        parts = {"text_loss": text_loss.detach(), "image_loss": image_loss.detach()}
        return text_loss / 8 + image_loss * 7 / 8, parts

    # --- drawing ---------------------------------------------------------------------------------

    def next_code(self, h: Tensor, config: SamplingConfig, generator: torch.Generator) -> Tensor:
        """Draw one code, factor by factor. With guidance the second half of h has no caption.

        h: (B', 1, D) the stream's last vectors; B' = 2 B with guidance
        returns: (B,) int64
        """
        guided = config.guidance not in (0.0, 1.0)
        joint, previous = None, None
        for size, head in zip(self.config.codes, self.image_heads, strict=True):
            h, logits = head(h, previous)
            logits = logits[:, 0].float()  # (B', K)
            if guided:
                logits = guide(*logits.chunk(2), config.guidance)  # (B, K)
            part = draw(logits, config, generator)  # (B,)
            joint = part if joint is None else joint * size + part
            previous = (torch.cat([part, part]) if guided else part)[:, None]  # (B', 1)
        return joint

    @torch.no_grad()
    def generate_codes(
        self,
        text: Tensor,
        *,
        generator: torch.Generator,
        sampling: SamplingConfig = SamplingConfig(),
        use_cache: bool = True,
    ) -> Tensor:
        """Continue captions with picture tokens.

        text: (B, T) int64 caption tokens, pad_id after the caption
        returns: (B, h, w) int64
        """
        c = self.config
        B = len(text)
        empty = torch.full_like(text, c.pad_id)
        if sampling.guidance == 0:
            stream = empty
        else:
            stream = text if sampling.guidance == 1 else torch.cat([text, empty])  # (B', T)
        prompt = self.embed_text(stream)  # (B', 1+T, D)
        cache = self.new_cache(len(stream)) if use_cache else None
        codes = torch.zeros(B, c.image_length, dtype=torch.int64, device=text.device)
        repeats = len(stream) // B
        x = prompt
        for n in range(c.image_length):
            h = self.norm_out(self.transformer(x, cache=cache)[:, -1:])  # (B', 1, D)
            codes[:, n] = self.next_code(h, sampling, generator)
            start = n if use_cache else 0
            parts = [p.repeat(repeats, 1) for p in self.factors(codes[:, start : n + 1])]
            x = self.embed_codes(parts, first=start)
            if not use_cache:
                x = torch.cat([prompt, x], dim=1)
        return codes.view(B, c.grid, c.grid)

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
        return self.tokenizer(
            prompts, self.config.text_length, truncate=truncate, start_and_end=False
        )

    def generate(
        self,
        prompts: str | list[str],
        n: int = 1,
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        batch_size: int = 64,
        truncate: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw n pictures for each prompt; a prompt's pictures follow one another.

        generator: a torch.Generator on the model's device
        progress: called with the number of pictures done after each batch
        returns: (N, 3, H, W) uint8, N = n times the prompts
        """
        if self.decode_indices is None:
            raise UserError("this DALL·E has no VQGAN to paint with: load it with minimodal.load")
        if n < 1:
            raise UserError(f"{n} pictures a prompt: expected 1 or more")
        sampling = SamplingConfig(temperature, top_k, top_p, guidance)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise UserError("no prompts: expected at least one")
        text = self.tokenize(prompts, truncate=truncate).to(self.rows.device)
        text = text.repeat_interleave(n, dim=0)  # (N, T)
        pictures = []
        for chunk in text.split(batch_size):
            codes = self.generate_codes(chunk, generator=generator, sampling=sampling)
            pictures.append(to_uint8(self.decode_indices(codes)))
            if progress is not None:
                progress(sum(map(len, pictures)))
        return torch.cat(pictures)
