"""Diffusion beside the textbook's loop on the same network: a training step, and sampling.

python benchmarks/diffusion.py [--threads 2] [--rounds 7] [--device cpu|cuda] [--pixels]

The network is the demo's decoder of code vectors (--pixels: the recipe's of pixels), with random
weights. `textbook` is what most programs do. Training: a table of 1,000 times, the mean squared
error, AdamW as torch has it, averages one weight after the other. Sampling: a pass with the
condition and one without at each of 16 steps of DDIM. Ours is the same step and the same walk, in
float32 and as a decoder trained in bfloat16 draws; the other pair guides in the first five steps
only (`--guide-to 0.75`), with one pass in the others.
With denoising-diffusion-pytorch installed a training step of its U-Net of the same widths is timed
too. Rounds are interleaved in turning order (`clip_step.timed`); ratios are the medians of the
rounds' own. How few steps suffice is in `unclip_study.py --only samplers`.
"""

import argparse
import copy
import pathlib
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from clip_step import timed
from torch import Tensor, nn

from minimodal.blocks.diffusion import Path, Sampler, training_times
from minimodal.training.optim import make_optimizer
from minimodal.training.recipes import recipe_for
from minimodal.training.recipes.decoder import on_codes
from minimodal.unclip.decoder import Conditions, Decoder, DecoderConfig

DEMOS = on_codes(pathlib.Path("vqgan"))
STEPS, GUIDANCE, BATCHES, BATCH, TABLE = 16, 1.5, (1, 8, 64), 32, 1000


def config_of(pixels: bool) -> DecoderConfig:
    """The recipe's decoder of pixels, or the demo's of 8 x 8 code vectors."""
    if pixels:
        return recipe_for("decoder", "shapes").model
    return replace(DEMOS.model, latent=32, grid=8)


def told(config: DecoderConfig, B: int, device: str) -> Conditions:
    """Random conditions."""
    E, yes = config.embed_width, torch.ones(B, dtype=torch.bool)
    parts = (
        F.normalize(torch.randn(B, E), dim=1), torch.zeros(B),
        torch.randn(B, 16, config.word_width), F.normalize(torch.randn(B, E), dim=1), yes, yes,
    )  # fmt: skip
    return Conditions(*(part.to(device) for part in parts))


def our_walk(
    model: Decoder, conditions: Conditions, *, bfloat16: bool, guide_to: float
) -> Callable[[], None]:
    """minimodal."""
    device = conditions.embedding.device
    how = Sampler("ddim", STEPS, guidance=GUIDANCE, guide_to=guide_to)

    def walk() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            model.draw(conditions, how, generator=torch.Generator(device).manual_seed(0))

    return walk


def textbook_walk(model: Decoder, conditions: Conditions) -> Callable[[], None]:
    """A pass with and a pass without the condition at each step."""
    B, device = len(conditions.embedding), conditions.embedding.device
    alphas, sigmas = Path(model.config.path).coefficients(torch.linspace(0, 1, TABLE + 1))
    alphas, sigmas = alphas.to(device), sigmas.to(device)

    @torch.no_grad()
    def walk() -> None:
        asked = conditions._replace(embedding=model.space.standardize(conditions.embedding))
        x = torch.randn(B, *model.config.shape, device=device)
        times = torch.linspace(TABLE, 0, STEPS + 1).round().long().tolist()
        for now, after in zip(times[:-1], times[1:], strict=True):
            t = torch.full((B,), now, device=device)
            a, s = (table[t].view(-1, 1, 1, 1) for table in (alphas, sigmas))
            with_it = model(x, t / TABLE, asked)
            without = model(x, t / TABLE, asked.without())
            start = without + GUIDANCE * (with_it - without)
            noise = (x - a * start) / s
            t = torch.full((B,), after, device=device)
            a, s = (table[t].view(-1, 1, 1, 1) for table in (alphas, sigmas))
            x = a * start + s * noise

    return walk


