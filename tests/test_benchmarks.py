"""``python -m benchmarks``: cases, results and sub-commands. No test asserts a measured time."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.benchmarks import CASE, TINY, hot_and_cold, round_limits

import rnn_ext
from benchmarks import call, frozen, plot, resets, results, run
from benchmarks.__main__ import NAMES, main
from benchmarks.cases import BATCH_SIZES, HIDDEN_SIZES, SEQ_LENS, Case, shapes
from benchmarks.draw import build_pair, draw
from benchmarks.machine import facts
from benchmarks.measure import measure
from benchmarks.memory import Memory
from benchmarks.real import real_cases
from benchmarks.report import format_report
from benchmarks.results import Measured, Row, Run
from rnn_ext.bench.check import MismatchError, check
from rnn_ext.bench.timing import LONGEST_COLD_SECONDS, MIN_ROUNDS, Timings

pytestmark = pytest.mark.usefixtures("fake_limits")

FOLDER = Path(results.__file__).parent


# Cases


def test_default_grid_is_all_sizes_but_the_largest_cell():
    grid = shapes(SEQ_LENS, BATCH_SIZES, HIDDEN_SIZES)
    assert len(grid) == len(set(grid)) == 3 * 4 * 4 - 1
    assert (1024, 128, 1024) not in grid
    assert (1024, 128, 1024) in shapes([1024], BATCH_SIZES, HIDDEN_SIZES)


def test_flops_count_every_layer_and_direction():
    assert Case(10, 3, 4, 5).flops("forward") == 2 * 10 * 3 * 5 * (4 + 5)
    assert Case(10, 3, 4, 5).flops("training") == 3 * Case(10, 3, 4, 5).flops("forward")
    both = Case(10, 3, 4, 5, num_layers=2, bidirectional=True)
    assert both.flops("forward") == 2 * 10 * 3 * 2 * 5 * ((4 + 5) + (10 + 5))
    packed = Case(10, 3, 4, 5, layout="packed")
    assert packed.lengths == [10, 8, 5]
    assert packed.flops("forward") == 2 * (10 + 8 + 5) * 5 * (4 + 5)


def test_real_calls_are_what_their_rows_say():
    cases = {case.name: case for case in real_cases(torch.float64)}
    assert len(cases) == 18
    expected = [
        Case(35, 20, 200, 200, 2, dropout=0.2, hx="given", name="word-language-model"),
        Case(400, 64, 1312, 1024, 5, bidirectional=True, layout="packed", name="deep-speech"),
        Case(60, 100, 2, 100, batch_first=True, name="path-rnn"),
        Case(9, 1, 57, 128, layout="unbatched", name="name-classifier"),
        Case(784, 256, 1, 128, 6, nonlinearity="relu", name="pixel-mnist"),
    ]
    for case in expected:
        assert cases[case.name] == replace(case, dtype=torch.float64)


def test_every_real_call_names_its_source_or_says_that_it_has_none():
    lines = (FOLDER / "configurations.tsv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader((x for x in lines if not x.startswith("#")), delimiter="\t"))
    own = [row["name"] for row in rows if row["source"] == "of our own choice"]
    assert own == ["path-rnn", "sine-wave"]
    for row in rows:
        if row["name"] not in own:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}:\S+", row["source"])


KINDS = [
    Case(5, 3, 4, 6),
    Case(5, 3, 4, 6, batch_first=True, hx="given"),
    Case(5, 1, 4, 6, 2, layout="unbatched", hx="learned"),
    Case(5, 3, 4, 6, 2, bidirectional=True, layout="packed", hx="learned", bias=False),
    Case(5, 3, 4, 6, 2, layout="packed", batch_first=True, nonlinearity="relu"),
    Case(5, 3, 4, 6, 3, dropout=0.5),
    Case(1, 3, 4, 6, cell=True, hx="learned"),
]


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize(
    "case",
    [*KINDS, *(replace(KINDS[i], dtype=torch.bfloat16) for i in (3, 5))],
    ids=lambda case: f"{case.dtype_name}, {case.settings}",
)
def test_every_kind_of_case_is_compared_and_timed(case, mode):
    found = measure(case, mode, 0.001)
    assert found.hot.rounds >= MIN_ROUNDS
    # On a machine busy enough, even these calls are too long to be timed cold.
    longest = max(found.hot.baseline_seconds.median, found.hot.rnn_ext_seconds.median)
    assert (found.cold is None) == (longest > LONGEST_COLD_SECONDS)
    assert found.cold is None or found.cold.rounds >= MIN_ROUNDS


@pytest.mark.parametrize(
    ("case", "input", "hx", "gradients"),
    [
        (KINDS[0], (5, 3, 4), None, 5),
        (KINDS[1], (3, 5, 4), (1, 3, 6), 5),
        (KINDS[2], (5, 4), (2, 6), 10),
        (KINDS[3], (5 + 4 + 3, 4), (4, 3, 6), 10),
        (KINDS[6], (3, 4), (3, 6), 6),
    ],
    ids=lambda value: value.settings if isinstance(value, Case) else "",
)
def test_a_call_has_the_shapes_and_gradients_of_its_case(case, input, hx, gradients):
    work = draw(case, "training")
    assert work.data.shape == input
    assert (None if work.hx is None else work.hx.shape) == hx
    for module in build_pair(case, "training"):
        found = work.results(module)
        assert len(found) == (1 if case.cell else 2) + gradients
        assert ("gradient of hx" in found) == (case.hx == "learned")


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("command", ["grid", "cells"])
def test_gru_and_lstm_are_compared_with_torchs(command, kind, capsys):
    sizes = ["--batch-size", "2", "--hidden-size", "5"]
    length = ["--seq-len", "3"] if command == "grid" else []
    assert main([command, "--layer", kind, *sizes, *length, "--seconds-per-cell", "0.01"]) == 0
    cell = "Cell" if command == "cells" else ""
    assert f"training hot, against nn.{kind}{cell}: " in capsys.readouterr().out


def test_a_wrong_last_state_of_an_lstm_is_found(monkeypatch):
    case = Case(3, 2, 4, 5, hx="given", kind="LSTM")
    theirs, ours = build_pair(case, "forward")
    forward = type(ours).forward

    def wrong(self, *args):
        output, (h_n, c_n) = forward(self, *args)
        return output, (h_n, c_n + 1)

    monkeypatch.setattr(type(ours), "forward", wrong)
    with pytest.raises(MismatchError, match="c_n is off"):
        check(theirs, ours, draw(case, "forward"))


# Results


def a_run(*rows):
    return Run(
        "python -m benchmarks grid",
        "2026-01-02T03:04:05+00:00",
        facts(),
        2.0,
        gemm={2: {"torch.mm": 9e9, "oneDNN": 10e9}},
        limits={threads: round_limits(threads) for threads in (2, 1)},
        cells=list(rows),
    )


def measured(theirs, ours):
    timings = hot_and_cold(theirs, ours)
    return Measured(timings.hot, timings.cold)


def test_json_round_trips(tmp_path):
    case = Case(9, 1, 2, 3, dtype=torch.bfloat16, layout="packed", hx="learned", name="somebody")
    row = Row(case, 2, forward=Measured(note="skipped"), training=measured(2.0, 1.0))
    assert row.training
    row.training.memory_bytes = {"nn_rnn": Memory(3, 2), "rnn_ext": Memory(2, None)}
    row.training.peer_seconds = {"rnn_ext": [1.0, 2.0], "JAX": [3.0, 4.0]}
    found = a_run(row, Row(CASE, 1))
    found.peers = {"JAX": "1.2", "OpenVINO": None}
    results.write(found, tmp_path / "run.json")
    assert results.read(tmp_path / "run.json") == found
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("results/*.json")), ids=lambda f: f.stem)
def test_recorded_results_are_readable(file, capsys, tmp_path):
    recorded = results.read(file)
    assert recorded.complete
    assert main(["show", str(file)]) == 0
    printed = capsys.readouterr().out
    assert all(
        f"{summary.geometric_mean:.2f} times as fast" in printed for summary in recorded.summary
    )


def test_every_key_of_the_json_is_documented(tmp_path):
    row = Row(CASE, 2, forward=measured(2.0, 1.0), training=Measured(note="skipped"))
    assert row.forward
    row.forward.memory_bytes = {"nn_rnn": Memory(3, 2)}
    row.forward.peer_seconds = {"JAX": [1.0]}
    row.forward.kernels = "persistent"
    results.write(a_run(row), tmp_path / "run.json")

    def keys(value):
        if isinstance(value, list):
            return set().union(*map(keys, value))
        if not isinstance(value, dict):
            return set()
        return set(value).union(*map(keys, value.values()))

    found = keys(json.loads((tmp_path / "run.json").read_text()))
    text = FOLDER.joinpath("README.md").read_text()
    section = text.partition("## The keys of a JSON file\n")[2].partition("\n## ")[0]
    known = {"torch.mm", "oneDNN", "JAX", "1", "2"}
    assert {key for key in found - known if f"`{key}`" not in section} == set()


def test_show_rejects_a_file_of_another_format(tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text('{"format": "rnn-ext bench 1"}')
    with pytest.raises(SystemExit, match="2"):
        main(["show", str(file)])
    assert f"{file} is not a result of this version" in capsys.readouterr().err


# Report and picture


def test_report_has_hot_and_cold_times_shares_and_what_was_skipped():
    report = format_report(
        a_run(
            Row(Case(16, 1, 32, 32), 2, forward=measured(90e-6, 9e-6)),
            Row(Case(16, 8, 32, 32), 2, forward=Measured(note="skipped it")),
        )
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines()]
    titles = next(line for line in lines if "cold: ratio" in line)
    (cells,) = (line for line in lines if line[:2] == ["16", "1"])
    assert dict(zip(titles, cells, strict=True)) == {
        "T": "16",
        "B": "1",
        "I": "32",
        "H": "32",
        "hot: baseline": "90.0 µs",
        "hot: rnn_ext": "9.00 µs",
        "hot: ratio": "10.00",
        "cold: baseline": "180 µs",
        "cold: rnn_ext": "18.0 µs",
        "cold: ratio": "10.00",
        "GFLOP/s": "7.28",
        "GEMM": "73%",
        "bound": "call 70%",
    }
    assert "\nskipped it\n" in report
    assert "forward cold, against nn.RNN: 10.00 times as fast in geometric mean" in report


def test_picture_has_a_panel_for_each_mode_and_number_of_threads():
    rows = [
        Row(Case(16, 1, size, size), threads, forward=measured(size, 1), training=measured(3, 1))
        for size in (2, 4)
        for threads in (2, 1)
    ]
    figure = plot.draw(a_run(*rows))
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == [
        f"{mode}, {threads}"
        for threads in ("2 threads", "1 thread")
        for mode in ("forward", "training")
    ]
    assert [text.get_text() for text in figure.axes[0].texts] == ["2.00", "4.00"]
    for row in rows:
        row.case = replace(row.case, name=f"H={row.case.hidden_size}")
    bars = plot.draw(a_run(*rows)).axes[0]
    assert [bar.get_width() for bar in bars.patches] == [1, 3]


def test_rejects_a_plot_without_timings():
    with pytest.raises(ValueError, match="nothing was timed"):
        plot.draw(a_run(Row(CASE, 2)))


# The commands from end to end


@pytest.mark.parametrize("command", ["grid", "cells", "call", "recurrences", "resets", "frozen"])
def test_a_command_prints_what_it_stores(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.__main__.measure_start", lambda names: dict.fromkeys(["import", *names], 0.25)
    )
    monkeypatch.setitem(NAMES, "recurrences", ["lif"])
    file = tmp_path / "run.json"
    flags = [*TINY, "--threads=1", f"--json={file}"]
    assert main([command, *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err == "", "the progress bar is quiet where stderr is no terminal"
    found = results.read(file)
    assert found.complete
    baselines = {
        "grid": ["nn.RNN"],
        "cells": ["nn.RNNCell"],
        "call": ["F.linear", "nn.RNN"],
        "recurrences": ["loop", "G x rnn_ext.RNN", "loop"],
        "resets": ["loop with resets", "no resets"] * 3,
        "frozen": ["not frozen"],
    }
    assert [row.baseline for row in found.cells] == baselines[command]
    kinds = (1 if command == "frozen" else 2) * len(results.REGIMES)  # nothing frozen is trained
    assert len(found.summary) == kinds * len(set(baselines[command]))
    assert ("first call of a cell: lif 250 ms" in captured.out) == (command == "recurrences")
    assert main(["show", str(file)]) == 0
    assert capsys.readouterr().out == captured.out


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_resets_that_differ_from_the_loop_are_not_timed(kind, monkeypatch):
    case = Case(9, 2, 4, 6, kind=kind, hx="given")
    forward = resets._Call.forward
    monkeypatch.setattr(resets.torch, "rand", torch.zeros)  # a reset at every step
    monkeypatch.setattr(
        resets._Call,
        "forward",
        lambda self, input, states: forward(self, input.flip(0), states),
    )
    with pytest.raises(MismatchError, match="output is off"):
        resets.measure_resets(case, "forward", resets.LOOP, 0.001)


def test_a_frozen_copy_with_other_results_is_not_timed(monkeypatch):
    monkeypatch.setattr(rnn_ext, "freeze", lambda module: lambda *args: (-module(*args)[0],))
    with pytest.raises(MismatchError, match="a layer and its frozen copy differ at T=2"):
        frozen.measure_frozen(Case(2, 1, 4, 6), "forward", 0.001)


def test_the_call_is_compared_with_a_linear_layer_of_the_same_output():
    found = call.measure_linear(Case(18, 1, 4, 6), "training", 0.001)
    assert isinstance(found, Timings)
    assert found.cold


def test_limits_alone_time_no_call(monkeypatch, capsys):
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("measured"))
    assert main(["limits", "--threads=2", "--hidden-size=8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("limits of the machine, 2 threads\n- matrix product 100 GFLOP/s\n")
    assert "limits of the machine, 1 thread\n- matrix product 50 GFLOP/s\n" in out


def test_real_calls_can_be_chosen_by_name(capsys):
    flags = ["--threads=1", "--seconds-per-cell=0.001", "--mode=forward"]
    assert main(["real", "name-classifier", "streaming-audio", *flags]) == 0
    names = re.findall(r"^\| +([a-z-]+) \| +tanh", capsys.readouterr().out, re.MULTILINE)
    assert names == ["streaming-audio", "name-classifier"]


def test_a_cell_larger_than_memory_is_skipped_with_a_note(monkeypatch, capsys):
    monkeypatch.setattr(run, "available_memory", lambda: Case(4, 1, 8, 8).memory("training"))
    sizes = ["--seq-len=4,400", "--batch-size=1", "--hidden-size=8"]
    assert main(["grid", *TINY, *sizes, "--threads=1"]) == 0
    out = capsys.readouterr().out
    assert "skipped T=400 B=1 I=8 H=8 (training): takes up to" in out
    assert "skipped T=4 B=1" not in out


def test_ctrl_c_keeps_what_was_measured_and_exits_130(monkeypatch, tmp_path):
    calls = 0

    def fake(*_):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return hot_and_cold(2.0, 1.0)

    monkeypatch.setattr(run, "measure", fake)
    file = tmp_path / "run.json"
    assert main(["grid", *TINY, "--seq-len=3,4,5", "--threads=1", f"--json={file}"]) == 130
    found = results.read(file)
    assert not found.complete
    assert [(row.case.seq_len, row.training is None) for row in found.cells] == [
        (3, False),
        (4, True),
    ]
