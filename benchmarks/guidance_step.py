"""A step of VQGAN+CLIP beside the algorithm of VQGAN-CLIP, written plainly.

python benchmarks/guidance_step.py [--threads 2] [--rounds 9] [--device cpu|cuda] [--large]

The step: round the latent to codes with straight-through gradients, decode, cut out, embed, squared
angle to the prompt, backward, Adam. Both have the same models (random weights: the demo's, 16
cutouts; --large: f16 with 16,384 codes at 256 pixels and ViT-B/32, 16 cutouts) and the same kind of
cutouts: squares of random size and place with noise. `plain` is what nerdyrodent's VQGAN-CLIP and
Pixray do: all distances to the codebook, one-hot times the table, a loop over crops with adaptive
pooling, one graph for all. Rounds are interleaved in turning order (`clip_step.timed`); ratios are
the medians of the rounds' own.
"""

import argparse
import platform
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from clip_step import timed
from torch import Tensor

from minimodal.blocks.cutouts import Views
from minimodal.blocks.drawers import VQGANDrawer
from minimodal.clip import CLIP, CLIPConfig
from minimodal.training.recipes import recipe_for
from minimodal.vqgan import VQGAN, VQGANConfig
from minimodal.vqgan_clip.guide import Guide, Region, Wanted
from minimodal.vqgan_clip.optimise import Optimisation, OptimiseConfig

CUTS, SMALLEST, NOISE, LR = 16, 0.5, 0.1, 0.1
F16 = VQGANConfig(
    image_size=256, channels=128, multipliers=(1, 1, 2, 2, 4), depth=2, attention=(16,),
    quantizer="gradient", codes=(16384,), code_width=256,
)  # fmt: skip
B32 = CLIPConfig(
    image_size=224, patch_size=32, vision_width=768, vision_depth=12, vision_heads=12,
    text_width=64, text_depth=1, text_heads=1, embed_width=512,
)  # fmt: skip


def models(large: bool, device: str) -> tuple[VQGAN, CLIP, Tensor]:
    """A VQGAN and a CLIP with random weights, and codes to begin with."""
    vqgan = VQGAN(F16 if large else recipe_for("vqgan", "shapes").model)
    clip = CLIP(B32 if large else recipe_for("clip", "shapes").model)
    side = vqgan.config.image_size // vqgan.config.factor
    codes = torch.randint(vqgan.quantizer.size, (1, side, side))
    for model in (vqgan, clip):
        model.to(device).eval().requires_grad_(False)
    return vqgan, clip, codes.to(device)


def ours(vqgan: VQGAN, clip: CLIP, codes: Tensor, *, bfloat16: bool) -> Callable[[], None]:
    """minimodal."""
    target = F.normalize(torch.randn(1, clip.config.embed_width), dim=1).to(codes.device)
    one = torch.ones(1, device=codes.device)
    guide = Guide(clip, (Wanted(Region(), target, one, -torch.inf * one),))
    with torch.no_grad():
        drawer = VQGANDrawer(vqgan, vqgan.decode_indices(codes))
    drawer.begin(codes)
    config = OptimiseConfig(steps=10**6, lr=LR, views=CUTS, bfloat16=bfloat16)
    run = Optimisation(drawer, [guide], config, views=Views(smallest=SMALLEST, noise=NOISE))
    return run.step


class PassOn(torch.autograd.Function):
    """`replace_grad` of VQGAN-CLIP: the first's value, the second's gradient."""

    @staticmethod
    def forward(ctx, value: Tensor, through: Tensor) -> Tensor:
        """value, through: (…)"""
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        """grad: (…)"""
        return None, grad


class ClampWithGrad(torch.autograd.Function):
    """`clamp_with_grad` of VQGAN-CLIP."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """x: (…)"""
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """grad: (…)"""
        (x,) = ctx.saved_tensors
        return grad * (grad * (x - x.clamp(0, 1)) >= 0)


def plain(vqgan: VQGAN, clip: CLIP, codes: Tensor) -> Callable[[], None]:
    """VQGAN-CLIP's `train`, `synth`, `vector_quantize`, `MakeCutouts` and `Prompt`."""
    target = F.normalize(torch.randn(1, clip.config.embed_width), dim=1).to(codes.device)
    z = vqgan.quantizer.vectors(codes).detach().clone().requires_grad_()
    quantizer, size = vqgan.quantizer, clip.config.image_size
    books = getattr(quantizer, "codebooks", None)
    books = [book.codes for book in books] if books else [quantizer.codes.detach()]
    optimizer = torch.optim.Adam([z], lr=LR)
    mean, std = (torch.tensor(n).view(1, 3, 1, 1).to(z) for n in (clip.reading.mean,
                                                                  clip.reading.std))  # fmt: skip

    def quantized(x: Tensor, book: Tensor) -> Tensor:
        d = x.pow(2).sum(-1, keepdim=True) + book.pow(2).sum(1) - 2 * x @ book.T
        found = F.one_hot(d.argmin(-1), book.shape[0]).to(d.dtype) @ book
        return PassOn.apply(found, x)

    def cutouts(picture: Tensor) -> Tensor:
        H, W = picture.shape[2:]
        most, least, cut = min(H, W), int(min(H, W) * SMALLEST), []
        for _ in range(CUTS):
            side = int(torch.rand([]) * (most - least) + least)
            x, y = int(torch.randint(0, W - side + 1, ())), int(torch.randint(0, H - side + 1, ()))
            cut.append(F.adaptive_avg_pool2d(picture[:, :, y : y + side, x : x + side], size))
        batch = torch.cat(cut)
        noise = batch.new_empty([CUTS, 1, 1, 1]).uniform_(0, NOISE)
        return batch + noise * torch.randn_like(batch)

    def step() -> None:
        optimizer.zero_grad()
        parts = z.movedim(1, 3).split([book.shape[1] for book in books], dim=3)
        q = torch.cat([quantized(p, b) for p, b in zip(parts, books, strict=True)], 3)
        picture = ClampWithGrad.apply((vqgan.decode_unclamped(q.movedim(3, 1)) + 1) / 2)
        seen = clip.encode_image((cutouts(picture) - mean) / std).float()
        apart = F.normalize(seen.unsqueeze(1), dim=2) - target.unsqueeze(0)
        apart.norm(dim=2).div(2).arcsin().pow(2).mul(2).mean().backward()
        optimizer.step()

    return step


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--large", action="store_true", help="f16 at 256 pixels and ViT-B/32")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    parts = models(given.large, given.device)
    steps = {
        "ours float32": ours(*parts, bfloat16=False),
        "ours bfloat16": ours(*parts, bfloat16=True),
        "plain float32": plain(*parts),
    }
    seconds = timed(steps, given.rounds, given.device)
    print(f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}")
    theirs = seconds["plain float32"]
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(theirs, taken, strict=True))
        print(
            f"{name:16s} {1000 * statistics.median(taken):9.1f} ms   {ratio:5.2f} x plain's speed"
        )


if __name__ == "__main__":
    main()
