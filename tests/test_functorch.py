"""torch.func and forward-mode derivatives: right, or an error; never silently wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import reference_rnn
from support import assert_close_fp64, layer_weights, leaves, twins
from torch import Tensor
from torch.autograd import forward_ad

from rnn_ext.functional import rnn, rnn_cell

NAMES = ("input", "hx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")


def primals() -> list[Tensor]:
    return [
        torch.randn(4, 3, 5, dtype=torch.float64),
        torch.randn(1, 3, 6, dtype=torch.float64),
        *layer_weights(5, 6, dtype=torch.float64),
    ]


def ours(x: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return rnn(x, hx, weights)


def reference(x: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return reference_rnn(x, hx, weights)


def right_or_refused(actual: Callable[[], Any], expected: Callable[[], Any]) -> None:
    """Compares with the reference, unless the transform is refused in so many words."""
    wanted = expected()
    try:
        results = actual()
    except (RuntimeError, NotImplementedError) as error:
        assert str(error)  # noqa: PT017
        return
    assert_close_fp64(results, wanted)


def loss(forward: Callable[..., Any]) -> Callable[..., Tensor]:
    def function(*tensors: Tensor) -> Tensor:
        output, h_n = forward(*tensors)
        return output.square().sum() + h_n.sum()

    return function


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_jvp_has_no_silent_zero_tangent(index: int) -> None:
    values = primals()
    tangents = [torch.zeros_like(t) for t in values]
    tangents[index] = torch.randn_like(values[index])

    def tangent(forward: Callable[..., Any]) -> list[Tensor]:
        results, derivatives = torch.func.jvp(forward, tuple(values), tuple(tangents))[:2]
        return [*results, *derivatives]

    assert tangent(reference)[2].any()
    right_or_refused(lambda: tangent(ours), lambda: tangent(reference))


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_dual_numbers_have_no_silent_zero_tangent(index: int, grad: bool) -> None:
    values = [t.requires_grad_(grad) for t in primals()]
    direction = torch.randn_like(values[index])

    def tangent(forward: Callable[..., Any]) -> list[Tensor]:
        with forward_ad.dual_level():
            inputs = list(values)
            inputs[index] = forward_ad.make_dual(values[index], direction)
            parts = [forward_ad.unpack_dual(t) for t in forward(*inputs)]
            return [p.primal for p in parts] + [_or_zero(p) for p in parts]

    right_or_refused(lambda: tangent(ours), lambda: tangent(reference))


def _or_zero(dual: Any) -> Tensor:
    return torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent


def test_dual_numbers_through_module_and_cell() -> None:
    theirs, module = twins(5, 6, 2, dtype=torch.float64)
    x, direction = torch.randn(4, 3, 5).double(), torch.randn(4, 3, 5).double()
    weights = layer_weights(5, 6, dtype=torch.float64)

    def tangent(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return list(torch.func.jvp(call, (x,), (direction,)))

    right_or_refused(
        lambda: tangent(lambda t: module(t)[0]), lambda: tangent(lambda t: theirs(t)[0])
    )
    right_or_refused(
        lambda: tangent(lambda t: rnn_cell(t[0], None, *weights)),
        lambda: tangent(lambda t: reference_rnn(t[:1], None, weights)[1][0]),
    )


def test_func_grad_and_vjp_are_right() -> None:
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


def test_func_grad_of_grad() -> None:
    values = tuple(primals())

    def curvature(forward: Callable[..., Any]) -> list[Tensor]:
        def slope(x: Tensor) -> Tensor:
            return torch.func.grad(lambda t: loss(forward)(t, *values[1:]))(x).square().sum()

        return [torch.func.grad(slope)(values[0])]

    right_or_refused(lambda: curvature(ours), lambda: curvature(reference))


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
def test_vmap_is_right_or_refused(in_dims: tuple[int | None, ...]) -> None:
    values = [
        t if dim is None else torch.stack([t, 2 * t, t - 1], dim=dim)
        for t, dim in zip(primals(), in_dims, strict=True)
    ]
    right_or_refused(
        lambda: torch.func.vmap(ours, in_dims)(*values),
        lambda: torch.func.vmap(reference, in_dims)(*values),
    )


def test_per_sample_gradients_are_right_or_refused() -> None:
    x, hx, *weights = primals()

    def per_sample(forward: Callable[..., Any]) -> Any:
        def one(row: Tensor, state: Tensor, *weights: Tensor) -> Tensor:
            return loss(forward)(row[:, None], state[:, None], *weights)

        every = tuple(range(2, 6))
        vectorized = torch.func.vmap(
            torch.func.grad(one, argnums=every), in_dims=(1, 1, None, None, None, None)
        )
        return vectorized(x, hx, *weights)

    right_or_refused(lambda: per_sample(ours), lambda: per_sample(reference))


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians_are_right_or_refused(transform: Callable[..., Any]) -> None:
    x, hx, *weights = primals()
    right_or_refused(
        lambda: [transform(lambda t: ours(x, t, *weights)[1])(hx)],
        lambda: [transform(lambda t: reference(x, t, *weights)[1])(hx)],
    )


def test_batched_vector_jacobian_products_are_right_or_refused() -> None:
    """torch.autograd.grad(is_grads_batched=True), which vmaps over backward."""
    values = leaves(*primals())

    def batched(forward: Callable[..., Any]) -> Any:
        output, _ = forward(*values)
        rows = torch.eye(output.numel(), dtype=output.dtype)[:5].view(5, *output.shape)
        return torch.autograd.grad(output, values, rows, is_grads_batched=True)

    right_or_refused(lambda: batched(ours), lambda: batched(reference))


@pytest.mark.parametrize("form", ["layer", "cell"])
def test_a_tensor_kept_from_a_transform_passes_its_gradient_on(form: str) -> None:
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t.sum()

    shape = (3, 5) if form == "cell" else (4, 3, 5)
    x, *weights = leaves(torch.randn(shape, dtype=torch.float64), *primals()[2:])
    torch.func.grad(keep)(x)

    def outputs(t: Tensor) -> Tensor:
        return rnn_cell(t, None, *weights) if form == "cell" else rnn(t, None, weights)[0]

    results = [torch.autograd.grad(outputs(t).square().sum(), [x, *weights]) for t in (kept[0], x)]
    assert_close_fp64(*results)
