"""The Inception network of the Fréchet inception distance, and files that are not it."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import integers, noise, shake

from minimodal.errors import UserError
from minimodal.evaluation.inception import Block, Inception, load_inception


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file with random weights, and parts that are not needed, as the real one has."""
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    state = {k: v.clone() for k, v in shake(Inception(), 0.02).state_dict().items()}
    save_file({**state, "fc.weight": torch.ones(4, 4)}, path)
    return path


def test_pictures_of_any_size_have_2048_features(file):
    found = load_inception(file).features(integers(256, 1, 3, 20, 30).byte())
    assert found.shape == (1, 2048) and torch.isfinite(found).all()


def test_averages_leave_out_the_padding():
    """In a map of ones the mean of what is there is one everywhere, at the corners, too."""
    block, x = Block(4, [], pool=4).eval(), torch.ones(1, 4, 5, 5)
    block.branch_pool.conv.weight.data.copy_(torch.eye(4)[:, :, None, None])
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-3)


def test_the_last_blocks_pool_takes_the_greatest():
    block, x = Block(4, [], pool=4, greatest=True).eval(), noise(1, 4, 5, 5).abs()
    block.branch_pool.conv.weight.data.copy_(torch.eye(4)[:, :, None, None])
    expected = F.max_pool2d(x, 3, stride=1, padding=1)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=3e-3)


def test_the_features_are_pytorch_fids(file, monkeypatch):
    pytest.importorskip("torchvision")
    theirs = pytest.importorskip("pytorch_fid.inception")
    ours = load_inception(file)
    strict = torch.nn.Module.load_state_dict

    def given(net, state):  # in place of the weights that it would download
        return strict(net, state, strict=False)

    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: ours.state_dict())
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", given)
    net, pictures = theirs.InceptionV3([3]).eval(), integers(256, 1, 3, 40, 50).byte()
    with torch.no_grad():
        expected = net(pictures.float() / 255)[0].flatten(1)
    torch.testing.assert_close(ours.features(pictures), expected)


def test_a_missing_tensor_is_named(file, tmp_path):
    state = load_inception(file).state_dict()
    del state["Mixed_6b.branch7x7_2.conv.weight"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match="Mixed_6b.branch7x7_2.conv.weight is missing"):
        load_inception(tmp_path / "less.safetensors")


def test_another_network_is_an_error(tmp_path):
    save_file({"conv1.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no Inception of pytorch-fid"):
        load_inception(tmp_path / "other.safetensors")
