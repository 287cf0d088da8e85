"""Checkpoints as they lie on disks: what is beside them, around them, or instead of them."""

import argparse
import builtins
import errno
import json
import math
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FIXTURES
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from minimodal.cli.common import add_clip_flags, load_clip
from minimodal.data.preprocessing import MEAN, STD
from minimodal.errors import UserError
from minimodal.pretrained import load_huggingface_clip, load_openai_clip, load_taming_transformer
from minimodal.pretrained.beside import read_settings
from minimodal.pretrained.files import read_tensors
from minimodal.runs import load
from minimodal.training.checkpoint import load_weights, save_config, save_state
from minimodal.uses.embedding import embed_pictures

DATA = FIXTURES
HUGGINGFACE, OPEN_CLIP, TAMING = (
    DATA / name for name in ("clip_huggingface", "clip_open_clip", "vqgan_taming")
)
NUMBERS = ("input_resolution", "context_length", "vocab_size")
OPENAI = load_file(DATA / "clip_openai_vit" / "model.safetensors")
RESAVED = {name: t.float() for name, t in OPENAI.items() if name not in NUMBERS}


def put(folder: Path, *sources: Path, **files: dict) -> Path:
    """A folder with copies of files, and JSON files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        shutil.copy(source, folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def refused(path: Path | str, **how) -> str:
    """The one line that says why a path cannot be loaded."""
    with pytest.raises(UserError) as error:
        load(path, **how)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


# --- what nothing tells ---------------------------------------------------------------------------


@torch.no_grad()
def test_without_a_config_captions_get_vectors_of_their_own_and_the_end_token_is_said(
    tmp_path, capsys
):
    clip = load(put(tmp_path, HUGGINGFACE / "model.safetensors"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "quick_gelu, heads of 64 and end token 32 of 33" in said
    first, second = clip.encode_text(torch.tensor([[30, 3, 32, 0], [30, 4, 5, 32]]))
    assert clip.config.end_id == 32 and (first - second).abs().max() > 0.01


def test_an_end_token_outside_of_the_vocabulary_is_the_last_one_and_it_is_said(capsys):
    config = json.loads((HUGGINGFACE / "config.json").read_text())
    del config["text_config"]["eos_token_id"]  # then it is 49407
    state = load_file(HUGGINGFACE / "model.safetensors")
    assert load_huggingface_clip(state, config).config.end_id == 32
    assert "vocabulary of 33 has no end token 49407" in capsys.readouterr().err


@torch.no_grad()
def test_weights_of_openai_saved_again_compute_the_same_with_the_activation_said(tmp_path):
    path = put(tmp_path / "mine") / "clip.pt"
    torch.save(RESAVED, path)
    parser = argparse.ArgumentParser()
    add_clip_flags(parser)
    flags = ["--clip", str(path), "--device", "cpu"]
    io = load_file(DATA / "clip_openai_vit" / "io.safetensors")
    wanted, far = io["out.encode_image"], 0.001
    said = load_clip(parser.parse_args([*flags, "--activation", "quick_gelu"]))
    torch.testing.assert_close(said.encode_image(io["in.image"]), wanted, rtol=0, atol=1e-4)
    guessed = load_clip(parser.parse_args(flags)).encode_image(io["in.image"])
    assert (guessed - wanted).abs().max() > far


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("mine.pt", "gelu"),
        ("ViT-B-32.pt", "quick_gelu"),
        ("vit_b_32-quickgelu-laion400m.pt", "quick_gelu"),
        ("openai/clip.pt", "quick_gelu"),
    ],
)
def test_the_activation_that_a_name_tells_is_taken_and_said(tmp_path, capsys, name, activation):
    path = put((tmp_path / "mine" / name).parent) / Path(name).name
    torch.save(RESAVED, path)
    assert load(path).config.vision_activation == activation
    said = capsys.readouterr().err
    assert f"taken to have {activation} " in said and "--activation" in said


def test_half_weights_with_norms_in_float32_are_openais(tmp_path):
    state = {n: t if "ln_" in n else t.half() for n, t in RESAVED.items()}
    path = put(tmp_path / "mine") / "x.safetensors"
    save_file(state, path)
    assert load(path).config.vision_activation == "quick_gelu"


def test_an_activation_of_a_run_or_of_an_unknown_name_is_refused(tmp_path):
    torch.save(RESAVED, tmp_path / "mine.pt")
    with pytest.raises(UserError, match="activation relu: expected gelu or quick_gelu"):
        load(tmp_path / "mine.pt", activation="relu")
    run = put(tmp_path / "run", config={"kind": "clip", "model": {}})
    assert "is a run, which knows its activation" in refused(run, activation="gelu")


# --- what lies beside -----------------------------------------------------------------------------


def test_open_clips_config_counts_for_a_file_beside_it(tmp_path, capsys):
    config = json.loads((OPEN_CLIP / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    put(tmp_path, OPEN_CLIP / "model.safetensors", open_clip_config=config)
    clip = load(tmp_path / "model.safetensors")
    assert clip.config.text_activation == "quick_gelu"
    assert clip.config.text_heads == config["model_cfg"]["text_cfg"]["heads"]
    assert not capsys.readouterr().err


def test_merges_are_read_from_hugging_faces_tokenizer_json(tmp_path):
    folder = put(tmp_path, OPEN_CLIP / "model.safetensors", OPEN_CLIP / "open_clip_config.json")
    tokenizer = {"model": {"merges": ["a b</w>", ["c", "d"]]}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "makes 516 tokens" in refused(folder)  # 512, two merges, start and end; it knows 33


PIXELS = np.arange(61 * 31 * 3, dtype=np.int64) * 7919 % 256
PICTURE = Image.fromarray(PIXELS.astype(np.uint8).reshape(31, 61, 3))


def reading(tmp_path: Path, said: dict, picture: Image.Image = PICTURE) -> np.ndarray:
    """What OpenCLIP's preprocess_cfg makes of a picture twice as wide as high, in 0…255."""
    config = json.loads((OPEN_CLIP / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = said
    clip = load(put(tmp_path, OPEN_CLIP / "model.safetensors", open_clip_config=config))
    mean, std = said.get("mean", MEAN), said.get("std", STD)
    found = clip.preprocess(picture).numpy()
    assert found.shape == (3, 24, 24)
    return (found * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))) * 255


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_squash_resizes_both_sides(tmp_path, name):
    found = reading(tmp_path, {"resize_mode": "squash", "interpolation": name})
    wanted = PICTURE.resize((24, 24), Image.Resampling[name.upper()])
    np.testing.assert_allclose(found, np.asarray(wanted).transpose(2, 0, 1), atol=1e-3)


