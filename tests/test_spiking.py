"""Spiking cells beside plain loops, and beside snnTorch and Norse (`make test-extras`)."""

import copy
import math
import pickle

import pytest
import torch
from support.programs import assert_program_equals_loop
from torch import nn

from rnn_ext import Recurrent, cells

STEPS, BATCH, SIZE = 12, 4, 6
OPTIONS = [
    {"surrogate": surrogate, "reset": reset, "detach_reset": detach}
    for surrogate in cells.SURROGATES
    for reset in cells.RESETS
    for detach in (False, True)
]
PARAMETERS = {
    "lif": {"beta": 0.8, "threshold": 0.5},
    "alif": {"beta": 0.6, "threshold": 0.2, "rho": 0.9, "gamma": 0.7},
}


def layer_of(cell, **values):
    """A layer in float64, whose parameters are learned, one per unit, around their values."""
    torch.manual_seed(0)
    spread = torch.linspace(0.9, 1.1, SIZE, dtype=torch.float64)
    learned = {name: nn.Parameter(value * spread) for name, value in values.items()}
    return Recurrent(cell, SIZE, SIZE, dtype=torch.float64, **learned)


def random_input():
    return (3 * torch.randn(STEPS, BATCH, SIZE, dtype=torch.float64)).requires_grad_()


def step_like(x, surrogate, slope):
    """A step from 0 to 1 with the derivative of a smooth function."""
    smooth = {
        "fast_sigmoid": lambda: x / (1 + slope * x.abs()),
        "arctan": lambda: torch.atan(math.pi / 2 * slope * x) / math.pi,
        "straight_through": lambda: x,
    }[surrogate]()
    return (x > 0).double() + smooth - smooth.detach()


def loop(layer, input, surrogate, reset, detach_reset, slope):
    """Spikes, potentials and adaptations of all steps, by the formulas of the papers."""
    w_ih, w_hh, b_ih, b_hh = layer.all_weights[0]
    y = x = a = input.new_zeros(input.size(1), SIZE)
    history = []
    for drive in input:
        current = drive @ w_ih.T + b_ih + y @ w_hh.T + b_hh
        spikes = y.detach() if detach_reset else y
        threshold = layer.threshold
        if layer.cell.name == "alif":
            current = (1 - layer.beta) * current
            a = layer.rho * a + (1 - layer.rho) * y
            threshold = threshold + layer.gamma * a
        if reset == "subtract":
            x = layer.beta * x + current - layer.threshold * spikes
        else:
            x = layer.beta * (x - spikes * x) + current
        y = step_like(x - threshold, surrogate, slope)
        history.append((y, x, a) if layer.cell.name == "alif" else (y, x))
    return [torch.stack(parts) for parts in zip(*history, strict=True)]


def assert_equal(found, expected, tensors, their_tensors=None):
    """Spikes (the first of both) and states, and the gradients of a function of all."""
    assert 0.1 < expected[0].mean() < 0.9, "too few or too many spikes to tell"
    weights = [torch.randn_like(t) for t in expected]
    results = []
    for values, wanted in ((found, tensors), (expected, their_tensors or tensors)):
        total = sum((w * v).sum() for w, v in zip(weights, values, strict=True))
        results.append([*values, *torch.autograd.grad(total, wanted, allow_unused=True)])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            # float64, sums in another order over a few steps.
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("name", PARAMETERS)
def test_values_and_gradients_are_those_of_a_plain_loop(name, options):
    slope = 4.0  # wide enough that many derivatives are far from 0
    cell = getattr(cells, f"make_{name}")(slope=slope, **options)
    layer, x = layer_of(cell, **PARAMETERS[name]), random_input()
    output, *_ = found = layer(x, return_states=True)
    states = found[-len(cell.states) :]
    expected = loop(layer, x, slope=slope, **options)
    assert_equal([output, *states], expected, [x, *layer.parameters()])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("name", PARAMETERS)
