"""What the parts of a VQGAN refuse: kernels, two codebooks and discriminators that cannot be."""

from minimodal.errors import UserError

DEEPEST = 10  # halvings of pictures of a thousand pixels


def check_kernels(encoder: int, decoder: int, *, plain: bool) -> None:
    """Refuse kernels of VQGAN's CNNs that do not keep what they promise.

    plain: whether the encoder has one resolution and no attention
    """
    if {encoder, decoder} - {1, 3}:
        raise UserError("encoder_kernel and decoder_kernel: expected 1 or 3")
    if encoder == 1 and not plain:
        raise UserError(
            "encoder_kernel 1 promises that a code sees its own patch only: it needs a single "
            "multiplier and no attention (shrink the picture by `patch` instead)"
        )


def check_factors(*, levels: int, latent_width: int) -> None:
    """Refuse what only a VQGAN with one encoder can have."""
    if latent_width:
        raise UserError("two codebooks have an encoder each: latent_width is for one codebook")
    if levels > 1:
        raise UserError("two codebooks are for one multiplier: shrink the picture by `patch`")


def check_size(*, channels: int, depth: int) -> None:
    """Refuse a discriminator that cannot be, or that would fill the memory, before it is built."""
    if not 1 <= depth <= DEEPEST:
        raise UserError(f"discriminator_depth {depth}: expected 1 to {DEEPEST} halvings")
    if channels < 1:
        raise UserError(f"discriminator_channels {channels}: expected 1 or more")
