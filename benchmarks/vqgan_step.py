"""A training step of VQGAN, generator and discriminator, beside taming-transformers' modules.

python benchmarks/vqgan_step.py [--threads 2] [--rounds 7] [--device cpu|cuda] [--large]

The step: reconstruct a batch, L1 + codebook loss + λ times the discriminator's verdict, one
optimiser step of the generator; hinge loss and one step of the discriminator on the same pictures.
All have the same shape (64x64 pictures, 32 channels times 1, 2, 2, one residual block, attention in
the middle, 512 codes, f = 4, batch 16; discriminator with three halvings). The peer's modules are
wired twice: as its own training does it, with a forward pass of the generator for each of the two
optimisers, and with one pass for both. Rounds are interleaved in turning order; the ratio is the
median of the rounds' own ratios. The peer is imported only if it is installed (its modules are in
taming-transformers-rom1504); minimodal does not need it. --large: 256x256 pictures, the f16-1024
configuration.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from clip_step import timed
from torch import Tensor, nn

from minimodal.blocks.discriminator import PatchDiscriminator, generator_loss, hinge_loss, weigh
from minimodal.training import probe
from minimodal.training.optim import make_optimizer
from minimodal.vqgan import VQGAN, VQGANConfig

Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """What all of the models have in common."""

    image: int = 64
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    depth: int = 1
    attention: tuple[int, ...] = ()
    codes: int = 512
    width: int = 32
    judge: int = 32
    batch: int = 16


LARGE = Shape(256, 128, (1, 1, 2, 2, 4), 2, (16,), 1024, 256, 64, 16)


def pictures(shape: Shape, device: str) -> Tensor:
    """Random pictures, (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(shape.batch, 3, shape.image, shape.image, generator=generator) * 2 - 1).to(
        device
    )


def ours(shape: Shape, precision: str, device: str, *, last: bool) -> Step:
    """minimodal, with the losses of its task; `last` keeps channels last in memory."""
    config = VQGANConfig(
        image_size=shape.image, channels=shape.channels, multipliers=shape.multipliers,
        depth=shape.depth, decoder_depth=shape.depth + 1, middle_attention=True,
        attention=shape.attention, latent_width=shape.width, quantizer="gradient",
        codes=(shape.codes,), code_width=shape.width,
    )  # fmt: skip
    model = VQGAN(config).to(device).train()
    judge = PatchDiscriminator(channels=shape.judge, depth=3, refine=True).to(device).train()
    images = pictures(shape, device)
    nn.init.uniform_(model.quantizer.codes, -1 / shape.codes, 1 / shape.codes)
    if last:
        model.to(memory_format=torch.channels_last)
        judge.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    moves = [
        make_optimizer([net], lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0) for net in (model, judge)
    ]

    def step() -> None:
        judge.requires_grad_(False)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            decoded, codes, _ = model(images)
            decoded = decoded.float()
            rec = F.l1_loss(decoded, images)
            adversarial = generator_loss(judge(decoded).float())
            term, weight = weigh(rec, adversarial, decoded, model.last_layer)
        (rec + codes.loss + 0.8 * weight * term).backward()
        moves[0].step()
        moves[0].zero_grad()
        judge.requires_grad_(True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            real, fake = judge(torch.cat([images, decoded.detach()])).float().chunk(2)
            loss = hinge_loss(real, fake)
        loss.backward()
        moves[1].step()
        moves[1].zero_grad()

    return step


def taming(shape: Shape, precision: str, device: str, *, passes: int) -> Step:
    """The original's modules, wired with one or two passes of the generator a step."""
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
    from taming.modules.vqvae.quantize import VectorQuantizer2

    sizes = dict(
        double_z=False, z_channels=shape.width, resolution=shape.image, in_channels=3, out_ch=3,
        ch=shape.channels, ch_mult=shape.multipliers, num_res_blocks=shape.depth,
        attn_resolutions=shape.attention, dropout=0.0,
    )  # fmt: skip
    parts = nn.ModuleDict(
        {
            "encoder": Encoder(**sizes),
            "down": nn.Conv2d(shape.width, shape.width, 1),
            "codebook": VectorQuantizer2(shape.codes, shape.width, beta=0.25),
            "up": nn.Conv2d(shape.width, shape.width, 1),
            "decoder": Decoder(**sizes),
        }
    ).to(device)
    judge = NLayerDiscriminator(3, shape.judge, n_layers=3).apply(weights_init).to(device)
    images = pictures(shape, device)
    moves = [
        torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.5, 0.9)) for net in (parts, judge)
    ]

    def paint() -> tuple[Tensor, Tensor]:
        z, loss, _ = parts["codebook"](parts["down"](parts["encoder"](images)))
        return parts["decoder"](parts["up"](z)), loss

    def step() -> None:
        cast = precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=cast):
            decoded, codebook = paint()
            rec = (images - decoded).abs().mean()
            adversarial = -judge(decoded).mean()
        last = parts["decoder"].conv_out.weight
        by_rec = torch.autograd.grad(rec, last, retain_graph=True)[0]
        by_gan = torch.autograd.grad(adversarial, last, retain_graph=True)[0]
        weight = (by_rec.norm() / (by_gan.norm() + 1e-4)).clamp(0, 1e4).detach()
        moves[0].zero_grad()
        (rec + codebook + 0.8 * weight * adversarial).backward()
        moves[0].step()
        with torch.autocast(device, torch.bfloat16, enabled=cast):
            if passes == 2:
                decoded = paint()[0]
            real, fake = judge(images), judge(decoded.detach())
            loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        moves[1].zero_grad()
        loss.backward()
        moves[1].step()

    return step


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--large", action="store_true", help="256x256, the f16-1024 configuration")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    shape, device = LARGE if given.large else Shape(), given.device
    steps = {
        f"ours {p}{', channels last' if last else ''}": ours(shape, p, device, last=last)
        for p in ("float32", "bfloat16")
        for last in (False, True)
    }
    try:
        for passes in (1, 2):
            steps |= {
                f"taming {p}, {passes} forward": taming(shape, p, device, passes=passes)
                for p in (("float32", "bfloat16") if passes == 1 else ("float32",))
            }
    except ImportError as error:
        print(f"without taming-transformers: {error}")
    seconds = timed(steps, given.rounds, device)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{where}, {given.threads} threads, torch {torch.__version__}, batch {shape.batch}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        line = f"{name:30s} {1000 * median:8.1f} ms {shape.batch / median:8.1f} pictures/s"
        for mine in sorted(seconds.keys() & {"ours float32", "ours bfloat16"}, reverse=True):
            ratio = statistics.median(a / b for a, b in zip(taken, seconds[mine], strict=True))
            line += f"   {ratio:5.2f} x {mine}"
        print(line)
    fastest = min((n for n in seconds if n.startswith("ours")), key=lambda n: sum(seconds[n]))
    precision = "bfloat16" if "bfloat16" in fastest else "float32"
    flops = probe.count_flops(steps[fastest])
    peak = probe.matmul_peak(torch.device(device), precision)
    reached = flops / statistics.median(seconds[fastest])
    print(f"{fastest}: {reached / peak:.0%} of a matmul's {peak / 1e12:.3g} TFLOP/s")


if __name__ == "__main__":
    main()
