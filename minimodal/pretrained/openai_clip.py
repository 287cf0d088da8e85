"""CLIP checkpoints with OpenAI's names: OpenAI's own and OpenCLIP's.

    visual.conv1, visual.class_embedding, visual.transformer.resblocks.N…, visual.proj
    visual.layer1.0.conv1…, visual.attnpool…           where the image tower is a ResNet
    token_embedding, positional_embedding, transformer.resblocks.N…, ln_final, text_projection
    logit_scale, and in some of OpenCLIP's logit_bias

OpenCLIP's "custom text" models have the text tower below `text.`. Sizes are read off the shapes.
What shapes cannot tell: OpenAI's towers use QuickGELU and OpenCLIP's the exact GELU unless their
configuration says otherwise; heads are 64 wide unless it says otherwise.

A file or a state dict in, our CLIP out, equal to the original to float32's rounding. Read
`naming.py` before.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimodal.clip import CLIP
from minimodal.errors import UserError
from minimodal.pretrained.beside import Beside, look
from minimodal.pretrained.files import read_json, read_state, read_tensors
from minimodal.pretrained.naming import (
    BlockNames,
    Names,
    Tensors,
    fill_clip,
    grid_size,
    heads_of,
    read_tower,
)

Weights = dict[str, Tensor]
# What would make another function of the same tensors, with the values that we compute.
VISION_ONLY = {
    "pool_type": "tok", "final_ln_after_pool": False, "no_ln_pre": False, "act_kwargs": None,
    "norm_kwargs": None, "attentional_pool": False, "global_average_pool": False,
    "timm_model_name": None, "pos_embed_type": "learnable", "ls_init_value": None,
    "input_patchnorm": False,
}  # fmt: skip
TEXT_ONLY = {
    "pool_type": "argmax", "no_causal_mask": False, "final_ln_after_pool": False,
    "embed_cls": False, "act_kwargs": None, "norm_kwargs": None, "hf_model_name": None,
    "ls_init_value": None,
}  # fmt: skip


def block_names(prefix: str) -> BlockNames:
    """The parts of a block as OpenAI calls them."""
    return BlockNames(
        norm1=f"{prefix}.ln_1",
        qkv=(f"{prefix}.attn.in_proj",),
        proj=f"{prefix}.attn.out_proj",
        norm2=f"{prefix}.ln_2",
        fc=f"{prefix}.mlp.c_fc",
        out=f"{prefix}.mlp.c_proj",
    )


def batch_norm(tensors: Tensors, ours: str, theirs: str) -> Weights:
    """Weight, bias and running statistics."""
    parts = ("weight", "bias", "running_mean", "running_var")
    found = {f"{ours}.{part}": tensors.take(f"{theirs}.{part}") for part in parts}
    # Counts batches in training; safetensors made by others may lack it.
    counter = f"{theirs}.num_batches_tracked"
    zero = found[f"{ours}.weight"].new_zeros((), dtype=int)
    found[f"{ours}.num_batches_tracked"] = tensors.take(counter) if counter in tensors else zero
    return found


VISION = Names(
    "visual.conv1.weight", "visual.positional_embedding", "visual.transformer.resblocks",
    block_names, "visual.ln_post", "visual.proj", turned=True,
    class_token="visual.class_embedding", norm_in="visual.ln_pre",
)  # fmt: skip


def text_names(prefix: str) -> Names:
    """The text tower, which lies below `text.` in some."""
    names = ("token_embedding.weight", "positional_embedding", "transformer.resblocks")
    inputs, positions, blocks = (prefix + name for name in names)
    out, projection = f"{prefix}ln_final", f"{prefix}text_projection"
    return Names(inputs, positions, blocks, block_names, out, projection, turned=True)


def read_resnet(tensors: Tensors, head_width: int | None) -> tuple[Weights, dict[str, Any]]:
    """The ResNet with attention pooling: weights under our names, and its configuration."""
    source, ours = tensors.source, "image_encoder.resnet"
    width = tensors.shape("visual.conv3.weight", 4)[0]
    positions, last = tensors.shape("visual.attnpool.positional_embedding", 2)
    if last != 32 * width:
        raise UserError(f"{source}: a ResNet of width {width} ends in {last} channels")
    found: Weights = {}
    for n in (1, 2, 3):
        found |= tensors.linear(f"{ours}.conv{n}", f"visual.conv{n}", bias=False)
        found |= batch_norm(tensors, f"{ours}.bn{n}", f"visual.bn{n}")
    depths = tuple(tensors.depth(f"visual.layer{stage}") for stage in (1, 2, 3, 4))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            ours_, theirs = f"{ours}.stages.{stage}.{block}", f"visual.layer{stage + 1}.{block}"
            for n in (1, 2, 3):
                found |= tensors.linear(f"{ours_}.conv{n}", f"{theirs}.conv{n}", bias=False)
                found |= batch_norm(tensors, f"{ours_}.bn{n}", f"{theirs}.bn{n}")
            if f"{theirs}.downsample.0.weight" in tensors:
                found |= tensors.linear(f"{ours_}.shortcut.0", f"{theirs}.downsample.0", bias=False)
                found |= batch_norm(tensors, f"{ours_}.shortcut.1", f"{theirs}.downsample.1")
    pool = "image_encoder.pool"
    found[f"{pool}.positions"] = tensors.take("visual.attnpool.positional_embedding")
    for name, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("proj", "c_proj")):
        found |= tensors.linear(f"{pool}.{name}", f"visual.attnpool.{theirs}")
    return found, {
        "image_size": grid_size(positions, source=source) * 32,
        "patch_size": 1,
        "resnet": depths,
        "vision_width": width,
        "vision_heads": heads_of(last, head_width and last // head_width, source=source),
    }


def convert(
    state: Mapping[str, Tensor], *, source: str, activation: str, vision: dict, text: dict,
    pictures: dict[str, Any] | None = None,
) -> CLIP:  # fmt: skip
    """A CLIP from tensors with OpenAI's names; `vision` and `text` say what shapes do not.

    pictures: OpenCLIP's preprocess_cfg
    """
    tensors = Tensors(dict(state), source=source)
    resnet = "visual.layer1.0.conv1.weight" in tensors
    head_width = vision.get("head_width")
    if resnet:
        found, sizes = read_resnet(tensors, head_width)
    else:
        width = tensors.shape("visual.conv1.weight", 4)[0]
        heads = vision.get("heads") or (head_width and width // head_width)
        found, sizes = read_tower(tensors, VISION, heads=heads)
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    words, more = read_tower(tensors, text_names(prefix), heads=text.get("heads"))
    found |= words | {"logit_scale": tensors.take("logit_scale").reshape(1)}
    biased = "logit_bias" in tensors
    if biased:
        found["logit_bias"] = tensors.take("logit_bias").reshape(1)
    # OpenAI's archives hold three numbers and OpenCLIP's a mask, which are no weights.
    tensors.finish(ignore=("input_resolution", "context_length", "vocab_size", "attn_mask"))
    sizes |= more | {"vision_activation": activation, "text_activation": activation}
    sizes["logit_bias"] = biased
    return fill_clip(sizes, found, source=source, pictures=pictures or {})


def load_openai_clip(
    path_or_state_dict: str | Path | Mapping[str, Tensor], config: dict[str, Any] | None = None
) -> CLIP:
    """OpenAI's CLIP from a .pt archive, a plain checkpoint, safetensors or a state dict.

    `config` may state "vision_heads" and "transformer_heads" where a head is not 64 wide.
    """
    state, source = read_state(path_or_state_dict)
    stated = config or {}
    vision, text = stated.get("vision_heads"), stated.get("transformer_heads")
    return convert(
        state, source=source, activation="quick_gelu", vision={"heads": vision},
        text={"heads": text},
    )  # fmt: skip


def check_supported(stated: dict[str, Any], known: dict[str, Any], *, tower: str) -> None:
    """Refuse a configuration that asks for what our towers do not compute."""
    for name, value in known.items():
        if stated.get(name, value) not in (value, None, {}):
            raise UserError(
                f"OpenCLIP's {tower} with {name} = {stated[name]!r} is not supported: only "
                f"{value!r} is"
            )


def convert_open_clip(
    state: Mapping[str, Tensor], config: dict[str, Any], *, source: str, activation: str | None
) -> CLIP:
    """A CLIP from tensors with OpenAI's names and the content of open_clip_config.json, or {}."""
    stated = config.get("model_cfg", config)
    vision, text = stated.get("vision_cfg") or {}, stated.get("text_cfg") or {}
    check_supported(vision, VISION_ONLY, tower="image tower")
    check_supported(text, TEXT_ONLY, tower="text tower")
    # Where a configuration is given its own defaults count: 64 wide heads, and 8 heads.
    return convert(
        state,
        source=source,
        activation=activation or ("quick_gelu" if stated.get("quick_gelu") else "gelu"),
        vision={"head_width": vision.get("head_width")},
        text={"heads": text.get("heads", 8 if text else None)},
        pictures=config.get("preprocess_cfg"),
    )


