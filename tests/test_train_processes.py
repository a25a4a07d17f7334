"""Several processes that train one model, as torchrun starts them."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from support import PATIENCE
from support.charlm import (
    FLAGS,
    as_words,
    checkpoints,
    log_of,
    resume,
    start_child,
    state_of,
    train,
    write_text,
)

pytestmark = pytest.mark.usefixtures("small_runs")

LONG = {"steps": 100_000, "checkpoint_every": 20}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def start(text, out, size=2, **flags):
    """A process for each rank, with the environment that torchrun gives it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    out.mkdir(parents=True, exist_ok=True)
    return [
        start_child(
            text,
            out=out,
            environment={**address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=out / f"stderr-{rank}",
            **flags,
        )
        for rank in range(size)
    ]


def finish(processes):
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def wait_for_checkpoint(out, number):
    deadline = time.monotonic() + PATIENCE
    while not checkpoints(out) or int(checkpoints(out)[-1].name[-10:]) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_reach_the_losses_of_one(text, tmp_path):
    flags = {"cell": "lstm", "num_layers": 2, "seq_len": 16}
    assert finish(start(text, tmp_path / "two", **flags)) == [0, 0]
    train(text, out=tmp_path / "one", **flags)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for a, b in zip(one, two, strict=True):
        # The mean of two means is rounded differently from the mean of all.
        assert a["train_bpc"] == pytest.approx(b["train_bpc"], abs=1e-5)
        assert a.get("val_bpc", 0) == pytest.approx(b.get("val_bpc", 0), abs=1e-5)
    for name in ("model.safetensors", "training.safetensors"):
        a, b = (load_file(checkpoints(tmp_path / run)[-1] / name) for run in ("one", "two"))
        assert a.keys() == b.keys()
        for key in a:
            # Adam divides by the root of a mean square: near zero this amplifies rounding.
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)


def test_the_number_of_processes_may_change_on_resume(text, tmp_path):
    assert finish(start(text, tmp_path / "run", steps=6)) == [0, 0]
    assert resume(tmp_path / "run", steps=12) == 0
    train(text, out=tmp_path / "one", steps=12)
    one, two = (log_of(tmp_path / run)[-1]["val_bpc"] for run in ("one", "run"))
    assert one == pytest.approx(two, abs=1e-5)


def test_processes_draw_different_dropout_and_resume_bit_for_bit(text, tmp_path):
    flags = {"dropout": 0.5, "num_layers": 2}
    assert finish(start(text, tmp_path / "a", **flags)) == [0, 0]
    assert finish(start(text, tmp_path / "b", **flags, steps=6)) == [0, 0]
    assert finish(start(text, tmp_path / "b", **flags, steps=12)) == [0, 0]
    assert log_of(tmp_path / "a")[-1] == log_of(tmp_path / "b")[-1]
    train(text, out=tmp_path / "one", **flags)
    assert log_of(tmp_path / "one")[-1] != log_of(tmp_path / "a")[-1]


@pytest.mark.parametrize("lost", [0, 1])
def test_reports_a_lost_process_and_continues(text, tmp_path, lost):
    out = tmp_path / "run"
    processes = start(text, out, **LONG)
    wait_for_checkpoint(out, 20)
    processes[lost].kill()
    assert finish(processes)[1 - lost] == 2
    assert (out / f"stderr-{1 - lost}").read_text().splitlines()[-1] == (
        f"rnn-ext: process {1 - lost} of 2 lost the connection to another process; "
        "resume the run with all of them"
    )
    reached = int(checkpoints(out)[-1].name[-10:])
    assert finish(start(text, out, **{**LONG, "steps": reached + 4})) == [0, 0]
    assert log_of(out)[-1]["step"] == reached + 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_all_at_one_step(text, tmp_path, number):
    out = tmp_path / "run"
    processes = start(text, out, **LONG)
    wait_for_checkpoint(out, 20)
    for process in processes:
        os.kill(process.pid, number)
    assert finish(processes) == [128 + number, 128 + number]
    stopped = int(checkpoints(out)[-1].name[-10:])
    assert log_of(out)[-1]["step"] == stopped


def test_streams_must_share_out_evenly(text, tmp_path):
    assert finish(start(text, tmp_path / "run", batch_size=5)) == [2, 2]
    assert (
        (tmp_path / "run" / "stderr-1")
        .read_text()
        .startswith("rnn-ext: 2 processes cannot share 5 streams evenly; choose another batch size")
    )


def test_an_error_in_one_process_ends_all(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert finish(start(empty, tmp_path / "run")) == [2, 2]
    assert "empty.txt is empty" in (tmp_path / "run" / "stderr-0").read_text()


@pytest.mark.slow
def test_torchrun_starts_it(text, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "rnn_ext", "train", str(text), "--out", str(tmp_path / "two")]
    subprocess.run([*torchrun, *command, *as_words(FLAGS)], check=True, timeout=2 * PATIENCE)
    assert finish(start(text, tmp_path / "again")) == [0, 0]
    assert state_of(tmp_path / "two") == state_of(tmp_path / "again")
