"""``Recurrent`` and ``RecurrentCell`` beside loops over time, and beside torch's layers."""

import copy
import pickle

import pytest
import torch
from support import SPLITS, assert_same_bits, onednn_has_lstm, using_threads, without_node
from support.programs import Run, plain_loop
from support.recurrent import (
    ALL,
    BATCH,
    HIDDEN,
    INPUT,
    SEQ_LEN,
    SMOOTH,
    layer_of,
    operands,
    states,
    values,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import rnn_ext
from rnn_ext import Recurrent, RecurrentCell, cells
from rnn_ext._core import node


def loop(layer, input, hx=None, inputs=None):
    """The layer as plain loops: y and the further states at all steps, and the last states."""
    cell, directions = layer.cell, 2 if layer.bidirectional else 1
    parameters = [getattr(layer, name) for name in cell.parameters]
    operands = list((inputs or {}).values())
    finals, sequences = [], []
    for place, (w_ih, w_hh, *biases) in enumerate(layer.all_weights):
        b_ih, b_hh = biases or (torch.zeros(1).to(w_ih), torch.zeros(w_ih.size(0)).to(w_ih))
        if place % directions == 0 and place > 0:
            input, sequences = torch.cat([first for first, *_ in sequences], -1), []
        if hx is None:
            initial = [input.new_zeros(input.size(1), HIDDEN)] * (1 + len(cell.states))
        else:
            initial = [x[place] for x in (hx if cell.states else (hx,))]
        tensors = [input @ w_ih.T + b_ih, *operands]
        if place % directions == 1:
            tensors = [t.flip(0) for t in tensors]
        run = Run(tensors[0], w_hh, b_hh, initial, parameters, tensors[1:])
        states = plain_loop(cell, run)
        finals.append([x[-1] for x in states])
        sequences.append([x.flip(0) for x in states] if place % directions == 1 else states)
    output, *further = [torch.cat(parts, -1) for parts in zip(*sequences, strict=True)]
    return [output, *map(torch.stack, zip(*finals, strict=True)), *further]


def gradients(results, tensors):
    total = sum((r.sin() * torch.linspace(1, 2, r.numel()).view(r.shape)).sum() for r in results)
    assert isinstance(total, Tensor)
    return [
        torch.zeros_like(t) if g is None else g
        for t, g in zip(
            tensors, torch.autograd.grad(total, tensors, allow_unused=True), strict=True
        )
    ]


def assert_near(found, expected):
    for a, b in zip(found, expected, strict=True):
        # float64, sums in another order and functions of at most 2 ulp, over a few steps.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", ALL, ids=lambda c: c.name)
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}],
    ids=["plain", "stacked", "unbiased"],
)
def test_results_and_gradients_are_those_of_a_loop(cell, settings):
    layer = layer_of(cell, **settings)
    directions = settings.get("num_layers", 1) * (2 if layer.bidirectional else 1)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double().requires_grad_()
    inputs = operands(cell, SEQ_LEN, BATCH)
    hx = states(cell, directions, BATCH)
    tensors = [x, *layer.parameters(), *inputs.values(), *(hx if cell.states else (hx,))]
    for t in tensors:
        t.requires_grad_()
    found = layer(x, hx, return_states=True, **inputs)
    expected = loop(layer, x, hx, inputs)
    assert_near(found, expected)
    assert_near(gradients(found, tensors), gradients(expected, tensors))
    with torch.no_grad():
        assert_near(layer(x, hx, return_states=True, **inputs), expected)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_has_the_weights_and_results_of_torchs_layers(kind):
    cell = {nn.GRU: cells.gru, nn.LSTM: cells.lstm}[kind]
    torch.manual_seed(3)
    theirs = kind(INPUT, HIDDEN, num_layers=2, bidirectional=True)
    torch.manual_seed(3)
    ours = Recurrent(cell, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name
    packed = pack_sequence([torch.randn(n, INPUT) for n in (3, 6, 2)], enforce_sorted=False)
    output, *finals = ours(packed)
    expected, last = theirs(packed)
    # float32: sums in another order, over a few steps.
    torch.testing.assert_close(output.data, expected.data, rtol=1e-5, atol=1e-6)
    for state, torchs in zip(finals, last if cell.states else [last], strict=True):
        torch.testing.assert_close(state, torchs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ALL, ids=lambda c: c.name)
def test_a_row_does_not_depend_on_packing(cell):
    layer = layer_of(cell, bidirectional=True)
    lengths = [3, 6, 1]
    rows = [torch.randn(n, INPUT).double() for n in lengths]
    noises = [operands(cell, n) for n in lengths]
    names = cell.inputs
    packed = {
        name: pack_sequence([n[name] for n in noises], enforce_sorted=False) for name in names
    }
    output, *finals = layer(pack_sequence(rows, enforce_sorted=False), **packed)
    assert isinstance(output, PackedSequence)
    padded, _ = nn.utils.rnn.pad_packed_sequence(output)
    for i, (row, noise) in enumerate(zip(rows, noises, strict=True)):
        alone, *last = layer(row, **noise)
        assert torch.equal(padded[: lengths[i], i], alone)
        for a, b in zip(finals, last, strict=True):
            assert torch.equal(a[:, i], b)


def test_batch_first_and_inputs_of_each_layer():
    layer = layer_of(cells.leaky_current, num_layers=2, bidirectional=True)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    noise = torch.randn(4, SEQ_LEN, BATCH, HIDDEN).double()
    output, *finals = layer(x, noise=noise)
    assert not torch.equal(output, layer(x, noise=noise[0])[0])
    layer.batch_first = True
    turned, *same = layer(x.transpose(0, 1), noise=noise.transpose(1, 2))
    assert torch.equal(turned.transpose(0, 1), output)
    assert all(map(torch.equal, finals, same))
    constant = layer(x.transpose(0, 1), noise=0.25)[0]
    full = torch.full((BATCH, SEQ_LEN, HIDDEN), 0.25).double()
    assert torch.equal(layer(x.transpose(0, 1), noise=full)[0], constant)


@pytest.mark.parametrize("cell", ALL, ids=lambda c: c.name)
def test_steps_of_the_cell_are_those_of_the_layer(cell):
    layer = layer_of(cell)
    torch.manual_seed(0)
    step = RecurrentCell(cell, INPUT, HIDDEN, dtype=torch.float64, **values(cell))
    with torch.no_grad():
        for name, parameter in step.named_parameters():
            parameter.copy_(getattr(layer, name if name in cell.parameters else f"{name}_l0"))
    x, inputs = torch.randn(SEQ_LEN, BATCH, INPUT).double(), operands(cell, SEQ_LEN, BATCH)
    output, *finals = layer(x, **inputs)
    hx = None
    for t in range(SEQ_LEN):
        hx = step(x[t], hx, **{name: value[t] for name, value in inputs.items()})
        assert torch.equal(hx[0] if cell.states else hx, output[t])
        one = tuple(h[0] for h in hx) if cell.states else hx[0]
    last = hx if cell.states else (hx,)
    assert all(torch.equal(a[0], b) for a, b in zip(finals, last, strict=True))
    alone = step(x[0, 0], one, **{name: value[0, 0] for name, value in inputs.items()})
    assert (alone[0] if cell.states else alone).shape == (HIDDEN,)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("hidden_size", [17, 300], ids=["one block of sums", "two"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_elman_cell_gives_the_bits_of_rnn(isa, dtype, hidden_size, split):
    torch.manual_seed(0)
    layer = Recurrent(cells.elman, INPUT, hidden_size, bidirectional=True, dtype=dtype)
    rnn = rnn_ext.RNN(INPUT, hidden_size, bidirectional=True, dtype=dtype)
    rnn.load_state_dict(layer.state_dict())
    x = torch.randn(SEQ_LEN, 7, INPUT).to(dtype).requires_grad_()
    hx = torch.randn(2, 7, hidden_size).to(dtype).requires_grad_()
    upstream = torch.randn(SEQ_LEN, 7, 2 * hidden_size).to(dtype)
    found = []
    for module in (layer, rnn):
        with using_threads(2, split):
            output, h_n = module(x, hx)
            leaves = [x, hx, *module.parameters()]
            found.append([output, h_n, *torch.autograd.grad(output, leaves, upstream)])
    assert_same_bits(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", ALL, ids=lambda c: c.name)
def test_half_precision_is_rounded_storage(cell, dtype):
    layer = layer_of(cell).to(dtype)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).to(dtype)
    inputs = {name: value.to(dtype) for name, value in operands(cell, SEQ_LEN, BATCH).items()}
    output, *_ = layer(x, **inputs)
    wide = copy.deepcopy(layer).float()
    expected, *_ = wide(x.float(), **{name: value.float() for name, value in inputs.items()})
    assert output.dtype == dtype
    if cell in SMOOTH:
        # Results are stored rounded; arithmetic is float32, the state between steps as well.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(output.float(), expected, rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize(
    "cell", [cells.lstm, cells.leaky_current, cells.gru_reset_before], ids=lambda c: c.name
)
def test_bits_do_not_depend_on_threads(cell):
    torch.manual_seed(0)
    layer = Recurrent(cell, 40, 70, **dict.fromkeys(cell.parameters, 0.3))
    x = torch.randn(20, 33, 40)
    inputs = {name: torch.randn(20, 33, 70) for name in cell.inputs}
    found = []
    for threads in (1, 2):
        with using_threads(threads):
            output = layer(x, **inputs)[0]
            found.append([output, *torch.autograd.grad(output.sum(), list(layer.parameters()))])
    assert_same_bits(*found)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("hidden_size", [17, 70])
@pytest.mark.parametrize("cell", [cells.lstm, cells.gru_reset_before], ids=lambda c: c.name)
def test_bits_of_few_rows_do_not_depend_on_how_threads_share_them(isa, cell, hidden_size, split):
    layer = Recurrent(cell, 5, hidden_size)
    for batch in (1, 2, 3):
        x = torch.randn(3, batch, 5)
        with using_threads(1):
            expected = layer(x)
        with using_threads(3, split):
            assert_same_bits(layer(x), expected)


def test_autocast_is_that_of_torchs_layer():
    torch.manual_seed(0)
    layer, theirs = Recurrent(cells.lstm, INPUT, HIDDEN), nn.LSTM(INPUT, HIDDEN)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(SEQ_LEN, BATCH, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x)[0].dtype == torch.bfloat16
        if onednn_has_lstm(torch.bfloat16):
            assert theirs(x)[0].dtype == torch.bfloat16


def test_saves_the_values_that_the_cell_names():
    for cell in ALL:
        torch.manual_seed(0)
        layer = Recurrent(cell, INPUT, HIDDEN, **dict.fromkeys(cell.parameters, 0.3))
        inputs = {name: torch.randn(SEQ_LEN, BATCH, HIDDEN) for name in cell.inputs}
        x = torch.randn(SEQ_LEN, BATCH, INPUT)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()), lambda t: t
        ):
            layer(x, **inputs)
        # Beside its operands: y, and each value of cell.saved, of every unit and time step.
        per_step = SEQ_LEN * BATCH * HIDDEN
        own = x.numel() + sum(p.numel() for p in layer.parameters()) + len(inputs) * per_step
        own += len(cell.parameters) * HIDDEN
        assert sum(sizes) == own + (1 + len(cell.saved)) * per_step, cell.name


