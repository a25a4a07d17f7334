"""``python -m benchmarks peers``: other runtimes. No test asserts a measured time.

The runtimes themselves are compared with torch's modules where they are installed: ``pip install
--group peers`` brings them all.
"""

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from support.benchmarks import CASE, TINY

from benchmarks import results, run
from benchmarks.__main__ import main
from benchmarks.cases import GATES, Case
from benchmarks.machine import facts
from benchmarks.peers import pool, torch_modules
from benchmarks.peers.report import format_peers
from benchmarks.peers.runtimes import RUNTIMES, Prepared, Runtime
from benchmarks.peers.worker import Answer, Request, Server
from benchmarks.results import Measured, Row, Run
from rnn_ext.bench.timing import MIN_ROUNDS

pytestmark = pytest.mark.usefixtures("fake_limits")

BY_NAME = {runtime.name: runtime for runtime in RUNTIMES}
PEERS = [name for name, runtime in BY_NAME.items() if runtime.packages]
REQUEST = Request(CASE, "training")


# Runtimes


def test_no_peer_is_imported_by_the_benchmark():
    code = (
        "import sys, benchmarks.__main__; "
        "print({'jax', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(results.__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout == "set()\n"


def test_a_runtime_without_all_its_packages_is_skipped(monkeypatch):
    def version(package):
        if package == "onnx":
            raise metadata.PackageNotFoundError
        return f"{package} 1.2"

    monkeypatch.setattr(metadata, "version", version)
    assert pool.versions() == {"ONNX Runtime": None, "OpenVINO": None, "JAX": "jax 1.2"}
    assert len(pool.Pool(1)) == len(RUNTIMES) - 2


def installed(name):
    runtime = BY_NAME[name]
    if runtime.packages and runtime.version() is None:
        pytest.skip(f"needs {' and '.join(runtime.packages)}: pip install --group peers")
    return runtime


# Without torch.compile, which takes too long for a test.
QUICK = [(name, mode) for name in ("rnn_ext", "torch.nn", *PEERS) for mode in BY_NAME[name].modes]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(("name", "mode"), QUICK)
def test_results_are_those_of_torch_and_then_timed(name, mode, kind):
    server = Server(installed(name), 1)
    assert server.answer(Request(Case(9, 2, 4, 5, kind=kind), mode)) == Answer()
    assert server.answer(Request(seconds=0.001)).seconds > 0


@pytest.mark.parametrize("kind", GATES)
def test_compiled_loop_computes_in_blocks_what_torch_does(kind, monkeypatch):
    # Compiling takes seconds; this test is about the loop over blocks.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch_modules, "BLOCK", 4)
    server = Server(BY_NAME["torch.compile"], 1)
    for seq_len in (3, 4, 9):
        case = replace(CASE, seq_len=seq_len, kind=kind)
        assert server.answer(Request(case, "training")) == Answer()


# The worker


def with_results(change):
    """A runtime that computes what ours does, and then changes it."""

    def prepare(problem):
        right = torch_modules.prepare_ours(problem)

        def results():
            found = right.results()
            change(found)
            return found

        return Prepared(lambda: pytest.fail("timed a wrong runtime"), results)

    return prepare


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda r: r["output"].mul_(1 + 1e-4), "output is off by "),
        (lambda r: r["h_n"].neg_(), "h_n is off by "),
        (lambda r: r["gradient of bias_hh_l0"].zero_(), "gradient of bias_hh_l0 is off by "),
        (lambda r: r.pop("gradient of input"), "gradient of input is missing"),
    ],
)
def test_a_runtime_with_wrong_results_is_reported_and_not_timed(change, found, monkeypatch):
    monkeypatch.setattr(Runtime, "load", lambda _: with_results(change))
    answer = Server(BY_NAME["JAX"], 1).answer(REQUEST)
    assert answer.error.startswith(f"differs from torch, {found}")


