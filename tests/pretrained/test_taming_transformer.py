"""Transformers of taming-transformers: our numbers against the original's, what a configuration
tells, and which models are refused."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import FIXTURES
from helpers.tiny import generator, noise
from safetensors.torch import load_file

import minimodal
from minimodal.blocks.sampling import SamplingConfig, filter_logits
from minimodal.errors import UserError
from minimodal.pretrained import load_taming_transformer
from minimodal.pretrained.files import read_tensors
from minimodal.vqgan_prior import VQGANPriorConfig

TINY = FIXTURES / "vqgan_taming"
CONFIG = json.loads((TINY / "config.json").read_text())
STATE = read_tensors(TINY / "last.ckpt")
GREEDY = SamplingConfig(temperature=0)
ALONE = {"cond_stage": "__is_unconditional__"}


def read(config: dict | None = None, **tensors: torch.Tensor):
    return load_taming_transformer({**STATE, **tensors}, {**CONFIG, **(config or {})})


# --- the original's numbers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(shared):
    folder = shared / "parity" / "gpt_taming_classcond"
    meta = json.loads((folder / "meta.json").read_text())
    prior = load_taming_transformer(folder / "model.safetensors", meta["config"])
    return prior, load_file(folder / "io.safetensors"), meta["tolerance"]


def close(found: torch.Tensor, name: str, original) -> None:
    _, io, tolerance = original
    if io[name].dtype == torch.int64:
        assert torch.equal(found.reshape(io[name].shape), io[name])
    else:
        atol = tolerance[name]["suggested_atol"]
        torch.testing.assert_close(found, io[name], rtol=0, atol=atol)


@torch.no_grad()
def test_logits_and_losses_are_the_originals(original):
    prior, io, _ = original
    logits = prior(io["in.idx"][:, :-1])
    close(logits, "out.gpt.logits", original)
    wanted = io["in.idx"][:, 1:].flatten()
    close(F.cross_entropy(logits.flatten(0, 1), wanted), "out.gpt.loss_next_token", original)
    vectors = io["in.prepended_embeddings"]
    found = prior(io["in.idx"][:, :5], ahead=vectors)
    close(found, "out.gpt.logits_with_prepended_embeddings", original)


@torch.no_grad()
def test_a_class_and_codes_give_the_originals_predictions(original):
    prior, io, _ = original
    codes, labels = prior.painter.vqgan.encode(io["in.image"]).indices, io["in.class_label"]
    close(codes, "out.z_indices", original)
    close(prior.condition(labels), "out.c_indices", original)
    close(prior.code_logits(codes, labels), "out.net2net.logits", original)
    close(prior.loss(codes, labels), "out.net2net.loss", original)
    last = filter_logits(prior.code_logits(codes, labels)[:, -1], top_k=5)
    close(last, "out.net2net.logits_top_k5_masked_last", original)


@torch.no_grad()
def test_greedy_drawing_is_the_originals(original):
    prior, io, _ = original
    labels, start = io["in.class_label"], io["out.z_indices"][:, :7]
    whole = prior.generate_codes(labels, generator=generator(), sampling=GREEDY)
    close(whole, "out.greedy_codes", original)
    close(prior.painter.vqgan.decode_indices(whole), "out.greedy_image", original)
    rest = prior.generate_codes(labels, generator=generator(), sampling=GREEDY, start=start)
    close(rest, "out.greedy_codes_after_prefix", original)


def test_a_prefix_that_looks_ahead_is_refused(shared):
    state = load_file(shared / "parity" / "gpt_taming_classcond" / "model.safetensors")
    state["transformer.blocks.0.attn.mask"] = torch.ones(1, 1, 64, 64)
    with pytest.raises(UserError, match="not causal everywhere"):
        load_taming_transformer(state)


def test_positions_that_are_no_square_are_refused(shared):
    state = load_file(shared / "parity" / "gpt_taming_classcond" / "model.safetensors")
    state["transformer.pos_emb"] = noise(1, 60, 64)
    with pytest.raises(UserError, match="60 positions are no square grid"):
        load_taming_transformer(state)


# --- heads ---------------------------------------------------------------------------------------


def test_heads_that_nothing_tells_are_said_with_the_file_that_would_tell(tmp_path, capsys):
    shutil.copy(TINY / "last.ckpt", tmp_path)
    assert minimodal.load(tmp_path / "last.ckpt").config.heads == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and 'put {"transformer": {"n_head": N}} into a config.json' in said
    (tmp_path / "config.json").write_text('{"transformer": {"n_head": 2}}')
    assert minimodal.load(tmp_path / "last.ckpt").config.heads == 2
    assert not capsys.readouterr().err


# --- what stands ahead ---------------------------------------------------------------------------


def test_a_class_stands_ahead_as_the_row_of_its_number():
    assert read().condition(torch.tensor([0, 2])).tolist() == [[0], [2]]


@pytest.mark.parametrize("sos", [0, 5])
def test_without_classes_the_originals_sos_token_stands_ahead(sos):
    prior = read({**ALONE, "sos_token": sos})
    assert prior.condition(torch.tensor([-1])).tolist() == [[sos]]
    assert prior.config.classes == 0


def test_a_label_beyond_the_classes_is_an_error():
    with pytest.raises(UserError, match=r"labels \[3\]: expected -1 \(none\) to 2"):
        read().generate_codes(torch.tensor([3]), generator=generator())


def test_a_row_that_does_not_exist_cannot_stand_ahead():
    with pytest.raises(UserError, match="sos 4: expected a shared row, 0 to 3"):
        VQGANPriorConfig(shared_rows=4, sos=4)


# --- what is refused -----------------------------------------------------------------------------

PERMUTER = "taming.modules.transformer.permuter."
COORD = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 1024}}
REFUSED = [
    ({"permuter_config": {"target": PERMUTER + "ZCurve"}}, "row by row .*ZCurve"),
    ({"cond_stage": COORD}, r"more than a class \(CoordStage\)"),
    ({"cond_stage_key": "coord"}, r"more than a class \(coord\)"),
    ({"cond_stage": "__is_first_stage__"}, r"more than a class \(__is_first_stage__\)"),
    ({"transformer": {"n_unmasked": 7}}, "n_unmasked = 7: expected 0"),
    ({"cond_stage": {"n_classes": 17}}, "n_classes = 17: expected 16 or fewer"),
    ({**ALONE, "sos_token": 16}, "sos_token = 16: expected less than 16"),
    ({"cond_stage": {"n_classes": "3"}}, "n_classes = '3': expected a whole number"),
    ({"transformer": {"n_head": "2"}}, "n_head = '2': expected a whole number of 1"),
    ({"model": "vqgan"}, "model = 'vqgan': expected an object"),
    ({"first_stage": 3}, "first_stage = 3: expected an object"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_settings_of_another_function_are_refused_by_name(config, message):
    with pytest.raises(UserError, match=message):
        read(config)


@pytest.mark.parametrize("config", [None, {"target": PERMUTER + "Identity"}])
def test_the_order_row_by_row_is_no_reason_to_refuse(config):
    assert read({"permuter_config": config}).config.grid == 4


@pytest.mark.parametrize("name", ["permuter.forward_shuffle_idx", "cond_stage_model.conv.weight"])
def test_tensors_of_another_function_are_refused_by_name(name):
    with pytest.raises(UserError, match=name):
        read(**{name: torch.arange(16)})


def test_a_vqgan_with_more_codes_than_the_table_has_rows_is_refused():
    book, config = noise(20, 6), {"first_stage": {"embed_dim": 6}}
    with pytest.raises(UserError, match="its VQGAN has 20 codes and its transformer knows 16"):
        read(config, **{"first_stage_model.quantize.embedding.weight": book})
