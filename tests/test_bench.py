"""``rnn-ext bench``: grid, timing, comparison and report. No test asserts a measured time."""

import argparse
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnn_ext
from rnn_ext.bench import command
from rnn_ext.bench.cases import Case, Nonlinearity, shapes
from rnn_ext.bench.check import first_difference
from rnn_ext.bench.measure import measure
from rnn_ext.bench.report import Row, Table, format_seconds, format_table
from rnn_ext.bench.timing import MIN_BLOCK_SECONDS, MIN_ROUNDS, Timing, time_pair

CASE = Case(seq_len=3, batch_size=2, input_size=4, hidden_size=5)
TINY = [
    "--seq-len=3",
    "--batch-size=2",
    "--hidden-size=5",
    "--input-size=4",
    "--threads=1",
    "--seconds-per-cell=0.001",
]


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(flags)


def bench(*flags: str) -> int:
    return command.run(parse(*TINY, *flags))


class FakeClock:
    """A clock that only the functions made by ``takes`` move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: Callable[[], float]) -> Callable[[], None]:
        def function() -> None:
            self.now += seconds()

        return function


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


def test_flops_count_every_layer_and_direction() -> None:
    assert Case(10, 3, 4, 5).flops("forward") == 2 * 10 * 3 * 5 * (4 + 5)
    assert Case(10, 3, 4, 5).flops("training") == 3 * Case(10, 3, 4, 5).flops("forward")
    both = Case(10, 3, 4, 5, num_layers=2, bidirectional=True)
    assert both.flops("forward") == 2 * 10 * 3 * 2 * 5 * ((4 + 5) + (10 + 5))


# Timing


def test_times_are_per_call_and_the_ratio_is_theirs_over_ours() -> None:
    clock = FakeClock()
    timing = time_pair(clock.takes(lambda: 3.0), clock.takes(lambda: 0.5), 60.0, clock=clock)
    assert timing == Timing(theirs=3.0, ours=0.5, ratio=6.0)


def test_short_calls_are_timed_in_blocks() -> None:
    clock = FakeClock()
    reads: list[float] = []

    def reading_clock() -> float:
        reads.append(clock.now)
        return clock.now

    call = MIN_BLOCK_SECONDS / 100
    step = clock.takes(lambda: call)
    timing = time_pair(step, step, 1.0, clock=reading_clock)
    assert timing.theirs == pytest.approx(call, rel=1e-6)  # rounding of the fake clock's sums
    # The last three reads: a block's start, its end, and the look at the budget.
    assert reads[-2] - reads[-3] == pytest.approx(MIN_BLOCK_SECONDS, rel=0.02)  # a call either way


def test_a_slow_first_call_does_not_shorten_the_blocks() -> None:
    clock = FakeClock()
    calls = 0

    def seconds() -> float:
        nonlocal calls
        calls += 1
        return 1.0 if calls == 1 else MIN_BLOCK_SECONDS / 100

    time_pair(clock.takes(seconds), clock.takes(lambda: 1.0), 0.001, clock=clock)
    # The slow call alone, the one after it alone, then whole blocks.
    assert calls >= 2 + MIN_ROUNDS * 100


def test_slow_calls_get_the_fewest_rounds() -> None:
    clock = FakeClock()
    calls = 0

    def seconds() -> float:
        nonlocal calls
        calls += 1
        return 10.0

    time_pair(clock.takes(seconds), clock.takes(lambda: 10.0), 0.001, clock=clock)
    assert calls == 2 + MIN_ROUNDS


def test_rounds_go_on_until_the_budget_is_spent() -> None:
    clock = FakeClock()
    step = clock.takes(lambda: 1.0)
    time_pair(step, step, 100.0, clock=clock)
    assert 100.0 <= clock.now <= 102.0


def test_both_go_first_equally_often() -> None:
    clock = FakeClock()
    order: list[str] = []

    def step(name: str) -> Callable[[], None]:
        def seconds() -> float:
            order.append(name)
            return 1.0

        return clock.takes(seconds)

    time_pair(step("theirs"), step("ours"), 12.0, clock=clock)
    assert order[4:] == ["theirs", "ours", "ours", "theirs"] * 2


def test_a_change_of_speed_and_a_burst_leave_the_ratio_alone() -> None:
    clock = FakeClock()
    # Two blocks of warm-up; then the machine slows to a third, after a burst hit theirs alone.
    # The ratio of the medians would be 9.
    their_times = iter([3.0, 3.0, 3.0, 100.0, 3.0, 9.0, 9.0])
    our_times = iter([1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 3.0])
    timing = time_pair(
        clock.takes(lambda: next(their_times)),
        clock.takes(lambda: next(our_times)),
        130.0,
        clock=clock,
    )
    assert timing == Timing(theirs=9.0, ours=1.0, ratio=3.0)


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


def test_other_rounding_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    class InDouble(nn.RNN):
        def forward(self, input: Any, hx: Any = None) -> Any:
            weights = [weight.double() for weight in self.parameters()]
            hx = input.new_zeros(1, input.shape[1], self.hidden_size).double()
            results = torch.rnn_tanh(
                input.double(), hx, weights, True, 1, 0.0, self.training, False, False
            )
            return tuple(result.float() for result in results)

    monkeypatch.setattr(rnn_ext, "RNN", InDouble)
    assert bench("--seq-len=200", "--hidden-size=33") == 0


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

    def call_twice(theirs: Callable[[], object], ours: Callable[[], object], _: float) -> Timing:
        for _repeat in range(2):
            ours()
            norms.append([float(p.grad.norm()) for p in made[0].parameters() if p.grad is not None])
        return Timing(1.0, 1.0, 1.0)

    monkeypatch.setattr(rnn_ext, "RNN", Watched)
    monkeypatch.setattr("rnn_ext.bench.measure.time_pair", call_twice)
    measure(Case(3, 2, 4, 5, nonlinearity=nonlinearity, dtype=dtype), "training", 1.0)
    assert len(norms[0]) == 4
    assert norms[0] == norms[1]


# Report


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.56e-7, "0.46 µs"),
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


def test_table_shows_measured_skipped_and_missing_cells() -> None:
    table = Table(threads=2)
    table.rows += [
        Row(
            Case(16, 1, 32, 32),
            {"forward": Timing(90e-6, 9e-6, 10.0), "training": Timing(600e-6, 120e-6, 5.0)},
        ),
        Row(
            Case(128, 8, 32, 32),
            {"forward": Timing(2.0, 0.8, 2.5), "training": None},
            ["skipped it"],
        ),
        Row(Case(1024, 8, 32, 32)),
    ]
    assert format_table(table, ("forward", "training")).splitlines() == [
        "float32, tanh, 1 layer, 2 threads",
        "",
        "|   T |  B |  I |  H | forward: nn.RNN | rnn_ext | ratio | GFLOP/s "
        "| training: nn.RNN | rnn_ext | ratio | GFLOP/s |",
        "| --: | -: | -: | -: | --------------: | ------: | ----: | ------: "
        "| ---------------: | ------: | ----: | ------: |",
        "|  16 |  1 | 32 | 32 |         90.0 µs | 9.00 µs | 10.00 |    7.28 "
        "|           600 µs |  120 µs |  5.00 |    1.64 |",
        "| 128 |  8 | 32 | 32 |          2.00 s |  800 ms |  2.50 |    0.01 "
        "|          skipped |         |       |         |",
        "",
        "skipped it",
        "",
        "forward: ratio 5.00 in geometric mean, 2.50 in the worst cell, T=128 B=8 I=32 H=32",
        "training: ratio 5.00 in geometric mean, 5.00 in the worst cell, T=16 B=1 I=32 H=32",
    ]


def test_a_table_without_measurements_says_so() -> None:
    assert format_table(Table(threads=1), ("forward",)) == "1 thread: nothing was measured"


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
    assert len([cell for cell in size.group(1).split("|") if cell.strip()]) == 8
    for mode in ("forward", "training"):
        assert re.search(rf"^{mode}: ratio .* T=3 B=2 I=4 H=5$", captured.out, re.MULTILINE)
    assert f"ISA {rnn_ext.build_info()['isa']}" in captured.out
    assert f"torch {torch.__version__}" in captured.out


def test_one_mode_leaves_the_other_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--mode=forward") == 0
    out = capsys.readouterr().out
    assert "forward: nn.RNN" in out
    assert "training" not in out


def test_every_number_of_threads_has_its_table_and_is_set_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def fake(*_: object) -> Timing:
        seen.append(torch.get_num_threads())
        return Timing(1.0, 1.0, 1.0)

    before = torch.get_num_threads()
    monkeypatch.setattr(command, "measure", fake)
    assert bench("--threads=1,3") == 0
    assert seen == [1, 1, 3, 3]
    assert torch.get_num_threads() == before
    out = capsys.readouterr().out
    assert "1 layer, 1 thread\n" in out
    assert "1 layer, 3 threads\n" in out


def test_a_cell_beyond_the_memory_is_skipped_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = Case(4, 1, 8, 8).memory("training")
    monkeypatch.setattr(command, "available_memory", lambda: limit)
    assert bench("--seq-len=4,400", "--batch-size=1", "--hidden-size=8", "--input-size=8") == 0
    out = capsys.readouterr().out
    assert "skipped T=400 B=1 I=8 H=8 (training): takes up to" in out
    assert "skipped T=4 B=1" not in out


def test_ctrl_c_prints_what_was_measured_and_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    def fake(*_: object) -> Timing:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return Timing(2.0, 1.0, 2.0)

    monkeypatch.setattr(command, "measure", fake)
    assert bench("--seq-len=3,4,5") == 130
    out = capsys.readouterr().out
    assert re.search(r"^\| +3 .*2\.00 s.*2\.00 s", out, re.MULTILINE)
    assert re.search(r"^\| +4 .*2\.00 s", out, re.MULTILINE)
    assert not re.search(r"^\| +5 ", out, re.MULTILINE)
    assert "forward: ratio 2.00" in out
