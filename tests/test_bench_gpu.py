"""``rnn-ext bench --device cuda``: what can be told without a GPU, on a CPU that stands for one."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_support import CASE, parse, timed
from torch import nn
from torch.overrides import TorchFunctionMode

import rnn_ext
from rnn_ext import cli
from rnn_ext.bench import command, gpu, measure
from rnn_ext.bench.bounds import Bound, CallCost
from rnn_ext.bench.cases import Case, Mode
from rnn_ext.bench.peers.pool import Pool
from rnn_ext.bench.roofline import Roofline
from rnn_ext.bench.timing import MIN_BLOCK_SECONDS

GPU_TINY = ["--device=cuda", "--seq-len=3", "--batch-size=2", "--hidden-size=5", "--mode=forward"]

# Longer than a block, so that each has a single call.
TICK = 2 * MIN_BLOCK_SECONDS

# A step takes 1 µs forward, and 2 more backward.
ROOFLINE = Roofline(
    calls=(CallCost("forward", "tanh", 1e-5, 1e-6), CallCost("training", "tanh", 5e-5, 3e-6)),
    flop_rate=1e12,
    memory_rate=1e11,
)


class FakeEvent:
    """A CUDA event on a clock that ticks at every record."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.is_over = False

    def record(self) -> None:
        FakeEvent.now += TICK
        self.time = FakeEvent.now

    def synchronize(self) -> None:
        self.is_over = True

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self.is_over
        assert end.is_over
        return 1e3 * (end.time - self.time)


class OnCPU(TorchFunctionMode):
    """Makes on the CPU what is asked for on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that is the CPU, in all but its name and its clock."""
    device = SimpleNamespace(
        name="Fast 9000", major=9, minor=0, multi_processor_count=132, total_memory=1 << 36
    )
    for name, value in {
        "Event": FakeEvent,
        "is_available": lambda: True,
        "get_device_properties": lambda _: device,
        "mem_get_info": lambda: (1 << 33, 1 << 36),
        "memory_reserved": lambda: 0,
        "memory_allocated": lambda: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # A CUDA build of torch asks the device before it tells.
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(gpu, "GEMM_SIZE", 8)
    monkeypatch.setattr(gpu, "COPY_BYTES", 1 << 10)
    monkeypatch.setattr("rnn_ext.bench.limits.STEPS", 2)
    monkeypatch.setattr(gpu, "set_precision", lambda _: None)
    with OnCPU():
        yield


# The clock


def test_the_clock_adds_up_what_events_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    clock = gpu.EventClock()
    readings = [clock() for _ in range(3)]
    assert readings == pytest.approx([TICK, 2 * TICK, 3 * TICK])


# The bound


def test_few_rows_are_bound_by_the_latency_of_steps() -> None:
    case = Case(1000, 1, 8, 8)
    assert ROOFLINE.bound(case, "forward") == Bound(pytest.approx(1.01e-3), "latency", None)
    assert ROOFLINE.bound(case, "training") == Bound(pytest.approx(3.05e-3), "latency", None)


def test_many_rows_are_bound_by_products_or_by_memory() -> None:
    wide = Case(10, 100, 1000, 1000)  # 4 GFLOP forward, 12 in all; the call is beside it
    assert ROOFLINE.bound(wide, "forward") == Bound(pytest.approx(4.01e-3), "flops", None)
    assert ROOFLINE.bound(wide, "training") == Bound(pytest.approx(12.05e-3), "flops", None)
    narrow = Case(10, 100_000, 1, 1)  # 8 MB of values, and 20 bytes of weights
    assert ROOFLINE.bound(narrow, "forward") == Bound(pytest.approx(9e-5, rel=1e-4), "memory", None)


def test_layers_and_directions_add_up() -> None:
    one = Case(1000, 1, 8, 8)
    call = ROOFLINE.call_cost("forward", "tanh").call_seconds
    of_one = ROOFLINE.bound(one, "forward").seconds - call
    of_three = ROOFLINE.bound(replace(one, num_layers=3), "forward").seconds - call
    assert of_three == pytest.approx(3 * of_one)
    wide = Case(10, 100, 1000, 1000)
    of_wide = ROOFLINE.bound(wide, "forward").seconds - call
    both = ROOFLINE.bound(replace(wide, bidirectional=True), "forward").seconds - call
    assert both == pytest.approx(2 * of_wide)


# The command


@pytest.fixture
def fake_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {5: "rnn_ext CUDA kernels, persistent, float32: blocks", 6: "torch's own op: wide"}
    monkeypatch.setattr(command, "route", lambda case, *_: routes[case.hidden_size])
    monkeypatch.setattr(command, "measure", lambda *_: timed(4e-6, 2e-6))


@pytest.mark.usefixtures("fake_gpu", "fake_measure")
def test_json_and_report_tell_device_precision_limits_and_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    flags = [*GPU_TINY, "--hidden-size=5,6", "--tf32", f"--json={file}"]
    assert command.run(parse(*flags)) == 0
    report = capsys.readouterr().out
    assert "float32, tanh, 1 layer, Fast 9000, TF32 on, matrix product" in report
    lines = [[cell.strip() for cell in line.split("|")] for line in report.splitlines()]
    titles = next(line for line in lines if "kernels" in line)
    shown = [dict(zip(titles, line, strict=True)) for line in lines if line[1:4] == ["3", "2", "5"]]
    assert [(row["a step"], row["kernels"], row["ratio"]) for row in shown] == [
        ("667 ns", "persistent", "2.00")
    ]
    assert next(line for line in lines if line[1:5] == ["3", "2", "6", "6"])[-2] == "torch"
    found = json.loads(file.read_text())
    assert found["complete"]
    assert found["limits"] == []
    assert found["machine"]["gpu"].items() >= {"name": "Fast 9000", "tf32": True}.items()
    assert set(found["roofline"]) == {"calls", "flop_rate", "memory_rate"}
    assert found["cells"][1]["forward"]["route"] == "torch's own op: wide"
    assert found["cells"][0]["forward"]["bound"]["split"] is None
    assert command.run(parse(f"--from={file}")) == 0
    assert capsys.readouterr().out == report


@pytest.mark.usefixtures("fake_gpu")
def test_a_cell_is_compared_and_timed_like_on_the_cpu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*GPU_TINY, "--mode=training", "--seconds-per-cell=0.001"]
    assert command.run(parse(*flags)) == 0
    assert "training: ratio" in capsys.readouterr().out


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("error", [measure.MismatchError("they differ"), RuntimeError("no")])
def test_a_cell_that_fails_is_noted_and_the_rest_measured(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_once(case: Case, mode: Mode, *_: object) -> Any:
        if case.hidden_size == 5:
            raise error
        return timed(2.0, 1.0)

    monkeypatch.setattr(command, "measure", fail_once)
    assert command.run(parse(*GPU_TINY, "--hidden-size=5,6")) == 1
    report = capsys.readouterr().out
    assert f"T=3 B=2 I=5 H=5 (forward): {error}" in report
    assert "forward: ratio 2.00 in geometric mean" in report


@pytest.mark.usefixtures("fake_gpu")
def test_limits_alone_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(parse("--device=cuda", "--limits")) == 0
    report = capsys.readouterr().out
    assert "limits of the GPU\n- matrix product" in report
    assert "GB/s, read and written\n- tanh, forward: smallest call" in report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tf32"], "--tf32 is about a GPU: give --device cuda too"),
        (
            ["--device=cuda", "--threads=1", "--memory"],
            "--device cuda measures neither: leave out --threads, --memory",
        ),
        (
            ["--device=cuda", "--tf32", "--dtype=float64"],
            "--tf32 is about float32: leave out --dtype float64",
        ),
    ],
)
@pytest.mark.usefixtures("fake_gpu")
def test_flags_without_a_meaning_there_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *flags]) == 2
    assert capsys.readouterr().err == f"rnn-ext: {message}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--device=cuda"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rnn-ext: --device cuda needs a GPU and a CUDA build of torch, and ")
    assert error.count("\n") == 1


