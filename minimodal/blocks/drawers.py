"""Drawers: what is optimised, and the picture that it makes.

VQGAN is one of several things that a gradient can hold on to; the others show what it is worth. All
have the same four methods, and B pictures are optimised side by side:

    vqgan    a vector for each place of the code grid, rounded to its code on the way
    codes    a distribution over the codes of each place, of which one is drawn
    pixels   a coarse grid of flat squares
    fourier  waves; low ones are large, so that they move first (Olah et al. 2017)
    stack    a sum of pictures at resolutions 1, 2, 4, … (Fort & Whitaker 2025)

A trained VQGAN is an argument. Read `quantizer.py` and `guidance.py` before.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.guidance import clamp_through
from minimodal.blocks.nearest import nearest
from minimodal.errors import UserError, check_choice


class Drawer(Protocol):
    """What the optimisation needs of a drawer.

    parameters: what the optimiser moves, (B, …) each
    """

    parameters: list[Tensor]

    def start(self, pictures: Tensor) -> None:
        """Begin at pictures.

        pictures: (B, 3, H, W) in [-1, 1]
        """

    def pictures(self, generator: torch.Generator | None = None) -> Tensor:
        """What the parameters draw, with gradients for them. Drawers that draw by chance do so by
        the generator, and draw what is likeliest without it.

        returns: (B, 3, H, W) in [-1, 1]
        """

    def settle(self) -> None:
        """Bring the parameters back to where they mean something, which most do anywhere; after
        each step."""


def tables(quantizer: nn.Module) -> list[Tensor]:
    """The vectors of each codebook.

    returns: (K, D) for each codebook
    """
    books = getattr(quantizer, "codebooks", None)
    return [quantizer.codes.detach()] if books is None else [book.codes for book in books]


def straight_through(z: Tensor, books: list[Tensor]) -> Tensor:
    """Round vectors to their codes; gradients pass as if nothing had been rounded.

    z: (B, C, h, w) side by side the vectors of all codebooks
    books: codebooks, (K, D) each
    returns: (B, C, h, w)
    """
    rounded = []
    for part, book in zip(z.split([b.shape[1] for b in books], dim=1), books, strict=True):
        flat = rearrange(part.detach(), "B D h w -> (B h w) D")
        found = book[nearest(flat, book)[0]]
        rounded.append(rearrange(found, "(B h w) D -> B D h w", B=len(z), h=z.shape[2]))
    return z + (torch.cat(rounded, dim=1) - z).detach()


class OfCodes(Drawer):
    """What begins at a VQGAN's codes of pictures."""

    def __init__(self, vqgan: nn.Module, pictures: Tensor) -> None:
        self.vqgan = vqgan
        self.books = tables(vqgan.quantizer)
        low = torch.cat([book.amin(0) for book in self.books])
        high = torch.cat([book.amax(0) for book in self.books])
        self.low, self.high = low[:, None, None], high[:, None, None]  # (C, 1, 1)
        self.start(pictures)

    @torch.no_grad()
    def start(self, pictures: Tensor) -> None:
        """pictures: (B, 3, H, W)"""
        self.begin(self.vqgan.encode(pictures).indices)


class VQGANDrawer(OfCodes):
    """Vectors that are rounded to codes and decoded."""

    @torch.no_grad()
    def begin(self, indices: Tensor) -> None:
        """Begin at codes.

        indices: (B, h, w) int64
        """
        z = self.vqgan.quantizer.vectors(indices)
        self.parameters = [z.clone().requires_grad_()]

    def pictures(self, generator: torch.Generator | None = None) -> Tensor:
        """returns: (B, 3, H, W)"""
        z = straight_through(self.parameters[0], self.books)
        return clamp_through(self.vqgan.decode_unclamped(z))

    @torch.no_grad()
    def settle(self) -> None:
        """No vector leaves the box that the codes fill."""
        self.parameters[0].clamp_(self.low, self.high)


CONFIDENCE = 4.0  # of the code that a place begins with, above the others


class CodesDrawer(OfCodes):
    """For each place logits over the codes of each codebook: one is drawn, and the gradient is
    that of the mixture (EleutherAI's codebook sampling)."""

    @torch.no_grad()
    def begin(self, indices: Tensor) -> None:
        """Begin near codes.

        indices: (B, h, w) int64
        """
        self.parameters = [
            (CONFIDENCE * F.one_hot(part, len(book)).float()).requires_grad_()
            for part, book in zip(self.vqgan.quantizer.factors(indices), self.books, strict=True)
        ]

    def pictures(self, generator: torch.Generator | None = None) -> Tensor:
        """returns: (B, 3, H, W)"""
        vectors = []
        for logits, book in zip(self.parameters, self.books, strict=True):
            soft = logits.softmax(dim=-1)  # (B, h, w, K)
            clocks = torch.zeros_like(soft)
            if generator is not None:
                u = torch.rand(soft.shape, generator=generator).clamp(1e-20, 1 - 1e-7).to(soft)
                clocks = -(-u.log()).log()
            hard = F.one_hot((logits.detach() + clocks).argmax(-1), len(book)).to(soft)
            vectors.append((hard + soft - soft.detach()) @ book)
        return clamp_through(
            self.vqgan.decode_unclamped(rearrange(torch.cat(vectors, -1), "B h w C -> B C h w"))
        )


