"""Original checkpoints in our code: equal to the originals, whatever file they come in."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import FIXTURES
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import minimodal
from minimodal.clip import CLIP
from minimodal.data.preprocessing import clip_preprocess
from minimodal.errors import UserError
from minimodal.pretrained import load_huggingface_clip, load_open_clip, load_openai_clip
from minimodal.pretrained.files import read_tensors
from minimodal.runs import load

DATA = FIXTURES
VIT, RESNET = DATA / "clip_openai_vit", DATA / "clip_openai_resnet"
HUGGINGFACE, OPEN_CLIP = DATA / "clip_huggingface", DATA / "clip_open_clip"
OPEN_CLIP_CONFIG = OPEN_CLIP / "open_clip_config.json"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- equal to the originals ----------------------------------------------------------------------


def check(clip: CLIP, io: dict[str, torch.Tensor], tolerance: dict[str, float]) -> None:
    """Features, not normalised, and logits as recorded; `tolerance` by name of the output."""
    images = io["in.image"] if "in.image" in io else io["in.pixel_values"]
    tokens = io["in.text"] if "in.text" in io else io["in.input_ids"]
    with torch.no_grad():
        logits = clip(images, tokens)
        found = {
            "out.logits_per_image": logits.per_image,
            "out.logits_per_text": logits.per_text,
        }
        image, text = clip.encode_image(images), clip.encode_text(tokens)
    for name in ("out.encode_image", "out.image_features_unnormalised"):
        found[name] = image
    for name in ("out.encode_text", "out.text_features_unnormalised"):
        found[name] = text
    compared = found.keys() & io.keys()
    assert len(compared) >= 3
    for name in compared:
        torch.testing.assert_close(found[name], io[name], rtol=0, atol=tolerance[name], msg=name)


def recorded(shared: Path, name: str) -> tuple[Path, dict, dict, dict]:
    """A fixture: its folder, tensors, tolerances and the configuration of its model."""
    folder = shared / "parity" / name
    meta = json.loads((folder / "meta.json").read_text())
    tolerance = {name: t["suggested_atol"] for name, t in meta["tolerance"].items()}
    return folder, load_file(folder / "io.safetensors"), tolerance, meta["config"]


@pytest.mark.parametrize("name", ["clip_openai_vit", "clip_openai_resnet"])
def test_openai_checkpoints_compute_what_openai_computes(name, shared):
    folder, io, tolerance, _ = recorded(shared, name)
    check(load_openai_clip(folder / "model.safetensors"), io, tolerance)


def test_huggingface_checkpoints_compute_what_transformers_computes(shared):
    folder, io, tolerance, _ = recorded(shared, "clip_hf_quickgelu")
    check(load_huggingface_clip(folder), io, tolerance)
    check(minimodal.load(folder), io, tolerance)


def test_open_clip_checkpoints_compute_what_open_clip_computes(shared):
    folder, io, tolerance, config = recorded(shared, "clip_open_clip")
    check(load_open_clip(folder / "model.safetensors", config), io, tolerance)


@pytest.mark.parametrize("number", range(4))
def test_preprocessing_equals_openais_on_their_fixtures(number, shared):
    folder = shared / "parity" / "preprocess_openai"
    file = sorted(folder.glob("*.png"))[number]
    wanted = load_file(folder / "io.safetensors")[f"out.32.{number:02d}"]
    found = clip_preprocess(Image.open(file), 32)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


class Everywhere(dict):
    """1e-4 of the largest value, for every output."""

    def __init__(self, io: dict[str, torch.Tensor]) -> None:
        super().__init__({n: 1e-4 * float(t.abs().max()) for n, t in io.items() if "out." in n})


@pytest.mark.parametrize("folder", [VIT, RESNET], ids=lambda folder: folder.name)
def test_tiny_openai_checkpoints_compute_what_openai_computes(folder):
    io = load_file(folder / "io.safetensors")
    check(load_openai_clip(folder / "model.safetensors"), io, Everywhere(io))


@pytest.mark.parametrize("name", ["clip_huggingface", "clip_huggingface_eos2"])
def test_tiny_huggingface_checkpoints_compute_what_transformers_computes(name):
    io = load_file(DATA / name / "io.safetensors")
    check(load_huggingface_clip(DATA / name), io, Everywhere(io))


def test_tiny_open_clip_checkpoints_with_a_logit_bias_compute_what_open_clip_computes():
    io = load_file(OPEN_CLIP / "io.safetensors")
    clip = load_open_clip(OPEN_CLIP / "model.safetensors", OPEN_CLIP_CONFIG)
    assert clip.logit_bias is not None
    check(clip, io, Everywhere(io))


def test_tiny_pictures_are_preprocessed_as_openai_does():
    io = load_file(DATA / "preprocess" / "io.safetensors")
    files = sorted((DATA / "preprocess").glob("*.png"))
    assert len(files) == 3
    for file in files:
        found = clip_preprocess(Image.open(file), 16)
        torch.testing.assert_close(found, io[f"out.{file.stem}"], rtol=0, atol=1e-6)


# --- every kind of file --------------------------------------------------------------------------


def as_modules(state: dict[str, torch.Tensor]) -> nn.Module:
    """Modules whose parameters have these names."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        if tensor.is_floating_point():
            place.register_parameter(last, nn.Parameter(tensor))
        else:
            place.register_buffer(last, tensor)
    return root


def same(first: CLIP, second: CLIP) -> None:
    assert first.config == second.config
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.fixture
def archive(tmp_path):
    """The tiny ViT as OpenAI publishes its models: a TorchScript archive in half precision."""
    path = tmp_path / "ViT.pt"
    torch.jit.script(as_modules(weights(VIT))).save(str(path))
    return path


