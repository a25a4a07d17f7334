"""`rnn-ext train`: what it learns, writes and rejects."""

import dataclasses
import math
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from support.charlm import FLAGS, as_words, checkpoints, log_of, resume, state_of, train, write_text
from torch import nn

import rnn_ext
from rnn_ext import charlm
from rnn_ext.charlm import training
from rnn_ext.charlm.plot import draw, plot
from rnn_ext.cli import main

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


def test_log_has_a_line_where_the_flags_say(text, tmp_path):
    assert train(text, out=tmp_path / "run", steps=13) == 0
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12, 13]
    assert [line["step"] for line in lines if "val_bpc" in line] == [4, 8, 12, 13]
    assert [line["step"] for line in lines if "sample" in line] == [6, 12, 13]
    assert {key for line in lines for key in line} == {"step", "train_bpc", "val_bpc", "sample"}


def test_intervals_that_do_not_meet_the_log_have_lines_of_their_own(text, tmp_path):
    train(text, out=tmp_path, steps=7, log_every=5, eval_every=3, sample_every=100)
    assert [line["step"] for line in log_of(tmp_path)] == [3, 5, 6, 7]


def test_it_learns(text, tmp_path):
    train(text, out=tmp_path, steps=150, lr=0.02, eval_every=1000, checkpoint_every=1000)
    first, *_, last = log_of(tmp_path)
    assert first["train_bpc"] > math.log2(12) - 0.7  # twelve characters, all equally likely
    # Six words, one of them ended by a full stop: log2(6) bits for every 4.2 characters are 0.62.
    assert last["val_bpc"] < 1.1


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_reference_is_torchs_layer_and_logs_the_same_losses(text, tmp_path, cell):
    # 60 steps, in which rounding differences of 1e-7 have not grown to be seen.
    flags = {"steps": 60, "sample_every": 100, "num_layers": 2, "cell": cell.lower()}
    assert train(text, out=tmp_path / "ours", **flags) == 0
    assert train(text, out=tmp_path / "theirs", reference=True, **flags) == 0
    ours, theirs = log_of(tmp_path / "ours"), log_of(tmp_path / "theirs")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["train_bpc"] == pytest.approx(b["train_bpc"], abs=1e-3)
    assert type(charlm.load(tmp_path / "ours")[0].rnn) is getattr(rnn_ext, cell)
    assert type(charlm.load(tmp_path / "theirs")[0].rnn) is getattr(nn, cell)


def test_same_command_leaves_the_same_files(text, tmp_path):
    for out in ("a", "b"):
        train(text, out=tmp_path / out, dropout=0.3, num_layers=2)
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")


def test_logging_does_not_change_a_run(text, tmp_path):
    train(text, out=tmp_path / "a", dropout=0.3)
    train(text, out=tmp_path / "b", dropout=0.3, eval_every=1, sample_every=1, log_every=1)
    losses = {line["step"]: line["train_bpc"] for line in log_of(tmp_path / "b")}
    assert all(losses[line["step"]] == line["train_bpc"] for line in log_of(tmp_path / "a"))


