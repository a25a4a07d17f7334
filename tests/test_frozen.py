"""``freeze``: the results of the RNN, with weights that were packed once."""

import copy
import io
import pickle

import pytest
import torch
from support import ISA_LEVELS, PLANS, assert_same_bits, using_isa, using_threads
from support.ops import Ops
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnn_ext

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPTIONS = [
    {},
    {"nonlinearity": "relu", "bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
]


def flat(result):
    output, h_n = result
    return getattr(output, "data", output), h_n


def ops_of(module, *args):
    with Ops() as ops:
        module(*args)
    return set(ops.ours)


def made(**options):
    rnn = rnn_ext.RNN(7, 33, **options)
    return rnn, rnn_ext.freeze(rnn)


def is_packed(frozen, x):
    return ops_of(frozen, x) == {"rnn_ext::_rnn_forward_packed"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("isa", "node")
def test_results_have_the_bits_of_the_rnn(options, dtype):
    rnn, frozen = made(**options, dtype=dtype)
    for steps, batch in ((1, 1), (1, 9), (3, 2), (40, 1), (60, 17)):
        x = torch.randn(steps, batch, 7, dtype=dtype)
        rows = steps if rnn.batch_first else batch
        hx = torch.randn(rnn.num_layers * (1 + rnn.bidirectional), rows, 33, dtype=dtype)
        for args in ((x,), (x, hx), (x[:, 0], hx[:, 0]), (pack_sequence([x[:, 0], x[:1, 0]]),)):
            with torch.no_grad():
                assert_same_bits(flat(frozen(*args)), flat(rnn(*args)))
                assert ops_of(frozen, *args) == {"rnn_ext::_rnn_forward_packed"}
                assert "packed weights" in rnn_ext.explain(frozen, *args)


@pytest.mark.parametrize("split", PLANS)
def test_the_packed_weights_serve_any_number_of_threads(split):
    _, frozen = made()
    x = torch.randn(9, 13, 7)
    with using_threads(1):
        expected = frozen(x)
    with using_threads(3, split):
        assert_same_bits(frozen(x), expected)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_weights_that_are_not_finite_show_in_the_first_step(value):
    rnn = rnn_ext.RNN(7, 33)
    with torch.no_grad():
        rnn.weight_hh_l0[3, 5] = value
    x = torch.randn(2, 3, 7)
    assert_same_bits(rnn_ext.freeze(rnn)(x), rnn(x))


def test_later_edits_of_the_module_have_no_effect():
    rnn, frozen = made()
    x = torch.randn(4, 2, 7)
    expected = frozen(x)
    with torch.no_grad():
        for weight in (*rnn.parameters(), frozen.weight_hh_l0, frozen.weight_ih_l0):
            weight.zero_()
    assert_same_bits(frozen(x), expected)
    assert "no effect" in repr(frozen)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)
def test_copies_are_frozen(copied):
    rnn, frozen = made(num_layers=2)
    x = torch.randn(4, 2, 7)
    again = copied(frozen)
    assert is_packed(again, x)
    assert_same_bits(again(x), rnn(x))


@pytest.mark.parametrize("read", [*ISA_LEVELS])
def test_a_pickle_can_be_read_at_another_isa_level(read):
    rnn, frozen = made()
    x = torch.randn(4, 2, 7)
    data = pickle.dumps(frozen)
    with using_isa(read):
        again = pickle.loads(data)
        assert is_packed(again, x)
        assert_same_bits(again(x), rnn(x))


def test_weights_packed_for_another_isa_level_are_refused():
    with using_isa(ISA_LEVELS[0]):
        _, frozen = made()
    if len(ISA_LEVELS) > 1:
        with using_isa(ISA_LEVELS[-1]), pytest.raises(RuntimeError, match="ISA level"):
            frozen(torch.randn(4, 2, 7))


def test_changes_of_all_weights_pack_again():
    rnn, frozen = made()
    other = rnn_ext.RNN(7, 33)
    frozen.load_state_dict(other.state_dict())
    x = torch.randn(4, 2, 7)
    assert is_packed(frozen, x)
    assert_same_bits(frozen(x), other(x))
    frozen.double()
    assert is_packed(frozen, x.double())
    assert_same_bits(frozen(x.double()), other.double()(x.double()))
    assert list(frozen.state_dict()) == list(rnn.state_dict())
    frozen.to("meta")
    assert frozen(x.double().to("meta"))[0].shape == (4, 2, 33)


def test_gradients_of_the_operands_are_the_rnns():
    rnn, frozen = made()
    x, hx = torch.randn(4, 2, 7, requires_grad=True), torch.randn(1, 2, 33, requires_grad=True)
    assert not is_packed(frozen, x)
    expected = torch.autograd.grad(rnn(x, hx)[0].sum(), (x, hx))
    assert_same_bits(torch.autograd.grad(frozen(x, hx)[0].sum(), (x, hx)), expected)


def test_other_calls_run_as_those_of_the_rnn():
    torch._dynamo.reset()  # it stops compiling a function after some variants, of other tests too
    rnn, frozen = made()
    x = torch.randn(4, 2, 7)
    assert_same_bits(torch.compile(frozen, backend="eager", fullgraph=True)(x), rnn(x))
    reset = torch.rand(4, 2) < 0.5
    assert_same_bits(frozen(x, reset=reset), rnn(x, reset=reset))
    with torch.autocast("cpu"):
        assert_same_bits(frozen(x), rnn(x))
    assert_same_bits(torch.func.vmap(frozen)(x[None])[0], rnn(x)[0][None])


@pytest.mark.parametrize(
    "module",
    [nn.RNN(2, 3), rnn_ext.GRU(2, 3), rnn_ext.RNNCell(2, 3), nn.Sequential(rnn_ext.RNN(2, 3))],
    ids=lambda m: type(m).__name__,
)
def test_other_modules_are_refused(module):
    with pytest.raises(TypeError, match=type(module).__name__):
        rnn_ext.freeze(module)
