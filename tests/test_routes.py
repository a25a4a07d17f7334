"""What `explain` says of a call is what runs: the ops of random calls are counted."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import KINDS, outcome, without_node
from support.ops import Ops
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext
from rnn_ext import cells


class Subclass(Tensor):
    pass


@st.composite
def calls(draw):
    """A module, an input, an hx, and whether gradients are on; some calls are mistakes."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]))
    bias = draw(st.booleans())
    batch = draw(st.integers(0, 3))
    grad = draw(st.booleans())
    if draw(st.booleans()):
        cell = rnn_ext.RNNCell(3, 4, bias, dtype=dtype)
        shape = draw(st.sampled_from([(batch, 3), (3,), (batch, 2)]))
        hx = draw(st.sampled_from([None, (*shape[:-1], 4), (*shape[:-1], 5)]))
        return cell, torch.randn(shape, dtype=dtype), hx and torch.randn(hx, dtype=dtype), grad
    rnn = rnn_ext.RNN(
        *(3, 4, draw(st.integers(1, 2)), draw(st.sampled_from(["tanh", "relu"])), bias),
        batch_first=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        dtype=dtype,
    )
    for name, value in draw(
        st.dictionaries(st.sampled_from(["bidirectional", "bias", "num_layers"]), st.just(1))
    ).items():
        setattr(rnn, name, value)
    rnn.train(draw(st.booleans()))
    shape = draw(st.sampled_from([(5, batch, 3), (5, 3), (0, batch, 3)]))
    input = torch.randn(shape, dtype=dtype)
    if batch and len(shape) == 3 and shape[0] and not rnn.batch_first and draw(st.booleans()):
        input = pack_padded_sequence(input, [5] * batch)
    elif draw(st.integers(0, 9)) == 0:
        input = input.as_subclass(Subclass)
    return rnn, input, None, grad


@settings(max_examples=400, deadline=None)
@given(calls())
def test_the_path_that_explain_names_is_the_one_that_runs(call):
    module, input, hx, grad = call
    arguments = (input,) if hx is None else (input, hx)
    with torch.set_grad_enabled(grad):
        line = rnn_ext.explain(module, *arguments)
        with Ops() as ops:
            result = outcome(lambda: module(*arguments))
    if line.startswith("torch's own op: "):
        assert not ops.ours
        return
    assert result.error is None
    is_step = isinstance(module, rnn_ext.RNNCell)
    op = "rnn_ext::_cell_forward" if is_step else "rnn_ext::_rnn_forward"
    assert ops.ours == {op: 1 if is_step else module.num_layers}
    named = re.search(r"; (autograd node in C\+\+|autograd Function in Python)", line)
    assert named
    if grad and not isinstance(input, Subclass):
        output = module(*arguments)
        output = output if is_step else output[0]
        output = output.data if isinstance(output, PackedSequence) else output
        nodes, names = [output.grad_fn], []
        while nodes:
            node = nodes.pop()
            names.append(type(node).__name__)
            nodes += [n for n, _ in node.next_functions if n is not None]
        in_python = any(name in ("_RNNLayerBackward", "_RNNCellBackward") for name in names)
        assert in_python == (named[1] == "autograd Function in Python")


def test_without_the_node_in_cpp_python_records(monkeypatch):
    module, x = rnn_ext.RNN(3, 4), torch.randn(5, 2, 3)
    without_node(monkeypatch)
    assert rnn_ext.explain(module, x).endswith("; autograd Function in Python")
    assert type(module(x)[0].grad_fn).__name__ == "_RNNLayerBackward"


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        return v * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2


@rnn_ext.cell
def once_differentiable(u, v, y):
    return Once.apply(u + v).tanh()


class Explained(nn.Module):
    """A layer that explains each of its calls."""

    def __init__(self):
        super().__init__()
        self.rnn = rnn_ext.RNN(3, 4)
        self.lines = []

    def forward(self, input):
        self.lines.append(rnn_ext.explain(self.rnn, input))
        return self.rnn(input)[0]


def batched_parameters(model, count):
    return {name: torch.stack([p.detach()] * count) for name, p in model.named_parameters()}


@pytest.mark.parametrize("over_weights", [True, False])
def test_a_vmap_over_weights_runs_once_a_sample_and_says_so(over_weights):
    model, x = Explained(), torch.randn(3, 5, 2, 3)

    def run(parameters, x):
        return torch.func.functional_call(model, parameters, (x,))

    parameters = batched_parameters(model, 3) if over_weights else dict(model.named_parameters())
    with Ops() as ops, torch.no_grad():
        torch.func.vmap(run, (0 if over_weights else None, 0))(parameters, x)
    (line,) = model.lines
    assert ("once a sample" in line) == over_weights
    assert ops.ours == {"rnn_ext::_rnn_forward": 3 if over_weights else 1}


def test_a_vmap_of_packed_input_runs_once_a_sample_and_says_so():
    model, x = Explained(), torch.randn(3, 10, 3)
    batch_sizes = torch.tensor([2] * 5)
    with Ops() as ops, torch.no_grad():
        torch.func.vmap(lambda x: model(PackedSequence(x, batch_sizes)).data)(x)
    assert "once a sample" in model.lines[0]
    assert ops.ours == {"rnn_ext::_rnn_forward": 3}


