"""Transformers over VQGAN's codes of taming-transformers (its Net2NetTransformer, a minGPT).

    transformer.tok_emb, transformer.pos_emb, transformer.blocks.N.…, transformer.ln_f,
    transformer.head; and the VQGAN that made the codes under first_stage_model.

Unconditional and class-conditional models: one token ahead of the codes, from a table that it
shares with them. Shapes do not tell how many heads there are; where no configuration does, they are
taken to be 64 wide, and it is said. Other conditions (pictures, places) and other orders of the
codes are refused by name.

A file or a state dict in, our VQGANPrior out, its VQGAN attached. Read `taming.py` before.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimodal.blocks.painter import Painter
from minimodal.errors import UserError
from minimodal.pretrained import taming
from minimodal.pretrained.beside import as_stated, read_beside
from minimodal.pretrained.naming import BlockNames, Tensors, fill, heads_of
from minimodal.pretrained.stated import Stated
from minimodal.vqgan_prior import VQGANPrior, VQGANPriorConfig

OWN = "transformer."
BLOCK = BlockNames("ln1", ("attn.query", "attn.key", "attn.value"), "attn.proj", "ln2", "mlp.0",
                   "mlp.2")  # fmt: skip
ONE_TOKEN = ("None", "Labelator", "SOSProvider", "__is_unconditional__")  # a class, or always one


def is_transformer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of this file."""
    return f"{OWN}tok_emb.weight" in tensors


def part(config: Stated, name: str) -> Stated:
    """A part of the original's configuration, which calls it X or X_config with params."""
    inner = config.part(name, f"{name}_config", filled=True)
    return inner.part("params", filled=True) if "params" in inner.fields else inner


def check_causal(tensors: Tensors) -> None:
    """Refuse masks that let a prefix look ahead (n_unmasked), which ours does not."""
    if (name := "blocks.0.attn.mask") in tensors:
        mask = tensors.get(name).reshape(tensors.get(name).shape[-2:])
        if not torch.equal(mask != 0, torch.ones_like(mask).tril() != 0):
            raise tensors.stranger("its attention is not causal everywhere (n_unmasked)")


def check_order(state: dict[str, Tensor], config: Stated, *, source: str) -> None:
    """Refuse models that read the codes in another order than row by row."""
    target = config.part("permuter", "permuter_config").fields.get("target", "Identity")
    moved = [name for name in state if name.startswith("permuter.")]
    if moved or str(target).split(".")[-1] != "Identity":
        what = moved[0] if moved else f"permuter_config {target!s:.60}"
        raise UserError(f"{source}: its codes are not read row by row ({what}), which ours are")


def read_condition(
    state: dict[str, Tensor], config: Stated, *, rows: int, source: str
) -> tuple[int, int]:
    """The one token ahead of the codes; refuse models that are told anything else.

    returns: how many classes there are, and the row that stands ahead where there are none
    """
    said = config.fields.get("cond_stage", config.fields.get("cond_stage_config"))
    kind = said.get("target") if isinstance(said, Mapping) else said
    kind = str(kind).split(".")[-1][:60]
    kind = "coord" if config.fields.get("cond_stage_key") == "coord" else kind
    weights = [name for name in state if name.startswith("cond_stage_model.")]
    if weights or kind not in ONE_TOKEN:
        told = "" if weights else f" by cond_stage of its {config.file}"
        raise UserError(
            f"{source}: it is conditioned on more than a class ({[*weights, kind][0]}){told}; only "
            "models with one token ahead of the codes can be read"
        )
    if kind == "__is_unconditional__" or config.choice("unconditional", False, True):
        stated = Stated({}, source=source)
    else:
        stated = part(config, "cond_stage")
    classes, sos = stated.integer("n_classes", 0), config.integer("sos_token", 0)
    if classes > rows:
        raise stated.wrong("n_classes", f"{rows} or fewer, the rows of its table")
    if sos >= rows:
        raise config.wrong("sos_token", f"less than {rows}, the rows of its table")
    return classes, sos


def read_heads(stated: Stated, width: int) -> int:
    """The heads that the configuration says; shapes do not tell them."""
    heads = heads_of(width, stated, "n_head")
    if "n_head" not in stated.fields:
        print(
            f"{stated.source}: nothing says how many heads it has; taken to be {heads}, each "
            f"{width // heads} wide: where that is wrong, put "
            '{"transformer": {"n_head": N}} into a config.json beside it',
            file=sys.stderr,
        )
    return heads


def convert(state: dict[str, Tensor], config: Any, *, source: str) -> VQGANPrior:
    """A prior from tensors with the original's names, and its configuration or None."""
    config = as_stated(config, source=source)
    for name in ("model", "params"):
        config = config.part(name, filled=True) if name in config.fields else config
    check_order(state, config, source=source)
    inside = {n.removeprefix(OWN): t for n, t in state.items() if n.startswith(OWN)}
    tensors = Tensors(inside, source=source, what="transformer over codes")
    rows, width = tensors.shape("tok_emb.weight", 2)
    length, depth = tensors.shape("pos_emb", 3)[1], tensors.depth("blocks")
    stated = part(config, "transformer")
    stated.check({"vocab_size": rows, "block_size": length, "n_layer": depth, "n_embd": width})
    if stated.integer("n_unmasked", 0):
        raise stated.wrong("n_unmasked", "0: attention is causal everywhere here")
    check_causal(tensors)
    grid = math.isqrt(length)
    if grid**2 != length:
        raise tensors.stranger(
            f"its {length} positions are no square grid of codes; only models with one token "
            "ahead of the codes (a class, or none) can be read"
        )
    vqgan = None
    if first := {n: t for n, t in state.items() if n.startswith(taming.FIRST_STAGE)}:
        vqgan = taming.convert(first, part(config, "first_stage"), source=source)
    codes = vqgan.quantizer.size if vqgan is not None else rows
    if codes > rows:
        raise UserError(f"{source}: its VQGAN has {codes} codes and its transformer knows {rows}")
    classes, sos = read_condition(state, config, rows=rows, source=source)
    sizes = VQGANPriorConfig(
        grid=grid, codes=codes, classes=classes, width=width, depth=depth, pkeep=1.0,
        heads=read_heads(stated, width), shared_rows=rows, sos=sos,
    )  # fmt: skip
    weights = {
        "tokens.weight": tensors.take("tok_emb.weight"),
        "positions": tensors.take("pos_emb")[0],
        "head.weight": tensors.take("head.weight"),
    }
    weights |= tensors.linear("norm_out", "ln_f")
    for n in range(depth):
        weights |= tensors.block(f"transformer.blocks.{n}", f"blocks.{n}", BLOCK)
    tensors.finish(ignore=("attn.mask",))
    prior = fill(lambda: VQGANPrior(sizes), weights, source=source)
    prior.class_names = [str(n) for n in range(classes)]
    if vqgan is not None:
        prior.painter = Painter(vqgan)
    prior.run = {"kind": "vqgan-prior", "data": None, "source": source, "model": {}}
    return prior


def load_taming_transformer(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    config: str | Path | Mapping[str, Any] | None = None,
) -> VQGANPrior:
    """A transformer of taming-transformers from a .ckpt, a .pt, safetensors or a state dict.

    config: the original's configuration (transformer, first_stage, cond_stage) as a dict, a JSON or
    a YAML file; without it heads are taken to be 64 wide, which is said, and classes have no names
    """
    state, source, _ = read_beside(path_or_state_dict)
    if not is_transformer(state):
        raise UserError(f"{source} is no transformer over codes: it lacks {OWN}tok_emb.weight")
    return convert(state, config, source=source)
