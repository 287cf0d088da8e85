"""Drawing picture tokens beside transformers' GPT-2, x-transformers and dalle-pytorch.

python benchmarks/dalle_generate.py [--threads 2] [--rounds 3] [--batch 4] [--device D] [--large]

All have the same shape (32 caption and 256 picture tokens, width 256, depth 6, 8 heads,
vocabularies of 4096 and 1024; --large: 125M parameters, width 768, depth 12, 12 heads, 256 and
1024 tokens), random weights, temperature 1, no guidance, key-value caches where they are offered.
Rounds are interleaved in turning order; the ratio is the median of the rounds' own ratios. Peers
are imported only if they are installed; minimodal needs none. On CUDA the floor is printed too:
the bytes of weights and cache that every step must read, over the measured memory bandwidth.
"""

import argparse
import platform
import statistics
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from clip_step import timed
from torch import Tensor, nn

from minimodal.dalle import DALLE, DALLEConfig

Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Shape:
    """What all of the models have in common."""

    text: int = 32
    grid: int = 16
    width: int = 256
    depth: int = 6
    heads: int = 8
    text_vocab: int = 4096
    codes: int = 1024

    @property
    def image(self) -> int:
        """Picture tokens."""
        return self.grid**2


LARGE = Shape(256, 32, 768, 12, 12, 16_384, 8192)


def captions(shape: Shape, batch: int, device: str) -> Tensor:
    """Random captions without padding, (B, T)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, shape.text_vocab, (batch, shape.text), generator=generator).to(device)


def dalle(shape: Shape, device: str) -> DALLE:
    """minimodal's model of this shape."""
    config = DALLEConfig(
        vocab_size=shape.text_vocab, text_length=shape.text, grid=shape.grid, codes=(shape.codes,),
        width=shape.width, depth=shape.depth, heads=shape.heads,
    )  # fmt: skip
    with torch.device(device):
        return DALLE(config).eval()


def ours(shape: Shape, batch: int, device: str, dtype: torch.dtype) -> Draw:
    """minimodal."""
    model = dalle(shape, device).to(dtype)
    text = captions(shape, batch, device)
    generator = torch.Generator(device).manual_seed(0)
    return lambda: model.generate_codes(text, generator=generator).flatten(1)


def gpt2(shape: Shape, batch: int, device: str, dtype: torch.dtype) -> Draw:
    """transformers' GPT-2 over one vocabulary of both kinds of tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.text_vocab + shape.codes, n_positions=shape.text + shape.image,
        n_embd=shape.width, n_layer=shape.depth, n_head=shape.heads, bos_token_id=0,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).to(device, dtype).eval()
    text = captions(shape, batch, device)

    def draw() -> Tensor:
        out = model.generate(
            text, attention_mask=torch.ones_like(text), max_new_tokens=shape.image,
            min_new_tokens=shape.image, do_sample=True, top_k=0, use_cache=True,
        )  # fmt: skip
        return out[:, shape.text :]

    return draw


def x_transformers(shape: Shape, batch: int, device: str, dtype: torch.dtype) -> Draw:
    """x-transformers' decoder."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    net = TransformerWrapper(
        num_tokens=shape.text_vocab + shape.codes,
        max_seq_len=shape.text + shape.image,
        attn_layers=Decoder(
            dim=shape.width, depth=shape.depth, heads=shape.heads,
            attn_dim_head=shape.width // shape.heads, attn_flash=True,
        ),
    )  # fmt: skip
    model = AutoregressiveWrapper(net).to(device, dtype).eval()
    text = captions(shape, batch, device)
    return lambda: model.generate(text, shape.image, temperature=1.0, filter_logits_fn=lambda x: x)


def absent(name: str) -> None:
    """An empty module in the place of what a peer imports and does not need here."""
    parts = name.split(".")
    for i in range(len(parts)):
        whole = ".".join(parts[: i + 1])
        if whole not in sys.modules:
            module = types.ModuleType(whole)
            module.__path__ = []
            sys.modules[whole] = module
            if i:
                setattr(sys.modules[".".join(parts[:i])], parts[i], module)


def dalle_pytorch(shape: Shape, batch: int, device: str, dtype: torch.dtype) -> Draw:
    """DALLE-pytorch as it comes: every setting that it has a default for is left there."""
    for name in ("taming.models.vqgan", "youtokentome", "pytorch_lightning"):
        absent(name)
    sys.modules["taming.models.vqgan"].VQModel = nn.Module
    sys.modules["taming.models.vqgan"].GumbelVQ = nn.Module
    from dalle_pytorch import DALLE as Theirs
    from dalle_pytorch import DiscreteVAE

    vae = DiscreteVAE(
        image_size=4 * shape.grid,
        num_layers=2,
        num_tokens=shape.codes,
        codebook_dim=8,
        hidden_dim=8,
    )
    model = (
        Theirs(
            dim=shape.width, vae=vae, num_text_tokens=shape.text_vocab, text_seq_len=shape.text,
            depth=shape.depth, heads=shape.heads, dim_head=shape.width // shape.heads,
        )
        .to(device, dtype)
        .eval()
    )  # fmt: skip
    text = captions(shape, batch, device)
    return lambda: model.generate_images(text, filter_thres=0.0)


PEERS = {"transformers": gpt2, "x-transformers": x_transformers, "dalle-pytorch": dalle_pytorch}


def bandwidth(device: str, n: int = 2**28) -> float:
    """Bytes a second that the device's memory reads and writes, by copying n numbers."""
    x = torch.empty(n, dtype=torch.bfloat16, device=device)
    y = torch.empty_like(x)
    seconds = min(timed({"copy": lambda: y.copy_(x)}, 10, device)["copy"])
    return 2 * x.numel() * x.element_size() / seconds


def bytes_read(shape: Shape, batch: int, dtype: torch.dtype) -> float:
    """What drawing a batch must read at least: for each token the weights and the cache so far."""
    model = dalle(shape, "meta")
    heads = model.transformer, model.image_heads
    weights = sum(p.numel() for part in heads for p in part.parameters())
    lengths = sum(1 + shape.text + n for n in range(shape.image))
    values = shape.image * weights + 2 * shape.depth * shape.width * batch * lengths
    return values * torch.finfo(dtype).bits / 8


def main() -> None:
    """Time everything that is installed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--without", default="", help="peers to leave out, with commas")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = LARGE if arguments.large else Shape()
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    given = (shape, arguments.batch, arguments.device, dtype)
    draws = {"minimodal": ours(*given)}
    for name, make in PEERS.items():
        if name in arguments.without.split(","):
            continue
        try:
            draws[name] = make(*given)
        except ImportError as error:
            print(f"{name} is not installed ({error})")
    with torch.no_grad():
        times = timed(draws, arguments.rounds, arguments.device)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {shape}")
    print(f"batch {arguments.batch}, {arguments.threads} threads, {arguments.device}, {dtype}")
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(times["minimodal"], seconds, strict=True)]
        print(
            f"{name:16s} {statistics.median(seconds):8.3f} s   "
            f"minimodal / this: {statistics.median(ratios):.3f}"
        )
    if arguments.device == "cuda":
        least = bytes_read(shape, arguments.batch, dtype) / bandwidth(arguments.device)
        mine = statistics.median(times["minimodal"])
        print(f"floor {least:.4f} s: minimodal takes {mine / least:.2f} times that")


if __name__ == "__main__":
    main()
