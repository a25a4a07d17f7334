"""The table of features in the documentation: links lead to tests, and its "no" of nn.RNN hold.

A test that fails here after an update of torch means that a "no" has become a "yes".
"""

import re
from pathlib import Path

import pytest
import torch
from support import same_bits
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

ROOT = Path(__file__).resolve().parents[1]
ROWS = re.findall(
    r"^\| (.+?) \| (.*?) ?\| (.*?) ?\| (.*?) \|$",
    (ROOT / "docs" / "compatibility.md").read_text(),
    re.M,
)
TABLE = {name: cells for name, *cells in ROWS if "](../tests/" in cells[2]}

X = torch.randn(4, 3, 5)


def test_every_cell_links_to_a_test_that_exists():
    assert len(TABLE) >= 15
    for feature, cells in TABLE.items():
        assert re.match(r"\[(yes|no)\]\(\.\./tests/", cells[2]), f"{feature}: no test shows it"
        assert not cells[0].startswith("no"), f"{feature}: no test shows it"
        for file, name in re.findall(r"\]\(\.\./(tests/\S+) \"(\w+)\"\)", " ".join(cells)):
            assert f"def {name}(" in (ROOT / file).read_text(), f"{feature}: {file} lacks {name}"


def test_nn_rnn_has_no_vmap_over_inputs():
    module = nn.RNN(5, 6)
    with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::rnn_tanh"):
        vmap(lambda x: module(x[:, None])[0], 1)(X)


def test_nn_rnn_has_no_vmap_over_weights():
    models = [nn.RNN(5, 6) for _ in range(2)]
    parameters, _ = stack_module_state(models)
    with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::rnn_tanh"):
        vmap(lambda p: functional_call(models[0], p, (X,))[0])(parameters)


def test_nn_rnn_has_no_per_sample_gradients():
    module = nn.RNN(5, 6)
    gradient = grad(lambda p, x: functional_call(module, p, (x[:, None],))[0].sum())
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        vmap(gradient, (None, 1))(parameters, X)


def test_nn_rnn_does_not_compile_in_one_graph():
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(nn.RNN(5, 6), fullgraph=True, backend="eager")(X)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_nn_rnn_exports_for_one_length(strict):
    sizes = {0: torch.export.Dim("seq_len"), 1: torch.export.Dim("batch")}
    with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
        torch.export.export(nn.RNN(5, 6), (X,), dynamic_shapes=(sizes,), strict=strict)


def test_a_row_of_nn_rnn_depends_on_the_batch():
    """In at least one of these sizes: the order of its sums depends on the shapes."""
    same = []
    for hidden_size in (65, 129, 257):
        module, x = nn.RNN(65, hidden_size), torch.randn(9, 33, 65)
        same.append(same_bits(module(x[:, :1])[0], module(x)[0][:, :1]))
    assert not all(same)
