"""CLIP: pictures and captions in one space (Radford et al. 2021, sections 2.3 to 2.5, figure 3).

A Vision Transformer reads a picture, a causal Transformer reads a caption; both end in a vector
of E numbers, and training pulls the two vectors of a pair together and pushes all other pairs of
the batch apart. What comes out classifies pictures by captions, finds pictures by text, ranks
what DALL·E drew.

pictures (B, 3, H, W), normalised by CLIP's mean and deviation, and tokens (B, T) in; logits
(B, B) out. Read `blocks/transformer.py` before.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from minimodal.blocks.contrastive import both_ways, rows_cross_entropy, unit
from minimodal.blocks.conv import ResidualBlock
from minimodal.blocks.resnet import ResNetEncoder
from minimodal.blocks.transformer import Transformer
from minimodal.data.images import centre_square, resize_then_crop, upright_rgb
from minimodal.data.words import KnownWords
from minimodal.errors import UserError

# Means and deviations of the colour channels of the original's training pictures.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Preprocessing(NamedTuple):
    """How an original CLIP reads a picture."""

    resize: str = "shortest"  # the side that gets the model's size; "squash": both
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


ORIGINAL = Preprocessing()  # OpenAI's


@dataclass(frozen=True)
class CLIPConfig:
    """The shape of a CLIP."""

    image_size: int = 32
    patch_size: int = 4
    stem: tuple[int, ...] = ()  # widths of 3x3 convolutions, stride 2, ahead of the patches
    stem_depth: int = 0  # residual blocks ahead of each of them; for fine detail
    resnet: tuple[int, ...] = ()  # blocks a stage; not empty: a ResNet reads the pictures
    vision_width: int = 128
    vision_depth: int = 4
    vision_heads: int = 4
    vision_mlp_ratio: float = 4.0
    vision_activation: str = "gelu"  # gelu or quick_gelu
    vision_norm_eps: float = 1e-5
    vocab_size: int = 512
    text_length: int = 16
    text_width: int = 128
    text_depth: int = 4
    text_heads: int = 4
    text_mlp_ratio: float = 4.0
    text_activation: str = "gelu"  # gelu or quick_gelu
    text_norm_eps: float = 1e-5
    embed_width: int = 128
    end_id: int = 2  # the token whose position is the caption's summary
    pooling: str = "end"  # at the first end_id, or "largest": at the largest id
    logit_bias: bool = False  # a learned number is added to the logits (SigLIP)
    preprocessing: str | Preprocessing = "square"  # crop, then resize; "openai": Preprocessing()

    def __post_init__(self) -> None:
        if self.pooling not in ("end", "largest"):
            raise UserError(f"pooling {self.pooling}: expected end or largest")
        how = self.preprocessing
        if how not in ("square", "openai") and not isinstance(how, Preprocessing):
            raise UserError(f"preprocessing {self.preprocessing}: expected square or openai")
        if self.resnet and (len(self.resnet) != 4 or self.image_size % 32):
            raise UserError("a ResNet has four stages and reads pictures of 32, 64, … pixels")
        sizes = (self.image_size, self.patch_size, self.embed_width, *self.stem)
        if min(sizes) < 1:
            raise UserError("a CLIP's image size, patch size, widths and stem are 1 or more")
        if self.image_size % self.patch_size:
            raise UserError(
                f"image size {self.image_size} is not a multiple of patch size {self.patch_size}"
            )
        if self.patch_size % 2 ** len(self.stem):
            raise UserError(
                f"patch size {self.patch_size} is too small for {len(self.stem)} convolutions in "
                "the stem, each of which halves the picture"
            )


@lru_cache(maxsize=8)
def statistics(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Both as (3, 1, 1) tensors; copied to a device once, since a copy waits for it."""
    means, deviations = torch.tensor(mean, device=device), torch.tensor(std, device=device)
    return means.view(3, 1, 1), deviations.view(3, 1, 1)


def normalize(images: Tensor, how: Preprocessing = ORIGINAL) -> Tensor:
    """uint8 pictures to CLIP's input.

    images: (B, 3, H, W) uint8
    returns: (B, 3, H, W) float32
    """
    mean, std = statistics(images.device, how.mean, how.std)
    return (images.float() / 255 - mean) / std


