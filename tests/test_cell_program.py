"""Programs of cells with everything that a cell may contain, against their functions."""

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import assert_program_equals_loop, by_kernels, check, random_run

import rnn_ext
from rnn_ext import cells
from rnn_ext._core.cells import program
from rnn_ext._core.cells.interpreter import run_step
from rnn_ext._core.cells.program import Program

nan, inf = math.nan, math.inf
# Points where the pieces of piecewise functions meet, and values for which exp overflows.
SPECIAL = [nan, inf, -inf, 0.0, -0.0, 0.5, -0.5, 1.5, 1.0, -1.0, 2.0, 3.0, -3.0, 6.0, 25.0, 1e-30]
SPECIAL += [-25.0, 800.0, -800.0]

OPERATIONS = {
    "neg": lambda x: -x,
    "abs": torch.abs,
    "reflected": lambda x: 2 - x * 3 - 1,
    "divided": lambda x: x / 3 + 1 / (x + 0.3),
    "alpha": lambda x: torch.add(x, x.sin(), alpha=2) - torch.sub(x, x.cos(), alpha=3),
    "maximum": lambda x: torch.maximum(x, x * x),
    "minimum": lambda x: torch.min(x, 1 - x),
    "clamp": lambda x: x.clamp(-0.5, 1.5),
    "clamp_min": lambda x: x.clamp(min=0.5),
    "clamp_max": lambda x: torch.clamp_max(x, 0.5),
    "where": lambda x: torch.where((x > 0.5) | (x <= -1), x * 2, 0.25),
    "where of numbers": lambda x: torch.where(x < 0.5, 1, 2) * x,
    "masks": lambda x: x * ((x > -1) & ~(x == 0.5)) + ((x != 1) ^ (x >= 2)).float(),
    "logical": lambda x: torch.logical_and(x, x > -1).to(x.dtype) * x + x.bool(),
    "masks added": lambda x: ((x > 0) + (x > 1)) * x,
    "masked_fill": lambda x: x.masked_fill(x > 0.5, 0.125),
    "isnan": lambda x: torch.where(torch.isnan(x), 0.5, x),
    "floor": lambda x: torch.floor(x) * x,
    "ceil": lambda x: torch.ceil(x) * x,
    "round": lambda x: torch.round(x) * x,
    "trunc": lambda x: torch.trunc(x) * x,
    "sign": lambda x: torch.sign(x) * x.cos(),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda x: torch.log(x * x + 0.5),
    "log of any": torch.log,
    "log1p": lambda x: torch.log1p(x.abs()),
    "sqrt": lambda x: torch.sqrt(x * x + 0.5),
    "rsqrt": lambda x: torch.rsqrt(x * x + 0.5),
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "pow 0": lambda x: x**0 + x,
    "pow 1": lambda x: x**1,
    "pow 3": lambda x: x**3,
    "pow 7": lambda x: x**7,
    "pow -2": lambda x: x**-2,
    "pow 0.5": lambda x: (x * x + 0.5) ** 0.5,
    "pow -0.5": lambda x: (x * x + 0.5) ** -0.5,
    "pow 1.7": lambda x: (x * x + 0.5) ** 1.7,
    "2 **": lambda x: 2**x,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
    "softplus, beta": lambda x: F.softplus(x, beta=3, threshold=4),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 1.5),
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.5, 0.25),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.sin(), value=0.5),
    "retanh": lambda x: torch.relu(x).tanh(),
    "detach": lambda x: x.detach() * x,
    "in place": lambda x: (x * 2).add_(1).tanh_(),
    "new tensors": lambda x: torch.zeros_like(x) + torch.tensor(0.5) + x.new_ones(()) * x,
    "constant": lambda x: torch.full_like(x, 0.5).exp() * x,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_torchs(name):
    """At special values and between them, values and gradients, forward and backward programs."""
    function = OPERATIONS[name]

    @rnn_ext.cell
    def cell(u, v, y):
        return function(u)

    program = Program.decode(cell.program)
    check(program)
    x = torch.cat([torch.tensor(SPECIAL), 2 * torch.randn(50)]).double().requires_grad_()
    actual = run_step(program, (x,), (x.detach(),), (x.detach(),))
    expected = function(x)
    grad = torch.randn_like(x)
    (actual_grad,) = torch.autograd.grad(actual, x, grad)
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    # Some roundings of 1e-16, times 800 where an exponential has its argument from a product.
    # Torch's hardsigmoid multiplies by 1 / 6 in float32.
    rtol = 1e-7 if name == "hardsigmoid" else 1e-12
    for a, b in ((actual, expected), (actual_grad, expected_grad)):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=1e-13, equal_nan=True)


