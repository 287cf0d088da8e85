"""The judge of photographs: its architecture, its file, and that it knows real pictures."""

import numpy as np
import pytest
import torch
from helpers.tiny import generator, noise
from safetensors.torch import save_file

from minimodal.data.loading import open_data
from minimodal.errors import UserError
from minimodal.evaluation.judge import Judge, ResidualBlock, load_judge


def weights() -> dict[str, torch.Tensor]:
    """The tensors of a new judge that a file would hold."""
    state = Judge().state_dict()
    return {name: t for name, t in state.items() if "num_batches" not in name}


def photographs(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), generator=generator(), dtype=torch.uint8)


def test_it_knows_real_pictures(shared):
    judge = load_judge(shared / "judges" / "cifar10_resnet20.safetensors")
    data = open_data(f"cifar10:{shared / 'data' / 'cifar10'}", image_size=32, split="val")
    chosen = np.arange(400)
    pictures, labels = torch.from_numpy(data.images(chosen)), torch.from_numpy(data.labels[chosen])
    right = judge.classify(pictures) == labels
    assert right.float().mean() > 0.87  # published: 0.917 on all 10,000


def test_a_block_of_zeros_is_its_shortcut_padded_on_both_sides():
    block = ResidualBlock(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = noise(2, 4, 6, 6).abs()
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


def test_a_file_gives_back_the_judge_that_wrote_it(tmp_path):
    torch_file, stored = tmp_path / "judge.safetensors", weights()
    save_file(stored, torch_file)
    judge = load_judge(torch_file)
    assert not judge.training
    assert all(torch.equal(tensor, judge.state_dict()[name]) for name, tensor in stored.items())


def test_the_batches_do_not_matter(tmp_path, monkeypatch):
    save_file(weights(), tmp_path / "j")
    judge = load_judge(tmp_path / "j")
    pictures = photographs(7)
    labels = judge.classify(pictures)
    monkeypatch.setattr("minimodal.evaluation.judge.BATCH", 3)
    assert torch.equal(judge.classify(pictures), labels)


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape", "damaged", "absent"])
def test_another_file_is_refused_by_name(tmp_path, spoil):
    path, tensors = tmp_path / "other.safetensors", weights()
    if spoil == "missing":
        del tensors["linear.bias"]
    if spoil == "extra":
        tensors["more"] = torch.zeros(1)
    if spoil == "shape":
        tensors["linear.bias"] = torch.zeros(100)
    save_file(tensors, path)
    if spoil == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    if spoil == "absent":
        path.unlink()
    with pytest.raises(UserError, match=r"other\.safetensors is no ResNet-20"):
        load_judge(path)


def test_pictures_of_another_size_or_kind_are_refused():
    for wrong in (photographs(1)[..., :16], photographs(1).float()):
        with pytest.raises(UserError, match="reads uint8 pictures"):
            Judge().eval().classify(wrong)
