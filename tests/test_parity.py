"""Our numbers against those of the original implementations, from recorded fixtures.

Each fixture says how exact the original itself is in float32; that is the tolerance here.
"""

import json

import pytest
import torch
from helpers.tiny import full_logits
from safetensors.torch import load_file

from minimodal.blocks.contrastive_rows import Everyone, gathered_loss
from minimodal.clip import contrastive_loss
from minimodal.dalle import DALLE, DALLEConfig, DALLELogits

# --- CLIP's loss: open_clip.loss.ClipLoss, on one process and on two ------------------------------


@pytest.fixture(scope="module")
def clip_loss(shared):
    """Tensors of the fixture, and the tolerance of each."""
    folder = shared / "parity" / "clip_loss_open_clip"
    tolerances = json.loads((folder / "meta.json").read_text())["tolerance"]
    return load_file(folder / "io.safetensors"), tolerances


def inputs(tensors: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    names = ("in.image_raw", "in.text_raw", "in.log_logit_scale")
    image, text, log_scale = (tensors[name].clone().requires_grad_() for name in names)
    return image, text, log_scale


def close(found: torch.Tensor, name: str, fixture) -> None:
    tensors, tolerances = fixture
    atol = tolerances[name]["suggested_atol"]
    torch.testing.assert_close(found.reshape(tensors[name].shape), tensors[name], rtol=0, atol=atol)


def test_contrastive_loss_and_gradients_equal_open_clip(clip_loss):
    image, text, log_scale = inputs(clip_loss[0])
    loss = contrastive_loss(image, text, log_scale.exp(), captions=torch.arange(8))
    loss.backward()
    close(loss.detach(), "out.loss", clip_loss)
    close(image.grad, "out.grad_image_raw", clip_loss)
    close(text.grad, "out.grad_text_raw", clip_loss)
    close(log_scale.grad, "out.grad_log_logit_scale", clip_loss)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_processs_share_of_the_loss_equals_open_clip(rank, clip_loss):
    image, text, log_scale = inputs(clip_loss[0])
    rows, captions = slice(4 * rank, 4 * rank + 4), torch.arange(8)
    loss = gathered_loss(
        image[rows],
        text[rows],
        log_scale.exp(),
        captions=captions[rows],
        everyone=Everyone(image, text, captions),
    )
    close(loss.detach(), f"out.local_loss=1.gather_with_grad=1.rank{rank}.loss", clip_loss)


# --- DALL·E's stream: facts and a worked example of DALLE_pytorch.DALLE ---------------------------


@pytest.fixture(scope="module")
def example(shared):
    facts = shared / "parity" / "dalle_lucidrains_facts" / "facts.json"
    return json.loads(facts.read_text())["worked_example"]


@pytest.fixture(scope="module")
def dalle(example):
    config = DALLEConfig(
        vocab_size=example["num_text_tokens_given"], text_length=example["text_seq_len"],
        grid=example["image_fmap_size"], codes=(example["num_image_tokens"],),
        width=8, depth=1, heads=2,
    )  # fmt: skip
    return DALLE(config)


def text_and_codes(example: dict) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(example["text"]), torch.tensor(example["image_codes"]).view(-1, 2, 2)


def test_captions_are_padded_as_in_dalle_pytorch(example, dalle):
    padded = dalle.with_padding(torch.tensor(example["text"]))
    read = example["input_text_ids_with_bos_and_unique_padding"]
    assert padded.tolist() == [row[1:] for row in read]  # their start is an id, ours a vector
    assert dalle.config.text_vocab == example["num_text_tokens_effective"]


def test_the_stream_predicts_what_dalle_pytorch_predicts(example, dalle):
    text, codes = text_and_codes(example)
    labels = torch.cat([dalle.with_padding(text), codes.flatten(1) + dalle.config.text_vocab], 1)
    assert labels.tolist() == example["labels"]


def test_impossible_tokens_are_masked_as_in_dalle_pytorch(example, dalle):
    forbidden = full_logits(dalle, *text_and_codes(example)).isinf()
    assert forbidden.shape[-1] == example["total_tokens"]
    V = example["num_text_tokens_effective"]
    for row in forbidden:
        assert row.sum(1).tolist() == example["mask_true_is_forbidden"]["forbidden_count_per_row"]
        assert row[:5, V:].all() and row[5:, :V].all()


def test_losses_equal_dalle_pytorch_on_its_logits(example, dalle, monkeypatch):
    logits, V = torch.tensor(example["logits"]), example["num_text_tokens_effective"]
    given = DALLELogits(logits[:, :5, :V], (logits[:, 5:, V:],))
    monkeypatch.setattr(dalle, "forward", lambda text, codes: given)
    loss, parts = dalle.loss(*text_and_codes(example))
    assert loss.item() == pytest.approx(example["loss"], abs=1e-5)
    assert parts["text_loss"].item() == pytest.approx(example["loss_text"], abs=1e-5)
    assert parts["image_loss"].item() == pytest.approx(example["loss_img"], abs=1e-5)
