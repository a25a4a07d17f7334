"""rnn_ext.functional.rnn and rnn_cell: the stateless forms."""

import inspect
import itertools

import pytest
import torch
from support import (
    TELLS_REASONS,
    assert_close_fp64,
    assert_same_bits,
    layer_weights,
    leaves,
    reason_told,
    same_bits,
)
from support.reference import reference_rnn
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnn_ext
from rnn_ext.functional import rnn, rnn_cell

OPTIONS = [
    dict(zip(("num_layers", "nonlinearity", "bias", "bidirectional"), values, strict=True))
    for values in itertools.product((1, 2), ("tanh", "relu"), (True, False), (False, True))
]


def test_signatures():
    signature = inspect.signature(rnn)
    assert list(signature.parameters)[:3] == ["input", "hx", "weights"]
    keywords = {
        "nonlinearity": "tanh",
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "training": False,
        "bidirectional": False,
        "batch_sizes": None,
    }
    for name, default in keywords.items():
        parameter = signature.parameters[name]
        assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, default)
    assert list(inspect.signature(rnn_cell).parameters) == [
        "input",
        "hx",
        "weight_ih",
        "weight_hh",
        "bias_ih",
        "bias_hh",
        "nonlinearity",
    ]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_has_the_bits_of_the_module(options, batch_first):
    module = rnn_ext.RNN(5, 7, batch_first=batch_first, **options)
    weights = list(module.parameters())
    stacked = options["num_layers"] * (1 + options["bidirectional"])
    x, hx = torch.randn(6, 4, 5), torch.randn(stacked, 6 if batch_first else 4, 7)
    keywords = {"batch_first": batch_first, **options}
    assert_same_bits(rnn(x, hx, weights, **keywords), module(x, hx))
    assert_same_bits(rnn(x, None, weights, **keywords), module(x))
    assert_same_bits(rnn(x[0], hx[:, 0], weights, **keywords), module(x[0], hx[:, 0]))
    assert_same_bits(rnn(x[0], None, weights, **keywords), module(x[0]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_equal_the_reference(options):
    bare = {k: v for k, v in options.items() if k != "nonlinearity"}
    weights = leaves(*layer_weights(5, 7, dtype=torch.float64, **bare))
    stacked = options["num_layers"] * (1 + options["bidirectional"])
    x, hx = leaves(
        torch.randn(6, 4, 5, dtype=torch.float64), torch.randn(stacked, 4, 7, dtype=torch.float64)
    )
    results = []
    for run in (rnn, reference_rnn):
        output, h_n = run(x, hx, weights, **options)
        loss = output.square().sum() + (h_n * torch.arange(7)).sum()
        results.append((output, h_n, *torch.autograd.grad(loss, [x, hx, *weights])))
    assert_close_fp64(*results)


@pytest.mark.parametrize("given", [False, True], ids=["hx None", "hx given"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_data_by_batch_sizes_has_the_bits_of_the_module(options, given):
    module = rnn_ext.RNN(5, 7, **options)
    packed = pack_padded_sequence(torch.randn(6, 3, 5), torch.tensor([6, 4, 1]))
    stacked = options["num_layers"] * (1 + options["bidirectional"])
    hx = torch.randn(stacked, 3, 7) if given else None
    output, h_n = rnn(
        packed.data, hx, list(module.parameters()), batch_sizes=packed.batch_sizes, **options
    )
    expected_output, expected_h_n = module(packed, hx)
    assert_same_bits((output, h_n), (expected_output.data, expected_h_n))


def test_weights_may_be_any_sequence_of_plain_tensors():
    weights = layer_weights(5, 7)
    x = torch.randn(6, 4, 5)
    expected = rnn(x, None, weights)
    assert_same_bits(rnn(x, None, tuple(weights)), expected)
    views = [w.t().contiguous().t() if w.dim() == 2 else w for w in weights]
    assert_same_bits(rnn(x, None, views), expected)
    parts = torch.cat([w.flatten() for w in weights]).split([w.numel() for w in weights])
    assert_same_bits(
        rnn(x, None, [p.view(w.shape) for p, w in zip(parts, weights, strict=True)]), expected
    )


def test_weights_computed_from_others_pass_gradients_on():
    base, x = leaves(
        torch.randn(7, 7, dtype=torch.float64), torch.randn(6, 4, 5, dtype=torch.float64)
    )
    w_ih = torch.randn(7, 5, dtype=torch.float64)
    results = []
    for run in (rnn, reference_rnn):
        output, _ = run(x, None, [w_ih, base - base.t()], bias=False)
        results.append(torch.autograd.grad(output.sum(), [base, x]))
    assert_close_fp64(*results)


def test_dropout_acts_in_training_only():
    weights = layer_weights(5, 7, num_layers=2)
    x = torch.randn(6, 4, 5)
    plain = rnn(x, None, weights, num_layers=2)
    assert_same_bits(rnn(x, None, weights, num_layers=2, dropout=0.5), plain)
    dropped = rnn(x, None, weights, num_layers=2, dropout=0.5, training=True)
    assert not torch.equal(dropped[0], plain[0])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["hx given", "hx None"])
def test_cell_has_the_bits_of_the_module(nonlinearity, bias, batched, given):
    cell = rnn_ext.RNNCell(5, 7, bias, nonlinearity)
    lead = (4,) if batched else ()
    x, hx = torch.randn(*lead, 5), torch.randn(*lead, 7) if given else None
    actual = rnn_cell(x, hx, *cell.parameters(), nonlinearity=nonlinearity)
    assert_same_bits((actual,), (cell(x, hx),))


def test_an_absent_bias_counts_as_zero():
    theirs = nn.RNNCell(5, 7, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    weights = theirs.weight_ih, theirs.weight_hh
    for absent, present in (("bias_ih", "bias_hh"), ("bias_hh", "bias_ih")):
        theirs.reset_parameters()
        getattr(theirs, absent).data.zero_()
        bias = getattr(theirs, present)
        assert_close_fp64((rnn_cell(x, None, *weights, **{present: bias}),), (theirs(x),))


def test_results_own_their_memory():
    weights = layer_weights(7, 7)
    x, hx = torch.randn(1, 4, 7), torch.randn(1, 4, 7)
    output, h_n = rnn(x, hx, weights)
    expected = output.clone()
    for tensor in (x, hx, h_n, *weights):
        tensor.zero_()
    assert same_bits(output, expected)


def test_no_memory_for_the_result_is_torchs_out_of_memory_error():
    x = torch.zeros(1, 1, 1).expand(2**20, 2**20, 1)  # a result of 4 TiB
    with pytest.raises(torch.OutOfMemoryError, match="could not allocate a tensor of"):
        rnn(x, None, layer_weights(1, 1))


def test_no_memory_for_a_copy_that_torch_makes_is_its_out_of_memory_error_too(capfd):
    features = 2**40
    x = torch.zeros(1, 1, 1).expand(1, 1, features)
    w_ih = torch.zeros(1, 1).expand(1, features)
    with pytest.raises(torch.OutOfMemoryError if TELLS_REASONS else RuntimeError) as caught:
        rnn(x, None, [w_ih, torch.zeros(1, 1)], bias=False)
    assert "tried to allocate" in reason_told(caught.value, capfd.readouterr().err)
