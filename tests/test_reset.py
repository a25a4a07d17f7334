"""``reset`` and ``reset_state``: rows that start anew in the middle of a sequence."""

import copy
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support import assert_same_bits, using_threads, without_node
from support.programs import as_argument
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnn_ext
from rnn_ext import CTRNN, GRU, LSTM, RNN, Recurrent, cells
from rnn_ext._core import node

SEQ_LEN, BATCH, INPUT, HIDDEN = 7, 4, 3, 5
# Among them: cells whose backward reads y, a further state, both, and none of them.
CELLS = [cells.elman, cells.gru, cells.lstm, cells.peephole_lstm, cells.leaky_current]


def layer_of(cell, **settings):
    torch.manual_seed(0)
    parameters = {name: nn.Parameter(torch.rand(HIDDEN).double()) for name in cell.parameters}
    settings = {"dtype": torch.float64, **settings}
    return Recurrent(cell, INPUT, HIDDEN, **settings, **parameters)


def noise_of(cell):
    return {name: 0.1 * torch.randn(SEQ_LEN, BATCH, HIDDEN).double() for name in cell.inputs}


def random_reset():
    """Rows with several resets, none, one in the first and the last step, and all."""
    reset = torch.zeros(SEQ_LEN, BATCH, dtype=torch.bool)
    reset[[2, 3, 5], 0] = True
    reset[[0, SEQ_LEN - 1], 2] = True
    reset[:, 3] = True
    return reset


def name_of(layer_or_cell):
    return layer_or_cell.__name__


def states_of(cell, *shape):
    return [
        torch.randn(*shape, HIDDEN).double().requires_grad_() for _ in range(1 + len(cell.states))
    ]


def loop(layer, input, initial, reset, reset_states, inputs):
    """The layers as plain loops: y and the further states at all steps, and the last states."""
    cell, directions = layer.cell, 2 if layer.bidirectional else 1
    parameters = {name: getattr(layer, name) for name in cell.parameters}
    finals, sequences = [], []
    for place, (w_ih, w_hh, b_ih, b_hh) in enumerate(layer.all_weights):
        if place % directions == 0 and place > 0:
            input, sequences = torch.cat([first for first, *_ in sequences], -1), []
        states = [x[place] for x in initial]
        history = {}
        for t in range(SEQ_LEN) if place % directions == 0 else reversed(range(SEQ_LEN)):
            given = [r[t, place] if r.dim() == 4 else r[place] for r in reset_states]
            mask = reset[t].unsqueeze(-1)
            states = [torch.where(mask, r, x) for r, x in zip(given, states, strict=True)]
            u, v = F.linear(input[t], w_ih, b_ih), F.linear(states[0], w_hh, b_hh)
            gates = [z.chunk(cell.gates, -1) if cell.gates > 1 else z for z in (u, v)]
            operands = parameters | {name: x[t] for name, x in inputs.items()}
            found = cell(*gates, *states, **operands)
            states = list(found) if cell.states else [found]
            history[t] = states
        sequences.append(
            [torch.stack([history[t][s] for t in range(SEQ_LEN)]) for s in range(len(states))]
        )
        finals.append(states)
    output, *further = [torch.cat(parts, -1) for parts in zip(*sequences, strict=True)]
    return [output, *map(torch.stack, zip(*finals, strict=True)), *further]


def gradients(results, tensors):
    weights = [torch.linspace(1, 2, r.numel()).to(r).view(r.shape) for r in results]
    return torch.autograd.grad(results, tensors, weights, allow_unused=True, materialize_grads=True)


