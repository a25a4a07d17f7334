"""Fixtures shared by all tests."""

from collections.abc import Iterator

import pytest
import torch
from support import ISA_LEVELS, using_isa


def pytest_configure(config: pytest.Config) -> None:
    # torch scripts parts of itself where functorch or its own test helpers are first used.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """avx512_bf16 has kernels of its own for bfloat16 alone; the others are avx512's."""
    items[:] = [
        item
        for item in items
        if "avx512_bf16" not in item.name
        or "bfloat16" in item.name
        or item.path.stem in ("test_half", "test_isa")
    ]


@pytest.fixture(autouse=True)
def restored_state() -> Iterator[None]:
    """Every test starts from the same seed and leaves the thread count as it was."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=ISA_LEVELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test at every ISA level that this machine has."""
    with using_isa(request.param):
        yield request.param


@pytest.fixture
def fake_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits take seconds to measure, and no test is about their values."""
    # Its libraries may be missing on machines that run the GPU suite.
    from benchmarks_support import round_limits

    rates = {"torch.mm": 8e9, "oneDNN": 10e9}
    monkeypatch.setattr("benchmarks.run.gemm_rates", lambda _: rates)
    monkeypatch.setattr(
        "benchmarks.limits.measure_limits",
        lambda *_, **__: round_limits(torch.get_num_threads()),
    )


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For training of a second: a net that small gains nothing from two threads, and on a busy
    machine waits for the other; and the plot would take as long as all the rest."""
    torch.set_num_threads(1)
    monkeypatch.setattr("rnn_ext.charlm.training.plot", lambda *_: None)
