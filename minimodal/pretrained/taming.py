"""VQGAN checkpoints of taming-transformers, the original: its autoencoders and discriminators.

    encoder.down.L.block.B…, encoder.mid.…, decoder.up.L.block.B…      L: level, B: block
    quant_conv, quantize.embedding, post_quant_conv                     around the codebook
    quantize.proj, quantize.embed                                       in its Gumbel models
    loss.discriminator.main.N…                                          the patch discriminator

In checkpoints of its transformers all of these begin with `first_stage_model.`, and the
transformer's own names with `transformer.`. Sizes are read off the shapes; what those cannot tell
is β, and the resolution that pictures had in training: weights work at any, but data are opened and
scored at this one. A file or a state dict in, our VQGAN out, equal to the original to float32's
rounding. Read `naming.py` and `minimodal/vqgan.py` before.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimodal.blocks.discriminator import PatchDiscriminator
from minimodal.errors import UserError
from minimodal.pretrained.beside import as_stated, read_beside
from minimodal.pretrained.naming import Tensors, fill
from minimodal.pretrained.stated import Stated
from minimodal.vqgan import VQGAN, VQGANConfig

Weights = dict[str, Tensor]
FIRST_STAGE, DISCRIMINATOR, AVERAGES = "first_stage_model.", "loss.discriminator.", "model_ema."
RESOLUTION = 256  # of the pictures in training, where nothing says it
# Kept by the original beside its weights: counters, averages of other quantizers, colours.
NOT_WEIGHTS = ("num_batches_tracked", "cluster_size", "embed_avg", "colorize")


def read_sizes(tensors: Tensors, stated: Stated) -> VQGANConfig:
    """The shape of a VQGAN that its tensors tell, checked against the configuration."""
    if "quantize.used" in tensors or stated.fields.get("remap") is not None:
        raise tensors.stranger("its codes are remapped (quantize.used): they have other numbers")
    channels, pixels = tensors.shape("encoder.conv_in.weight", 4)[:2]
    if (pixels, decoded := tensors.shape("decoder.conv_out.weight", 4)[0]) != (3, 3):
        raise tensors.stranger(f"it reads {pixels} channels and paints {decoded}, not RGB pictures")
    levels, depth = tensors.depth("encoder.down"), tensors.depth("encoder.down.0.block")
    firsts = [f"encoder.down.{n}.block.0.conv1.weight" for n in range(levels)]
    multipliers = [tensors.shape(name, 4)[0] / channels for name in firsts]
    if not levels or not depth or any(m != int(m) for m in multipliers):
        raise tensors.stranger(f"its widths are {multipliers} times {channels}")
    multipliers = [int(m) for m in multipliers]
    if "encoder.mid.attn_1.q.weight" not in tensors:
        raise tensors.stranger("it lacks the attention in the middle, encoder.mid.attn_1")
    attended = [n for n in range(levels) if f"encoder.down.{n}.attn.0.q.weight" in tensors]
    size = stated.integer("resolution", RESOLUTION, least=1)
    factor = 2 ** (levels - 1)
    if size % factor:
        raise UserError(f"{tensors.source}: resolution {size} is not a multiple of {factor}")
    latent_width = tensors.shape("decoder.conv_in.weight", 4)[1]
    if (written := tensors.shape("encoder.conv_out.weight", 4)[0]) != latent_width:
        raise tensors.stranger(f"it writes {written} channels and reads {latent_width} (double_z)")
    gumbel = "quantize.embed.weight" in tensors
    book = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    codes, code_width = tensors.shape(book, 2)
    found = {
        "ch": channels, "ch_mult": multipliers, "num_res_blocks": depth, "double_z": False,
        "z_channels": latent_width, "in_channels": 3, "out_ch": 3, "n_embed": codes,
        "embed_dim": code_width,
    }  # fmt: skip
    if levels > 1:
        found["resamp_with_conv"] = "encoder.down.0.downsample.conv.weight" in tensors
    stated.check(found)
    if (resolutions := stated.integers("attn_resolutions")) is not None:
        name = f"attn_resolutions (at resolution {size}: attention at levels)"
        said = {name: [n for n in range(levels) if size // 2**n in resolutions]}
        Stated(said, source=tensors.source, file=stated.file).check({name: attended})
    return VQGANConfig(
        image_size=size, channels=channels, multipliers=tuple(multipliers), depth=depth,
        decoder_depth=depth + 1, attention=tuple(size // 2**n for n in attended),
        middle_attention=True, latent_width=latent_width, codes=(codes,), code_width=code_width,
        quantizer="gumbel" if gumbel else "gradient", beta=stated.number("beta", 0.25),
    )  # fmt: skip


def residual(tensors: Tensors, ours: str, theirs: str) -> Weights:
    """One residual block."""
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
    if f"{theirs}.nin_shortcut.weight" in tensors:
        names["shortcut"] = "nin_shortcut"
    return tensors.linears(ours, theirs, names)


def attention(tensors: Tensors, ours: str, theirs: str) -> Weights:
    """One attention over pixels."""
    names = {name: name for name in ("norm", "q", "k", "v")} | {"proj": "proj_out"}
    return tensors.linears(ours, theirs, names)


def half(tensors: Tensors, name: str, config: VQGANConfig) -> Weights:
    """The encoder or the decoder: the original's levels become one row of layers."""
    levels = range(len(config.multipliers))
    middle = [(residual, "mid.block_1"), (attention, "mid.attn_1"), (residual, "mid.block_2")]
    row = middle if name == "decoder" else []
    down, blocks = (True, config.depth) if name == "encoder" else (False, config.decoder_depth)
    for n in levels if down else reversed(levels):
        level = f"{'down' if down else 'up'}.{n}"
        for block in range(blocks):
            row.append((residual, f"{level}.block.{block}"))
            if config.image_size // 2**n in config.attention:
                row.append((attention, f"{level}.attn.{block}"))
        if n < levels[-1] if down else n > 0:
            row.append((Tensors.linear, f"{level}.{'downsample' if down else 'upsample'}.conv"))
    row += middle if name == "encoder" else []
    found: Weights = {}
    for number, (read, theirs) in enumerate(row):
        ours = f"{name}.layers.{number}" + (".conv" if theirs.endswith(".conv") else "")
        found |= read(tensors, ours, f"{name}.{theirs}")
    return found | tensors.linears(name, name, {n: n for n in ("conv_in", "norm_out", "conv_out")})


