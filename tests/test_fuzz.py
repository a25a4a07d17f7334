"""Any valid call of a layer, of any cell and under any transform, gives what a plain loop gives.

A failure prints the line that replays it: `check(LayerCall(...))`. Hypothesis shrinks it first.
"""

import math

import pytest
import torch
from hypothesis import given, note
from support import using_isa, using_threads
from support.layer_calls import TRANSFORMS, LayerCall, Operands, layer_calls, transformed
from test_properties import exploring, in_every_run


def check(call):
    operands = Operands(call)
    ours, loop, tensors = operands.ours(), operands.loop(), operands.tensors
    with using_isa(call.isa), using_threads(2 if call.split else 1, call.split):
        actual = transformed(call, ours, tensors)
    with using_threads(1):
        exact = transformed(call, loop, [t.double() for t in tensors])
        # The loop in the dtype of the call rounds as torch does.
        theirs = exact if call.dtype == torch.float64 else transformed(call, loop, tensors)
    for index, (a, b, c) in enumerate(zip(actual, theirs, exact, strict=True)):
        assert a.shape == b.shape, f"tensor {index}"
        assert a.dtype == call.dtype, f"tensor {index}"
        error, of_loop = ((t.double() - c).abs().max().item() for t in (a, b))
        scale = max(c.abs().max().item(), 1e-3)
        eps = torch.finfo(call.dtype).eps
        # As the contract's bounds for nn.RNN in test_parity.py. A weight's gradient sums terms of
        # order 1 over all steps and rows. They may cancel, but not their rounding, which grows
        # with the root of their number.
        left = 2 * eps * math.sqrt(call.steps * call.batch)
        bound = 8 * of_loop + 64 * eps * scale + left
        if call.dtype == torch.float64:
            bound = 1e-9 * scale
        assert error <= bound, f"tensor {index}: off by {error}, allowed {bound}, scale {scale}"


@in_every_run(500)
@given(call=layer_calls())
def test_a_layer_gives_what_a_loop_gives(call):
    note(f"replay: check({call})")
    check(call)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("by", ["module", "Recurrent"])
def test_a_wrong_result_is_noticed(by, transform, monkeypatch):
    call = LayerCall(by, "lstm", 3, 2, 3, 5, bidirectional=True, reset="zeros", transform=transform)
    check(call)
    loop = Operands.loop
    monkeypatch.setattr(
        Operands,
        "loop",
        lambda self: lambda *tensors: [t * (1 + 1e-8) for t in loop(self)(*tensors)],
    )
    with pytest.raises(AssertionError, match="off by"):
        check(call)


@pytest.mark.slow
@exploring(20_000)
@given(call=layer_calls())
def test_any_layer_gives_what_a_loop_gives(call):
    note(f"replay: check({call})")
    check(call)
