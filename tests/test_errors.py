"""Errors and warnings: the full text of those of torch's modules, taken from them in the test."""

import itertools
import random
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import KINDS, flat, outcome, twins
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnn_ext


def assert_same_outcome(ours, theirs):
    expected = outcome(theirs)
    assert outcome(ours) == expected
    return expected


def assert_same_failure(ours, theirs):
    assert assert_same_outcome(ours, theirs).error is not None, "nn.RNN accepts this"


# By position, an RNN has the nonlinearity in the middle, an LSTM proj_size before device.
BAD_CONSTRUCTIONS = [
    ((), {}),
    ((3,), {}),
    ((3, 4), {"hidden": 4}),
    ((3, 4, 1, "tanh", True, False, 0.0, False, None, None, 0, 0), {}),
    ((3, 4), {"proj_size": 2}),
    ((3, 4), {"proj_size": 0}),
    ((3, 4), {"proj_size": 4}),
    ((3, 4), {"proj_size": -1}),
    ((3, 4, 1, "sigmoid"), {}),
    ((3, 4), {"nonlinearity": "Tanh"}),
    ((3, 4), {"nonlinearity": "tanh"}),
    ((3, 4), {"nonlinearity": None}),
    ((3, 4, 1, True), {}),
    ((3.0, 4), {}),
    ((3, 4.0), {}),
    ((3, 4, 1.0), {}),
    ((-1, 4), {}),
    ((3, 0), {}),
    ((3, -4), {}),
    ((3, 4, 0), {}),
    ((3, 4, -1), {}),
    (("3", 4), {}),
    ((3, 4), {"dropout": -0.1}),
    ((3, 4), {"dropout": 1.5}),
    ((3, 4), {"dropout": True}),
    ((3, 4), {"dropout": "a"}),
    ((3, 4, 2), {"dropout": float("nan")}),
    ((3, 4), {"dropout": None}),
    ((3, 4), {"device": "nowhere"}),
    ((3, 4), {"dtype": torch.int64}),
    ((3, 4), {"dtype": "float32"}),
    # Refused by later releases.
    ((0, 4), {}),
    ((3, 4), {"bias": 1}),
    ((3, 4), {"bias": None}),
    ((3, 4), {"batch_first": "yes"}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("args", "kwargs"), BAD_CONSTRUCTIONS, ids=str)
def test_constructor_raises_torchs_errors(args, kwargs, kind):
    theirs, ours = getattr(nn, kind), getattr(rnn_ext, kind)
    expected = assert_same_outcome(lambda: ours(*args, **kwargs), lambda: theirs(*args, **kwargs))
    if expected.error is None:
        assert repr(ours(*args, **kwargs)) == repr(theirs(*args, **kwargs))


def test_most_of_these_constructions_are_refused():
    def refused(kind, args, kwargs):
        return outcome(lambda: getattr(nn, kind)(*args, **kwargs)).error is not None

    for kind in KINDS:
        # Some are right for one kind, or in earlier releases.
        assert sum(refused(kind, *given) for given in BAD_CONSTRUCTIONS) >= 27


def test_dropout_with_one_layer_warns_like_nn_rnn():
    expected = assert_same_outcome(
        lambda: rnn_ext.RNN(3, 4, dropout=0.5), lambda: nn.RNN(3, 4, dropout=0.5)
    )
    assert len(expected.warnings) == 1


def test_constructor_checks_in_the_order_of_nn_rnn():
    """With several errors at once, the same one is raised, after the same warnings."""
    pools = {
        "input_size": (3, 0, 2.5),
        "hidden_size": (4, -1, None),
        "num_layers": (1, 2, 0),
        "nonlinearity": ("tanh", "relu", "gelu"),
        "bias": (True, False, 0),
        "batch_first": (False, True, 1),
        "dropout": (0.0, 0.5, 2, False),
        "bidirectional": (False, True),
    }
    everything = list(itertools.product(*pools.values()))
    for values in random.Random(0).sample(everything, 400):
        kwargs = dict(zip(pools, values, strict=True))
        assert_same_outcome(partial(rnn_ext.RNN, **kwargs), partial(nn.RNN, **kwargs))


def _packed(input_size, lengths=(3, 2), **kwargs):
    return pack_padded_sequence(
        torch.zeros(max(lengths), len(lengths), input_size, **kwargs), torch.tensor(lengths)
    )


zeros = torch.zeros
# For an RNN; a GRU and an LSTM get the same, the LSTM hx and zeros like it as a pair.
BAD_CALLS = {
    "no input": lambda: (),
    "0-D input": lambda: (zeros(()),),
    "1-D input": lambda: (zeros(3),),
    "4-D input": lambda: (zeros(1, 2, 3, 3),),
    "input size": lambda: (zeros(5, 2, 4),),
    "unbatched input size": lambda: (zeros(5, 4),),
    "no features": lambda: (zeros(5, 2, 0),),
    "T = 0, hx given": lambda: (zeros(0, 2, 3), zeros(2, 2, 4)),
    "T = 0, unbatched": lambda: (zeros(0, 3),),
    "T = 0, B = 0": lambda: (zeros(0, 0, 3),),
    "2-D hx": lambda: (zeros(5, 2, 3), zeros(2, 4)),
    "4-D hx": lambda: (zeros(5, 2, 3), zeros(2, 2, 4, 1)),
    "3-D hx for 2-D input": lambda: (zeros(5, 3), zeros(2, 1, 4)),
    "1-D hx for 2-D input": lambda: (zeros(5, 3), zeros(4)),
    "hx of another batch": lambda: (zeros(5, 2, 3), zeros(2, 3, 4)),
    "hx of batch one": lambda: (zeros(5, 2, 3), zeros(2, 1, 4)),
    "hx of one layer": lambda: (zeros(5, 2, 3), zeros(1, 2, 4)),
    "hx of another hidden size": lambda: (zeros(5, 2, 3), zeros(2, 2, 5)),
    "unbatched hx of one layer": lambda: (zeros(5, 3), zeros(1, 4)),
    "input dtype": lambda: (zeros(5, 2, 3, dtype=torch.float64),),
    "integer input": lambda: (zeros(5, 2, 3, dtype=torch.int64),),
    "half input": lambda: (zeros(5, 2, 3, dtype=torch.float16),),
    "hx dtype": lambda: (zeros(5, 2, 3), zeros(2, 2, 4, dtype=torch.float64)),
    "integer hx": lambda: (zeros(5, 2, 3), zeros(2, 2, 4, dtype=torch.int64)),
    "input device": lambda: (zeros(5, 2, 3, device="meta"),),
    "hx device": lambda: (zeros(5, 2, 3), zeros(2, 2, 4, device="meta")),
    "list": lambda: ([[[1.0, 2.0, 3.0]]],),
    "None": lambda: (None,),
    "hx tuple": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4), zeros(2, 2, 4))),
    "dtype before size": lambda: (zeros(5, 2, 7, dtype=torch.float64), zeros(9, 9, 9)),
    "size before hx": lambda: (zeros(5, 2, 7), zeros(9, 9, 9)),
    "packed input size": lambda: (_packed(4),),
    "packed dtype": lambda: (_packed(3, dtype=torch.float64),),
    "packed, hx of another batch": lambda: (_packed(3), zeros(2, 3, 4)),
    "packed, 2-D hx": lambda: (_packed(3), zeros(2, 4)),
    "packed, hx dtype": lambda: (_packed(3), zeros(2, 2, 4, dtype=torch.float64)),
}


