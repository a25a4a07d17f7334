"""``rnn-ext bench --peers``: other runtimes. No test asserts a measured time.

The runtimes themselves are compared with ``nn.RNN`` where they are installed: ``pip install
'rnn_ext[peers]'`` brings them all.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from bench_support import CASE, bench, parse, timed
from torch import Tensor

import rnn_ext
from rnn_ext import cli
from rnn_ext.bench import command, flags, results
from rnn_ext.bench.cases import Case, Mode
from rnn_ext.bench.machine import facts
from rnn_ext.bench.peers import pool, torch_modules
from rnn_ext.bench.peers.report import format_peers
from rnn_ext.bench.peers.runtimes import RUNTIMES, Prepared, Problem, Runtime
from rnn_ext.bench.peers.worker import Desk
from rnn_ext.bench.results import Measured, Row, Run
from rnn_ext.bench.timing import MIN_ROUNDS

pytestmark = pytest.mark.usefixtures("fake_limits")

BY_NAME = {runtime.name: runtime for runtime in RUNTIMES}
PEERS = [name for name, runtime in BY_NAME.items() if runtime.packages]
REQUEST = {"case": CASE.to_dict(), "mode": "training"}


# Flags


@pytest.mark.parametrize(
    ("extra", "left_out"),
    [
        (["--real"], "--real"),
        (["--num-layers=2", "--bidirectional"], "--num-layers, --bidirectional"),
        (["--nonlinearity=relu", "--dtype=float32"], "--nonlinearity, --dtype"),
    ],
)
def test_flags_that_not_every_runtime_has_are_refused(
    extra: list[str], left_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--peers", *extra]) == 2
    sentence = f"--peers times one tanh layer in float32: leave out {left_out}"
    assert capsys.readouterr().err == f"rnn-ext: {sentence}\n"


def test_peers_have_a_smaller_grid_of_their_own_unless_sizes_are_given() -> None:
    def sizes(*words: str) -> set[tuple[int, int]]:
        return {(c.batch_size, c.hidden_size) for c in flags.cases_from(parse("--peers", *words))}

    assert sizes() == {(b, h) for b in (1, 8, 32) for h in (32, 128, 512)}
    assert sizes("--hidden-size=7", "--batch-size=9") == {(9, 7)}
    assert len(flags.cases_from(parse("--peers"))) == 3 * 3 * 3


# Runtimes


def test_no_peer_is_imported_by_the_benchmark() -> None:
    code = (
        "import sys, rnn_ext.bench.command; "
        "print({'jax', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(rnn_ext.__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout == "set()\n"


def test_a_runtime_is_absent_where_one_of_its_packages_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "onnx":
            raise metadata.PackageNotFoundError
        return f"{package} 1.2"

    monkeypatch.setattr(metadata, "version", version)
    assert pool.versions() == {"ONNX Runtime": None, "OpenVINO": None, "JAX": "jax 1.2"}
    assert len(pool.Pool(1)) == len(RUNTIMES) - 2


def installed(name: str) -> Runtime:
    runtime = BY_NAME[name]
    if runtime.packages and runtime.version() is None:
        pytest.skip(f"needs {' and '.join(runtime.packages)}: pip install 'rnn_ext[peers]'")
    return runtime


# torch.compile apart, which takes too long for a test.
QUICK = [(name, mode) for name in ("rnn_ext", "nn.RNN", *PEERS) for mode in BY_NAME[name].modes]


@pytest.mark.parametrize(("name", "mode"), QUICK)
def test_results_are_those_of_nn_rnn_and_then_timed(name: str, mode: Mode) -> None:
    desk = Desk(installed(name), 1)
    assert desk.answer({"case": Case(9, 2, 4, 5).to_dict(), "mode": mode}) == {}
    assert desk.answer({"seconds": 0.001})["seconds"] > 0


def test_compiled_loop_computes_in_blocks_what_nn_rnn_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiling takes seconds; what is at stake here is the walk over blocks.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch_modules, "BLOCK", 4)
    desk = Desk(BY_NAME["torch.compile"], 1)
    for seq_len in (3, 4, 9):
        case = replace(CASE, seq_len=seq_len)
        assert desk.answer({"case": case.to_dict(), "mode": "training"}) == {}


# The worker


def with_results(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Problem], Prepared]:
    """A runtime that computes what ours does, and then changes it."""

    def prepare(problem: Problem) -> Prepared:
        right = torch_modules.prepare_ours(problem)

        def results() -> dict[str, Tensor]:
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
def test_a_wrong_runtime_is_told_and_not_timed(
    change: Callable[[dict[str, Tensor]], object], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "load", lambda _: with_results(change))
    answer = Desk(BY_NAME["JAX"], 1).answer(REQUEST)
    assert answer["error"].startswith(f"differs from nn.RNN, {found}")


def test_what_a_runtime_raises_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Problem) -> Prepared:
        raise NotImplementedError("no such kernel\nand a page about it")

    monkeypatch.setattr(Runtime, "load", lambda _: fail)
    answer = Desk(BY_NAME["JAX"], 1).answer(REQUEST)
    assert answer == {"error": "NotImplementedError: no such kernel"}


# The pool


def scripted(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pool.Worker:
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
def test_a_worker_without_an_answer_says_why_and_starts_anew(
    body: str, limit: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scripted(body, tmp_path, monkeypatch)
    monkeypatch.setattr(pool, "LIMIT_SECONDS", limit)
    try:
        for _ in range(2):
            with pytest.raises(pool.PeerError, match=f"^{message}$"):
                one.ask({})
    finally:
        one.close()


class FakeWorker:
    """Takes as many seconds a call as its name's length, and fails at the request ``fails_at``."""

    def __init__(self, name: str, fails_at: int | None = None) -> None:
        self.runtime = replace(BY_NAME["nn.RNN"], name=name)
        self.fails_at = fails_at
        self.asked: list[dict[str, object]] = []

    def ask(self, request: dict[str, object]) -> dict[str, float]:
        self.asked.append(request)
        if len(self.asked) - 1 == self.fails_at:
            raise pool.PeerError("of a reason")
        return {"seconds": float(len(self.runtime.name))} if "seconds" in request else {}

    def close(self) -> None:
        """Nothing was started."""