def assert_near(found, expected):
    for a, b in zip(found, expected, strict=True):
        # float64, sums in another order and functions of at most 2 ulp, over a few steps.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("shape", [(BATCH,), (1,), (SEQ_LEN, BATCH), (SEQ_LEN, 1)], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_results_and_gradients_are_those_of_a_loop(isa, cell, shape, bidirectional):
    layer = layer_of(cell, num_layers=2, bidirectional=bidirectional)
    places = 4 if bidirectional else 2
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double().requires_grad_()
    initial = states_of(cell, places, BATCH)
    reset, reset_states = random_reset(), states_of(cell, *shape[:-1], places, shape[-1])
    noise = noise_of(cell)
    tensors = [x, *initial, *reset_states, *layer.parameters()]
    found = layer(
        *(x, as_argument(initial)),
        return_states=True,
        reset=reset,
        reset_state=as_argument(reset_states),
        **noise,
    )
    expected = loop(layer, x, initial, reset, reset_states, noise)
    assert_near(found, expected)
    assert_near(gradients(found, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_states_are_zeros_by_default(cell):
    layer = layer_of(cell, bidirectional=True)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double().requires_grad_()
    initial, noise, reset = states_of(cell, 2, BATCH), noise_of(cell), random_reset()
    zeros = [torch.zeros_like(state[:, :1]) for state in initial]
    tensors = [x, *layer.parameters()]
    for hx in (initial, None):
        start = [state.detach() for state in initial] if hx else zeros
        found = layer(x, as_argument(hx) if hx else None, return_states=True, reset=reset, **noise)
        expected = loop(layer, x, start, reset, zeros, noise)
        assert_near(found, expected)
        assert_near(gradients(found, tensors), gradients(expected, tensors))
    assert_near(
        gradients(layer(x, as_argument(initial), reset=reset, **noise)[:1], initial),
        gradients(loop(layer, x, initial, reset, zeros, noise)[:1], initial),
    )


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_equals_the_loop_of_stable_baselines(kind):
    """That of ``RecurrentActorCriticPolicy._process_sequence`` in stable-baselines3-contrib."""
    cell = {nn.RNN: None, nn.GRU: cells.gru, nn.LSTM: cells.lstm}[kind]
    torch.manual_seed(0)
    theirs = kind(INPUT, HIDDEN, num_layers=2, dtype=torch.float64)
    ours = layer_of(cell, num_layers=2) if cell else RNN(INPUT, HIDDEN, 2, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    episode_starts = random_reset().double()
    initial = torch.randn(2, 2, BATCH, HIDDEN).double()
    states = tuple(initial) if kind is nn.LSTM else (initial[0],)

    output, *finals = ours(features, as_argument(states), reset=episode_starts.bool())
    outputs = []
    for feature, episode_start in zip(features, episode_starts, strict=True):
        states = tuple((1.0 - episode_start).view(1, -1, 1) * state for state in states)
        step, last = theirs(feature.unsqueeze(0), as_argument(states))
        states = last if kind is nn.LSTM else (last,)
        outputs.append(step)
    assert_near([output, *finals], [torch.cat(outputs), *states])


def test_equals_the_stored_states_of_torchrl():
    """Like ``LSTMModule`` in TorchRL: each step that begins an episode has its own stored state."""
    layer = layer_of(cells.lstm, num_layers=2, batch_first=True)
    x = torch.randn(BATCH, SEQ_LEN, INPUT).double()
    is_init = random_reset().t().unsqueeze(-1)
    hidden, cell = torch.randn(2, BATCH, SEQ_LEN, 2, HIDDEN).double()

    stored = tuple(t.permute(1, 2, 0, 3) for t in (hidden, cell))
    start = tuple(t[0] for t in stored)
    output, *_ = layer(x, start, reset=is_init.squeeze(-1), reset_state=stored)

    for row in range(BATCH):
        bounds = [0, *(t for t in range(1, SEQ_LEN) if is_init[row, t]), SEQ_LEN]
        for begin, end in pairwise(bounds):
            h, c = hidden[row, begin].unsqueeze(1), cell[row, begin].unsqueeze(1)
            episode, *_ = layer(x[row : row + 1, begin:end], (h, c))
            assert torch.equal(output[row : row + 1, begin:end], episode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_a_reset_row_has_the_bits_of_a_sequence_that_starts_there(isa, cell, dtype):
    layer = layer_of(cell, dtype=dtype).to(dtype)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).to(dtype)
    noise = {name: value.to(dtype) for name, value in noise_of(cell).items()}
    reset = torch.zeros(SEQ_LEN, BATCH, dtype=torch.bool)
    reset[3, 1] = True
    for start in (None, [state.detach().to(dtype) for state in states_of(cell, 1, 1)]):
        whole = layer(
            x,
            return_states=True,
            reset=reset,
            reset_state=as_argument(start) if start else None,
            **noise,
        )
        alone = layer(
            x[3:, 1:2],
            as_argument(start) if start else None,
            return_states=True,
            **{name: value[3:, 1:2] for name, value in noise.items()},
        )
        untouched = layer(x, return_states=True, **noise)
        count = 1 + len(cell.states)
        for i, (all_rows, row, other) in enumerate(zip(whole, alone, untouched, strict=True)):
            is_final = 0 < i <= count
            assert torch.equal(all_rows[:, 1] if is_final else all_rows[3:, 1], row[:, 0])
            assert torch.equal(all_rows[:, [0, 2, 3]], other[:, [0, 2, 3]])
            if not is_final:
                assert torch.equal(all_rows[:3], other[:3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (SEQ_LEN, BATCH)], ids=str)
@pytest.mark.parametrize("cell", [cells.elman, cells.lstm], ids=name_of)
def test_gradients_of_half_precision(isa, cell, shape, dtype):
    layer = layer_of(cell, bidirectional=True).to(dtype)
    x, reset = torch.randn(SEQ_LEN, BATCH, INPUT).to(dtype), random_reset()
    states = [s.detach().to(dtype) for s in states_of(cell, *shape[:-1], 2, shape[-1])]
    found = []
    for wide in (dtype, torch.float32):
        given = [state.to(wide).requires_grad_() for state in states]
        module = copy.deepcopy(layer).to(wide)
        output, *_ = module(x.to(wide), reset=reset, reset_state=as_argument(given))
        # The same gradient of the output for both.
        found.append(gradients([output.to(torch.float64)], [*given, *module.parameters()]))
    for half, single in zip(*found, strict=True):
        # Stored values are rounded once; a gradient sums some tens of products of them.
        bound = 4 * torch.finfo(dtype).eps * float(single.abs().max())
        torch.testing.assert_close(half.float(), single, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["RNN", *(cell.name for cell in CELLS)])
@pytest.mark.bfloat16
def test_no_reset_has_the_bits_of_a_call_without(isa, kind, dtype):
    torch.manual_seed(0)
    cell = None if kind == "RNN" else next(cell for cell in CELLS if cell.name == kind)
    layer = (
        layer_of(cell, num_layers=2, bidirectional=True).to(dtype)
        if cell
        else RNN(INPUT, HIDDEN, 2, bidirectional=True, dtype=dtype)
    )
    x = torch.randn(SEQ_LEN, BATCH, INPUT).to(dtype).requires_grad_()
    noise = {name: value.to(dtype) for name, value in (noise_of(cell) if cell else {}).items()}
    initial = [state.detach().to(dtype) for state in states_of(cell or cells.elman, 4, BATCH)]
    tensors = [x, *layer.parameters(), *initial]
    for state in initial:
        state.requires_grad_()
    found = layer(
        x, as_argument(initial), reset=torch.zeros(SEQ_LEN, BATCH, dtype=torch.bool), **noise
    )
    expected = layer(x, as_argument(initial), **noise)
    assert_same_bits(found, expected)
    assert_same_bits(gradients(found, tensors), gradients(expected, tensors))


# Two threads share the rows in the first case, the columns in the second.
@pytest.mark.parametrize(("batch", "hidden_size"), [(33, 70), (1, 700)])
@pytest.mark.parametrize("cell", [cells.gru, cells.lstm], ids=name_of)
def test_bits_depend_on_neither_threads_nor_batch(cell, batch, hidden_size):
    torch.manual_seed(0)
    layer = Recurrent(cell, 40, hidden_size)
    x, reset = torch.randn(20, batch, 40), torch.rand(20, batch) < 0.1
    state = tuple(
        torch.randn(1, 1, hidden_size).requires_grad_() for _ in range(1 + len(cell.states))
    )
    given = as_argument(state)
    found = []
    for threads in (1, 2):
        with using_threads(threads):
            results = layer(x, reset=reset, reset_state=given)
            tensors = [*layer.parameters(), *state]
            found.append([*results, *gradients(results, tensors)])
    assert_same_bits(*found)
    row = layer(x[:, -1:], reset=reset[:, -1:], reset_state=given)
    assert_same_bits(row, [result[:, -1:] for result in found[0][: len(row)]])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_is_the_recurrent_layer_of_its_cell(nonlinearity):
    @rnn_ext.cell
    def relu(u, v, y):
        return torch.relu(u + v)

    cell = cells.elman if nonlinearity == "tanh" else relu
    layer = layer_of(cell, num_layers=2, bidirectional=True)
    rnn = RNN(INPUT, HIDDEN, 2, nonlinearity, bidirectional=True, dtype=torch.float64)
    rnn.load_state_dict(layer.state_dict())
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double().requires_grad_()
    reset, (hx,), (state,) = random_reset(), states_of(cell, 4, BATCH), states_of(cell, 4, 1)
    tensors = [x, hx, state]
    found = rnn(x, hx, reset=reset, reset_state=state)
    expected = layer(x, hx, reset=reset, reset_state=state)
    assert_same_bits(found, expected)
    assert_same_bits(gradients(found, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("make", [lambda **s: layer_of(cells.lstm, **s), None], ids=["lstm", "RNN"])
def test_layouts_of_input(make):
    def layer(**settings):
        torch.manual_seed(0)
        if make:
            return make(num_layers=2, bidirectional=True, **settings)
        return RNN(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64, **settings)

    count = 2 if make else 1
    x, reset = torch.randn(SEQ_LEN, BATCH, INPUT).double(), random_reset()
    states = [torch.randn(SEQ_LEN, 4, BATCH, HIDDEN).double() for _ in range(count)]
    time_major, turned = layer(), layer(batch_first=True)
    found = time_major(x, reset=reset, reset_state=as_argument(states))
    output, *finals = turned(x.transpose(0, 1), reset=reset.t(), reset_state=as_argument(states))
    assert_same_bits([output.transpose(0, 1), *finals], found)
    gradient, other = (
        torch.autograd.grad(t.sum(), list(module.parameters()))
        for t, module in ((output, turned), (found[0], time_major))
    )
    assert_near(gradient, other)
    row = [state[:, :, 0] for state in states]
    for module in (time_major, turned):
        output, *finals = module(x[:, 0], reset=reset[:, 0], reset_state=as_argument(row))
        assert_same_bits([output, *finals], [found[0][:, 0], *(t[:, 0] for t in found[1:])])
        constant = [state[0] for state in row]
        alone = module(x[:, 0], reset=reset[:, 0], reset_state=as_argument(constant))
        assert alone[0].shape == (SEQ_LEN, 2 * HIDDEN)


@pytest.mark.skipif(not node.is_loaded, reason="needs the autograd node in C++")
@pytest.mark.parametrize("reset_shape", [None, "zeros", (1,), (BATCH,), (SEQ_LEN, 1)], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("make", [RNN, GRU, LSTM, cells.leaky_current], ids=name_of)
def test_one_layer_is_one_call_of_cpp_and_gives_what_python_does(
    make, batch_first, reset_shape, monkeypatch
):
    settings = {"bidirectional": True, "batch_first": batch_first, "dtype": torch.float64}
    is_cell = isinstance(make, type(cells.elman))
    cell = make if is_cell else {RNN: cells.elman, GRU: cells.gru, LSTM: cells.lstm}[make]
    layer = layer_of(cell, **settings) if is_cell else make(INPUT, HIDDEN, **settings)
    x, reset = torch.randn(SEQ_LEN, BATCH, INPUT).double(), random_reset()
    inputs = noise_of(cell)
    if batch_first:
        x, reset = x.transpose(0, 1), reset.t()
        inputs = {name: value.transpose(0, 1) for name, value in inputs.items()}
    hx, states = states_of(cell, 2, BATCH), []
    options = {}
    if reset_shape is not None:
        options["reset"] = reset
    if isinstance(reset_shape, tuple):
        states = states_of(cell, *reset_shape[:-1], 2, reset_shape[-1])
        options["reset_state"] = as_argument(states)
    leaves = [x.requires_grad_(), *hx, *states, *layer.parameters()]

    def run():
        output, finals, *more = layer(x, as_argument(hx), **options, **inputs)
        results = [output, *(finals if isinstance(finals, tuple) else [finals]), *more]
        return [*results, *gradients(results, leaves), *output.shape]

    found = run()
    with monkeypatch.context() as patch:
        patch.setattr(node, "run_recurrence", None)  # which Python calls
        if make is not RNN or options:  # else compiled kernels
            run()
    without_node(monkeypatch)
    expected = run()
    assert found[-3:] == expected[-3:]
    assert_near(found[:-3], expected[:-3])


def test_dropout_is_that_of_a_call_without_reset():
    for layer in (
        layer_of(cells.gru, num_layers=2, dropout=0.5),
        RNN(INPUT, HIDDEN, 2, dropout=0.5, dtype=torch.float64),
    ):
        x, none = torch.randn(SEQ_LEN, BATCH, INPUT).double(), torch.zeros(SEQ_LEN, BATCH).bool()
        found = []
        for options in ({}, {"reset": none}):
            torch.manual_seed(1)
            found.append(layer(x, **options))
        assert_same_bits(*found)
        assert not torch.equal(layer(x, reset=none)[0], found[0][0])
        layer.eval()
        assert torch.equal(layer(x, reset=none)[0], layer(x)[0])


@pytest.mark.parametrize("form", ["current", "rate"])
@pytest.mark.parametrize("learn", [False, True])
def test_ctrnn_starts_anew_from_its_initial_state(form, learn):
    torch.manual_seed(0)
    layer = CTRNN(
        *(INPUT, HIDDEN),
        form=form,
        alpha=0.3,
        nonlinearity="sigmoid",
        learn_initial_state=learn,
        dtype=torch.float64,
    )
    if layer.initial_state is not None:
        nn.init.normal_(layer.initial_state)
    x, reset = torch.randn(SEQ_LEN, 1, INPUT).double(), torch.zeros(SEQ_LEN, 1).bool()
    reset[4] = True
    output, final = layer(x, reset=reset)
    first, second = layer(x[:4]), layer(x[4:])
    assert_same_bits([output, final], [torch.cat([first[0], second[0]]), second[1]])
    state = torch.randn(1, 1, HIDDEN).double()
    output, _ = layer(x, reset=reset, reset_state=state)
    assert torch.equal(output[4:], layer(x[4:], state)[0])


@pytest.mark.parametrize("cell", [cells.gru, cells.lstm], ids=name_of)
def test_gradcheck_and_gradgradcheck(cell):
    layer = layer_of(cell, bidirectional=True)
    x = torch.randn(3, 2, INPUT).double().requires_grad_()
    reset = torch.tensor([[True, False], [False, True], [False, True]])
    hx, state = states_of(cell, 2, 2), states_of(cell, 3, 2, 1)

    def call(x, *states):
        hx, state = states[: len(states) // 2], states[len(states) // 2 :]
        return layer(x, as_argument(hx), reset=reset, reset_state=as_argument(state))

    assert torch.autograd.gradcheck(call, (x, *hx, *state), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *hx, *state), fast_mode=True)


def test_transforms_give_the_same():
    layer = layer_of(cells.lstm)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    reset, states = random_reset(), [s.detach() for s in states_of(cells.lstm, 1, 1)]

    def loss(x, h, c, reset):
        return layer(x, reset=reset, reset_state=(h, c))[0].sum()

    found = torch.func.grad(loss, (0, 1, 2))(x, *states, reset)
    tensors = [t.clone().requires_grad_() for t in (x, *states)]
    expected = torch.autograd.grad(loss(*tensors, reset), tensors)
    assert_near(found, expected)
    each = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), (1, None, None, 1))(
        x.unsqueeze(2), *states, reset.unsqueeze(2)
    )
    assert_near([each[0].squeeze(2).transpose(0, 1), each[1].sum(0), each[2].sum(0)], expected)


@pytest.mark.parametrize("module", ["recurrent", "rnn"])
def test_compiles_into_one_graph_and_exports(module):
    layer = (
        layer_of(cells.gru, num_layers=2, bidirectional=True)
        if module == "recurrent"
        else RNN(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
    )
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, batch in ((3, 2), (5, 4)):
        x = torch.randn(steps, batch, INPUT).double().requires_grad_()
        state = torch.randn(4, 1, HIDDEN).double().requires_grad_()
        options = {"reset": torch.rand(steps, batch) < 0.5, "reset_state": state}
        found, expected = compiled(x, **options), layer(x, **options)
        assert_same_bits(found, expected)
        tensors = [x, state, *layer.parameters()]
        assert_near(gradients(found, tensors), gradients(expected, tensors))
    sizes = {0: torch.export.Dim("steps", min=2)}
    options = {"reset": torch.rand(3, 2) < 0.5, "reset_state": torch.randn(4, 1, HIDDEN).double()}
    program = torch.export.export(
        *(layer, (torch.randn(3, 2, INPUT).double(),), options),
        dynamic_shapes={"input": sizes, "reset": sizes, "reset_state": None},
        strict=False,
    )
    x, options["reset"] = torch.randn(6, 2, INPUT).double(), torch.rand(6, 2) < 0.5
    assert_same_bits(program.module()(x, **options), layer(x, **options))


def test_explain_names_the_program():
    x, reset = torch.randn(SEQ_LEN, BATCH, INPUT), random_reset()
    for nonlinearity, name in (("tanh", "elman"), ("relu", "relu")):
        rnn = RNN(INPUT, HIDDEN, nonlinearity=nonlinearity)
        assert "program" not in rnn_ext.explain(rnn, x)
        assert f"program of cell {name!r}" in rnn_ext.explain(rnn, x, reset=reset)


def test_fx_records_the_arguments():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = RNN(INPUT, HIDDEN)

        def forward(self, x, reset):
            return self.rnn(x, reset=reset)[0]

    model, x = Model(), torch.randn(SEQ_LEN, BATCH, INPUT)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x, random_reset()), model(x, random_reset()))


@pytest.mark.parametrize("make", [lambda: layer_of(cells.lstm), None], ids=["lstm", "RNN"])
def test_mistakes_are_named(make):
    layer = make() if make else RNN(INPUT, HIDDEN, dtype=torch.float64)
    x, reset = torch.randn(SEQ_LEN, BATCH, INPUT).double(), random_reset()
    count = 2 if make else 1

    def state(*shape, dtype=torch.float64):
        return as_argument([torch.zeros(shape, dtype=dtype)] * count)

    y = "y" if make else "h"
    packed = pack_sequence([torch.randn(3, INPUT).double()])
    mistakes = [
        (x, {"reset": reset.float()}, "reset must be a bool tensor, got torch.float32"),
        (x, {"reset": reset.int()}, "reset must be a bool tensor, got torch.int32"),
        (x, {"reset": [False]}, "reset must be a bool tensor, got list"),
        (x, {"reset": reset.t()}, "reset: expected shape (7, 4), got (4, 7)"),
        (x, {"reset": reset[:, :3]}, "reset: expected shape (7, 4), got (7, 3)"),
        (x[:, 0], {"reset": reset}, "reset: expected shape (7,), got (7, 4)"),
        (x, {"reset": reset.to("meta")}, "reset is on meta, input on cpu"),
        (x, {"reset_state": state(1, 1, 5)}, "reset_state has no effect without reset"),
        (packed, {"reset": reset}, "reset does not support a PackedSequence: pad"),
        (
            *(x, {"reset": reset, "reset_state": [torch.zeros(1, 1, 5)] * 3}),
            f"reset_state must be {count} tensors, for",
        ),
        (
            *(x, {"reset": reset, "reset_state": state(1, 2, 5)}),
            f"reset_state: expected {y} of shape (1, 4, 5), or (7, 1, 4, 5) for values of each "
            "step, got (1, 2, 5)",
        ),
        (
            *(x[:, 0], {"reset": reset[:, 0], "reset_state": state(2, 5)}),
            f"reset_state: expected {y} of shape (1, 5), or (7, 1, 5)",
        ),
        (
            *(x, {"reset": reset, "reset_state": state(1, 1, 5, dtype=torch.float32)}),
            f"reset_state: {y} is torch.float32, input is torch.float64",
        ),
        (
            *(x, {"reset": reset, "reset_state": as_argument([state(1, 1, 5).to("meta")])}),
            "reset_state: h is on meta, input on cpu",
        )
        if count == 1
        else (x, {"reset": reset, "reset_state": state(4, 5)}, "got (4, 5)"),
    ]
    for input, options, message in mistakes:
        with pytest.raises(ValueError, match=re.escape(message)):
            layer(input, **options)


def test_the_op_checks_its_operands():
    layer = layer_of(cells.elman)
    x, weights = torch.randn(SEQ_LEN, BATCH, INPUT).double(), [*layer.all_weights[0]]
    state = torch.zeros(1, 1, HIDDEN).double()

    def call(reset, states):
        return torch.ops.rnn_ext.recurrence_forward(
            *(x, [], [w.detach() for w in weights], [], [], states, reset, None),
            *(cells.elman.program, False, 1, 0, 0),
        )

    reset = random_reset()
    call(reset, [state])
    for arguments, message in (
        ((None, [state]), "reset_states need reset"),
        ((reset.int(), []), "reset must be bool"),
        ((reset[1:], []), "reset has an unexpected shape"),
        ((reset, [state] * 2), "a reset state for each state"),
        ((reset, [state.expand(1, 3, -1)]), "a reset state has an unexpected shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*arguments)
