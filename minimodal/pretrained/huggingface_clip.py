"""CLIP checkpoints as Hugging Face's `save_pretrained` writes them.

    config.json          activation, heads, epsilons, end token: what shapes cannot tell
    model.safetensors    vision_model.…, text_model.…, visual_projection, text_projection

config.json leaves out what is at its default, so the defaults are here. What it says of sizes has
to be what the weights say. A folder, a file in one, or a state dict in; our CLIP out. Read
`naming.py` before.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minimodal.clip import CLIP
from minimodal.pretrained.beside import as_stated, read_beside
from minimodal.pretrained.naming import (
    BlockNames,
    Names,
    Tensors,
    fill_clip,
    heads_of,
    read_tower,
)
from minimodal.pretrained.stated import Stated

# What the fields are called that shapes tell, and what a configuration that leaves out the heads
# means: a width, and heads.
SIZES = {
    "vision": {"hidden_size": "vision_width", "num_hidden_layers": "vision_depth",
               "image_size": "image_size", "patch_size": "patch_size"},
    "text": {"hidden_size": "text_width", "num_hidden_layers": "text_depth",
             "vocab_size": "vocab_size", "max_position_embeddings": "text_length"},
}  # fmt: skip
USUAL_HEADS = {"vision": ("hidden_size", 768, 12), "text": ("hidden_size", 512, 8)}
END_TOKEN = 49407
BLOCK = BlockNames(
    "layer_norm1", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
NAMES = {
    "vision": Names(
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight", "vision_model.encoder.layers", BLOCK,
        "vision_model.post_layernorm", "visual_projection.weight", turned=False,
        class_token="vision_model.embeddings.class_embedding",
        norm_in="vision_model.pre_layrnorm",  # their spelling
    ),
    "text": Names(
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight", "text_model.encoder.layers", BLOCK,
        "text_model.final_layer_norm", "text_projection.weight", turned=False,
    ),
}  # fmt: skip


def read(
    tensors: Tensors, name: str, config: Stated, activation: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A tower: weights under our names, and its part of the configuration.

    Old files state its settings a second time as NAME_dict, which counts more.
    """
    said = config.part(f"{name}_config")
    said.fields |= config.part(f"{name}_config_dict").fields
    found, sizes = read_tower(tensors, NAMES[name])
    width = sizes[f"{name}_width"]
    hidden = round(width * sizes[f"{name}_mlp_ratio"])
    known = {field: sizes[ours] for field, ours in SIZES[name].items()}
    said.check(known | {"intermediate_size": hidden, "num_channels": 3})
    usual = USUAL_HEADS[name] if config.fields else None
    sizes |= {
        f"{name}_heads": heads_of(width, said, "num_attention_heads", usual=usual),
        f"{name}_activation": activation or said.choice("hidden_act", "quick_gelu", "gelu"),
        f"{name}_norm_eps": said.number("layer_norm_eps", 1e-5),
    }
    if name == "vision":
        return found, sizes
    # The first configurations on the Hub say 2 where the end token was the largest id.
    end = said.integer("eos_token_id", END_TOKEN)
    if end != 2 and end < sizes["vocab_size"]:
        sizes |= {"end_id": end, "pooling": "end"}
    elif end != 2 and config.fields:
        print(
            f"{tensors.source}: its vocabulary of {sizes['vocab_size']} has no end token {end}; "
            f"taken to be the last, {sizes['end_id']}: where that is wrong, say eos_token_id in a "
            "config.json beside it",
            file=sys.stderr,
        )
    return found, sizes


def convert(
    state: Mapping[str, Tensor], config: Stated, *, source: str, pictures: Stated | None = None,
    activation: str | None = None,
) -> CLIP:  # fmt: skip
    """A CLIP from tensors with Hugging Face's names and the content of config.json.

    pictures: the content of preprocessor_config.json
    activation: gelu or quick_gelu, whatever the configuration says
    """
    tensors = Tensors(dict(state), source=source)
    config.choice("model_type", "clip")
    found, sizes = read(tensors, "vision", config, activation)
    words, more = read(tensors, "text", config, activation)
    config.check({"projection_dim": more["embed_width"]})
    found |= words | {"logit_scale": tensors.take("logit_scale").reshape(1)}
    tensors.finish(ignore=("position_ids",))
    if not config.fields:
        print(
            f"{source}: no config.json says how it computes; taken to have "
            f"{more['text_activation']}, heads of 64 and end token {more['end_id']} of "
            f"{more['vocab_size']}; where that is wrong, put its config.json beside it, or give "
            "--activation gelu or quick_gelu",
            file=sys.stderr,
        )
    return fill_clip(sizes | more, found, source=source, pictures=pictures)


def load_huggingface_clip(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    config: str | Path | dict[str, Any] | None = None,
) -> CLIP:
    """A CLIP of Hugging Face: a folder, a file with config.json beside it, or a state dict.

    config: the content of config.json, or its path, where it is not beside the weights; without
    one it is taken to have heads of 64, QuickGELU and CLIP's own vocabulary, which is said
    """
    state, source, beside = read_beside(path_or_state_dict)
    stated = as_stated(config or (beside and beside.huggingface), source=source)
    return convert(state, stated, source=source, pictures=beside and beside.pictures)
