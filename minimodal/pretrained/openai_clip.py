"""CLIP checkpoints with OpenAI's names: OpenAI's own and OpenCLIP's.

    visual.conv1, visual.class_embedding, visual.transformer.resblocks.N…, visual.proj
    visual.layer1.0.conv1…, visual.attnpool…           where the image tower is a ResNet
    token_embedding, positional_embedding, transformer.resblocks.N…, ln_final, text_projection
    logit_scale, and in some of OpenCLIP's logit_bias

Sizes are read off the shapes. What those cannot tell: OpenAI's towers use QuickGELU and OpenCLIP's
the exact GELU, and heads are 64 wide, unless their configuration, or the name of the model in their
training's params.txt, says otherwise. A file or a state dict in, our CLIP out, equal to the
original to float32's rounding. Read `naming.py` before.
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
from minimodal.pretrained.beside import Beside, as_stated, read_beside
from minimodal.pretrained.naming import (
    BlockNames,
    Names,
    Tensors,
    fill_clip,
    grid_size,
    heads_of,
    read_tower,
)
from minimodal.pretrained.stated import Stated

Weights = dict[str, Tensor]
# What would make another function of the same tensors, with the values that we compute.
BOTH_ONLY = {"final_ln_after_pool": False, "act_kwargs": None, "norm_kwargs": None,
             "ls_init_value": None}  # fmt: skip
ONLY = {
    "vision_cfg": {**BOTH_ONLY, "pool_type": "tok", "no_ln_pre": False, "attentional_pool": False,
                   "global_average_pool": False, "timm_model_name": None,
                   "pos_embed_type": "learnable", "input_patchnorm": False},
    "text_cfg": {**BOTH_ONLY, "pool_type": "argmax", "no_causal_mask": False, "embed_cls": False,
                 "hf_model_name": None},
}  # fmt: skip
# The models of OpenCLIP that compute as we do, and of those the ones whose heads are not 64 wide.
ITS_MODELS = re.compile(
    r"(RN\d+(x\d+)?|ViT-(?P<size>\w+)-\d+(-\d+|-plus(-\d+)?|-alt)?)(?P<quick>-quickgelu)?"
)
HEAD_WIDTHS = {"H": 80, "g": 88, "bigG": 104, "e": 112}
BLOCK = BlockNames("ln_1", ("attn.in_proj",), "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


VISION = Names(
    "visual.conv1.weight", "visual.positional_embedding", "visual.transformer.resblocks",
    BLOCK, "visual.ln_post", "visual.proj", turned=True,
    class_token="visual.class_embedding", norm_in="visual.ln_pre",
)  # fmt: skip


TEXT = Names(
    "token_embedding.weight", "positional_embedding", "transformer.resblocks", BLOCK, "ln_final",
    "text_projection", turned=True,
)  # fmt: skip


def three_convs(tensors: Tensors, ours: str, theirs: str) -> Weights:
    """Three convolutions, each with a batch norm: the stem, or a residual block."""
    found: Weights = {}
    for n in (1, 2, 3):
        found |= tensors.linear(f"{ours}.conv{n}", f"{theirs}.conv{n}", bias=False)
        found |= tensors.batch_norm(f"{ours}.bn{n}", f"{theirs}.bn{n}")
    return found


def read_resnet(tensors: Tensors) -> tuple[Weights, dict[str, Any]]:
    """The ResNet with attention pooling: weights under our names, and its configuration."""
    source, ours = tensors.source, "image_encoder.resnet"
    width = tensors.shape("visual.conv3.weight", 4)[0]
    positions, last = tensors.shape("visual.attnpool.positional_embedding", 2)
    if last != 32 * width:
        raise UserError(f"{source}: a ResNet of width {width} ends in {last} channels")
    found = three_convs(tensors, ours, "visual")
    depths = tuple(tensors.depth(f"visual.layer{stage}") for stage in (1, 2, 3, 4))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            ours_, theirs = f"{ours}.stages.{stage}.{block}", f"visual.layer{stage + 1}.{block}"
            found |= three_convs(tensors, ours_, theirs)
            if f"{theirs}.downsample.0.weight" in tensors:
                found |= tensors.linear(f"{ours_}.shortcut.0", f"{theirs}.downsample.0", bias=False)
                found |= tensors.batch_norm(f"{ours_}.shortcut.1", f"{theirs}.downsample.1")
    pool = "image_encoder.pool"
    found[f"{pool}.positions"] = tensors.take("visual.attnpool.positional_embedding")
    projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": "c_proj"}
    found |= tensors.linears(pool, "visual.attnpool", projections)
    size = grid_size(positions, source=source) * 32
    return found, {"image_size": size, "patch_size": 1, "resnet": depths, "vision_width": width}


def vision_heads(sizes: dict[str, Any], stated: Stated) -> int:
    """The heads of the image tower: how many, as OpenAI counts, or how wide, as OpenCLIP does."""
    width, config = sizes["vision_width"], stated.part("vision_cfg")
    width *= 32 if "resnet" in sizes else 1
    if "head_width" not in config.fields:
        return heads_of(width, stated, "vision_heads")
    wide = config.integer("head_width", least=1)
    if width % wide:
        raise config.wrong("head_width", f"a divisor of {width}, its width")
    return width // wide


def convert(
    state: Mapping[str, Tensor], stated: Stated, *, source: str, activation: str,
    pictures: Stated | None = None,
) -> CLIP:  # fmt: skip
    """A CLIP from tensors with OpenAI's names; `stated` says what shapes do not.

    pictures: OpenCLIP's preprocess_cfg
    """
    # OpenCLIP's "custom text" models have their text tower below `text.`.
    plain = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    tensors = Tensors(plain, source=source)
    resnet = "visual.layer1.0.conv1.weight" in tensors
    found, sizes = read_resnet(tensors) if resnet else read_tower(tensors, VISION)
    words, more = read_tower(tensors, TEXT)
    sizes |= more
    check_sizes(sizes, stated)
    sizes["vision_heads"] = vision_heads(sizes, stated)
    text, width = stated.part("text_cfg"), sizes["text_width"]
    if text.fields:  # which leaves out its defaults
        sizes["text_heads"] = heads_of(width, text, "heads", usual=("width", 512, 8))
    else:
        sizes["text_heads"] = heads_of(width, stated, "transformer_heads")
    found |= words | {"logit_scale": tensors.take("logit_scale").reshape(1)}
    if biased := "logit_bias" in tensors:
        found["logit_bias"] = tensors.take("logit_bias").reshape(1)
    # OpenAI's archives hold three numbers and OpenCLIP's a mask, which are no weights.
    tensors.finish(ignore=("input_resolution", "context_length", "vocab_size", "attn_mask"))
    sizes |= {"vision_activation": activation, "text_activation": activation, "logit_bias": biased}
    return fill_clip(sizes, found, source=source, pictures=pictures)


def load_openai_clip(
    path_or_state_dict: str | Path | Mapping[str, Tensor], config: dict[str, Any] | None = None
) -> CLIP:
    """OpenAI's CLIP from a .pt archive, a plain checkpoint, safetensors or a state dict.

    `config` may state "vision_heads" and "transformer_heads" where a head is not 64 wide.
    """
    state, source, _ = read_beside(path_or_state_dict)
    stated = as_stated(config, source=source)
    return convert(state, stated, source=source, activation="quick_gelu")


def check_sizes(sizes: dict[str, Any], stated: Stated) -> None:
    """Refuse a configuration of OpenCLIP's that says other sizes than the weights."""
    stated.check({"embed_dim": sizes["embed_width"]})
    found = {
        "vision": {"width": sizes["vision_width"], "image_size": sizes["image_size"]},
        "text": {"width": sizes["text_width"], "layers": sizes["text_depth"],
                 "context_length": sizes["text_length"], "vocab_size": sizes["vocab_size"]},
    }  # fmt: skip
    found["vision"] |= (  # a ResNet has no patches
        {"layers": list(sizes["resnet"])} if "resnet" in sizes
        else {"layers": sizes["vision_depth"], "patch_size": sizes["patch_size"]}
    )  # fmt: skip
    for tower, values in found.items():
        part, ratio = stated.part(f"{tower}_cfg", filled=True), sizes.get(f"{tower}_mlp_ratio")
        part.check(values)
        width = values["width"]
        if ratio and int(part.number("mlp_ratio", ratio) * width) != int(ratio * width):
            raise part.wrong("mlp_ratio", f"{ratio:g}, as in its weights")


