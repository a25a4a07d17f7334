"""Execution on a GPU: streams, CUDA graphs, several devices, and running out of memory."""

import copy
from contextlib import contextmanager

import pytest
import torch
from support import assert_same_bits
from support.gpu import NEEDS_GPU, REGIMES, assert_parity, draw, layer, results
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

pytestmark = NEEDS_GPU


@contextmanager
def side_stream():
    """A stream that starts after the current one, which then waits for it."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def captured(step):
    """Runs `step`, then captures it; returns the graph's replay and the tensors that it writes."""
    with side_stream():
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph.replay, result


@contextmanager
def memory_left(size):
    """Allows no more than `size` further bytes."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@REGIMES
def test_work_goes_to_the_current_stream(hidden_size):
    rnn, x = layer(hidden_size), draw(200, 64, 17)
    expected = results(rnn, x)
    with side_stream():
        torch.cuda._sleep(50_000_000)
        late = x * 1  # ready only after the pause: another stream would read too early
        actual = results(rnn, late)
    assert_parity(actual, expected)


@REGIMES
def test_a_captured_forward_replays_on_new_input(hidden_size):
    rnn, x, hx = layer(hidden_size, bidirectional=True), draw(9, 4, 17), draw(2, 4, hidden_size)
    with torch.no_grad():
        replay, result = captured(lambda: rnn(x, hx))
        x.copy_(draw(9, 4, 17))
        hx.copy_(draw(2, 4, hidden_size))
        replay()
        assert_parity(result, rnn(x, hx))


@REGIMES
def test_a_captured_forward_on_packed_input_replays(hidden_size):
    rnn, hx = layer(hidden_size), draw(1, 4, hidden_size)
    packed = pack_padded_sequence(draw(9, 4, 17), torch.tensor([9, 7, 3, 1]))

    def forward():
        output, h_n = rnn(packed, hx)
        assert isinstance(output, PackedSequence)
        return output.data, h_n

    with torch.no_grad():
        replay, result = captured(forward)
        packed.data.copy_(torch.randn_like(packed.data))
        replay()
        assert_parity(result, forward())


@REGIMES
def test_a_captured_training_step_replays_on_new_input(hidden_size):
    rnn, x = layer(hidden_size, num_layers=2), draw(9, 4, 17)
    twin = copy.deepcopy(rnn)

    def train(rnn):
        output, h_n = rnn(x)
        loss = output.square().sum() + h_n.sum()
        grads = torch.autograd.grad(loss, list(rnn.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(rnn.parameters(), grads, strict=True):
                parameter -= 0.01 * grad
        return loss.detach()

    replay, loss = captured(lambda: train(rnn))
    train(twin)
    for _ in range(3):
        x.copy_(draw(9, 4, 17))
        replay()
        assert_parity([loss, *rnn.parameters()], [train(twin), *twin.parameters()])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one device")
@REGIMES
def test_a_second_device_works_while_the_first_is_current(hidden_size):
    rnn, x = layer(hidden_size), draw(5, 3, 17)
    expected = results(rnn, x)
    actual = results(copy.deepcopy(rnn).to("cuda:1"), x.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert {t.device.index for t in actual} == {1}
    assert_parity(actual, expected)


def test_running_out_of_memory_is_reported_and_leaves_a_usable_process():
    rnn, x = layer(64), draw(5, 3, 17)
    before = results(rnn, x)
    long = draw(1, 1, 17).expand(2000, 256, 17)  # output and states have 125 MiB each
    with memory_left(64 << 20), pytest.raises(torch.OutOfMemoryError):
        rnn(long)
    with memory_left(200 << 20):
        output, _ = rnn(long)
        with pytest.raises(torch.OutOfMemoryError):
            output.sum().backward()
    del output
    assert_same_bits(results(rnn, x), before)
