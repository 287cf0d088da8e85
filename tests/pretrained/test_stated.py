"""Configurations that others wrote and that hold anything at all: the right model, or one line."""

import json
import os
import shutil
from typing import Any

import pytest
from helpers import FIXTURES
from safetensors.torch import load_file, save_file

from minimodal.errors import UserError
from minimodal.pretrained.naming import heads_of
from minimodal.pretrained.stated import Stated
from minimodal.runs import load

HUGGINGFACE, OPEN_CLIP, TAMING = (
    FIXTURES / name / file
    for name, file in {
        "clip_huggingface": "model.safetensors",
        "clip_open_clip": "model.safetensors",
        "vqgan_taming": "last.ckpt",
    }.items()
)
CLIP, CLIP_CFG, VQGAN = (
    json.loads((checkpoint.parent / name).read_text())
    for checkpoint, name in {
        HUGGINGFACE: "config.json",
        OPEN_CLIP: "open_clip_config.json",
        TAMING: "config.json",
    }.items()
)
PICTURES = {
    "do_resize": True, "size": {"shortest_edge": 24}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": 24, "width": 24}, "do_rescale": True, "do_normalize": True,
    "rescale_factor": 0.00392156862745098, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}  # fmt: skip
PREPROCESS_CFG = {
    "size": [24, 24], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
    "interpolation": "bilinear", "resize_mode": "squash", "fill_color": 0,
}  # fmt: skip
OLD_CLIP = {"model_type": "clip"} | {
    f"{name}_dict": CLIP[name] for name in ("text_config", "vision_config")
}
# Each format: the checkpoint, the name of its configuration, and what that says.
FORMATS = {
    "Hugging Face": (HUGGINGFACE, "config.json", CLIP),
    "its older form": (HUGGINGFACE, "config.json", OLD_CLIP),
    "its pictures": (HUGGINGFACE, "preprocessor_config.json", PICTURES),
    "its processor": (HUGGINGFACE, "processor_config.json", {"image_processor": PICTURES}),
    "OpenCLIP": (
        OPEN_CLIP,
        "open_clip_config.json",
        {**CLIP_CFG, "preprocess_cfg": PREPROCESS_CFG},
    ),
    "taming": (TAMING, "config.json", VQGAN),
    "taming, whole": (TAMING, "config.json", {"model": {"params": VQGAN}}),
}
WRAPPED = ("its older form", "its processor", "taming, whole")  # of which others show the inside
ODD = [None, "x", [], {}, -1, 1e9, True, [[1]], 10**400]
# What weights cannot contradict: any number is taken, as the original takes it.
FREE = {"layer_norm_eps": (int, float), "eos_token_id": (int,), "resample": (int,)}


def variants(stated: dict[str, Any], within: str = "") -> list[tuple[str, Any, dict[str, Any]]]:
    """Copies of a configuration, in each of which one field has an odd value."""
    found = []
    for name, value in stated.items():
        place = f"{within}{name}"
        found += [(place, odd, {**stated, name: odd}) for odd in ODD]
        inner = variants(value, f"{place}.") if isinstance(value, dict) else []
        found += [(deeper, odd, {**stated, name: part}) for deeper, odd, part in inner]
    return found


def may_differ(place: str, odd: Any) -> bool:
    """Whether this value may make another model without a word: a free number, or a reading of
    pictures that is not stated and so the original's own."""
    name = place.split(".")[-1]
    pictures = {*PICTURES, *PREPROCESS_CFG, "image_processor", "preprocess_cfg"}
    return type(odd) in FREE.get(name, ()) or (name in pictures and odd in (None, {}))


