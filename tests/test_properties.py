"""For any arguments, valid or not, rnn_ext does what torch does.

A failing example prints the line that replays it: `compare(nn.RNN, RNN, Call(...), ...)`.
"""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from support import ISA_LEVELS, KINDS, PLANS, outcome, using_isa, using_threads
from support.calls import Call, Data, largest, observe
from support.strategies import (
    cell_arguments,
    cell_calls,
    constructions,
    layer_arguments,
    layer_calls,
)
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnn_ext
from rnn_ext import RNN
from rnn_ext._core.dtypes import KERNEL_DTYPES

WIDE = {torch.float64, torch.complex128}


class FunctionalRNN(nn.RNN):
    """`nn.RNN`'s parameters, run by `rnn_ext.functional.rnn`."""

    def forward(self, input, hx=None):
        names = ("nonlinearity", "num_layers", "bias", "dropout", "training", "bidirectional")
        options = {name: getattr(self, name) for name in names}
        weights = [getattr(self, name) for name in self._flat_weights_names]
        if not isinstance(input, PackedSequence):
            options["batch_first"] = self.batch_first
            return rnn_ext.functional.rnn(input, hx, weights, **options)
        data, batch_sizes, sorted_indices, unsorted_indices = input
        hx = None if hx is None else self.permute_hidden(hx, sorted_indices)
        output, h_n = rnn_ext.functional.rnn(data, hx, weights, batch_sizes=batch_sizes, **options)
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self.permute_hidden(h_n, unsorted_indices)


def compare(theirs, ours, call, isa, split):
    """The same error and warnings, or the same results, gradients and other observations."""
    with using_threads(1):  # calls this small gain nothing from torch's own threads
        expected = observe(theirs, call)
    with using_isa(isa), using_threads(2 if split else 1, split):
        actual = observe(ours, call)
    if ours is FunctionalRNN and actual.outcome.error in (ValueError, TypeError):
        # Its own messages, and stricter checks: torch sometimes promotes dtypes, and ignores rows.
        assert "\n" not in actual.outcome.text
        is_uniform = len(call.dtypes) == len(call.devices) == 1
        assert expected.outcome.error or not is_uniform or not call.fits_packing
        return
    assert actual.outcome == expected.outcome
    assert actual.facts == expected.facts
    assert actual.contiguous >= expected.contiguous
    if len(call.devices) > 1:
        return  # torch lets some such calls pass to its meta kernels, which compute no values
    different = [name for name, b in expected.values.items() if not equal(actual.values[name], b)]
    with using_threads(1):
        exact = observe(theirs, call, exact=True) if different and call.dtypes - WIDE else None
    for name in different:
        assert_close(name, actual.values[name], expected.values[name], exact)


def assert_close(name, a, b, exact):
    """The contract's bounds on single tensors: `a` is ours, `b` torch's."""
    same = equal(non_finite(a), non_finite(b))
    if b.dtype == torch.bfloat16 and not same:
        # On a CPU with AMX, in backward of a packed nn.GRU of 33 units, the NaN of one sequence
        # reaches the other, which does not depend on it.
        same = equal(non_finite(a), non_finite(exact.values[name]))
    assert same, f"{name}: other NaN or inf"
    if exact is None:
        error, bound = largest(a - b), 1e-9 * largest(b)
    else:
        eps = torch.finfo(b.dtype).eps
        if name.startswith("grad_") and exact.nearest_to_kink < 32 * eps:
            return  # if relu's argument is within rounding of 0, either gradient is right
        error, theirs = (largest(t.double() - exact.values[name]) for t in (a, b))
        # Fewer eps for half precision, where 64 would let a missing term pass.
        bound = 8 * theirs + (64 if b.dtype == torch.float32 else 8) * eps * exact.scales[name]
    assert error <= bound, f"{name}: off by {error}, allowed {bound}"


def non_finite(t):
    """The tensor's NaN and inf in float64, 0 elsewhere."""
    return t.where(~t.isfinite(), 0).double()


def equal(a, b):
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def compare_constructions(theirs, ours, arguments):
    """The same error and warnings, or equal modules that accept the same input."""
    seen = []
    for cls in (theirs, ours):
        traits = {}
        seen += [outcome(lambda: _construct(cls, arguments, traits)), traits]  # noqa: B023
    assert seen[2:] == seen[:2]


def _construct(cls, arguments, traits):
    torch.manual_seed(0)
    module = cls(*arguments[0], **arguments[1])
    traits["repr"] = repr(module)
    traits["attributes"] = {n: v for n, v in vars(module).items() if not n.startswith("_")}
    for name, p in module.named_parameters():
        traits[name] = (p.shape, p.dtype, p.device, None if p.is_meta else p.tolist())
    module(module.get_parameter(name).new_zeros(3, module.input_size))


