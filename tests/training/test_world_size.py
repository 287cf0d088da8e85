"""Four processes compute what one does, and so do processes that have a share of the weights each
(FSDP); what some began, others end. All with the weights of one process that did everything."""

import shutil
from pathlib import Path

import pytest
from helpers import systems
from helpers.marks import needs_cpu_shares
from helpers.processes import together
from test_parallel import NEEDS, check_losses, check_weights, give_what_it_needs, train

from minimodal.training.checkpoint import newest_state

KINDS = tuple(systems.TINY)
FOUR, SHARES = "four", "shares"
ENDED = {  # by whom, and who began: after ten steps
    "one after four": FOUR, "two after four": FOUR, "shares after four": FOUR,
    "one after shares": SHARES,
}  # fmt: skip
SCRIPT = """
import sys, test_world_size
kinds, *folders = sys.argv[1:]
for kind in kinds.split():
    for folder in folders:
        fsdp = "shares" in folder.split("/")[-1].split("_after_")[0]
        test_world_size.spread(kind, folder, fsdp=fsdp)
"""


def spread(kind: str, folder: str | Path, *, fsdp: bool = False) -> None:
    """Train one of them for twenty steps, or go on; one by Muon, which needs whole matrices."""
    # 16 rows are four for each of four processes, as CLIP's loss on differences needs.
    train(
        kind, folder, fsdp=fsdp, steps=20, batch_size=16, log_every=5, checkpoint_every=10,
        optimizer="muon" if kind == "dalle" else "adamw",
    )  # fmt: skip


def processes(n: int, kinds: tuple[str, ...], *folders: Path) -> None:
    """Train kinds in n processes, into each of the folders."""
    together(["-c", SCRIPT, " ".join(kinds), *map(str, folders)], ranks=n)


def begin(kind: str, began: Path, folder: Path) -> None:
    """Copy a run as it was after ten steps."""
    shutil.copytree(began / kind, folder / kind)
    for path in (folder / kind / "state").glob("step-00000020*"):
        path.unlink()
    (folder / kind / "model.safetensors").unlink()
    assert newest_state(folder / kind)["step"] == 10
    if kind in NEEDS:
        beside = f"{kind}-{NEEDS[kind][0]}"
        shutil.copytree(began / beside, folder / beside)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs for each way to train them."""
    place = tmp_path_factory.mktemp("runs")
    folders = {way: place / way.replace(" ", "_") for way in ("one", FOUR, SHARES, *ENDED)}
    for kind in KINDS:
        spread(kind, folders["one"])
        for way in (FOUR, SHARES):
            folders[way].mkdir(exist_ok=True)
            give_what_it_needs(kind, folders["one"], folders[way])
    processes(4, KINDS, folders[FOUR])
    for kind in KINDS:
        for way in ("one after four", "two after four", "shares after four"):
            begin(kind, folders[FOUR], folders[way])
    processes(2, KINDS, *(folders[w] for w in (SHARES, "two after four", "shares after four")))
    for kind in KINDS:
        spread(kind, folders["one after four"])
        begin(kind, folders[SHARES], folders["one after shares"])
        spread(kind, folders["one after shares"])
    return folders


@needs_cpu_shares
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [FOUR, SHARES, *ENDED])
def test_however_it_is_spread_a_run_has_the_weights_and_losses_of_one_process(runs, way, kind):
    check_weights(runs["one"] / kind, runs[way] / kind)
    # CLIP's loss on differences takes the direction between equal captions from their rounding.
    check_losses(runs["one"] / kind, runs[way] / kind, rel=3e-4 if kind == "clip" else 1e-5)
