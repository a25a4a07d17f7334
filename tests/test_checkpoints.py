"""A run can stop at any moment; it resumes bit for bit as if it had not stopped."""

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

from rnn_ext.charlm import CharLMError, files, load, signals
from rnn_ext.charlm.checkpoints import _digest_of_json
from rnn_ext.charlm.plot import plot
from rnn_ext.cli import main

RENAMES = 10  # of a whole run: tokens, five checkpoints, of which three go again, and the plot
# Dropout, layers and a cell with two states, so that every part of the state is used.
HARD = {"cell": "lstm", "num_layers": 2, "dropout": 0.3, "schedule": "cosine"}

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train(text, out=out, **HARD) == 0
    torch.set_num_threads(threads)
    return state_of(out)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_resumes_bit_for_bit_after_a_kill_at_any_rename(text, whole, tmp_path, after):
    for number in range(1, RENAMES + 2):
        out = tmp_path / str(number)
        child = start_child(text, out=out, kill_at=number, after=after, **HARD)
        child.join()
        assert child.exitcode == (-signal.SIGKILL if number <= RENAMES else 0), number
        assert train(text, out=out, resume=True, **HARD) == 0
        assert state_of(out) == whole, number
        assert not list(out.glob(".*")), number


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_resumes_bit_for_bit_after_kills_at_random_times(text, whole, tmp_path, count):
    draw = random.Random(count)
    started = time.perf_counter()
    start_child(text, out=tmp_path / "timed", **HARD).join()
    duration = time.perf_counter() - started
    kills, runs = 0, 0
    while kills < count:
        runs += 1
        out = tmp_path / str(runs)
        exitcode = None
        while exitcode != 0:  # killed repeatedly, it still finishes
            child = start_child(text, out=out, **HARD)
            child.join(draw.uniform(0, duration))
            child.kill()
            child.join()
            exitcode = child.exitcode
            kills += exitcode != 0
            assert exitcode in (0, -signal.SIGKILL)
        assert state_of(out) == whole, runs


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_stopped_and_extended_run_equals_an_uninterrupted_one(text, tmp_path, cell):
    flags = {"cell": cell, "num_layers": 2, "dropout": 0.3, "eval_every": 3}
    train(text, out=tmp_path / "whole", **flags, steps=12)
    train(text, out=tmp_path / "parts", **flags, steps=6)
    assert resume(tmp_path / "parts", steps=12) == 0
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert checkpoints(tmp_path / "whole")[-1].name in {name.split("/")[0] for name in parts}
    assert parts == whole


def test_logging_may_change_on_resume(text, tmp_path):
    train(text, out=tmp_path, steps=4)
    flags = {"log_every": 1, "eval_every": 2, "sample_every": 5, "checkpoint_every": 1, "steps": 6}
    assert resume(tmp_path, **flags) == 0
    assert [line["step"] for line in log_of(tmp_path)] == [2, 4, 5, 6]
    assert [folder.name[-2:] for folder in checkpoints(tmp_path)] == ["05", "06"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"hidden_size": 17}, "hidden size 17 contradicts the run, which has 16; leave"),
        ({"cell": "gru"}, "cell gru contradicts the run, which has rnn; leave"),
        ({"seed": 3}, "seed 3 contradicts the run, which has 0; leave"),
        ({"reference": True}, "reference True contradicts the run, which has False; leave"),
        ({"lr": 0.5}, "lr 0.5 contradicts the run, which has 0.002; leave"),
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
    assert "steps 4 contradicts the run, which has 2" in capsys.readouterr().err
    assert resume(tmp_path, steps=2) == 0


