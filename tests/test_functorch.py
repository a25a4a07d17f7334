"""torch.func and forward-mode derivatives, against those of the reference loop."""

from collections import Counter

import pytest
import torch
from support import KINDS, assert_close_fp64, flat, layer_weights, leaves, twins
from support.ops import Ops
from support.reference import reference_layers, reference_rnn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from rnn_ext.functional import rnn, rnn_cell

NAMES = ("input", "hx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")


def primals():
    return [
        torch.randn(4, 3, 5, dtype=torch.float64),
        torch.randn(1, 3, 6, dtype=torch.float64),
        *layer_weights(5, 6, dtype=torch.float64),
    ]


def ours(x, hx, *weights):
    return rnn(x, hx, weights)


def reference(x, hx, *weights):
    return reference_rnn(x, hx, weights)


def loss(forward):
    def function(*tensors):
        output, h_n = forward(*tensors)
        return output.square().sum() + h_n.sum()

    return function


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_jvp_has_no_silent_zero_tangent(index):
    values = primals()
    tangents = [torch.zeros_like(t) for t in values]
    tangents[index] = torch.randn_like(values[index])

    def tangent(forward):
        results, derivatives = torch.func.jvp(forward, tuple(values), tuple(tangents))[:2]
        return [*results, *derivatives]

    assert tangent(reference)[2].any()
    assert_close_fp64(tangent(ours), tangent(reference))


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_dual_numbers_have_no_silent_zero_tangent(index, grad):
    values = [t.requires_grad_(grad) for t in primals()]
    direction = torch.randn_like(values[index])

    def tangent(forward):
        with forward_ad.dual_level():
            inputs = list(values)
            inputs[index] = forward_ad.make_dual(values[index], direction)
            parts = [forward_ad.unpack_dual(t) for t in forward(*inputs)]
            return [p.primal for p in parts] + [_or_zero(p) for p in parts]

    assert_close_fp64(tangent(ours), tangent(reference))


def _or_zero(dual):
    return torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent


def test_dual_numbers_through_module_and_cell():
    theirs, module = twins(5, 6, 2, dtype=torch.float64)
    x, direction = torch.randn(4, 3, 5).double(), torch.randn(4, 3, 5).double()
    weights = layer_weights(5, 6, dtype=torch.float64)

    def tangent(call):
        return list(torch.func.jvp(call, (x,), (direction,)))

    assert_close_fp64(tangent(lambda t: module(t)[0]), tangent(lambda t: theirs(t)[0]))
    assert_close_fp64(
        tangent(lambda t: rnn_cell(t[0], None, *weights)),
        tangent(lambda t: reference_rnn(t[:1], None, weights)[1][0]),
    )


def test_func_grad_and_vjp_are_right():
    values = tuple(primals())
    every = tuple(range(len(values)))
    assert_close_fp64(
        torch.func.grad(loss(ours), argnums=every)(*values),
        torch.func.grad(loss(reference), argnums=every)(*values),
    )
    results = []
    for forward in (ours, reference):
        (output, h_n), pullback = torch.func.vjp(forward, *values)[:2]
        results.append((output, h_n, *pullback((torch.ones_like(output), h_n))))
    assert_close_fp64(*results)


def test_func_grad_of_grad():
    values = tuple(primals())

    def curvature(forward):
        def slope(x):
            return torch.func.grad(lambda t: loss(forward)(t, *values[1:]))(x).square().sum()

        return [torch.func.grad(slope)(values[0])]

    assert_close_fp64(curvature(ours), curvature(reference))


@pytest.mark.parametrize(
    "in_dims",
    [
        (0, None, None, None, None, None),
        (None, 0, None, None, None, None),
        (None, None, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0),
        (1, 2, None, 1, None, 0),
    ],
    ids=str,
)
def test_vmap_is_right(in_dims):
    values = [
        t if dim is None else torch.stack([t, 2 * t, t - 1], dim=dim)
        for t, dim in zip(primals(), in_dims, strict=True)
    ]
    assert_close_fp64(
        torch.func.vmap(ours, in_dims)(*values), torch.func.vmap(reference, in_dims)(*values)
    )


