"""Many Python threads, more threads than cores, a thread count that changes, interruptions."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support import (
    MORE_THREADS_THAN_CORES,
    PATIENCE,
    PLANS,
    assert_same_bits,
    jobs,
    layer_weights,
    train_step,
    using_threads,
)
from torch import Tensor

import rnn_ext


@pytest.mark.parametrize("split", PLANS)
@pytest.mark.parametrize("threads", [1, 2, MORE_THREADS_THAN_CORES])
def test_concurrent_python_threads_get_the_bits_of_one_alone(threads, split, isa):
    work = jobs()
    expected = [train_step(*job) for job in work]
    barrier = threading.Barrier(len(work))

    def repeat(index):
        torch.set_num_threads(threads)
        barrier.wait(timeout=PATIENCE)
        return [train_step(*work[index]) for _ in range(10)]

    with using_threads(threads, split), ThreadPoolExecutor(len(work)) as pool:
        for results, want in zip(pool.map(repeat, range(len(work))), expected, strict=True):
            for result in results:
                assert_same_bits(result, want)


def test_one_module_shared_by_python_threads():
    module, x = jobs()[1]
    expected = train_step(module, x)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: train_step(module, x), range(20)):
            assert_same_bits(result, expected)


def test_thread_count_may_change_between_calls():
    work = jobs()
    expected = [train_step(*job) for job in work]
    for threads in (1, 3, 2, MORE_THREADS_THAN_CORES, 1, 8, 2):
        torch.set_num_threads(threads)
        for job, want in zip(work, expected, strict=True):
            assert_same_bits(train_step(*job), want)


def test_backward_from_another_python_thread():
    module, x = jobs()[0]
    expected = train_step(module, x)
    output, h_n = module(x)
    loss = output.square().sum() + h_n.sum()
    with ThreadPoolExecutor(1) as pool:
        grads = pool.submit(torch.autograd.grad, loss, list(module.parameters())).result(PATIENCE)
    assert_same_bits(grads, expected[2:])


def test_python_continues_while_a_kernel_runs():
    """The GIL is released during a call: this thread continues while the other one's call runs."""
    module, x = rnn_ext.RNN(256, 256).requires_grad_(False), torch.randn(2000, 8, 256)
    span = []

    def work():
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


SIXTEEN = 16


@pytest.mark.parametrize("split", PLANS)
@pytest.mark.parametrize("shared", [True, False], ids=["one module", "a module each"])
def test_sixteen_python_threads_train_at_once(shared, split):
    work = [jobs()[1]] * SIXTEEN if shared else jobs() * (SIXTEEN // 4)
    expected = [train_step(*job) for job in work]
    barrier = threading.Barrier(SIXTEEN)

    def step(job):
        barrier.wait(timeout=PATIENCE)
        return train_step(*job)

    with using_threads(2, split), ThreadPoolExecutor(SIXTEEN) as pool:
        for result, want in zip(pool.map(step, work, timeout=PATIENCE), expected, strict=True):
            assert_same_bits(result, want)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, MORE_THREADS_THAN_CORES)])
def test_thread_count_may_change_between_forward_and_backward(before, after):
    for module, x in jobs():
        expected = train_step(module, x)
        torch.set_num_threads(before)
        output, h_n = module(x)
        torch.set_num_threads(after)
        loss = output.square().sum() + h_n.sum()
        assert_same_bits(torch.autograd.grad(loss, list(module.parameters())), expected[2:])


def test_thread_count_may_be_set_by_another_python_thread_all_the_time():
    work = jobs()
    expected = [train_step(*job) for job in work]
    done = threading.Event()

    def meddle():
        while not done.is_set():
            for threads in (1, 3, MORE_THREADS_THAN_CORES, 2):
                torch.set_num_threads(threads)

    with ThreadPoolExecutor(1) as pool:
        meddler = pool.submit(meddle)
        try:
            for _ in range(5):
                for job, want in zip(work, expected, strict=True):
                    assert_same_bits(train_step(*job), want)
        finally:
            done.set()
        meddler.result(PATIENCE)


def test_python_threads_from_before_and_after_the_thread_count_was_set():
    work = jobs()
    expected = [t for job in work for t in train_step(*job)]

    def everything():
        return [t for job in work for t in train_step(*job)]

    with ThreadPoolExecutor(1) as old:
        old.submit(everything).result(PATIENCE)
        torch.set_num_threads(MORE_THREADS_THAN_CORES)
        with ThreadPoolExecutor(1) as young:
            for pool in (old, young, old):
                assert_same_bits(pool.submit(everything).result(PATIENCE), expected)


# TorchScript reads the annotations of both.
def one_call(x: Tensor, weights: list[Tensor]) -> Tensor:
    return torch.ops.rnn_ext.rnn_forward(x, None, weights, None, "tanh", False)[0]


def calls_from_torchs_threads(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    futures = [torch.jit.fork(one_call, x, weights) for _ in range(8)]
    return [torch.jit.wait(f) for f in futures]


@pytest.mark.parametrize("split", PLANS)
def test_calls_from_torchs_inter_op_threads(split):
    x, weights = torch.randn(20, 33, 17), layer_weights(17, 65)
    expected = one_call(x, weights)
    with using_threads(2, split):
        for result in torch.jit.script(calls_from_torchs_threads)(x, weights):
            assert_same_bits([result], [expected])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("split", PLANS)
def test_a_call_works_after_one_that_was_interrupted(split):
    """Like Ctrl-C: a signal arrives inside the op, and its handler raises when the op returns."""

    def interrupt(*_):
        raise Interrupted

    def train_on():
        while True:
            train_step(module, x)

    module, x = jobs()[3]
    with using_threads(2, split):
        expected = train_step(module, x)
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            for delay in (1e-3, 3e-3, 1e-2):
                signal.setitimer(signal.ITIMER_REAL, delay)
                with pytest.raises(Interrupted):
                    train_on()
        finally:
            signal.signal(signal.SIGALRM, before)
        assert_same_bits(train_step(module, x), expected)


@pytest.mark.parametrize("split", PLANS)
def test_a_call_works_after_one_that_failed(split):
    module, x = jobs()[1]

    def fail(*_):
        raise Interrupted

    with using_threads(2, split):
        expected = train_step(module, x)
        with pytest.raises(RuntimeError):
            torch.ops.rnn_ext.rnn_forward(x, None, [x, x], None, "tanh", False)
        output, _ = module(x)
        output.register_hook(fail)
        with pytest.raises(Interrupted):
            output.sum().backward()
        assert_same_bits(train_step(module, x), expected)


EXIT_DURING_CALLS = """
import atexit, threading, torch, rnn_ext
torch.set_num_threads(2)
layers = [rnn_ext.RNN(8, 64), rnn_ext.GRU(8, 64)]
x = torch.randn(200, 4, 8)
started = threading.Barrier(5)

def train(layer):
    layer(x)[0].sum().backward()

def work(layer):
    started.wait()
    for _ in range(20):
        train(layer)

for i in range(4):
    threading.Thread(target=work, args=(layers[i % 2],)).start()
atexit.register(train, layers[0])
started.wait()
"""


def test_the_interpreter_ends_while_other_threads_call():
    """It waits for them. Python ends a process with daemon threads abruptly, inside any call."""
    ended = subprocess.run(
        [sys.executable, "-c", EXIT_DURING_CALLS], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (ended.returncode, ended.stderr) == (0, "")