@pytest.mark.parametrize(
    "flags",
    [
        {"hidden_size": 24},
        {"cell": "gru"},
        {"cell": "lstm"},
        {"num_layers": 2},
        {"seq_len": 9},
        {"batch_size": 5},
        {"nonlinearity": "relu"},
        {"dropout": 0.5},
        {"tied": True},
        {"lr": 0.01},
        {"schedule": "cosine"},
        {"clip": 0.1},
        {"min_count": 200},
        {"val_fraction": 0.2},
        {"dtype": "bf16"},
        {"seed": 1},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_flag_changes_the_run(text, tmp_path, flags):
    quiet = {"eval_every": 100, "sample_every": 100, "checkpoint_every": 100, "steps": 6}
    assert train(text, out=tmp_path / "a", **quiet) == 0
    assert train(text, out=tmp_path / "b", **quiet, **flags) == 0
    assert log_of(tmp_path / "a") != log_of(tmp_path / "b")


def test_dropout_differs_from_step_to_step(text, tmp_path, monkeypatch):
    seeds, step = [], training.Run.step

    def step_and_note(self):
        loss = step(self)
        seeds.append(torch.initial_seed())
        return loss

    monkeypatch.setattr(training.Run, "step", step_and_note)
    train(text, out=tmp_path, dropout=0.5, seed=2**64 - 1, steps=4)
    assert len(set(seeds)) == 4


def test_tied_layers_share_one_matrix(text, tmp_path):
    train(text, out=tmp_path, tied=True)
    model, _ = charlm.load(tmp_path)
    assert model.embedding.weight is model.linear.weight


def test_bfloat16_leaves_weights_in_float32(text, tmp_path):
    train(text, out=tmp_path, dtype="bf16")
    model, _ = charlm.load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_cosine_goes_from_the_given_rate_to_zero():
    settings = charlm.Settings(steps=100, lr=0.5, schedule="cosine")
    rates = [settings.learning_rate(step) for step in range(1, 101)]
    assert rates[0] == 0.5
    assert rates[50] == pytest.approx(0.25)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.001
    assert charlm.Settings(lr=0.5).learning_rate(77) == 0.5


def test_accepts_a_text_shorter_than_a_step(tmp_path):
    text = tmp_path / "text"
    text.write_text("abab")
    assert train(text, out=tmp_path / "run", batch_size=8, seq_len=100) == 0


def test_unknown_characters_are_neither_learned_nor_generated(text, tmp_path):
    train(text, out=tmp_path, min_count=200)
    _, vocabulary = charlm.load(tmp_path)
    assert vocabulary.unknown is not None
    assert all("<unk>" not in line["sample"] for line in log_of(tmp_path) if "sample" in line)


def test_plot_is_a_picture(text, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "plot", plot)
    train(text, out=tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_progress_is_printed_on_stdout(text, tmp_path, capsys):
    train(text, out=tmp_path, steps=4)
    out, err = capsys.readouterr()
    assert err == ""
    first, second, _ = out.split("\n", 2)
    assert re.fullmatch(
        r"Text: [\d,]+ characters, 12 different\. Model: 940 parameters\. Threads: 1\.", first
    )
    assert second.startswith("Step [4/4], bits per character: ")
    assert log_of(tmp_path)[-1]["sample"] in out


def test_python_api_trains_and_generates(text, tmp_path):
    settings = charlm.Settings(**FLAGS)
    model, vocabulary = charlm.train([text], tmp_path / "run", settings)
    assert not model.training
    again, _ = charlm.load(tmp_path / "run")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert len("".join(charlm.generate(model, vocabulary, "the", 5))) == 5
    resumed, _ = charlm.train([], tmp_path / "run", resume=True)
    assert torch.equal(resumed.linear.weight, model.linear.weight)


def test_callers_random_state_is_left_alone(text, tmp_path):
    before = torch.get_rng_state()
    charlm.train([text], tmp_path, charlm.Settings(**FLAGS, dropout=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_diverging_training_is_reported_and_loses_no_checkpoint(text, tmp_path, capsys):
    flags = {"nonlinearity": "relu", "lr": 1e9, "checkpoint_every": 1, "steps": 100}
    assert train(text, out=tmp_path, **flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("rnn-ext: the training diverges in step ")
    assert err.endswith("; choose a smaller learning rate\n")
    assert checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--resume", "--out", "{}/new"], "{}/new has no run to resume; pass text files"),
        (["{}/none", "--out", "{}/new"], "{}/none: No such file or directory"),
        (
            ["{}/text.txt", "--out", "{}/text.txt"],
            "argument --out: must be a folder, but '{}/text.txt' is a file",
        ),
        (["{}/text.txt", "--out", "/proc/new"], "/proc/new: No such file or directory"),
        (["{}/text.txt", "--out", "{}/text.txt/x"], "{}/text.txt/x: Not a directory"),
        (["{}/text.txt", "--out", ""], "argument --out: must not be empty"),
        (["", "--out", "{}/new"], "argument FILE: must not be empty"),
        (["{}/text.txt", "--out", "{}/new", "--encoding", "hex"], "'hex' is not the name of a"),
        (["{}/text.txt"], "the following arguments are required: --out"),
        (["{}/text.txt", "--out", "x", "--dropout", "1"], "argument --dropout: must be a number"),
        (["{}/text.txt", "--out", "x", "--steps", "0"], "argument --steps: must be a whole number"),
        (
            ["{}/text.txt", "--out", "{}/new", "--cell", "gru", "--nonlinearity", "relu"],
            "the cell gru supports only the nonlinearity tanh, not relu",
        ),
        (["{}/text.txt", "--out", "x", "--cell", "qrnn"], "argument --cell: invalid choice"),
        (["{}/text.txt", "--out", "x", "--dtype", "fp8"], "argument --dtype: invalid choice"),
        (["{}/text.txt", "--out", "x", "--device", "hpu"], "argument --device: cannot use 'hpu'"),
    ],
)
def test_bad_command_is_a_one_line_error(text, tmp_path, capsys, words, sentence):
    assert main(["train", *(word.format(tmp_path) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"rnn-ext: {sentence.format(tmp_path)}")
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\0\0"])
def test_bad_text_leaves_no_run(tmp_path, capsys, content):
    file = tmp_path / "file"
    file.write_bytes(content)
    assert train(file, out=tmp_path / "run") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"]
    file.write_text("better now")
    assert train(file, out=tmp_path / "run") == 0


def test_folder_with_a_run_is_refused_without_resume(text, tmp_path, capsys):
    train(text, out=tmp_path)
    before = state_of(tmp_path)
    assert train(text, out=tmp_path) == 2
    assert "already has a run; resume it, or use another folder" in capsys.readouterr().err
    assert state_of(tmp_path) == before


def test_resume_starts_a_run_if_there_is_none(text, tmp_path):
    assert train(text, out=tmp_path / "a", resume=True) == 0
    train(text, out=tmp_path / "b")
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")


def test_finished_run_resumed_says_so_and_stays_as_it_is(text, tmp_path, capsys):
    train(text, out=tmp_path)
    before = state_of(tmp_path)
    capsys.readouterr()
    for flags in ({}, {"steps": FLAGS["steps"]}):
        assert resume(tmp_path, **flags) == 0
        assert capsys.readouterr().out == (
            f"The run in {tmp_path} has taken all of its 12 steps; set more steps to continue it\n"
        )
    assert resume(tmp_path, steps=3) == 2
    assert "has taken 12 steps, more than 3; set more steps" in capsys.readouterr().err
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_text_may_come_from_standard_input(text, tmp_path, name):
    command = [sys.executable, "-m", "rnn_ext", "train", name, "--out", str(tmp_path / "run")]
    subprocess.run(
        [*command, *as_words(FLAGS)],
        input=text.read_bytes(),
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    train(text, out=tmp_path / "file")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "file")
    assert not list((tmp_path / "run").glob(".*"))


def test_text_may_come_from_a_named_pipe(text, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(text.read_bytes()))
    writer.start()
    assert train(pipe, out=tmp_path / "run") == 0
    writer.join()
    train(text, out=tmp_path / "file")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "file")


def test_flags_of_reading_and_threads_reach_the_run(tmp_path, monkeypatch):
    text = tmp_path / "text"
    text.write_bytes("Größe\n".encode("latin-1") * 100)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert train(text, out=tmp_path / "run", encoding="latin-1", threads=3) == 0
    assert main(["generate", str(tmp_path / "run"), "--threads", "4"]) == 0
    assert threads == [3, 4]
    assert "ö" in charlm.load(tmp_path / "run")[1].char2idx


def test_samples_show_control_characters_escaped(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("\x1b[31m" * 300)
    assert train(text, out=tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "\\x1b" in out
    assert "\x1b" not in out
    assert "\x1b" in log_of(tmp_path / "run")[-1]["sample"]


def test_step_larger_than_the_text_is_reported_first(text, tmp_path, capsys):
    flags = {"batch_size": 50, "seq_len": 100, "steps": 1}
    assert train(text, out=tmp_path, **flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("A step reads 50 streams of 100 characters, 5,000 in all, more than")


def test_progress_is_printed_without_a_terminal(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rnn_ext.charlm.progress._SECONDS", 0)
    assert train(text, out=tmp_path) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12
    assert re.fullmatch(r"Step \[3/12\], [\d,]+ characters per second, \d\d:\d\d left", lines[2])


def test_loss_that_explodes_stops_the_training(text, tmp_path, capsys):
    assert train(text, out=tmp_path, lr=1e6, steps=100) == 2
    err = capsys.readouterr().err
    assert re.match(
        r"rnn-ext: the training diverges in step \d+ \(\S+ bits per character; guessing gives 3\.6"
        r"\); choose a smaller learning rate\n",
        err,
    )


def test_val_fraction_0_keeps_no_text_for_validation(text, tmp_path, capsys):
    assert train(text, out=tmp_path, val_fraction=0) == 0
    assert not any("val_bpc" in line for line in log_of(tmp_path))
    out = capsys.readouterr().out
    assert "Step [12/12], bits per character: " in out
    assert "in validation" not in out
    plot(tmp_path / "log.jsonl", tmp_path / "loss.png")


def test_clipping_can_be_switched_off(text, tmp_path):
    for out, clip in (("off", 0), ("wide", 1e9), ("narrow", 1e-3)):
        assert train(text, out=tmp_path / out, clip=clip) == 0
    off, wide, narrow = (log_of(tmp_path / out) for out in ("off", "wide", "narrow"))
    assert off == wide != narrow


def test_single_point_is_visible_and_steps_are_whole_numbers(text, tmp_path):
    train(text, out=tmp_path, steps=1)
    (axes,) = draw(tmp_path / "log.jsonl").axes
    assert {line.get_marker() for line in axes.lines} == {"o"}
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_help_is_that_of_the_settings(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for setting in dataclasses.fields(charlm.Settings):
        assert f"--{setting.name.replace('_', '-')}" in out
        assert setting.metadata["help"] in out
        assert setting.metadata["help"] in charlm.Settings.__doc__
    assert "default: None" not in out