def test_per_sample_gradients_are_right():
    x, hx, *weights = primals()

    def per_sample(forward):
        def one(row, state, *weights):
            return loss(forward)(row[:, None], state[:, None], *weights)

        every = tuple(range(2, 6))
        vectorized = torch.func.vmap(
            torch.func.grad(one, argnums=every), in_dims=(1, 1, None, None, None, None)
        )
        return vectorized(x, hx, *weights)

    assert_close_fp64(per_sample(ours), per_sample(reference))


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians_are_right(transform):
    x, hx, *weights = primals()
    assert_close_fp64(
        [transform(lambda t: ours(x, t, *weights)[1])(hx)],
        [transform(lambda t: reference(x, t, *weights)[1])(hx)],
    )


def test_batched_vector_jacobian_products_are_right():
    """torch.autograd.grad(is_grads_batched=True), which vmaps over backward."""
    values = leaves(*primals())

    def batched(forward):
        output, _ = forward(*values)
        rows = torch.eye(output.numel(), dtype=output.dtype)[:5].view(5, *output.shape)
        return torch.autograd.grad(output, values, rows, is_grads_batched=True)

    assert_close_fp64(batched(ours), batched(reference))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.func.hessian(f),
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
        lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
        lambda f: torch.func.vmap(torch.func.grad(torch.func.grad(lambda t: f(t[None]))), 0),
    ],
    ids=["hessian", "jacrev of jacrev", "jacrev of jacfwd", "vmap of grad of grad"],
)
def test_second_derivatives_are_right(transform):
    x, _, *weights = primals()
    index = torch.arange(4.0, dtype=torch.float64)

    def scaled(forward):
        return lambda t: loss(forward)(x * t.sum(), torch.zeros(1, 3, 6).double(), *weights)

    assert_close_fp64([transform(scaled(ours))(index)], [transform(scaled(reference))(index)])


PACKED = {"batch_sizes": torch.tensor([3, 2, 2, 1]), "bidirectional": True}


@pytest.mark.parametrize("transform", ["jvp", "vmap", "per sample"])
def test_packed_input_under_transforms(transform):
    values = [
        torch.randn(8, 5, dtype=torch.float64),
        torch.randn(2, 3, 6, dtype=torch.float64),
        *layer_weights(5, 6, bidirectional=True, dtype=torch.float64),
    ]

    def results(forward):
        def call(x, hx, *weights):
            return forward(x, hx, weights, **PACKED)

        if transform == "jvp":
            _, tangents = torch.func.jvp(call, tuple(values), tuple(map(torch.cos, values)))
            return tangents
        scales = torch.tensor([1.0, -2.0], dtype=torch.float64)
        if transform == "vmap":
            return torch.func.vmap(lambda s: call(s * values[0], *values[1:]))(scales)
        gradient = torch.func.grad(lambda w, s: loss(call)(s * values[0], values[1], *w), argnums=0)
        return torch.func.vmap(gradient, (None, 0))(values[2:], scales)

    assert_close_fp64(results(rnn), results(reference_rnn))


def named(**counts):
    return {f"rnn_ext::{name}": count for name, count in counts.items()}


def test_samples_share_one_call_of_each_kernel():
    x, _, *weights = primals()
    rows = x.transpose(0, 1).contiguous()
    gradient = torch.func.grad(lambda w, row: rnn(row[:, None], None, w)[0].square().sum())
    with Ops() as ops:
        torch.func.vmap(gradient, (None, 0))(weights, rows)
    assert ops.ours == named(_rnn_forward=1, _rnn_tangent=1)
    with Ops() as ops:
        torch.func.jvp(lambda t: rnn(t, None, weights), (x,), (x,))
    assert ops.ours == named(_rnn_forward=1, _rnn_tangent=1)


def test_double_backward_runs_fused_kernels_alone(node):
    x, *weights = leaves(primals()[0], *primals()[2:])
    output, _ = rnn(x, None, weights)
    with Ops() as ops:
        grads = torch.autograd.grad(output.square().sum(), [x, *weights], create_graph=True)
        sum(g.square().sum() for g in grads).backward()
    expected = Counter(_rnn_backward=2, _rnn_tangent=2)
    if node == "Python":
        # Its saved tensors have no graph, so it runs the layer again.
        expected += Counter(_rnn_forward=1, _rnn_backward=1)
    assert ops.ours == named(**expected)


