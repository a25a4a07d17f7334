"""``rnn-ext bench``: wrong results are detected, and the command runs from end to end.

No test asserts a measured time.
"""

import argparse
import json
import re

import pytest
import torch
from torch import nn

import rnn_ext
from rnn_ext import cli
from rnn_ext.bench import command
from rnn_ext.bench.check import first_difference
from rnn_ext.bench.timing import Spread, Timing, Timings
from rnn_ext.bench.workload import Workload

TINY = ["--seq-len=3", "--batch-size=2", "--hidden-size=5", "--input-size=4", "--threads=1"]


def parse(*flags):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([*TINY, "--seconds=0.001", *flags])


def bench(*flags):
    return command.run(parse(*flags))


# Comparison


def wrong_value(rnn, input):
    output, h_n = rnn(input)
    return output * 1.001, h_n


def wrong_final_state(rnn, input):
    output, h_n = rnn(input)
    return output, h_n.roll(1, dims=-1)


def wrong_without_gradients(rnn, input):
    output, h_n = rnn(input)
    return (output if torch.is_grad_enabled() else output.flip(0)), h_n


def not_a_number(rnn, input):
    output, h_n = rnn(input)
    return output.index_fill(0, torch.tensor(0), torch.nan), h_n


def doubled_weight_gradients(rnn, input):
    output, h_n = rnn(input)
    again, _ = rnn(input.detach())
    return output + again - again.detach(), h_n


def no_input_gradient(rnn, input):
    return rnn(input.detach())


def spoiled(spoil):
    class Spoiled(nn.RNN):
        def forward(self, input, hx=None):
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
def test_a_wrong_result_names_the_cell_and_exits_1(wrong, found, nonlinearity, monkeypatch, capsys):
    monkeypatch.setattr(rnn_ext, "RNN", spoiled(wrong))
    assert bench(f"--nonlinearity={nonlinearity}") == 1
    captured = capsys.readouterr()
    assert "differ at T=3 B=2 I=4 H=5" in captured.err
    assert re.search(found, captured.err)


class Precise(nn.RNN):
    """Computes in the next wider precision and rounds the results."""

    error = 0.0

    def forward(self, input, hx=None):
        wide = torch.float64 if input.dtype == torch.float32 else torch.float32
        weights = [weight.to(wide) for weight in self.parameters()]
        hx = input.new_zeros(1, input.shape[1], self.hidden_size).to(wide)
        op = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        found = op(input.to(wide), hx, weights, True, 1, 0.0, self.training, False, False)
        return tuple((1 + self.error) * result.to(input.dtype) for result in found)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_differences_are_accepted(dtype, nonlinearity, monkeypatch):
    monkeypatch.setattr(rnn_ext, "RNN", Precise)
    flags = (f"--dtype={dtype}", f"--nonlinearity={nonlinearity}")
    assert bench("--seq-len=200", "--hidden-size=33", *flags) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_may_have_the_error_of_nn_rnn(dtype, monkeypatch):
    monkeypatch.setattr(rnn_ext, "RNN", nn.RNN)
    assert bench("--seq-len=300", f"--dtype={dtype}") == 0


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.05), ("float16", 0.006)])
def test_larger_errors_are_rejected_in_half_precision(dtype, error, nonlinearity, monkeypatch):
    monkeypatch.setattr(rnn_ext, "RNN", Precise)
    monkeypatch.setattr(Precise, "error", error)  # 6 eps
    assert bench("--seq-len=20", f"--dtype={dtype}", f"--nonlinearity={nonlinearity}") == 1


def test_a_result_of_another_shape_is_rejected():
    found = first_difference({"h_n": torch.ones(1, 3)}, {"h_n": torch.ones(1, 1)})
    assert found == "h_n has shape (1, 1), not (1, 3)"


def test_results_that_are_zero_on_both_sides_are_equal():
    zeros = {"output": torch.zeros(3)}
    assert first_difference(zeros, {"output": torch.zeros(3)}) is None


def test_nothing_is_timed_before_the_results_agree(monkeypatch):
    def fail(*_):
        pytest.fail("timed a wrong module")

    monkeypatch.setattr(rnn_ext, "RNN", spoiled(wrong_value))
    monkeypatch.setattr("rnn_ext.bench.command.time_hot_and_cold", fail)
    assert bench() == 1


