"""Four processes compute what one does, and so do processes that have a share of the weights each
(FSDP); what some began, others end. All with the weights of one process that did everything."""

import shutil
from pathlib import Path

import pytest
from helpers.processes import together
from test_parallel import KINDS, NEEDS, check_losses, check_weights, give_what_it_needs, train

from minimodal.training.checkpoint import newest_state

QUICK = ("vqgan", "clip", "dalle")  # the losses that look at a whole batch, and a plain one
OTHERS = tuple(kind for kind in KINDS if kind not in QUICK)
UNSHARED = ("vqgan-gradient",)  # --fsdp refuses it
FOUR, SHARES = "four", "shares"
ENDED = {  # by whom, and who began: after ten steps
    "one after four": FOUR, "two after four": FOUR, "shares after four": FOUR,
    "one after shares": SHARES,
}  # fmt: skip
SCRIPT = """
import sys, test_parallel
kinds, *folders = sys.argv[1:]
for kind in kinds.split():
    for folder in folders:
        fsdp = "shares" in folder.split("/")[-1].split("_after_")[0]
        if not fsdp or kind != "vqgan-gradient":
            test_parallel.train(kind, folder, fsdp=fsdp)
"""


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


@pytest.fixture(scope="module", params=[QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)])
def runs(request, tmp_path_factory):
    """The kinds, and a folder of runs for each way to train them."""
    kinds, place = request.param, tmp_path_factory.mktemp("runs")
    folders = {way: place / way.replace(" ", "_") for way in ("one", FOUR, SHARES, *ENDED)}
    for kind in kinds:
        train(kind, folders["one"])
        for way in (FOUR, SHARES):
            folders[way].mkdir(exist_ok=True)
            give_what_it_needs(kind, folders["one"], folders[way])
    processes(4, kinds, folders[FOUR])
    for kind in kinds:
        for way in ("one after four", "two after four", "shares after four"):
            begin(kind, folders[FOUR], folders[way])
    processes(2, kinds, *(folders[w] for w in (SHARES, "two after four", "shares after four")))
    for kind in kinds:
        train(kind, folders["one after four"])
        if kind not in UNSHARED:
            begin(kind, folders[SHARES], folders["one after shares"])
            train(kind, folders["one after shares"])
    return kinds, folders


@pytest.mark.parametrize("way", [FOUR, SHARES, *ENDED])
def test_however_it_is_spread_a_run_has_the_weights_and_losses_of_one_process(runs, way):
    kinds, folders = runs
    for kind in kinds:
        if "shares" not in way or kind not in UNSHARED:
            check_weights(folders["one"] / kind, folders[way] / kind)
            check_losses(folders["one"] / kind, folders[way] / kind)