def test_program_equals_the_function(name, options):
    assert_program_equals_loop(getattr(cells, f"make_{name}")(**options))


@pytest.mark.parametrize("surrogate", cells.SURROGATES)
def test_slope_has_the_default_of_its_surrogate(surrogate):
    x = torch.linspace(-0.3, 0.3, 7, dtype=torch.float64).requires_grad_()
    (found,) = torch.autograd.grad(cells.spike(x, surrogate=surrogate).sum(), x)
    slope = {"fast_sigmoid": 25.0, "arctan": 2.0, "straight_through": 1.0}[surrogate]
    (expected,) = torch.autograd.grad(step_like(x, surrogate, slope).sum(), x)
    torch.testing.assert_close(found, expected)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="surrogate must be one of fast_sigmoid, arctan, straight"):
        cells.make_lif(surrogate="atan")
    with pytest.raises(ValueError, match="reset must be one of subtract, zero, got 'none'"):
        cells.make_alif(reset="none")
    with pytest.raises(ValueError, match="surrogate must be one of"):
        cells.spike(torch.zeros(2), surrogate="relu")


@pytest.mark.parametrize("make", [cells.make_lif, cells.make_alif])
def test_a_pickled_cell_is_found_or_keeps_its_program(make):
    default = getattr(cells, make.__name__.removeprefix("make_"))
    assert pickle.loads(pickle.dumps(make())) is default
    other = make(surrogate="arctan", reset="zero")
    twin = pickle.loads(pickle.dumps(other))
    assert twin is not default
    assert torch.equal(twin.program, other.program)
    layer = layer_of(other, **PARAMETERS[default.name])
    restored, x = pickle.loads(pickle.dumps(layer)), random_input()
    assert torch.equal(restored(x)[0], layer(x)[0])
    assert copy.deepcopy(layer).cell is other


def in_double(function):
    """snnTorch's surrogate, whose spikes are float32, for float64."""

    class Double(function):
        @staticmethod
        def forward(ctx, *arguments):
            return function.forward(ctx, *arguments).double()

    return Double


@pytest.mark.parametrize("surrogate", cells.SURROGATES)
def test_lif_is_snntorchs(surrogate):
    snntorch = pytest.importorskip("snntorch")
    from snntorch import surrogate as theirs

    name = {"fast_sigmoid": "FastSigmoid", "arctan": "ATan"}
    function = in_double(getattr(theirs, name.get(surrogate, "StraightThroughEstimator")))
    slopes = [] if surrogate == "straight_through" else [3.0]
    cell = cells.make_lif(surrogate=surrogate, slope=3.0, detach_reset=True)
    layer, x = layer_of(cell, **PARAMETERS["lif"]), random_input()
    w_ih, w_hh, b_ih, b_hh = weights = layer.all_weights[0]
    neuron = snntorch.RLeaky(
        beta=layer.beta.detach(),
        threshold=layer.threshold.detach(),
        learn_beta=True,
        learn_threshold=True,
        linear_features=SIZE,
        spike_grad=lambda x: function.apply(x, *slopes),
        reset_mechanism="subtract",
    )
    neuron.recurrent.weight, neuron.recurrent.bias = w_hh, b_hh
    spikes = potential = torch.zeros(BATCH, SIZE, dtype=torch.float64)
    history = []
    for current in nn.functional.linear(x, w_ih, b_ih):
        spikes, potential = neuron(current, spikes, potential)
        history.append((spikes, potential))
    output, _, _, potentials = layer(x, return_states=True)
    assert_equal(
        [output, potentials],
        [torch.stack(parts) for parts in zip(*history, strict=True)],
        [x, *weights, layer.beta, layer.threshold],
        [x, *weights, neuron.beta, neuron.threshold],
    )


DT = 1e-3


