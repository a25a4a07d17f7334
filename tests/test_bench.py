"""``rnn-ext bench``: flags, cases, comparison, and the command from end to end.

No test asserts a measured time.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_support import CASE, TINY, bench, parse, round_limits, timed
from torch import Tensor, nn

import rnn_ext
from rnn_ext import cli
from rnn_ext.bench import command, memory, results
from rnn_ext.bench.bounds import Limits
from rnn_ext.bench.cases import Case, Mode, Nonlinearity, shapes
from rnn_ext.bench.check import first_difference
from rnn_ext.bench.gemm import gemm_rates
from rnn_ext.bench.measure import measure
from rnn_ext.bench.real import real_cases
from rnn_ext.bench.timing import MIN_ROUNDS, Timing
from rnn_ext.bench.workload import Workload, build_module

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


# Comparison


Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def wrong_value(rnn: Forward, input: Tensor) -> tuple[Tensor, Tensor]:
    output, h_n = rnn(input)
    return output * 1.001, h_n


def wrong_final_state(rnn: Forward, input: Tensor) -> tuple[Tensor, Tensor]:
    output, h_n = rnn(input)
    return output, h_n.roll(1, dims=-1)


def wrong_without_gradients(rnn: Forward, input: Tensor) -> tuple[Tensor, Tensor]:
    output, h_n = rnn(input)
    return (output if torch.is_grad_enabled() else output.flip(0)), h_n


def not_a_number(rnn: Forward, input: Tensor) -> tuple[Tensor, Tensor]:
    output, h_n = rnn(input)
    return output.index_fill(0, torch.tensor(0), torch.nan), h_n


def doubled_weight_gradients(rnn: Forward, input: Tensor) -> tuple[Tensor, Tensor]:
    output, h_n = rnn(input)
    again, _ = rnn(input.detach())
    return output + again - again.detach(), h_n


def no_input_gradient(rnn: Forward, input: Tensor) -> tuple[Tensor, Tensor]:
    return rnn(input.detach())


def spoiled(spoil: Callable[[Forward, Tensor], tuple[Tensor, Tensor]]) -> type[nn.RNN]:
    class Spoiled(nn.RNN):
        def forward(self, input: Any, hx: Any = None) -> Any:
            return spoil(super().forward, input)

    return Spoiled


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (wrong_value, r"\(forward\): output is off"),
        (wrong_final_state, r"\(forward\): h_n is off"),
        (wrong_without_gradients, r"\(forward\): output is off"),
        (not_a_number, r"\(forward\): output is off by nan"),
        (doubled_weight_gradients, r"\(training\): gradient of weight_ih_l0 is off"),
        (no_input_gradient, r"\(training\): gradient of input is missing"),
    ],
)
def test_a_wrong_result_names_the_cell_and_exits_1(
    wrong: Callable[[Forward, Tensor], tuple[Tensor, Tensor]],
    found: str,
    nonlinearity: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rnn_ext, "RNN", spoiled(wrong))
    assert bench(f"--nonlinearity={nonlinearity}") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "differ at T=3 B=2 I=4 H=5" in captured.err
    assert re.search(found, captured.err)


class Precise(nn.RNN):
    """Computes in the next wider precision and rounds the results."""

    error = 0.0

    def forward(self, input: Any, hx: Any = None) -> Any:
        wide = torch.float64 if input.dtype == torch.float32 else torch.float32
        weights = [weight.to(wide) for weight in self.parameters()]
        hx = input.new_zeros(1, input.shape[1], self.hidden_size).to(wide)
        op = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        found = op(input.to(wide), hx, weights, True, 1, 0.0, self.training, False, False)
        return tuple((1 + self.error) * result.to(input.dtype) for result in found)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_rounding_is_no_difference(
    dtype: str, nonlinearity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rnn_ext, "RNN", Precise)
    flags = (f"--dtype={dtype}", f"--nonlinearity={nonlinearity}")
    assert bench("--seq-len=200", "--hidden-size=33", *flags) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_may_be_as_far_off_as_nn_rnn(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rnn_ext, "RNN", nn.RNN)
    assert bench("--seq-len=300", f"--dtype={dtype}") == 0


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.05), ("float16", 0.006)])
def test_more_than_rounding_is_a_difference_in_half_precision_too(
    dtype: str, error: float, nonlinearity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rnn_ext, "RNN", Precise)
    monkeypatch.setattr(Precise, "error", error)  # 6 eps
    assert bench("--seq-len=20", f"--dtype={dtype}", f"--nonlinearity={nonlinearity}") == 1


def test_a_result_of_another_shape_is_a_difference() -> None:
    found = first_difference(CASE, {"h_n": torch.ones(1, 3)}, {"h_n": torch.ones(1, 1)})
    assert found == "h_n has shape (1, 1), not (1, 3)"


def test_results_that_are_zero_on_both_sides_are_equal() -> None:
    zeros = {"output": torch.zeros(3)}
    assert first_difference(CASE, zeros, {"output": torch.zeros(3)}) is None


def test_nothing_is_timed_before_the_results_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Timing:
        pytest.fail("timed a wrong module")

    monkeypatch.setattr(rnn_ext, "RNN", spoiled(wrong_value))
    monkeypatch.setattr("rnn_ext.bench.measure.time_pair", fail)
    assert bench() == 1


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_leaves_every_gradient_of_one_call(
    dtype: torch.dtype, nonlinearity: Nonlinearity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated calls must not add to the gradients: the timed work would be another."""
    made: list[nn.Module] = []

    class Watched(rnn_ext.RNN):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    norms: list[list[float]] = []

    def call_twice(
        theirs: Callable[[], object], ours: Callable[[], object], *_: float, **__: object
    ) -> Timing:
        for _repeat in range(2):
            ours()
            norms.append([float(p.grad.norm()) for p in made[0].parameters() if p.grad is not None])
        return timed(1.0, 1.0)

    monkeypatch.setattr(rnn_ext, "RNN", Watched)
    monkeypatch.setattr("rnn_ext.bench.measure.time_pair", call_twice)
    measure(Case(3, 2, 4, 5, nonlinearity=nonlinearity, dtype=dtype), "training", 1.0)
    assert len(norms[0]) == 4
    assert norms[0] == norms[1]


