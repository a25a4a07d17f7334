"""rnn_ext.RNNCell against nn.RNNCell and against rnn_ext.RNN."""

import copy
import inspect
import itertools
import pickle
from dataclasses import dataclass

import pytest
import torch
from support import SIZES, assert_close_fp64, assert_same_bits, leaves, same_bits
from support.reference import reference_rnn
from torch import nn

import rnn_ext


@dataclass(frozen=True)
class CellCase:
    batch: int
    input_size: int
    hidden_size: int
    nonlinearity: str
    bias: bool
    given: bool
    batched: bool = True

    def __str__(self):
        return (
            f"B{self.batch}-I{self.input_size}-H{self.hidden_size}-{self.nonlinearity}-"
            f"{'bias' if self.bias else 'nobias'}-{'hx' if self.given else 'nohx'}-"
            f"{'batched' if self.batched else 'unbatched'}"
        )

    def twins(self, dtype):
        args = (self.input_size, self.hidden_size, self.bias, self.nonlinearity)
        theirs, ours = nn.RNNCell(*args, dtype=dtype), rnn_ext.RNNCell(*args, dtype=dtype)
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    def arguments(self, dtype):
        lead = (self.batch,) if self.batched else ()
        x = torch.randn(*lead, self.input_size, dtype=dtype)
        return x, torch.randn(*lead, self.hidden_size, dtype=dtype) if self.given else None


def _cases():
    """Every size in every position, with the options rotating."""
    options = itertools.cycle(itertools.product(("tanh", "relu"), (True, False), (True, False)))
    count = len(SIZES)
    batched = [
        CellCase(SIZES[i], SIZES[(5 * i + shift) % count], SIZES[(3 * i + shift) % count], *option)
        for (shift, i), option in zip(
            itertools.product((0, 4, 9), range(count)), options, strict=False
        )
    ]
    unbatched = [
        CellCase(1, i, h, *option, batched=False)
        for (i, h), option in zip(
            [(1, 1), (3, 17), (65, 33), (129, 100)] * 2, options, strict=False
        )
    ]
    return batched + unbatched


def gradients_of(cell, x, hx):
    x, hx = leaves(x, hx)
    h = cell(x, hx)
    weight = torch.linspace(-1, 2, h.numel(), dtype=h.dtype).view_as(h)
    wanted = [x, *cell.parameters(), *([hx] if hx is not None else [])]
    return [h.detach(), *torch.autograd.grad((h * weight).sum(), wanted)]


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_fp64_forward_and_gradients_equal_nn_rnn_cell(case, isa):
    theirs, ours = case.twins(torch.float64)
    arguments = case.arguments(torch.float64)
    assert_close_fp64(gradients_of(ours, *arguments), gradients_of(theirs, *arguments))


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_fp32_forward_and_gradients_are_as_exact_as_nn_rnn_cell(case, isa):
    theirs, ours = case.twins(torch.float32)
    arguments = case.arguments(torch.float32)
    x, hx = arguments
    exact = gradients_of(
        copy.deepcopy(theirs).double(), x.double(), None if hx is None else hx.double()
    )
    for a, b, c in zip(
        gradients_of(ours, *arguments), gradients_of(theirs, *arguments), exact, strict=True
    ):
        # The contract's bound on a single tensor.
        eps, largest = torch.finfo(torch.float32).eps, c.abs().max()
        assert (a - c).abs().max() <= 8 * (b - c).abs().max() + 64 * eps * largest


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_stepping_a_cell_has_the_bits_of_the_whole_sequence(nonlinearity, bias, isa):
    rnn = rnn_ext.RNN(9, 33, nonlinearity=nonlinearity, bias=bias).requires_grad_(False)
    cell = rnn_ext.RNNCell(9, 33, bias, nonlinearity).requires_grad_(False)
    for theirs, ours in zip(rnn.parameters(), cell.parameters(), strict=True):
        ours.copy_(theirs)
    x, h = torch.randn(12, 5, 9), torch.randn(5, 33)
    output, _ = rnn(x, h[None])
    for t in range(12):
        h = cell(x[t], h)
        assert same_bits(h, output[t])