def test_all_are_prepared_then_timed_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PAUSE_SECONDS", 0.0)
    workers = [FakeWorker("a"), FakeWorker("bb", fails_at=0), FakeWorker("ccc", fails_at=2)]
    some = pool.Pool(1)
    monkeypatch.setattr(some, "_workers", workers)
    found, notes = some.measure(CASE, "training", 0.0)
    assert found == {"a": [1.0] * MIN_ROUNDS}
    assert notes == [f"skipped {name} at {CASE} (training): of a reason" for name in ("bb", "ccc")]
    assert workers[0].asked == [REQUEST, *[{"seconds": pool.BLOCK_SECONDS}] * MIN_ROUNDS]
    assert [len(worker.asked) for worker in workers[1:]] == [1, 3]


# The report


def a_run(*rows: Row) -> Run:
    run = Run("rnn-ext bench --peers", "2026-01-02T03:04:05+00:00", facts(), 2.0, True)
    run.gemm = {row.threads: {"torch.mm": 9e9} for row in rows}
    run.rows = list(rows)
    run.peers = {"ONNX Runtime": None, "OpenVINO": "1.2", "JAX": "3.4"}
    return run


def a_row(case: Case, **peers: list[float]) -> Row:
    names = {"ours": "rnn_ext", "openvino": "OpenVINO", "jax": "JAX"}
    times = {names[name]: [1e-3 * time for time in times] for name, times in peers.items()}
    return Row(case, 2, {"forward": Measured(timed(2e-3, 1e-3), peers=times)})