# For an LSTM alone.
BAD_PAIRS = {
    "hx is a tensor": lambda: (zeros(5, 2, 3), zeros(2, 2, 4)),
    "hx is both in one tensor": lambda: (zeros(5, 2, 3), zeros(2, 2, 2, 4)),
    "hx is one": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4),)),
    "hx is three": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4),) * 3),
    "hx is empty": lambda: (zeros(5, 2, 3), ()),
    "hx has None": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4), None)),
    "cx dims": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4), zeros(2, 4))),
    "cx of another batch": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4), zeros(2, 3, 4))),
    "cx of another hidden size": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4), zeros(2, 2, 5))),
    "cx dtype": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4), zeros(2, 2, 4).double())),
    "cx device": lambda: (zeros(5, 2, 3), (zeros(2, 2, 4), zeros(2, 2, 4, device="meta"))),
    "unbatched cx": lambda: (zeros(5, 3), (zeros(2, 4), zeros(2, 1, 4))),
    "packed, cx of another batch": lambda: (_packed(3), (zeros(2, 2, 4), zeros(2, 3, 4))),
    "packed, one": lambda: (_packed(3), (zeros(2, 2, 4),)),
}


def paired(arguments, kind):
    """The arguments with hx as this kind takes it."""
    if kind == "LSTM" and len(arguments) == 2 and isinstance(arguments[1], Tensor):
        return arguments[0], (arguments[1], torch.zeros_like(arguments[1]))
    return arguments


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", BAD_CALLS.values(), ids=BAD_CALLS)
def test_forward_raises_torchs_errors(arguments, kind, batch_first):
    theirs, ours = twins(3, 4, 2, kind=kind, batch_first=batch_first)
    args = paired(arguments(), kind)
    expected = assert_same_outcome(partial(ours, *args), partial(theirs, *args))
    # An LSTM takes a tuple, and in some releases tensors on two devices.
    assert expected.error is not None or kind == "LSTM"


