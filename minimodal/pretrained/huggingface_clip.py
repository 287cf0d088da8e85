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

from minimodal.clip import CLIP
from minimodal.errors import UserError
from minimodal.pretrained.beside import look
from minimodal.pretrained.files import read_json, read_state, read_tensors
from minimodal.pretrained.naming import BlockNames, Names, Tensors, fill_clip, read_tower

BOTH = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
DEFAULTS = {
    "vision": {**BOTH, "num_attention_heads": 12},
    "text": {**BOTH, "num_attention_heads": 8, "eos_token_id": 49407},
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


def names(tower: str, inputs: str, norm_out: str, **more: str) -> Names:
    """The parts of a tower as Hugging Face calls them."""
    place, projection = f"{tower}_model", {"vision": "visual"}.get(tower, tower)
    return Names(
        f"{place}.embeddings.{inputs}.weight", f"{place}.embeddings.position_embedding.weight",
        f"{place}.encoder.layers", block_names, f"{place}.{norm_out}",
        f"{projection}_projection.weight", turned=False, **more,
    )  # fmt: skip


NAMES = {
    "vision": names(
        "vision", "patch_embedding", "post_layernorm", norm_in="vision_model.pre_layrnorm",
        class_token="vision_model.embeddings.class_embedding",  # the norm has their spelling
    ),
    "text": names("text", "token_embedding", "final_layer_norm"),
}  # fmt: skip


def read(
    tensors: Tensors, name: str, config: dict[str, Any], activation: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A tower: weights under our names, and its part of the configuration.

    Old files state its settings a second time as NAME_dict, which counts more; without any
    configuration the heads stay unstated.
    """
    said = {**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}
    settings = {**DEFAULTS[name], **(said if config else {"num_attention_heads": None})}
    act = activation or settings["hidden_act"]
    if act not in ("gelu", "quick_gelu"):
        raise UserError(f"{name}_config: hidden_act {act!r} is neither gelu nor quick_gelu")
    found, sizes = read_tower(tensors, NAMES[name], heads=settings["num_attention_heads"])
    sizes |= {f"{name}_activation": act, f"{name}_norm_eps": settings["layer_norm_eps"]}
    # The first configurations on the Hub say 2 where the end token was the largest id.
    end = settings.get("eos_token_id", 2)
    if end != 2 and type(end) is int and end < sizes["vocab_size"]:
        sizes |= {"end_id": end, "pooling": "end"}
    elif end != 2 and config:
        print(
            f"{tensors.source}: its vocabulary of {sizes['vocab_size']} has no end token {end}; "
            f"taken to be the last, {sizes['end_id']}: where that is wrong, say eos_token_id in a "
            "config.json beside it",
            file=sys.stderr,
        )
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
    found, sizes = read(tensors, "vision", config or {}, activation)
    words, more = read(tensors, "text", config or {}, activation)
    found |= words | {"logit_scale": tensors.take("logit_scale").reshape(1)}
    tensors.finish(ignore=("position_ids",))
    if not config:
        print(
            f"{source}: no config.json says how it computes; taken to have "
            f"{more['text_activation']}, heads of 64 and end token {more['end_id']} of "
            f"{more['vocab_size']}; where that is wrong, put its config.json beside it, or give "
            "--activation gelu or quick_gelu",
            file=sys.stderr,
        )
    return fill_clip({**sizes, **more}, found, source=source, pictures=pictures or {})


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
        read_tensors(*beside.weights), config or beside.huggingface, source=source,
        pictures=beside.pictures,
    )  # fmt: skip
