"""CLIP: pictures and captions in one space (Radford et al. 2021, sections 2.3 to 2.5, figure 3).

A Vision Transformer reads a picture, a causal Transformer reads a caption; both end in a vector
of E numbers, and training pulls the two vectors of a pair together and pushes all other pairs of
the batch apart. What comes out classifies pictures by captions, finds pictures by text, ranks
what DALL·E drew.

pictures (B, 3, H, W), normalised by CLIP's mean and deviation, and tokens (B, T) in; logits
(B, B) out. Read `blocks/transformer.py` before; the loss over several processes and of very large
batches is in `blocks/contrastive_rows.py`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from minimodal.blocks.contrastive import both_ways, even_targets, unit
from minimodal.blocks.resnet import ResNetEncoder
from minimodal.blocks.stem import make_stem
from minimodal.blocks.transformer import Transformer
from minimodal.data.images import centre_square, upright_rgb
from minimodal.data.preprocessing import ORIGINAL, Preprocessing, clip_preprocess, normalize
from minimodal.data.words import KnownWords
from minimodal.errors import UserError, check_choice


@dataclass(frozen=True)
class CLIPConfig:
    """The shape of a CLIP."""

    image_size: int = 32
    patch_size: int = 4
    stem: tuple[int, ...] = ()  # widths of 3x3 convolutions, stride 2, ahead of the patches
    stem_depth: int = 0  # residual blocks ahead of each of them; for fine detail
    vision_width: int = 128
    vision_depth: int = 4
    vision_heads: int = 4
    vocab_size: int = 512
    text_length: int = 16
    text_width: int = 128
    text_depth: int = 4
    text_heads: int = 4
    embed_width: int = 128
    end_id: int = 2  # the token whose position is the caption's summary

    # --- what only the originals' weights need ---
    resnet: tuple[int, ...] = ()  # blocks a stage; not empty: a ResNet reads the pictures
    vision_mlp_ratio: float = 4.0
    vision_activation: str = "gelu"  # gelu or quick_gelu
    vision_norm_eps: float = 1e-5
    text_mlp_ratio: float = 4.0
    text_activation: str = "gelu"  # gelu or quick_gelu
    text_norm_eps: float = 1e-5
    pooling: str = "end"  # at the first end_id, or "largest": at the largest id
    logit_bias: bool = False  # a learned number is added to the logits (SigLIP)
    preprocessing: str | Preprocessing = "square"  # crop, then resize; "openai": Preprocessing()

    def __post_init__(self) -> None:
        widths = (self.vision_width, self.text_width, self.embed_width, *self.stem)
        if min(self.image_size, self.patch_size, *widths) < 1:
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
        if self.resnet and (len(self.resnet) != 4 or self.image_size % 32):
            raise UserError("a ResNet has four stages and reads pictures of 32, 64, … pixels")
        check_choice("pooling", self.pooling, ("end", "largest"))
        if not isinstance(self.preprocessing, Preprocessing):
            check_choice("preprocessing", self.preprocessing, ("square", "openai"))


class ImageEncoder(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021): patches as tokens, a class token ahead."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, tokens = config.vision_width, (config.image_size // config.patch_size) ** 2 + 1
        # differs from the paper: a stem of convolutions in front of the patches (`--stem`, Xiao et
        # al. 2021): small patches cost tokens, and large ones, read by one matrix, blur what has a
        # shape.
        self.stem = make_stem(config.stem, depth=config.stem_depth)
        patch = config.patch_size // 2 ** len(config.stem)
        channels = config.stem[-1] if config.stem else 3
        self.patches = nn.Conv2d(channels, width, patch, stride=patch, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        # As large as the patches themselves: places that start faint stay unlearned for long.
        self.positions = nn.Parameter(torch.randn(tokens, width) * 0.5)
        # One norm more than a Vision Transformer has (section 2.4).
        self.norm_in = nn.LayerNorm(width, eps=config.vision_norm_eps)
        self.transformer = Transformer(
            width, config.vision_depth, config.vision_heads, causal=False,
            mlp_ratio=config.vision_mlp_ratio, activation=config.vision_activation,
            norm_eps=config.vision_norm_eps,
        )  # fmt: skip
        self.norm_out = nn.LayerNorm(width, eps=config.vision_norm_eps)
        self.projection = nn.Linear(width, config.embed_width, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures to embeddings, not normalised.

        images: (B, 3, H, W) normalised pictures
        returns: (B, E)
        """
        B, x = len(images), images
        for conv in self.stem:  # none in the originals
            x = F.gelu(conv(x))  # (B, C, H', W') half as large each time
        x = self.patches(x)  # (B, D, h, w)
        x = rearrange(x, "B D h w -> B (h w) D")  # (B, h*w, D)
        # The class token is the same for all pictures; what it gathers is the picture's summary.
        x = torch.cat([self.class_token.expand(B, 1, -1).to(x.dtype), x], dim=1)  # (B, 1+h*w, D)
        x = self.norm_in(x + self.positions)  # attention is blind to order without positions
        x = self.transformer(x)
        return self.projection(self.norm_out(x[:, 0]))  # (B, E)