def test_longest_shows_all_of_a_picture_between_black_bars(tmp_path):
    found = reading(tmp_path, {"resize_mode": "longest"})
    inside = np.asarray(PICTURE.resize((24, 12), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_allclose(found[:, 6:18], inside, atol=1e-3)
    assert abs(found[:, :6]).max() < 1e-3 and abs(found[:, 18:]).max() < 1e-3


def test_the_odd_row_of_longest_is_below_as_open_clip_pads(tmp_path):
    flat = PICTURE.crop((0, 0, 61, 28))  # 24 x 11: 13 rows are missing
    found = reading(tmp_path, {"resize_mode": "longest"}, flat)
    assert abs(found[:, :6]).max() < 1e-3 and abs(found[:, 17:]).max() < 1e-3
    assert abs(found[:, 6]).max() > 1 and abs(found[:, 16]).max() > 1


def test_mean_and_deviation_beside_the_weights_count_for_pictures_of_any_size(tmp_path):
    half = {"mean": [0.5] * 3, "std": [0.25] * 3}
    found = reading(tmp_path, half)
    assert -1e-3 < found.min() and found.max() < 255.001
    clip = load(tmp_path)
    white = torch.full((1, 3, 24, 24), 255, dtype=torch.uint8)
    with torch.no_grad():
        wanted = nn.functional.normalize(clip.encode_image(torch.full((1, 3, 24, 24), 2.0)), dim=-1)
    torch.testing.assert_close(embed_pictures(clip, white), wanted)


PARAMS = [  # a model of OpenCLIP's training, what is taken, and what is said
    ("model: ViT-B-32-quickgelu", "quick_gelu", 8, "model ViT-B-32-quickgelu; taken to have quick"),
    ("model: ViT-B-32\nforce_quick_gelu: True", "quick_gelu", 8, "model ViT-B-32; taken to have q"),
    ("model: ViT-B-32\nforce_quick_gelu: False", "gelu", 8, "model ViT-B-32; taken to have gelu"),
    ("model: ViT-H-14", "gelu", 6, "taken to have gelu and heads of 80"),
    ("model: ViT-B-32\npretrained: openai", "gelu", 8, "nothing beside it says"),
    ("model: hf-hub:me/mine", "gelu", 8, "nothing beside it says"),
    ("garbage", "gelu", 8, "nothing beside it says"),
]


@pytest.mark.parametrize(("text", "activation", "heads", "said"), PARAMS)
def test_the_model_in_open_clips_params_tells_activation_and_width_of_heads(
    tmp_path, capsys, text, activation, heads, said
):
    wide = {name: t for name, t in RESAVED.items() if not name.startswith("visual.")}
    width, embed = 512 if heads == 8 else 480, RESAVED["visual.proj"].shape[1]
    block = "visual.transformer.resblocks.0."
    wide |= {"visual.conv1.weight": torch.zeros(width, 3, 8, 8),
             "visual.class_embedding": torch.zeros(width), "visual.proj": torch.zeros(width, embed),
             "visual.positional_embedding": torch.zeros(5, width),
             f"{block}attn.in_proj_weight": torch.zeros(3 * width, width),
             f"{block}attn.in_proj_bias": torch.zeros(3 * width)}  # fmt: skip
    for name in ("ln_pre", "ln_post", *(f"transformer.resblocks.0.ln_{n}" for n in (1, 2))):
        wide |= {f"visual.{name}.{part}": torch.ones(width) for part in ("weight", "bias")}
    for name in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
        wide |= {block + f"{name}.weight": torch.zeros(width, width)}
        wide |= {block + f"{name}.bias": torch.zeros(width)}
    put(tmp_path / "checkpoints")
    save_file(wide, tmp_path / "checkpoints" / "epoch_1.safetensors")
    (tmp_path / "params.txt").write_text(text)
    config = load(tmp_path / "checkpoints" / "epoch_1.safetensors").config
    assert (config.vision_activation, config.vision_heads) == (activation, heads)
    assert said in capsys.readouterr().err


def test_a_processors_reading_of_pictures_counts_more_than_the_preprocessors(tmp_path):
    files = (HUGGINGFACE / "config.json", HUGGINGFACE / "model.safetensors")
    pictures = {"image_mean": [0.5, 0.5, 0.5]}
    put(tmp_path, *files, processor_config={"image_processor": pictures})
    assert load(tmp_path).config.preprocessing.mean == (0.5, 0.5, 0.5)
    put(tmp_path, preprocessor_config={"image_mean": [0.25, 0.25, 0.25]})
    assert load(tmp_path).config.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"size": 24, "crop_size": 24, "resample": 3}, "openai"),
        ({"size": {"height": 24, "width": 24}, "do_center_crop": False}, "squash"),
        ({"size": {"shortest_edge": 24}, "resample": 2}, "bilinear"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "0.5"),
    ],
)
def test_hugging_faces_preprocessor_config_is_followed(tmp_path, said, wanted):
    files = (HUGGINGFACE / "config.json", HUGGINGFACE / "model.safetensors")
    clip = load(put(tmp_path, *files, preprocessor_config=said))
    assert wanted in str(clip.config.preprocessing)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"size": {"shortest_edge": 32}, "crop_size": 24}, "expected 24 pixels, as in its weights"),
        ({"size": {"longest_edge": 24}}, "expected 24 pixels"),
        ({"do_normalize": False}, "do_normalize = False: expected True"),
        ({"do_center_crop": False}, "expected a crop, or a size of height and width"),
        ({"image_std": "0.5"}, "image_std = '0.5': expected three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "expected three numbers of 0.001 or more"),
        ({"resample": 17}, "resample = 17: expected 3 or"),
        ({"rescale_factor": 1}, "rescale_factor = 1: expected 1/255"),
    ],
)
def test_a_reading_of_pictures_that_cannot_be_done_is_refused(tmp_path, said, why):
    files = (HUGGINGFACE / "config.json", HUGGINGFACE / "model.safetensors")
    folder = put(tmp_path, *files, preprocessor_config=said)
    found = refused(folder)
    assert f"{folder}: its preprocessor_config.json says {[*said][0]} = " in found and why in found