@pytest.mark.parametrize("kind", FORMATS)
def test_whatever_a_field_holds_the_model_is_right_or_one_line_names_the_field(tmp_path, kind):
    checkpoint, name, stated = FORMATS[kind]
    for file in checkpoint.parent.glob("*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / checkpoint.name
    (tmp_path / name).write_text(json.dumps(stated))
    right = load(path).config
    for place, odd, config in variants(stated):
        if kind in WRAPPED and "." in place:
            continue
        (tmp_path / name).write_text(json.dumps(config))
        try:
            assert load(path).config == right or may_differ(place, odd), (place, odd)
        except UserError as error:
            said = str(error)
            assert "\n" not in said and str(tmp_path) in said and name in said and len(said) < 500
            # A part that says nothing is seen by what it should have said.
            assert any(part.removesuffix("_dict") in said for part in place.split(".")), said


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("num_hidden_layers", 99, "num_hidden_layers = 99 and its weights say 2"),
        ("hidden_size", 32, "hidden_size = 32 and its weights say 24"),
        ("intermediate_size", 41, "intermediate_size = 41 and its weights say 40"),
        ("image_size", 32, "image_size = 32 and its weights say 24"),
        ("num_attention_heads", 5, "num_attention_heads = 5: expected a divisor of 24"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused_with_both_values(
    tmp_path, field, value, why
):
    shutil.copy(HUGGINGFACE, tmp_path)
    vision = {**CLIP["vision_config"], field: value}
    (tmp_path / "config.json").write_text(json.dumps({**CLIP, "vision_config": vision}))
    with pytest.raises(UserError, match=f"its config.json says vision_config.{why}"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "open_clip_config.json"])
def test_an_empty_configuration_is_said_to_say_nothing(tmp_path, name):
    shutil.copy(HUGGINGFACE, tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=rf"{tmp_path}/{name} says nothing \({{}}\)"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "merges.txt"])
def test_a_pipe_in_place_of_a_configuration_is_refused_and_never_opened(tmp_path, name):
    shutil.copy(HUGGINGFACE, tmp_path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{tmp_path}/{name} is no file but a folder, pipe"):
        load(tmp_path)


def test_heads_that_are_left_out_are_the_originals_own_or_asked_for():
    # What a file of Hugging Face leaves out is at its default, for which width alone can vouch.
    usual = ("hidden_size", 512, 8)
    assert heads_of(512, Stated({}, source="a"), "heads", usual=usual) == 8
    assert heads_of(768, Stated({"hidden_size": 768}, source="a"), "heads", usual=usual) == 8
    with pytest.raises(UserError, match="does not say heads: expected it, for .* 768 wide"):
        heads_of(768, Stated({}, source="a"), "heads", usual=usual)


# --- indices --------------------------------------------------------------------------------------

NAMES = sorted(load_file(HUGGINGFACE))


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({}, "does not say weight_map: expected the file of each tensor"),
        ({"weight_map": None}, "weight_map = None: expected an object"),
        ({"weight_map": "x"}, "weight_map = 'x': expected an object"),
        ({"weight_map": {"a": 3}}, "files beside it, and not 3"),
        ({"weight_map": {"a": ["b"]}}, "files beside it, and not"),
        ({"weight_map": {"a": "../b.safetensors"}}, "files beside it, and not '../b"),
        ({"weight_map": {"a": "/b.safetensors"}}, "files beside it, and not '/b"),
        ({"weight_map": {"a": ".."}}, "files beside it, and not '..'"),
        ({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}},
         "lacks 2.safetensors: 1 of the 2 parts"),
    ],
)  # fmt: skip
def test_an_index_names_parts_that_lie_beside_it_or_what_is_wrong_is_said(tmp_path, index, why):
    (tmp_path / "config.json").write_text(json.dumps(CLIP))
    save_file(load_file(HUGGINGFACE), tmp_path / "1.safetensors")
    save_file(load_file(HUGGINGFACE), tmp_path.parent / "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert f"{tmp_path}" in str(error.value) and why in str(error.value)


@pytest.mark.parametrize(
    "model", [None, "x", {}, {"merges": 3}, {"merges": [3]}, {"merges": [[3]]}]
)
def test_a_tokenizer_without_merges_is_one_line(tmp_path, model):
    shutil.copy(HUGGINGFACE, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CLIP))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(UserError, match=f"{tmp_path}: its tokenizer.json .*expected"):
        load(tmp_path)
