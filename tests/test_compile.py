"""Graph capture: torch.compile, torch.export, torch.fx and tracing.

Code is generated in test_inductor.py.
"""

import io

import pytest
import torch
from support import (
    KINDS,
    as_function,
    assert_like,
    assert_same_bits,
    flat,
    hx_of,
    layer_weights,
    leaves,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

import rnn_ext
from rnn_ext._core.call import Call
from rnn_ext._core.dispatch import Route
from rnn_ext._core.kinds import Kind
from rnn_ext._core.recurrence_layer import Recurrence
from rnn_ext.functional import rnn


def compiled(module, dynamic=None):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")


def step(call, module, x, hx=None):
    """Results and gradients of `call`, which is `module` or its compiled form."""
    x, *states = leaves(x, *([] if hx is None else flat(hx)))
    output, *finals = flat(call(x, tuple(states) if len(states) > 1 else (*states, None)[0]))
    loss = output.square().sum() + sum(t.sum() for t in finals)
    grads = torch.autograd.grad(loss, [x, *module.parameters(), *states])
    return [output, *finals, *grads]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("given", [False, True], ids=["hx None", "hx given"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_compiles_without_graph_break_to_the_same_bits(batch_first, given, kind):
    module = getattr(rnn_ext, kind)(5, 6, 2, bidirectional=True, batch_first=batch_first)
    x, hx = torch.randn(3, 3, 5), hx_of(kind, 4, 3, 6) if given else None
    assert_same_bits(step(compiled(module), module, x, hx), step(module, module, x, hx))


def test_one_graph_serves_all_lengths_and_batches(kind):
    module = getattr(rnn_ext, kind)(5, 6, 2)
    graph = compiled(module, dynamic=True)
    step(graph, module, torch.randn(4, 3, 5))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seq_len, batch in ((7, 3), (9, 5)):
            x = torch.randn(seq_len, batch, 5)
            assert_same_bits(step(graph, module, x), step(module, module, x))


def test_tied_weights_and_one_tensor_in_two_places_compile():
    module = rnn_ext.RNN(6, 6)
    module.weight_hh_l0 = module.weight_ih_l0
    x = torch.randn(1, 3, 6)
    graph = compiled(module)
    assert_same_bits(graph(x, x), module(x, x))
    assert_same_bits(step(graph, module, x, x), step(module, module, x, x))


def test_cell_compiles(kind):
    cell = getattr(rnn_ext, f"{kind}Cell")(5, 6)
    x, hx = torch.randn(3, 5), hx_of(kind, 3, 6)
    assert_same_bits(flat(compiled(cell)(x, hx)), flat(cell(x, hx)))


def test_no_graph_is_added_after_the_second_shape():
    module = rnn_ext.RNN(5, 6, 2, dropout=0.5)
    graph = compiled(module)
    for seq_len, batch in ((4, 3), (7, 5)):
        step(graph, module, torch.randn(seq_len, batch, 5), torch.randn(2, batch, 6))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seq_len, batch in ((9, 2), (2, 9)):
            step(graph, module, torch.randn(seq_len, batch, 5), torch.randn(2, batch, 6))


def test_packed_input_compiles_and_one_graph_serves_all_lengths(kind):
    module = getattr(rnn_ext, kind)(5, 6, 2, bidirectional=True)
    graph = compiled(module, dynamic=True)

    def results(call, lengths, given):
        (x,) = leaves(torch.randn(max(lengths), len(lengths), 5, generator=rng(0)))
        hx = hx_of(kind, 4, len(lengths), 6, generator=rng(1)) if given else None
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, *finals = flat(call(packed, hx))
        wanted = [x, *module.parameters()]
        return [output, *finals, *torch.autograd.grad(output.square().sum(), wanted)]

    for given in (False, True):
        for lengths in ([4, 1, 3], [2, 2], [1, 5, 5, 7]):
            with torch._dynamo.config.patch(error_on_recompile=len(lengths) > 3):
                assert_same_bits(results(graph, lengths, given), results(module, lengths, given))


def rng(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("given", [False, True], ids=["hx None", "hx given"])
def test_functional_form_compiles_with_batch_sizes(given):
    weights = layer_weights(5, 6)
    graph = compiled(lambda *args: rnn(*args[:2], weights, batch_sizes=args[2]))
    for sizes in ([3, 2, 1], [2, 2]):
        args = torch.randn(sum(sizes), 5), torch.randn(1, sizes[0], 6), torch.tensor(sizes)
        args = (args[0], args[1] if given else None, args[2])
        assert_same_bits(graph(*args), rnn(*args[:2], weights, batch_sizes=args[2]))
    refused = (torch.randn(4, 5), torch.randn(1, 2, 6), torch.tensor([1, 3]))
    with pytest.raises(RuntimeError, match="batch_sizes must be positive and must not increase"):
        graph(*refused)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_exports_with_dynamic_length_and_batch_and_survives_a_file(batch_first, strict, kind):
    module = getattr(rnn_ext, kind)(5, 6, 2, bidirectional=True, batch_first=batch_first)
    seq_len, batch = torch.export.Dim("seq_len"), torch.export.Dim("batch")
    args = torch.randn(3, 4, 5) if batch_first else torch.randn(4, 3, 5), hx_of(kind, 4, 3, 6)
    sizes = ({0: batch, 1: seq_len} if batch_first else {0: seq_len, 1: batch},)
    sizes += (tree_map(lambda _: {1: batch}, args[1]),)
    program = torch.export.export(module, args, dynamic_shapes=sizes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    x, hx = torch.randn(2, 2, 5), hx_of(kind, 4, 2, 6)
    assert_same_bits(flat(loaded.module()(x, hx)), flat(module(x, hx)))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_forward_and_backward_as_one_op_each(mode, kind):
    module = getattr(rnn_ext, kind)(5, 6)

    def gradient(x, *weights):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(as_function(module)(x, *weights)[0].sum(), x)[0]

    args = torch.randn(4, 3, 5), *(p.detach() for p in module.parameters())
    graph = make_fx(gradient, tracing_mode=mode)(*args)
    ops = [str(node.target) for node in graph.graph.nodes if "rnn_ext" in str(node.target)]
    name = "_rnn" if kind == "RNN" else "recurrence"
    assert [op.split(".")[1] for op in ops] == [f"{name}_forward", f"{name}_backward"]
    other = torch.randn(9, 2, 5), *args[1:]
    args = other if mode == "symbolic" else args
    assert_same_bits([graph(*args)], [gradient(*args)])


def test_fake_tensors_pass_through_modules_forward_and_backward(kind):
    with FakeTensorMode():
        module = getattr(rnn_ext, kind)(5, 6, 2, bidirectional=True)
        cell = getattr(rnn_ext, f"{kind}Cell")(12, 7)
        x = torch.randn(4, 3, 5, requires_grad=True)
        output, *finals = flat(module(x))
        flat(cell(output[-1]))[0].sum().backward()
    assert {t.shape for t in finals} == {(4, 3, 6)}
    for tensor in (x, *module.parameters(), *cell.parameters()):
        assert isinstance(tensor.grad, FakeTensor)
        assert tensor.grad.shape == tensor.shape


def test_activation_checkpointing_compiles():
    module = rnn_ext.RNN(5, 6)

    def call(x, hx):
        return checkpoint(module, x, hx, use_reentrant=False)

    x = torch.randn(4, 3, 5)
    assert_same_bits(step(compiled(call), module, x), step(module, module, x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_traces_for_other_lengths_and_saves_like_nn_rnn(grad, kind):
    module = getattr(rnn_ext, kind)(5, 6, 2)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(module, (torch.randn(4, 3, 5),))
        x = torch.randn(7, 2, 5)
        assert_same_bits(flat(traced(x)), flat(module(x)))
    torch.jit.save(traced, io.BytesIO())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_script_error_says_what_to_do_instead():
    model = _Tagger(rnn_ext.RNN(3, 4), rnn_ext.RNNCell(4, 4))
    for module in (model, model.rnn, model.cell):
        with pytest.raises(
            NotImplementedError,
            match=r"script cannot compile RNN(Cell)?: call rnn_ext\.restore_rnn\(model\)",
        ):
            torch.jit.script(module)
    x = torch.randn(5, 2, 3)
    expected = model(x)
    scripted = torch.jit.script(rnn_ext.restore_rnn(model))
    assert_like([scripted(x)], [expected])


class _Tagger(nn.Module):
    def __init__(self, rnn, cell):
        super().__init__()
        self.rnn = rnn
        self.cell = cell

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:  # TorchScript reads them
        output, h_n = self.rnn(x, hx=hx)
        return self.cell(output[0]) + h_n[-1]


def test_fx_records_a_call_as_one_node_like_nn_rnn():
    theirs = torch.fx.symbolic_trace(_Tagger(nn.RNN(3, 4), nn.RNNCell(4, 4)))
    model = _Tagger(rnn_ext.RNN(3, 4), rnn_ext.RNNCell(4, 4))
    parametrizations.orthogonal(model.rnn, "weight_hh_l0")
    graph = torch.fx.symbolic_trace(model)
    assert [(n.op, n.target) for n in graph.graph.nodes] == [
        (n.op, n.target) for n in theirs.graph.nodes
    ]
    x, hx = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    assert_same_bits([graph(x), graph(x, hx)], [model(x), model(x, hx)])


class _Pair(nn.Module):
    """A layer and a cell whose hx is an argument of forward."""

    def __init__(self, library, kind):
        super().__init__()
        self.rnn = getattr(library, kind)(3, 4)
        self.cell = getattr(library, f"{kind}Cell")(4, 4)

    def forward(self, x, h, c):
        is_pair = isinstance(self.rnn, (nn.LSTM, rnn_ext.LSTM))
        output, _ = self.rnn(x, (h, c) if is_pair else h)
        return self.cell(output[0])


def test_fx_records_each_kind_with_its_hx_as_one_node(kind):
    theirs = torch.fx.symbolic_trace(_Pair(nn, kind))
    model = _Pair(rnn_ext, kind)
    graph = torch.fx.symbolic_trace(model)
    assert [(n.op, n.target) for n in graph.graph.nodes] == [
        (n.op, n.target) for n in theirs.graph.nodes
    ]
    args = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    assert_same_bits(flat(graph(*args)), flat(model(*args)))


def test_fx_refuses_to_look_into_a_forward_built_on_ours():
    class Doubled(rnn_ext.RNN):
        def forward(self, input, hx=None):
            output, h_n = super().forward(input, hx)
            return 2 * output, h_n

    with pytest.raises(torch.fx.proxy.TraceError, match="forward of Doubled: trace it as a leaf"):
        torch.fx.symbolic_trace(nn.Sequential(Doubled(3, 4)))


@pytest.mark.parametrize("change", [False, True], ids=["as returned", "changed in place"])
@pytest.mark.parametrize("is_cell", [False, True])
def test_compiled_autograd_gives_the_gradients_of_an_eager_call(kind, is_cell, change):
    module = getattr(rnn_ext, f"{kind}Cell" if is_cell else kind)(3, 4)
    x = torch.randn(2, 3) if is_cell else torch.randn(5, 2, 3)

    def loss():
        output = flat(module(x))[0]
        return (output.mul_(2) if change else output).square().sum()

    expected = torch.autograd.grad(loss(), list(module.parameters()))
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss().backward()
    assert_same_bits([p.grad for p in module.parameters()], expected)


@pytest.mark.parametrize("cls", [Call, Kind, Recurrence, Route], ids=lambda cls: cls.__name__)
def test_the_tuples_of_a_call_have_no_property(cls):
    """torch.compile of torch 2.10 reads fields and methods of a named tuple, but no property."""
    assert not [name for name, value in vars(cls).items() if isinstance(value, property)]