def our_step(model: Decoder, conditions: Conditions, *, bfloat16: bool) -> Callable[[], None]:
    """minimodal's loss, optimiser, clipping and averages."""
    B, device = len(conditions.embedding), conditions.embedding.device
    x, average = torch.randn(B, *model.config.shape, device=device), copy.deepcopy(model)
    optimizer = make_optimizer([model], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    weights, shadow = list(model.parameters()), list(average.parameters())

    def step() -> None:
        t = training_times(torch.rand(B, device=device), model.config)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = model.loss(x, conditions, noise=torch.randn_like(x), t=t)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(shadow, weights, 0.01)

    return step


def textbook_step(net: Callable[[Tensor, Tensor], Tensor], model: nn.Module, x: Tensor):
    """The same with a table of times and loops over the weights.

    net: noised pictures and times to estimates of the pictures
    """
    B, device, average = len(x), x.device, copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0)
    alphas, sigmas = Path("straight").coefficients(torch.linspace(0, 1, TABLE + 1))
    alphas, sigmas = alphas.to(device), sigmas.to(device)

    def step() -> None:
        t = torch.randint(1, TABLE + 1, (B,), device=device)
        a, s = (table[t].view(-1, 1, 1, 1) for table in (alphas, sigmas))
        loss = F.mse_loss(net(a * x + s * torch.randn_like(x), t / TABLE), x)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, weight in zip(average.parameters(), model.parameters(), strict=True):
                kept.mul_(0.99).add_(weight, alpha=0.01)

    return step


def peer_step(config: DecoderConfig, device: str) -> Callable[[], None] | None:
    """denoising-diffusion-pytorch's U-Net of the same widths and pictures, unconditional."""
    try:
        from denoising_diffusion_pytorch import Unet
    except ImportError:
        return None
    patch = 1 if config.latent else config.patch
    channels, side = config.shape[0] * patch**2, config.shape[1] // patch
    model = Unet(
        dim=config.channels, dim_mults=config.multipliers, channels=channels,
        full_attn=tuple(size in config.attention for size in config.resolutions),
    ).to(device)  # fmt: skip
    x = torch.randn(BATCH, channels, side, side, device=device)
    return textbook_step(lambda x_t, t: model(x_t, t * TABLE), model, x)


def show(seconds: dict[str, list[float]], base: str) -> None:
    """A line for each."""
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[base], taken, strict=True))
        milliseconds = 1000 * statistics.median(taken)
        print(f"  {name:28s} {milliseconds:9.1f} ms   {ratio:5.2f} x {base}'s speed")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--pixels", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config, device = config_of(given.pixels), given.device
    model = Decoder(config).to(device).eval()
    print(f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}")
    for B in BATCHES:
        print(f"sampling {B}, {STEPS} steps, guidance {GUIDANCE}")
        conditions = told(config, B, device)
        walks = {"textbook": textbook_walk(model, conditions)}
        for guide_to, where in ((0.0, ""), (0.75, ", first steps")):
            for precision in ("float32", "bfloat16"):
                walks[f"ours {precision}{where}"] = our_walk(
                    model, conditions, bfloat16=precision == "bfloat16", guide_to=guide_to
                )
        show(timed(walks, given.rounds, device), "textbook")
    print(f"a training step of {BATCH}")
    conditions = told(config, BATCH, device)
    x = torch.randn(BATCH, *config.shape, device=device)
    other = copy.deepcopy(model)
    steps = {
        "textbook": textbook_step(lambda x_t, t: other(x_t, t, conditions), other, x),
        "ours float32": our_step(copy.deepcopy(model), conditions, bfloat16=False),
        "ours bfloat16": our_step(copy.deepcopy(model), conditions, bfloat16=True),
    }
    if (peer := peer_step(config, device)) is not None:
        steps["denoising-diffusion-pytorch"] = peer
    show(timed(steps, given.rounds, device), "textbook")


if __name__ == "__main__":
    main()
