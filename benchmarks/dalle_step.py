"""A training step of DALL·E beside a GPT of nanoGPT's structure and transformers' GPT-2.

python benchmarks/dalle_step.py [--threads 2] [--rounds 7] [--device cpu|cuda] [--large]
python benchmarks/dalle_step.py --patterns        # the sparse attention patterns beside full

All have the same shape (32 caption and 256 picture tokens, width 256, depth 6, 8 heads,
vocabularies of 4096 and 1024, batch 8; --large: 125M parameters, width 768, depth 12, 256 and 1024
tokens, batch 16): forward, loss, backward, AdamW. The peers have one vocabulary of all 5120 tokens
and no dropout. nanoGPT is no package; its structure (fused qkv, causal attention by torch, tied
embeddings, no bias) is written here from its description. Rounds are interleaved in turning order;
the ratio is the median of the rounds' own ratios. On CUDA the share of the device's measured
bfloat16 matrix product is printed as well.
"""

import argparse
import platform
import statistics
from dataclasses import replace

import torch
import torch.nn.functional as F
from clip_step import Step, timed
from dalle_generate import LARGE, Shape, captions
from torch import Tensor, nn

from minimodal.dalle import DALLE, DALLEConfig
from minimodal.training import probe
from minimodal.training.optim import make_optimizer


class Layer(nn.Module):
    """A block of nanoGPT's structure."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) in and out."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(D, dim=2)
        q, k, v = (a.view(B, T, self.heads, -1).transpose(1, 2) for a in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class NanoGPT(nn.Module):
    """A GPT of nanoGPT's structure over one vocabulary."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        vocab, length = shape.text_vocab + shape.codes, shape.text + shape.image
        self.tokens = nn.Embedding(vocab, shape.width)
        self.positions = nn.Embedding(length, shape.width)
        self.layers = nn.ModuleList(Layer(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.head = nn.Linear(shape.width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, stream: Tensor, targets: Tensor) -> Tensor:
        """The loss of a stream (B, T)."""
        places = torch.arange(stream.shape[1], device=stream.device)
        x = self.tokens(stream) + self.positions(places)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def step_of(nets: list[nn.Module], loss, precision: str, device: str) -> Step:
    """Forward, backward and an AdamW step."""
    optimizer = make_optimizer(nets, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def data(shape: Shape, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Random captions (B, T) and codes (B, h, w)."""
    generator = torch.Generator().manual_seed(1)
    size = (batch, shape.grid, shape.grid)
    codes = torch.randint(0, shape.codes, size, generator=generator)
    return captions(shape, batch, device), codes.to(device)


def model(shape: Shape, device: str, attention: str = "full") -> DALLE:
    """minimodal's DALL·E of this shape."""
    config = DALLEConfig(
        vocab_size=shape.text_vocab, text_length=shape.text, grid=shape.grid, codes=(shape.codes,),
        width=shape.width, depth=shape.depth, heads=shape.heads, attention=attention,
    )  # fmt: skip
    return DALLE(config).to(device).train()


def ours(shape: Shape, batch: int, precision: str, device: str, attention: str = "full") -> Step:
    """minimodal."""
    dalle = model(shape, device, attention)
    text, codes = data(shape, batch, device)
    return step_of([dalle], lambda: dalle.loss(text, codes)[0], precision, device)


def joined(shape: Shape, batch: int, device: str) -> Tensor:
    """The same tokens as one stream (B, T+N)."""
    text, codes = data(shape, batch, device)
    return torch.cat([text, codes.flatten(1) + shape.text_vocab], dim=1)


def nano(shape: Shape, batch: int, precision: str, device: str) -> Step:
    """nanoGPT's structure."""
    net = NanoGPT(shape).to(device).train()
    stream = joined(shape, batch, device)
    targets = stream.roll(-1, dims=1)
    return step_of([net], lambda: net(stream, targets), precision, device)


def gpt2(shape: Shape, batch: int, precision: str, device: str) -> Step:
    """transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.text_vocab + shape.codes, n_positions=shape.text + shape.image,
        n_embd=shape.width, n_layer=shape.depth, n_head=shape.heads, embd_pdrop=0.0,
        attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    net = GPT2LMHeadModel(config).to(device).train()
    stream = joined(shape, batch, device)
    return step_of([net], lambda: net(stream, labels=stream).loss, precision, device)


def told(times: dict[str, list[float]], first: str) -> None:
    """Print a table of medians and ratios to the first."""
    for name, seconds in times.items():
        ratio = statistics.median(b / a for a, b in zip(times[first], seconds, strict=True))
        print(f"{name:32s} {1000 * statistics.median(seconds):9.1f} ms   x {ratio:.2f} of {first}")


def main() -> None:
    """Time what is installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--patterns", action="store_true")
    parser.add_argument("--grid", type=int, help="codes a side (default: the shape's)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape, batch = (LARGE, 16) if arguments.large else (Shape(), arguments.batch)
    if arguments.grid:
        shape = replace(shape, grid=arguments.grid)
    device = arguments.device
    print(f"{platform.machine()}, torch {torch.__version__}, {device}, {shape}, batch {batch}")
    if arguments.patterns:
        kinds = ("full", "row", "column", "conv", "paper")
        for precision in ("float32", "bfloat16"):
            steps = {kind: ours(shape, batch, precision, device, kind) for kind in kinds}
            print(precision)
            told(timed(steps, arguments.rounds, device), "full")
        return
    steps = {}
    for precision in ("float32", "bfloat16"):
        steps[f"minimodal {precision}"] = ours(shape, batch, precision, device)
    for name, make in (("nanoGPT's structure", nano), ("transformers GPT-2", gpt2)):
        for precision in ("float32", "bfloat16"):
            try:
                steps[f"{name} {precision}"] = make(shape, batch, precision, device)
            except ImportError as error:
                print(f"{name} is not installed ({error})")
    times = timed(steps, arguments.rounds, device)
    told(times, "minimodal float32")
    if "minimodal bfloat16" in times:
        told(times, "minimodal bfloat16")
    if device == "cuda":
        dalle = model(shape, device)
        tokens = batch * (shape.text + shape.image)
        flops = 6 * tokens * sum(p.numel() for p in dalle.transformer.parameters())
        flops += 6 * tokens * shape.depth * shape.width * (shape.text + shape.image)
        seconds = statistics.median(times["minimodal bfloat16"])
        share = flops / seconds / probe.matmul_peak(torch.device(device), "bfloat16")
        print(f"minimodal bfloat16: {share:.1%} of the measured peak of bfloat16 products")


if __name__ == "__main__":
    main()
