import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, toys
from torch import nn

from minimodal.errors import UserError
from minimodal.training import between, checkpoint
from minimodal.training.engine import Interrupted

SCRIPT = [sys.executable, str(Path(toys.__file__))]


def start(*words: object) -> subprocess.Popen:
    """Train a toy in a process of its own."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [*SCRIPT, *map(str, words)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)


def newest_step(out: Path) -> int:
    return max((int(p.stem[5:]) for p in out.glob("state/step-*.pt")), default=0)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its task."""
    out = tmp_path_factory.mktemp("runs") / "line"
    return out, toys.train("line", out, ema_decay=0.9)[0]


def test_a_run_killed_at_any_instant_ends_as_if_it_had_not_been(tmp_path):
    fields = {"steps": 60, "checkpoint_every": 1, "ema_decay": 0.9}
    toys.train("gan", tmp_path / "whole", **fields)
    words = [f"{name}={value}" for name, value in fields.items()]
    chance = random.Random(0)
    for _ in range(2):
        before = newest_step(tmp_path / "killed")
        hang = f"hang={before + 19}"  # it is not done before it is killed
        process = start("gan", tmp_path / "killed", *words, "delay=0.005", hang, "--resume")
        wait_for(lambda b=before: newest_step(tmp_path / "killed") > b, process)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.communicate()
        assert newest_step(tmp_path / "killed") < 60
    toys.train("gan", tmp_path / "killed", resume=True, **fields)
    whole, killed = (checkpoint.newest_state(tmp_path / n) for n in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 60
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, killed[part][name]), name
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_kill_before_any_single_write_loses_nothing(tmp_path, monkeypatch, call):
    fields = {"steps": 3, "checkpoint_every": 1, "ema_decay": 0.9}
    _, expected = toys.train("line", tmp_path / "whole", **fields)
    whole = checkpoint.newest_state(tmp_path / "whole")
    original, killed_at = getattr(os, call), 0
    while True:
        out, calls = tmp_path / f"{call}{killed_at}", iter(range(10**6))

        def killed(*arguments, calls=calls, at=killed_at):
            if next(calls) == at:
                raise SystemExit("killed")  # nothing after this is written
            return original(*arguments)

        monkeypatch.setattr(os, call, killed)
        try:
            toys.train("line", out, **fields)
            break
        except SystemExit:
            monkeypatch.setattr(os, call, original)
        _, summary = toys.train("line", out, resume=True, **fields)
        assert summary["val_error"] == expected["val_error"]
        found = checkpoint.newest_state(out)
        assert all(torch.equal(whole["model"][k], v) for k, v in found["model"].items())
        killed_at += 1
    assert killed_at > 10