@pytest.mark.parametrize("kind", [rnn_ext.RNN, rnn_ext.RNNCell])
def test_training_leaves_every_gradient_of_one_call(kind):
    """Repeated calls must not add to the gradients: that would be additional work."""
    module = kind(4, 5)
    rows = (3, 2) if kind is rnn_ext.RNN else (2,)
    hx = torch.randn(*([1] if kind is rnn_ext.RNN else []), 2, 5, requires_grad=True)
    work = Workload(torch.randn(*rows, 4, requires_grad=True), hx, torch.randn(*rows, 5))
    step = work.step(module)
    norms = []
    for _ in range(2):
        step()
        leaves = [work.data, hx, *module.parameters()]
        norms.append([float(leaf.grad.norm()) for leaf in leaves if leaf.grad is not None])
    assert len(norms[0]) == 6
    assert norms[0] == norms[1]


# The command


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--dtype=float64", "--nonlinearity=relu"),
        ("--num-layers=2", "--bidirectional"),
        ("--cell",),
        ("--cell", "--dtype=bfloat16", "--bidirectional"),
    ],
)
def test_a_table_has_a_line_for_each_shape_and_mode(flags, capsys):
    assert bench(*flags) == 0
    out = capsys.readouterr().out
    steps = 1 if "--cell" in flags else 3
    lines = re.findall(rf"^\| +{steps} \| +2 \| +4 \| +5 \| +(\w+) \|(.*)\|$", out, re.M)
    assert [mode for mode, _ in lines] == ["forward", "training"]
    assert all(len([c for c in cells.split("|") if c.strip()]) == 6 for _, cells in lines)
    assert re.search(r"^training: hot [\d.]+ times as fast in geometric mean.*; cold ", out, re.M)
    assert f"ISA {rnn_ext.build_info()['isa']}" in out


def fake_timing(monkeypatch, *ratios, warning=""):
    """Replaces timing and load warning; returns the numbers of threads that the timing sees."""
    seen = []
    spread = Spread.of(ratios)

    def fake(*_):
        seen.append(torch.get_num_threads())
        return Timings(Timing(3, spread, Spread(1.0, 1.0, 1.0), spread))

    monkeypatch.setattr(command, "time_hot_and_cold", fake)
    monkeypatch.setattr(command.Waiting, "warning", lambda _: warning)
    return seen


def test_sizes_are_measured_once_in_every_combination(monkeypatch, tmp_path, capsys):
    before = torch.get_num_threads()
    seen = fake_timing(monkeypatch, 2.0, 2.0)
    file = tmp_path / "bench.json"
    flags = ("--seq-len=3,4,3", "--threads=1,3,1", "--mode=forward", f"--json={file}")
    assert bench(*flags) == 0
    assert seen == [1, 1, 3, 3]
    assert torch.get_num_threads() == before
    content = json.loads(file.read_text())
    assert [(t["seq_len"], t["threads"]) for t in content["timings"]] == [
        (3, 1),
        (4, 1),
        (3, 3),
        (4, 3),
    ]
    assert content["timings"][0]["hot"]["ratio"]["median"] == 2.0
    assert content["timings"][0]["cold"] is None
    assert content["machine"]["torch_running"] == torch.__version__
    assert "warning" not in capsys.readouterr().out


def test_warns_on_a_loaded_machine(monkeypatch, capsys):
    fake_timing(monkeypatch, 1.0, 2.0, 9.0)
    assert bench() == 0
    assert "\nwarning: the ratios scatter" in capsys.readouterr().out
    fake_timing(monkeypatch, 2.0, 2.0, warning="warning: threads waited")
    assert bench() == 0
    assert "\nwarning: threads waited\n" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured_and_exits_130(monkeypatch, tmp_path):
    measured = []

    def fake(args, shape, mode):
        measured.append(mode)
        if len(measured) > 1:
            raise KeyboardInterrupt
        return Timings(Timing(3, *[Spread(1.0, 1.0, 1.0)] * 3))

    monkeypatch.setattr(command, "_measure", fake)
    file = tmp_path / "bench.json"
    assert bench(f"--json={file}") == 130
    assert [t["mode"] for t in json.loads(file.read_text())["timings"]] == ["forward"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seq-len=16,x", "argument --seq-len: must be a whole number from 1"),
        ("--hidden-size=1,", "argument --hidden-size: must be a whole number from 1"),
        ("--threads=1025", "argument --threads: must be a whole number from 1 to 1024, not '1025'"),
        ("--mode=backward", "argument --mode: 'backward' is none of forward, training"),
        ("--seconds=nan", "argument --seconds: must be a number above 0"),
        ("--json=no/x.json", "argument --json: the folder 'no' does not exist; create it first"),
    ],
)
def test_bad_flags_are_one_line_errors(flag, message, capsys):
    assert cli.main(["bench", flag]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"rnn-ext: {message}")
    assert captured.err.count("\n") == 1
