import pytest
import torch
from helpers import toys
from helpers.marks import needs_cpu_shares
from helpers.processes import together

from minimodal.errors import UserError
from minimodal.training import checkpoint, distributed
from minimodal.training.engine import TrainConfig
from minimodal.training.prepare import micro_rows

FIELDS = {
    "line": {"steps": 6, "ema_decay": 0.9, "accumulate": 2},
    "gan": {"steps": 6, "ema_decay": 0.9},
}

# What each of two processes does; starting processes is the slow part, so they do it all.
SCRIPT = """
import sys, torch
from helpers import toys
from helpers.marks import CPU_SHARES
from minimodal.training import distributed
out, fields = sys.argv[1], eval(sys.argv[2])
for kind in fields:
    toys.train(kind, f"{out}/{kind}", **fields[kind])
    if CPU_SHARES:
        toys.train(kind, f"{out}/{kind} in shares", fsdp=True, **fields[kind])
here = distributed.start("cpu")
x = torch.arange(24.0).view(4, 6).sin()[2 * here.rank : 2 * here.rank + 2].requires_grad_()
rows = distributed.gather(x)
own = rows[2 * here.rank : 2 * here.rank + 2]
loss = (own @ rows.T).exp().sum(1).log().mean()  # each rank: its own rows against all
(loss / here.world).backward()
stop = distributed.agree(here.rank == 1, 10.0 * (here.rank + 1))
mean = distributed.mean_over_ranks(torch.tensor([float(here.rank)]))
said = distributed.from_main({"rank": here.rank})
distributed.barrier()
torch.save({"rows": rows.detach(), "grad": x.grad, "stop": stop, "mean": mean, "said": said},
           f"{out}/{here.rank}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote."""
    out = tmp_path_factory.mktemp("two")
    together(["-c", SCRIPT, str(out), repr(FIELDS)])
    return out


@pytest.fixture
def ranks(folder):
    """What each of them found."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_gather_gives_all_rows_in_rank_order(ranks):
    whole = torch.arange(24.0).view(4, 6).sin()
    assert all(torch.equal(found["rows"], whole) for found in ranks)


def test_gather_has_the_gradient_of_one_process(ranks):
    x = torch.arange(24.0).view(4, 6).sin().requires_grad_()
    (x @ x.T).exp().sum(1).log().mean().backward()
    torch.testing.assert_close(torch.cat([found["grad"] for found in ranks]), x.grad)


def test_ranks_agree_on_stopping_the_clock_and_means(ranks):
    for found in ranks:
        assert found["stop"] == (True, 10.0)
        assert found["mean"].tolist() == [0.5]
        assert found["said"] == {"rank": 0}


@pytest.mark.parametrize("kind", ["line", "gan"])
@pytest.mark.parametrize("way", ["", pytest.param(" in shares", marks=needs_cpu_shares)])
def test_two_processes_equal_one(folder, tmp_path, kind, way):
    toys.train(kind, tmp_path, **FIELDS[kind])
    one, two = (checkpoint.newest_state(out) for out in (tmp_path, folder / f"{kind}{way}"))
    for part in ("model", "ema"):
        for name, tensor in one[part].items():
            torch.testing.assert_close(two[part][name], tensor, rtol=0, atol=1e-6)
    for name, net in one["extra"].items():
        torch.testing.assert_close(two["extra"][name], net, rtol=0, atol=1e-6)
    mine, theirs = (checkpoint.read_metrics(out) for out in (tmp_path, folder / f"{kind}{way}"))
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for a, b in zip(mine, theirs, strict=True):
        for name in ("loss", "grad_norm", "val_error"):
            assert a.get(name, 0) == pytest.approx(b.get(name, 0), abs=1e-5)
    pictures = [sorted(p.name for p in out.glob("samples/*"))
                for out in (tmp_path, folder / f"{kind}{way}")]  # fmt: skip
    assert pictures[0] == pictures[1] != []


def test_ranks_and_micro_batches_take_contiguous_rows_and_leave_none():
    config = TrainConfig(batch_size=24, accumulate=3)
    rows = []
    for rank in range(2):
        here = distributed.Distributed(torch.device("cpu"), rank, 2)
        rows += micro_rows(config, here)
    assert [(part.start, part.stop) for part in rows] == [(4 * i, 4 * i + 4) for i in range(6)]


def test_a_batch_that_cannot_be_shared_out_is_refused():
    here = distributed.Distributed(torch.device("cpu"), 0, 2)
    with pytest.raises(UserError, match="a multiple of 6"):
        micro_rows(TrainConfig(batch_size=8, accumulate=3), here)


def test_one_process_gathers_nothing():
    x = torch.ones(2, 3)
    assert distributed.gather(x) is x and distributed.mean_over_ranks(x) is x
    assert distributed.agree(True, 3.0) == (True, 3.0) and distributed.from_main("a") == "a"


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="expected auto, cpu or cuda"):
        distributed.start("gpu")