def test_parts_of_a_models_weights_are_read_without_an_index(tmp_path):
    state = load_file(HUGGINGFACE / "model.safetensors")
    put(tmp_path, HUGGINGFACE / "config.json")
    for n in (1, 2):
        part = {name: state[name] for name in sorted(state)[n - 1 :: 2]}
        save_file(part, tmp_path / f"model-0000{n}-of-00002.safetensors")
    for path in (tmp_path, tmp_path / "model-00001-of-00002.safetensors"):
        assert load(path).config == load(HUGGINGFACE).config


# --- taming's YAML --------------------------------------------------------------------------------

YAML = """\
model:
  base_learning_rate: 4.5e-06
  target: taming.models.cond_transformer.Net2NetTransformer
  params:
    transformer_config:
      target: taming.modules.transformer.mingpt.GPT
      params:
        vocab_size: 16
        n_head: 2  # as in the paper
    first_stage_config:
      target: taming.models.vqgan.VQModel
      params:
        beta: 0.25
        ddconfig:
          double_z: false
          resolution: 8
          ch_mult:
          - 1
          - 1
          attn_resolutions: [ 4 ]
    cond_stage_config:
      params: {n: 1}
data:
  params:
    - a: 1
      b: [x, {y: 1}]
""".replace("{n: 1}", "\n        n_classes: 3")