def test_a_loop_over_the_cell_trains_like_the_reference():
    cell = rnn_ext.RNNCell(3, 5, dtype=torch.float64)
    x, hx = leaves(
        torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    )
    h, steps = hx, []
    for t in range(6):
        h = cell(x[t], h)
        steps.append(h)
    wanted = [x, hx, *cell.parameters()]
    actual = torch.autograd.grad(torch.stack(steps).square().sum(), wanted)
    output, _ = reference_rnn(x, hx[None], list(cell.parameters()))
    assert_close_fp64(actual, torch.autograd.grad(output.square().sum(), wanted))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_same_seed_attributes_repr_and_state_dict_as_nn_rnn_cell(bias, nonlinearity):
    torch.manual_seed(3)
    theirs = nn.RNNCell(4, 6, bias, nonlinearity)
    torch.manual_seed(3)
    ours = rnn_ext.RNNCell(4, 6, bias, nonlinearity)
    assert repr(ours) == repr(theirs)
    assert ours.__constants__ == theirs.__constants__
    for name in theirs.__constants__:
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.bias_ih is None) == (theirs.bias_ih is None)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_bits(ours.parameters(), theirs.parameters())
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    assert theirs.load_state_dict(ours.state_dict()) == ([], [])


def test_is_an_rnn_cell_base_but_not_an_nn_rnn_cell():
    cell = rnn_ext.RNNCell(2, 3)
    assert isinstance(cell, nn.RNNCellBase)
    assert not isinstance(cell, nn.RNNCell)


def test_signatures_are_those_of_nn_rnn_cell():
    for name in ("__init__", "forward"):
        theirs = list(inspect.signature(getattr(nn.RNNCell, name)).parameters.values())
        ours = list(inspect.signature(getattr(rnn_ext.RNNCell, name)).parameters.values())
        assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
            (p.name, p.default) for p in theirs
        ]
        assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


def test_empty_batch_and_empty_state_work_like_in_nn_rnn_cell():
    for batch, hidden_size in ((0, 4), (2, 0)):
        theirs, ours = nn.RNNCell(3, hidden_size), rnn_ext.RNNCell(3, hidden_size)
        x = torch.randn(batch, 3)
        assert ours(x).shape == theirs(x).shape
        for grad, weight in zip(gradients_of(ours, x, None)[2:], ours.parameters(), strict=True):
            assert grad.shape == weight.shape
            assert not grad.any()


def test_non_contiguous_arguments():
    theirs, ours = CellCase(6, 5, 7, "tanh", True, True).twins(torch.float64)
    arguments = [
        (torch.randn(5, 6, dtype=torch.float64).t(), torch.randn(7, dtype=torch.float64)),
        (torch.randn(6, 10, dtype=torch.float64)[:, ::2], torch.randn(1, dtype=torch.float64)),
        (torch.randn(5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)),
    ]
    for x, hx in arguments:
        x, hx = x.expand(6, 5), hx.expand(6, 7)
        assert_close_fp64((ours(x, hx),), (theirs(x, hx),))


def test_result_does_not_alias_its_arguments():
    cell = rnn_ext.RNNCell(4, 4).requires_grad_(False)
    x, hx = torch.randn(2, 4), torch.randn(2, 4)
    h = cell(x, hx)
    expected = h.clone()
    x.zero_()
    hx.zero_()
    assert same_bits(h, expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_compute_the_same(duplicate):
    cell = rnn_ext.RNNCell(3, 4, nonlinearity="relu")
    x = torch.randn(2, 3)
    twin = duplicate(cell)
    assert type(twin) is rnn_ext.RNNCell
    assert_same_bits((twin(x),), (cell(x),))


def test_changed_weights_are_seen_by_the_next_call():
    theirs, ours = CellCase(2, 3, 4, "tanh", True, True).twins(torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)
    ours(x)
    for cell in (theirs, ours):
        cell.weight_ih.data.mul_(2)
    assert_close_fp64((ours(x),), (theirs(x),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_the_weights_of_one_row_is_an_exact_outer_product(dtype, isa):
    cell = rnn_ext.RNNCell(67, 45, dtype=dtype)
    x, hx = torch.randn(1, 67, dtype=dtype), torch.randn(1, 45, dtype=dtype)
    cell(x, hx).sum().backward()
    dz = cell.bias_ih.grad
    assert torch.equal(cell.weight_ih.grad, torch.outer(dz, x[0]))
    assert torch.equal(cell.weight_hh.grad, torch.outer(dz, hx[0]))


def test_gradient_of_one_row_is_added_to_that_of_the_other_steps(isa):
    # Weight gradients are summed over 1280 rows at a time at this hidden size.
    ours, theirs = (library.RNN(3, 45, dtype=torch.float64) for library in (rnn_ext, nn))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1281, 1, 3, dtype=torch.float64)
    for module in (ours, theirs):
        module(x)[0].sum().backward()
    for name, parameter in ours.named_parameters():
        # 1281 terms a sum, in another order: some eps of float64 of the largest.
        expected = theirs.get_parameter(name).grad
        assert (parameter.grad - expected).abs().max() < 1e-13 * expected.abs().max(), name