def norse_parameters(kind, layer, **own):
    """Norse's parameters of a layer. Its surrogate has slope 1, whatever its alpha."""
    constants = {"v_leak": 0.0, "v_reset": 0.0, "tau_syn_inv": 1 / DT}
    return kind(
        tau_mem_inv=(1 - layer.beta) / DT,
        v_th=layer.threshold,
        **{
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in constants.items()
            if name in kind._fields
        },
        **own,
    )


def run_norse(step, currents, state):
    """The spikes of all steps."""
    spikes = []
    for current in currents:
        z, state = step(current, state)
        spikes.append(z)
    return torch.stack(spikes)


def test_lif_is_norses():
    lif = pytest.importorskip("norse.torch.functional.lif")
    cell = cells.make_lif(slope=1.0, reset="zero", detach_reset=True)
    layer, x = layer_of(cell, **PARAMETERS["lif"]), random_input()
    w_ih, w_hh, b_ih, b_hh = weights = layer.all_weights[0]
    parameters, scale = norse_parameters(lif.LIFParameters, layer), 1 - layer.beta
    zeros = torch.zeros(BATCH, SIZE, dtype=torch.float64)

    def step(current, state):
        identity = torch.eye(SIZE, dtype=torch.float64)
        return lif.lif_step(current, state, identity, w_hh / scale[:, None], parameters, DT)

    currents = (nn.functional.linear(x, w_ih, b_ih) + b_hh) / scale
    expected = run_norse(step, currents, lif.LIFState(zeros, zeros, zeros))
    assert_equal([layer(x)[0]], [expected], [x, *weights, layer.beta, layer.threshold])


def feed_forward(cell, **values):
    """A layer without recurrent weights."""
    layer = layer_of(cell, **values)
    nn.init.zeros_(layer.weight_hh_l0)
    return layer


def test_lif_is_norses_boxed_neuron():
    box = pytest.importorskip("norse.torch.functional.lif_box")
    layer = feed_forward(cells.make_lif(slope=1.0, reset="zero"), **PARAMETERS["lif"])
    x = random_input()
    w_ih, _, b_ih, b_hh = layer.all_weights[0]
    parameters = norse_parameters(box.LIFBoxParameters, layer)
    currents = (nn.functional.linear(x, w_ih, b_ih) + b_hh) / (1 - layer.beta)
    state = box.LIFBoxFeedForwardState(torch.zeros(BATCH, SIZE, dtype=torch.float64))
    expected = run_norse(
        lambda current, state: box.lif_box_feed_forward_step(current, state, parameters, DT),
        *(currents, state),
    )
    assert_equal([layer(x)[0]], [expected], [x, w_ih, b_ih, b_hh, layer.beta, layer.threshold])


def test_alif_is_norses_a_step_earlier():
    lsnn = pytest.importorskip("norse.torch.functional.lsnn")
    layer = feed_forward(cells.make_alif(slope=1.0, reset="zero"), **PARAMETERS["alif"])
    x = random_input()
    w_ih, _, b_ih, b_hh = layer.all_weights[0]
    parameters = norse_parameters(
        *(lsnn.LSNNParameters, layer),
        tau_adapt_inv=(1 - layer.rho) / DT,
        beta=layer.gamma * (1 - layer.rho) / layer.rho,
    )
    zeros = torch.zeros(BATCH, SIZE, dtype=torch.float64)
    currents = nn.functional.linear(x, w_ih, b_ih) + b_hh
    expected = run_norse(
        lambda current, state: lsnn.lsnn_feed_forward_step(current, state, parameters, DT),
        [*currents[1:], zeros],  # a current arrives in the step before it acts
        lsnn.LSNNFeedForwardState(v=zeros, i=currents[0], b=layer.threshold.expand_as(zeros)),
    )
    learned = [getattr(layer, name) for name in layer.cell.parameters]
    assert_equal([layer(x)[0]], [expected], [x, w_ih, b_ih, b_hh, *learned])