def test_refuses_to_resume_with_another_text(text, tmp_path, capsys):
    train(text, out=tmp_path / "run", steps=2)
    other = write_text(tmp_path / "other.txt", 700)
    assert main(["train", str(other), "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert f"was started with {text}; pass the same files" in capsys.readouterr().err
    assert main(["train", str(text), "--out", str(tmp_path / "run"), "--resume"]) == 0


def test_resumes_without_the_text(tmp_path):
    text = write_text(tmp_path / "text.txt")
    train(text, out=tmp_path / "run", steps=2)
    text.unlink()
    assert resume(tmp_path / "run", steps=4) == 0


def test_truncated_log_line_is_dropped(text, whole, tmp_path):
    train(text, out=tmp_path, **HARD)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 13, "train_bpc": 1.0}\n{"step": 1')
    assert resume(tmp_path) == 0
    assert state_of(tmp_path) == whole


NAMES = ["model.safetensors", "training.safetensors", "run.json"]


def damage(file, how, other):
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "foreign":
        file.write_bytes(other.read_bytes())
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes({"truncated": data[:-9], "one bit": data, "empty": b""}[how])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["truncated", "one bit", "missing", "empty", "foreign"])
def test_damaged_checkpoint_is_reported_and_the_previous_one_used(
    text, whole, tmp_path, capsys, name, how
):
    out = tmp_path / "run"
    train(text, out=out, **HARD)
    before, folder = checkpoints(out)
    damage(folder / name, how, before / name)
    capsys.readouterr()
    assert main(["generate", str(out), "--prompt=a"]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"rnn-ext: {folder} is damaged (")
    assert err.endswith("); using the checkpoint before it\n")
    assert err.count("\n") == 1
    assert resume(out) == 0
    assert capsys.readouterr().err == err
    assert state_of(out) == whole


@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some bytes", "every byte"]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_any_bit_is_reported(text, tmp_path, name, every):
    train(text, out=tmp_path, steps=2)
    *others, folder = checkpoints(tmp_path)
    for other in others:
        shutil.rmtree(other)
    load(tmp_path)
    data, draw = (folder / name).read_bytes(), random.Random(0)
    few = [0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(100))]
    for place in range(len(data)) if every else few:
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(damaged)
        with pytest.raises(CharLMError, match=r"damaged|another version of rnn_ext"):
            load(tmp_path)


def test_a_run_with_only_damaged_checkpoints_is_refused(text, tmp_path, capsys):
    train(text, out=tmp_path)
    for folder in checkpoints(tmp_path):
        damage(folder / "run.json", "empty", None)
    for command in (["train", "--resume", "--out", str(tmp_path)], ["generate", str(tmp_path)]):
        capsys.readouterr()
        assert main(command) == 2
        assert "all checkpoints in" in capsys.readouterr().err.splitlines()[-1]


def write_json(file, about):
    """Writes a run.json whose digest is right."""
    about.pop("sha256 of the above")
    about["sha256 of the above"] = _digest_of_json(about)
    file.write_text(json.dumps(about))


def test_an_old_run_without_a_cell_is_an_rnn(text, tmp_path):
    train(text, out=tmp_path / "new", steps=12)
    train(text, out=tmp_path / "old", steps=6)
    for folder in checkpoints(tmp_path / "old"):
        about = json.loads((folder / "run.json").read_text())
        assert about["settings"].pop("cell") == "rnn"
        write_json(folder / "run.json", about)
    assert resume(tmp_path / "old", steps=12) == 0
    assert log_of(tmp_path / "old")[-1] == log_of(tmp_path / "new")[-1]


def test_run_json_of_another_cell_is_damaged(text, tmp_path, capsys):
    train(text, out=tmp_path, cell="gru")
    file = checkpoints(tmp_path)[-1] / "run.json"
    about = json.loads(file.read_text())
    about["settings"]["cell"] = "lstm"
    write_json(file, about)
    assert main(["generate", str(tmp_path)]) == 0
    assert "is damaged (run.json does not fit the weights); using" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["hidden_size", "num_layers", "batch_size", "no_such_setting"])
def test_run_json_that_does_not_fit_the_weights_is_damaged(text, tmp_path, capsys, setting):
    train(text, out=tmp_path)
    file = checkpoints(tmp_path)[-1] / "run.json"
    about = json.loads(file.read_text())
    about["settings"][setting] = 2
    file.write_text(json.dumps(about))
    assert main(["generate", str(tmp_path)]) == 0
    assert "(run.json was changed); using" in capsys.readouterr().err
    # It is also reported if its digest is right.
    write_json(file, about)
    assert main(["generate", str(tmp_path)]) == 0
    assert "is damaged (" in capsys.readouterr().err


