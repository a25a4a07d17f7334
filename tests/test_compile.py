"""torch.compile, torch.export, torch.fx and tracing: graph capture only, no code is generated."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import assert_same_bits, leaves
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import rnn_ext


def compiled(module: nn.Module, dynamic: bool | None = None) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")


def step(
    call: Callable[..., Any], module: nn.Module, x: Tensor, hx: Tensor | None = None
) -> list[Tensor]:
    """Results and gradients of `call`, which is `module` or its compiled form."""
    x, hx = leaves(x, hx)
    output, h_n = call(x, hx)
    wanted = [x, *module.parameters(), *([] if hx is None else [hx])]
    loss = output.square().sum() + h_n.sum()
    return [output, h_n, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("given", [False, True], ids=["hx None", "hx given"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_compiles_without_graph_break_to_the_same_bits(batch_first: bool, given: bool) -> None:
    module = rnn_ext.RNN(5, 6, 2, bidirectional=True, batch_first=batch_first)
    x, hx = torch.randn(3, 3, 5), torch.randn(4, 3, 6) if given else None
    assert_same_bits(step(compiled(module), module, x, hx), step(module, module, x, hx))


def test_one_graph_serves_all_lengths_and_batches() -> None:
    module = rnn_ext.RNN(5, 6, 2)
    graph = compiled(module, dynamic=True)
    step(graph, module, torch.randn(4, 3, 5))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seq_len, batch in ((7, 3), (9, 5)):
            x = torch.randn(seq_len, batch, 5)
            assert_same_bits(step(graph, module, x), step(module, module, x))


def test_tied_weights_and_one_tensor_in_two_places_compile() -> None:
    module = rnn_ext.RNN(6, 6)
    module.weight_hh_l0 = module.weight_ih_l0
    x = torch.randn(1, 3, 6)
    graph = compiled(module)
    assert_same_bits(graph(x, x), module(x, x))
    assert_same_bits(step(graph, module, x, x), step(module, module, x, x))


def test_cell_compiles() -> None:
    cell = rnn_ext.RNNCell(5, 6)
    x, hx = torch.randn(3, 5), torch.randn(3, 6)
    assert_same_bits([compiled(cell)(x, hx)], [cell(x, hx)])


def test_exports_with_dynamic_length_and_batch() -> None:
    module = rnn_ext.RNN(5, 6, 2, bidirectional=True)
    sizes = {0: torch.export.Dim("seq_len"), 1: torch.export.Dim("batch")}
    program = torch.export.export(module, (torch.randn(4, 3, 5),), dynamic_shapes=(sizes,))
    x = torch.randn(8, 2, 5)
    assert_same_bits(program.module()(x), module(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_traces_for_other_lengths_and_saves_like_nn_rnn(grad: bool) -> None:
    module = rnn_ext.RNN(5, 6, 2)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(module, (torch.randn(4, 3, 5),))
        x = torch.randn(7, 2, 5)
        assert_same_bits(traced(x), module(x))
    torch.jit.save(traced, io.BytesIO())


class _Tagger(nn.Module):
    def __init__(self, rnn: nn.Module, cell: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.cell = cell

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        output, h_n = self.rnn(x, hx=hx)
        return self.cell(output[0]) + h_n[-1]


def test_fx_records_a_call_as_one_node_like_nn_rnn() -> None:
    theirs = torch.fx.symbolic_trace(_Tagger(nn.RNN(3, 4), nn.RNNCell(4, 4)))
    model = _Tagger(rnn_ext.RNN(3, 4), rnn_ext.RNNCell(4, 4))
    parametrizations.orthogonal(model.rnn, "weight_hh_l0")
    graph = torch.fx.symbolic_trace(model)
    assert [(n.op, n.target) for n in graph.graph.nodes] == [
        (n.op, n.target) for n in theirs.graph.nodes
    ]
    x, hx = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    assert_same_bits([graph(x), graph(x, hx)], [model(x), model(x, hx)])


def test_fx_refuses_to_look_into_a_forward_built_on_ours() -> None:
    class Doubled(rnn_ext.RNN):
        def forward(self, input: Any, hx: Any = None) -> Any:
            output, h_n = super().forward(input, hx)
            return 2 * output, h_n

    with pytest.raises(torch.fx.proxy.TraceError, match="forward of Doubled: trace it as a leaf"):
        torch.fx.symbolic_trace(nn.Sequential(Doubled(3, 4)))