@pytest.mark.parametrize("arguments", BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_lstm_raises_torchs_errors_for_wrong_pairs_of_states(arguments):
    theirs, ours = twins(3, 4, 2, kind="LSTM")
    args = arguments()
    assert_same_outcome(partial(ours, *args), partial(theirs, *args))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3)])
def test_no_time_steps_fail_like_in_torch(shape, kind):
    theirs, ours = twins(3, 4, kind=kind, batch_first=shape[1] == 0)
    assert_same_failure(lambda: ours(zeros(shape)), lambda: theirs(zeros(shape)))


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_a_projection_given_by_position_fails_as_in_torch(kind):
    args = (3, 4, 1, *(("tanh",) if kind == "RNN" else ()), True, False, 0.0, False, 2)
    ours, theirs = getattr(rnn_ext, kind)(*args), getattr(nn, kind)(*args)
    assert repr(ours) == repr(theirs)
    for arguments in ((zeros(5, 2, 3),), (zeros(5, 2, 3), zeros(1, 2, 2))):
        assert_same_failure(partial(ours, *arguments), partial(theirs, *arguments))


def _wrong_shape(module):
    module.weight_hh_l0 = nn.Parameter(zeros(len(module.weight_hh_l0), 5))


def _wrong_bias(module):
    module.bias_ih_l0 = nn.Parameter(zeros(len(module.bias_ih_l0) + 1))


def _wrong_dtype(module):
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().double())


def _no_weight(module):
    module.weight_hh_l0 = None


def _all_wrong_device(module):
    module.to("meta")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "damage", [_wrong_shape, _wrong_bias, _wrong_dtype, _no_weight, _all_wrong_device]
)
def test_damaged_weights_fail_like_in_torch(damage, kind):
    theirs, ours = twins(3, 4, kind=kind)
    damage(theirs)
    damage(ours)
    x = torch.randn(5, 2, 3)
    expected = assert_same_outcome(lambda: ours(x), lambda: theirs(x))
    # oneDNN reads a weight_hh of any width.
    assert expected.error is not None or (kind, damage) == ("LSTM", _wrong_shape)


