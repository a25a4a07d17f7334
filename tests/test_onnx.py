"""ONNX export: a layer becomes RNN, GRU, LSTM or a loop; ONNX Runtime computes the same.

Needs onnxscript and onnxruntime (`make test-extras`).
"""

import pytest
import torch

# It copies torch's decompositions of GRU and LSTM, which an export replaces while it runs.
import torch.nn.utils._expanded_weights
from support import assert_like, flat, hx_of
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

import rnn_ext

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# The exporter's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning"),
]

LAYERS = [
    {},
    {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu", "batch_first": True},
    {"num_layers": 2, "bias": False},
]
WAYS = ("module", "program")


def export(way, model, args, sizes):
    """The model itself, or an ExportedProgram of it, as an ONNX program."""
    if way == "module":
        return torch.onnx.export(
            model, args, dynamo=True, dynamic_shapes=sizes, verbose=False, input_names=names(args)
        )
    program = torch.export.export(model, args, dynamic_shapes=sizes)
    table = rnn_ext.onnx.translation_table()
    return torch.onnx.export(
        program, custom_translation_table=table, verbose=False, input_names=names(args)
    )


def names(args):
    return ["x", "hx"][: len(args)]


def run(exported, args):
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    feed = dict(zip(names(args), (t.numpy() for t in args), strict=True))
    return [torch.from_numpy(result) for result in session.run(None, feed)]


def operators(exported):
    return [node.op_type for node in exported.model.graph]


def export_and_run(model, args, sizes, others):
    """Returns the operators of the exported model, and what it makes of other arguments."""
    exported = torch.onnx.export(model, args, dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), flat(others), strict=True)}
    return operators(exported), [torch.from_numpy(result) for result in session.run(None, feed)]


def arguments(module, seq_len, batch, given):
    x = torch.randn(*((batch, seq_len) if module.batch_first else (seq_len, batch)), 5)
    states = module.num_layers * (1 + module.bidirectional)
    return (x, torch.randn(states, batch, 6)) if given else (x,)


@pytest.mark.parametrize("given", [False, True], ids=["hx None", "hx given"])
@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_is_one_node_that_serves_all_lengths_and_batches(way, options, given):
    module = rnn_ext.RNN(5, 6, **options).eval()
    seq_len, batch = Dim("seq_len"), Dim("batch")
    axes = (batch, seq_len) if module.batch_first else (seq_len, batch)
    sizes = (dict(enumerate(axes)), {1: batch})[: 1 + given]
    exported = export(way, module, arguments(module, 4, 3, given), sizes)
    assert operators(exported).count("RNN") == module.num_layers
    assert not {"Loop", "Scan", "Tanh", "Relu", "MatMul", "Gemm"} & set(operators(exported))
    others = arguments(module, 9, 2, given)
    assert_like(run(exported, others), module(*others))


