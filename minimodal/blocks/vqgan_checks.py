"""What VQGAN and its parts refuse: shapes that cannot be."""

import math
from typing import Any

from minimodal.errors import UserError, check_choice, check_range

QUANTIZERS = ("ema", "gradient", "gumbel")
DEEPEST = 10  # halvings of pictures of a thousand pixels


def check_config(c: Any) -> None:
    """Refuse a VQGANConfig that no model can have."""
    sizes = (c.image_size, c.patch, c.channels, c.depth, c.code_width)
    if min(*sizes, *c.multipliers, *c.codes) < 1 or not (c.multipliers and c.codes):
        raise UserError("a VQGAN's sizes, multipliers and codes are numbers of 1 or more")
    check_range(c, 0, math.inf, "decoder_depth", "latent_width")
    if c.image_size % c.factor:
        raise UserError(f"image size {c.image_size} is not a multiple of {c.factor}")
    if missing := [size for size in c.attention if size not in c.resolutions]:
        raise UserError(f"attention at {missing[0]}: expected one of {c.resolutions}")
    if {c.encoder_kernel, c.decoder_kernel} - {1, 3}:
        raise UserError("encoder_kernel and decoder_kernel: expected 1 or 3")
    if c.encoder_kernel == 1 and (len(c.multipliers) > 1 or c.attention):
        raise UserError(
            "encoder_kernel 1 promises that a code sees its own patch only: it needs a single "
            "multiplier and no attention (shrink the picture by `patch` instead)"
        )
    check_quantizer(c.quantizer, c.codes, beta=c.beta, decay=c.codebook_decay)
    if c.two_factors and c.latent_width:
        raise UserError("two codebooks have an encoder each: latent_width is for one codebook")
    if c.two_factors and len(c.multipliers) > 1:
        raise UserError("two codebooks are for one multiplier: shrink the picture by `patch`")


def check_quantizer(kind: str, sizes: tuple[int, ...], *, beta: float, decay: float) -> None:
    """Refuse a kind of quantizer that there is not, or that cannot have such settings."""
    if not 0 <= beta < math.inf:
        raise UserError(f"beta {beta}: expected a number of 0 or more")
    if not 0 <= decay < 1:
        raise UserError(f"codebook_decay {decay}: expected from 0 to below 1")
    check_choice("quantizer", kind, QUANTIZERS)
    if kind != "ema" and len(sizes) != 1:
        raise UserError(f"codes {sizes}: quantizer {kind} has one codebook")
    if kind == "ema" and len(sizes) > 2:
        raise UserError(f"codes {sizes}: expected one codebook or two")


def check_size(*, channels: int, depth: int) -> None:
    """Refuse a discriminator that cannot be, or that would fill the memory, before it is built."""
    if not 1 <= depth <= DEEPEST:
        raise UserError(f"discriminator_depth {depth}: expected 1 to {DEEPEST} halvings")
    if channels < 1:
        raise UserError(f"discriminator_channels {channels}: expected 1 or more")