def test_a_transform_inside_torch_compile_loops_over_time_and_says_so():
    rnn, x = rnn_ext.RNN(3, 4), torch.randn(5, 2, 3)
    lines = []
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=backend, fullgraph=True)
    def gradient(x):
        line = ""

        def loss(x):
            nonlocal line
            line = rnn_ext.explain(rnn, x)
            return rnn(x)[0].sum()

        return torch.func.grad(loss)(x), line

    grad, line = gradient(x)
    lines.append(line)
    assert "loop over time" in line
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert not any("rnn_forward" in target for target in targets)
    assert grad.shape == x.shape


def test_a_recorded_call_is_one_op_and_says_so():
    rnn, x = rnn_ext.RNN(3, 4), torch.randn(5, 2, 3)
    program = torch.export.export(rnn, (x,))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("rnn_ext.rnn_forward.default") == 1
    with forward_ad.dual_level():
        assert rnn_ext.explain(rnn, x).endswith("; torch.func or forward-mode AD")


@pytest.mark.parametrize(
    ("name", "value"),
    [("bidirectional", 1), ("bidirectional", 0), ("bias", 1), ("batch_first", 0), ("training", 1)],
)
def test_explain_is_true_of_attributes_that_are_numbers_for_flags(name, value):
    module = rnn_ext.RNN(3, 4, bidirectional=name == "bidirectional" and bool(value))
    setattr(module, name, value)
    x = torch.randn(5, 2, 3)
    line = rnn_ext.explain(module, x)
    with Ops() as ops:
        result = outcome(lambda: module(x))
    assert line.startswith("torch's own op: ") == (not ops.ours)
    assert result == outcome(lambda: nn.RNN.forward(module, x))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_explain_names_the_path_of_gated_layers(kind):
    layer, cell, x = getattr(rnn_ext, kind)(3, 4), getattr(rnn_ext, f"{kind}Cell")(3, 4), X
    for module, input in ((layer, x), (cell, x[0])):
        line = rnn_ext.explain(module, input)
        assert f"program of cell {kind.lower()!r}" in line
        with Ops() as ops:
            module(input)
        assert ops.ours == {"rnn_ext::recurrence_forward": 1}
    with forward_ad.dual_level():
        assert "; torch.func or forward-mode AD" in rnn_ext.explain(layer, x)
        with Ops() as ops:
            output, *_ = layer(forward_ad.make_dual(x, x))
        assert forward_ad.unpack_dual(output).tangent is not None
        assert ops.ours == {"rnn_ext::recurrence_forward": 2}  # the values, the tangents
    wrong = rnn_ext.explain(layer, x, () if kind == "LSTM" else x[0, 0])
    assert wrong.startswith("torch's own op: an argument")


TRANSFORMS = {
    "grad": (
        lambda f: torch.func.grad(lambda x: f(x).sum()),
        "torch.func",
        {"forward", "backward"},
    ),
    "jvp": (lambda f: lambda x: torch.func.jvp(f, (x,), (x,)), "torch.func", {"forward"}),
    "vmap": (lambda f: torch.func.vmap(f, 1), "torch.func", {"forward"}),
    "hessian": (
        lambda f: torch.func.hessian(lambda x: f(x).sum()),
        "a loop over time (a derivative of a derivative)",
        set(),
    ),
    "functionalize": (torch.func.functionalize, "a loop over time (torch.func.funct", set()),
}


# torch cannot functionalize a torch.autograd.Function, which alif has.
ROUTES = [
    (cell, name)
    for cell in (cells.lstm, cells.alif, cells.gru_reset_before)
    for name in TRANSFORMS
    if (cell, name) != (cells.alif, "functionalize")
]


@pytest.mark.parametrize(("cell", "name"), ROUTES, ids=lambda value: getattr(value, "name", value))
def test_explain_says_whether_a_cell_under_a_transform_runs_on_kernels(cell, name):
    layer, lines = rnn_ext.Recurrent(cell, 3, 4, **dict.fromkeys(cell.parameters, 0.5)), []

    def run(x):
        x = x if x.dim() == 3 else x.unsqueeze(1)
        lines.append(rnn_ext.explain(layer, x))
        return layer(x)[0]

    transform, expected, names = TRANSFORMS[name]
    with Ops() as ops:
        transform(run)(torch.randn(2, 2, 3))
    assert expected in lines[0]
    assert set(ops.ours) == {f"rnn_ext::recurrence_{name}" for name in names}


def test_a_cell_without_a_program_for_its_tangent_runs_as_a_loop_and_says_so():
    layer, x = rnn_ext.Recurrent(once_differentiable, 3, 4), torch.randn(2, 2, 3)
    with forward_ad.dual_level(), Ops() as ops:
        line = rnn_ext.explain(layer, x)
        layer(x)
    assert line == (
        "a loop over time (no program computes the tangent of cell 'once_differentiable')"
    )
    assert not ops.ours


@pytest.mark.parametrize("kind", KINDS)
def test_explain_names_an_overridden_check(kind):
    base = getattr(rnn_ext, kind)
    own = type("Own", (base,), {"check_input": lambda *_: None})(3, 4)
    assert rnn_ext.explain(own, X) == "torch's own op: check_input was overridden"
    assert "CPU kernels" in rnn_ext.explain(base(3, 4), X)


X = torch.randn(5, 2, 3)