CALLS = [
    pytest.param(getattr(nn, name), getattr(rnn_ext, name), calls, id=name)
    for kind in KINDS
    for name, calls in ((kind, layer_calls(kind, True)), (f"{kind}Cell", cell_calls(kind)))
]
# It has no attributes: the weights themselves say what they are.
CALLS += [pytest.param(nn.RNN, FunctionalRNN, layer_calls("RNN", False), id="functional")]
CONSTRUCTIONS = [
    pytest.param(getattr(nn, name), getattr(rnn_ext, name), constructions(arguments), id=name)
    for kind in KINDS
    for name, arguments in ((kind, layer_arguments(kind)), (f"{kind}Cell", cell_arguments(kind)))
]


def in_every_run(examples):
    """The same examples in every run."""
    return settings(derandomize=True, max_examples=examples, deadline=None, print_blob=True)


def exploring(examples):
    """Different examples in every run, after those that failed in earlier ones."""
    patient = [HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, print_blob=True, suppress_health_check=patient
    )


def check_call(theirs, ours, data, calls):
    call = data.draw(calls)
    is_bfloat16_lstm = theirs is nn.LSTM and call.kwargs["dtype"] == torch.bfloat16
    assume(not is_bfloat16_lstm or "bias" not in call.attributes)  # oneDNN corrupts the heap
    isa = data.draw(st.sampled_from(ISA_LEVELS))
    # A plan changes nothing for torch's own op, and a second thread makes calls this small slow.
    has_plan = call.kwargs["dtype"] in KERNEL_DTYPES
    split = data.draw(st.sampled_from(PLANS)) if has_plan else None
    names = f"nn.{theirs.__name__}, {ours.__name__}"
    note(f"replay: compare({names}, {call}, {isa!r}, {split!r})")
    compare(theirs, ours, call, isa, split)


X, PACKED = Data((5, 2, 3)), Data((5, 3))
ONCE_DIFFERENT = [
    Call((3, 4), {}, X, attributes={"mode": "RNN_RELU"}),
    Call((3, 4), {}, X, attributes={"nonlinearity": "relu"}),
    Call((3, 4), {}, X, attributes={"mode": "LSTM"}),
    Call((3, 4), {}, X, attributes={"num_layers": 2}),
    Call((3, 4), {}, X, attributes={"bias": False}),
    Call((3, 4), {}, X, attributes={"bias": 1}),
    Call((3, 4), {}, X, attributes={"batch_first": 1}),
    Call((3, 4), {}, PACKED, lengths=(3, 2), attributes={"batch_first": 1}),
    Call((3, 4), {}, X, attributes={"hidden_size": 5}),
    Call((3, 4), {}, X, attributes={"training": None}),
    Call((3, 4), {"bidirectional": 1}, X),
    Call((3, 4, True), {}, X),
    Call((3, 4), {}, Data((5, 1, 3), torch.int64), lengths=(3, 2)),
    Call((1, 1), {"batch_first": True, "bias": False}, Data((2, 1)), weights={0: "wider"}),
    Call((1, 1, 1, "tanh", False, True), {}, Data((2, 1)), weights={0: "wider"}, frozen=(0,)),
    Call((3, 4), {}, PACKED, lengths=(3, 3)),
    Call((3, 4), {}, PACKED, lengths=(2, 2)),
]


@pytest.mark.parametrize("call", ONCE_DIFFERENT, ids=range(len(ONCE_DIFFERENT)))
def test_past_failures_do_what_they_do_in_torch(call):
    compare(nn.RNN, RNN, call, ISA_LEVELS[0], None)


@pytest.mark.parametrize(("theirs", "ours", "calls"), CALLS)
@in_every_run(500)
@given(data=st.data())
def test_a_call_does_what_it_does_in_torch(theirs, ours, calls, data):
    check_call(theirs, ours, data, calls)


@pytest.mark.parametrize(("theirs", "ours", "arguments"), CONSTRUCTIONS)
@in_every_run(500)
@given(data=st.data())
def test_a_construction_does_what_it_does_in_torch(theirs, ours, arguments, data):
    compare_constructions(theirs, ours, data.draw(arguments))


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours", "calls"), CALLS)
@exploring(10_000)
@given(data=st.data())
def test_any_call_does_what_it_does_in_torch(theirs, ours, calls, data):
    check_call(theirs, ours, data, calls)


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours", "arguments"), CONSTRUCTIONS)
@exploring(10_000)
@given(data=st.data())
def test_any_construction_does_what_it_does_in_torch(theirs, ours, arguments, data):
    compare_constructions(theirs, ours, data.draw(arguments))
