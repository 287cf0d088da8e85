"""From a foreign state dict to a model of ours: names, layouts, and what does not fit, by name.

The loaders beside this file say how the parts of a tower are called (`Names`); here tensors are
taken one by one under their foreign names, so that a missing or surplus one is named as its file
names it. Half-precision weights become float32. Read `minimodal/clip.py` before.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from minimodal.clip import CLIP, CLIPConfig
from minimodal.data.preprocessing import MEAN, STD, Preprocessing
from minimodal.errors import UserError
from minimodal.pretrained.stated import Stated

RESIZE_MODES = ("shortest", "longest", "squash")  # OpenCLIP's


@dataclass(frozen=True)
class BlockNames:
    """How one block of a Transformer calls its parts, below its own name."""

    norm1: str
    qkv: tuple[str, ...]  # one for all three, or three
    proj: str
    norm2: str
    fc: str
    out: str


# Models that are often tried and not read, by what only their names have.
STRANGERS = {
    r"^encoder\.conv_blocks\.": "a VQGAN of LlamaGen",
    r"^(en|de)coder\.(down|up)_blocks\.": "an autoencoder of diffusers",
    r"^encoder\.mid\.\d|ResBlock_\d": "a VQGAN of MaskGIT",
    r"(^|\.)(input|down)_blocks\.\d": "a U-Net of a diffusion model",
    r"(^|\.)(text|image)_emb\.weight": "a DALL·E of DALLE-pytorch",
    r"vision_model\.head\.|visual\.(trunk|blocks)\.": "a CLIP of another kind (SigLIP, timm)",
    r"(^|\.)(image_encoder|image_heads|quantizer)\.": "a run's weights without its folder",
    r"c_attn|^(model\.)?layers\.\d+\.self_attn\.|word_embeddings|\.block\.0\.layer\.":
        "a language model",
    r"(^|\.)blocks\.\d+\.attn\.qkv|^layer1\.0\.conv1": "a network for pictures alone",
}  # fmt: skip


def check_known(names: Iterable[str], *, source: str) -> None:
    """Refuse what is known to be another model, by its name."""
    for pattern, what in STRANGERS.items():
        if any(re.search(pattern, name) for name in names):
            raise UserError(f"{source} is {what}; that cannot be read here")


@dataclass(frozen=True)
class Names:
    """How a checkpoint calls the parts of a tower."""

    inputs: str  # patches or tokens
    positions: str
    blocks: str  # of PREFIX.N
    block: BlockNames
    norm_out: str
    projection: str
    turned: bool  # the projection is (D, E), where a linear layer has (E, D)
    class_token: str = ""
    norm_in: str = ""


class Tensors:
    """A state dict from which each tensor is taken once."""

    def __init__(self, tensors: dict[str, Tensor], *, source: str, what: str = "CLIP") -> None:
        self.left, self.source, self.what = dict(tensors), source, what
        check_known(self.left, source=source)

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def stranger(self, why: str) -> UserError:
        """The error that says why a file cannot be taken."""
        return UserError(f"{self.source} is no {self.what} that this program knows: {why}")

    def get(self, name: str) -> Tensor:
        """A tensor that has to be there."""
        if name not in self.left:
            raise self.stranger(f"it lacks {name}")
        return self.left[name]

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor, which has so many dimensions."""
        shape = tuple(self.get(name).shape)
        if len(shape) != dimensions or min(shape, default=1) < 1:
            raise UserError(f"{self.source}: {name} has shape {shape}, which no {self.what} has")
        return shape

    def take(self, name: str) -> Tensor:
        """A tensor, in float32 where it is a float of another size."""
        tensor = self.get(name)
        del self.left[name]
        return tensor.float() if tensor.is_floating_point() else tensor

    def linear(self, ours: str, name: str, *, bias: bool = True) -> dict[str, Tensor]:
        """Weight and bias of anything that has them, under our name."""
        parts = ("weight", "bias") if bias else ("weight",)
        return {f"{ours}.{part}": self.take(f"{name}.{part}") for part in parts}

    def batch_norm(self, ours: str, name: str) -> dict[str, Tensor]:
        """Weight, bias and running statistics."""
        running = ("running_mean", "running_var", "num_batches_tracked")
        # It counts batches in training; files made by others may lack it.
        self.left.setdefault(f"{name}.{running[2]}", torch.zeros((), dtype=torch.int64))
        return self.linear(ours, name) | {f"{ours}.{n}": self.take(f"{name}.{n}") for n in running}

    def depth(self, prefix: str) -> int:
        """How many blocks have names of the form PREFIX.N.…"""
        inside = [n.removeprefix(f"{prefix}.") for n in self.left if n.startswith(f"{prefix}.")]
        numbers = {name.split(".")[0] for name in inside}
        if numbers != {str(i) for i in range(len(numbers))}:
            raise UserError(f"{self.source}: the blocks {prefix}.N are not numbered 0, 1, 2, …")
        return len(numbers)

    def linears(self, ours: str, theirs: str, names: dict[str, str]) -> dict[str, Tensor]:
        """Several of them below ours and theirs, their names by our own."""
        found: dict[str, Tensor] = {}
        for mine, other in names.items():
            found |= self.linear(f"{ours}.{mine}", f"{theirs}.{other}")
        return found

    def block(self, ours: str, theirs: str, names: BlockNames) -> dict[str, Tensor]:
        """One block of a Transformer."""
        plain = {"norm1": names.norm1, "norm2": names.norm2, "attention.proj": names.proj,
                 "fc": names.fc, "out": names.out}  # fmt: skip
        found = self.linears(ours, theirs, plain)
        for part in ("weight", "bias"):
            # "in_proj_weight" of one tensor, or "q_proj.weight" and its two sisters.
            joint = "_" if len(names.qkv) == 1 else "."
            stacked = [self.take(f"{theirs}.{name}{joint}{part}") for name in names.qkv]
            found[f"{ours}.attention.qkv.{part}"] = torch.cat(stacked)
        return found

    def finish(self, *, ignore: tuple[str, ...] = ()) -> None:
        """Refuse a file with more in it than was taken: it is another function."""
        more = [name for name in self.left if not name.endswith(ignore)]
        if more:
            first = sorted(more)[0]
            raise self.stranger(f"{first} has no place in it (and {len(more) - 1} more)")