def test_copies_and_pickles():
    layer = layer_of(cells.leaky_current)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    expected = layer(x, noise=0.0)[0]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, noise=0.0)[0], expected)
        assert other.cell is cells.leaky_current

    @rnn_ext.cell
    def local(u, v, y):
        return torch.sin(u + v)

    layer = Recurrent(local, INPUT, HIDDEN, dtype=torch.float64)
    other = pickle.loads(pickle.dumps(layer))
    assert torch.equal(other(x)[0], layer(x)[0])
    assert repr(layer) == "Recurrent(local, 3, 5)"


def test_an_empty_batch_and_an_empty_sequence():
    layer = layer_of(cells.lstm)
    output, h, c = layer(torch.randn(2, 0, INPUT).double().requires_grad_())
    assert output.shape == (2, 0, HIDDEN)
    assert h.shape == c.shape == (1, 0, HIDDEN)
    output.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
    with pytest.raises(ValueError, match="input has no time steps"):
        layer(torch.randn(0, 2, INPUT).double())


def test_mistakes_are_named():
    layer = layer_of(cells.leaky_current, num_layers=2)
    step = RecurrentCell(cells.leaky_current, INPUT, HIDDEN, dtype=torch.float64, alpha=0.2)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    type_errors = [
        (lambda: layer(x), r"needs noise="),
        (lambda: layer(x, noise=0.0, noize=0.0), r"no operand named noize; it has: noise"),
        (lambda: step(x[0]), r"needs noise="),
        (lambda: step(x[0], noise=0.0, noize=0.0), r"no operand named noize; it has: noise"),
        (lambda: Recurrent(cells.leaky_current, 3, 5), r"needs alpha="),
        (lambda: Recurrent(cells.lstm, 3, 5, alpha=1), r"no operand named alpha; it has: none"),
        (lambda: Recurrent(torch.tanh, 3, 5), r"needs a cell, a function decorated"),
    ]
    value_errors = [
        (lambda: layer(x.float(), noise=0.0), r"input is torch.float32, its weights are"),
        (lambda: layer(x[..., :2], noise=0.0), r"input has 2 features, expected 3"),
        (lambda: layer(x[0, 0], noise=0.0), r"expected input to be 2-D or 3-D, got 1-D"),
        (lambda: layer(x, x, noise=0.0), r"hx must be 2 tensors, for y, x; got 1"),
        (lambda: layer(x, (x, x), noise=0.0), r"expected y of shape \(2, 4, 5\), got \(6, 4, 3\)"),
        (lambda: layer(x, noise=x), r"noise must broadcast to \(6, 4, 5\) or \(2, 6, 4, 5\)"),
        (lambda: step(x[0].float(), noise=0.0), r"input is torch.float32, its weights are"),
        (lambda: step(x[0, :, :2], noise=0.0), r"input has 2 features, expected 3"),
        (lambda: step(x, noise=0.0), r"expected input to be 1-D or 2-D, got 3-D"),
        (lambda: step(x[0], x[0], noise=0.0), r"hx must be 2 tensors, for y, x; got 1"),
        (
            lambda: step(x[0], (x[0], x[0]), noise=0.0),
            r"expected y of shape \(4, 5\), got \(4, 3\)",
        ),
        (lambda: step(x[0], noise=x[0]), r"noise must broadcast to \(4, 5\), got shape \(4, 3\)"),
        (lambda: Recurrent(cells.leaky_rate, 3, 5, alpha=[1.0, 2.0]), r"one for each of the 5"),
        (lambda: Recurrent(cells.lstm, 3, 0), r"hidden_size must be greater than zero"),
    ]
    for error, mistakes in ((TypeError, type_errors), (ValueError, value_errors)):
        for call, message in mistakes:
            with pytest.raises(error, match=message):
                call()


