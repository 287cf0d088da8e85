"""A training step of CLIP against open_clip's and transformers', side by side.

python benchmarks/clip_step.py [--threads 2] [--rounds 9] [--device cpu|cuda] [--large]

The step: both towers forward, contrastive loss, backward, optimiser. The models have the same
shape (64x64 pictures, patch 8, width 192, 6 layers; text width 192, 4 layers, 32 tokens; batch
128; --large: ViT-B/32 at 224, batch 1024), random data, AdamW fused for all of them. Rounds are
interleaved in turning order; the ratio is the median of the rounds' own ratios. Rows: float32
against float32, then the engine's own setting (bfloat16 autocast) against the peers in float32 and
in bfloat16. Peers are imported only if they are installed; minimodal needs neither.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minimodal.clip import CLIP, CLIPConfig, contrastive_loss
from minimodal.training import probe
from minimodal.training.optim import make_optimizer

Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """What all of the models have in common."""

    image: int = 64
    patch: int = 8
    width: int = 192
    depth: int = 6
    text_width: int = 192
    text_depth: int = 4
    tokens: int = 32
    vocab: int = 8192
    embed: int = 192
    batch: int = 128


LARGE = Shape(224, 32, 768, 12, 512, 12, 77, 49408, 512, 1024)


def data(shape: Shape, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pictures and captions that end in the largest id."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape.batch, 3, shape.image, shape.image, generator=generator)
    tokens = torch.randint(3, shape.vocab - 1, (shape.batch, shape.tokens), generator=generator)
    tokens[:, -1] = shape.vocab - 1
    return images.to(device), tokens.to(device)


def step_of(model: torch.nn.Module, optimizer, loss: Callable, precision: str, device: str) -> Step:
    """One step of training."""

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    return step


def ours(shape: Shape, precision: str, device: str) -> Step:
    """minimodal."""
    config = CLIPConfig(
        image_size=shape.image, patch_size=shape.patch, vision_width=shape.width,
        vision_depth=shape.depth, vision_heads=shape.width // 64, text_width=shape.text_width,
        text_depth=shape.text_depth, text_heads=shape.text_width // 64, vocab_size=shape.vocab,
        text_length=shape.tokens, embed_width=shape.embed, end_id=shape.vocab - 1,
    )  # fmt: skip
    model = CLIP(config).to(device)
    images, tokens = data(shape, device)
    numbers = torch.arange(shape.batch, device=device)
    optimizer = make_optimizer([model], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def loss() -> torch.Tensor:
        image, text = model.encode_image(images), model.encode_text(tokens)
        return contrastive_loss(image, text, model.logit_scale.exp(), captions=numbers)

    return step_of(model, optimizer, loss, precision, device)


def open_clip_step(shape: Shape, precision: str, device: str) -> Step:
    """open_clip.model.CLIP with its ClipLoss."""
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP as Peer

    model = Peer(
        embed_dim=shape.embed,
        vision_cfg={"layers": shape.depth, "width": shape.width, "head_width": 64,
                    "patch_size": shape.patch, "image_size": shape.image},
        text_cfg={"context_length": shape.tokens, "vocab_size": shape.vocab,
                  "width": shape.text_width, "heads": shape.text_width // 64,
                  "layers": shape.text_depth},
    ).to(device)  # fmt: skip
    images, tokens = data(shape, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    criterion = ClipLoss()
    return step_of(
        model, optimizer, lambda: criterion(*model(images, tokens)[:3]), precision, device
    )


def transformers_step(shape: Shape, precision: str, device: str) -> Step:
    """transformers.CLIPModel with its own loss."""
    from transformers import CLIPConfig as PeerConfig
    from transformers import CLIPModel

    config = PeerConfig(
        projection_dim=shape.embed,
        vision_config={"hidden_size": shape.width, "intermediate_size": 4 * shape.width,
                       "num_hidden_layers": shape.depth, "image_size": shape.image,
                       "num_attention_heads": shape.width // 64, "patch_size": shape.patch,
                       "hidden_act": "gelu"},
        text_config={"hidden_size": shape.text_width, "intermediate_size": 4 * shape.text_width,
                     "num_hidden_layers": shape.text_depth, "vocab_size": shape.vocab,
                     "num_attention_heads": shape.text_width // 64, "hidden_act": "gelu",
                     "max_position_embeddings": shape.tokens, "eos_token_id": shape.vocab - 1,
                     "bos_token_id": 1, "pad_token_id": 0},
        attn_implementation="sdpa",
    )  # fmt: skip
    model = CLIPModel(config).to(device)
    images, tokens = data(shape, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)

    def loss() -> torch.Tensor:
        return model(input_ids=tokens, pixel_values=images, return_loss=True).loss

    return step_of(model, optimizer, loss, precision, device)


def timed(steps: dict[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step in each round, in turning order; those in bfloat16 are left out where
    the device has no fast products in it."""
    native = probe.multiplies_bfloat16(torch.device(device))
    names = [name for name in steps if native or "bfloat16" not in name]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 2):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            probe.wait(torch.device(device))
            began = time.perf_counter()
            steps[name]()
            probe.wait(torch.device(device))
            if round_ >= 2:  # the first also pay for what is done once
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--large", action="store_true", help="ViT-B/32 at 224, batch 1024")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.device == "cuda":
        torch.set_float32_matmul_precision("high")
    shape, device = LARGE if given.large else Shape(), given.device
    steps = {f"ours {p}": ours(shape, p, device) for p in ("float32", "bfloat16")}
    for name, make in (("open_clip", open_clip_step), ("transformers", transformers_step)):
        try:
            steps |= {f"{name} {p}": make(shape, p, device) for p in ("float32", "bfloat16")}
        except ImportError as error:
            print(f"without {name}: {error}")
    seconds = timed(steps, given.rounds, device)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{where}, {given.threads} threads, torch {torch.__version__}, batch {shape.batch}")
    for name, taken in seconds.items():
        line = f"{name:24s} {1000 * statistics.median(taken):8.1f} ms"
        for mine in sorted(seconds.keys() & {"ours float32", "ours bfloat16"}, reverse=True):
            ratio = statistics.median(a / b for a, b in zip(taken, seconds[mine], strict=True))
            line += f"   {ratio:5.2f} x {mine}"
        print(line)
    precision = "bfloat16" if "ours bfloat16" in seconds else "float32"
    flops = probe.count_flops(steps[f"ours {precision}"])
    peak = probe.matmul_peak(torch.device(device), precision)
    reached = flops / statistics.median(seconds[f"ours {precision}"])
    print(f"ours in {precision}: {reached / peak:.0%} of a matmul's {peak / 1e12:.3g} TFLOP/s")


if __name__ == "__main__":
    main()