def test_an_exception_of_a_runtime_is_reported_in_one_line(monkeypatch):
    def fail(_):
        raise NotImplementedError("no such kernel\nand a page about it")

    monkeypatch.setattr(Runtime, "load", lambda _: fail)
    answer = Server(BY_NAME["JAX"], 1).answer(REQUEST)
    assert answer == Answer(error="NotImplementedError: no such kernel")


# The pool


def scripted(body, tmp_path, monkeypatch):
    """A worker whose process runs ``body`` for every line that it reads."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    tmp_path.joinpath("fake.py").write_text(
        f"import os, sys, time\nfor line in sys.stdin:\n{lines}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pool.worker, "__name__", "fake")
    return pool.Worker(BY_NAME["JAX"], 1)


@pytest.mark.parametrize(
    ("body", "limit", "message"),
    [
        ("os._exit(3)", 60.0, "its process ended with code 3"),
        ("os.kill(os.getpid(), 11)", 60.0, "its process ended with code -11"),
        ("time.sleep(600)", 0.2, "took longer than 0 s"),
        ('print(\'{"error": "no"}\', flush=True)', 60.0, "no"),
    ],
)
def test_a_worker_without_an_answer_says_why_and_restarts(
    body, limit, message, tmp_path, monkeypatch
):
    one = scripted(body, tmp_path, monkeypatch)
    monkeypatch.setattr(pool, "LIMIT_SECONDS", limit)
    try:
        for _ in range(2):
            with pytest.raises(pool.PeerError, match=f"^{message}$"):
                one.ask(Request())
    finally:
        one.close()


class FakeWorker:
    """Takes as many seconds a call as its name's length, and fails at the request ``fails_at``."""

    def __init__(self, name, fails_at=None):
        self.runtime = replace(BY_NAME["torch.nn"], name=name)
        self.fails_at = fails_at
        self.asked = []

    def ask(self, request):
        self.asked.append(request)
        if len(self.asked) - 1 == self.fails_at:
            raise pool.PeerError("of a reason")
        return Answer() if request.case else Answer(float(len(self.runtime.name)))

    def close(self):
        """Nothing was started."""


def test_all_are_prepared_then_timed_in_rounds(monkeypatch):
    monkeypatch.setattr(pool, "PAUSE_SECONDS", 0.0)
    workers = [FakeWorker("a"), FakeWorker("bb", fails_at=0), FakeWorker("ccc", fails_at=2)]
    some = pool.Pool(1)
    monkeypatch.setattr(some, "workers", workers)
    found, notes = some.measure(CASE, "training", 0.0)
    assert found == {"a": [1.0] * MIN_ROUNDS}
    assert notes == [f"skipped {name} at {CASE} (training): of a reason" for name in ("bb", "ccc")]
    assert workers[0].asked == [REQUEST, *[Request(seconds=pool.BLOCK_SECONDS)] * MIN_ROUNDS]
    assert [len(worker.asked) for worker in workers[1:]] == [1, 3]


# The report


def a_run(*rows):
    peers = {"ONNX Runtime": None, "OpenVINO": "1.2", "JAX": "3.4"}
    return Run("benchmarks", "2026", facts(), 2.0, True, peers=peers, cells=list(rows))


def a_row(case, **peers):
    names = {"ours": "rnn_ext", "openvino": "OpenVINO", "jax": "JAX"}
    times = {names[name]: [1e-3 * time for time in times] for name, times in peers.items()}
    return Row(case, 2, forward=Measured(peer_seconds=times))


