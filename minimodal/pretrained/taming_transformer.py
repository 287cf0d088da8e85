"""Transformers over VQGAN's codes of taming-transformers (its Net2NetTransformer, a minGPT).

    transformer.tok_emb, transformer.pos_emb, transformer.blocks.N.…, transformer.ln_f,
    transformer.head; and the VQGAN that made the codes under first_stage_model.

Unconditional and class-conditional models: one token ahead of the codes, from a table that it
shares with them. Shapes do not tell how many heads there are; where no configuration does, they are
taken to be 64 wide.

A file or a state dict in, our VQGANPrior out, its VQGAN attached. Read `taming.py` before.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimodal.errors import UserError
from minimodal.pretrained import taming
from minimodal.pretrained.files import read_json, read_tensors
from minimodal.pretrained.naming import BlockNames, Tensors, fill, heads_of
from minimodal.vqgan_prior import VQGANPrior, VQGANPriorConfig

OWN = "transformer."


def is_transformer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of this file."""
    return f"{OWN}tok_emb.weight" in tensors


def part(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A part of the original's configuration, which calls it X or X_config with params."""
    for name in names:
        inner = config.get(name) or config.get(f"{name}_config")
        if isinstance(inner, Mapping):
            params = inner.get("params", inner)
            return dict(params) if isinstance(params, Mapping) else {}
    return {}


def block_names(prefix: str) -> BlockNames:
    """How the original calls the parts of a block."""
    qkv = tuple(f"{prefix}.attn.{name}" for name in ("query", "key", "value"))
    return BlockNames(f"{prefix}.ln1", qkv, f"{prefix}.attn.proj", f"{prefix}.ln2",
                      f"{prefix}.mlp.0", f"{prefix}.mlp.2")  # fmt: skip


def check_causal(tensors: Tensors) -> None:
    """Refuse masks that let a prefix look ahead (n_unmasked), which ours does not."""
    name = "blocks.0.attn.mask"
    if name in tensors:
        mask = tensors.left[name].reshape(tensors.left[name].shape[-2:])
        if not torch.equal(mask != 0, torch.ones_like(mask).tril() != 0):
            raise tensors.stranger("its attention is not causal everywhere (n_unmasked)")


def convert(state: dict[str, Tensor], config: Any, *, source: str) -> VQGANPrior:
    """A prior from tensors with the original's names."""
    config = config or {}
    config = config.get("model", config)
    config = config.get("params", config)
    inside = {n.removeprefix(OWN): t for n, t in state.items() if n.startswith(OWN)}
    tensors = Tensors(inside, source=source, what="transformer over codes")
    rows, width = tensors.shape("tok_emb.weight", 2)
    length, depth = tensors.shape("pos_emb", 3)[1], tensors.depth("blocks")
    stated = part(config, "transformer")
    found = {"vocab_size": rows, "block_size": length, "n_layer": depth, "n_embd": width}
    taming.check_config(stated, found, source=source)
    check_causal(tensors)
    grid = math.isqrt(length)
    if grid**2 != length:
        raise tensors.stranger(
            f"its {length} positions are no square grid of codes; only models with one token "
            "ahead of the codes (a class, or none) can be read"
        )
    first = {n: t for n, t in state.items() if n.startswith(taming.FIRST_STAGE)}
    vqgan = None
    if first:
        stage = taming.flat_config({"first_stage": part(config, "first_stage")})
        vqgan = taming.convert(first, stage, source=source)
    codes = vqgan.quantizer.size if vqgan is not None else rows
    if codes > rows:
        raise UserError(f"{source}: its VQGAN has {codes} codes and its transformer knows {rows}")
    classes = part(config, "cond_stage").get("n_classes", 0)
    sizes = VQGANPriorConfig(
        grid=grid, codes=codes, classes=classes, width=width, depth=depth, pkeep=1.0,
        heads=heads_of(width, stated.get("n_head"), source=source), shared_rows=rows,
    )  # fmt: skip
    weights = {
        "tokens.weight": tensors.take("tok_emb.weight"),
        "positions": tensors.take("pos_emb")[0],
        "head.weight": tensors.take("head.weight"),
    }
    weights |= tensors.linear("norm_out", "ln_f")
    for n in range(depth):
        weights |= tensors.block(f"transformer.blocks.{n}", block_names(f"blocks.{n}"))
    tensors.finish(ignore=("attn.mask",))
    prior = fill(lambda: VQGANPrior(sizes), weights, source=source)
    prior.class_names = [str(n) for n in range(classes)]
    if vqgan is not None:
        prior.paint_with(vqgan)
    prior.run = {"kind": "vqgan-prior", "data": None, "source": source, "model": {}}
    return prior


def load_taming_transformer(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    config: str | Path | Mapping[str, Any] | None = None,
) -> VQGANPrior:
    """A transformer of taming-transformers from a .ckpt, a .pt, safetensors or a state dict.

    config: the original's configuration (transformer, first_stage, cond_stage) as a dict or a JSON
    file; without it heads are taken to be 64 wide and classes have no names
    """
    if isinstance(path_or_state_dict, Mapping):
        state, source = dict(path_or_state_dict), "this state dict"
    else:
        state, source = read_tensors(path_or_state_dict), str(path_or_state_dict)
    if not is_transformer(state):
        raise UserError(f"{source} is no transformer over codes: it lacks {OWN}tok_emb.weight")
    stated = read_json(Path(config)) if isinstance(config, (str, Path)) else config
    return convert(state, stated, source=source)
