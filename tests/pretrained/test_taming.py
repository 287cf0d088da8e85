"""VQGANs of taming-transformers: our numbers against the original's, and what is refused."""

import collections
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import FIXTURES
from safetensors.torch import load_file, save_file

import minimodal
from minimodal.blocks.discriminator import (
    adversarial_ramp,
    generator_loss,
    hinge_loss,
    weigh,
)
from minimodal.blocks.painter import Request
from minimodal.blocks.quantizer_variants import codebook_loss
from minimodal.errors import UserError
from minimodal.pretrained import load_taming_transformer, load_taming_vqgan
from minimodal.pretrained.files import read_tensors


class Fixture:
    """Weights, inputs and outputs of the original, with the tolerance of each."""

    def __init__(self, folder) -> None:
        self.folder, self.io = folder, load_file(folder / "io.safetensors")
        meta = json.loads((folder / "meta.json").read_text())
        self.config, self.tolerance = meta["config"], meta["tolerance"]
        self.state = load_file(folder / "model.safetensors")

    def close(self, found: torch.Tensor, name: str) -> None:
        wanted = self.io[name]
        found = found.detach().reshape(wanted.shape)
        if wanted.dtype == torch.int64:
            assert torch.equal(found, wanted)
            return
        atol = self.tolerance[name]["suggested_atol"]
        torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def original(shared):
    return Fixture(shared / "parity" / "vqgan_taming")


@pytest.fixture
def vqgan(original):
    return load_taming_vqgan(original.folder / "model.safetensors")


# --- the same numbers ----------------------------------------------------------------------------


@torch.no_grad()
def test_pictures_become_the_originals_codes(original, vqgan):
    images = original.io["in.image"]
    codes = vqgan.encode(images)
    original.close(vqgan.encoder(images), "mid.encoder")
    original.close(vqgan.latents(images), "out.z_pre_quant")
    original.close(codes.indices.flatten(), "out.indices_flat")
    original.close(codes.indices, "out.indices_bhw")
    original.close(codes.z, "out.z_q")
    original.close(codes.loss, "out.codebook_loss")


@torch.no_grad()
def test_codes_become_the_originals_pictures(original, vqgan):
    original.close(vqgan.from_codes(original.io["out.z_q"]), "mid.post_quant_conv")
    original.close(vqgan.decode_unclamped(original.io["out.z_q"]), "out.reconstruction")
    vectors = vqgan.quantizer.vectors(original.io["out.indices_bhw"])
    original.close(vqgan.decode_unclamped(vectors), "out.decoded_from_indices")
    clamped = original.io["out.decoded_from_indices"].clamp(-1, 1)
    found = vqgan.decode_indices(original.io["out.indices_bhw"])
    torch.testing.assert_close(found, clamped, rtol=0, atol=5e-5)


BETAS = {  # where β sits: the paper has it on the encoder's term, the original's default does not
    "nonlegacy": dict(commitment=0.25, codebook=1.0),
    "legacy": dict(commitment=1.0, codebook=0.25),
}


@pytest.mark.parametrize("kind", BETAS)
def test_the_codebook_loss_has_the_originals_gradients(original, vqgan, kind):
    z = original.io["out.z_pre_quant"].clone().requires_grad_()
    codes = vqgan.quantizer.codes
    indices = original.io["out.indices_bhw"]
    loss = codebook_loss(z, vqgan.quantizer.vectors(indices), **BETAS[kind])
    loss.backward()
    original.close(loss, f"out.codebook_loss.{kind}")
    original.close(z.grad, f"out.codebook_loss.{kind}.grad_z")
    original.close(codes.grad, f"out.codebook_loss.{kind}.grad_embedding")


def test_our_codebook_loss_has_the_papers_beta(original, vqgan):
    z = original.io["out.z_pre_quant"].clone().requires_grad_()
    vqgan.quantizer(z).loss.backward()
    original.close(z.grad, "out.codebook_loss.nonlegacy.grad_z")
    original.close(vqgan.quantizer.codes.grad, "out.codebook_loss.nonlegacy.grad_embedding")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_discriminators_verdicts_and_losses_are_the_originals(original, vqgan, mode):
    judge = vqgan.discriminator.train(mode == "train")
    real = judge(original.io["in.image"])
    fake = judge(original.io["out.reconstruction"])
    original.close(real, f"out.disc.{mode}.logits_real")
    original.close(fake, f"out.disc.{mode}.logits_fake")
    original.close(hinge_loss(real, fake), f"out.disc.{mode}.hinge_d_loss")


