"""Tiny models and random tensors that the tests of the systems share."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.painter import Painter
from minimodal.blocks.transformer import Transformer
from minimodal.clip import CLIP, CLIPConfig
from minimodal.dalle import DALLE, DALLEConfig
from minimodal.data.tokenizer import Tokenizer
from minimodal.training.tasks.common import seeded
from minimodal.unclip.decoder import Caption, Decoder, DecoderConfig
from minimodal.unclip.prior import DiffusionPrior, PriorConfig
from minimodal.unclip.prior_autoregressive import AutoregressivePrior
from minimodal.unclip.upsampler import Upsampler, UpsamplerConfig
from minimodal.uses.unclip import UnCLIP
from minimodal.vqgan import VQGAN, VQGANConfig
from minimodal.vqgan_prior import VQGANPrior, VQGANPriorConfig

WORDS = ["a red circle", "a blue square", "a green star", "two small red triangles"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=generator(seed))


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Even numbers between -1 and 1."""
    return torch.rand(shape, generator=generator(seed)) * 2 - 1


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=generator(seed))


def shake(model: nn.Module, deviation: float = 0.2) -> nn.Module:
    """Move every parameter, so that none is 0 or 1 and predictions are far from even."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(noise(*parameter.shape, seed=number), alpha=deviation)
    return model


def make_transformer(*, causal: bool) -> Transformer:
    return seeded(lambda: Transformer(16, 2, 2, causal=causal), 0)


def make_clip(**changes) -> CLIP:
    config = CLIPConfig(
        image_size=8, patch_size=4, vision_width=16, vision_depth=1, vision_heads=2, vocab_size=30,
        text_length=7, text_width=12, text_depth=2, text_heads=2, embed_width=10,
    )  # fmt: skip
    return seeded(lambda: CLIP(replace(config, **changes)), 0).eval()


def make_vqgan(**changes) -> VQGAN:
    """A VQGAN of 16 pixels whose codes are random: those of a new model are all zero."""
    config = VQGANConfig(image_size=16, channels=8, multipliers=(1, 2), codes=(12,), code_width=6)
    model = seeded(lambda: VQGAN(replace(config, **changes)), 0).eval()
    for number, book in enumerate(model.quantizer.codebooks):
        book.codes.copy_(noise(*book.codes.shape, seed=number))
    return model


def make_prior(**changes) -> VQGANPrior:
    """A prior over the codes of 16 pixels, with strong opinions and a VQGAN to decode with."""
    config = VQGANPriorConfig(grid=3, codes=12, classes=2, width=16, depth=2, heads=2)
    prior = shake(seeded(lambda: VQGANPrior(replace(config, **changes)), 0), 0.5).eval()
    prior.class_names = ["cat", "dog"]
    prior.painter = Painter(make_vqgan(image_size=6))
    return prior


def make_dalle(**changes) -> DALLE:
    """A DALL·E with strong opinions, so that a mistake changes what it draws."""
    config = DALLEConfig(
        vocab_size=20, text_length=5, grid=3, codes=(11,), width=16, depth=2, heads=2
    )
    return shake(seeded(lambda: DALLE(replace(config, **changes)), 0)).eval()


def make_painter(**changes) -> DALLE:
    """A DALL·E with a tokenizer and something that paints: `generate` works."""
    tokenizer = Tokenizer.train(WORDS, 300)
    model = shake(make_dalle(vocab_size=tokenizer.vocab_size, text_length=20, **changes), 0.5)
    model.tokenizer = tokenizer
    vqgan = make_vqgan(image_size=6, codes=model.config.codes)
    model.painter = Painter(vqgan)
    return model


def full_logits(model: DALLE, text: Tensor, codes: Tensor) -> Tensor:
    """The predictions over one joint vocabulary, the impossible masked: (B, T+N, V+K).

    A caption position can only be followed by a text token and a picture position by a code.
    """
    out = model(text, codes)
    (B, T, V), (N, K) = out.text.shape, out.image[0].shape[1:]
    full = torch.full((B, T + N, V + K), float("-inf"))
    full[:, :T, :V] = out.text
    full[:, T:, V:] = out.image[0]
    return full


# --- unCLIP --------------------------------------------------------------------------------------


def make_decoder(**changes) -> Decoder:
    """A decoder of 8 pixels with strong opinions, for the embeddings of `make_clip`."""
    config = DecoderConfig(
        image_size=8, patch=2, channels=8, multipliers=(1, 2), depth=1, attention=(2,), width=16,
        image_tokens=2, embed_width=10, word_width=12,
    )  # fmt: skip
    model = shake(seeded(lambda: Decoder(replace(config, **changes)), 0)).eval()
    model.space.learn(units(40, model.config.embed_width), "standard")
    return model


def make_caption(n: int) -> Caption:
    return Caption(noise(n, 7, 12), F.normalize(noise(n, 10, seed=1), dim=-1))


def make_upsampler(**changes) -> Upsampler:
    config = UpsamplerConfig(image_size=16, small_size=8, channels=8, width=12)
    return shake(seeded(lambda: Upsampler(replace(config, **changes)), 0)).eval()


PRIOR = PriorConfig(
    width=16, depth=2, heads=2, levels=3, buckets=8, vocab_size=30, text_length=7, embed_width=10,
    components=6,
)  # fmt: skip


def make_unclip_prior(kind: str, **changes) -> DiffusionPrior | AutoregressivePrior:
    """A prior of either kind with strong opinions, for the embeddings of `make_clip`."""
    make = {"diffusion": DiffusionPrior, "autoregressive": AutoregressivePrior}[kind]
    model = shake(seeded(lambda: make(replace(PRIOR, kind=kind, **changes)), 0)).eval()
    width = model.config.embed_width
    model.learn(units(60, width), units(50, width, seed=1))
    return model


def units(*shape: int, seed: int = 0) -> Tensor:
    """Unit vectors."""
    return F.normalize(noise(*shape, seed=seed), dim=-1)


def make_unclip(*, kind: str = "diffusion", latent: bool = False) -> UnCLIP:
    """All of it, with a tokenizer."""
    clip = make_clip(vocab_size=40, text_length=20)
    clip.tokenizer = Tokenizer.train(WORDS, 300)
    size = clip.tokenizer.vocab_size
    clip = make_clip(vocab_size=size, text_length=20, end_id=clip.tokenizer.end_id)
    clip.tokenizer = Tokenizer.train(WORDS, 300)
    prior = make_unclip_prior(kind, vocab_size=size, text_length=20)
    if not latent:
        return UnCLIP(clip, make_decoder(), prior=prior)
    vqgan = make_vqgan(image_size=8)
    shape = {"latent": vqgan.config.latent, "grid": vqgan.config.grid, "attention": (4,)}
    decoder = make_decoder(multipliers=(1,), **shape)
    return UnCLIP(clip, decoder, prior=prior, painter=Painter(vqgan))
