"""``rnn-ext bench``: that what is timed is right, and the call that the case names.

No test asserts a measured time.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from bench_support import CASE, bench, parse, timed
from torch import Tensor, nn

import rnn_ext
from rnn_ext.bench import command
from rnn_ext.bench.cases import Case, Mode, Nonlinearity
from rnn_ext.bench.check import first_difference
from rnn_ext.bench.measure import measure
from rnn_ext.bench.real import real_cases
from rnn_ext.bench.timing import MIN_ROUNDS, Timing
from rnn_ext.bench.workload import Workload, build_module

pytestmark = pytest.mark.usefixtures("fake_limits")


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
