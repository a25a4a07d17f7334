"""Child processes: forked, also while other threads run the op; spawned; DataLoader workers."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support import (
    MORE_THREADS_THAN_CORES,
    PATIENCE,
    PLANS,
    assert_same_bits,
    jobs,
    train_step,
    using_threads,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import rnn_ext

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def in_forked_child(function, path):
    """Returns the result of `function` in a forked child; fails if the child hangs or fails."""
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


@pytest.mark.parametrize("split", PLANS)
@pytest.mark.parametrize("threads", [1, 2, MORE_THREADS_THAN_CORES])
def test_a_forked_child_computes_the_parents_bits(threads, split, tmp_path):
    work = jobs()
    with using_threads(threads, split):
        expected = [t for job in work for t in train_step(*job)]  # the parent's pool is up
        actual = in_forked_child(
            lambda: [t for module, x in work for t in forward_only(module, x)], tmp_path / "child"
        )
        assert_same_bits(actual, [t for m, x in work for t in forward_only(m, x)])
        # The parent still works after the fork.
        assert_same_bits([t for job in work for t in train_step(*job)], expected)


def forward_only(module, x):
    with torch.no_grad():
        return list(module(x))


def test_a_forked_child_trains(tmp_path):
    """Through the raw ops: torch's own autograd engine refuses to run in a forked child."""
    x, hx = torch.randn(20, 3, 17), torch.randn(1, 3, 33)
    weights = [p.detach() for p in rnn_ext.RNN(17, 33).parameters()]

    def step():
        output, h_n = torch.ops.rnn_ext.rnn_forward(x, hx, weights, None, "tanh", False)
        mask = [True] * 6
        return torch.ops.rnn_ext.rnn_backward(
            output, h_n, x, hx, weights, output, None, "tanh", False, mask
        )

    with using_threads(2, "columns"):
        expected = step()
        assert_same_bits(in_forked_child(step, tmp_path / "child"), expected)


@pytest.mark.parametrize("split", PLANS)
def test_a_child_may_set_the_thread_count_and_fork_again(split, tmp_path):
    module, x = jobs()[1]

    def descend():
        torch.set_num_threads(MORE_THREADS_THAN_CORES)
        own = forward_only(module, x)
        path = tmp_path / "grandchild"
        if os.fork() == 0:
            torch.save(forward_only(module, x), path)
            os._exit(0)
        _, status = os.wait()
        assert status == 0
        return own + torch.load(path)

    with using_threads(2, split):
        expected = forward_only(module, x) * 2
        assert_same_bits(in_forked_child(descend, tmp_path / "child"), expected)


@pytest.mark.parametrize("split", PLANS)
def test_a_fork_while_other_threads_are_inside_the_op(split, tmp_path):
    work = jobs()
    done = threading.Event()

    def go_on(job):
        while not done.is_set():
            result = train_step(*job)
        return result

    with using_threads(2, split), ThreadPoolExecutor(len(work)) as pool:
        module, x = work[1]
        expected, trained = forward_only(module, x), [train_step(*job) for job in work]
        running = [pool.submit(go_on, job) for job in work]
        try:
            for attempt in range(3):
                path = tmp_path / str(attempt)
                assert_same_bits(in_forked_child(lambda: forward_only(module, x), path), expected)
        finally:
            done.set()
        for future, want in zip(running, trained, strict=True):
            assert_same_bits(future.result(PATIENCE), want)


def train_in_child(weights, x):
    module = rnn_ext.RNN(3, 5)
    module.load_state_dict({name: torch.tensor(w) for name, w in weights.items()})
    return [t.tolist() for t in train_step(module, torch.tensor(x))]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_child_trains_after_use_in_the_parent(method):
    module, x = rnn_ext.RNN(3, 5), torch.randn(7, 2, 3)
    expected = [t.tolist() for t in train_step(module, x)]
    weights = {name: w.tolist() for name, w in module.state_dict().items()}
    with multiprocessing.get_context(method).Pool(1) as pool:
        child = pool.apply_async(train_in_child, (weights, x.tolist()))
        assert child.get(PATIENCE) == expected


class Encoded(Dataset[Tensor]):
    """A data set whose items come out of an RNN."""

    def __init__(self):
        self.encoder = rnn_ext.RNN(5, 17).requires_grad_(False)
        self.data = torch.randn(6, 30, 5)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.encoder(self.data[index])[0]


def test_works_in_data_loader_workers_while_the_parent_trains():
    data = Encoded()
    module = rnn_ext.RNN(17, 33)
    inputs = [torch.stack([data[i], data[i + 1]], 1) for i in range(0, len(data), 2)]
    expected = [train_step(module, x) for x in inputs]
    loader = DataLoader(
        data, batch_size=2, num_workers=2, timeout=PATIENCE, persistent_workers=True
    )
    with using_threads(2):
        for _ in range(2):
            for batch, want in zip(loader, expected, strict=True):
                assert_same_bits(train_step(module, batch.transpose(0, 1)), want)