def load_open_clip(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    config: str | Path | dict[str, Any] | None = None,
) -> CLIP:
    """A CLIP of OpenCLIP: a checkpoint, a state dict, or a folder as it is on the Hub.

    config: the model's configuration (embed_dim, vision_cfg, text_cfg, quick_gelu), or a JSON file
    with it; without one that in the open_clip_config.json beside the weights counts
    """
    if isinstance(config, (str, Path)):
        config = read_json(Path(config))
    if isinstance(path_or_state_dict, Mapping):
        state, source = read_state(path_or_state_dict)
    else:
        beside, source = look(Path(path_or_state_dict)), str(path_or_state_dict)
        state, config = read_tensors(*beside.weights), config or beside.open_clip
    return convert_open_clip(state, config or {}, source=source, activation=None)


def convert_unnamed(
    state: Mapping[str, Tensor], beside: Beside, *, source: str, activation: str | None
) -> CLIP:
    """A CLIP with OpenAI's names whose maker is not known: what tells best is said and taken."""
    # OpenAI's archives hold this number, and no others do.
    if not beside.open_clip and not activation:
        halves = [state[n].dtype for n in ("visual.conv1.weight", "ln_final.weight") if n in state]
        named = re.search(r"quick.?gelu|openai|/(RN\d+(x\d+)?|ViT-[BL]-\d+(-336px)?)\.pt$",
                          "/".join(Path(source).absolute().parts[-2:]), re.IGNORECASE)  # fmt: skip
        # Its models keep their norms in float32 beside half weights.
        theirs = named or halves == [torch.float16, torch.float32] or "input_resolution" in state
        activation = "quick_gelu" if theirs else "gelu"
    if not beside.open_clip and "input_resolution" not in state:
        print(
            f"{source}: nothing beside it says how it computes; taken to have {activation} and "
            "heads of 64; where that is wrong, give --activation gelu or quick_gelu, or put its "
            "open_clip_config.json beside it",
            file=sys.stderr,
        )
    return convert_open_clip(state, beside.open_clip, source=source, activation=activation)