@pytest.mark.parametrize(
    ("checkpoint", "settings"),
    [
        ("vqgan.ckpt", "vqgan.yaml"),
        ("vqgan.ckpt", "2020-11-09T13-31-51-project.yaml"),
        ("run/checkpoints/last.ckpt", "run/configs/model.yaml"),
    ],
)
def test_the_yaml_beside_a_checkpoint_of_taming_tells_its_heads(
    tmp_path, capsys, checkpoint, settings
):
    for path in (tmp_path / checkpoint, tmp_path / settings):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(TAMING / "last.ckpt", tmp_path / checkpoint)
    (tmp_path / settings).write_text(YAML)
    prior = load(tmp_path / checkpoint)
    assert prior.config.heads == 2 and prior.config.classes == 3
    vqgan = load(tmp_path / checkpoint, kind="vqgan")
    assert vqgan.config.image_size == 8
    assert f"read with {tmp_path / settings}" in capsys.readouterr().err


def test_a_training_folder_of_taming_is_its_last_checkpoint(tmp_path):
    put(tmp_path / "checkpoints", TAMING / "last.ckpt")
    put(tmp_path / "configs")
    (tmp_path / "configs" / "model.yaml").write_text(YAML)
    assert load(tmp_path).config.heads == 2


def test_yaml_can_be_given_to_the_loader(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML)
    assert load_taming_transformer(TAMING / "last.ckpt", tmp_path / "a.yaml").config.heads == 2


def test_plain_yaml_has_numbers_words_and_lists(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "a: 1e-3\nb:\n- 1\n- x\nc: 'no: 1'\nd: [1,\n  2]\ne:\n    f: true\n    g:\nh: ~\n"
    )
    wanted = {"a": 0.001, "b": [1, "x"], "c": "no: 1", "d": [1, 2], "e": {"f": True, "g": None}}
    assert read_settings(path) == wanted | {"h": None}


@pytest.mark.parametrize(
    "text", ["a: &x 1", "a: *x", "a: |", "a: 1\na: 2", "a:\n- b: 1", "\ta: 1", "a: 1\n  b: 2", "x"]
)
def test_yaml_that_is_not_plain_is_refused_with_the_way_out(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=r"a.yaml: .* more than the plain YAML .* config.json"):
        read_settings(tmp_path / "a.yaml")


# --- what lies around -----------------------------------------------------------------------------

WRAPPED = [
    ["model_state_dict"], ["ema"], ["net"], ["params"], ["weights"], ["ema_state_dict"],
    ["model_ema"], ["state_dict", "module"], ["model", "_orig_mod"], ["state", "model", "clip"],
]  # fmt: skip