def convert_open_clip(
    state: Mapping[str, Tensor], config: Stated, *, source: str, activation: str | None
) -> CLIP:
    """A CLIP from tensors with OpenAI's names and what open_clip_config.json says, if anything."""
    stated = config.part("model_cfg", filled=True) if "model_cfg" in config.fields else config
    for name, known in ONLY.items():
        part = stated.part(name, filled=True)
        for field, value in known.items():
            if part.fields.get(field) not in (None, {}):
                part.choice(field, value)
    quick = stated.choice("quick_gelu", False, True)
    return convert(
        state, stated, source=source, activation=activation or ("quick_gelu" if quick else "gelu"),
        pictures=config.part("preprocess_cfg"),
    )  # fmt: skip


def load_open_clip(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    config: str | Path | dict[str, Any] | None = None,
) -> CLIP:
    """A CLIP of OpenCLIP: a checkpoint, a state dict, or a folder as it is on the Hub.

    config: the model's configuration (embed_dim, vision_cfg, text_cfg, quick_gelu), or a JSON file
    with it; without one that in the open_clip_config.json beside the weights counts
    """
    state, source, beside = read_beside(path_or_state_dict)
    stated = as_stated(config or (beside and beside.open_clip), source=source)
    return convert_open_clip(state, stated, source=source, activation=None)