def test_table_has_ratios_of_rounds_and_marks_the_fastest():
    run = a_run(
        # The whole second round was slow, which the ratio of medians would not show.
        a_row(Case(16, 1, 32, 32), ours=[1, 4, 1], openvino=[2, 8, 8], jax=[0.5, 2, 0.5]),
        a_row(Case(16, 8, 32, 32), ours=[1, 1, 1], openvino=[8, 8, 8]),
    )
    title, table, summary, *_ = format_peers(run)
    assert title == "runtimes, forward, tanh, 1 layer, 2 threads"
    cells = [[cell.strip() for cell in line.split("|")[5:-1]] for line in table.splitlines()]
    assert cells[0] == ["rnn_ext", "OpenVINO", "JAX"]
    assert cells[2:] == [
        ["1.00 ms", "8.00 ms (2.00)", "**500 µs (0.50)**"],
        ["**1.00 ms**", "8.00 ms (8.00)", "skipped"],
    ]
    assert summary.splitlines() == [
        "forward hot, against OpenVINO: 4.00 times as fast in geometric mean, 2.00 at worst, "
        "T=16 B=1 I=32 H=32",
        "forward hot, against JAX: 0.50 times as fast in geometric mean, 0.50 at worst, "
        "T=16 B=1 I=32 H=32",
        "forward, faster than rnn_ext: JAX at T=16 B=1 I=32 H=32 (0.50)",
    ]


def test_every_cell_in_which_a_runtime_is_faster_is_named_the_worst_first():
    rows = [
        a_row(Case(16, b, 32, 32), ours=[1] * 3, openvino=[1.5 / b] * 3, jax=[0.9 * b] * 3)
        for b in (1, 3, 2)
    ]
    assert format_peers(a_run(*rows))[2].splitlines()[-1] == (
        "forward, faster than rnn_ext: OpenVINO at T=16 B=3 I=32 H=32 (0.50), "
        "OpenVINO at T=16 B=2 I=32 H=32 (0.75), JAX at T=16 B=1 I=32 H=32 (0.90)"
    )
    line = format_peers(a_run(a_row(CASE, ours=[1] * 3, jax=[2] * 3)))[2].splitlines()[-1]
    assert line == "forward, faster than rnn_ext: none"


def test_without_ours_there_are_times_and_no_ratios():
    _, table, summary, *_ = format_peers(a_run(a_row(CASE, jax=[2] * 3)))
    assert "**2.00 ms** |" in table.splitlines()[-1]
    assert summary == "forward, faster than rnn_ext: none"


def test_report_lists_absent_runtimes_and_the_versions_of_the_others():
    assert format_peers(a_run(a_row(CASE, ours=[1] * 3)))[-1].splitlines() == [
        "skipped ONNX Runtime: it is not installed; pip install --group peers",
        "OpenVINO 1.2, JAX 3.4",
    ]


# From end to end


def test_peers_are_timed_and_kept_in_the_json(monkeypatch, capsys, tmp_path):
    absent = Runtime("Nobody", "nobody", packages=("a-package-that-nobody-made",))
    monkeypatch.setattr(pool, "RUNTIMES", (BY_NAME["rnn_ext"], BY_NAME["torch.nn"], absent))
    monkeypatch.setattr(pool, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(pool, "BLOCK_SECONDS", 0.001)
    file = tmp_path / "run.json"
    assert main(["peers", *TINY, "--threads=1", f"--json={file}"]) == 0
    printed = capsys.readouterr().out
    assert "runtimes, training, tanh, 1 layer, 1 thread\n\n" in printed
    assert "\nskipped Nobody: it is not installed; pip install --group peers" in printed
    found = results.read(file)
    (row,) = found.cells
    assert row.training
    assert len(row.training.peer_seconds["rnn_ext"]) >= MIN_ROUNDS
    assert found.peers == {"Nobody": None}
    assert main(["show", str(file)]) == 0
    assert capsys.readouterr().out == printed


def test_memory_is_counted_for_every_process(monkeypatch, capsys):
    monkeypatch.setattr(pool, "RUNTIMES", (BY_NAME["rnn_ext"], BY_NAME["torch.nn"]))
    needed = Case(3, 2, 5, 5).memory("forward")
    monkeypatch.setattr(run, "available_memory", lambda: 2 * needed - 1)
    flags = [*TINY, "--mode=forward", "--threads=1"]
    assert main(["grid", *flags]) == 0
    assert "skipped" not in capsys.readouterr().out
    assert main(["peers", *flags]) == 0
    assert "skipped T=3 B=2 I=5 H=5 (forward): takes up to" in capsys.readouterr().out
