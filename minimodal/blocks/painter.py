"""From pixels to codes and back, and the one loop in which pictures are drawn, whoever draws them.

A system that draws codes has a `Painter`: a trained VQGAN that encodes and decodes for it. What a
caller wants is a `Request`: how many pictures, from which random numbers, how many at a time, and
whom to tell on the way. `Request.chunks` is the loop over all of them:

    for chunk in request.chunks(len(text), device):
        pictures.append(draw(text[chunk.rows], chunk.generator, progress=chunk.tell))

uint8 pictures (B, 3, H, W) and codes (B, h, w) in and out. Read `pixels.py` and `sampling.py`
before.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.sampling import Generators
from minimodal.errors import UserError


class Painter:
    """A trained VQGAN that another system draws with; no part of that system's weights."""

    def __init__(self, vqgan: nn.Module) -> None:
        self.vqgan = vqgan

    @property
    def factor(self) -> int:
        """Pixels a side of a code."""
        return self.vqgan.config.factor

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
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures to codes.

        pictures: (B, 3, H, W) uint8
        returns: (B, h, w) int64
        """
        return self.vqgan.to(pictures.device).encode(to_float(pictures)).indices

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes to pictures.

        codes: (B, h, w) int64
        returns: (B, 3, H, W) uint8
        """
        return to_uint8(self.vqgan.to(codes.device).decode_indices(codes))


class Request(NamedTuple):
    """How many pictures are drawn, and how: with a generator on the model's device, or with a seed
    for each picture, which is then the same in every batch and beside any others.

    `progress` is called with the share of all that is done, 0 to 1; `partial`, by systems that draw
    a picture in steps, with a chunk's pictures so far (uint8) and the number of pictures before it.
    """

    n: int = 1  # pictures per prompt
    generator: torch.Generator | None = None
    seeds: Sequence[int] | None = None
    batch_size: int = 64
    progress: Callable[[float], None] | None = None
    partial: Callable[[Tensor, int], None] | None = None

    def check(self, prompts: int) -> None:
        """Refuse counts below 1, and anything but one source of random numbers."""
        if self.n < 1 or self.batch_size < 1:
            raise UserError(
                f"{self.n} pictures a prompt, {self.batch_size} at a time: expected 1 or more"
            )
        if not prompts:
            raise UserError("no prompts: expected at least one")
        if (self.generator is None) == (self.seeds is None):
            raise UserError("expected either a generator or seeds")
        if self.seeds is not None and len(self.seeds) != self.n * prompts:
            raise UserError(f"{len(self.seeds)} seeds for {self.n * prompts} pictures")
        if not all(0 <= seed < 2**63 for seed in self.seeds or []):
            raise UserError("a seed is a whole number from 0 to below 2^63")

    def chunks(self, total: int, device: torch.device) -> Iterator["Chunk"]:
        """Cut `total` pictures into batches; each is told to be done when the next is asked for."""
        for first in range(0, total, self.batch_size):
            rows = slice(first, min(first + self.batch_size, total))
            own = [torch.Generator(device).manual_seed(seed) for seed in (self.seeds or [])[rows]]
            chunk = Chunk(self, rows, total, own or self.generator)
            yield chunk
            chunk.tell(1.0)


class Chunk(NamedTuple):
    """The pictures of a request that are drawn together: `rows` of `total`."""

    request: Request
    rows: slice
    total: int
    generator: Generators

    def tell(self, share: float) -> None:
        """Report the share of this chunk that is done."""
        if self.request.progress is not None:
            done = self.rows.start + share * (self.rows.stop - self.rows.start)
            self.request.progress(done / self.total)
