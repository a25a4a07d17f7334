"""A run can stop at any moment, and goes on bit for bit as if it had not."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from charlm_support import (
    FLAGS,
    checkpoints,
    log_of,
    resume,
    start_child,
    state_of,
    train,
    write_text,
)

from rnn_ext.charlm import files, load
from rnn_ext.cli import main

RENAMES = 10  # of a whole run: tokens, five checkpoints, of which three go again, and the plot
# Dropout and layers, so that nothing of the state is idle.
HARD = {"num_layers": 2, "dropout": 0.3, "schedule": "cosine"}

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """What a run that nothing stops leaves."""
    out = tmp_path_factory.mktemp("whole") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train(text, out=out, **HARD) == 0
    torch.set_num_threads(threads)
    return state_of(out)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_rename_it_goes_on_as_if_not(text, whole, tmp_path, after):
    for number in range(1, RENAMES + 2):
        out = tmp_path / str(number)
        child = start_child(text, out=out, kill_at=number, after=after, **HARD)
        child.join()
        assert child.exitcode == (-signal.SIGKILL if number <= RENAMES else 0), number
        assert train(text, out=out, resume=True, **HARD) == 0
        assert state_of(out) == whole, number
        assert not list(out.glob(".*")), number


def test_killed_at_random_it_goes_on_as_if_not(text, whole, tmp_path):
    draw = random.Random(0)
    started = time.perf_counter()
    start_child(text, out=tmp_path / "timed", **HARD).join()
    duration = time.perf_counter() - started
    kills, runs = 0, 0
    while kills < 20:
        runs += 1
        out = tmp_path / str(runs)
        exitcode = None
        while exitcode != 0:  # killed again and again, it still comes to its end
            child = start_child(text, out=out, **HARD)
            child.join(draw.uniform(0, duration))
            child.kill()
            child.join()
            exitcode = child.exitcode
            kills += exitcode != 0
            assert exitcode in (0, -signal.SIGKILL)
        assert state_of(out) == whole, runs


def test_stopped_and_extended_run_equals_a_whole_one(text, tmp_path):
    train(text, out=tmp_path / "whole", num_layers=2, dropout=0.3, steps=12, eval_every=3)
    train(text, out=tmp_path / "parts", num_layers=2, dropout=0.3, steps=6, eval_every=3)
    assert resume(tmp_path / "parts", steps=12) == 0
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert checkpoints(tmp_path / "whole")[-1].name in {name.split("/")[0] for name in parts}
    assert parts == whole


def test_view_of_a_run_may_change_when_it_goes_on(text, tmp_path):
    train(text, out=tmp_path, steps=4)
    flags = {"log_every": 1, "eval_every": 2, "sample_every": 5, "checkpoint_every": 1, "steps": 6}
    assert resume(tmp_path, **flags) == 0
    assert [line["step"] for line in log_of(tmp_path)] == [2, 4, 5, 6]
    assert [folder.name[-2:] for folder in checkpoints(tmp_path)] == ["05", "06"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"hidden_size": 17}, "--hidden-size 17 contradicts the run, which has 16; leave"),
        ({"seed": 3}, "--seed 3 contradicts the run, which has 0; leave"),
        ({"reference": True}, "--reference True contradicts the run, which has False; leave"),
        ({"lr": 0.5}, "--lr 0.5 contradicts the run, which has 0.002; leave"),
    ],
)
def test_contradicting_flag_is_refused(text, tmp_path, capsys, flags, sentence):
    train(text, out=tmp_path, steps=2)
    before = state_of(tmp_path)
    capsys.readouterr()
    assert resume(tmp_path, **flags) == 2
    assert capsys.readouterr().err.startswith(f"rnn-ext: {sentence}")
    assert state_of(tmp_path) == before


def test_end_of_a_cosine_cannot_be_moved(text, tmp_path, capsys):
    train(text, out=tmp_path, steps=2, schedule="cosine")
    assert resume(tmp_path, steps=4) == 2
    assert "--steps 4 contradicts the run, which has 2" in capsys.readouterr().err
    assert resume(tmp_path, steps=2) == 0


def test_other_text_is_refused(text, tmp_path, capsys):
    train(text, out=tmp_path / "run", steps=2)
    other = write_text(tmp_path / "other.txt", 700)
    assert main(["train", str(other), "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert f"learns from {text}; name these files" in capsys.readouterr().err
    assert main(["train", str(text), "--out", str(tmp_path / "run"), "--resume"]) == 0


def test_text_itself_is_not_needed_to_go_on(tmp_path):
    text = write_text(tmp_path / "text.txt")
    train(text, out=tmp_path / "run", steps=2)
    text.unlink()
    assert resume(tmp_path / "run", steps=4) == 0


def test_line_that_a_kill_cut_short_is_dropped(text, whole, tmp_path):
    train(text, out=tmp_path, **HARD)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 13, "train_bpc": 1.0}\n{"step": 1')
    assert resume(tmp_path) == 0
    assert state_of(tmp_path) == whole


NAMES = ["model.safetensors", "training.safetensors", "run.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing", "empty", "foreign"])
def test_damaged_checkpoint_is_told_and_the_one_before_serves(
    text, whole, tmp_path, capsys, name, damage
):
    out = tmp_path / "run"
    train(text, out=out, **HARD)
    folder = checkpoints(out)[-1]
    file = folder / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "foreign":
        train(text, out=tmp_path / "other", seed=1, **HARD)
        foreign = checkpoints(tmp_path / "other")[-1] / name
        file.write_bytes(foreign.read_bytes())
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes({"truncated": data[:-9], "one bit": data, "empty": b""}[damage])
    capsys.readouterr()
    for command in (["train", "--resume", "--out", str(out)], ["generate", str(out), "--prompt=a"]):
        assert main(command) == 2
        printed, err = capsys.readouterr()
        assert printed == ""
        assert err.startswith(f"rnn-ext: {folder} is damaged or no checkpoint of rnn-ext train (")
        assert err.endswith("); remove it to go on from the one before\n")
        assert err.count("\n") == 1
    shutil.rmtree(folder)
    assert resume(out) == 0
    assert state_of(out) == whole


def test_tokens_of_another_run_are_told(text, tmp_path, capsys):
    train(text, out=tmp_path)
    (tmp_path / "tokens.bin").write_bytes(b"\0" * (tmp_path / "tokens.bin").stat().st_size)
    assert resume(tmp_path, steps=20) == 2
    assert "tokens.bin is missing or not the one" in capsys.readouterr().err


def test_checkpoint_holds_no_pickle_and_says_what_it_is(text, tmp_path):
    train(text, out=tmp_path)
    folder = checkpoints(tmp_path)[-1]
    assert {file.name for file in folder.iterdir()} == set(NAMES)
    about = json.loads((folder / "run.json").read_text())
    assert about["step"] == FLAGS["steps"]
    assert about["settings"]["hidden_size"] == FLAGS["hidden_size"]


@pytest.mark.parametrize(
    ("full_at", "saved"), [(1, 0), (4, 0), (11, 1)], ids=["tokens", "first", "second"]
)
def test_full_disk_is_told_and_nothing_is_lost(
    text, whole, tmp_path, capsys, monkeypatch, full_at, saved
):
    sync, calls = os.fsync, 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    assert train(text, out=tmp_path, **HARD) == 2
    assert capsys.readouterr().err == "rnn-ext: [Errno 28] No space left on device\n"
    assert len(checkpoints(tmp_path)) == saved
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    assert train(text, out=tmp_path, resume=True, **HARD) == 0
    assert state_of(tmp_path) == whole


def test_ctrl_c_saves_and_exits_with_130(text, tmp_path):
    program = "import sys; from rnn_ext.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", str(text), "--out", str(tmp_path)]
    flags = ["--steps=1000000", "--hidden-size=16", "--batch-size=4", "--seq-len=8"]
    with subprocess.Popen(
        [*command, *flags], stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        while not (tmp_path / "log.jsonl").exists() or not log_of(tmp_path):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""
    stopped = int(checkpoints(tmp_path)[-1].name.removeprefix("step-"))
    assert 10 <= stopped < 1000000
    assert stopped % 500
    assert resume(tmp_path, steps=stopped + 3) == 0
    assert log_of(tmp_path)[-1]["step"] == stopped + 3


def test_stopped_by_ctrl_c_it_goes_on_as_if_not(text, whole, tmp_path, monkeypatch):
    from rnn_ext.charlm.run import Run

    step = Run.step

    def step_and_interrupt(self):
        loss = step(self)
        if self.steps_done == 7:
            signal.raise_signal(signal.SIGINT)
        return loss

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Run, "step", step_and_interrupt)
    assert train(text, out=tmp_path, **HARD) == 130
    assert checkpoints(tmp_path)[-1].name.endswith("07")
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) == before
    assert resume(tmp_path) == 0
    assert state_of(tmp_path) == whole


def test_second_ctrl_c_stops_at_once(text, tmp_path, monkeypatch):
    from rnn_ext.charlm.run import Run

    def interrupt_twice(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "step", interrupt_twice)
    assert train(text, out=tmp_path) == 130
    assert [folder.name[-2:] for folder in checkpoints(tmp_path)] == ["00"]


def test_folder_without_a_checkpoint_has_no_model(tmp_path, capsys):
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    assert capsys.readouterr().err == (
        f"rnn-ext: {tmp_path} holds no checkpoint; make one with rnn-ext train\n"
    )
    with pytest.raises(Exception, match="holds no checkpoint"):
        load(tmp_path)