@pytest.mark.parametrize("input_shape", [(2, 1), (3, 2, 1)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_frozen_weight_of_another_width_fails_like_in_torch(input_shape, batch_first):
    pair = twins(1, 1, bias=False, batch_first=batch_first)
    for module in pair:
        module.weight_ih_l0.requires_grad_(False)
        module.weight_ih_l0.data = torch.randn(1, 2)
    theirs, ours = pair
    x = torch.randn(input_shape)
    assert assert_same_outcome(lambda: ours(x), lambda: theirs(x)).error


@pytest.mark.parametrize("kind", KINDS)
@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=4),
    st.none() | st.lists(st.integers(0, 4), min_size=0, max_size=4),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.booleans(),
)
def test_any_shapes_are_accepted_or_rejected_as_by_torch(
    kind, input_shape, hx_shape, hx_dtype, batch_first, bidirectional
):
    theirs, ours = twins(3, 2, kind=kind, batch_first=batch_first, bidirectional=bidirectional)
    given = () if hx_shape is None else (zeros(hx_shape, dtype=hx_dtype),)
    args = paired((zeros(input_shape), *given), kind)
    expected = assert_same_outcome(partial(ours, *args), partial(theirs, *args))
    if expected.error is None:
        assert [t.shape for t in flat(ours(*args))] == [t.shape for t in flat(theirs(*args))]