def test_nan_stays_in_its_row():
    layer = layer_of(cells.gru)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    clean = layer(x)[0]
    x[2, 1] = float("nan")
    output = layer(x)[0]
    assert torch.equal(output[:, [0, 2, 3]], clean[:, [0, 2, 3]])
    assert output[2:, 1].isnan().all()


def test_compiles_into_one_graph_with_dynamic_shapes():
    layer = layer_of(cells.leaky_current, num_layers=2, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, batch in ((3, 2), (5, 4)):
        x = torch.randn(steps, batch, INPUT).double().requires_grad_()
        noise = torch.randn(steps, batch, HIDDEN).double().requires_grad_()
        tensors = [x, noise, *layer.parameters()]
        found = compiled(x, noise=noise, return_states=True)
        expected = layer(x, noise=noise, return_states=True)
        assert all(map(torch.equal, found, expected))
        assert_near(gradients(found, tensors), gradients(expected, tensors))


def test_steps_compile_into_one_graph_for_all_batches():
    step = RecurrentCell(cells.leaky_current, INPUT, HIDDEN, dtype=torch.float64, alpha=0.2)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 4, 3):
        hx = tuple(torch.randn(batch, HIDDEN).double().requires_grad_() for _ in range(2))
        x, noise = torch.randn(batch, INPUT).double(), torch.randn(HIDDEN).double().requires_grad_()
        tensors = [*hx, noise, *step.parameters()]
        expected = step(x, hx, noise=noise)
        with torch._dynamo.config.patch(error_on_recompile=batch != 2):
            found = compiled(x, hx, noise=noise)
        assert_same_bits(found, expected)
        assert_near(gradients(found, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("given", [False, True], ids=["hx None", "hx given"])
def test_packed_input_compiles_and_exports_for_all_lengths(given):
    layer = layer_of(cells.lstm, bidirectional=True)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")

    def drawn(lengths):
        x = torch.randn(max(lengths), len(lengths), INPUT).double()
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        return packed, states(cells.lstm, 2, len(lengths)) if given else None

    for lengths in ([4, 1, 3], [2, 2], [1, 5, 5, 7]):
        args = drawn(lengths)
        with torch._dynamo.config.patch(error_on_recompile=len(lengths) > 3):
            (output, *found), (expected, *finals) = compiled(*args), layer(*args)
        assert_same_bits([output.data, *found], [expected.data, *finals])
    program, args = torch.export.export(layer, drawn([4, 1, 3]), strict=False), drawn([2, 4, 2])
    (output, *found), (expected, *finals) = program.module()(*args), layer(*args)
    assert_same_bits([output.data, *found], [expected.data, *finals])


def test_compiles_for_inference_and_steps():
    layer = layer_of(cells.lstm)
    step = RecurrentCell(cells.lstm, INPUT, HIDDEN)
    x, y = torch.randn(3, 2, INPUT).double(), torch.randn(2, INPUT)
    with torch.no_grad():
        found = torch.compile(layer, fullgraph=True, backend="eager")(x)
        assert all(map(torch.equal, found, layer(x)))
        found = torch.compile(step, fullgraph=True, backend="eager")(y)
        assert all(map(torch.equal, found, step(y)))


def test_exports():
    layer = layer_of(cells.lstm, num_layers=2).eval()
    x = torch.randn(3, 2, INPUT).double()
    steps = torch.export.Dim("steps", min=1)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: steps},), strict=False)
    longer = torch.randn(7, 2, INPUT).double()
    assert all(map(torch.equal, program.module()(longer), layer(longer)))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("rnn_ext.recurrence_forward.default") == 2
    # The program is data of the file: whoever loads it needs no cell.
    copy_of_it = pickle.loads(pickle.dumps(program.state_dict))
    assert list(copy_of_it) == list(layer.state_dict())


