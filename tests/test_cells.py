"""The cells that come with the package, by their programs, against a plain loop with autograd."""

import pytest
import torch
from programs import by_program, plain_loop, random_run

import rnn_ext
from rnn_ext import cells

CELLS = [name for name in cells.__all__ if isinstance(getattr(cells, name), rnn_ext.Cell)]


def assert_program_equals_loop(cell: rnn_ext.Cell) -> None:
    run = random_run(cell)
    expected = plain_loop(cell, run)
    grads = [torch.randn_like(x) for x in expected]
    differentiable = [(x, g) for x, g in zip(expected, grads, strict=True) if x.requires_grad]
    expected_grads = torch.autograd.grad(
        [x for x, _ in differentiable],
        run.tensors(),
        [g for _, g in differentiable],
        allow_unused=True,
        materialize_grads=True,
    )
    states, actual_grads = by_program(cell, run, grads)
    # Float64 with other roundings: about 50 of 1e-16 a step, five steps, each of which may double
    # an error or more.
    for actual, wanted in zip((*states, *actual_grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(actual, wanted.detach(), rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("name", CELLS)
def test_program_equals_plain_loop(name: str) -> None:
    assert_program_equals_loop(getattr(cells, name))
