"""What each task costs at the papers' sizes, by formula and by count; nothing is computed.

    python benchmarks/scaling.py        # the tables of docs/scaling.md

Models are built and passed through on the meta device, which knows shapes and holds no numbers: a
DALL·E of 12 billion parameters takes seconds. Parameters and FLOPs are counted there, by PyTorch's
own counter, and stand beside the formulas. The last table says what two large trainings would take
on a cluster whose figures are those below. tests/training/test_scaling.py holds the formulas
against counts at toy size on the CPU, and bytes moved against 1,024 simulated processes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.discriminator import PatchDiscriminator, generator_loss, hinge_loss, weigh
from minimodal.blocks.pixel_attention import PixelAttention
from minimodal.blocks.transformer import Attention
from minimodal.clip import CLIP, CLIPConfig, contrastive_loss
from minimodal.dalle import DALLE, DALLEConfig
from minimodal.training.probe import count_flops
from minimodal.unclip.decoder import Conditions, Decoder, DecoderConfig
from minimodal.unclip.prior import Chance, DiffusionPrior, PriorConfig
from minimodal.unclip.upsampler import Upsampler, UpsamplerConfig
from minimodal.vqgan import VQGAN, VQGANConfig
from minimodal.vqgan_prior import VQGANPrior, VQGANPriorConfig

# An H100 (SXM) and its part of the network, as their makers say.
PEAK, SHARE = 989e12, 0.45  # FLOP/s of dense bfloat16 products, and how much of it is reached
NODE, LINK, WIRE, HOLDS = 8, 450e9, 50e9, 80e9  # GPUs; bytes a second in a node, out of it; memory


class Cost(NamedTuple):
    """Parameters, and FLOPs of a sample's forward and backward pass."""

    parameters: float
    flops: float


class Case(NamedTuple):
    """A task's nets, and a function that passes B samples through them and back."""

    nets: tuple[nn.Module, ...]
    run: Callable[[int], None]


# ---- formulas. L layers, width D, T tokens, V words, K codes, E shared; a sum over layers for CNNs


def stack(L: int, D: int, T: int) -> Cost:
    """A Transformer on T tokens: its four maps have 12 D² weights; 2 FLOPs a weight and token, and
    as many again for the gradients of each, the weight and the token; scores and their use."""
    return Cost(L * (12 * D**2 + 13 * D), 6 * T * L * 12 * D**2 + 12 * L * T**2 * D)


def kept(L: int, D: int, T: int, H: int, *, bfloat16: bool) -> float:
    """Bytes that a Transformer keeps of a sample until the backward pass, with fused attention."""
    if bfloat16:  # of each norm its float32 input and what a map reads of it, in bfloat16
        return L * T * (36 * D + 4 * H + 16)
    return L * T * (64 * D + 4 * H + 16)  # 2 norms' inputs and outputs, q k v, y, 4 D twice