def read_quantizer(tensors: Tensors, config: VQGANConfig) -> Weights:
    """The codebook and the 1x1 convolutions around it."""
    found = tensors.linear("to_codes", "quant_conv")
    found |= tensors.linear("from_codes", "post_quant_conv")
    if config.quantizer == "gumbel":
        found |= tensors.linear("quantizer.scores", "quantize.proj")
        found["quantizer.codes"] = tensors.take("quantize.embed.weight")
    else:
        found["quantizer.codes"] = tensors.take("quantize.embedding.weight")
    # How often each code was used is not in the file: evenly, as far as anyone knows.
    return found | {"quantizer.counts": torch.ones(config.codes[0])}


def build_discriminator(state: Weights, *, source: str) -> PatchDiscriminator:
    """The patch discriminator that these weights are of."""
    tensors = Tensors(state, source=source, what="patch discriminator")
    channels = tensors.shape("main.0.weight", 4)[0]
    if "main.3.running_mean" not in tensors:
        raise tensors.stranger("its norms are not batch norms")
    # Layer 0, then a convolution and a norm at 2 and 3, 5 and 6, …, and a last convolution.
    depth = (len({name.split(".")[1] for name in state}) - 2) // 2
    found = tensors.linear("layers.0", "main.0")
    for n in range(3, 3 * depth + 1, 3):
        found |= tensors.linear(f"layers.{n - 1}", f"main.{n - 1}", bias=False)
        found |= tensors.batch_norm(f"layers.{n}", f"main.{n}")
    found |= tensors.linear(f"layers.{3 * depth + 2}", f"main.{3 * depth + 2}")
    tensors.finish(ignore=NOT_WEIGHTS)
    return fill(
        lambda: PatchDiscriminator(channels=channels, depth=depth, refine=True, norm="batch"),
        found,
        source=source,
    )


def is_taming(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of this file."""
    inside = ("quantize.embedding.weight", "quantize.embed.weight")
    return any(name.removeprefix(FIRST_STAGE) in inside for name in tensors)


def convert(state: Weights, config: Any, *, source: str) -> VQGAN:
    """A VQGAN from tensors with the original's names, and its configuration or None."""
    # It may be the whole (`model: params: …`), the parameters alone, or `ddconfig` alone.
    stated = as_stated(config, source=source)
    for key in ("model", "params", "first_stage_config", "first_stage", "params"):
        if key in stated.fields:
            stated = stated.part(key, filled=True)
    stated.fields |= stated.part("ddconfig", filled=True).fields
    # It may be a part of a transformer's checkpoint.
    inner = {n.removeprefix(FIRST_STAGE): t for n, t in state.items() if n.startswith(FIRST_STAGE)}
    state = inner or state
    judge = {n.removeprefix(DISCRIMINATOR): t for n, t in state.items() if DISCRIMINATOR in n}
    if any(name.startswith(AVERAGES) for name in state):
        # As latent diffusion does, whose models these are, when it encodes and decodes.
        print(
            f"{source}: its trained weights are taken; not their averages, {AVERAGES}…, which it "
            "holds too",
            file=sys.stderr,
        )
    kept = {n: t for n, t in state.items() if not n.startswith(("loss.", AVERAGES))}
    tensors = Tensors(kept, source=source, what="VQGAN")
    sizes = read_sizes(tensors, stated)
    found = half(tensors, "encoder", sizes) | half(tensors, "decoder", sizes)
    found |= read_quantizer(tensors, sizes)
    tensors.finish(ignore=NOT_WEIGHTS)
    vqgan = fill(lambda: VQGAN(sizes), found, source=source)
    vqgan.discriminator = None
    if judge := {name: tensor for name, tensor in judge.items() if name.startswith("main.")}:
        # The autoencoder works without it, so what does not fit is said and left out.
        try:
            vqgan.discriminator = build_discriminator(judge, source=f"{source}: its discriminator")
        except UserError as reason:
            print(f"{reason}; it is left out", file=sys.stderr)
    vqgan.run = {"kind": "vqgan", "data": None, "source": source}
    return vqgan


def load_taming_vqgan(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    config: str | Path | Mapping[str, Any] | None = None,
) -> VQGAN:
    """A VQGAN of taming-transformers from a Lightning .ckpt, a .pt, safetensors or a state dict.

    `vqgan.discriminator` is its patch discriminator where the checkpoint holds one, else None.

    config: the original's configuration (`ddconfig`, `n_embed`, …) as a dict, a JSON or a YAML
    file; it is checked against the weights
    """
    state, source, _ = read_beside(path_or_state_dict)
    return convert(state, config, source=source)
