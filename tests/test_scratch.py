"""Memory that calls and the process keep for the next calls, and when it is freed."""

import ctypes
import subprocess
import sys
import threading

import psutil
import pytest
import torch
from support import PATIENCE, layer_weights, using_threads

import rnn_ext

SMALL, LARGE = 16, 400
IDLE_CALLS = 3 * 256  # after which unused memory is freed: three rounds


def call(hidden_size, bidirectional=False):
    x = torch.zeros(4, 20, hidden_size)
    weights = layer_weights(hidden_size, hidden_size, bidirectional=bidirectional)
    return list(torch.ops.rnn_ext.rnn_forward(x, None, weights, None, "tanh", bidirectional))


def bytes_kept(hidden_size, bidirectional=False):
    rnn_ext.release_scratch()
    call(hidden_size, bidirectional)
    return rnn_ext.release_scratch()


def test_memory_of_a_call_is_kept_until_it_is_released():
    kept = bytes_kept(LARGE)
    assert kept >= 4 * LARGE * LARGE  # W_hh, packed
    assert rnn_ext.release_scratch() == 0
    call(LARGE)
    call(SMALL)
    assert rnn_ext.release_scratch() == kept


def test_calls_of_any_size_keep_their_memory():
    assert bytes_kept(3200) > 32 << 20


def test_memory_that_calls_no_longer_use_is_freed():
    small = bytes_kept(SMALL)
    call(LARGE)
    for _ in range(IDLE_CALLS):
        call(SMALL)
    assert rnn_ext.release_scratch() == small


def test_memory_of_threads_that_make_no_more_calls_is_freed():
    small, large = bytes_kept(SMALL), bytes_kept(LARGE)
    count = 4
    barrier = threading.Barrier(count)

    def work():
        for _ in range(10):
            barrier.wait(PATIENCE)
            call(LARGE)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(IDLE_CALLS):
        call(SMALL)
    assert rnn_ext.release_scratch() <= max(small, large)


@pytest.mark.parametrize("hidden_size", [SMALL, LARGE])
def test_directions_one_after_the_other_share_their_memory(hidden_size):
    with using_threads(1):
        assert bytes_kept(hidden_size, bidirectional=True) == bytes_kept(hidden_size)


@pytest.mark.parametrize("make", [rnn_ext.RNN, rnn_ext.LSTM])
def test_ten_thousand_calls_use_no_more_memory_than_the_first(make):
    layer, x = make(8, 16), torch.randn(4, 2, 8)
    sizes = []
    for calls in (2000, 10_000):
        for _ in range(calls):
            layer(x)[0].sum().backward()
        sizes.append(psutil.Process().memory_info().rss)
    # 100 bytes a call would be 1 MB; other threads of the process and malloc take some pages.
    assert sizes[1] - sizes[0] < 500_000


FREED_MEMORY = """
import resource
import psutil, torch, rnn_ext

def faults_of_a_call():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layer(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_grad_enabled(False)
rnn_ext.keep_freed_memory(True)
layer, x = rnn_ext.RNN(2, 256), torch.zeros(512, 128, 2)
faults = min(faults_of_a_call() for _ in range(20))
kept = psutil.Process().memory_info().rss
rnn_ext.keep_freed_memory(False)
print(faults, kept - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_outputs_reuse_freed_memory_if_the_process_keeps_it():
    # In a process of its own, since the setting holds for all of it.
    run = subprocess.run([sys.executable, "-c", FREED_MEMORY], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    faults, returned = map(int, run.stdout.split())
    output_bytes = 4 * 512 * 128 * 256
    assert faults < output_bytes / 4096 / 10  # of all pages of the output
    assert returned > output_bytes / 2


def test_without_glibc_freed_memory_cannot_be_kept(monkeypatch):
    monkeypatch.setattr(rnn_ext._C, "keep_freed_memory", lambda keep: False)
    with pytest.raises(RuntimeError, match="glibc"):
        rnn_ext.keep_freed_memory(True)