def generator_step(original, vqgan, mode: str, *, step: int):
    """The original's generator loss: β on the codebook's term, as its default has it."""
    judge = vqgan.discriminator.train(mode == "train")
    images = original.io["in.image"]
    latents = vqgan.latents(images)
    vectors = vqgan.quantizer.vectors(original.io["out.indices_bhw"])
    decoded = vqgan.decode_unclamped(latents + (vectors - latents).detach())
    nll, adversarial = F.l1_loss(decoded, images), generator_loss(judge(decoded))
    term, weight = weigh(nll, adversarial, decoded, vqgan.last_layer)
    factor = adversarial_ramp(step, start=9, ramp=1)  # the original's disc_start is 10
    codebook = codebook_loss(latents, vectors, **BETAS["legacy"])
    return nll + factor * 0.8 * weight * term + codebook, nll, term, weight


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_lambda_and_the_generators_loss_and_gradients_are_the_originals(original, vqgan, mode):
    loss, nll, term, weight = generator_step(original, vqgan, mode, step=10)
    loss.backward()
    prefix = f"out.loss.{mode}.generator"
    original.close(nll, f"{prefix}.nll_loss")
    original.close(term, f"{prefix}.g_loss")
    original.close(0.8 * weight, f"{prefix}.d_weight")
    original.close(loss, f"{prefix}.total_loss")
    original.close(vqgan.last_layer.grad, f"{prefix}.grad.decoder.conv_out.weight")
    original.close(vqgan.encoder.conv_in.weight.grad, f"{prefix}.grad.encoder.conv_in.weight")
    original.close(vqgan.quantizer.codes.grad, f"{prefix}.grad.quantize.embedding.weight")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_before_its_start_the_game_does_not_count_as_in_the_original(original, vqgan, mode):
    loss = generator_step(original, vqgan, mode, step=9)[0]
    original.close(loss, f"out.loss.{mode}.generator.total_loss_before_disc_start")


# --- what shapes tell ----------------------------------------------------------------------------


def test_sizes_are_read_off_the_weights(original, vqgan):
    config, stated = vqgan.config, original.config["ddconfig"]
    assert config.channels == stated["ch"] and list(config.multipliers) == stated["ch_mult"]
    assert config.depth == stated["num_res_blocks"] and config.factor == 4
    assert config.codes == (original.config["n_embed"],)
    assert config.code_width == original.config["embed_dim"]


def test_with_its_config_the_resolution_is_known(original):
    vqgan = load_taming_vqgan(original.state, original.config)
    assert vqgan.config.image_size == 32 and vqgan.config.attention == (8,)


@pytest.mark.parametrize("nest", [lambda c: {"model": {"params": c}}, lambda c: c["ddconfig"]])
def test_a_config_may_be_nested_as_the_original_nests_it(original, nest):
    vqgan = load_taming_vqgan(original.state, nest(original.config))
    assert vqgan.config.image_size == 32


def test_a_transformers_checkpoint_holds_its_first_stage(shared):
    fixture = Fixture(shared / "parity" / "gpt_taming_classcond")
    vqgan = load_taming_vqgan(fixture.folder / "model.safetensors", fixture.config)
    with torch.no_grad():
        codes = vqgan.encode(fixture.io["in.image"]).indices
    fixture.close(codes, "out.z_indices")


def test_load_knows_the_originals_names(original):
    vqgan = minimodal.load(original.folder / "model.safetensors")
    assert vqgan.run["kind"] == "vqgan" and not vqgan.training


# --- files and what is refused -------------------------------------------------------------------