class Triangle(torch.autograd.Function):
    """A surrogate gradient that masks the gradient in place, as in many tutorials."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.gt(0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        result = grad.clone()
        result.masked_fill_(x.abs() > 1, 0)
        return result * (1 - x.abs())


SURROGATES = {
    "autograd.Function": Triangle.apply,
    "detach": lambda x: (x > 0).to(x.dtype).detach() + x.sigmoid() - x.sigmoid().detach(),
    "spike": cells.spike,
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_gradients(name):
    @rnn_ext.cell(states=("x",))
    def cell(u, v, y, x):
        x = 0.9 * x + u + v - y
        return SURROGATES[name](x - 1).double(), x

    assert_program_equals_loop(cell)


def no_products(u, v, y):
    return 0.5 * y + 0.25


def constants(u, v, y, a):
    return torch.zeros_like(y), torch.full_like(y, nan)


def swapped(u, v, y, a):
    return a, y


def separate(u, v, y):
    return u * v + (u + v).tanh()


def only_recurrent(u, v, y):
    return v.tanh()


def many_gates(u, v, y):
    for a, b in zip(u, v, strict=True):
        y = (y + a * b).sin()
    return y


NINE = tuple("abcdefghi")


def nine_states(u, v, y, a, b, c, d, e, f, g, h, i):
    states = (a, b, c, d, e, f, g, h, i)
    new = [(s * t + u).sin() for s, t in zip(states, (y, *states), strict=False)]
    return (sum(new, v).tanh(), *new)


def early_results(u, v, y, c, *, p, n):
    """Three products; a state is there before the last; values pass from each phase to the last."""
    a, b = u[0] * v[0], (u[1] + v[1]).sigmoid()
    w = yield a * b + p
    d = (w * n).tanh() + a
    c = c * d
    x = yield d + c
    return (x * u[3]).sigmoid() * b + y + u[2] * w, c.tanh()


def yields_y(u, v, y):
    w = yield y
    return (u[0] + w).sin()


def yields_a_constant(u, v, y):
    a, b = yield torch.ones_like(y)
    return (u[0] + a + v).sin() * b


def yields_for_nothing(u, v, y):
    yield y.exp()
    return v.sin()


def explodes(u, v, y):
    return (y * y + 3).exp() + u + v


def explodes_within_a_step(u, v, y):
    w = yield (y * y + 3).exp()
    return w + u[0] * v


def is_nan_at_once(u, v, y):
    w = yield (-y * y - 1).log()
    return (u[1] + w).tanh() + v


UNUSUAL = [
    rnn_ext.cell(no_products),
    rnn_ext.cell(states=("a",))(constants),
    rnn_ext.cell(states=("a",))(swapped),
    rnn_ext.cell(separate),
    rnn_ext.cell(only_recurrent),
    rnn_ext.cell(gates=40)(many_gates),
    rnn_ext.cell(states=NINE)(nine_states),
    rnn_ext.cell(gates=(2, 1, 1), states=("c",), parameters=("p",), inputs=("n",))(early_results),
    rnn_ext.cell(gates=(1, 1))(yields_y),
    rnn_ext.cell(gates=(1, 2))(yields_a_constant),
    rnn_ext.cell(gates=(1, 1))(yields_for_nothing),
    rnn_ext.cell(explodes),
    rnn_ext.cell(gates=(1, 1))(explodes_within_a_step),
    rnn_ext.cell(gates=(1, 1))(is_nan_at_once),
]


@pytest.mark.parametrize("cell", UNUSUAL, ids=lambda cell: cell.name)
@pytest.mark.parametrize("hidden_size", [7, 70])
def test_unusual_cells(cell, hidden_size):
    assert_program_equals_loop(cell, hidden_size)


KNOWN = [getattr(cells, name) for name in cells.__all__]


@settings(max_examples=60, deadline=None)
@given(
    cell=st.sampled_from([*UNUSUAL, *(c for c in KNOWN if isinstance(c, rnn_ext.Cell))]),
    sizes=st.tuples(st.sampled_from([1, 2, 17, 33]), st.integers(1, 4), st.sampled_from([0, 1, 5])),
)
def test_cells_in_any_shape(cell, sizes):
    assert_program_equals_loop(cell, *sizes)


def test_kernels_take_one_value_for_all_units():
    run = random_run(cells.leaky_current)
    (alpha,), (noise,) = run.parameters, run.inputs
    ones = torch.ones((), dtype=torch.float64)
    results = []
    for copy in (torch.Tensor.expand_as, lambda x, shape: x.expand_as(shape).contiguous()):
        run.parameters, run.inputs = [copy(0.3 * ones, alpha)], [copy(0.1 * ones, noise)]
        states, grads = by_kernels(cells.leaky_current, run, [copy(ones, noise)] * 2)
        results.append([*states, *grads])
    for expanded, dense in zip(*results, strict=True):
        assert torch.equal(expanded, dense)


# Smooth and bounded, so that rounding does not grow.
UNARY = (torch.tanh, torch.sin, torch.sigmoid, F.softsign, torch.cos, torch.erf)
YIELD = 10


@st.composite
def expressions(draw):
    """Each takes two earlier values: (operation, first, second)."""
    count = draw(st.integers(1, 25))
    indices = st.integers(0, 1000)
    return [(draw(st.integers(0, YIELD)), draw(indices), draw(indices)) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    steps=expressions(),
    results=st.tuples(*[st.integers(0, 1000)] * 3),
    gates=st.sampled_from([1, 2]),
    merged=st.booleans(),
)
def test_random_cells(steps, results, gates, merged):
    yields = sum(op == YIELD for op, *_ in steps)

    def compute(u, v, y, a, b, *, p, n):
        own = iter(u if gates + yields > 1 else (u,))
        values = []

        def receive(products):
            for product in products:
                values.extend([next(own) + product] if merged else [next(own), product])

        receive(v if gates > 1 else (v,))
        values += [y, a, b, p, n]
        for op, i, j in steps:
            first, second = values[i % len(values)], values[j % len(values)]
            if op < len(UNARY):
                values.append(UNARY[op](first + second))
            elif op == 6:
                values.append((first * second).tanh())
            elif op == 7:
                values.append(torch.where(first > second, first, 1 - second).tanh())
            elif op == 8:
                values.append(torch.maximum(first, second).sin())
            elif op == YIELD:
                receive([(yield (first - second).sin())])
            else:
                values.append((0.5 * first - second / 3).sin())
        return tuple(values[i % len(values)].tanh() for i in results)

    def without_yields(*args, **kwargs):
        with pytest.raises(StopIteration) as end:
            next(compute(*args, **kwargs))
        return end.value.value

    function = compute if yields else functools.wraps(compute)(without_yields)
    cell = rnn_ext.cell(
        gates=(gates, *[1] * yields) if yields else gates,
        states=("a", "b"),
        parameters=("p",),
        inputs=("n",),
    )(function)
    assert_program_equals_loop(cell, hidden_size=2)


# The number of values that backward keeps of each unit and step, beside y, and the slots of the two
# programs: a change for the worse fails.
TABLE = {
    "elman": (0, 2, 2),
    "leaky_current": (1, 3, 3),
    "leaky_rate": (1, 3, 4),
    "gru": (4, 4, 7),
    "gru_reset_before": (3, 3, 6),
    "minimal_gru": (2, 3, 5),
    "lstm": (5, 5, 9),
    "peephole_lstm": (5, 6, 10),
    "ugrnn": (2, 4, 5),
    "lif": (1, 3, 3),
    "alif": (3, 6, 8),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_saved_and_how_many_slots(name):
    cell = getattr(cells, name)
    program = Program.decode(cell.program)
    assert program.saved + len(program.kept_states) == len(cell.saved)
    assert (len(cell.saved), program.forward_slots, program.backward_slots) == TABLE[name]


def test_saved_values_have_names():
    assert cells.lstm.saved[-1] == "c"
    assert "v[2]" in cells.gru.saved
    assert cells.elman.saved == ()


def test_a_program_survives_its_encoding():
    for name in TABLE:
        encoded = getattr(cells, name).program
        assert encoded.dtype == torch.int64
        assert torch.equal(Program.decode(encoded).encode(), encoded)


def test_program_is_written_in_the_words_of_the_kernels():
    assert list(program.OPERATIONS) == rnn_ext._C.program_operations()
    assert list(program.OPERANDS) == rnn_ext._C.program_operands()


@pytest.mark.parametrize("change", ["nothing left", "cut", "other version"])
def test_an_op_refuses_what_is_not_a_program(change):
    values = cells.elman.program
    values = {
        "nothing left": values[:0],
        "cut": values[:-1],
        "other version": torch.cat([values[:1] + 1, values[1:]]),
    }[change]
    x, w_ih, w_hh = torch.zeros(2, 1, 3), torch.zeros(5, 3), torch.zeros(5, 5)

    def call():
        torch.ops.rnn_ext.recurrence_forward(
            x, [], [w_ih, w_hh], [], [], [], None, None, values, False, 1, 0, 0
        )

    # A new thread has decoded no program yet.
    with ThreadPoolExecutor(1) as new_thread, pytest.raises(RuntimeError, match="is not one that"):
        new_thread.submit(call).result()