def test_explain_says_what_runs():
    layer = layer_of(cells.lstm, num_layers=2)
    x = torch.randn(3, 2, INPUT).double()
    line = rnn_ext.explain(layer, x)
    assert "rnn_ext CPU kernels" in line
    assert "program of cell 'lstm'" in line
    assert "2 layers one after the other" in line
    meta = rnn_ext.explain(layer.to("meta"), x.to("meta"))
    assert meta == "a loop over time (no kernel for device type meta)"


class Subclass(Tensor):
    pass


def test_explain_names_the_node_that_records(monkeypatch):
    nodes = {"RecurrenceBackward": "autograd node in C++", "_Layer": "autograd Function in Python"}

    def assert_explained(module, x, hx=None):
        output = module(x, hx)[0] if module.cell.states else module(x, hx)
        graph = [output.grad_fn]
        for grad_fn in graph:
            graph += [following for following, _ in grad_fn.next_functions if following]
        (name,) = {n for n in nodes if any(g.name().startswith(n) for g in graph)}
        assert f"; {nodes[name]}; " in rnn_ext.explain(module, x, hx)
        return name

    x = torch.randn(SEQ_LEN, BATCH, INPUT)
    y = torch.zeros(BATCH, HIDDEN)
    layer = Recurrent(cells.lstm, INPUT, HIDDEN)
    step = RecurrentCell(cells.gru, INPUT, HIDDEN)
    expected = "RecurrenceBackward" if node.is_loaded else "_Layer"
    assert assert_explained(layer, x) == assert_explained(step, x[0], y) == expected
    assert assert_explained(step, x[0], y.as_subclass(Subclass)) == "_Layer"
    without_node(monkeypatch)
    assert assert_explained(layer, x) == assert_explained(step, x[0], y) == "_Layer"