WRONG = [
    ({"ch_mult": [1, 2]}, r"ch_mult = \[1, 2\] and its weights say \[1, 2, 2\]"),
    ({"n_embed": 1024}, "n_embed = 1024 and its weights say 64"),
    ({"attn_resolutions": [16], "resolution": 32}, "attention at levels"),
    ({"double_z": True}, "double_z = True"),
    ({"resolution": 30}, "resolution 30 is not a multiple of 4"),
    ({"resamp_with_conv": False}, "resamp_with_conv = False and its weights say True"),
    ({"remap": "used.npy"}, "its codes are remapped"),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_config_that_disagrees_with_the_weights_is_an_error(original, config, message):
    with pytest.raises(UserError, match=message):
        load_taming_vqgan(original.state, config)


ILL_TYPED = [
    ({"attn_resolutions": 16}, r"attn_resolutions = 16: expected a list"),
    ({"attn_resolutions": None}, "attn_resolutions = None: expected a list"),
    ({"beta": "x"}, "beta = 'x': expected a number of 0 or more"),
    ({"beta": None}, "beta = None: expected a number"),
    ({"beta": -3}, "beta = -3: expected a number"),
    ({"resolution": "32"}, "resolution = '32': expected a whole number of 1 or more"),
    ({"model": "vqgan"}, "model = 'vqgan': expected an object"),
    ({"ddconfig": [1]}, r"ddconfig = \[1\]: expected an object"),
]


@pytest.mark.parametrize(("config", "message"), ILL_TYPED)
def test_a_config_with_a_field_of_another_type_is_an_error_that_names_it(
    original, config, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        load_taming_vqgan(original.state, config)
    save_file(original.state, tmp_path / "model.safetensors")
    whole = config if "model" in config else {"model": config}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=f"model.safetensors: its config.json says .*{message}"):
        minimodal.load(tmp_path / "model.safetensors")


def test_a_codebook_of_which_a_part_is_used_is_refused(original):
    with pytest.raises(UserError, match="its codes are remapped"):
        load_taming_vqgan({**original.state, "quantize.used": torch.arange(10)})


def test_a_missing_tensor_is_named(original):
    state = {k: v for k, v in original.state.items() if k != "decoder.mid.attn_1.v.bias"}
    with pytest.raises(UserError, match="lacks decoder.mid.attn_1.v.bias"):
        load_taming_vqgan(state)


def test_a_surplus_tensor_is_named(original):
    with pytest.raises(UserError, match="encoder.more.weight has no place"):
        load_taming_vqgan({**original.state, "encoder.more.weight": torch.ones(1)})


def test_a_tensor_of_another_shape_is_named(original):
    state = {**original.state, "decoder.conv_in.bias": torch.ones(3)}
    with pytest.raises(UserError, match=r"decoder.conv_in.bias has shape \(3,\)"):
        load_taming_vqgan(state)


def test_a_checkpoint_without_a_discriminator_has_none(original):
    state = {k: v for k, v in original.state.items() if not k.startswith("loss.")}
    assert load_taming_vqgan(state).discriminator is None


MISFITS = {
    "has shape \\(8, 6, 4, 4\\)": {"loss.discriminator.main.0.weight": torch.ones(8, 6, 4, 4)},
    "lacks main.2.weight": {"loss.discriminator.main.2.weight": None},
    "its norms are not batch norms": {"loss.discriminator.main.3.running_mean": None},
}


@pytest.mark.parametrize("why", MISFITS)
def test_a_discriminator_that_does_not_fit_is_left_out_and_it_is_said(original, capsys, why):
    state = {k: v for k, v in {**original.state, **MISFITS[why]}.items() if v is not None}
    vqgan = load_taming_vqgan(state)
    said = capsys.readouterr().err
    assert vqgan.discriminator is None and said.count("\n") == 1
    assert re.search(f"discriminator.* {why}.*; it is left", said)


def test_half_precision_becomes_float32(original):
    state = {k: v.half() if v.is_floating_point() else v for k, v in original.state.items()}
    vqgan = load_taming_vqgan(state)
    assert all(p.dtype == torch.float32 for p in vqgan.parameters())
    with torch.no_grad():
        vqgan.encode(original.io["in.image"])


class ModelCheckpoint:
    """Stands for a class that is not installed where the checkpoint is read."""

    __module__ = "pytorch_lightning"


def lightning(path, state, extra) -> None:
    """A checkpoint as Lightning saves it: weights, and objects of its own classes beside them."""
    library = types.ModuleType("pytorch_lightning")
    library.ModelCheckpoint = ModelCheckpoint
    callbacks = {ModelCheckpoint: {"best": ModelCheckpoint()}}
    sys.modules["pytorch_lightning"] = library
    try:
        torch.save({"callbacks": callbacks, "state_dict": state, **extra}, path)
    finally:
        del sys.modules["pytorch_lightning"]


def test_lightnings_checkpoints_are_read_without_lightning(original, tmp_path):
    lightning(tmp_path / "last.ckpt", original.state, {"epoch": 3, "lr_schedulers": []})
    found = load_taming_vqgan(tmp_path / "last.ckpt").state_dict()
    wanted = load_taming_vqgan(original.state).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


BESIDE = {
    "empty tensor": torch.empty(0),
    "size": torch.Size([1, 2]),
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "number": np.float64(3),
    "array": np.ones(3),
    "slice": slice(1, 2),
    "range": range(3),
    "path": Path("a"),
    "defaultdict": collections.defaultdict(list),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_else_trainings_keep_does_not_spoil_a_lightning_checkpoint(original, tmp_path, what):
    lightning(tmp_path / "last.ckpt", original.state, {"kept": [BESIDE[what]]})
    found = read_tensors(tmp_path / "last.ckpt")
    assert all(torch.equal(found[name], tensor) for name, tensor in original.state.items())


class Attack:
    def __reduce__(self):
        return (__import__("os").mkdir, ("never",))


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lightning(tmp_path / "bad.ckpt", original.state, {"hyper_parameters": Attack()})
    with pytest.raises(UserError, match="mkdir, which is refused"):
        load_taming_vqgan(tmp_path / "bad.ckpt")
    assert not (tmp_path / "never").exists()


def test_a_checkpoint_that_is_cut_off_is_an_error(original, tmp_path):
    lightning(tmp_path / "last.ckpt", original.state, {})
    data = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cut.ckpt"):
        load_taming_vqgan(tmp_path / "cut.ckpt")


def test_a_clip_is_no_vqgan(tmp_path):
    save_file({"visual.conv1.weight": torch.ones(4, 3, 8, 8)}, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match="no VQGAN that this program knows"):
        load_taming_vqgan(tmp_path / "clip.safetensors")


# --- a tiny checkpoint, made with the original (benchmarks/make_vqgan_fixtures.py) ----------------

TINY = FIXTURES / "vqgan_taming"


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_lightning_checkpoint_computes_what_the_original_computes():
    vqgan, io = load_taming_vqgan(TINY / "last.ckpt"), load_file(TINY / "io.safetensors")
    codes = vqgan.encode(io["images"])
    assert torch.equal(codes.indices, io["indices"])
    same(vqgan.latents(io["images"]), io["latents"])
    same(codes.z, io["vectors"])
    same(codes.loss, io["loss"])
    same(vqgan.decode_unclamped(codes.z), io["pictures"])
    same(vqgan.discriminator(io["images"]), io["verdicts"])


@torch.no_grad()
def test_its_transformer_computes_what_the_original_computes():
    io = load_file(TINY / "io.safetensors")
    prior = load_taming_transformer(TINY / "last.ckpt", TINY / "config.json")
    assert torch.equal(prior.painter.vqgan.encode(io["images"]).indices, io["indices"])
    same(prior.code_logits(io["indices"], io["labels"]), io["logits"])


def test_load_takes_the_transformer_with_the_config_beside_it():
    prior = minimodal.load(TINY / "last.ckpt")
    assert prior.run["kind"] == "vqgan-prior" and prior.config.heads == 2
    assert prior.class_names == ["0", "1", "2"]
    drawn = prior.draw(["1"], Request(2, torch.Generator().manual_seed(0)), size=(12, 10))
    assert drawn.shape == (2, 3, 10, 12)


def test_load_takes_its_first_stage_where_a_vqgan_is_wanted():
    assert minimodal.load(TINY / "last.ckpt", kind="vqgan").config.codes == (16,)