def test_a_torchscript_archive_is_read_without_running_it(archive, monkeypatch):
    wanted = load_openai_clip(weights(VIT))

    def forbidden(*_, **__):
        raise AssertionError("the archive's code was compiled")

    monkeypatch.setattr(torch.jit, "load", forbidden)
    same(load_openai_clip(archive), wanted)
    same(load(archive), wanted)


def test_half_precision_becomes_float32():
    assert any(tensor.dtype == torch.float16 for tensor in weights(VIT).values())
    clip = load_openai_clip(weights(VIT))
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_of_a_training_are_read(tmp_path, legacy):
    state = {f"module.{name}": tensor for name, tensor in weights(OPEN_CLIP).items()}
    path = tmp_path / "epoch_1.pt"
    torch.save(
        {"epoch": 1, "name": "tiny", "state_dict": state},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    wanted = load_open_clip(weights(OPEN_CLIP), OPEN_CLIP_CONFIG)
    same(load_open_clip(path, OPEN_CLIP_CONFIG), wanted)


def test_load_finds_the_loader_by_the_names_in_a_file(tmp_path):
    same(load(VIT / "model.safetensors"), load_openai_clip(weights(VIT)))
    same(load(HUGGINGFACE), load_huggingface_clip(HUGGINGFACE))
    same(load(HUGGINGFACE / "model.safetensors"), load_huggingface_clip(HUGGINGFACE))
    same(load(OPEN_CLIP), load_open_clip(weights(OPEN_CLIP), OPEN_CLIP_CONFIG))


def test_huggingface_weights_may_lie_in_several_files(tmp_path):
    state = weights(HUGGINGFACE)
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((HUGGINGFACE / "config.json").read_text())
    same(load_huggingface_clip(tmp_path), load_huggingface_clip(HUGGINGFACE))


def test_the_tensors_given_are_not_changed():
    state = weights(VIT)
    before = {name: tensor.clone() for name, tensor in state.items()}
    clip = load_openai_clip(state)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_a_loaded_checkpoint_can_be_trained_further():
    clip = load_huggingface_clip(HUGGINGFACE)
    io = load_file(HUGGINGFACE / "io.safetensors")
    clip(io["in.image"], io["in.text"]).per_image.sum().backward()
    assert all(parameter.grad is not None for parameter in clip.parameters())


# --- what is refused -----------------------------------------------------------------------------


class Evil:
    """A pickle that runs a command when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load(path, kind="clip")
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_a_malicious_checkpoint_is_refused_and_does_nothing(tmp_path):
    marker, path = tmp_path / "pwned", tmp_path / "clip.pt"
    torch.save({"state_dict": {"visual.proj": Evil(marker)}}, path)
    assert "safely" in refused(path)
    assert not marker.exists()


def test_a_malicious_archive_is_refused_and_does_nothing(tmp_path, archive):
    marker, path = tmp_path / "pwned", tmp_path / "evil.pt"
    with zipfile.ZipFile(archive) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            evil = name.endswith("/data.pkl")
            bad.writestr(name, pickle.dumps(Evil(marker)) if evil else good.read(name))
    assert "refused" in refused(path)
    assert not marker.exists()


def test_an_archive_that_contains_itself_comes_to_an_end(tmp_path, archive):
    path = tmp_path / "round.pt"
    root = b"c__torch__\nM\n)\x81"  # an instance of the archive's class M
    # Its attributes a and b are the module itself: the pickle's memo makes the circle.
    content = b"\x80\x02" + root + b"q\x00}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub."
    with zipfile.ZipFile(archive) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, content if name.endswith("/data.pkl") else good.read(name))
    assert "no tensors" in refused(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_file_is_one_clear_line(tmp_path, archive, share):
    plain = tmp_path / "plain.pt"
    torch.save(weights(VIT), plain)
    for file in (archive, plain, VIT / "model.safetensors"):
        content = file.read_bytes()
        cut = tmp_path / f"cut{file.suffix}"
        cut.write_bytes(content[: int(len(content) * share)])
        refused(cut)


def test_another_architecture_is_named_by_what_it_lacks_or_has(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    assert "lacks visual.conv1.weight" in refused(path)
    save_file(weights(VIT) | {"visual.extra": torch.zeros(3)}, path)
    assert "visual.extra has no place" in refused(path)
    state = weights(VIT)
    del state["ln_final.bias"]
    save_file(state, path)
    assert "lacks ln_final.bias" in refused(path)
    state = weights(VIT)
    state["visual.class_embedding"] = torch.zeros(7)
    save_file(state, path)
    assert "class_token has shape (7,)" in refused(path)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_tensors(tmp_path / "no.pt")


def test_what_our_towers_do_not_compute_is_refused():
    config = json.loads(OPEN_CLIP_CONFIG.read_text())["model_cfg"]
    text = {**config["text_cfg"], "no_causal_mask": True}
    with pytest.raises(UserError, match="text_cfg.no_causal_mask = True: expected False"):
        load_open_clip(weights(OPEN_CLIP), {**config, "text_cfg": text})


def test_an_activation_that_we_do_not_have_is_refused():
    config = json.loads((HUGGINGFACE / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    with pytest.raises(UserError, match="relu"):
        load_huggingface_clip(weights(HUGGINGFACE), config)


def test_a_checkpoint_where_a_run_is_expected_is_refused():
    with pytest.raises(UserError, match="no run folder; a trained dalle"):
        load(VIT / "model.safetensors", kind="dalle")
    with pytest.raises(UserError, match="holds a clip; a vqgan is expected"):
        load(VIT / "model.safetensors", kind="vqgan")


def test_a_pipe_given_as_a_checkpoint_is_refused_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(UserError, match="is no file but a folder, pipe or device"):
        load(tmp_path / "model.pt")
