"""CLIP checkpoints as Hugging Face's `save_pretrained` writes them.

    config.json          activation, heads, epsilons, end token: what shapes cannot tell
    model.safetensors    vision_model.…, text_model.…, visual_projection, text_projection

config.json leaves out what is at its default, so the defaults are here. A folder, a file in one,
or a state dict in; our CLIP out. Read `naming.py` before.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minimodal.clip import CLIP, CLIPConfig
from minimodal.errors import UserError
from minimodal.pretrained.beside import look
from minimodal.pretrained.files import read_files, read_json, read_state
from minimodal.pretrained.naming import (
    BlockNames,
    Tensors,
    fill_clip,
    grid_size,
    heads_of,
    read_pictures,
)

VISION = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT = {
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}


def block_names(prefix: str) -> BlockNames:
    """The parts of a block as Hugging Face calls them."""
    attention = f"{prefix}.self_attn"
    return BlockNames(
        norm1=f"{prefix}.layer_norm1",
        qkv=tuple(f"{attention}.{name}_proj" for name in "qkv"),
        proj=f"{attention}.out_proj",
        norm2=f"{prefix}.layer_norm2",
        fc=f"{prefix}.mlp.fc1",
        out=f"{prefix}.mlp.fc2",
    )


def tower(config: dict[str, Any] | None, name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """A tower's settings; old files state them a second time as NAME_dict, which counts more.

    Without any configuration the heads stay unstated.
    """
    if not config:
        return {**defaults, "num_attention_heads": None}
    settings = {**defaults, **(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}
    if settings["hidden_act"] not in ("gelu", "quick_gelu"):
        raise UserError(
            f"{name}: hidden_act {settings['hidden_act']!r} is neither gelu nor quick_gelu"
        )
    return settings


def read_vision(tensors: Tensors, settings: dict[str, Any]) -> tuple[dict, dict[str, Any]]:
    """The image tower: weights under our names, and its part of the configuration."""
    source, ours, theirs = tensors.source, "image_encoder", "vision_model"
    width, _, patch, _ = tensors.shape(f"{theirs}.embeddings.patch_embedding.weight", 4)
    positions, _ = tensors.shape(f"{theirs}.embeddings.position_embedding.weight", 2)
    hidden, _ = tensors.shape(f"{theirs}.encoder.layers.0.mlp.fc1.weight", 2)
    sizes = {
        "image_size": grid_size(positions, source=source) * patch,
        "patch_size": patch,
        "vision_width": width,
        "vision_depth": tensors.depth(f"{theirs}.encoder.layers"),
        "vision_heads": heads_of(width, settings["num_attention_heads"], source=source),
        "vision_mlp_ratio": hidden / width,
        "vision_activation": settings["hidden_act"],
        "vision_norm_eps": settings["layer_norm_eps"],
    }
    found = {
        f"{ours}.patches.weight": tensors.take(f"{theirs}.embeddings.patch_embedding.weight"),
        f"{ours}.class_token": tensors.take(f"{theirs}.embeddings.class_embedding").flatten(),
        f"{ours}.positions": tensors.take(f"{theirs}.embeddings.position_embedding.weight"),
    }
    found |= tensors.linear(f"{ours}.norm_in", f"{theirs}.pre_layrnorm")  # their spelling
    found |= tensors.linear(f"{ours}.norm_out", f"{theirs}.post_layernorm")
    found |= tensors.linear(f"{ours}.projection", "visual_projection", bias=False)
    for n in range(sizes["vision_depth"]):
        block = block_names(f"{theirs}.encoder.layers.{n}")
        found |= tensors.block(f"{ours}.transformer.blocks.{n}", block)
    return found, sizes


def read_text(tensors: Tensors, settings: dict[str, Any]) -> tuple[dict, dict[str, Any]]:
    """The text tower: weights under our names, and its part of the configuration."""
    ours, theirs = "text_encoder", "text_model"
    vocab, width = tensors.shape(f"{theirs}.embeddings.token_embedding.weight", 2)
    hidden, _ = tensors.shape(f"{theirs}.encoder.layers.0.mlp.fc1.weight", 2)
    # The first configurations on the Hub say 2 where the end token was the largest id.
    largest, end = settings["eos_token_id"] == 2, settings["eos_token_id"]
    if type(end) is not int or end >= vocab:
        print(
            f"{tensors.source}: its vocabulary of {vocab} has no end token {end}; taken to be the "
            f"last, {vocab - 1}: where that is wrong, say eos_token_id in a config.json beside it",
            file=sys.stderr,
        )
        end = vocab - 1
    sizes = {
        "vocab_size": vocab,
        "text_length": tensors.shape(f"{theirs}.embeddings.position_embedding.weight", 2)[0],
        "text_width": width,
        "text_depth": tensors.depth(f"{theirs}.encoder.layers"),
        "text_heads": heads_of(width, settings["num_attention_heads"], source=tensors.source),
        "text_mlp_ratio": hidden / width,
        "text_activation": settings["hidden_act"],
        "text_norm_eps": settings["layer_norm_eps"],
        "embed_width": tensors.shape("text_projection.weight", 2)[0],
        "end_id": vocab - 1 if largest else end,
        "pooling": "largest" if largest else "end",
    }
    found = {
        f"{ours}.tokens.weight": tensors.take(f"{theirs}.embeddings.token_embedding.weight"),
        f"{ours}.positions": tensors.take(f"{theirs}.embeddings.position_embedding.weight"),
    }
    found |= tensors.linear(f"{ours}.norm_out", f"{theirs}.final_layer_norm")
    found |= tensors.linear(f"{ours}.projection", "text_projection", bias=False)
    for n in range(sizes["text_depth"]):
        block = block_names(f"{theirs}.encoder.layers.{n}")
        found |= tensors.block(f"{ours}.transformer.blocks.{n}", block)
    return found, sizes


def convert(
    state: Mapping[str, Tensor], config: dict[str, Any] | None, *, source: str,
    pictures: dict[str, Any] | None = None, activation: str | None = None,
) -> CLIP:  # fmt: skip
    """A CLIP from tensors with Hugging Face's names and the content of config.json.

    pictures: the content of preprocessor_config.json
    activation: gelu or quick_gelu, whatever the configuration says
    """
    tensors = Tensors(dict(state), source=source)
    model_type = (config or {}).get("model_type", "clip")
    if model_type != "clip":
        raise UserError(f"{source}: its config.json is of a {model_type}; only a clip can be read")
    if not config:
        print(
            f"{source}: no config.json says how it computes; taken to have "
            f"{activation or 'quick_gelu'}, heads of 64 and CLIP's end token; where that is wrong, "
            "put its config.json beside it",
            file=sys.stderr,
        )
    forced = {"hidden_act": activation} if activation else {}
    found, sizes = read_vision(tensors, tower(config, "vision_config", VISION) | forced)
    words, more = read_text(tensors, tower(config, "text_config", TEXT) | forced)
    found |= words | {"logit_scale": tensors.take("logit_scale").reshape(1)}
    tensors.finish(ignore=("position_ids",))
    reading = read_pictures(pictures or {}, size=sizes["image_size"], source=source)
    return fill_clip(CLIPConfig(**sizes, **more, preprocessing=reading), found, source=source)


def load_huggingface_clip(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    config: str | Path | dict[str, Any] | None = None,
) -> CLIP:
    """A CLIP of Hugging Face: a folder, a file with config.json beside it, or a state dict.

    config: the content of config.json, or its path, where it is not beside the weights; without
    one it is taken to have heads of 64, QuickGELU and CLIP's own vocabulary, which is said
    """
    if isinstance(config, (str, Path)):
        config = read_json(Path(config))
    if isinstance(path_or_state_dict, Mapping):
        state, source = read_state(path_or_state_dict)
        return convert(state, config, source=source)
    beside, source = look(Path(path_or_state_dict)), str(path_or_state_dict)
    return convert(
        read_files(beside.weights), config or beside.huggingface, source=source,
        pictures=beside.pictures,
    )  # fmt: skip
