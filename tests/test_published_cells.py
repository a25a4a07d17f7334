"""Published cells beside the package torchrecurrent; needs it (`make test-extras`)."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.published.weights import PUBLISHED, as_ours

torchrecurrent = pytest.importorskip("torchrecurrent")

SIZE = 5  # of input and state: one of the cells needs them to be the same


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_and_gradients_are_torchrecurrents(name):
    torch.manual_seed(0)
    theirs = getattr(torchrecurrent, name)(SIZE, SIZE).double()
    for parameter in theirs.parameters():
        torch.nn.init.uniform_(parameter, -0.7, 0.7)  # biases too, which start as zeros
    ours = as_ours(PUBLISHED[name], theirs)
    x = torch.randn(6, 3, SIZE, dtype=torch.float64).requires_grad_()
    tensors = [x, *theirs.parameters()]
    grad = torch.randn(6, 3, SIZE, dtype=torch.float64)
    results = []
    for layer in (lambda x: theirs(x)[0], ours):
        output = layer(x)
        found = torch.autograd.grad(output, tensors, grad, allow_unused=True)
        results.append([output, *found])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert (actual is None) == (expected is None)
        # float64: sums in another order, over six steps, functions of at most 2 ulp. Torch's
        # hardsigmoid multiplies by 1 / 6 in float32.
        rtol = 1e-6 if name in ("SGU", "DSGU") else 1e-10
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol / 100)


PAGE = Path(__file__).parents[1] / "docs" / "published-cells.md"
ROW = re.compile(r"^\| \[(\w+)\]\(https.*\) \| (\d) \|", re.MULTILINE)


def test_the_page_lists_all_cells_and_their_products():
    listed = dict(ROW.findall(PAGE.read_text(encoding="utf-8")))
    cells = {name.removesuffix("Cell") for name in torchrecurrent.__all__ if "Cell" in name}
    assert {*listed} == cells
    assert {*PUBLISHED} == cells
    for name, products in listed.items():
        assert len(PUBLISHED[name].cell.products) == max(1, int(products)), name