def test_table_has_ratios_of_rounds_and_marks_the_fastest() -> None:
    run = a_run(
        # Everything was slow in the second round, which the ratio of medians would not see.
        a_row(Case(16, 1, 32, 32), ours=[1, 4, 1], openvino=[2, 8, 8], jax=[0.5, 2, 0.5]),
        a_row(Case(16, 8, 32, 32), ours=[1, 1, 1], openvino=[8, 8, 8]),
    )
    title, table, summary, *_ = format_peers(run)
    assert title == "runtimes, forward, tanh, 1 layer, 2 threads"
    assert table.splitlines() == [
        "|  T |  B |  I |  H |     rnn_ext |       OpenVINO |               JAX |",
        "| -: | -: | -: | -: | ----------: | -------------: | ----------------: |",
        "| 16 |  1 | 32 | 32 |     1.00 ms | 8.00 ms (2.00) | **500 µs (0.50)** |",
        "| 16 |  8 | 32 | 32 | **1.00 ms** | 8.00 ms (8.00) |           skipped |",
    ]
    assert summary.splitlines() == [
        "forward, OpenVINO: ratio 4.00 in geometric mean, 2.00 in the worst cell, "
        "T=16 B=1 I=32 H=32",
        "forward, JAX: ratio 0.50 in geometric mean, 0.50 in the worst cell, T=16 B=1 I=32 H=32",
        "forward, faster than rnn_ext: JAX at T=16 B=1 I=32 H=32 (0.50)",
    ]


def test_every_cell_in_which_a_runtime_is_faster_is_named_the_worst_first() -> None:
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


def test_without_ours_there_are_times_and_no_ratios() -> None:
    _, table, summary, *_ = format_peers(a_run(a_row(CASE, jax=[2] * 3)))
    assert table.splitlines()[-1].endswith("| **2.00 ms** |")
    assert summary == "forward, faster than rnn_ext: none"


def test_absent_runtimes_and_the_versions_of_the_others_are_told() -> None:
    assert format_peers(a_run(a_row(CASE, ours=[1] * 3)))[-1].splitlines() == [
        "skipped ONNX Runtime: it is not installed; pip install 'rnn_ext[peers]'",
        "OpenVINO 1.2, JAX 3.4",
    ]


# From end to end


def test_a_run_with_peers_prints_tables_and_keeps_them_in_its_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    absent = Runtime("Nobody", "nobody", packages=("a-package-that-nobody-made",))
    monkeypatch.setattr(pool, "RUNTIMES", (BY_NAME["rnn_ext"], absent))
    monkeypatch.setattr(pool, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(pool, "BLOCK_SECONDS", 0.001)
    file = tmp_path / "run.json"
    assert bench("--peers", f"--json={file}") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for mode in ("forward", "training"):
        title = f"runtimes, {mode}, tanh, 1 layer, 1 thread\n\n"
        line = r"\|  3 \|  2 \|  4 \|  5 \| \*\*[^|]* .?s\*\* \|\n"
        assert re.search(rf"{title}.*\n.*\n{line}", captured.out)
    assert "\nskipped Nobody: it is not installed; pip install 'rnn_ext[peers]'" in captured.out
    (row,) = results.read(file).rows
    assert len(row.measured["training"].peers["rnn_ext"]) >= MIN_ROUNDS
    assert json.loads(file.read_text())["peers"] == {"Nobody": None}
    assert command.run(parse(f"--from={file}")) == 0
    assert capsys.readouterr().out == captured.out


def test_notes_of_peers_stand_beside_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pool.Pool, "measure", lambda *_: ({}, ["skipped a", "skipped b"]))
    assert bench("--peers", "--mode=forward") == 0
    assert "\n\nskipped a\nskipped b\n\n" in capsys.readouterr().out


def test_memory_is_counted_for_every_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pool, "RUNTIMES", (BY_NAME["rnn_ext"], BY_NAME["nn.RNN"]))
    monkeypatch.setattr(command, "available_memory", lambda: 2 * CASE.memory("forward") - 1)
    assert bench("--mode=forward") == 0
    assert "skipped" not in capsys.readouterr().out
    assert bench("--mode=forward", "--peers") == 0
    assert "skipped T=3 B=2 I=4 H=5 (forward): takes up to" in capsys.readouterr().out