@pytest.mark.parametrize("names", WRAPPED, ids="/".join)
def test_the_state_dict_inside_is_found_and_it_is_said(tmp_path, capsys, names):
    stored = OPENAI
    for name in reversed(names):
        stored = {name: stored, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    torch.save(stored, tmp_path / "x.pt")
    assert read_tensors(tmp_path / "x.pt").keys() == OPENAI.keys()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and repr(".".join(names) + ".") in said


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "clip.", "model.module._orig_mod."])
def test_a_prefix_that_all_names_share_is_removed_and_it_is_said(tmp_path, capsys, prefix):
    save_file({prefix + n: t for n, t in OPENAI.items()}, tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors").config == load_openai_clip(OPENAI).config
    assert repr(prefix) in capsys.readouterr().err


def test_a_vqgans_prefix_is_removed_too(tmp_path):
    inner = "first_stage_model."
    state = {n: t for n, t in read_tensors(TAMING / "last.ckpt").items() if n.startswith(inner)}
    renamed = {f"vqgan.{n.removeprefix(inner)}": t for n, t in state.items()}
    torch.save({"net": renamed}, tmp_path / "x.pt")
    assert load(tmp_path / "x.pt").config.codes == (16,)


def test_of_trained_and_averaged_weights_the_averaged_ones_are_taken_and_it_is_said(
    tmp_path, capsys
):
    averaged = {f"module.{n}": t for n, t in RESAVED.items()} | {"n_averaged": torch.tensor(2)}
    trained = {n: torch.zeros_like(t) for n, t in RESAVED.items()}
    torch.save({"model": trained, "ema": averaged}, tmp_path / "x.pt")
    assert torch.equal(read_tensors(tmp_path / "x.pt")["visual.proj"], RESAVED["visual.proj"])
    assert "'ema.module.'; not 'model.', which" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_of_a_vqgan_of_latent_diffusion_the_trained_weights_are_taken_as_it_decodes(
    tmp_path, capsys, prefix
):
    inner = "first_stage_model."
    state = {n.removeprefix(inner): t for n, t in read_tensors(TAMING / "last.ckpt").items()
             if n.startswith(inner)}  # fmt: skip
    averages = {f"model_ema.{n.replace('.', '')}": torch.zeros_like(t) for n, t in state.items()}
    save_file({prefix + n: t for n, t in {**state, **averages}.items()}, tmp_path / "x.safetensors")
    found = load(tmp_path / "x.safetensors", kind="vqgan").quantizer.codes
    assert torch.equal(found, state["quantize.embedding.weight"])
    assert "trained weights are taken; not their averages, model_ema" in capsys.readouterr().err


# --- what is no checkpoint, or another's ----------------------------------------------------------

KERNEL, BOOK = torch.zeros(4, 3, 3, 3), {"quantize.embedding.weight": torch.zeros(4, 4)}
STRANGERS = {
    "a VQGAN of LlamaGen": {"encoder.conv_blocks.0.res.0.conv1.weight": KERNEL, **BOOK},
    "an autoencoder of diffusers": {"encoder.down_blocks.0.resnets.0.conv1.weight": KERNEL, **BOOK},
    "a VQGAN of MaskGIT": {"encoder.mid.0.conv1.weight": KERNEL, **BOOK},
    "a U-Net": {"down_blocks.0.resnets.0.conv1.weight": KERNEL},
    "a language model": {"transformer.h.0.attn.c_attn.weight": KERNEL},
    "a CLIP of another kind": {"visual.trunk.patch_embed.proj.weight": KERNEL},
    "a run's weights without its folder": {"image_encoder.patches.weight": KERNEL},
}


@pytest.mark.parametrize("what", STRANGERS)
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}])
def test_a_model_of_others_is_said_to_be_what_it_is(tmp_path, what, wrap):
    torch.save(wrap(STRANGERS[what]), tmp_path / "x.pt")
    assert f"x.pt is {what}" in refused(tmp_path / "x.pt", kind="vqgan")


def test_a_folder_of_another_model_is_said_to_be_what_it_is(tmp_path):
    put(tmp_path, HUGGINGFACE / "model.safetensors", config={"model_type": "siglip"})
    assert "its config.json says model_type = 'siglip': expected 'clip'" in refused(tmp_path)


INSTEAD = {
    "a web page": b"<!DOCTYPE html><html>Sign in</html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    'text (\'{"error"': b'{"error": "not found"}',
    "empty": b"",
    "GGUF": b"GGUF\x03\0\0\0",
    "HDF5": b"\x89HDF\r\n\x1a\n\0",
    "a compressed file": b"\x1f\x8b\x08\0\0",
    "a tar file": b"x".ljust(257, b"\0") + b"ustar\0",
    "an array of NumPy": b"\x93NUMPY\1\0",
    "a picture": b"\x89PNG\r\n\x1a\n\0",
}


@pytest.mark.parametrize("what", INSTEAD)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.bin"])
def test_a_file_that_is_no_checkpoint_is_said_to_be_what_it_is(tmp_path, what, name):
    (tmp_path / name).write_bytes(INSTEAD[what])
    assert f"no checkpoint of PyTorch or safetensors but {what}" in refused(tmp_path / name)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    save_file(
        OPENAI | {"visual.proj": OPENAI["visual.proj"] * math.nan}, tmp_path / "x.safetensors"
    )
    assert "has values that are no numbers" in refused(tmp_path / "x.safetensors")