@pytest.mark.parametrize("name", ["jvp", "grad", "vmap", "jacfwd", "hessian"])
def test_transforms_inside_torch_compile_are_right(name):
    """An opaque op has no tangent there, and torch raises no error."""
    x, _, *weights = primals()
    functions = {
        "jvp": lambda t: torch.func.jvp(lambda x: rnn(x, None, weights)[0], (t,), (t,))[1],
        "grad": torch.func.grad(lambda t: rnn(t, None, weights)[0].square().sum()),
        "vmap": torch.func.vmap(lambda t: rnn(t[:, None], None, weights)[0], 1),
        "jacfwd": torch.func.jacfwd(lambda t: rnn(t, None, weights)[1]),
        "hessian": torch.func.hessian(lambda t: rnn(t, None, weights)[1].square().sum()),
    }
    torch._dynamo.reset()
    graph = torch.compile(functions[name], fullgraph=True, backend="eager")
    result = graph(x)
    assert result.any()
    assert_close_fp64([result], [functions[name](x)])


def test_an_empty_batch_under_vmap():
    weights = layer_weights(5, 6)
    output, h_n = torch.func.vmap(lambda t: rnn(t, None, weights))(torch.zeros(3, 4, 0, 5))
    assert output.shape == (3, 4, 0, 6)
    assert h_n.shape == (3, 1, 0, 6)


@pytest.mark.parametrize("form", ["layer", "cell"])
def test_a_tensor_kept_from_a_transform_passes_its_gradient_on(form):
    kept = []

    def keep(t):
        kept.append(t)
        return t.sum()

    shape = (3, 5) if form == "cell" else (4, 3, 5)
    x, *weights = leaves(torch.randn(shape, dtype=torch.float64), *primals()[2:])
    torch.func.grad(keep)(x)

    def outputs(t):
        return rnn_cell(t, None, *weights) if form == "cell" else rnn(t, None, weights)[0]

    results = [torch.autograd.grad(outputs(t).square().sum(), [x, *weights]) for t in (kept[0], x)]
    assert_close_fp64(*results)


TRANSFORMS = {
    "jvp": lambda f, w, x: torch.func.jvp(lambda x: f(w, x), (x,), (x.cos(),))[1],
    "jvp of weights": lambda f, w, x: torch.func.jvp(lambda w: f(w, x), (w,), (w,))[1],
    "vmap": lambda f, w, x: torch.func.vmap(f, (None, 0))(w, torch.stack([x, 2 * x])),
    "vmap of weights": lambda f, w, x: torch.func.vmap(f, (0, None))(
        {name: torch.stack([p, 2 * p]) for name, p in w.items()}, x
    ),
    "per sample": lambda f, w, x: torch.func.vmap(
        torch.func.grad(lambda w, x: f(w, x[:, None]).square().sum()), (None, 1)
    )(w, x),
    "hessian": lambda f, w, x: torch.func.hessian(lambda s: f(w, s * x).square().sum())(x[0, 0, 0]),
    "functionalize": lambda f, w, x: torch.func.functionalize(f)(w, x),
}


@pytest.mark.parametrize("form", ["layer", "cell"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_modules_under_transforms_are_right(kind, transform, form):
    """Beside the reference, since torch's own modules lack rules for some of them."""
    name = f"{kind}Cell" if form == "cell" else kind
    _, module = twins(5, 6, kind=name, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def ours(w, x):
        results = flat(functional_call(module, w, (x if form == "layer" else x[0],)))
        return torch.cat([t.flatten() for t in results])

    def exact(w, x):
        output, *finals = reference_layers(
            x if form == "layer" else x[:1], [], list(w.values()), kind=kind
        )
        results = [output, *finals] if form == "layer" else finals
        return torch.cat([t.flatten() for t in results])

    found, expected = (TRANSFORMS[transform](f, weights, x) for f in (ours, exact))
    assert_close_fp64(tree_leaves(found), tree_leaves(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_batched_products_with_modules_gradients_are_torchs(kind):
    """torch.autograd.grad(is_grads_batched=True), of first and second order."""
    results = []
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(5, 4, 3, 6, dtype=torch.float64)
    for module in twins(5, 6, kind=kind, dtype=torch.float64):
        output = module(x)[0]
        wanted = [x, *module.parameters()]
        grads = torch.autograd.grad(output, wanted, rows, is_grads_batched=True, retain_graph=True)
        (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        second = torch.autograd.grad(first, wanted, rows[..., :5], is_grads_batched=True)
        results.append([*grads, *second])
    assert_close_fp64(results[1], results[0])