# Calls of real programs


def test_real_calls_are_what_their_rows_say() -> None:
    cases = {case.name: case for case in real_cases(torch.float64)}
    assert len(cases) == 18
    assert all(case.dtype == torch.float64 for case in cases.values())
    expected = [
        Case(
            20,
            200,
            2,
            4096,
            1,
            nonlinearity="relu",
            bias=False,
            hx="learned",
            name="grid-pattern-formation",
        ),
        Case(35, 20, 200, 200, 2, dropout=0.2, hx="given", name="word-language-model"),
        Case(
            160,
            20,
            88,
            600,
            nonlinearity="relu",
            batch_first=True,
            layout="packed",
            hx="learned",
            name="deep-markov-model",
        ),
        Case(400, 64, 1312, 1024, 5, bidirectional=True, layout="packed", name="deep-speech"),
        Case(60, 100, 2, 100, batch_first=True, name="path-rnn"),
        Case(1, 1, 1, 32, hx="given", name="streaming-audio"),
        Case(9, 1, 57, 128, layout="unbatched", name="name-classifier"),
        Case(784, 256, 1, 128, 6, nonlinearity="relu", name="pixel-mnist"),
    ]
    for case in expected:
        assert cases[case.name] == replace(case, dtype=torch.float64)


def test_real_calls_can_be_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--real=name-classifier,streaming-audio", "--threads=1", "--seconds-per-cell=0.001")
    assert command.run(parse(*flags)) == 0
    names = re.findall(r"^\| +([a-z-]+) \| +tanh", capsys.readouterr().out, re.MULTILINE)
    assert names == ["streaming-audio", "name-classifier"]


def test_real_without_names_is_all_of_them() -> None:
    assert parse("--real").real == tuple(case.name for case in real_cases())


KINDS = [
    Case(5, 3, 4, 6),
    Case(5, 3, 4, 6, batch_first=True, hx="given"),
    Case(5, 1, 4, 6, 2, layout="unbatched", hx="learned"),
    Case(5, 3, 4, 6, 2, bidirectional=True, layout="packed", hx="learned", bias=False),
    Case(5, 3, 4, 6, 2, layout="packed", batch_first=True, nonlinearity="relu"),
    Case(5, 3, 4, 6, 3, dropout=0.5),
]


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize(
    "case",
    [*KINDS, *(replace(KINDS[i], dtype=torch.bfloat16) for i in (3, 5))],
    ids=lambda case: f"{case.dtype_name}, {case.settings}",
)
def test_every_kind_of_call_is_compared_and_timed(case: Case, mode: Mode) -> None:
    assert measure(case, mode, 0.001).rounds >= MIN_ROUNDS


@pytest.mark.parametrize(
    ("case", "input", "hx", "gradients"),
    [
        (KINDS[0], (5, 3, 4), None, 5),
        (KINDS[1], (3, 5, 4), (1, 3, 6), 5),
        (KINDS[2], (5, 4), (2, 6), 10),
        (KINDS[3], (5 + 4 + 3, 4), (4, 3, 6), 10),
    ],
    ids=lambda value: value.settings if isinstance(value, Case) else "",
)
def test_a_call_has_the_shapes_and_gradients_of_its_kind(
    case: Case, input: tuple[int, ...], hx: tuple[int, ...] | None, gradients: int
) -> None:
    work = Workload.draw(case, "training")
    assert work.data.shape == input
    assert (work.hx is None) == (hx is None)
    assert work.hx is None or work.hx.shape == hx
    if case.layout == "packed":
        assert work.batch_sizes is not None
        assert work.batch_sizes.tolist() == [3, 3, 3, 2, 1]
    found = work.results(build_module(nn.RNN, case, "training"))
    assert len(found) == 2 + gradients
    assert ("gradient of hx" in found) == (case.hx == "learned")


def test_dropout_acts_in_training_alone() -> None:
    case = Case(5, 3, 4, 6, 2, dropout=0.5)
    assert build_module(nn.RNN, case, "training").training
    assert not build_module(nn.RNN, case, "forward").training


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