CELL_CONSTRUCTIONS = [
    ((), {}),
    ((3,), {}),
    ((3, 4), {"dropout": 0.1}),
    ((3, 4, True, "tanh", None, None, 1), {}),
    ((3.0, 4), {}),
    ((-3, 4), {}),
    ((3, -4), {}),
    ((3, "4"), {}),
    ((3, 4), {"dtype": torch.int64}),
    ((3, 4), {"device": "nowhere"}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("args", "kwargs"), CELL_CONSTRUCTIONS, ids=str)
def test_cell_constructor_raises_torchs_errors(args, kwargs, kind):
    theirs, ours = getattr(nn, f"{kind}Cell"), getattr(rnn_ext, f"{kind}Cell")
    assert_same_failure(lambda: ours(*args, **kwargs), lambda: theirs(*args, **kwargs))


BAD_CELL_CALLS = {
    "no input": lambda: (),
    "0-D input": lambda: (zeros(()),),
    "3-D input": lambda: (zeros(1, 2, 3),),
    "input size": lambda: (zeros(2, 5),),
    "unbatched input size": lambda: (zeros(5),),
    "3-D hx": lambda: (zeros(2, 3), zeros(1, 2, 4)),
    "0-D hx": lambda: (zeros(2, 3), zeros(())),
    "hx of another hidden size": lambda: (zeros(2, 3), zeros(2, 5)),
    "hx of another batch": lambda: (zeros(2, 3), zeros(3, 4)),
    "hx of batch one": lambda: (zeros(2, 3), zeros(1, 4)),
    "2-D hx for 1-D input": lambda: (zeros(3), zeros(1, 4)),
    "1-D hx for 2-D input": lambda: (zeros(2, 3), zeros(4)),
    "input dtype": lambda: (zeros(2, 3, dtype=torch.float64),),
    "integer input": lambda: (zeros(2, 3, dtype=torch.int64),),
    "hx dtype": lambda: (zeros(2, 3), zeros(2, 4, dtype=torch.float64)),
    "input device": lambda: (zeros(2, 3, device="meta"),),
    "hx device": lambda: (zeros(2, 3), zeros(2, 4, device="meta")),
    "list": lambda: ([1.0, 2.0, 3.0],),
    "None": lambda: (None,),
    "hx tuple": lambda: (zeros(2, 3), (zeros(2, 4),)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", BAD_CELL_CALLS.values(), ids=BAD_CELL_CALLS)
def test_cell_raises_torchs_errors(arguments, kind):
    theirs, ours = twins(3, 4, kind=f"{kind}Cell")
    args = paired(arguments(), kind)
    assert_same_failure(partial(ours, *args), partial(theirs, *args))


BAD_CELL_PAIRS = {
    "hx is a tensor": lambda: (zeros(2, 3), zeros(2, 4)),
    "hx is both in one tensor": lambda: (zeros(2, 3), zeros(2, 2, 4)),
    "hx is three": lambda: (zeros(2, 3), (zeros(2, 4),) * 3),
    "hx has None": lambda: (zeros(2, 3), (zeros(2, 4), None)),
    "cx dims": lambda: (zeros(2, 3), (zeros(2, 4), zeros(1, 2, 4))),
    "cx of another batch": lambda: (zeros(2, 3), (zeros(2, 4), zeros(3, 4))),
    "cx of another hidden size": lambda: (zeros(2, 3), (zeros(2, 4), zeros(2, 5))),
    "cx dtype": lambda: (zeros(2, 3), (zeros(2, 4), zeros(2, 4).double())),
}


@pytest.mark.parametrize("arguments", BAD_CELL_PAIRS.values(), ids=BAD_CELL_PAIRS)
def test_lstm_cell_raises_torchs_errors_for_wrong_pairs_of_states(arguments):
    theirs, ours = twins(3, 4, kind="LSTMCell")
    args = arguments()
    assert_same_outcome(partial(ours, *args), partial(theirs, *args))


def test_cell_of_unknown_nonlinearity_fails_in_forward_like_nn_rnn_cell():
    ours = rnn_ext.RNNCell(3, 4, nonlinearity="gelu")
    theirs = nn.RNNCell(3, 4, nonlinearity="gelu")
    assert repr(ours) == repr(theirs)
    assert_same_failure(lambda: ours(zeros(2, 3)), lambda: theirs(zeros(2, 3)))


def refusal(call):
    """The text of the error that the functional form raises."""
    result = outcome(call)
    assert result.error in (ValueError, RuntimeError, TypeError), result
    return result.text


def weights_of(num_layers=2):
    return [p.detach() for p in nn.RNN(3, 4, num_layers).parameters()]


FUNCTIONAL_MISTAKES = {
    "input dimensions": (
        lambda: rnn_ext.functional.rnn(zeros(1, 5, 2, 3), None, weights_of(), num_layers=2),
        ("input",),
    ),
    "hx shape": (
        lambda: rnn_ext.functional.rnn(zeros(5, 7, 3), zeros(2, 6, 4), weights_of(), num_layers=2),
        ("hx", "2, 7, 4", "2, 6, 4"),
    ),
    "hx dtype": (
        lambda: rnn_ext.functional.rnn(
            zeros(5, 2, 3), zeros(2, 2, 4).double(), weights_of(), num_layers=2
        ),
        ("hx", "float64", "float32"),
    ),
    "weight count": (
        lambda: rnn_ext.functional.rnn(zeros(5, 2, 3), None, weights_of()[:-1], num_layers=2),
        ("weights", "8", "7"),
    ),
    "first weight against input": (
        lambda: rnn_ext.functional.rnn(zeros(5, 2, 9), None, weights_of(), num_layers=2),
        ("9", "3"),
    ),
    "recurrent weight shape": (
        lambda: rnn_ext.functional.rnn(
            zeros(5, 2, 3), None, [zeros(4, 3), zeros(4, 5), zeros(4), zeros(4)]
        ),
        ("weights[1]", "4, 5"),
    ),
    "second layer's input weight": (
        lambda: rnn_ext.functional.rnn(
            zeros(5, 2, 3),
            None,
            [zeros(4, 3), zeros(4, 4), zeros(4, 3), zeros(4, 4)],
            num_layers=2,
            bias=False,
        ),
        ("weight", "4, 4", "4, 3"),
    ),
    "bias shape": (
        lambda: rnn_ext.functional.rnn(
            zeros(5, 2, 3), None, [zeros(4, 3), zeros(4, 4), zeros(4), zeros(6)]
        ),
        ("4,", "6,"),
    ),
    "weight dtype": (
        lambda: rnn_ext.functional.rnn(
            zeros(5, 2, 3), None, [w.double() for w in weights_of()], num_layers=2
        ),
        ("weight", "float64", "float32"),
    ),
    "nonlinearity": (
        lambda: rnn_ext.functional.rnn(
            zeros(5, 2, 3), None, weights_of(), num_layers=2, nonlinearity="gelu"
        ),
        ("nonlinearity", "gelu", "tanh", "relu"),
    ),
    "dropout": (
        lambda: rnn_ext.functional.rnn(
            zeros(5, 2, 3), None, weights_of(), num_layers=2, dropout=1.5, training=True
        ),
        ("dropout", "1.5"),
    ),
    "batch_sizes dtype": (
        lambda: rnn_ext.functional.rnn(
            zeros(3, 3),
            None,
            weights_of(),
            num_layers=2,
            batch_sizes=torch.tensor([2, 1], dtype=torch.int32),
        ),
        ("batch_sizes", "int64", "int32"),
    ),
    "batch_sizes sum": (
        lambda: rnn_ext.functional.rnn(
            zeros(4, 3), None, weights_of(), num_layers=2, batch_sizes=torch.tensor([2, 1])
        ),
        ("batch_sizes", "3", "4"),
    ),
    "batch_sizes growing": (
        lambda: rnn_ext.functional.rnn(
            zeros(3, 3), None, weights_of(), num_layers=2, batch_sizes=torch.tensor([1, 2])
        ),
        ("batch_sizes",),
    ),
    "batch_sizes with a zero": (
        lambda: rnn_ext.functional.rnn(
            zeros(2, 3), None, weights_of(), num_layers=2, batch_sizes=torch.tensor([2, 0])
        ),
        ("batch_sizes",),
    ),
    "batch_sizes negative": (
        lambda: rnn_ext.functional.rnn(
            zeros(1, 3), None, weights_of(), num_layers=2, batch_sizes=torch.tensor([2, -1])
        ),
        ("batch_sizes",),
    ),
    "batch_sizes empty": (
        lambda: rnn_ext.functional.rnn(
            zeros(0, 3),
            None,
            weights_of(),
            num_layers=2,
            batch_sizes=torch.empty(0, dtype=torch.int64),
        ),
        ("batch_sizes",),
    ),
    "packed hx shape": (
        lambda: rnn_ext.functional.rnn(
            zeros(3, 3),
            zeros(2, 5, 4),
            weights_of(),
            num_layers=2,
            batch_sizes=torch.tensor([2, 1]),
        ),
        ("hx", "2, 2, 4", "2, 5, 4"),
    ),
    "cell hx shape": (
        lambda: rnn_ext.functional.rnn_cell(zeros(2, 3), zeros(5, 4), *weights_of(1)),
        ("hx", "2, 4", "5, 4"),
    ),
    "cell weight shape": (
        lambda: rnn_ext.functional.rnn_cell(zeros(2, 3), None, zeros(4, 3), zeros(4, 5)),
        ("weight_hh", "4, 5"),
    ),
    "cell bias shape": (
        lambda: rnn_ext.functional.rnn_cell(
            zeros(2, 3), None, zeros(4, 3), zeros(4, 4), zeros(4), zeros(6)
        ),
        ("bias_hh", "4,", "6,"),
    ),
    "cell nonlinearity": (
        lambda: rnn_ext.functional.rnn_cell(
            zeros(2, 3), None, zeros(4, 3), zeros(4, 4), nonlinearity="gelu"
        ),
        ("nonlinearity", "gelu", "tanh", "relu"),
    ),
}


@pytest.mark.parametrize(("call", "words"), FUNCTIONAL_MISTAKES.values(), ids=FUNCTIONAL_MISTAKES)
def test_functional_error_names_the_argument_the_expected_and_the_actual(call, words):
    text = refusal(call)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_functional_without_time_steps_fails_like_nn_rnn():
    module = nn.RNN(3, 4)
    assert_same_failure(
        lambda: rnn_ext.functional.rnn(zeros(0, 2, 3), None, list(module.parameters())),
        lambda: module(zeros(0, 2, 3)),
    )
