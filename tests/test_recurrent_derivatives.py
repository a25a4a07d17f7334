"""Derivatives of ``Recurrent``, in reverse and forward mode, of derivatives, and under vmap."""

import pytest
import torch
from support.programs import as_argument
from support.recurrent import ALL, BATCH, HIDDEN, INPUT, SEQ_LEN, SMOOTH, layer_of, operands, states
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from rnn_ext import cells

BATCH_SIZES = torch.tensor([4, 4, 3, 1])
PACKED_ROWS = 12


@pytest.mark.parametrize("cell", SMOOTH, ids=lambda c: c.name)
def test_gradcheck_and_gradgradcheck(cell):
    layer = layer_of(cell)
    x = torch.randn(3, 2, INPUT).double().requires_grad_()
    hx = states(cell, 1, 2)
    tensors = [x, *(hx if cell.states else (hx,)), *operands(cell, 3, 2).values()]
    for t in tensors:
        t.requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def call(*tensors):
        x, *rest = tensors
        count = 1 + len(cell.states)
        hx = tuple(rest[:count]) if cell.states else rest[0]
        inputs = dict(zip(cell.inputs, rest[count:], strict=False))
        weights = dict(zip(names, rest[count + len(inputs) :], strict=True))
        return torch.func.functional_call(
            layer, weights, (x, hx), {"return_states": True, **inputs}
        )

    everything = [*tensors, *(p.detach().requires_grad_() for p in layer.parameters())]
    assert torch.autograd.gradcheck(call, everything, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, everything, fast_mode=True)


def test_second_derivatives_of_an_initial_state_made_from_the_input():
    layer = layer_of(cells.gru)
    x = torch.randn(3, 2, INPUT).double().requires_grad_()

    def call(x):
        h = x.sum((0, 2)).view(1, 2, 1).expand(1, 2, HIDDEN)
        return layer(x, h)[0]

    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


@pytest.mark.parametrize(
    "cell", [cells.gru, cells.gru_reset_before, cells.leaky_current], ids=lambda c: c.name
)
def test_transforms_give_the_same(cell):
    layer = layer_of(cell)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    x, noise = torch.randn(SEQ_LEN, BATCH, INPUT).double(), operands(cell, SEQ_LEN, 1)

    def loss(weights, x):
        output, *_ = torch.func.functional_call(layer, weights, (x,), noise)
        return output.sin().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 1))(weights, x.unsqueeze(2))
    tangents = {name: torch.randn_like(w) for name, w in weights.items()}
    _, forward = torch.func.jvp(lambda w: loss(w, x), (weights,), (tangents,))
    layer(x, **noise)[0].sin().sum().backward()
    expected = {name: p.grad for name, p in layer.named_parameters()}
    # float64, the samples' gradients summed in another order.
    for name, grad in per_sample.items():
        torch.testing.assert_close(grad.sum(0), expected[name], rtol=1e-10, atol=1e-12)
    total = sum((tangents[n] * g).sum() for n, g in expected.items() if g is not None)
    torch.testing.assert_close(forward, total, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["padded", "packed", "reset"])
@pytest.mark.parametrize("cell", ALL, ids=lambda c: c.name)
def test_forward_mode_is_the_transpose_of_backward(cell, form):
    """This defines the tangent of spiking cells too, whose gradient is a surrogate."""
    layer = layer_of(cell, num_layers=2, bidirectional=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    rows = (PACKED_ROWS,) if form == "packed" else (SEQ_LEN, BATCH)
    x, inputs = torch.randn(*rows, INPUT).double(), operands(cell, 4, *rows)
    counts = [1, 1 + len(cell.states), len(inputs), len(parameters)]
    hx = states(cell, 4, BATCH)
    tensors = [x, *(hx if cell.states else [hx]), *inputs.values(), *parameters]
    options = {}
    if form == "reset":
        options["reset"] = torch.rand(SEQ_LEN, BATCH) < 0.4
        state = states(cell, 4, BATCH)
        tensors += state if cell.states else [state]

    def call(*tensors):
        given = iter(tensors)
        (x,), hx, inputs, parameters = ([next(given) for _ in range(n)] for n in counts)
        x = PackedSequence(x, BATCH_SIZES) if form == "packed" else x
        own = dict(zip(cell.inputs, inputs, strict=True)) | options
        if form == "reset":
            own["reset_state"] = as_argument(list(given))
        weights = dict(zip(names, parameters, strict=True))
        output, *finals = torch.func.functional_call(layer, weights, (x, as_argument(hx)), own)
        return output.data if form == "packed" else output, *finals

    tensors = tuple(t.detach() for t in tensors)
    directions = tuple(map(torch.randn_like, tensors))
    results, tangents = torch.func.jvp(call, tensors, directions)
    for t in tensors:
        t.requires_grad_()
    outputs = call(*tensors)
    assert all(map(torch.equal, results, outputs))
    seeds = [torch.randn_like(r) for r in outputs]
    grads = torch.autograd.grad(outputs, tensors, seeds, materialize_grads=True)
    forward = sum((t * s).sum() for t, s in zip(tangents, seeds, strict=True))
    backward = sum((d * g).sum() for d, g in zip(directions, grads, strict=True))
    # float64; the terms of both sums are of size 1 and are added in another order.
    torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-9)


def test_derivatives_of_derivatives_under_torch_func():
    """Each way of differentiating twice, beside autograd of autograd."""
    layer = layer_of(cells.gru_reset_before)
    x, v = torch.randn(SEQ_LEN, BATCH, INPUT).double(), torch.randn(SEQ_LEN, BATCH, INPUT).double()

    def loss(x):
        return layer(x)[0].sin().sum()

    def slope(x):
        return (torch.func.grad(loss)(x) * v).sum()

    def along(x):
        return torch.func.jvp(loss, (x,), (v,))[1]

    found = [torch.func.grad(slope)(x), torch.func.grad(along)(x)]
    found.append(torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1])
    for function in (slope, along):  # plain autograd outside, as in meta-learning
        t = x.clone().requires_grad_()
        found.append(torch.autograd.grad(function(t), t)[0])
    t = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(t), t, create_graph=True)
    (expected,) = torch.autograd.grad((first * v).sum(), t)
    with forward_ad.dual_level():
        t = forward_ad.make_dual(x.clone().requires_grad_(), v)
        (gradient,) = torch.autograd.grad(loss(t), t, create_graph=True)
        found.append(forward_ad.unpack_dual(gradient).tangent)
    for second in found:
        # float64, the same sums in another order.
        torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-11)
