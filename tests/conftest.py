"""Fixtures shared by all tests."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import ISA_LEVELS, using_isa, without_node

import rnn_ext


def pytest_configure(config: pytest.Config) -> None:
    # torch scripts parts of itself where functorch or its own test helpers are first used.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--best-isa", action="store_true", help="run only the machine's best ISA level"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops runs at ISA levels that add nothing, or that `--best-isa` excludes."""
    first = -1 if config.getoption("best_isa") else 0
    items[:] = [
        item
        for item in items
        if "isa" not in _parameters(item) or _parameters(item)["isa"] in _levels(item)[first:]
    ]


def _levels(item: pytest.Item) -> list[str]:
    """The levels with different kernels: without bfloat16, avx512_bf16 runs those of avx512."""
    return [level for level in ISA_LEVELS if level != "avx512_bf16" or _uses_bfloat16(item)]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _uses_bfloat16(item: pytest.Item) -> bool:
    """Whether a parameter of the test holds that dtype, or the marker says so."""
    return item.get_closest_marker("bfloat16") is not None or any(
        repr(torch.bfloat16) in repr(value) for value in _parameters(item).values()
    )


@pytest.fixture(autouse=True)
def restored_state() -> Iterator[None]:
    """Seeds each test; restores the thread count and ends child processes after it."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    for child in multiprocessing.active_children():
        child.kill()


@pytest.fixture(params=ISA_LEVELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test at every ISA level that this machine has."""
    with using_isa(request.param):
        yield request.param


@pytest.fixture(params=["C++", "Python"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test with either implementation of the autograd node."""
    if request.param == "Python":
        without_node(monkeypatch)
    elif rnn_ext.build_info()["autograd_node"] != "C++":
        pytest.skip("no autograd node in C++ was built for this torch release")
    return request.param


@pytest.fixture
def fake_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the machine's limits, which take seconds to measure; no test needs their values."""
    # Its libraries may be missing on machines that run the GPU suite.
    from support.benchmarks import round_limits

    rates = {"torch.mm": 8e9, "oneDNN": 10e9}
    monkeypatch.setattr("benchmarks.run.gemm_rates", lambda _: rates)
    monkeypatch.setattr(
        "benchmarks.limits.measure_limits",
        lambda *_, **__: round_limits(torch.get_num_threads()),
    )


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For trainings of a second: one thread, since so small a net gains nothing from two and a busy
    machine delays the other; no plot, which would take as long as all the rest."""
    torch.set_num_threads(1)
    monkeypatch.setattr("rnn_ext.charlm.training.plot", lambda *_: None)
