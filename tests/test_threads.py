"""Many Python threads, more threads than cores, and forked children."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support import MORE_THREADS_THAN_CORES, PLANS, assert_same_bits, using_threads
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import rnn_ext

# A child that hangs is given up after this many seconds; one that works needs a fraction of one.
PATIENCE = 60


def train_step(module: rnn_ext.RNN, x: Tensor) -> list[Tensor]:
    output, h_n = module(x)
    loss = output.square().sum() + h_n.sum()
    return [output.detach(), h_n.detach(), *torch.autograd.grad(loss, list(module.parameters()))]


def jobs() -> list[tuple[rnn_ext.RNN, Tensor]]:
    """Calls of different plans: one row, few, many; narrow and wide states."""
    shapes = [(60, 1, 129), (20, 33, 65), (9, 3, 257), (200, 8, 16)]
    return [
        (rnn_ext.RNN(17, h, 2, bidirectional=b == 8), torch.randn(t, b, 17)) for t, b, h in shapes
    ]


@pytest.mark.parametrize("split", PLANS)
@pytest.mark.parametrize("threads", [1, 2, MORE_THREADS_THAN_CORES])
def test_python_threads_at_once_get_the_bits_of_one_alone(
    threads: int, split: str | None, isa: str
) -> None:
    work = jobs()
    expected = [train_step(*job) for job in work]
    barrier = threading.Barrier(len(work))

    def repeat(index: int) -> list[list[Tensor]]:
        torch.set_num_threads(threads)
        barrier.wait(timeout=PATIENCE)
        return [train_step(*work[index]) for _ in range(10)]

    with using_threads(threads, split), ThreadPoolExecutor(len(work)) as pool:
        for results, want in zip(pool.map(repeat, range(len(work))), expected, strict=True):
            for result in results:
                assert_same_bits(result, want)


def test_one_module_shared_by_python_threads() -> None:
    module, x = jobs()[1]
    expected = train_step(module, x)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: train_step(module, x), range(20)):
            assert_same_bits(result, expected)


def test_thread_count_may_change_between_calls() -> None:
    work = jobs()
    expected = [train_step(*job) for job in work]
    for threads in (1, 3, 2, MORE_THREADS_THAN_CORES, 1, 8, 2):
        torch.set_num_threads(threads)
        for job, want in zip(work, expected, strict=True):
            assert_same_bits(train_step(*job), want)


def test_backward_from_another_python_thread() -> None:
    module, x = jobs()[0]
    expected = train_step(module, x)
    output, h_n = module(x)
    loss = output.square().sum() + h_n.sum()
    with ThreadPoolExecutor(1) as pool:
        grads = pool.submit(torch.autograd.grad, loss, list(module.parameters())).result(PATIENCE)
    assert_same_bits(grads, expected[2:])


def test_python_runs_on_while_a_kernel_works() -> None:
    """The GIL is free during the call: this thread's clock ticks inside the other one's call."""
    module, x = rnn_ext.RNN(256, 256).requires_grad_(False), torch.randn(2000, 8, 256)
    span: list[float] = []

    def work() -> None:
        span.append(time.perf_counter())
        module(x)
        span.append(time.perf_counter())

    with using_threads(1):
        worker = threading.Thread(target=work)
        worker.start()
        ticks = []
        while worker.is_alive():
            ticks.append(time.perf_counter())
            time.sleep(0)
        worker.join()
    start, end = span
    middle = [t for t in ticks if start + (end - start) / 4 < t < end - (end - start) / 4]
    assert middle


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def in_forked_child(function: Callable[[], list[Tensor]], path: Path) -> list[Tensor]:
    """What `function` returns in a forked child; an error if the child hangs or fails."""
    child = multiprocessing.get_context("fork").Process(
        target=lambda: torch.save(function(), path), daemon=True
    )
    child.start()
    child.join(PATIENCE)
    if child.is_alive():
        child.kill()
        child.join()
        pytest.fail("the forked child hangs")
    assert child.exitcode == 0
    return torch.load(path)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("split", PLANS)
@pytest.mark.parametrize("threads", [1, 2, MORE_THREADS_THAN_CORES])
def test_a_forked_child_computes_the_parents_bits(
    threads: int, split: str | None, tmp_path: Path
) -> None:
    work = jobs()
    with using_threads(threads, split):
        expected = [t for job in work for t in train_step(*job)]  # the parent's pool is up
        actual = in_forked_child(
            lambda: [t for module, x in work for t in forward_only(module, x)], tmp_path / "child"
        )
        assert_same_bits(actual, [t for m, x in work for t in forward_only(m, x)])
        # The parent works on after the fork.
        assert_same_bits([t for job in work for t in train_step(*job)], expected)


def forward_only(module: rnn_ext.RNN, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(module(x))


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_trains(tmp_path: Path) -> None:
    """Through the raw ops: torch's own autograd engine refuses to run in a forked child."""
    x, hx = torch.randn(20, 3, 17), torch.randn(1, 3, 33)
    weights = [p.detach() for p in rnn_ext.RNN(17, 33).parameters()]

    def step() -> list[Tensor]:
        output, h_n = torch.ops.rnn_ext.rnn_forward(x, hx, weights, None, "tanh", False)
        mask = [True] * 6
        return torch.ops.rnn_ext.rnn_backward(
            output, h_n, x, hx, weights, output, None, "tanh", False, mask
        )

    with using_threads(2, "hidden columns"):
        expected = step()
        assert_same_bits(in_forked_child(step, tmp_path / "child"), expected)


class Encoded(Dataset[Tensor]):
    """A data set whose items come out of an RNN."""

    def __init__(self) -> None:
        self.encoder = rnn_ext.RNN(5, 17).requires_grad_(False)
        self.data = torch.randn(6, 30, 5)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return self.encoder(self.data[index])[0]


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_in_data_loader_workers_after_use_in_the_parent() -> None:
    data = Encoded()
    expected = torch.stack([data[i] for i in range(len(data))])
    loader = DataLoader(data, batch_size=3, num_workers=1, timeout=PATIENCE)
    assert_same_bits([torch.cat(list(loader))], [expected])
