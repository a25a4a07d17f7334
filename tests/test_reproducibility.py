"""Bitwise promises: for thread counts, runs, batch rows, padding, packing, and cuts in time."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from support import (
    MORE_THREADS_THAN_CORES,
    PLANS,
    assert_same_bits,
    leaves,
    same_bits,
    using_threads,
)
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import rnn_ext


@dataclass(frozen=True)
class Shape:
    """Shapes for which plans differ: few or many rows, a narrow or wide state."""

    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    nonlinearity: str = "tanh"
    packed: bool = False
    dtype: torch.dtype = torch.float32

    def __str__(self):
        return "-".join(
            [
                f"T{self.seq_len}",
                f"B{self.batch}",
                f"I{self.input_size}",
                f"H{self.hidden_size}",
                f"L{self.num_layers}",
                "bi" if self.bidirectional else "uni",
                self.nonlinearity,
                "packed" if self.packed else "padded",
                str(self.dtype).removeprefix("torch."),
            ]
        )

    def module(self):
        return rnn_ext.RNN(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            nonlinearity=self.nonlinearity,
            bidirectional=self.bidirectional,
            dtype=self.dtype,
        )

    def tensors(self):
        states = self.num_layers * (1 + self.bidirectional)
        return (
            torch.randn(self.seq_len, self.batch, self.input_size, dtype=self.dtype),
            torch.randn(states, self.batch, self.hidden_size, dtype=self.dtype),
        )

    def everything(self, module, x, hx):
        """Results and all gradients of one training step."""
        x, hx = leaves(x, hx)
        argument = x
        if self.packed:
            lengths = torch.linspace(self.seq_len, 1, self.batch).round().long()
            argument = pack_padded_sequence(x, lengths)
        output, h_n = module(argument, hx)
        output = output.data if self.packed else output
        weight = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
        loss = (output * weight).sum() + h_n.square().sum()
        return [output, h_n, *torch.autograd.grad(loss, [x, hx, *module.parameters()])]


SHAPES = [
    Shape(1, 1, 1, 1),
    Shape(50, 1, 17, 129),
    Shape(9, 3, 33, 257),
    Shape(5, 2, 64, 600),
    Shape(40, 33, 7, 65, nonlinearity="relu"),
    Shape(7, 129, 100, 31),
    Shape(3, 257, 5, 16, bidirectional=True),
    Shape(20, 9, 13, 48, num_layers=2, bidirectional=True),
    Shape(30, 17, 5, 33, packed=True),
    Shape(12, 70, 9, 20, bidirectional=True, packed=True, nonlinearity="relu"),
    Shape(1, 1, 300, 600),  # so few rows that the weights are not packed
    Shape(1, 11, 37, 45, bidirectional=True, dtype=torch.float64),
    Shape(2, 3, 20, 33, nonlinearity="relu", dtype=torch.bfloat16),
    Shape(300, 8, 3, 12),
    Shape(300, 33, 5, 20),
    Shape(20, 9, 13, 48, num_layers=2, bidirectional=True, dtype=torch.float64),
    Shape(40, 33, 7, 65, dtype=torch.float64),
    Shape(90, 33, 7, 65, dtype=torch.bfloat16),
    Shape(300, 5, 13, 48, num_layers=2, bidirectional=True, dtype=torch.float16),
    Shape(30, 17, 5, 33, packed=True, bidirectional=True, dtype=torch.bfloat16),
    # So few rows that W_hh stays in 16 bits; an odd number of units, several blocks of a sum.
    Shape(20, 3, 5, 65, dtype=torch.bfloat16),
    Shape(20, 2, 5, 300, dtype=torch.float16),
    # Several chunks of steps, between which rows move from one group of threads to another.
    Shape(60, 24, 5, 300, packed=True),
    Shape(60, 24, 5, 300, packed=True, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_have_the_same_bits_at_every_thread_count(shape, isa):
    module, (x, hx) = shape.module(), shape.tensors()
    with using_threads(1):
        expected = shape.everything(module, x, hx)
    for threads, split in product((2, 3, 8, MORE_THREADS_THAN_CORES), PLANS):
        with using_threads(threads, split):
            assert_same_bits(shape.everything(module, x, hx), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_run_has_the_same_bits(shape, isa):
    module, (x, hx) = shape.module(), shape.tensors()
    expected = shape.everything(module, x, hx)
    for _ in range(3):
        # New allocations in between: nothing may depend on addresses or old contents.
        torch.full((1 << 16,), torch.nan)
        assert_same_bits(shape.everything(module, x, hx), expected)


@pytest.mark.bfloat16
def test_nothing_is_left_over_from_earlier_calls(isa):
    """Scratch memory of a call full of NaN and infinity, of any size, does not reach the next."""
    modules = [(shape, shape.module(), *shape.tensors()) for shape in SHAPES]
    expected = [shape.everything(module, x, hx) for shape, module, x, hx in modules]
    for (shape, module, x, hx), want in zip(modules, expected, strict=True):
        for value in (torch.nan, torch.inf):
            other = rnn_ext.RNN(x.shape[2] + 3, shape.hidden_size + 5, bidirectional=True)
            for parameter in other.parameters():
                parameter.data.fill_(value)
            output, _ = other(torch.full((shape.seq_len, shape.batch + 3, x.shape[2] + 3), value))
            output.sum().backward()
        assert_same_bits(shape.everything(module, x, hx), want)


PADDED = [s for s in SHAPES if not s.packed]


@pytest.mark.parametrize("shape", PADDED, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(shape, isa):
    module, (x, hx) = shape.module().requires_grad_(False), shape.tensors()
    output, h_n = module(x, hx)
    for row in {0, shape.batch // 2, shape.batch - 1}:
        assert_same_bits((output[:, row], h_n[:, row]), module(x[:, row], hx[:, row]))
    for size in (2, 3, 5, 8, 15, 31):
        some = slice(max(0, shape.batch - size), shape.batch)
        actual = module(x[:, some], hx[:, some])
        assert_same_bits(actual, (output[:, some], h_n[:, some]))
    order = torch.randperm(shape.batch)
    assert_same_bits(module(x[:, order], hx[:, order]), (output[:, order], h_n[:, order]))


@pytest.mark.parametrize("batch", range(1, 20))
def test_rows_do_not_depend_on_their_tile(batch, isa):
    module = rnn_ext.RNN(11, 37).requires_grad_(False)
    rows = torch.randn(6, 20, 11)
    expected, _ = module(rows)
    assert same_bits(module(rows[:, :batch])[0], expected[:, :batch])


@pytest.mark.parametrize("shape", PADDED, ids=str)
def test_packing_and_longer_neighbors_change_no_bits(shape, isa):
    module, (x, hx) = shape.module().requires_grad_(False), shape.tensors()
    output, h_n = module(x, hx)
    longer = torch.randn(shape.seq_len + 9, 2, shape.input_size, dtype=shape.dtype)
    packed = pack_sequence([*longer.unbind(1), *x.unbind(1)])
    state = torch.cat([torch.randn_like(hx[:, :1]).expand(-1, 2, -1), hx], dim=1)
    packed_output, packed_h_n = module(packed, state)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_output)
    assert_same_bits((padded[: shape.seq_len, 2:], packed_h_n[:, 2:]), (output, h_n))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("hidden_size", [1, 16, 33, 129])
@pytest.mark.parametrize("batch", [1, 5, 33])
def test_stepping_and_cutting_in_time_change_no_bits(batch, hidden_size, nonlinearity, isa):
    module = rnn_ext.RNN(9, hidden_size, 2, nonlinearity=nonlinearity).requires_grad_(False)
    x, hx = torch.randn(70, batch, 9), torch.randn(2, batch, hidden_size)
    output, h_n = module(x, hx)
    for cuts in ([1] * 70, [69, 1], [1, 69], [33, 37], [7] * 10):
        state, parts = hx, []
        for part in x.split(cuts):
            y, state = module(part, state)
            parts.append(y)
        assert_same_bits((torch.cat(parts), state), (output, h_n))


def test_layouts_of_the_arguments_change_no_bits(isa):
    module = rnn_ext.RNN(17, 33, 2, bidirectional=True).requires_grad_(False)
    x, hx = torch.randn(9, 5, 17), torch.randn(4, 5, 33)
    expected = module(x, hx)
    odd = torch.empty(9 * 5 * 17 + 1)[1:].view(9, 5, 17).copy_(x)
    backwards = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for variant in (odd, backwards, torch.stack([x, x], dim=-1)[..., 0]):
        assert_same_bits(module(variant, hx), expected)
    first = rnn_ext.RNN(17, 33, 2, bidirectional=True, batch_first=True)
    first.load_state_dict(module.state_dict())
    output, h_n = first(x.transpose(0, 1), hx)
    assert_same_bits((output.transpose(0, 1), h_n), expected)


def test_zero_state_has_the_bits_of_no_state(isa):
    module = rnn_ext.RNN(9, 33, 2, bidirectional=True)
    x = torch.randn(7, 5, 9)
    assert_same_bits(module(x), module(x, torch.zeros(4, 5, 33)))


def test_layers_stacked_by_hand_have_the_bits_of_one_module(isa):
    whole = rnn_ext.RNN(9, 33, 2)
    below, above = rnn_ext.RNN(9, 33), rnn_ext.RNN(33, 33)
    for layer, part in enumerate((below, above)):
        state = {
            name: whole.state_dict()[name.replace("l0", f"l{layer}")] for name in part.state_dict()
        }
        part.load_state_dict(state)
    x = torch.randn(7, 5, 9)
    middle, first = below(x)
    output, second = above(middle)
    assert_same_bits((output, torch.cat([first, second])), whole(x))


def test_the_reverse_direction_is_the_forward_one_on_reversed_time(isa):
    both, forward = rnn_ext.RNN(9, 33, bidirectional=True), rnn_ext.RNN(9, 33)
    forward.load_state_dict(
        {name: both.state_dict()[f"{name}_reverse"] for name in forward.state_dict()}
    )
    x = torch.randn(7, 5, 9)
    output, h_n = both(x)
    expected_output, expected_h_n = forward(x.flip(0))
    assert_same_bits((output[..., 33:], h_n[1:]), (expected_output.flip(0), expected_h_n))


def test_deterministic_algorithms_are_accepted():
    shape = SHAPES[7]
    module, (x, hx) = shape.module(), shape.tensors()
    expected = shape.everything(module, x, hx)
    torch.use_deterministic_algorithms(True)
    try:
        actual = shape.everything(module, x, hx)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_subnormal_numbers_are_flushed_in_all_threads_or_in_none(nonlinearity, isa):
    module = rnn_ext.RNN(3, 65, nonlinearity=nonlinearity)
    x = torch.rand(4, 9, 3) * 1e-38
    for parameter in module.parameters():
        parameter.data.mul_(1e-3 if parameter.dim() == 2 else 0)

    def everything():
        output, h_n = module(x)
        return [output, h_n, *torch.autograd.grad(output.sum(), list(module.parameters()))]

    with using_threads(3, "rows"):
        everything()  # the pool's threads start before the flag is set
    for flushes in (True, False):
        torch.set_flush_denormal(flushes)
        try:
            with using_threads(1):
                expected = everything()
            with using_threads(3, "rows"):
                actual = everything()
        finally:
            torch.set_flush_denormal(False)
        assert bool(expected[0].any()) != flushes
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("hidden_size", [33, 300])  # 300: a sum of two blocks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layouts_of_the_gradient_of_the_output_change_no_bits(dtype, hidden_size, isa):
    module = rnn_ext.RNN(7, hidden_size, bidirectional=True, dtype=dtype)
    output, h_n = module(torch.randn(5, 3, 7, dtype=dtype))
    ones = torch.ones_like(output)
    for last in ([], [torch.randn_like(h_n)]):
        results = [output, h_n][: 1 + len(last)]

        def grads(dy, results=results, last=last):
            weights = list(module.parameters())
            return torch.autograd.grad(results, weights, [dy, *last], retain_graph=True)

        expected = grads(ones)
        for dy in (ones.new_ones(()).expand_as(ones), torch.stack([ones, ones], -1)[..., 0]):
            assert_same_bits(grads(dy), expected)
