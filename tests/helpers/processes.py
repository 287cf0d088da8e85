"""Several processes that know of each other."""

import os
import socket
import subprocess
import sys

from helpers import ROOT


def together(command: list[str], *, ranks: int = 2) -> None:
    """Run a command in several processes that know of each other, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [
        str(ROOT / "tests"),
        str(ROOT / "tests" / "training"),
        str(ROOT),
        os.environ.get("PYTHONPATH", ""),
    ]
    env = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(ranks), "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, *command], stderr=subprocess.PIPE, text=True,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = [process.communicate(timeout=600)[1] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(said)
