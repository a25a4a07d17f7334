"""``rnn-ext bench``: its report, its JSON and its picture."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_support import CASE, TINY, bench, parse, round_limits, timed
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

import rnn_ext
from rnn_ext import cli
from rnn_ext.bench import command, plot, results
from rnn_ext.bench.cases import Case
from rnn_ext.bench.machine import facts
from rnn_ext.bench.memory import Memory
from rnn_ext.bench.panels import GAINS, LOSSES
from rnn_ext.bench.report import format_bytes, format_limits, format_report, format_seconds
from rnn_ext.bench.results import Measured, Row, Run
from rnn_ext.bench.timing import MIN_ROUNDS
from rnn_ext.cli.errors import UserError

pytestmark = pytest.mark.usefixtures("fake_limits")

CASE_SIZES = "T=9 B=1 I=2 H=3"

# Report


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.56e-7, "456 ns"),
        (4.5e-10, "0.45 ns"),
        (1.234e-5, "12.3 µs"),
        (9.996e-4, "1000 µs"),
        (0.001, "1.00 ms"),
        (0.4567, "457 ms"),
        (9.996, "10.0 s"),
        (123.4, "123 s"),
    ],
)
def test_times_have_readable_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.00 KiB"), (4096, "4.00 KiB"), (12_900_000, "12.3 MiB"), (3 << 29, "1.50 GiB")],
)
def test_sizes_have_readable_units(size: int, text: str) -> None:
    assert format_bytes(size) == text


def a_run(*rows: Row, complete: bool = True) -> Run:
    rates = {"torch.mm": 9e9, "oneDNN": 10e9}
    return Run(
        "rnn-ext bench",
        "2026-01-02T03:04:05+00:00",
        facts(),
        2.0,
        complete,
        gemm={row.threads: rates for row in rows},
        limits={n: round_limits(n) for n in [*(row.threads for row in rows), 1]},
        rows=list(rows),
    )


def both_modes(case: Case, forward: float, training: float, threads: int = 2) -> Row:
    """A row in which ours takes 1 ms, and `nn.RNN` as many times that."""
    times = {"forward": forward, "training": training}
    return Row(case, threads, {mode: Measured(timed(n * 1e-3, 1e-3)) for mode, n in times.items()})


def test_table_shows_measured_skipped_and_missing_cells() -> None:
    run = a_run(
        Row(
            Case(16, 1, 32, 32),
            2,
            {
                "forward": Measured(timed(90e-6, 9e-6)),
                "training": Measured(timed(600e-6, 120e-6, ratio=5.0)),
            },
        ),
        Row(
            Case(128, 8, 32, 32),
            2,
            {"forward": Measured(timed(2.0, 0.8)), "training": Measured(note="skipped it")},
        ),
        Row(Case(1024, 8, 32, 32), 2),
    )
    printed = format_report(run)
    table = printed[printed.index("float32, ") :].splitlines()
    assert table[:13] == [
        "float32, tanh, 1 layer, 2 threads, matrix product 10 GFLOP/s (oneDNN)",
        "",
        "|   T |  B |  I |  H | forward: nn.RNN | rnn_ext | ratio | GFLOP/s | GEMM |    bound "
        "| training: nn.RNN | rnn_ext | ratio | GFLOP/s | GEMM |   bound |",
        "| --: | -: | -: | -: | --------------: | ------: | ----: | ------: | ---: | -------: "
        "| ---------------: | ------: | ----: | ------: | ---: | ------: |",
        "|  16 |  1 | 32 | 32 |         90.0 µs | 9.00 µs | 10.00 |    7.28 |  73% | call 70% "
        "|           600 µs |  120 µs |  5.00 |    1.64 |  16% | call 7% |",
        "| 128 |  8 | 32 | 32 |          2.00 s |  800 ms |  2.50 |    0.01 |   0% | flops 0% "
        "|          skipped |         |       |         |      |         |",
        "",
        "skipped it",
        "",
        "forward: ratio 5.00 in geometric mean, 2.50 in the worst cell, T=128 B=8 I=32 H=32",
        "training: ratio 5.00 in geometric mean, 5.00 in the worst cell, T=16 B=1 I=32 H=32",
        "",
        table[12],
    ]


def test_table_of_named_cases_says_what_they_are() -> None:
    rows = [both_modes(Case(9, 1, 2, 3, name=name, layout="unbatched"), 2, 2) for name in "ab"]
    rows[1].case = replace(rows[1].case, num_layers=2, bidirectional=True, dropout=0.5, hx="given")
    report = format_report(a_run(*rows))
    title, _, header, _, first, second, *_ = report[report.index("float32, ") :].splitlines()
    assert title.startswith("float32, 2 threads, ")
    assert re.split(r" *\| *", header)[1:4] == ["name", "settings", "T"]
    assert re.split(r" *\| *", first)[1:4] == ["a", "tanh, 1 layer, unbatched", "9"]
    assert "| tanh, 2 layers bidirectional, unbatched, dropout 0.5, hx given |" in second


def test_memory_has_a_table_of_its_own() -> None:
    row = both_modes(Case(9, 1, 2, 3), 2, 2)
    row.measured["training"].memory = {
        "nn_rnn": Memory(3 << 20, 2 << 20),
        "rnn_ext": Memory(2 << 20, 1 << 20),
    }
    report = format_report(a_run(row))
    assert "forward: peak nn.RNN | rnn_ext | training: peak nn.RNN |  rnn_ext | saved" in report
    assert re.search(r"\| +3\.00 MiB \| 2\.00 MiB \| +2\.00 MiB \| 1\.00 MiB \|$", report, re.M)
    assert "peak: how far" in report
    assert "peak" not in format_report(a_run(both_modes(CASE, 2, 2)))


def test_a_table_without_measurements_says_so() -> None:
    report = format_report(a_run(Row(CASE, 1)))
    assert "\n\n1 thread: nothing was measured\n" in report


def test_limits_stand_above_the_tables() -> None:
    run = a_run(both_modes(CASE, 2, 2))
    limits, table = format_report(run).split("\n\nfloat32, ")
    assert limits.splitlines() == [
        "limits of the machine, 2 threads",
        "- matrix product 100 GFLOP/s",
        "- each thread reads L1 (32.0 KiB) 200 GB/s, memory 20.0 GB/s",
        "- barrier 100 ns, team called and left 1.00 µs",
        "- tanh, forward: smallest call 5.00 µs, each further step 20.0 ns",
        "- tanh, training: smallest call 5.00 µs, each further step 20.0 ns",
        "- relu, forward: smallest call 5.00 µs, each further step 20.0 ns",
        "- relu, training: smallest call 5.00 µs, each further step 20.0 ns",
        "",
        "|  B |  H | GFLOP/s of a step: torch.mm | rnn_ext |",
        "| -: | -: | --------------------------: | ------: |",
        "|  1 |  8 |                        1.00 |    2.00 |",
        "",
        "limits of the machine, 1 thread",
        "- matrix product 50 GFLOP/s",
        "- each thread reads L1 (32.0 KiB) 200 GB/s, memory 20.0 GB/s",
        "- tanh, forward: smallest call 5.00 µs, each further step 20.0 ns",
        "- tanh, training: smallest call 5.00 µs, each further step 20.0 ns",
        "- relu, forward: smallest call 5.00 µs, each further step 20.0 ns",
        "- relu, training: smallest call 5.00 µs, each further step 20.0 ns",
        "",
        "|  B |  H | GFLOP/s of a step: torch.mm | rnn_ext |",
        "| -: | -: | --------------------------: | ------: |",
        "|  1 |  8 |                        1.00 |    2.00 |",
    ]
    assert format_limits(run).startswith(limits)
    assert "; bound: " in table


# Results as JSON


def test_json_holds_all_that_the_report_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.json"
    assert bench("--seq-len=3,4", "--nonlinearity=relu", f"--json={file}") == 0
    printed = capsys.readouterr().out
    assert command.run(parse(f"--from={file}")) == 0
    assert capsys.readouterr().out == printed
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_json_says_how_to_repeat_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a run.json"
    argv = ["bench", *TINY, f"--json={file}", "--mode=forward"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/rnn-ext", *argv])
    assert cli.main() == 0
    written = json.loads(file.read_text())
    assert written["command"] == f"rnn-ext bench {' '.join(TINY)} '--json={file}' --mode=forward"
    assert written["complete"] is True
    assert written["machine"]["torch"] == torch.__version__
    assert written["machine"]["isa"] == rnn_ext.build_info()["isa"]
    assert written["gemm"] == [{"threads": 1, "gflops": {"torch.mm": 8.0, "oneDNN": 10.0}}]
    (cell,) = written["cells"]
    assert Case.from_dict(cell["case"]) == CASE
    forward = cell["forward"]
    seconds = forward["rnn_ext_seconds"]
    assert 0 < seconds["q1"] <= seconds["median"] <= seconds["q3"]
    assert forward["gflops"] == pytest.approx(CASE.flops("forward") / seconds["median"] / 1e9)
    assert forward["gemm_share"] == pytest.approx(forward["gflops"] / 10)
    assert forward["bound"]["limit"] == "call"
    assert forward["bound_share"] == pytest.approx(forward["bound"]["seconds"] / seconds["median"])
    assert forward["rounds"] >= MIN_ROUNDS
    assert written["summary"][0]["geometric_mean"] == pytest.approx(forward["ratio"]["median"])


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    case = Case(9, 1, 2, 3, dtype=torch.bfloat16, layout="packed", hx="learned", name="somebody")
    row = both_modes(case, 2, 3)
    row.measured["forward"] = Measured(note="skipped")
    row.measured["training"].memory = {"nn_rnn": Memory(3, 2), "rnn_ext": Memory(2, None)}
    row.measured["training"].peers = {"rnn_ext": [1.0, 2.0], "JAX": [3.0, 4.0]}
    run = a_run(row, Row(CASE, 1), complete=False)
    run.peers = {"JAX": "1.2", "OpenVINO": None}
    results.write(run, tmp_path / "run.json")
    assert results.read(tmp_path / "run.json") == run


def test_results_without_limits_have_no_bounds(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    results.write(a_run(both_modes(CASE, 2, 3)), file)
    older = json.loads(file.read_text())
    del older["limits"]
    file.write_text(json.dumps(older))
    report = format_report(results.read(file))
    assert report.startswith("float32, ")
    assert "| GEMM | training" in report
    assert "bound" not in report


def test_every_key_of_the_json_is_documented(tmp_path: Path) -> None:
    row = both_modes(CASE, 2, 3)
    row.measured["training"].memory = {"nn_rnn": Memory(3, 2), "rnn_ext": Memory(2, None)}
    row.measured["training"].note = "skipped"
    row.measured["training"].peers = {"JAX": [1.0]}
    results.write(a_run(row), tmp_path / "run.json")

    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        if not isinstance(value, dict):
            return set()
        return set(value).union(*map(keys, value.values()))

    libraries = {"torch.mm", "oneDNN"}
    text = Path(__file__).parents[1].joinpath("bench", "README.md").read_text()
    found = keys(json.loads((tmp_path / "run.json").read_text())) - libraries
    assert {key for key in found if f"`{key}`" not in text} == set()


def test_a_failed_write_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    results.write(a_run(both_modes(CASE, 2, 3)), file)
    before = file.read_text()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        results.write(a_run(), file)
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"format": "rnn-ext bench 0"}', "\x00"])
def test_a_file_of_another_kind_is_told(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    assert cli.main(["bench", f"--from={file}"]) == 2
    assert f"{file} is not a result of this version's rnn-ext bench" in capsys.readouterr().err


# The picture


def cells_of(panel: Any) -> dict[tuple[str, str], tuple[str, str | None]]:
    """(B, H) -> text and color of each cell of a heat map, read from its labels."""
    columns = [label.get_text() for label in panel.get_xticklabels()]
    lines = [label.get_text() for label in panel.get_yticklabels()]
    colors = {
        (int(patch.get_x()), int(patch.get_y())): to_hex(patch.get_facecolor())
        for patch in panel.patches
        if isinstance(patch, Rectangle)
    }
    places = {
        (int(x), int(y)): text.get_text()
        for text in panel.texts
        for x, y in [text.xy]
        if (x % 1, y % 1) == (0.5, 0.5)
    }
    return {(lines[y], columns[x]): (text, colors.get((x, y))) for (x, y), text in places.items()}


def test_heat_map_has_a_cell_for_each_shape_and_another_hue_for_losses() -> None:
    rows = [
        both_modes(Case(16, 8, 32, 32), 12.34, 3),
        both_modes(Case(16, 8, 64, 64), 1.5, 123),
        both_modes(Case(16, 1, 32, 32), 0.96, 0.1),
    ]
    rows[1].measured["training"] = Measured(note="skipped")
    figure = plot.draw(a_run(*rows))
    forward, training, *_ = figure.axes
    assert cells_of(forward) == {
        ("B=8", "H=32"): ("12.3", GAINS[3]),
        ("B=8", "H=64"): ("1.50", GAINS[0]),
        ("B=1", "H=32"): ("0.96", LOSSES[1]),
    }
    assert [text.get_text() for text in training.texts] == ["3.00", "not measured", "0.10"]
    assert forward.get_title() == ("forward, 2 threads\n2.61× in geometric mean, 0.96× at worst")
    footer = figure.get_supxlabel()
    assert footer.startswith("float32, tanh, 1 layer, I = H")
    assert f"torch {torch.__version__}" in footer


def test_every_number_of_threads_has_its_line_of_panels() -> None:
    rows = [both_modes(Case(16, 1, 8, 8), threads, 2, threads) for threads in (2, 1)]
    figure = plot.draw(a_run(*rows))
    titles = [title.split("\n")[0] for axes in figure.axes if (title := axes.get_title())]
    assert titles == [
        f"{mode}, {threads}"
        for threads in ("2 threads", "1 thread")
        for mode in ("forward", "forward + backward")
    ]
    shown = [axes.texts[0].get_text() for axes in figure.axes[:4]]
    assert shown == ["2.00", "2.00", "1.00", "2.00"]


def test_named_cases_are_bars_from_one_in_the_order_of_the_first_mode() -> None:
    rows = [
        both_modes(Case(9, 1, 2, 3, name="loss"), 0.5, 3),
        both_modes(Case(9, 1, 2, 3, name="gain"), 4, 2),
    ]
    forward, training = plot.draw(a_run(*rows)).axes
    for axes, ratios in ((forward, (4, 0.5)), (training, (2, 3))):
        ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
        assert ends == [(1, pytest.approx(ratio)) for ratio in ratios]
    hues = [to_hex(bar.get_facecolor()) for bar in forward.patches]
    assert hues[0] in GAINS
    assert hues[1] in LOSSES
    texts = [text.get_text() for text in forward.texts]
    assert texts == ["4.00×", "gain", CASE_SIZES, "0.50×", "loss", CASE_SIZES]


def test_picture_is_a_png_as_wide_as_promised(tmp_path: Path) -> None:
    source, picture = tmp_path / "run.json", tmp_path / "run.png"
    results.write(a_run(both_modes(Case(16, 1, 8, 8), 2, 3)), source)
    assert command.run(parse(f"--from={source}", f"--plot={picture}")) == 0
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") == 1600


def test_nothing_to_plot_is_told() -> None:
    with pytest.raises(UserError, match="nothing was measured, so there is nothing to plot"):
        plot.draw(a_run(Row(CASE, 1, {"forward": Measured(note="skipped")})))
