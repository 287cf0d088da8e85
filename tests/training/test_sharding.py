"""What --fsdp refuses, and that one process needs none of it (several: test_parallel.py)."""

from dataclasses import replace

import pytest
import torch
from helpers import systems, toys
from helpers.marks import needs_cpu_shares
from torch.torch_version import TorchVersion

from minimodal.errors import UserError
from minimodal.training.contract import TrainConfig
from minimodal.training.distributed import Distributed
from minimodal.training.prepare import check_engines
from minimodal.training.sharding import joined, share, whole

TWO = Distributed(torch.device("cpu"), 0, 2)


def test_one_process_has_nothing_to_share_weights_with(tmp_path):
    with pytest.raises(UserError, match="torchrun --nproc_per_node=2"):
        toys.train("line", tmp_path, fsdp=True)


@pytest.mark.parametrize("version", ["2.6.0", "2.6.0+cu124"])
def test_on_a_cpu_shares_need_a_newer_torch_than_the_oldest_allowed(monkeypatch, version):
    config = TrainConfig(fsdp=True)
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    with pytest.raises(UserError, match="needs torch 2.7, this is 2.6.0"):
        check_engines(toys.Line(config), config, TWO)


def test_compiled_models_are_not_shared():
    config = TrainConfig(fsdp=True, compile=True)
    with pytest.raises(UserError, match="leave --compile off"):
        check_engines(toys.Line(config), config, TWO)


@needs_cpu_shares
def test_codes_that_are_weights_and_moved_by_hand_are_not_shared():
    config = replace(systems.ENGINE, fsdp=True)
    task = systems.make_plain_vqgan(config, quantizer="gradient")
    with pytest.raises(UserError, match="dead codes .* leave --fsdp off"):
        check_engines(task, config, TWO)


def test_what_is_not_shared_stays_as_it_is():
    x = torch.ones(4, 2)
    assert whole(x) is x and share(x, like=x) is x and joined({"x": [x]})["x"][0] is x