class PixelDrawer(Drawer):
    """A grid of flat squares."""

    def __init__(self, pictures: Tensor, *, side: int = 4) -> None:
        if side < 1 or any(n % side for n in pictures.shape[-2:]):
            size = "{1} x {0}".format(*pictures.shape[-2:])
            raise UserError(f"drawer pixels: squares of {side} do not fill pictures of {size}")
        self.side = side
        self.start(pictures)

    @torch.no_grad()
    def start(self, pictures: Tensor) -> None:
        """pictures: (B, 3, H, W)"""
        self.parameters = [F.avg_pool2d(pictures, self.side).clone().requires_grad_()]

    def pictures(self, generator: torch.Generator | None = None) -> Tensor:
        """returns: (B, 3, H, W)"""
        x = clamp_through(self.parameters[0])
        return x.repeat_interleave(self.side, 2).repeat_interleave(self.side, 3)

    @torch.no_grad()
    def settle(self) -> None:
        """Colours stay colours."""
        self.parameters[0].clamp_(-1, 1)


class FourierDrawer(Drawer):
    """Waves, each divided by its frequency."""

    def __init__(self, pictures: Tensor) -> None:
        self.size = H, W = tuple(pictures.shape[-2:])
        frequency = torch.hypot(torch.fft.fftfreq(H)[:, None], torch.fft.rfftfreq(W)[None])
        gain = 1 / frequency.clamp(min=1 / max(H, W))
        self.gain = (gain * math.sqrt(H * W) / max(H, W)).to(pictures.device)  # (H, W//2+1)
        self.start(pictures)

    @torch.no_grad()
    def start(self, pictures: Tensor) -> None:
        """pictures: (B, 3, H, W)"""
        waves = torch.fft.rfft2(pictures, norm="ortho") / self.gain
        self.parameters = [torch.view_as_real(waves).clone().requires_grad_()]

    def pictures(self, generator: torch.Generator | None = None) -> Tensor:
        """returns: (B, 3, H, W)"""
        waves = torch.view_as_complex(self.parameters[0]) * self.gain
        return clamp_through(torch.fft.irfft2(waves, s=self.size, norm="ortho"))


class StackDrawer(Drawer):
    """A picture as the sum of pictures at many resolutions: a step moves all of them, so large
    shapes and fine detail change together and no single pixel does."""

    def __init__(self, pictures: Tensor) -> None:
        self.size = tuple(pictures.shape[-2:])
        self.sides = [2**k for k in range(int(math.log2(min(self.size))) + 1)]
        self.start(pictures)

    def enlarged(self, x: Tensor) -> Tensor:
        """x: (B, 3, h, w); returns: (B, 3, H, W)"""
        if tuple(x.shape[-2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def start(self, pictures: Tensor) -> None:
        """Each resolution begins with what the coarser ones lack; the last with all that is left.

        pictures: (B, 3, H, W)
        """
        left, parts = pictures, []
        for side in self.sides:
            scale = side / min(self.size)
            shape = self.size if side == self.sides[-1] else [round(n * scale) for n in self.size]
            part = F.adaptive_avg_pool2d(left, shape) if side < self.sides[-1] else left
            left = left - self.enlarged(part)
            parts.append(part.clone().requires_grad_())
        self.parameters = parts

    def pictures(self, generator: torch.Generator | None = None) -> Tensor:
        """returns: (B, 3, H, W)"""
        return clamp_through(sum(self.enlarged(part) for part in self.parameters))


DRAWERS = ("vqgan", "codes", "pixels", "fourier", "stack")


def make_drawer(name: str, pictures: Tensor, *, vqgan: nn.Module | None = None) -> Drawer:
    """The drawer of a name, at its start.

    pictures: (B, 3, H, W) in [-1, 1] what it begins with
    """
    check_choice("drawer", name, DRAWERS)
    if name in ("vqgan", "codes"):
        if vqgan is None:
            raise UserError(f"drawer {name} needs a trained VQGAN")
        return (VQGANDrawer if name == "vqgan" else CodesDrawer)(vqgan, pictures)
    return {"pixels": PixelDrawer, "fourier": FourierDrawer, "stack": StackDrawer}[name](pictures)
