"""The memory that a call saves for backward, and how far it raises the resident peak."""

import sys
from pathlib import Path

import pytest
import torch
from support.benchmarks import CASE, TINY
from torch import nn

import rnn_ext
from benchmarks import memory, results, run
from benchmarks.__main__ import main
from benchmarks.cases import Case
from benchmarks.draw import build, draw
from benchmarks.memory import Memory, measure_memory, peak_bytes, saved_bytes

pytestmark = pytest.mark.usefixtures("fake_limits")


def test_saved_bytes_are_those_of_the_storages_that_the_call_made():
    x = torch.randn(10, 4, requires_grad=True)
    linear = nn.Linear(4, 6)
    own = [x, *linear.parameters()]
    assert saved_bytes(lambda: linear(x), own) == 0
    assert saved_bytes(lambda: linear(x).tanh(), own) == 10 * 6 * 4
    assert saved_bytes(lambda: linear(x).tanh()[:5].exp(), own) == 10 * 6 * 4 + 5 * 6 * 4
    assert saved_bytes(lambda: linear(x).tanh().view(60).square(), own) == 10 * 6 * 4, "a view"


@pytest.mark.parametrize(
    ("case", "elements"),
    [
        (Case(7, 3, 4, 5), 7 * 3 * 5),
        (Case(7, 3, 4, 5, hx="learned", nonlinearity="relu"), 7 * 3 * 5),
        (Case(4, 3, 4, 5, bidirectional=True, layout="packed", hx="given"), (4 + 3 + 2) * 10),
        # Both outputs, the dropped one, and the mask that dropped it.
        (Case(7, 3, 4, 5, 2, dropout=0.5), 4 * 7 * 3 * 5),
    ],
    ids=lambda value: value.settings if isinstance(value, Case) else "",
)
def test_a_layer_saves_its_output_and_the_callers_tensors(case, elements):
    module, work = build(rnn_ext.RNN, case, "training"), draw(case, "training")
    own = [*work.tensors(), *module.parameters()]
    assert saved_bytes(lambda: module(*work.arguments()), own) == 4 * elements


LINUX = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of resident memory"
)
# Pages that the system counts with a delay.
PEAK_ERROR = 1 << 20


@LINUX
def test_peak_counts_freed_memory_and_ignores_earlier_peaks():
    size = 64 << 20
    torch.ones(2 * size, dtype=torch.uint8)  # a higher peak, before

    def call():
        scratch = torch.ones(size, dtype=torch.uint8)
        return scratch[: size // 2].clone()

    for _ in range(2):
        assert abs(peak_bytes(call) - 1.5 * size) < PEAK_ERROR


@LINUX
def test_peak_counts_memory_that_reuses_freed_blocks():
    def call():
        return [torch.ones(64 << 10, dtype=torch.uint8) for _ in range(200)]

    call()
    # Each block a little longer than its tensor.
    assert 200 * (64 << 10) - PEAK_ERROR < peak_bytes(call) < 220 * (64 << 10) + PEAK_ERROR


@LINUX
def test_memory_of_a_call_is_measured_in_another_process():
    case = Case(64, 32, 1, 512)
    output = 64 * 32 * 512 * 4
    result = measure_memory(case, "training", "rnn_ext", 1)
    assert result.saved == output
    # Output and the gradient of W_hh at the least; scratch memory is less than another output.
    assert output + 512 * 512 * 4 <= result.peak + PEAK_ERROR
    assert result.peak <= 2 * output + 512 * 512 * 4 + PEAK_ERROR


def test_memory_is_measured_for_each_cell_mode_and_library(monkeypatch, tmp_path):
    asked = []

    def fake(case, mode, library, threads):
        asked.append((case.seq_len, mode, library, threads))
        if (mode, library) == ("training", "rnn_ext"):
            raise memory.MemoryProbeError("the process for rnn_ext ended with code -9")
        return Memory(len(asked), None)

    monkeypatch.setattr(memory, "can_measure", lambda: True)
    monkeypatch.setattr(run, "measure_memory", fake)
    file = tmp_path / "run.json"
    assert main(["grid", *TINY, "--threads=1", "--memory", f"--json={file}"]) == 0
    assert asked == [
        (3, mode, library, 1)
        for mode in ("forward", "training")
        for library in ("nn_rnn", "rnn_ext")
    ]
    (row,) = results.read(file).cells
    assert row.forward
    assert row.forward.memory_bytes == {"nn_rnn": Memory(1, None), "rnn_ext": Memory(2, None)}
    assert row.training
    assert row.training.memory_bytes == {"nn_rnn": Memory(3, None)}
    assert row.training.hot
    assert row.training.note.endswith("the process for rnn_ext ended with code -9")


def test_reports_a_process_without_a_result(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(memory.MemoryProbeError, match="the process for nn_rnn ended with code 1"):
        measure_memory(CASE, "forward", "nn_rnn", 1)
