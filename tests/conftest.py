"""What every test shares: no network, and where the real data sets are, if they are anywhere."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from helpers.commands import write_demo

from minimodal.cli import generate

# In the background (`nohup pytest &`) both are ignored, also in the processes that tests start.
for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
    if signal.getsignal(number) == signal.SIG_IGN:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)

# The models of the tests are tiny: a second thread costs more in waiting than it saves.
torch.set_num_threads(1)


def pytest_addoption(parser) -> None:
    group = parser.getgroup("torture", "trainings that are killed (tests/torture)")
    group.addoption("--rounds", type=int, default=2, help="kills of each training (default: 2)")
    group.addoption("--torture-seed", type=int, default=0, help="of the instants (default: 0)")
    help = "of trying other arguments than the usual ones (default: 0)"
    group.addoption("--fuzz-minutes", type=float, default=0, help=help)


def _is_local(family: int, address) -> bool:
    if family == getattr(socket, "AF_UNIX", None):
        return True
    host = str(address[0])
    return host in ("localhost", "::1") or host.startswith("127.")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Connections leave this machine never; processes on it may talk to each other (gloo)."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(original):
        def call(self, address):
            if not _is_local(self.family, address):
                raise RuntimeError(f"a test tried to connect to {address}")
            return original(self, address)

        return call

    monkeypatch.setattr(socket.socket, "connect", guarded(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(connect_ex))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and checkpoints; tests that need it are skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("MINIMODAL_SHARED", default))
    if not (path / "data").is_dir():
        pytest.skip("needs the shared data folder (set MINIMODAL_SHARED to it)")
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("runs") / "demo", temperature=0.8, guidance=2.0)


@pytest.fixture
def run(demo, tmp_path, monkeypatch, capsys):
    """Call generate.py in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words, folder: Path = demo) -> tuple[int, str, str]:
        device = [] if "--device" in words else ["--device", "cpu"]
        try:
            status = generate.main([*words, "--run", str(folder), *device])
        except SystemExit as leave:
            status = leave.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call