def grid_size(positions: int, *, source: str) -> int:
    """The side of a square of patches from the number of positions, class token included."""
    side = math.isqrt(positions - 1)
    if side < 1 or side**2 + 1 != positions:
        raise UserError(f"{source}: {positions} positions are no square of patches and one more")
    return side


def heads_of(
    width: int, stated: Stated, name: str, *, usual: tuple[str, int, int] | None = None
) -> int:
    """The heads that a configuration states in the field `name`; else as many as are 64 wide.

    usual: a field, its default width and the heads that a configuration which leaves heads out has
    """
    heads = max(1, width // 64)
    if usual:
        field, common, heads = usual
        if name not in stated.fields and field not in stated.fields and width != common:
            raise stated.wrong(name, f"it, for weights that are {width} wide and not {common}")
    heads = stated.integer(name, heads, least=1)
    if width % heads:
        more = "" if name in stated.fields else f"it: {heads} is no "
        raise stated.wrong(name, f"{more or 'a '}divisor of {width}, the width of its weights")
    return heads


def read_tower(tensors: Tensors, names: Names) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A Vision Transformer, or where there is no class token the text tower.

    returns: weights under our names, and what the shapes tell of a CLIPConfig, all but the heads
    """
    vision = bool(names.class_token)
    ours, tower = ("image_encoder", "vision") if vision else ("text_encoder", "text")
    shape = tensors.shape(names.inputs, 4 if vision else 2)
    width, depth = shape[0 if vision else 1], tensors.depth(names.blocks)
    positions = tensors.shape(names.positions, 2)[0]
    hidden = tensors.shape(f"{names.blocks}.0.{names.block.fc}.weight", 2)[0]
    sizes = {"width": width, "depth": depth, "mlp_ratio": hidden / width}
    sizes = {f"{tower}_{name}": value for name, value in sizes.items()}
    if vision:
        side = grid_size(positions, source=tensors.source)
        sizes |= {"image_size": side * shape[2], "patch_size": shape[2]}
        found = tensors.linear(f"{ours}.norm_in", names.norm_in)
        found[f"{ours}.class_token"] = tensors.take(names.class_token).flatten()
    else:
        embed = tensors.shape(names.projection, 2)[1 if names.turned else 0]
        sizes |= {"vocab_size": shape[0], "text_length": positions, "embed_width": embed}
        sizes |= {"end_id": shape[0] - 1, "pooling": "largest"}
        found = {}
    found[f"{ours}.{'patches' if vision else 'tokens'}.weight"] = tensors.take(names.inputs)
    found[f"{ours}.positions"] = tensors.take(names.positions)
    projection = tensors.take(names.projection)
    found[f"{ours}.projection.weight"] = projection.T.contiguous() if names.turned else projection
    found |= tensors.linear(f"{ours}.norm_out", names.norm_out)
    for n in range(depth):
        theirs = f"{names.blocks}.{n}"
        found |= tensors.block(f"{ours}.transformer.blocks.{n}", theirs, names.block)
    return found, sizes


def read_pictures(said: Stated, *, size: int) -> str | Preprocessing:
    """How pictures become (3, size, size), by OpenCLIP's preprocess_cfg or Hugging Face's file.

    Whatever else it says is refused by name: it would be another picture.
    """
    said.fields = {name: value for name, value in said.fields.items() if value is not None}
    for name in ("do_resize", "do_rescale", "do_normalize"):
        said.choice(name, True)
    edge, whole = said.fields.get("size", size), not said.choice("do_center_crop", True, False)
    both = isinstance(edge, dict) and "height" in edge
    for name in ("size",) if whole else ("size", "crop_size"):
        sides = said.fields.get(name, size)
        known = not isinstance(sides, dict) or {*sides} <= {"shortest_edge", "height", "width"}
        sides = [*sides.values()] if isinstance(sides, dict) else sides
        sides = sides if isinstance(sides, list) else [sides]
        if not known or not sides or any(type(n) is not int or n != size for n in sides):
            raise said.wrong(name, f"{size} pixels, as in its weights")
    if whole and not both:
        raise said.wrong("do_center_crop", "a crop, or a size of height and width")
    if not 254.9 < 1 / max(said.number("rescale_factor", 1 / 255), 1e-9) < 255.1:
        raise said.wrong("rescale_factor", "1/255")
    said.choice("fill_color", 0)
    filters = {f.value: f.name.lower() for f in Image.Resampling}
    filter_ = filters[said.choice("resample", Image.Resampling.BICUBIC.value, *filters)]
    if "interpolation" in said.fields:
        filter_ = said.choice("interpolation", "bicubic", "random", *filters.values())
    how = Preprocessing(
        said.choice("resize_mode", "squash" if both else "shortest", *RESIZE_MODES),
        "bicubic" if filter_ == "random" else filter_,  # as the original outside of training
        said.colour("mean", said.colour("image_mean", MEAN, least=0), least=0),
        said.colour("std", said.colour("image_std", STD, least=1e-3), least=1e-3),
    )
    return "openai" if how == Preprocessing() else how


Model = TypeVar("Model", bound=nn.Module)


def fill(make: Callable[[], Model], weights: dict[str, Tensor], *, source: str) -> Model:
    """The model that `make` makes, with these weights, in eval mode."""
    with torch.device("meta"):  # no random start for what is overwritten
        model = make()
    expected = model.state_dict()
    for name, tensor in weights.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, where its other tensors ask "
                f"for {tuple(expected[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{source}: {name} has values that are no numbers; get the file again")
    model.load_state_dict(weights, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def fill_clip(
    sizes: dict[str, Any], weights: dict[str, Tensor], *, source: str, pictures: Stated | None
) -> CLIP:
    """A CLIP with these weights, in eval mode, that reads pictures as `pictures` says."""
    reading = read_pictures(pictures, size=sizes["image_size"]) if pictures else "openai"
    config = CLIPConfig(**sizes, preprocessing=reading)
    clip = fill(lambda: CLIP(config), weights, source=source)
    clip.run = {"kind": "clip", "data": None, "source": source}
    return clip
