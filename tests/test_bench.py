"""``rnn-ext bench``: flags, cases, and the command from end to end.

No test asserts a measured time.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from bench_support import TINY, bench, parse, round_limits, timed

import rnn_ext
from rnn_ext import cli
from rnn_ext.bench import command, memory, results
from rnn_ext.bench.bounds import Limits
from rnn_ext.bench.cases import Case, shapes
from rnn_ext.bench.gemm import gemm_rates
from rnn_ext.bench.timing import Timing

pytestmark = pytest.mark.usefixtures("fake_limits")


# Grid and flags


def test_default_grid_is_all_sizes_but_the_largest_cell() -> None:
    grid = shapes()
    assert len(grid) == len(set(grid)) == 3 * 4 * 4 - 1
    assert (1024, 128, 1024) not in grid
    assert {(16, 1, 32), (1024, 128, 512), (1024, 32, 1024)} <= set(grid)


def test_any_grid_flag_gives_the_full_product_in_order() -> None:
    assert shapes([2, 7], [1], [3, 4]) == [(2, 1, 3), (2, 1, 4), (7, 1, 3), (7, 1, 4)]
    assert (1024, 128, 1024) in shapes(seq_lens=[1024])


def test_flags_are_parsed() -> None:
    args = parse("--seq-len=16,128", "--threads=1,2", "--mode=training,forward", "--dtype=float64")
    assert args.seq_len == (16, 128)
    assert args.threads == (1, 2)
    assert args.mode == ("forward", "training")
    assert args.dtype == "float64"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--seq-len", "16,x", "'x' is not a whole number from 1 to 2147483647"),
        ("--seq-len", "", "'' is not a whole number from 1 to 2147483647"),
        ("--batch-size", "0", "'0' is not a whole number from 1 to 2147483647"),
        ("--hidden-size", "1,", "'' is not a whole number from 1 to 2147483647"),
        ("--input-size", "9" * 5000, "is not a whole number from 1 to 2147483647"),
        ("--num-layers", "-1", "'-1' is not a whole number from 1 to 2147483647"),
        ("--threads", "1025", "'1025' is not a whole number from 1 to 1024"),
        ("--mode", "forward,backward", "'backward' is none of forward, training"),
        ("--seconds-per-cell", "0", "'0' is not a positive number of seconds"),
        ("--seconds-per-cell", "nan", "'nan' is not a positive number of seconds"),
        ("--seconds-per-cell", "inf", "'inf' is not a positive number of seconds"),
        ("--seconds-per-cell", "soon", "'soon' is not a positive number of seconds"),
    ],
)
def test_a_bad_flag_is_named_and_exits_2(
    flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(f"{flag}={value}")
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}: " in error
    assert message in error


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--real", "--seq-len=3"], "--real has its own shapes: leave out --seq-len"),
        (
            ["--real=fastrnns,nobody"],
            "argument --real: 'nobody' is none of grid-pattern-formation, ",
        ),
        (
            ["--limits", "--mode=forward", "--memory"],
            "--limits measures no cell: leave out --mode, --memory",
        ),
        (
            ["--from=x.json", "--threads=1", "--memory"],
            "--from shows an earlier run: leave out --threads, --memory",
        ),
        (["--from=missing.json"], "[Errno 2] No such file or directory: 'missing.json'"),
        (
            ["--json=no/folder/x.json"],
            "argument --json: the folder 'no/folder' does not exist; create it first",
        ),
        (["--json=tests"], "argument --json: must be a file, and 'tests' is a folder"),
        (["--plot=x.pdf"], "argument --plot: must end in .png, not 'x.pdf'"),
        (["--plot=no/x.png"], "argument --plot: the folder 'no' does not exist; create it first"),
    ],
)
def test_mistakes_are_one_sentence(
    flags: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert cli.main(["bench", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"rnn-ext: {sentence}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "hide", "sentence"),
    [
        ("--plot=x.png", "matplotlib", "this needs matplotlib; install it with: pip install"),
        (
            "--memory",
            "clear_refs",
            "--memory needs Linux and its /nowhere/clear_refs; leave it out",
        ),
    ],
)
def test_what_is_missing_is_told_before_anything_is_measured(
    flag: str,
    hide: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if hide == "matplotlib":
        for name in {
            "matplotlib",
            *(name for name in sys.modules if name.startswith("matplotlib")),
        }:
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("plot", "panels"):
            monkeypatch.delitem(sys.modules, f"rnn_ext.bench.{name}", raising=False)
    else:
        monkeypatch.setattr(memory, "_CLEAR", Path("/nowhere/clear_refs"))
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    assert cli.main(["bench", *TINY, flag]) == 2
    assert capsys.readouterr().err.startswith(f"rnn-ext: {sentence}")


def test_flops_count_every_layer_and_direction() -> None:
    assert Case(10, 3, 4, 5).flops("forward") == 2 * 10 * 3 * 5 * (4 + 5)
    assert Case(10, 3, 4, 5).flops("training") == 3 * Case(10, 3, 4, 5).flops("forward")
    both = Case(10, 3, 4, 5, num_layers=2, bidirectional=True)
    assert both.flops("forward") == 2 * 10 * 3 * 2 * 5 * ((4 + 5) + (10 + 5))
    packed = Case(10, 3, 4, 5, layout="packed")
    assert packed.lengths == [10, 8, 5]
    assert packed.flops("forward") == 2 * (10 + 8 + 5) * 5 * (4 + 5)


# The machine


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_matrix_product_is_measured_in_every_library(dtype: torch.dtype) -> None:
    rates = gemm_rates(dtype, size=32, seconds=0)
    onednn = dtype != torch.float64 and torch.backends.mkldnn.is_available()
    assert set(rates) == {"torch.mm", "rnn_ext"} | ({"oneDNN"} if onednn else set())
    assert all(rate > 0 for rate in rates.values())


# The command from end to end


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--dtype=float64", "--nonlinearity=relu"),
        ("--num-layers=2", "--bidirectional"),
    ],
)
def test_a_grid_of_one_cell_prints_its_table(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*flags) == 0
    captured = capsys.readouterr()
    assert captured.err == "", "the progress bar is quiet where stderr is no terminal"
    size = re.search(r"^\| +3 \| +2 \| +4 \| +5 \|(.*)\|$", captured.out, re.MULTILINE)
    assert size is not None
    assert len([cell for cell in size.group(1).split("|") if cell.strip()]) == 12
    for mode in ("forward", "training"):
        assert re.search(rf"^{mode}: ratio .* T=3 B=2 I=4 H=5$", captured.out, re.MULTILINE)
    assert f"ISA {rnn_ext.build_info()['isa']}" in captured.out
    assert f"torch {torch.__version__}" in captured.out


def test_one_mode_leaves_the_other_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--mode=forward") == 0
    out = capsys.readouterr().out
    assert "forward: nn.RNN" in out
    assert "training: nn.RNN" not in out


def test_limits_alone_measure_no_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    file = tmp_path / "run.json"
    assert command.run(parse("--limits", "--threads=2", "--hidden-size=8", f"--json={file}")) == 0
    out = capsys.readouterr().out
    assert out.startswith("limits of the machine, 2 threads\n- matrix product 100 GFLOP/s\n")
    assert "limits of the machine, 1 thread\n- matrix product 50 GFLOP/s\n" in out
    assert "nn.RNN" not in out
    run = results.read(file)
    assert (run.complete, run.rows, list(run.limits)) == (True, [], [2, 1])


def test_limits_are_measured_with_the_threads_that_they_are_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, bool]] = []

    def fake(*_: object, with_products: bool) -> Limits:
        seen.append((torch.get_num_threads(), with_products))
        return round_limits(1)

    monkeypatch.setattr(command, "measure_limits", fake)
    assert command.run(parse("--threads=3,2", "--limits")) == 0
    # One thread's are needed for every bound, but nobody asked for its products.
    assert seen == [(3, True), (2, True), (1, False)]


def test_every_number_of_threads_has_its_table_and_is_set_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def fake(*_: object) -> Timing:
        seen.append(torch.get_num_threads())
        return timed(1.0, 1.0)

    before = torch.get_num_threads()
    monkeypatch.setattr(command, "measure", fake)
    assert bench("--threads=1,3") == 0
    assert seen == [1, 1, 3, 3]
    assert torch.get_num_threads() == before
    out = capsys.readouterr().out
    assert "1 layer, 1 thread, matrix product 10 GFLOP/s (oneDNN)\n" in out
    assert "1 layer, 3 threads, matrix" in out


def test_a_cell_beyond_the_memory_is_skipped_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = Case(4, 1, 8, 8).memory("training")
    monkeypatch.setattr(command, "available_memory", lambda: limit)
    assert bench("--seq-len=4,400", "--batch-size=1", "--hidden-size=8", "--input-size=8") == 0
    out = capsys.readouterr().out
    assert "skipped T=400 B=1 I=8 H=8 (training): takes up to" in out
    assert "skipped T=4 B=1" not in out


def test_ctrl_c_keeps_what_was_measured_and_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls = 0

    def fake(*_: object) -> Timing:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return timed(2.0, 1.0)

    monkeypatch.setattr(command, "measure", fake)
    file = tmp_path / "run.json"
    assert bench("--seq-len=3,4,5", f"--json={file}") == 130
    run = results.read(file)
    assert not run.complete
    assert [(row.case.seq_len, list(row.measured)) for row in run.rows] == [
        (3, ["forward", "training"]),
        (4, ["forward"]),
    ]
    out = capsys.readouterr().out
    assert re.search(r"^\| +3 .*2\.00 s.*2\.00 s", out, re.MULTILINE)
    assert re.search(r"^\| +4 .*2\.00 s", out, re.MULTILINE)
    assert not re.search(r"^\| +5 ", out, re.MULTILINE)
    assert "forward: ratio 2.00" in out