class TextEncoder(nn.Module):
    """A causal Transformer whose output at the end token stands for the caption."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width = config.text_width
        self.end_id, self.pooling = config.end_id, config.pooling
        self.tokens = nn.Embedding(config.vocab_size, width)
        # Words and places start faint, as in CLIP's code: what the blocks add is larger.
        self.positions = nn.Parameter(torch.randn(config.text_length, width) * 0.01)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.transformer = Transformer(
            width, config.text_depth, config.text_heads, causal=True,
            mlp_ratio=config.text_mlp_ratio, activation=config.text_activation,
            norm_eps=config.text_norm_eps,
        )  # fmt: skip
        self.norm_out = nn.LayerNorm(width, eps=config.text_norm_eps)
        self.projection = nn.Linear(width, config.embed_width, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Captions to embeddings, not normalised.

        tokens: (B, T) int64: start, caption, end, padding
        returns: (B, E)
        """
        return self.summary(self.read(tokens), tokens)  # (B, E)

    def read(self, tokens: Tensor) -> Tensor:
        """What the Transformer says of each token, having read those before it.

        tokens: (B, T) int64
        returns: (B, T, D)
        """
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]  # (B, T, D)
        return self.norm_out(self.transformer(x))

    def summary(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The embedding of a caption: what is said of its end token.

        x: (B, T, D) of `read`
        tokens: (B, T) int64
        returns: (B, E)
        """
        # Causal attention: the first end token has read the whole caption and no padding. OpenAI's
        # code finds it as the largest id, which it is in CLIP's own vocabulary.
        ends = tokens if self.pooling == "largest" else (tokens == self.end_id).int()
        end = ends.argmax(dim=1)  # (B,) of several equal numbers the first
        return self.projection(x[torch.arange(len(x), device=x.device), end])  # (B, E)


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
        # ln of the inverse temperature, 1/0.07 at the start (section 2.5). SigLIP begins at 10 and
        # with a bias by which all pairs are unlikely, as nearly all are.
        start = 10 if config.logit_bias else 1 / 0.07
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(start)))
        self.logit_bias = nn.Parameter(torch.full((1,), -10.0)) if config.logit_bias else None
        self.tokenizer = None  # set by whoever builds or loads the model
        self.words = KnownWords()  # of training

    def encode_image(self, images: Tensor) -> Tensor:
        """Pictures to embeddings, not normalised.

        images: (B, 3, H, W) normalised, as `preprocess` does
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


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, *, captions: Tensor) -> Tensor:
    """Symmetric cross-entropy over the pairs of a batch: figure 3 of the paper,

        I_e = l2_normalize(np.dot(I_f, W_i), axis=1)
        T_e = l2_normalize(np.dot(T_f, W_t), axis=1)
        logits = np.dot(I_e, T_e.T) * np.exp(t)
        labels = np.arange(n)
        loss_i = cross_entropy_loss(logits, labels, axis=0)
        loss_t = cross_entropy_loss(logits, labels, axis=1)
        loss = (loss_i + loss_t) / 2

    image: (n, E) picture embeddings, I_f W_i
    text: (n, E) caption embeddings, T_f W_t
    scale: (1,) inverse temperature, exp(t)
    captions: (n,) int64, equal where captions are equal
    returns: ()
    """
    I_e, T_e = unit(image), unit(text)  # (n, E) each
    logits = scale * I_e @ T_e.T  # (n, n)
    # differs from the paper: captions that occur twice in a batch are positives of each other,
    # since none of those pictures is wrong for them.
    labels = even_targets(captions, captions)  # (n, n) the identity, where all captions differ
    return both_ways(logits, labels)