@pytest.mark.skipif(not node.is_loaded, reason="needs the autograd node in C++")
@pytest.mark.parametrize("cell", [cells.lstm, cells.leaky_current], ids=lambda c: c.name)
@pytest.mark.parametrize("packed", [False, True])
def test_the_node_in_cpp_gives_what_the_one_in_python_does(cell, packed, monkeypatch):
    layer = layer_of(cell, bidirectional=True)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    noise = operands(cell, SEQ_LEN, BATCH)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([6, 5, 5, 2]))
        noise = {k: pack_padded_sequence(v, torch.tensor([6, 5, 5, 2])) for k, v in noise.items()}

    def run():
        results = layer(x, return_states=True, **noise)
        names.append(results[1].grad_fn.name())
        results = [t.data if packed and isinstance(t, PackedSequence) else t for t in results]
        return [*results, *gradients(results[:-1], list(layer.parameters()))]

    names = []
    found = run()
    without_node(monkeypatch)
    assert_same_bits(found, run())
    assert names == ["RecurrenceBackward", "_LayerBackward"]


@pytest.mark.skipif(not node.is_loaded, reason="needs the autograd node in C++")
@pytest.mark.parametrize("cell", [cells.lstm, cells.leaky_current], ids=lambda c: c.name)
@pytest.mark.parametrize("batch", [(BATCH,), ()], ids=["batched", "unbatched"])
def test_a_step_is_one_node_in_cpp_and_gives_what_python_does(cell, batch, monkeypatch):
    one = nn.Parameter(torch.tensor(0.3).double())  # for all units
    alpha = {"alpha": one} if cell.parameters else {}
    step = RecurrentCell(cell, INPUT, HIDDEN, dtype=torch.float64, bias=not alpha, **alpha)
    noise = {name: value.requires_grad_() for name, value in operands(cell).items()}
    hx = tuple(torch.randn(*batch, HIDDEN).double().requires_grad_() for _ in range(2))
    x = torch.randn(*batch, INPUT).double().requires_grad_()
    leaves = [x, *hx, *step.parameters(), *noise.values()]

    def run():
        results = step(x, hx, **noise)
        names.append(results[0].grad_fn.name())
        assert all(state.shape == (*batch, HIDDEN) for state in results)
        grads = torch.autograd.grad(results[0].sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        y, state = step(x, hx, **noise)
        changed = [y.mul_(2), state]
        with torch.no_grad():
            alone = step(x, **dict.fromkeys(noise, 0.25))
        return [*results, *grads, *second, *gradients(changed, leaves), *alone]

    names = []
    found = run()
    without_node(monkeypatch)
    assert_near(found, run())
    assert names == ["RecurrenceBackward", "ViewBackward0"]


@pytest.mark.skipif(not node.is_loaded, reason="needs the autograd node in C++")
@pytest.mark.parametrize("noise", [0.25, (), (HIDDEN,), (BATCH, 1), (2, SEQ_LEN, 1, HIDDEN)])
def test_one_layer_is_one_call_of_cpp_and_gives_what_python_does(noise, monkeypatch):
    one = nn.Parameter(torch.tensor(0.3).double())  # for all units
    layer = Recurrent(
        cells.leaky_current, INPUT, HIDDEN, bidirectional=True, dtype=torch.float64, alpha=one
    )
    x, hx = torch.randn(SEQ_LEN, BATCH, INPUT).double(), states(cells.leaky_current, 2, BATCH)
    leaves = [x.requires_grad_(), *(t.requires_grad_() for t in hx), *layer.parameters()]
    if isinstance(noise, tuple):
        noise = torch.randn(noise).double().requires_grad_()
        leaves.append(noise)

    def run():
        results = layer(x, hx, noise=noise, return_states=True)
        grads = torch.autograd.grad(results[0].sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        return [*results, *grads, *second, *layer(x, noise=noise)]

    found = run()
    with monkeypatch.context() as patch:
        patch.setattr(node, "run_recurrence", None)  # which Python calls
        layer(x, hx, noise=noise)
    without_node(monkeypatch)
    assert_near(found, run())


def test_the_graph_is_freed_and_kept_as_asked():
    layer = layer_of(cells.gru)
    output, _ = layer(torch.randn(SEQ_LEN, BATCH, INPUT).double())
    weights = list(layer.parameters())
    first = torch.autograd.grad(output.sum(), weights, retain_graph=True)
    assert_same_bits(first, torch.autograd.grad(output.sum(), weights))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output.sum(), weights)


def test_compiled_autograd_gives_the_gradients_of_an_eager_call():
    @rnn_ext.cell
    def sine(u, v, y):
        return torch.sin(u + v)

    @rnn_ext.cell
    def square(u, v, y):
        return torch.square(u + v)

    x = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    torch._dynamo.reset()
    # Of the same shapes, so that both may find the same compiled graph.
    for cell in (sine, square):
        layer = layer_of(cell)
        expected = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            layer(x)[0].sum().backward()
        assert_same_bits([p.grad for p in layer.parameters()], expected)


@pytest.mark.parametrize("counts", [(2**62, 0, 0), (1, 0, 2**62)], ids=["states", "kept values"])
def test_a_fake_call_does_not_make_more_results_than_a_cell_can_have(counts):
    x, w_ih, w_hh = (torch.zeros(*shape, device="meta") for shape in ((2, 1, 3), (5, 3), (5, 5)))
    with pytest.raises(RuntimeError, match="at most 256 states and kept values"):
        torch.ops.rnn_ext.recurrence_forward(
            x, [], [w_ih, w_hh], [], [], [], None, None, cells.elman.program, False, *counts
        )