def clip_preprocess(picture: Image.Image, size: int, how: Preprocessing = ORIGINAL) -> Tensor:
    """What OpenAI's CLIP does to a picture: shorter side to `size`, centre, normalise.

    how: what another original does
    returns: (3, size, size) float32
    """
    pixels = resize_then_crop(picture, size, resize=how.resize, interpolation=how.interpolation)
    return normalize(torch.from_numpy(pixels)[None], how)[0]


def stem_blocks(channels: int, width: int, depth: int) -> list[nn.Module]:
    """Residual blocks at one size of the stem, in front of the convolution that halves it."""
    first = [nn.Conv2d(channels, width, 3, padding=1)] if depth and channels == 3 else []
    widths = [width if first else channels] + [width] * depth
    return first + [ResidualBlock(widths[n], width) for n in range(depth)]


class ImageEncoder(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021): patches as tokens, a class token on top."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        tokens = (config.image_size // patch) ** 2 + 1
        # differs from the paper: small patches cost tokens and large ones, read by one matrix, blur
        # what has a shape; a few convolutions in front read it cheaply (Xiao et al. 2021).
        self.stem = nn.ModuleList()
        channels = 3
        for wider in config.stem:
            halve = nn.Conv2d(wider if config.stem_depth else channels, wider, 3, 2, 1)
            # torch's own start shrinks what each of them passes on to a third.
            nn.init.kaiming_normal_(halve.weight, nonlinearity="relu")
            blocks = stem_blocks(channels, wider, config.stem_depth)
            self.stem.append(nn.Sequential(*blocks, halve) if blocks else halve)
            channels, patch = wider, patch // 2
        self.patches = nn.Conv2d(channels, width, patch, stride=patch, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        # As large as the patches themselves: places that start faint stay unlearned for long.
        self.positions = nn.Parameter(torch.randn(tokens, width) * 0.5)
        # differs from the paper's figure, as the paper says in 3.2: one more norm in front.
        self.norm_in = nn.LayerNorm(width, eps=config.vision_norm_eps)
        self.transformer = Transformer(
            width,
            config.vision_depth,
            config.vision_heads,
            causal=False,
            mlp_ratio=config.vision_mlp_ratio,
            activation=config.vision_activation,
            norm_eps=config.vision_norm_eps,
        )
        self.norm_out = nn.LayerNorm(width, eps=config.vision_norm_eps)
        self.projection = nn.Linear(width, config.embed_width, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures to embeddings, not normalised.

        images: (B, 3, H, W) normalised pictures
        returns: (B, E)
        """
        x = self.transformer(self.tokens(self.stem_maps(images)[-1]))  # (B, 1+h*w, D)
        return self.projection(self.norm_out(x[:, 0]))  # (B, E)

    def stem_maps(self, images: Tensor, *, layers: int | None = None) -> list[Tensor]:
        """The pictures and what each convolution of the stem, or each of the first, makes of them.

        images: (B, 3, H, W) normalised pictures
        returns: (B, …) maps of C channels and h x w pixels, the largest first
        """
        maps = [images]
        for conv in self.stem[:layers]:
            maps.append(F.gelu(conv(maps[-1])))  # (B, C, H/2, W/2), and so on
        return maps

    def tokens(self, x: Tensor) -> Tensor:
        """What the Transformer reads: the class token and a token a patch.

        x: (B, C, H, W) the stem's last map
        returns: (B, 1+h*w, D)
        """
        B = x.shape[0]
        x = rearrange(self.patches(x), "B D h w -> B (h w) D")  # (B, h*w, D)
        x = torch.cat([self.class_token.expand(B, 1, -1).to(x.dtype), x], dim=1)  # (B, 1+h*w, D)
        return self.norm_in(x + self.positions)

    def features(self, images: Tensor, *, layers: int = 0) -> list[Tensor]:
        """Maps of every depth, the embedding last, to compare pictures by (blocks/perceptual.py).

        images: (B, 3, H, W) normalised pictures
        layers: only the first so many; 0 for all
        returns: (B, …) maps of the stem's layers, of the blocks, and of the embedding (one pixel)
        """
        if 0 < layers <= len(self.stem):
            return self.stem_maps(images, layers=layers)[1:]
        maps = self.stem_maps(images)
        x = self.tokens(maps[-1])  # (B, 1+h*w, D)
        side = math.isqrt(x.shape[1] - 1)
        for block in self.transformer.blocks:
            x = block(x)
            maps.append(rearrange(x[:, 1:], "B (h w) D -> B D h w", h=side))
        maps.append(self.projection(self.norm_out(x[:, 0]))[:, :, None, None])
        return maps[1 : layers + 1] if layers else maps[1:]


class TextEncoder(nn.Module):
    """A causal Transformer whose output at the end token stands for the caption."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width = config.text_width
        self.end_id, self.pooling = config.end_id, config.pooling
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(torch.randn(config.text_length, width) * 0.01)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.transformer = Transformer(
            width,
            config.text_depth,
            config.text_heads,
            causal=True,
            mlp_ratio=config.text_mlp_ratio,
            activation=config.text_activation,
            norm_eps=config.text_norm_eps,
        )
        self.norm_out = nn.LayerNorm(width, eps=config.text_norm_eps)
        self.projection = nn.Linear(width, config.embed_width, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Captions to embeddings, not normalised.

        tokens: (B, T) int64: start, caption, end, padding
        returns: (B, E)
        """
        B, T = tokens.shape
        x = self.tokens(tokens) + self.positions[:T]  # (B, T, D)
        x = self.norm_out(self.transformer(x))
        # Causal attention: the first end token has read the whole caption and no padding. In the
        # original's code that is the largest id, which it is in its own vocabulary.
        ends = tokens if self.pooling == "largest" else (tokens == self.end_id).int()
        end = ends.argmax(dim=1)  # (B,)
        return self.projection(x[torch.arange(B, device=x.device), end])  # (B, E)


class CLIPLogits(NamedTuple):
    """Scaled cosine similarities.

    per_image: (B, N) each picture against each caption
    per_text: (N, B) the same, transposed
    """

    per_image: Tensor
    per_text: Tensor


class CLIP(nn.Module):
    """Two towers and a temperature."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config, how = config, config.preprocessing
        self.reading = how if isinstance(how, Preprocessing) else ORIGINAL
        if config.resnet:  # the paper's other image tower (section 2.4)
            self.image_encoder = ResNetEncoder(
                config.resnet, config.vision_width, heads=config.vision_heads,
                image_size=config.image_size, out=config.embed_width,
            )  # fmt: skip
        else:
            self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        # ln of the inverse temperature, 1/0.07 at the start (section 2.5); SigLIP begins at 10,
        # with a bias of -10 that makes all pairs unlikely, as nearly all are.
        start = 10 if config.logit_bias else 1 / 0.07
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(start)))
        self.logit_bias = nn.Parameter(torch.full((1,), -10.0)) if config.logit_bias else None
        self.tokenizer = None  # set by whoever builds or loads the model
        self.words = KnownWords()  # of training

    def encode_image(self, images: Tensor) -> Tensor:
        """Pictures to embeddings, not normalised.

        images: (B, 3, H, W) normalised, by MEAN and STD in most models
        returns: (B, E)
        """
        return self.image_encoder(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Captions to embeddings, not normalised.

        tokens: (B, T) int64
        returns: (B, E)
        """
        return self.text_encoder(tokens)

    def forward(self, images: Tensor, tokens: Tensor) -> CLIPLogits:
        """How well each picture goes with each caption.

        images: (B, 3, H, W) normalised pictures
        tokens: (N, T) int64
        """
        image = F.normalize(self.encode_image(images), dim=-1)  # (B, E)
        text = F.normalize(self.encode_text(tokens), dim=-1)  # (N, E)
        per_image = self.logit_scale.exp() * image @ text.T  # (B, N)
        if self.logit_bias is not None:
            per_image = per_image + self.logit_bias
        return CLIPLogits(per_image, per_image.T)

    def tokenize(self, texts: str | list[str], *, truncate: bool = False) -> Tensor:
        """Captions to tokens: start, caption, end, padding.

        returns: (B, T) int64
        """
        if self.tokenizer is None:
            raise UserError(
                "this CLIP has no tokenizer: load a run with minimodal.load; for an original "
                "checkpoint give CLIP's merges file, bpe_simple_vocab_16e6.txt.gz"
            )
        if self.words.words:  # as the captions of training had them
            texts = [*map(self.words.readable, [texts] if isinstance(texts, str) else texts)]
        return self.tokenizer(texts, self.config.text_length, truncate=truncate)

    def preprocess(self, picture: Image.Image) -> Tensor:
        """A Pillow picture as CLIP wants it: an original's as OpenAI reads it, with its pixels as
        they lie; for a run upright and on white, as training reads its pictures.

        returns: (3, H, W) float32, normalised
        """
        size = self.config.image_size
        if self.config.preprocessing != "square":
            return clip_preprocess(picture, size, self.reading)
        return normalize(torch.from_numpy(centre_square(upright_rgb(picture), size))[None])[0]

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the logits' scale at 100 or less (section 2.5); call after each step."""
        self.logit_scale.clamp_(max=math.log(100))


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    captions: Tensor,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    all_captions: Tensor | None = None,
    rows: int = 0,
) -> Tensor:
    """Symmetric cross-entropy over the pairs of a batch (figure 3 of the paper).

        L = ½ Σ_i [ CE(s uᵢ·V, pᵢ) + CE(s vᵢ·U, pᵢ) ] / B

    u and v are the normalised embeddings, s the scale. pᵢ is 1 on the pair's own column in the
    paper. differs from the paper: where a caption occurs more than once in the batch, pᵢ is
    spread evenly over its occurrences, since none of those pictures is wrong for it.

    With several processes the rows are this process's pairs and the columns (`all_…`) those of
    all; the mean over the processes is then the loss of the global batch. With `rows` no more than
    so many rows of logits exist at a time (`blocks/contrastive.py`): the memory grows with B and
    not with B².

    image: (b, E) picture embeddings
    text: (b, E) caption embeddings
    scale: (1,) inverse temperature, exp(logit_scale)
    captions: (b,) int64, equal where captions are equal
    all_image: (B, E) of all processes; None, or image itself, if there is one
    all_text: (B, E) of all processes, or None
    all_captions: (B,) of all processes, or None
    returns: ()
    """
    alone = all_image is None or all_image is image  # one process
    image, text = unit(image), unit(text)
    columns_i, columns_t = (image, text) if alone else (unit(all_image), unit(all_text))  # (B, E)
    columns_c = captions if alone else all_captions
    if rows:
        numbers = {"own": captions, "others": columns_c, "rows": rows}
        if alone:
            return rows_cross_entropy(image, text, scale, **numbers, both=True)
        by_image = rows_cross_entropy(image, columns_t, scale, **numbers)
        return (by_image + rows_cross_entropy(text, columns_i, scale, **numbers)) / 2
    p = (captions[:, None] == columns_c).float()  # (b, B)
    p /= p.sum(dim=1, keepdim=True)
    logits = scale * image @ columns_t.T  # (b, B)
    if alone:  # as in figure 3: the captions' logits are these, column by column
        return both_ways(logits, p)
    loss_text = F.cross_entropy(scale * text @ columns_i.T, p)
    return (F.cross_entropy(logits, p) + loss_text) / 2


def class_embeddings(clip: CLIP, names: list[str], templates: list[str]) -> Tensor:
    """One unit vector a class: captions from all templates, averaged (section 3.1.4).

    returns: (N, E)
    """
    device = clip.logit_scale.device
    means = []
    for name in names:
        tokens = clip.tokenize([t.format(name) for t in templates], truncate=True).to(device)
        means.append(F.normalize(clip.encode_text(tokens), dim=-1).mean(dim=0))  # (E,)
    return F.normalize(torch.stack(means), dim=-1)  # (N, E)


@torch.no_grad()
def embed_pictures(clip: CLIP, images: Tensor) -> Tensor:
    """Unit vectors of pictures.

    images: (N, 3, H, W) uint8
    returns: (N, E)
    """
    device = clip.logit_scale.device
    size = clip.config.image_size
    if images.shape[2:] != (size, size):  # an original CLIP reads larger ones than we draw
        pictures = (Image.fromarray(one.permute(1, 2, 0).cpu().numpy()) for one in images)
        parts = torch.stack([clip.preprocess(picture) for picture in pictures]).split(256)
        found = [clip.encode_image(part.to(device)) for part in parts]
    else:
        how = clip.reading
        found = [clip.encode_image(normalize(part.to(device), how)) for part in images.split(256)]
    return F.normalize(torch.cat(found), dim=-1)


@torch.no_grad()
def embed_captions(clip: CLIP, texts: list[str]) -> Tensor:
    """Unit vectors of captions.

    returns: (N, E)
    """
    tokens = clip.tokenize(texts, truncate=True).to(clip.logit_scale.device)
    found = [clip.encode_text(part) for part in tokens.split(256)]
    return F.normalize(torch.cat(found), dim=-1)