def test_ctrl_c_ends_with_status_130_and_a_state_to_resume(tmp_path):
    out = tmp_path / "run"
    process = start("line", out, "steps=100000", "checkpoint_every=0", "delay=0.002")
    wait_for(lambda: (out / "metrics.jsonl").exists() and checkpoint.read_metrics(out), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    *_, asked, command = said.rstrip().splitlines()  # what to do is the last that is said
    assert asked.endswith("Go on with:") and "toys.py" in command and "--resume" in command
    assert "Traceback" not in said
    step = newest_step(out)
    assert step > 0 and (out / "model.safetensors").exists()
    _, summary = toys.train("line", out, resume=True, checkpoint_every=0, steps=step + 2)
    assert summary["step"] == step + 2


def signal_in_step(monkeypatch, step: int, *numbers: int) -> None:
    """Let the toy's process get signals in the middle of a step."""
    after = toys.Line.after_step

    def interrupted(self, now, batches):
        for number in numbers if now == step else ():
            signal.raise_signal(number)
        return after(self, now, batches)

    monkeypatch.setattr(toys.Line, "after_step", interrupted)


@pytest.fixture
def handled():
    """A function that sets how a signal is handled, until the end of the test."""
    before = []
    yield lambda number, how: before.append((number, signal.signal(number, how)))
    for number, how in reversed(before):
        signal.signal(number, how)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal that ends with a signal")
def test_the_end_of_the_terminal_finishes_the_step_and_saves_it(tmp_path, monkeypatch, handled):
    handled(signal.SIGHUP, signal.SIG_DFL)
    signal_in_step(monkeypatch, 4, signal.SIGHUP)
    with pytest.raises(Interrupted):
        toys.train("line", tmp_path / "run")
    assert checkpoint.newest_state(tmp_path / "run")["step"] == 5
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal that ends with a signal")
def test_under_nohup_the_end_of_the_terminal_stops_nothing(tmp_path, monkeypatch, handled):
    handled(signal.SIGHUP, signal.SIG_IGN)
    signal_in_step(monkeypatch, 4, signal.SIGHUP)
    assert toys.train("line", tmp_path / "run")[1]["step"] == 8


def test_sigterm_finishes_the_step_and_saves_it(tmp_path, monkeypatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    signal_in_step(monkeypatch, 4, signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        toys.train("line", tmp_path / "run")
    assert stopped.value.code == 130
    assert checkpoint.newest_state(tmp_path / "run")["step"] == 5
    assert checkpoint.read_metrics(tmp_path / "run")[-1]["step"] == 5
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_the_second_ctrl_c_aborts_at_once(tmp_path, monkeypatch, handled, before):
    handled(signal.SIGINT, before)
    signal_in_step(monkeypatch, 4, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        toys.train("line", tmp_path / "run")
    assert checkpoint.newest_state(tmp_path / "run")["step"] == 3


def test_only_the_last_two_states_are_kept(finished):
    names = sorted(path.name for path in (finished[0] / "state").iterdir())
    states = ["step-00000006.pt", "step-00000008.pt"]
    assert names == sorted(states + [name + ".sha256" for name in states])


def steps_kept(out: Path) -> list[int]:
    return [int(path.stem[5:]) for path in sorted(out.glob("state/step-*.pt"))]


def test_of_the_states_that_keep_asks_for_the_newest_whole_one_goes_on(tmp_path, capsys):
    kept = {"keep": 4, "checkpoint_every": 1}
    whole, _ = toys.train("line", tmp_path, **kept)
    assert steps_kept(tmp_path) == [5, 6, 7, 8]
    for step in (6, 7, 8):
        damage(checkpoint.state_path(tmp_path, step))
    again, _ = toys.train("line", tmp_path, resume=True, **{**kept, "keep": 1})
    assert capsys.readouterr().err.count("is damaged and skipped") == 3
    assert all(map(torch.equal, whole.model.parameters(), again.model.parameters()))
    assert steps_kept(tmp_path) == [8] and checkpoint.newest_state(tmp_path)["step"] == 8


@pytest.mark.parametrize(("minutes", "steps"), [(0, [8]), (60, [8]), (1e-9, [7, 8])])
def test_a_clock_saves_states_too(tmp_path, minutes, steps):
    toys.train("line", tmp_path, checkpoint_every=0, checkpoint_minutes=minutes)
    assert steps_kept(tmp_path) == steps


def test_the_clock_strikes_once_each_so_many_minutes():
    seconds = [0, 30, 59, 61, 90, 119.9, 120, 400]
    pairs = list(itertools.pairwise(seconds))
    assert [b for a, b in pairs if between.struck(1, a, b)] == [61, 120, 400]
    assert not any(between.struck(0, a, b) for a, b in pairs)


def test_the_checksum_is_what_sha256sum_checks(finished):
    folder = finished[0] / "state"
    done = subprocess.run(["sha256sum", "-c", "step-00000008.pt.sha256"], cwd=folder)
    assert done.returncode == 0


@pytest.mark.parametrize("harm", ["flip", "truncate", "no checksum"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(tmp_path, capsys, harm):
    out = tmp_path / "run"
    whole, _ = toys.train("line", out)
    newest = out / "state" / "step-00000008.pt"
    if harm == "flip":
        damage(newest)
    elif harm == "truncate":
        newest.write_bytes(newest.read_bytes()[:1000])
    else:
        checkpoint.checksum_path(newest).unlink()
    again, _ = toys.train("line", out, resume=True)
    assert "step-00000008.pt is damaged and skipped" in capsys.readouterr().err
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert checkpoint.damage(newest) is None


def test_with_no_complete_state_left_the_trained_weights_are_not_overwritten(tmp_path):
    out = tmp_path / "run"
    toys.train("line", out)
    for path in out.glob("state/*.pt"):
        damage(path)
    weights = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="no complete training state"):
        toys.train("line", out, resume=True)
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_run_is_not_overwritten_without_resume(finished):
    out, _ = finished
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="--resume or another --out"):
        toys.train("line", out)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_resuming_nothing_starts_afresh_and_says_so(tmp_path, capsys):
    _, summary = toys.train("line", tmp_path / "new", resume=True)
    assert summary["step"] == 8
    assert "no training state yet" in capsys.readouterr().err


def test_resuming_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
    _, first = toys.train("line", tmp_path / "run")
    weights = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    _, again = toys.train("line", tmp_path / "run", resume=True)
    assert again == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == weights
    assert "is done" in capsys.readouterr().err


def test_a_run_killed_after_its_last_step_is_completed(tmp_path):
    _, first = toys.train("line", tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + '\n{"step": 8, "val')
    (tmp_path / "run" / "model.safetensors").unlink()
    _, again = toys.train("line", tmp_path / "run", resume=True)
    assert again["val_error"] == first["val_error"]
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("left", [1000, 0, None])
def test_lost_weights_are_written_again_from_the_state_bit_for_bit(tmp_path, left):
    toys.train("line", tmp_path / "run", ema_decay=0.9)
    weights = tmp_path / "run" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink() if left is None else weights.write_bytes(whole[:left])
    toys.train("line", tmp_path / "run", ema_decay=0.9, resume=True)
    assert weights.read_bytes() == whole


def test_a_finished_run_answers_where_nothing_can_be_written(finished, monkeypatch, capsys):
    out, _ = finished
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(os, "replace", None)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    _, summary = toys.train("line", out, resume=True, ema_decay=0.9)
    assert summary["step"] == 8 and "is done" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_garbage_in_metrics_is_left_out(tmp_path):
    toys.train("line", tmp_path)
    lines = checkpoint.read_metrics(tmp_path)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'\x00\xff\xfe\n5\n[]\n{"step": "x"}\n{"loss": 1}\n' + b"[" * 100_000)
    assert checkpoint.read_metrics(tmp_path) == lines
    assert toys.train("line", tmp_path, resume=True, steps=10)[1]["step"] == 10
    assert (tmp_path / "metrics.jsonl").read_bytes().isascii()


# ---- disks and other processes


def test_on_a_full_disk_the_last_state_stays_whole_and_one_line_says_so(tmp_path):
    resource = pytest.importorskip("resource")
    toys.train("line", tmp_path, steps=4)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))  # a state is larger
    try:
        with pytest.raises(UserError, match="cannot write .*step-00000006.pt: File too large"):
            toys.train("line", tmp_path, steps=8, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob(".*.tmp"))
    assert checkpoint.newest_state(tmp_path)["step"] == 4
    state = checkpoint.state_path(tmp_path, 4)
    assert state.read_bytes() == before[state]


def test_every_file_of_a_run_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        toys.train("line", tmp_path / "run")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_in_a_folder_is_refused_and_names_the_first(tmp_path, resume):
    pytest.importorskip("fcntl")
    says = f"process {os.getpid()} on .* is training in"
    with checkpoint.lock(tmp_path / "run"), pytest.raises(UserError, match=says):
        toys.train("line", tmp_path / "run", resume=resume)
    assert toys.train("line", tmp_path / "run", resume=resume)[1]["step"] == 8


def test_the_lock_of_a_process_that_has_died_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").write_text("1 on elsewhere")
    assert toys.train("line", tmp_path)[1]["step"] == 8


# ---- what a run is resumed with


def described(data: str = "folder:D", pictures: str = "1a", **changes) -> dict:
    """A CLIP run's configuration, with some of its settings changed."""
    train = {"lr": 0.1, "limit": None, "precision": "float32"}
    training = {"loss": "softmax", "flip": False, "data": pictures}
    model = {"stem": [4, 8], "logit_bias": False}
    for part in (train, training, model):
        part |= {name: value for name, value in changes.items() if name in part}
    model["training"] = training
    return {"kind": "clip", "data": data, "model": model, "train": train}


@pytest.mark.parametrize(
    "change, says",
    [
        ({"lr": 0.5}, "trained with --lr 0.1, not --lr 0.5;"),
        ({"limit": 10, "pictures": "2b"}, "with --limit none, not --limit 10;"),
        ({"data": "folder:E", "pictures": "2b"}, "with --data folder:D, not --data folder:E;"),
        ({"pictures": "2b"}, "--data holds something else than when"),
        ({"loss": "sigmoid", "logit_bias": True}, "with --loss softmax, not --loss sigmoid;"),
        ({"lr": 0.5, "flip": True}, "with --lr 0.1 --flip no, not --lr 0.5 --flip yes;"),
        ({"stem": [4]}, "with --stem 4,8, not --stem 4;"),
    ],
)
def test_what_differs_is_named_as_flags_with_both_values(tmp_path, change, says):
    checkpoint.save_config(tmp_path, described())
    with pytest.raises(UserError, match=says):
        checkpoint.check_same(tmp_path, described(**change))


@pytest.mark.parametrize("change", [{"data": "folder:/moved/D"}, {"limit": 20}])
def test_the_same_pictures_may_lie_elsewhere_or_be_counted(tmp_path, change):
    checkpoint.save_config(tmp_path, described())
    checkpoint.check_same(tmp_path, described(**change))


@pytest.mark.parametrize("steps", [8, 10])
def test_where_the_data_lies_now_is_written_down(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(toys.Line, "config", lambda self: {"training": {"data": "1a"}})
    toys.train("line", tmp_path)
    stored = checkpoint.load_run_config(tmp_path)
    checkpoint.save_config(tmp_path, {**stored, "data": "folder:old", "git_commit": "1a2b"})
    toys.train("line", tmp_path, resume=True, steps=steps)
    assert checkpoint.load_run_config(tmp_path)["data"] == "toy"


@pytest.mark.parametrize(
    "name, change", [("lr", {"lr": 0.5}), ("seed", {"seed": 3}), ("width", {"width": 8})]
)
def test_resuming_with_another_configuration_names_the_field(finished, name, change):
    with pytest.raises(UserError, match=f"trained with --{name} "):
        toys.train("line", finished[0], resume=True, **{"ema_decay": 0.9, **change})


def test_of_a_group_of_settings_only_the_changed_one_is_named(tmp_path):
    def described(flip: bool) -> dict:
        training = {"vocab": 512, "flip": flip}
        return {"kind": "clip", "data": "shapes", "model": {"training": training}, "train": {}}

    checkpoint.save_config(tmp_path, described(False))
    checkpoint.check_same(tmp_path, described(False))
    with pytest.raises(UserError, match="trained with --flip no, not --flip yes;"):
        checkpoint.check_same(tmp_path, described(True))


@pytest.mark.parametrize("place", ["training", "model"])
def test_a_setting_that_there_is_no_more_is_refused_by_name(tmp_path, place):
    old = described()
    (old["model"] if place == "model" else old["model"]["training"])["dropped"] = True
    checkpoint.save_config(tmp_path, old)
    with pytest.raises(UserError, match="trained with --dropped yes, not --dropped none; "):
        checkpoint.check_same(tmp_path, described())


def test_resuming_with_another_kind_names_both(finished):
    with pytest.raises(UserError, match="a trained line, not a gan"):
        toys.train("gan", finished[0], resume=True)


def test_more_steps_go_on_from_the_end(tmp_path):
    toys.train("line", tmp_path / "run", steps=4)
    _, summary = toys.train("line", tmp_path / "run", resume=True, steps=6)
    assert summary["step"] == 6


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    out = tmp_path / "run"
    toys.train("line", out)
    steps = [line["step"] for line in checkpoint.read_metrics(out)]
    (out / "state" / "step-00000008.pt").unlink()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # killed while writing
    toys.train("line", out, resume=True)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == steps


def test_config_json_tells_what_the_run_is(finished):
    config = checkpoint.load_run_config(finished[0], kind="line")
    assert (config["kind"], config["data"]) == ("line", "toy")
    assert config["model"] == {"width": 16, "shape": [4, 16]}
    assert config["train"]["lr"] == 1e-3 and config["train"]["precision"] == "float32"
    assert config["versions"]["torch"] == torch.__version__ and "git_commit" in config


def test_the_saved_weights_are_the_averaged_ones(finished):
    out, task = finished
    ema = checkpoint.newest_state(out)["ema"]
    weights = checkpoint.load_weights(out)
    assert weights.keys() == task.model.state_dict().keys()
    assert all(torch.equal(weights[name], ema[name]) for name in weights)
    assert not torch.equal(weights["0.weight"], task.model[0].weight)


def test_tied_weights_are_saved(tmp_path):
    net = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
    net[1].weight = net[0].weight
    checkpoint.save_weights(tmp_path, net)
    assert torch.equal(checkpoint.load_weights(tmp_path)["1.weight"], net[0].weight)


def test_what_is_no_run_is_refused_in_words(tmp_path, finished):
    with pytest.raises(UserError, match="no run folder"):
        checkpoint.load_run_config(tmp_path)
    with pytest.raises(UserError, match="no run folder"):
        checkpoint.load_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match="a trained line, not a clip"):
        checkpoint.load_run_config(finished[0], kind="clip")
    (tmp_path / "config.json").write_text('{"kind": ')
    with pytest.raises(UserError, match="config.json is damaged"):
        checkpoint.load_run_config(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "line"}')
    with pytest.raises(UserError, match="no model.safetensors"):
        checkpoint.load_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"0123456789")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        checkpoint.load_weights(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        toys.train("line", tmp_path / "config.json")


def test_metrics_that_are_no_numbers_stay_valid_json(tmp_path):
    checkpoint.append_metrics(tmp_path, {"step": 1, "psnr": float("inf"), "x": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1, "psnr": None, "x": None,
    }  # fmt: skip


# ---- written while the training goes on


def test_steps_go_on_while_a_state_is_written(tmp_path, monkeypatch):
    wrote, plain, steps = threading.Event(), checkpoint.save_state, []
    after = toys.Line.after_step

    def slow(out, state, *, keep):
        if state["step"] == 3:  # until the training has gone two steps further
            assert wrote.wait(60)
        plain(out, state, keep=keep)

    def noted(self, step, batches):
        steps.append(step)
        if step == 4:
            assert checkpoint.newest_state(tmp_path / "run") is None
            wrote.set()
        return after(self, step, batches)

    monkeypatch.setattr(checkpoint, "save_state", slow)
    monkeypatch.setattr(toys.Line, "after_step", noted)
    toys.train("line", tmp_path / "run", steps=5)
    assert 4 in steps and checkpoint.newest_state(tmp_path / "run")["step"] == 5


def test_a_state_is_that_of_its_step_though_later_ones_change_the_weights(tmp_path, monkeypatch):
    plain, after, then, gone_on = checkpoint.save_state, toys.Line.after_step, {}, threading.Event()

    def slow(out, state, *, keep):
        assert gone_on.wait(60)
        plain(out, state, keep=keep)

    def noted(self, step, batches):
        if step == 2:
            then.update({name: t.clone() for name, t in self.model.state_dict().items()})
        if step == 4:
            gone_on.set()
        return after(self, step, batches)

    monkeypatch.setattr(checkpoint, "save_state", slow)
    monkeypatch.setattr(toys.Line, "after_step", noted)
    toys.train("line", tmp_path / "run", steps=5)
    saved = torch.load(checkpoint.state_path(tmp_path / "run", 3), weights_only=True)["model"]
    assert all(torch.equal(saved[name], then[name]) for name in saved)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"),
                                   OSError(28, "No space left on device")])  # fmt: skip