# Precision


def test_tf32_is_switched_for_everybody() -> None:
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32
    # torch's test helpers, which other tests import, freeze the switch for the whole process.
    with torch.backends.__allow_nonbracketed_mutation():
        try:
            for tf32 in (True, False):
                gpu.set_precision(tf32)
                assert products.allow_tf32 == cudnn.allow_tf32 == tf32
        finally:
            products.allow_tf32, cudnn.allow_tf32 = before


def test_results_on_a_gpu_are_compared_with_nn_rnn_in_float64() -> None:
    on_gpu: Any = SimpleNamespace(data=SimpleNamespace(is_cuda=True))
    assert measure._precise_dtype(CASE, on_gpu) == torch.float64
    assert measure._precise_dtype(replace(CASE, dtype=torch.bfloat16), on_gpu) == torch.float64
    assert measure._precise_dtype(replace(CASE, dtype=torch.float64), on_gpu) is None


def test_dropout_is_left_out_of_the_comparison_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASE, num_layers=2, dropout=0.5)
    theirs, ours = (measure.build_module(kind, case, "training") for kind in (nn.RNN, rnn_ext.RNN))
    seen = []
    monkeypatch.setattr(measure, "difference", lambda case, *_: seen.append(case.dropout))
    on_gpu: Any = SimpleNamespace(
        data=SimpleNamespace(is_cuda=True), results=lambda module: seen.append(module.dropout)
    )
    measure._difference_of_modules(case, "training", on_gpu, theirs, ours)
    assert seen == [0.0, 0.0]
    assert theirs.dropout == ours.dropout == 0.5


# Other runtimes


def test_runtimes_on_a_gpu_are_those_of_torch() -> None:
    pool = Pool(1, "cuda", tf32=True)
    assert [one.runtime.name for one in pool._workers] == ["rnn_ext", "nn.RNN", "torch.compile"]
    assert pool._workers[0]._settings == ["1", "cuda", "True"]