def test_refuses_and_keeps_a_checkpoint_of_another_version(text, tmp_path, capsys):
    train(text, out=tmp_path)
    folder = checkpoints(tmp_path)[-1]
    file = folder / "run.json"
    file.write_text(file.read_text().replace("model 2", "model 3"))
    assert resume(tmp_path) == 2
    assert f"another version of rnn_ext wrote {folder}" in capsys.readouterr().err
    assert folder.exists()


def test_rejects_the_tokens_of_another_run(text, tmp_path, capsys):
    train(text, out=tmp_path)
    (tmp_path / "tokens.bin").write_bytes(b"\0" * (tmp_path / "tokens.bin").stat().st_size)
    assert resume(tmp_path, steps=20) == 2
    assert "tokens.bin has changed since the run started; remove" in capsys.readouterr().err
    (tmp_path / "tokens.bin").unlink()
    assert resume(tmp_path, steps=20) == 0


@pytest.mark.parametrize("min_count", [1, 200])
def test_missing_tokens_are_recreated_from_the_text(text, tmp_path, capsys, min_count):
    train(text, out=tmp_path, min_count=min_count)
    tokens = tmp_path / "tokens.bin"
    before = tokens.read_bytes()
    tokens.unlink()
    assert resume(tmp_path, steps=14) == 0
    assert capsys.readouterr().err == (
        f"rnn-ext: {tokens} was missing or damaged; recreated it from the text\n"
    )
    assert tokens.read_bytes() == before


@pytest.mark.parametrize("change", ["other", "longer", "new character", "missing"])
def test_missing_tokens_are_not_recreated_from_another_text(tmp_path, capsys, change):
    text = write_text(tmp_path / "text.txt")
    out = tmp_path / "run"
    train(text, out=out)
    (out / "tokens.bin").unlink()
    content = text.read_text()
    if change == "missing":
        text.unlink()
    else:
        changed = {"other": content[::-1], "longer": content * 2, "new character": content + "é"}
        text.write_text(changed[change])
    capsys.readouterr()
    assert resume(out, steps=14) == 2
    assert "the text has changed since the run started" in capsys.readouterr().err
    assert not (out / "tokens.bin").exists()