def test_a_zip_file_of_other_things_is_named_by_what_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("photos/cat.jpg", b"1")
    assert "a zip file of photos/cat.jpg: unpack it" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path, zipped):
    torch.save({"net": nn.Linear(2, 2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    said = refused(tmp_path / "x.pt")
    assert "a whole pickled model" in said and "save model.state_dict()" in said


def test_a_file_may_have_any_name_that_others_gave_it(tmp_path):
    save_file(OPENAI, tmp_path / "pytorch_model.bin")
    torch.save(OPENAI, tmp_path / "x.safetensors")
    for name in ("pytorch_model.bin", "x.safetensors"):
        assert read_tensors(tmp_path / name).keys() == OPENAI.keys()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("content", [{"a": np.ones(3)}, np.ones(3), [1, "x"]], ids=type)
def test_pickled_arrays_are_refused_in_one_line_and_torch_says_nothing(
    tmp_path, recwarn, protocol, content
):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(content, protocol))
    assert "no " in refused(tmp_path / "x.pt") and not recwarn.list


def test_a_demos_folder_is_said_to_be_runs_and_which_there_are(tmp_path):
    for name in ("clip", "vqgan"):
        a_run(put(tmp_path / name))
    said = refused(tmp_path)
    assert f"is a folder of runs: give one of them, {tmp_path}/clip or {tmp_path}/vqgan" in said


def test_a_folder_of_runs_names_those_that_fit_or_says_that_none_does(tmp_path):
    for name in ("photos", "cars"):
        a_run(put(tmp_path / name))
    save_config(tmp_path / "cars", {"kind": "clip"})
    with pytest.raises(UserError, match=f"give one of them, {tmp_path}/photos$"):
        load(tmp_path, kind="vqgan")
    with pytest.raises(UserError, match="none of them is a dalle, which train.py dalle makes$"):
        load(tmp_path, kind="dalle")


@pytest.mark.parametrize("name", ["m.gguf", "m.onnx", "m.msgpack"])
def test_a_folder_with_weights_of_another_program_names_them_and_what_to_give(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF\3\0\0\0")
    said = refused(tmp_path)
    assert f"but {name} (" in said and "give what it was made from" in said
    put(tmp_path, config={"model_type": "clip"})
    assert f"{name} (" in refused(tmp_path)


@pytest.mark.parametrize("name", ["ViT-B/32", "openai/clip-vit-base-patch32", "no/such/run"])
def test_a_name_is_not_downloaded_and_it_is_said_what_to_give(name):
    said = refused(name)
    assert "nothing is downloaded" in said and "ViT-B-32.pt" in said


# --- a run's own files ----------------------------------------------------------------------------


def a_run(folder: Path) -> Path:
    config = {"kind": "vqgan", "model": {}, "train": {}, "data": "shapes"}
    save_config(folder, config)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "state/step-00000001.pt"])
def test_a_file_of_a_run_stands_for_its_folder(tmp_path, capsys, name):
    run = a_run(tmp_path)
    save_state(run, {"step": 1})
    save_file({"a": torch.ones(1)}, run / "model.safetensors")
    with pytest.raises(UserError, match=f"{run}: model.safetensors does not fit config.json"):
        load(run / name)
    assert f"is a part of the run {run}, which is used" in capsys.readouterr().err


def test_weights_that_may_not_be_read_are_not_said_to_be_damaged(tmp_path, monkeypatch):
    run, usual = a_run(tmp_path), builtins.open
    save_file({"a": torch.ones(1)}, run / "model.safetensors")

    def locked(file, *how, **more):
        if Path(file).name == "model.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied")
        return usual(file, *how, **more)

    monkeypatch.setattr("builtins.open", locked)
    for read in (lambda: load_weights(run), lambda: read_tensors(run / "model.safetensors")):
        with pytest.raises(UserError, match=f"cannot read {run}/model.safetensors: Permission den"):
            read()


def test_damaged_weights_name_the_way_out_that_there_is(tmp_path):
    run = a_run(tmp_path)
    (run / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="no whole state .* train again in another --out"):
        load_weights(run)
    save_state(run, {"step": 1})
    with pytest.raises(UserError, match="--resume writes it again from the run's newest state"):
        load_weights(run)