def clip_cost(c: CLIPConfig) -> Cost:
    """Two towers; without a stem."""
    n, V, E = (c.image_size // c.patch_size) ** 2, c.vocab_size, c.embed_width
    D, d = c.vision_width, c.text_width
    vision, text = stack(c.vision_depth, D, n + 1), stack(c.text_depth, d, c.text_length)
    tables = 3 * c.patch_size**2 * D + (n + 6) * D + (V + c.text_length + 2) * d + (D + d) * E + 1
    ends = 4 * 3 * c.patch_size**2 * D * n + 6 * (D + d) * E
    return Cost(vision.parameters + text.parameters + tables, vision.flops + text.flops + ends)


def dalle_cost(c: DALLEConfig) -> Cost:
    """One stream, two vocabularies; of a code of one factor."""
    D, N, V, (K,) = c.width, c.image_length, c.text_vocab, c.codes
    inner = stack(c.depth, D, c.text_length + N)
    tables = D * (1 + V + c.text_length + K + N // c.grid + c.grid + 4) + V * (D + 1) + K * (D + 1)
    return Cost(inner.parameters + tables, inner.flops + 6 * D * (c.text_length * V + N * K))


def vqgan_prior_cost(c: VQGANPriorConfig) -> Cost:
    """One stream, one vocabulary."""
    inner = stack(c.depth, c.width, c.length)
    return Cost(inner.parameters + c.width * (c.rows + c.length + 2 + c.codes),
                inner.flops + 6 * c.length * c.width * c.codes)  # fmt: skip


def prior_cost(c: PriorConfig) -> Cost:
    """A caption's tokens, its embedding, and three tokens for each of n noise levels."""
    D, E, T, n = c.width, c.embed_width, c.text_length, c.levels
    inner = stack(c.depth, D, T + 1 + 3 * n)
    tables = D * (c.vocab_size + 2 * T + 7) + 2 * D**2 + 3 * D * E + E + D
    return Cost(inner.parameters + tables, inner.flops + 2 * D * E * (2 + 5 * n) + 10 * n * D**2)


@contextmanager
def by_layers(*nets: nn.Module) -> Iterator[list[float]]:
    """The sum over layers, of any net: 2 FLOPs a weight and place, and as many for the weight's
    gradient and for the input's where they are wanted; attention 4 a query, key and channel."""
    found = [0.0]

    def layer(module: nn.Module, given: tuple, out: Tensor) -> None:
        w, places = module.weight, out.numel() // len(module.weight)
        wanted = torch.is_grad_enabled() * (w.requires_grad + given[0].requires_grad)
        found[0] += 2 * w.numel() * places * (1 + wanted)

    def attention(module: nn.Module, given: tuple, out: Tensor) -> None:
        tokens = given[1:] and given[1] is not None
        queries = out.shape[1] if out.ndim == 3 else out.shape[2] * out.shape[3]
        keys = queries + (given[1].shape[1] if tokens else 0)
        width = out.shape[2] if out.ndim == 3 else out.shape[1]
        a_query = 4 * keys * width
        if isinstance(module, PixelAttention):  # calls none of its four layers: see its forward
            a_query += 4 * 2 * width**2
        found[0] += len(out) * queries * a_query * (1 + 2 * out.requires_grad)

    hooks = []
    for module in {m for net in nets for m in net.modules()}:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            hooks.append(module.register_forward_hook(layer))
        if isinstance(module, (Attention, PixelAttention)):
            hooks.append(module.register_forward_hook(attention))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def to_collectives(system: str, P: int, *, N: int, b: int, c: Any) -> dict[str, int]:
    """Bytes that each of N processes gives to collectives in a step, with b samples each."""
    moved = Counter(allreduce=4 * P)  # gradients; DALL·E and unCLIP need nothing else
    if system == "clip":  # both embeddings and the captions' numbers; the embeddings' gradients
        moved += Counter(allgather=N * b * (8 * c.embed_width + 8),
                         allreduce=8 * N * b * c.embed_width)  # fmt: skip
    if system == "vqgan":  # latents, for the codebook; two gradients of the last layer, for λ
        last = 3 * c.patch**2 * c.channels * c.multipliers[0] * 9
        moved += Counter(allgather=4 * N * b * c.latent * c.grid**2 + 2 * 4 * N * last)
    return dict(moved)


# ---- the tasks, at any size and on any device


def clip_case(c: CLIPConfig) -> Case:
    """CLIP, alone."""
    model = CLIP(c)

    def run(B: int) -> None:
        image = model.encode_image(torch.zeros(B, 3, c.image_size, c.image_size))
        text = model.encode_text(torch.zeros(B, c.text_length, dtype=torch.int64))
        scale = model.logit_scale.exp()
        contrastive_loss(image, text, scale, captions=torch.arange(B)).backward()

    return Case((model,), run)


def dalle_case(c: DALLEConfig) -> Case:
    """DALL·E on codes."""
    model = DALLE(c)

    def run(B: int) -> None:
        text = torch.zeros(B, c.text_length, dtype=torch.int64)
        model.loss(text, torch.zeros(B, c.grid, c.grid, dtype=torch.int64))[0].backward()

    return Case((model,), run)


def vqgan_prior_case(c: VQGANPriorConfig) -> Case:
    """VQGAN's second stage."""
    model = VQGANPrior(c)

    def run(B: int) -> None:
        codes = torch.zeros(B, c.grid, c.grid, dtype=torch.int64)
        model.loss(codes, torch.zeros(B, dtype=torch.int64)).backward()

    return Case((model,), run)


def prior_case(c: PriorConfig) -> Case:
    """unCLIP's diffusion prior."""
    model = DiffusionPrior(c)

    def run(B: int) -> None:
        z, n = torch.zeros(B, c.embed_width), c.levels
        unsaid = torch.zeros(B, dtype=torch.bool)
        chance = Chance(unsaid, torch.zeros(B, n), torch.zeros(B, n, c.embed_width))
        model.loss(torch.zeros(B, c.text_length, dtype=torch.int64), z, z, chance).backward()

    return Case((model,), run)


def decoder_case(c: DecoderConfig, words: int) -> Case:
    """unCLIP's decoder, on captions of so many tokens."""
    model = Decoder(c)

    def run(B: int) -> None:
        x, z, yes = torch.zeros(B, *c.shape), torch.zeros(B, c.embed_width), torch.ones(B).bool()
        told = Conditions(z, z[:, 0], torch.zeros(B, words, c.word_width), z, yes, yes)
        model.loss(x, told, noise=x, t=torch.zeros(B)).backward()

    return Case((model,), run)


def upsampler_case(c: UpsamplerConfig) -> Case:
    """unCLIP's up-sampler."""
    model = Upsampler(c)

    def run(B: int) -> None:
        x, small = torch.zeros(B, 3, c.image_size, c.image_size), c.small_size
        model.loss(x, torch.zeros(B, 3, small, small), noise=x, t=torch.zeros(B)).backward()

    return Case((model,), run)


def vqgan_case(c: VQGANConfig, judge: PatchDiscriminator) -> Case:
    """VQGAN and its discriminator, both phases of the game; without the distances to codes, 2 K C
    FLOPs each, since the meta device knows no autocast to switch off there."""
    model = VQGAN(c)

    def run(B: int) -> None:
        images = torch.zeros(B, 3, c.image_size, c.image_size)
        decoded, codes, _ = model(images, quantize=False)
        judge.requires_grad_(False)
        l1 = F.l1_loss(decoded, images)
        term, weight = weigh(l1, generator_loss(judge(decoded)), decoded, model.last_layer)
        (l1 + codes.loss + weight * term).backward()
        judge.requires_grad_(True)
        hinge_loss(*judge(torch.cat([images, decoded.detach()])).chunk(2)).backward()

    return Case((model, judge), run)


def game_flops(model: VQGAN, B: int = 1) -> float:
    """What λ adds to the sum over layers: two more gradients of the decoder's last weights."""
    side = model.config.image_size // model.config.patch
    return 2 * 2 * model.last_layer.numel() * B * side**2


# ---- the tables

CLIP_B32 = CLIPConfig(
    image_size=224, patch_size=32, vision_width=768, vision_depth=12, vision_heads=12,
    vocab_size=49408, text_length=77, text_width=512, text_depth=12, text_heads=8, embed_width=512,
)  # fmt: skip
DALLE_12B = DALLEConfig(
    vocab_size=16384, text_length=256, grid=32, codes=(8192,), width=3968, depth=64, heads=62
)
VQGAN_F16 = VQGANConfig(
    image_size=256, channels=128, multipliers=(1, 1, 2, 2, 4), depth=2, decoder_depth=3,
    attention=(16,), middle_attention=True, codes=(1024,), code_width=256, latent_width=256,
)  # fmt: skip
CODES = VQGANPriorConfig(grid=16, codes=16384, classes=1000, width=1536, depth=48, heads=24)
PRIOR = PriorConfig(
    width=2048, depth=24, heads=32, vocab_size=49408, text_length=77, embed_width=768
)
DECODER = DecoderConfig(
    image_size=64, patch=1, channels=512, multipliers=(1, 2, 3, 4), depth=3, attention=(32, 16, 8),
    width=2048, embed_width=768, word_width=768,
)  # fmt: skip
UPSAMPLER = UpsamplerConfig(
    image_size=256, small_size=64, patch=1, channels=320, multipliers=(1, 2, 3, 4), depth=3,
    width=1280,
)  # fmt: skip


def costs() -> Iterator[tuple[str, Cost, Cost]]:
    """Each task at a paper's size: by formula and by count."""
    with torch.device("meta"):
        cases = {
            "clip ViT-B/32": (clip_cost(CLIP_B32), clip_case(CLIP_B32)),
            "vqgan f16, 256 pixels": (
                None, vqgan_case(VQGAN_F16, PatchDiscriminator(channels=64, depth=3, refine=True))
            ),
            "vqgan-prior, 48 layers": (vqgan_prior_cost(CODES), vqgan_prior_case(CODES)),
            "dalle, 64 layers": (dalle_cost(DALLE_12B), dalle_case(DALLE_12B)),
            "prior, 24 layers": (prior_cost(PRIOR), prior_case(PRIOR)),
            "decoder, 64 pixels": (None, decoder_case(DECODER, 77)),
            "upsampler to 256 pixels": (None, upsampler_case(UPSAMPLER)),
        }  # fmt: skip
        for name, (formula, case) in cases.items():
            parameters = sum(p.numel() for net in case.nets for p in net.parameters())
            with by_layers(*case.nets) as found:
                counted = count_flops(lambda run=case.run: run(1))
            by_sum = found[0] + (game_flops(case.nets[0]) if name.startswith("vqgan f") else 0)
            yield name, formula or Cost(parameters, by_sum), Cost(parameters, counted)


class Plan(NamedTuple):
    """A training on many GPUs: so many samples, in batches of so many."""

    name: str
    cost: Cost
    kept: float  # bytes a sample
    samples: float
    batch: int
    N: int  # GPUs
    n: int = 1  # among how many of them weights, gradients and moments are sharded; 1: DDP
    layer: int = 0  # parameters of the largest piece that is gathered at a time
    w: int = 4  # bytes of a gathered weight; 2: cast before, 4: by autocast, behind it
    shared: int = 0  # E: numbers of the two embeddings of a sample that all others see


def column(p: Plan) -> dict[str, str]:
    """What it takes, a line each."""
    P, b, hours = p.cost.parameters, p.batch // p.N, p.samples * p.cost.flops / SHARE / PEAK / 3600
    # Autocast's copies of the weights in bfloat16 wait for the backward pass, sharded or not.
    memory = 16 * P / p.n + (2 * P if p.w == 4 else 0) + 2 * p.w * p.layer + b * p.kept
    inside = (p.n - 1) / p.n * (2 * p.w + 4) * P  # gather for each pass, scatter the gradients
    groups = p.N // p.n
    outside = 2 * (groups - 1) / groups * 4 * P / p.n  # a ring sums the gradients
    outside += (8 * p.shared + 2 * 8 * p.shared) * p.batch  # CLIP: gather, and sum their gradients
    if p.n > NODE:
        inside, outside = 0.0, outside + inside
    compute, network = b * p.cost.flops / SHARE / PEAK, inside / LINK + outside / WIRE
    slower = max(compute, network)
    what = "memory: does not fit" if memory > HOLDS else (
        "the network" if network > compute else "products of matrices"
    )  # fmt: skip
    return {
        "": p.name, "GPUs": f"{p.N}", "samples a GPU and step": f"{b}",
        "FLOPs in all": f"{p.samples * p.cost.flops:.2g}", "GPU hours of products": f"{hours:,.0f}",
        "memory a GPU, GB": f"{memory / 1e9:.3g}",
        "GB sent a GPU and step: in a node, out of it": f"{inside / 1e9:.3g}, {outside / 1e9:.3g}",
        "ms a step: products, network": f"{1000 * compute:.3g}, {1000 * network:.3g}",
        "binds": what,
        "days, if both go on at once": f"{hours * slower / compute / p.N / 24:.2g}",
    }  # fmt: skip


def plans() -> list[Plan]:
    """CLIP on 400 million pairs, 32 times; DALL·E's 430,000 steps of 1,024."""
    c, d = CLIP_B32, DALLE_12B
    pair = kept(c.vision_depth, c.vision_width, (c.image_size // c.patch_size) ** 2 + 1,
                c.vision_heads, bfloat16=True)  # fmt: skip
    pair += kept(c.text_depth, c.text_width, c.text_length, c.text_heads, bfloat16=True)
    stream = kept(d.depth, d.width, d.text_length + d.image_length, d.heads, bfloat16=True)
    clip = Plan("CLIP", clip_cost(c), pair, 32 * 400e6, 32768, 64, shared=c.embed_width)
    dalle = Plan("DALL·E, DDP", dalle_cost(d), stream, 430_000 * 1024, 1024, 1024)
    layer = 12 * d.width**2 + 13 * d.width
    node = dalle._replace(name="sharded in each node", n=NODE, layer=layer)
    return [
        clip, clip._replace(N=256), dalle,
        dalle._replace(name="sharded over all", n=1024, layer=layer),
        node._replace(N=512), node._replace(name="and cast before", N=256, w=2),
    ]  # fmt: skip


def cost_table() -> list[str]:
    """What a sample of each task costs, in Markdown."""
    lines = ["| task | parameters: formula, count | FLOPs a sample: formula, count |",
             "| --- | --- | --- |"]  # fmt: skip
    for name, formula, count in costs():
        lines.append(f"| {name} | {formula.parameters:.5g}, {count.parameters:.5g} "
                     f"| {formula.flops:.4g}, {count.flops:.4g} |")  # fmt: skip
    return lines


def plan_table() -> list[str]:
    """What the large trainings take, in Markdown."""
    columns, lines = [column(plan) for plan in plans()], []
    for key in columns[0]:
        lines.append(f"| {' | '.join([key, *(c[key] for c in columns)])} |")
        if not key:
            lines.append("|" + " --- |" * (len(columns) + 1))
    return lines


def main() -> None:
    """Print both tables."""
    print("\n".join([*cost_table(), "", *plan_table()]))


if __name__ == "__main__":
    main()