def convert_unnamed(
    state: Mapping[str, Tensor], beside: Beside, *, source: str, activation: str | None
) -> CLIP:
    """A CLIP with OpenAI's names whose maker is not known: what tells best is said and taken."""
    config, wide, why = beside.open_clip, 64, "nothing beside it says how it computes"
    # OpenAI's archives hold this number, and no others do.
    known = bool(config.fields) or "input_resolution" in state
    trained = ITS_MODELS.fullmatch(beside.training.get("model", ""))
    if not known and trained and beside.training.get("pretrained") != "openai":
        quick = trained["quick"] or beside.training.get("force_quick_gelu") == "True"
        activation = activation or ("quick_gelu" if quick else "gelu")
        wide, why = HEAD_WIDTHS.get(trained["size"], 64), f"its params.txt says model {trained[0]}"
        config = Stated({"vision_cfg": {"head_width": wide}}, source=source, file="params.txt")
    elif not config.fields and not activation:
        halves = [state[n].dtype for n in ("visual.conv1.weight", "ln_final.weight") if n in state]
        named = re.search(r"quick.?gelu|openai|/(RN\d+(x\d+)?|ViT-[BL]-\d+(-336px)?)\.pt$",
                          "/".join(Path(source).absolute().parts[-2:]), re.IGNORECASE)  # fmt: skip
        # Its models keep their norms in float32 beside half weights.
        theirs = named or halves == [torch.float16, torch.float32] or "input_resolution" in state
        activation = "quick_gelu" if theirs else "gelu"
    if not known:
        print(
            f"{source}: {why}; taken to have {activation} and heads of {wide}; where that is "
            "wrong, give --activation gelu or quick_gelu, or put its open_clip_config.json beside "
            "it",
            file=sys.stderr,
        )
    return convert_open_clip(state, config, source=source, activation=activation)