def test_a_disk_that_refuses_in_the_middle_ends_the_run_with_the_state_before(
    tmp_path, monkeypatch, error
):
    plain = torch.save

    def refused(state, file):
        if state["step"] == 6:
            file.write(b"half of it")
            raise error
        plain(state, file)

    monkeypatch.setattr(torch, "save", refused)
    with pytest.raises(UserError, match=f"cannot write .*step-00000006.pt: {error.strerror}"):
        toys.train("line", tmp_path / "run", steps=1000)
    assert checkpoint.newest_state(tmp_path / "run")["step"] == 3
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    monkeypatch.setattr(torch, "save", plain)
    assert toys.train("line", tmp_path / "run", steps=9, resume=True)[1]["step"] == 9


def test_a_run_that_was_moved_goes_on_where_it_lies(tmp_path):
    toys.train("line", tmp_path / "a" / "run", ema_decay=0.9)
    whole = checkpoint.load_weights(tmp_path / "a" / "run")
    checkpoint.state_path(tmp_path / "a" / "run", 8).unlink()
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b" / "run" / "model.safetensors").unlink()
    toys.train("line", tmp_path / "b" / "run", ema_decay=0.9, resume=True)
    moved = checkpoint.load_weights(tmp_path / "b" / "run")
    assert all(torch.equal(whole[name], moved[name]) for name in whole)
    assert not (tmp_path / "a").exists()