@pytest.mark.parametrize("given", [False, True], ids=["hx None", "hx given"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str
)
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_a_gated_layer_is_one_node_too(kind, options, given):
    module = getattr(rnn_ext, kind)(5, 6, **options).eval()
    seq_len, batch = Dim("seq_len"), Dim("batch")
    states = module.num_layers * (1 + module.bidirectional)

    def drawn(seq_len, batch):
        x = torch.randn(seq_len, batch, 5)
        return (x, hx_of(kind, states, batch, 6)) if given else (x,)

    args = drawn(4, 3)
    sizes = ({0: seq_len, 1: batch}, tree_map(lambda _: {1: batch}, args[-1]))[: 1 + given]
    others = drawn(9, 2)
    nodes, found = export_and_run(module, args, sizes, others)
    assert nodes.count(kind) == module.num_layers
    assert not {"Loop", "Scan", "Tanh", "Sigmoid", "MatMul", "Gemm"} & set(nodes)
    assert_like(found, flat(module(*others)))


class _OnPositions(nn.Module):
    """A recurrence whose inputs are given by position: export has no sizes for those by keyword."""

    def __init__(self, recurrence):
        super().__init__()
        self.recurrence = recurrence

    def forward(self, input, *inputs):
        return self.recurrence(input, **dict(zip(self.recurrence.cell.inputs, inputs, strict=True)))


@pytest.mark.parametrize(
    ("name", "num_layers"),
    [("leaky_current", 2), ("lstm", 1), ("gru_reset_before", 1), ("alif", 1)],
)
def test_a_layer_of_any_cell_is_loops_that_serve_all_lengths_and_batches(name, num_layers):
    """A loop for each layer and direction; torch takes seconds to export each."""
    cell = getattr(rnn_ext.cells, name)
    parameters = {parameter: 0.2 + 0.6 * torch.rand(6) for parameter in cell.parameters}
    layer = rnn_ext.Recurrent(cell, 5, 6, num_layers, bidirectional=True, **parameters)
    model = _OnPositions(layer).eval()
    axes = {0: Dim("seq_len"), 1: Dim("batch")}

    def drawn(seq_len, batch):
        return torch.randn(seq_len, batch, 5), *(
            torch.randn(seq_len, batch, 6) for _ in cell.inputs
        )

    sizes = (axes, (axes,)) if cell.inputs else (axes,)
    others = drawn(9, 2)
    nodes, found = export_and_run(model, drawn(4, 3), sizes, others)
    assert nodes.count("Scan") == 2 * num_layers
    assert_like(found, model(*others))


@pytest.mark.parametrize("of_steps", [False, True], ids=["one state", "a state for each step"])
def test_a_layer_with_resets_is_a_loop_too(of_steps):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn_ext.RNN(5, 6)

        def forward(self, x, reset, state):
            return self.rnn(x, reset=reset, reset_state=state)

    def drawn(seq_len, batch):
        state = torch.randn(*([seq_len] if of_steps else []), 1, 1, 6)
        return torch.randn(seq_len, batch, 5), torch.rand(seq_len, batch) < 0.4, state

    seq_len, batch = Dim("seq_len"), Dim("batch")
    axes = {0: seq_len, 1: batch}
    sizes = (axes, axes, {0: seq_len} if of_steps else {})
    others, model = drawn(9, 2), Model().eval()
    nodes, found = export_and_run(model, drawn(4, 3), sizes, others)
    assert nodes.count("Scan") == 1
    assert_like(found, model(*others))


def test_a_step_of_any_cell_is_no_loop():
    step = rnn_ext.RecurrentCell(rnn_ext.cells.lif, 5, 6, beta=0.9, threshold=0.5).eval()
    batch = {0: Dim("batch")}

    def drawn(batch):
        return torch.randn(batch, 5), (torch.zeros(batch, 6), torch.randn(batch, 6))

    others = drawn(2)
    nodes, found = export_and_run(step, drawn(3), (batch, (batch, batch)), others)
    assert "Scan" not in nodes
    assert_like(found, step(*others))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_without_dynamo_a_cell_is_refused(tmp_path):
    model = nn.Sequential(rnn_ext.Recurrent(rnn_ext.cells.elman, 5, 6))
    with pytest.raises(NotImplementedError, match="use dynamo=True"):
        torch.onnx.export(model, (torch.randn(4, 3, 5),), tmp_path / "x.onnx", dynamo=False)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_a_gated_cell_is_a_node_of_one_step(kind):
    cell = getattr(rnn_ext, f"{kind}Cell")(5, 6).eval()
    x = torch.randn(3, 5)
    exported = torch.onnx.export(cell, (x,), dynamo=True, verbose=False)
    assert operators(exported).count(kind) == 1
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_like(map(torch.from_numpy, found), flat(cell(x)))


def test_a_program_with_a_gated_layer_asks_for_the_model():
    program = torch.export.export(rnn_ext.GRU(5, 6), (torch.randn(4, 3, 5),))
    table = rnn_ext.onnx.translation_table()
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        torch.onnx.export(program, custom_translation_table=table, verbose=False)
    assert "export the model itself" in str(root_cause(caught.value))


def root_cause(error):
    return root_cause(error.__cause__) if error.__cause__ else error


@pytest.mark.parametrize("way", WAYS)
def test_a_cell_is_a_node_of_one_step(way):
    cell = rnn_ext.RNNCell(5, 6, nonlinearity="relu").eval()
    batch = {0: Dim("batch")}
    exported = export(way, cell, (torch.randn(3, 5), torch.randn(3, 6)), (batch, batch))
    assert operators(exported).count("RNN") == 1
    others = torch.randn(2, 5), torch.randn(2, 6)
    assert_like(run(exported, others), [cell(*others)])


class _OnPackedData(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = rnn_ext.RNN(5, 6)

    def forward(self, data, hx, batch_sizes):
        return self.rnn(PackedSequence(data, batch_sizes), hx)[0].data


def test_rejects_packed_input():
    args = torch.randn(6, 5), torch.randn(1, 3, 6), torch.tensor([3, 2, 1])
    program = torch.export.export(_OnPackedData(), args)
    table = rnn_ext.onnx.translation_table()
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        torch.onnx.export(program, custom_translation_table=table, verbose=False)
    cause = str(root_cause(caught.value))
    assert cause.startswith("ONNX has no packed sequences: export a model that")


def test_nn_rnn_is_unrolled_for_one_length():
    """The row of the table of features."""
    module = nn.RNN(5, 6).eval()
    sizes = ({0: Dim("seq_len"), 1: Dim("batch")},)
    exported = export("module", module, (torch.randn(4, 3, 5),), sizes)
    assert "RNN" not in operators(exported)
    assert operators(exported).count("Tanh") == 4