def test_invalid_log_lines_are_dropped(text, whole, tmp_path):
    train(text, out=tmp_path, **HARD)
    log = tmp_path / "log.jsonl"
    first, *rest = log.read_text().splitlines(keepends=True)
    log.write_text("".join(["\n", first, "garbage\n", "[1]\n", '{"step": "x"}\n', "\n", *rest]))
    plot(log, tmp_path / "loss.png")
    assert resume(tmp_path) == 0
    assert state_of(tmp_path) == whole


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
def test_full_disk_is_reported_and_nothing_is_lost(
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
    err = capsys.readouterr().err
    name = "tokens.bin" if full_at == 1 else f"step-{3 * saved:010}"
    assert err == (
        f"rnn-ext: {tmp_path / name}: No space left on device; free some space, then "
        f"continue with: rnn-ext train --out {tmp_path} --resume\n"
    )
    assert len(checkpoints(tmp_path)) == saved
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    assert train(text, out=tmp_path, resume=True, **HARD) == 0
    assert state_of(tmp_path) == whole


def start_command(*arguments, launch="pass", **kwargs):
    """Starts `rnn-ext` in a process with the default handlers of signals."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"signal.signal(signal.SIGHUP, signal.SIG_DFL); {launch}; "
        "from rnn_ext.cli import main; sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs},
    )


LONG = {"steps": 1_000_000, "checkpoint_every": 1_000_000}


def wait_for_log(out, lines=1):
    deadline = time.monotonic() + PATIENCE
    while not (out / "log.jsonl").exists() or len(log_of(out)) < lines:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    "signals",
    [["SIGINT"], ["SIGTERM"], ["SIGHUP"], ["SIGINT", "SIGINT"], ["SIGTERM", "SIGINT"]],
    ids="+".join,
)
def test_signal_saves_and_says_how_to_continue(text, tmp_path, signals):
    numbers = [getattr(signal, name) for name in signals]
    out, stderr = tmp_path / "run", tmp_path / "stderr"
    child = start_child(text, out=out, stderr=stderr, **LONG)
    wait_for_log(out)
    for number in numbers:  # close together, as a held key or a launcher sends them
        os.kill(child.pid, number)
        time.sleep(0.01)
    child.join(PATIENCE)
    stopped = int(checkpoints(out)[-1].name.removeprefix("step-"))
    assert child.exitcode == 128 + numbers[0]
    assert stderr.read_text() == (
        f"rnn-ext: stopped and saved at step {stopped} of 1000000; "
        f"continue with: rnn-ext train --out {out} --resume\n"
    )
    assert 2 <= stopped < 1_000_000
    assert resume(out, steps=stopped + 3) == 0
    assert log_of(out)[-1]["step"] == stopped + 3


def test_ignored_hang_up_stays_ignored(text, tmp_path):
    nohup = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    command = ["train", text, "--out", tmp_path, *as_words({**FLAGS, **LONG})]
    with start_command(*command, launch=nohup) as process:
        wait_for_log(tmp_path)
        process.send_signal(signal.SIGHUP)
        wait_for_log(tmp_path, len(log_of(tmp_path)) + 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_saves_when_the_pipe_closes(text, tmp_path, both):
    kwargs = {"stderr": subprocess.STDOUT} if both else {}
    command = ["train", text, "--out", tmp_path, *as_words({**FLAGS, **LONG})]
    with start_command(*command, **kwargs) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        if not both:
            assert "stopped and saved at step" in process.stderr.read().decode()
    stopped = int(checkpoints(tmp_path)[-1].name.removeprefix("step-"))
    assert stopped > 0
    assert resume(tmp_path, steps=stopped) == 0


def test_folder_in_use_is_refused(text, tmp_path, capsys):
    child = start_child(text, out=tmp_path, **LONG)
    wait_for_log(tmp_path)
    for arguments in ([str(text)], ["--resume"]):
        assert main(["train", *arguments, "--out", str(tmp_path)]) == 2
        assert f"another training is using {tmp_path}; wait" in capsys.readouterr().err
    assert main(["generate", str(tmp_path)]) == 0
    child.kill()
    child.join()
    assert resume(tmp_path, steps=3) == 0


def test_two_trainings_started_at_once_do_not_mix(text, tmp_path):
    out = tmp_path / "run"
    both = [start_child(text, out=out, steps=1000, checkpoint_every=1000) for _ in range(2)]
    for child in both:
        child.join(PATIENCE)
    assert sorted(child.exitcode for child in both) == [0, 2]
    steps = [line["step"] for line in log_of(out)]
    assert steps == sorted(set(steps))


def test_file_size_limit_is_reported_and_the_checkpoint_is_usable(text, tmp_path):
    train(text, out=tmp_path, steps=3)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    arguments = ["train", "--out", tmp_path, "--resume", "--steps=6"]
    with start_command(*arguments, launch=limit) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.decode().startswith(f"rnn-ext: {tmp_path}/step-0000000006")
    assert ": File too large; free some space, then continue with: rnn-ext" in err.decode()
    assert resume(tmp_path, steps=6) == 0


def test_resumes_bit_for_bit_after_ctrl_c(text, whole, tmp_path, monkeypatch):
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


def test_second_ctrl_c_later_stops_at_once(text, tmp_path, monkeypatch):
    from rnn_ext.charlm.run import Run

    now = 0

    def interrupt_twice(self):
        nonlocal now
        signal.raise_signal(signal.SIGINT)
        now = 3  # seconds
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    monkeypatch.setattr(Run, "step", interrupt_twice)
    assert train(text, out=tmp_path) == 130
    assert [folder.name[-2:] for folder in checkpoints(tmp_path)] == ["00"]


def test_folder_without_a_checkpoint_has_no_model(tmp_path, capsys):
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    assert capsys.readouterr().err == (
        f"rnn-ext: {tmp_path} has no checkpoint; train a model there first\n"
    )
    with pytest.raises(CharLMError, match="has no checkpoint"):
        load(tmp_path)
