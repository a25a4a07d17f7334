"""``python -m benchmarks`` on a GPU, tested without one: the CPU stands in for it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.benchmarks import CASE, TINY, hot_and_cold
from torch.overrides import TorchFunctionMode

from benchmarks import gpu, measure, run
from benchmarks.__main__ import main
from benchmarks.bounds import Bound, CallCost
from benchmarks.cases import Case
from benchmarks.peers.pool import Pool
from benchmarks.roofline import Roofline
from rnn_ext.bench import check
from rnn_ext.bench.timing import MIN_BLOCK_SECONDS
from rnn_ext.bench.workload import Workload

GPU_TINY = ["grid", "--device=cuda", *TINY, "--mode=forward"]

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

    def __init__(self, enable_timing):
        assert enable_timing
        self.is_over = False

    def record(self):
        FakeEvent.now += TICK
        self.time = FakeEvent.now

    def synchronize(self):
        self.is_over = True

    def elapsed_time(self, end):
        assert self.is_over
        assert end.is_over
        return 1e3 * (end.time - self.time)


class OnCPU(TorchFunctionMode):
    """Creates on the CPU every tensor that is requested on a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


@pytest.fixture
def fake_gpu(monkeypatch):
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
    # A CUDA build of torch asks the device first.
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(gpu, "GEMM_SIZE", 8)
    monkeypatch.setattr(gpu, "COPY_BYTES", 1 << 10)
    monkeypatch.setattr("benchmarks.limits.STEPS", 2)
    monkeypatch.setattr(gpu, "set_precision", lambda _: None)
    with OnCPU():
        yield


# The clock


def test_the_clock_adds_up_what_events_measure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    clock = gpu.EventClock()
    readings = [clock() for _ in range(3)]
    assert readings == pytest.approx([TICK, 2 * TICK, 3 * TICK])


# The bound


def test_few_rows_are_bound_by_the_latency_of_steps():
    case = Case(1000, 1, 8, 8)
    assert ROOFLINE.bound(case, "forward") == Bound(pytest.approx(1.01e-3), "latency", None)
    assert ROOFLINE.bound(case, "training") == Bound(pytest.approx(3.05e-3), "latency", None)


def test_many_rows_are_bound_by_products_or_by_memory():
    wide = Case(10, 100, 1000, 1000)  # 4 GFLOP forward, 12 in all; plus the call
    assert ROOFLINE.bound(wide, "forward") == Bound(pytest.approx(4.01e-3), "flops", None)
    assert ROOFLINE.bound(wide, "training") == Bound(pytest.approx(12.05e-3), "flops", None)
    narrow = Case(10, 100_000, 1, 1)  # 8 MB of values, and 20 bytes of weights
    assert ROOFLINE.bound(narrow, "forward") == Bound(pytest.approx(9e-5, rel=1e-4), "memory", None)


def test_layers_and_directions_add_up():
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
def fake_measure(monkeypatch):
    kernels = {5: "persistent", 6: "torch"}
    monkeypatch.setattr(run, "kernels", lambda case, *_: kernels[case.hidden_size])
    monkeypatch.setattr(run, "measure", lambda *_: replace(hot_and_cold(4e-6, 2e-6), cold=None))


@pytest.mark.usefixtures("fake_gpu", "fake_measure")
def test_report_names_device_precision_limits_and_kernels(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    assert main([*GPU_TINY, "--hidden-size=5,6", "--tf32", f"--json={file}"]) == 0
    report = capsys.readouterr().out
    assert "limits of the GPU\n- matrix product" in report
    assert "forward, float32, tanh, 1 layer, Fast 9000, TF32 on, matrix product" in report
    lines = [[cell.strip() for cell in line.split("|")] for line in report.splitlines()]
    titles = next(line for line in lines if "kernels" in line)
    shown = [dict(zip(titles, line, strict=True)) for line in lines if line[1:3] == ["3", "2"]]
    assert [(row["a step"], row["kernels"], row["hot: ratio"]) for row in shown] == [
        ("667 ns", "persistent", "2.00"),
        ("667 ns", "torch", "2.00"),
    ]
    assert not [title for title in titles if "cold" in title]
    result = json.loads(file.read_text())
    assert result["machine"]["gpu"].items() >= {"name": "Fast 9000", "tf32": True}.items()
    assert main(["show", str(file)]) == 0
    assert capsys.readouterr().out == report


@pytest.mark.usefixtures("fake_gpu")
def test_a_cell_is_compared_and_timed_like_on_the_cpu(capsys):
    assert main([*GPU_TINY, "--mode=training"]) == 0
    assert "training hot, against nn.RNN: " in capsys.readouterr().out


@pytest.mark.usefixtures("fake_gpu", "fake_measure")
@pytest.mark.parametrize("error", [check.MismatchError("they differ"), RuntimeError("no")])
def test_a_cell_that_fails_is_noted_and_the_rest_measured(error, monkeypatch, capsys):
    def fail_once(case, mode, *_):
        if case.hidden_size == 5:
            raise error
        return hot_and_cold(2.0, 1.0)

    monkeypatch.setattr(run, "measure", fail_once)
    assert main([*GPU_TINY, "--hidden-size=5,6"]) == 1
    report = capsys.readouterr().out
    assert f"T=3 B=2 I=5 H=5 (forward): {error}" in report
    assert "forward hot, against nn.RNN: 2.00 times as fast" in report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tf32"], "--tf32 is for float32 on a GPU"),
        (["--device=cuda", "--threads=1"], "--threads and --memory are for the CPU"),
        (["--device=cuda", "--memory"], "--threads and --memory are for the CPU"),
        (["--device=cuda", "--tf32", "--dtype=float64"], "--tf32 is for float32 on a GPU"),
    ],
)
@pytest.mark.usefixtures("fake_gpu")
def test_rejects_flags_that_have_no_meaning_on_a_gpu(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["grid", *flags])
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["grid", "--device=cuda"])
    assert "--device cuda needs a GPU, and torch" in capsys.readouterr().err


# Precision


def test_tf32_is_switched_for_torch_and_cudnn():
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


@pytest.mark.parametrize(
    ("dtype", "precise"),
    [
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float64),
        (torch.float64, None),
    ],
)
def test_results_on_a_gpu_are_compared_with_nn_rnn_in_float64(dtype, precise):
    on_gpu = SimpleNamespace(is_cuda=True, dtype=dtype)
    assert check._precise_dtype(on_gpu) == precise


@pytest.mark.usefixtures("fake_gpu")
def test_dropout_is_left_out_of_the_comparison_alone(monkeypatch):
    compared, timed = [], []

    def fake_check(theirs, ours, work):
        compared.extend([theirs.dropout, ours.dropout])

    monkeypatch.setattr(measure, "check", fake_check)
    monkeypatch.setattr(
        Workload, "step", lambda _, module: timed.append(module.dropout) or (lambda: None)
    )
    case = replace(CASE, num_layers=2, dropout=0.5)
    measure.measure(case, "training", 0.001, "cuda")
    assert (compared, timed) == ([0.0, 0.0], [0.5, 0.5])


# Other runtimes


def test_runtimes_on_a_gpu_are_those_of_torch():
    pool = Pool(1, "cuda", tf32=True)
    assert [one.runtime.name for one in pool.workers] == ["rnn_ext", "torch.nn", "torch.compile"]
    assert pool.workers[0].settings == ["1", "cuda", "True"]
