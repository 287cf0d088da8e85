"""unCLIP's decoder: diffusion from a CLIP image embedding to pixels (Ramesh et al. 2022, 2.1).

A U-Net learns to take noise away from a picture, told the time, the picture's CLIP embedding and
its caption. Each is left out in a share of the training, so that at the end one can ask without it
and be guided away from that. The embedding is projected twice: added to the time, and as four
tokens beside the caption's. Instead of pixels it can draw a VQGAN's code vectors, which are rounded
to the nearest codes at the end.

pictures (B, 3, H, W) in [-1, 1], unit vectors (B, E), tokens (B, T) in; pictures out. Read
`blocks/diffusion.py`, `blocks/unet.py` and `embeddings.py` before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.conv import patches
from minimodal.blocks.diffusion import (
    NOISE,
    Denoise,
    DiffusionConfig,
    Path,
    Sampler,
    Start,
    diffusion_loss,
    guided,
    walk,
)
from minimodal.blocks.painter import Painter
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.sampling import Generators, normal
from minimodal.blocks.unet import UNet, time_features
from minimodal.errors import UserError
from minimodal.unclip.embeddings import EmbeddingSpace


@dataclass(frozen=True)
class DecoderConfig(DiffusionConfig):
    """The shape of a decoder, and how it diffuses."""

    image_size: int = 32
    patch: int = 2  # pixels of a patch x patch square become channels before the first layer
    channels: int = 48
    multipliers: tuple[int, ...] = (1, 2)  # width at each resolution, in units of channels
    depth: int = 2  # residual blocks at each resolution
    attention: tuple[int, ...] = (8,)  # resolutions (in feature pixels) with attention
    width: int = 256  # of the condition: time and embedding
    captions: bool = True  # whether captions are read
    image_tokens: int = 4  # that the embedding becomes
    scale: str = "standard"  # of the embedding: standard, or paper (all times 17.2)
    embed_width: int = 128  # E of the CLIP
    word_width: int = 128  # of what CLIP's text encoder says of each token
    latent: int = 0  # > 0: channels of a VQGAN's codes, which are diffused instead of pixels
    grid: int = 0  # codes a side

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.image_size, self.patch, self.channels, self.depth, self.width)
        if min(*sizes, self.image_tokens, len(self.multipliers), *self.multipliers) < 1:
            raise UserError("a decoder's sizes are numbers of 1 or more")
        if not self.grid and self.image_size % self.patch:
            raise UserError(f"image size {self.image_size} is not a multiple of patch {self.patch}")
        if self.side % 2 ** (len(self.multipliers) - 1):
            raise UserError(
                f"{self.side} feature pixels cannot be halved {len(self.multipliers) - 1} times: "
                "give other multipliers, patch or image_size"
            )
        if missing := [size for size in self.attention if size not in self.resolutions]:
            raise UserError(f"attention at {missing[0]}: expected one of {self.resolutions}")

    @property
    def side(self) -> int:
        """Feature pixels a side at the first resolution."""
        return self.grid or self.image_size // self.patch

    @property
    def resolutions(self) -> list[int]:
        """Feature pixels a side, from the first to the last."""
        return [self.side // 2**n for n in range(len(self.multipliers))]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is diffused: a picture, or a grid of code vectors."""
        return (self.latent or 3, *(2 * (self.grid or self.image_size,)))


class Conditions(NamedTuple):
    """What a decoder is told of B pictures.

    embedding: (B, E) unit vectors of CLIP
    level: (B,) noise that is in the standardised embedding, 0: none
    words: (B, T, D') what CLIP's text encoder says of each token of the caption
    summary: (B, F) and of the whole of it: its text embedding, a unit vector
    embedded: (B,) bool, False where the embedding is left out
    captioned: (B,) bool, False where the caption is
    """

    embedding: Tensor
    level: Tensor
    words: Tensor
    summary: Tensor
    embedded: Tensor
    captioned: Tensor

    def without(self) -> "Conditions":
        """The same with nothing told: what guidance leads away from."""
        none = torch.zeros_like(self.embedded)
        return self._replace(embedded=none, captioned=none)


class Caption(NamedTuple):
    """What CLIP's text encoder says of B captions.

    words: (B, T, D') of each token
    summary: (B, F) unit vectors, its embeddings
    """

    words: Tensor
    summary: Tensor


@torch.no_grad()
def read_captions(clip: nn.Module, tokens: Tensor) -> Caption:
    """Captions by a trained CLIP.

    tokens: (B, T) int64
    """
    # differs from the paper: its decoder has a text Transformer of its own (GLIDE's); CLIP's has
    # read captions already, and a small one learns to from too few pictures.
    words = clip.text_encoder.read(tokens)  # (B, T, D')
    summary = clip.text_encoder.summary(words, tokens)  # (B, F)
    return Caption(words.float(), F.normalize(summary.float(), dim=-1))


def tell(embeddings: Tensor, caption: Caption, *, level: float = 0.0) -> Conditions:
    """All that can be told of pictures.

    embeddings: (B, E) unit vectors
    level: of the noise that the embeddings are taken to have
    """
    yes = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    return Conditions(embeddings, torch.full_like(embeddings[:, 0], level), *caption, yes, yes)


