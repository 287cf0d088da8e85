"""Write tests/data/vqgan_taming: a tiny checkpoint of taming-transformers and what it computes.

python benchmarks/make_vqgan_fixtures.py [--out tests/data/vqgan_taming]

Needs taming-transformers-rom1504 and its dependencies; the tests need only what this writes. The
checkpoint holds a class-conditional transformer, its VQGAN and the discriminator, in half
precision, wrapped as Lightning wraps it: with an object of one of Lightning's classes beside the
weights. Every weight is random, nothing is trained.
"""

import argparse
import json
import sys
import types
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import nn

# Newer versions of transformers lack a function that the original imports and does not need here.
transformers.top_k_top_p_filtering = None
from taming.modules.transformer.mingpt import GPT  # noqa: E402

CONFIG = {
    "transformer": {"vocab_size": 16, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 32},
    "first_stage": {
        "ddconfig": {
            "double_z": False, "z_channels": 8, "resolution": 8, "in_channels": 3, "out_ch": 3,
            "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [4],
            "dropout": 0.0,
        },
        "n_embed": 16,
        "embed_dim": 6,
    },
    "cond_stage": {"params": {"n_classes": 3}},
}  # fmt: skip


class ModelCheckpoint:
    """Stands for Lightning's class of this name."""

    __module__ = "pytorch_lightning"


def shaken(net: nn.Module, seed: int) -> nn.Module:
    """Random weights and statistics, exactly representable in half precision."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        if name.endswith(("mask", "num_batches_tracked")):
            continue
        draw = torch.randn(value.shape, generator=generator)
        size = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
        base = 1.0 if value.ndim == 1 and name.endswith(("weight", "var")) else 0.0
        value.data.copy_((base + size * draw).abs() if "var" in name else base + size * draw)
        value.data.copy_(value.data.half().float())
    return net.eval()


def main() -> None:
    """Make the parts, run them, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/data/vqgan_taming"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    stage = CONFIG["first_stage"]
    sizes = stage["ddconfig"]
    z, width, codes = sizes["z_channels"], stage["embed_dim"], stage["n_embed"]
    vqgan = nn.ModuleDict(
        {
            "encoder": Encoder(**sizes),
            "decoder": Decoder(**sizes),
            "quantize": VectorQuantizer2(codes, width, beta=0.25),
            "quant_conv": nn.Conv2d(z, width, 1),
            "post_quant_conv": nn.Conv2d(width, z, 1),
        }
    )
    shaken(vqgan, 0)
    judge = shaken(NLayerDiscriminator(3, 4, n_layers=1), 1)
    gpt = shaken(GPT(**CONFIG["transformer"]), 2)
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        latents = vqgan["quant_conv"](vqgan["encoder"](images))
        vectors, loss, (_, _, indices) = vqgan["quantize"](latents)
        pictures = vqgan["decoder"](vqgan["post_quant_conv"](vectors))
        flat = indices.view(2, -1)
        logits, _ = gpt(torch.cat([labels[:, None], flat], dim=1)[:, :-1])
        verdicts = judge(images)
    first = {f"first_stage_model.{k}": v for k, v in vqgan.state_dict().items()}
    first |= {f"first_stage_model.loss.discriminator.{k}": v for k, v in judge.state_dict().items()}
    state = first | {f"transformer.{k}": v for k, v in gpt.state_dict().items()}
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    library = types.ModuleType("pytorch_lightning")
    library.ModelCheckpoint = ModelCheckpoint
    sys.modules["pytorch_lightning"] = library
    wrapped = {"epoch": 1, "callbacks": {ModelCheckpoint: {"best": 0.5}}, "state_dict": state}
    torch.save(wrapped, out / "last.ckpt")
    found = {
        "images": images, "labels": labels, "latents": latents, "vectors": vectors, "loss": loss,
        "indices": flat.reshape(2, 4, 4), "pictures": pictures, "logits": logits,
        "verdicts": verdicts,
    }  # fmt: skip
    save_file({k: v.contiguous() for k, v in found.items()}, out / "io.safetensors")
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


if __name__ == "__main__":
    main()