class Decoder(nn.Module):
    """A U-Net with its conditions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        c, D = config, config.width
        self.space = EmbeddingSpace(c.embed_width)
        self.of_time = nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.Linear(D, D))
        self.of_level = nn.Linear(D, D)
        self.of_embedding = nn.Linear(c.embed_width, D)
        self.no_embedding = nn.Parameter(torch.zeros(c.embed_width))
        self.to_tokens = nn.Linear(c.embed_width, c.image_tokens * D)
        if c.captions:
            self.summaries = EmbeddingSpace(c.embed_width)
            self.of_summary = nn.Linear(c.embed_width, D)
            self.of_words = nn.Linear(c.word_width, D)
            self.no_words = nn.Parameter(torch.zeros(D))
            self.no_summary = nn.Parameter(torch.zeros(c.embed_width))
        self.patch = 1 if c.latent else c.patch
        channels = c.shape[0] * self.patch**2
        self.unet = UNet(
            channels,
            channels,
            channels=c.channels,
            multipliers=c.multipliers,
            depth=c.depth,
            attention=tuple(size in c.attention for size in c.resolutions),
            width=D,
            token_width=D,
        )
        self.latents = EmbeddingSpace(c.latent) if c.latent else None  # of code vectors

    def condition(self, t: Tensor, told: Conditions) -> tuple[Tensor, Tensor]:
        """The vector and the tokens that the U-Net reads.

        t: (B,)
        returns: (B, D) the vector, (B, n, D) the tokens
        """
        c, D = self.config, self.config.width
        z = torch.where(told.embedded[:, None], told.embedding, self.no_embedding)  # (B, E)
        vector = self.of_time(time_features(t, D)) + self.of_embedding(z)  # (B, D)
        vector = vector + self.of_level(time_features(told.level, D))
        tokens = rearrange(self.to_tokens(z), "B (n D) -> B n D", n=c.image_tokens)
        if c.captions:
            said = told.captioned[:, None]  # (B, 1)
            summary = torch.where(said, self.summaries.standardize(told.summary), self.no_summary)
            vector = vector + self.of_summary(summary)
            words = torch.where(said[:, None], self.of_words(told.words), self.no_words)
            tokens = torch.cat([tokens, words], dim=1)  # (B, n, D)
        return F.silu(vector), tokens

    def forward(self, x_t: Tensor, t: Tensor, told: Conditions) -> Tensor:
        """What is said of noised pictures: x, ε or v, as the configuration has it.

        x_t: (B, C, H, W)
        t: (B,) 0 to 1
        told: Conditions, the embedding standardised
        returns: (B, C, H, W)
        """
        vector, tokens = self.condition(t, told)  # (B, D), (B, n, D)
        x = patches(x_t, patch=self.patch)  # (B, P, h, w)
        x = self.unet(x, vector, tokens)
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x  # (B, C, H, W)

    def loss(self, x: Tensor, told: Conditions, *, noise: Tensor, t: Tensor) -> Tensor:
        """How wrong the network is about x_t (`diffusion_loss`).

        x: (B, C, H, W) pictures in [-1, 1], or standardised code vectors
        told: Conditions, the embedding standardised and noised
        noise: (B, C, H, W)
        t: (B,)
        returns: ()
        """
        x_t = Path(self.config.path).noised(x, noise, t)  # (B, C, H, W)
        return diffusion_loss(self.forward(x_t, t, told), x, noise, t, self.config)

    def denoiser(self, told: Conditions, how: Sampler) -> Denoise:
        """A function from x_t and t to the guided estimate of x, as a walk wants it.

        told: Conditions, the embeddings unit vectors
        """
        path, always = Path(self.config.path), (how.guide_from, how.guide_to) == (1, 0)
        told = told._replace(embedding=self.space.standardize(told.embedding))
        untold = told.without()
        both = Conditions(*(torch.cat(two) for two in zip(told, untold, strict=True)))

        def estimate(x_t: Tensor, t: Tensor, asked: Conditions) -> Tensor:
            found = self.forward(x_t, t, asked).float()
            return path.estimate(x_t, t, found, self.config.predicts).x

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            # Only where guidance has an interval does the host wait for the times.
            scales = {how.guidance} if always else set(how.scale(t).tolist())
            for alone, asked in ((0, untold), (1, told)):
                if scales == {alone}:  # one pass is enough
                    return estimate(x_t, t, asked)
            x = estimate(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
            return guided(*x.chunk(2), t, how)

        return denoise

    @torch.no_grad()
    def draw(
        self, told: Conditions, how: Sampler, *, generator: Generators, start: Start = NOISE,
        on_step: Callable[[Tensor, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw a picture for each of B conditions, or what stands for it: code vectors.

        told: Conditions, the embeddings unit vectors
        start: where the walk begins, if not in fresh noise
        on_step: called after each step with the estimate of x and the number of steps done
        returns: (B, C, H, W) in about [-1, 1], or standardised code vectors
        """
        like = told.embedding.new_empty(len(told.embedding), *self.config.shape)
        x_t = normal(like, generator) if start.x_t is None else start.x_t
        return walk(
            self.denoiser(told, how), x_t, how, Path(self.config.path), time=start.time,
            generator=generator, held=start.held, on_step=on_step,
        )  # fmt: skip

    def encode(self, pictures: Tensor, painter: Painter | None) -> Tensor:
        """Pictures as what is drawn: numbers in [-1, 1], or standardised code vectors.

        pictures: (B, 3, S, S) uint8
        painter: the VQGAN whose code vectors they become
        returns: (B, C, H, W)
        """
        if self.latents is None:
            return to_float(pictures)
        codes = painter.encode(pictures)  # (B, H, W)
        return self.latents.standardize(painter.vqgan.quantizer.vectors(codes))

    def decode(self, x: Tensor, painter: Painter | None) -> Tensor:
        """What was drawn as pictures; code vectors are rounded to the nearest codes first.

        x: (B, C, H, W)
        painter: the VQGAN whose code vectors they are
        returns: (B, 3, S, S) uint8
        """
        if self.latents is None:
            return to_uint8(x)
        return painter.decode(painter.vqgan.quantizer(self.latents.undo(x)).indices)
