"""Values at the edges: tanh over all floats, NaN and infinity, denormals, saturation."""

import functools
import itertools
import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import mpmath
import pytest
import torch
from support import PLANS, SIZES, leaves, same_bits, twins, using_threads
from support.floats import all_classes, from_bits, ulps
from support.reference import reference_rnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.cpp_extension import include_paths

import rnn_ext
from rnn_ext.functional import rnn


def phi_of_column(x, nonlinearity="tanh"):
    """phi(x) elementwise: one time step of one unit, each value a batch row, weight 1."""
    one, zero = torch.ones(1, 1, dtype=x.dtype), torch.zeros(1, 1, dtype=x.dtype)
    output, _ = rnn(x.view(1, -1, 1), None, [one, zero], nonlinearity=nonlinearity, bias=False)
    return output.view(-1)


def phi_of_row(x, width, nonlinearity="tanh"):
    """phi(x) elementwise, `width` values side by side in the hidden state: whole vectors and tails.

    The values come in as a bias, so that infinities meet no other term.
    """
    x = torch.cat([x, x.new_zeros(-len(x) % width)])
    w_ih, w_hh = x.new_zeros(width, 1), x.new_zeros(width, width)
    rows = [
        rnn(
            x.new_zeros(1, 1, 1),
            None,
            [w_ih, w_hh, b, torch.zeros_like(b)],
            nonlinearity=nonlinearity,
        )[0].view(-1)
        for b in x.split(width)
    ]
    return torch.cat(rows)


def random_bits(count):
    return from_bits(torch.randint(-(1 << 31), 1 << 31, (count,)))


def interesting(count):
    """Values where tanh is neither x nor 1."""
    magnitude = torch.exp2(torch.empty(count).uniform_(-14, 4))
    return magnitude * (torch.randint(2, (count,)) * 2 - 1)


def assert_tanh(actual, x):
    nan = x.isnan()
    assert torch.equal(actual.isnan(), nan)
    y, x = actual[~nan], x[~nan]
    error = ulps(y, x.double().tanh())
    worst = int(error.argmax())
    assert error[worst] <= 2, f"tanh({x[worst].item()!r}) = {y[worst].item()!r}"
    assert y.abs().max() <= 1
    assert torch.equal(y == 0, x == 0), "tanh(x) = 0 for x != 0"
    assert bool((y[x > 10] == 1).all())
    assert bool((y[x < -10] == -1).all())


def test_tanh_is_within_two_ulp_on_every_class_of_floats(isa):
    x = torch.cat([all_classes(), interesting(1_000_000), random_bits(1_000_000)])
    assert_tanh(phi_of_column(x), x)


@pytest.mark.parametrize("width", [3, 16, 64, 113])
def test_tanh_is_within_two_ulp_in_vectors_and_their_tails(width, isa):
    x = torch.cat([all_classes()[:: 257 // min(width, 16)], interesting(width * 20)])
    assert_tanh(phi_of_row(x, width)[: len(x)], x)


def test_tanh_is_odd_to_the_bit(isa):
    x = torch.cat([all_classes(), interesting(100_000)]).nan_to_num(1.0)
    y, negated = phi_of_column(x), phi_of_column(-x)
    nonzero = x != 0  # a sum of products does not keep the sign of a zero
    assert same_bits(negated[nonzero], -y[nonzero])


def test_columns_and_rows_round_alike(isa):
    """The same value gives the same bits in a vector, in its tail and alone."""
    x = interesting(16 * 67)
    expected = phi_of_column(x)
    for width in (1, 5, 16, 67):
        assert same_bits(phi_of_row(x, width)[: len(x)], expected)


@pytest.mark.slow
def test_tanh_is_within_two_ulp_on_all_floats(isa):
    chunk = 1 << 24
    for start in range(-(1 << 31), 1 << 31, chunk):
        x = from_bits(torch.arange(start, start + chunk))
        assert_tanh(phi_of_column(x), x)


def test_fp64_tanh_is_exact_to_a_few_ulp(isa):
    magnitude = torch.exp2(torch.empty(2000, dtype=torch.float64).uniform_(-60, 6))
    x = torch.cat([magnitude, -magnitude, torch.tensor([0.0, 5e-324, 1e-310, 709.0, 1e308])])
    with mpmath.workprec(120):
        exact = [mpmath.tanh(mpmath.mpf(v)) for v in x.tolist()]
        for value, y, want in zip(x.tolist(), phi_of_column(x).tolist(), exact, strict=True):
            # 4 ulp: twice what fp32 is allowed; cancellation near zero would cost thousands.
            bound = 4 * max(2.0**-52 * abs(want), mpmath.mpf(5e-324))
            assert abs(mpmath.mpf(y) - want) <= bound, value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_passes_every_float_as_nn_rnn_does(dtype, isa):
    x = all_classes().to(dtype)
    y = phi_of_column(x, "relu")
    assert torch.equal(y.isnan(), x.isnan())
    kept = ~x.isnan()
    assert torch.equal(y[kept], x[kept].clamp(min=0))  # denormals and infinity included
    rows = phi_of_row(x, 113, "relu")[: len(x)]
    assert torch.equal(rows.nan_to_num(-1.0), y.nan_to_num(-1.0))


def test_denormals_pass_through_the_products(isa):
    x = from_bits(torch.randint(1, 1 << 23, (3, 4, 5)))
    w_ih, w_hh = torch.eye(5).repeat(4, 1)[:17], torch.zeros(17, 17)
    output, _ = rnn(x, None, [w_ih, w_hh], nonlinearity="relu", bias=False)
    assert torch.equal(output, x.repeat(1, 1, 4)[..., :17])


@dataclass(frozen=True)
class Poison:
    """One non-finite value in one place of a call."""

    place: str
    value: float
    nonlinearity: str
    bidirectional: bool
    given: bool
    packed: bool

    def __str__(self):
        options = [
            self.place,
            str(self.value),
            self.nonlinearity,
            "bi" if self.bidirectional else "uni",
            "hx" if self.given else "nohx",
            "packed" if self.packed else "padded",
        ]
        return "-".join(options)


def _poisons():
    options = itertools.cycle(itertools.product((False, True), (True, False), (False, True)))
    places = (
        "input",
        "hx",
        "weight_ih_l0",
        "weight_hh_l0",
        "bias_ih_l0",
        "bias_hh_l0",
        "weight_ih_l1",
        "grad_output",
        "grad_h_n",
    )
    values = (float("nan"), float("inf"), -float("inf"))
    for place, value, nonlinearity in itertools.product(places, values, ("tanh", "relu")):
        for two_way, given, packed in itertools.islice(options, 3):
            yield Poison(place, value, nonlinearity, two_way, given or place == "hx", packed)


def poisoned(module, poison):
    """Every result and gradient of a call with the poison in it."""
    torch.manual_seed(11)
    states = 2 * (1 + poison.bidirectional)
    lengths = torch.tensor([6, 5, 5, 3, 1])
    tensors = {
        "input": torch.randn(int(lengths.sum()) if poison.packed else 30, 17),
        "hx": torch.randn(states, 5, 33),
    }
    if poison.place in tensors:
        tensors[poison.place].view(-1)[37] = poison.value
    for name, parameter in module.named_parameters():
        if name == poison.place:
            parameter.data.view(-1)[7] = poison.value
    x, hx = leaves(*tensors.values())
    argument = x.view(6, 5, 17) if not poison.packed else x
    if poison.packed:
        packing = pack_padded_sequence(torch.zeros(6, 5, 1), lengths)
        argument = PackedSequence(x, packing.batch_sizes)
    output, h_n = module(argument, hx if poison.given else None)
    output = output.data if poison.packed else output
    upstream = {"grad_output": torch.randn_like(output), "grad_h_n": torch.randn_like(h_n)}
    if poison.place in upstream:  # all units of one row: active ones pass it on, others stop it
        upstream[poison.place].view(-1, 33)[7] = poison.value
    leaf = {"input": x, "hx": hx} if poison.given else {"input": x}
    wanted = leaf | dict(module.named_parameters())
    grads = torch.autograd.grad([output, h_n], list(wanted.values()), list(upstream.values()))
    named = {f"grad of {name}": grad for name, grad in zip(wanted, grads, strict=True)}
    return {"output": output.detach(), "h_n": h_n.detach()} | named


@functools.cache
def poisoned_nn_rnn(poison):
    """nn.RNN's results, the same at every ISA level of ours."""
    with using_threads(1):
        return poisoned(poisoned_twins(poison)[0], poison)


def poisoned_twins(poison):
    torch.manual_seed(12)
    options = {"nonlinearity": poison.nonlinearity, "bidirectional": poison.bidirectional}
    return twins(17, 33, 2, **options)


@pytest.mark.parametrize("poison", list(_poisons()), ids=str)
def test_nan_and_infinity_propagate_as_in_nn_rnn(poison, isa):
    expected = poisoned_nn_rnn(poison)
    if math.isnan(poison.value):  # an infinite bias only saturates its unit
        assert any(t.isnan().any() for t in expected.values())
    for split in PLANS:
        with using_threads(3, split):
            actual = poisoned(poisoned_twins(poison)[1], poison)
        for name, want in expected.items():
            for kind in (torch.isnan, torch.isposinf, torch.isneginf):
                assert torch.equal(kind(actual[name]), kind(want)), f"{kind.__name__} in {name}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("batch", [2, 5, 16, 33])
def test_a_nan_stays_in_its_batch_row(batch, nonlinearity, dtype, isa):
    module = rnn_ext.RNN(9, 33, 2, nonlinearity=nonlinearity, bidirectional=True, dtype=dtype)
    x, hx = torch.randn(7, batch, 9, dtype=dtype), torch.randn(4, batch, 33, dtype=dtype)
    bad = batch // 2
    others = [row for row in range(batch) if row != bad]

    def results(x):
        x, h = leaves(x, hx)
        output, h_n = module(x, h)
        return (output, h_n, *torch.autograd.grad(output.sum() + h_n.sum(), [x, h]))

    clean = results(x)
    x[3, bad, 4] = torch.nan
    dirty = results(x)
    assert dirty[0][:, bad].isnan().any()
    assert dirty[1][:, bad].isnan().any()
    for before, after in zip(clean, dirty, strict=True):
        assert same_bits(after[:, others], before[:, others])


def test_saturated_units_have_exact_states_and_zero_gradients(isa):
    module = rnn_ext.RNN(3, 33)
    module.get_parameter("weight_ih_l0").data.fill_(1e30)
    x = torch.tensor([1.0, -1.0]).view(2, 1, 1).expand(2, 4, 3).contiguous().requires_grad_()
    output, _ = module(x)
    assert torch.equal(output, x[..., :1].sign().expand(2, 4, 33))
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert not grad.any()


def test_sums_that_overflow_saturate_like_nn_rnn(isa):
    theirs, ours = twins(40, 33)
    theirs.get_parameter("weight_ih_l0").data.fill_(3e38)
    ours.load_state_dict(theirs.state_dict())
    x = torch.ones(2, 3, 40)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    assert torch.equal(ours(-x)[0], theirs(-x)[0])


@pytest.mark.parametrize("batch_sizes", [None, [7, 7, 4, 1, 1]], ids=["padded", "packed"])
@pytest.mark.parametrize("index", range(len(SIZES)), ids=map(str, SIZES))
def test_sums_of_integers_are_exact(index, batch_sizes, isa):
    """relu on small integers never rounds: every element of every result must be exact."""
    hidden_size, input_size, batch = (SIZES[index * k % len(SIZES)] for k in (1, 3, 5))
    sizes = None if batch_sizes is None else torch.tensor(batch_sizes)
    rows = (5, batch) if sizes is None else (int(sizes.sum()),)
    states = batch if sizes is None else int(sizes[0])
    x = torch.randint(-1, 2, (*rows, input_size))
    hx = torch.randint(-1, 2, (2, states, hidden_size))
    weights = [w for _ in range(2) for w in integer_weights(input_size, hidden_size)]

    def results(forward, dtype):
        inputs = leaves(*(t.to(dtype) for t in (x, hx, *weights)))
        output, h_n = forward(
            inputs[0],
            inputs[1],
            inputs[2:],
            nonlinearity="relu",
            bidirectional=True,
            batch_sizes=sizes,
        )
        upstream = (torch.arange(output.numel(), dtype=dtype) % 3 - 1).view_as(output)
        return [output, h_n, *torch.autograd.grad([output, h_n], inputs, [upstream, h_n])]

    expected = results(reference_rnn, torch.float64)
    assert max(t.abs().max() for t in expected) < 1 << 24  # where fp32 holds all integers
    for dtype, split in itertools.product((torch.float32, torch.float64), PLANS):
        with using_threads(3, split):
            actual = results(rnn, dtype)
        for got, want in zip(actual, expected, strict=True):
            assert torch.equal(got.double(), want)


def integer_weights(input_size, hidden_size):
    """One direction's weights: a signed permutation as weight_hh, so that states grow slowly."""
    signs = torch.randint(2, (hidden_size, 1)) * 2 - 1
    w_hh = torch.eye(hidden_size, dtype=torch.int64)[torch.randperm(hidden_size)] * signs
    w_ih = torch.randint(-1, 2, (hidden_size, input_size))
    return [w_ih, w_hh, *torch.randint(-1, 2, (2, hidden_size))]


def test_a_hundred_thousand_steps_count_to_a_hundred_thousand(isa):
    steps = 100_000
    one = torch.ones(1, 1)
    x, w_ih, w_hh = leaves(torch.ones(steps, 1, 1), one, one)
    output, h_n = rnn(x, None, [w_ih, w_hh], nonlinearity="relu", bias=False)
    assert torch.equal(output.view(-1), torch.arange(1.0, steps + 1))
    d_x, d_w_ih, _ = torch.autograd.grad(h_n.sum(), [x, w_ih, w_hh])
    assert torch.equal(d_x, torch.ones_like(x))
    assert d_w_ih.item() == steps


def test_relu_gradient_at_zero_is_zero_as_in_nn_rnn(isa):
    theirs, ours = twins(3, 5, nonlinearity="relu", bias=False)
    for module in (theirs, ours):
        (x,) = leaves(torch.zeros(4, 2, 3))
        grads = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
        assert not any(g.any() for g in grads)


def test_fast_math_is_refused():
    source = Path(__file__).parents[1] / "csrc" / "cpu" / "kernels_generic.cpp"
    command = [
        os.environ.get("CXX", "c++"),
        "-std=c++20",
        "-fsyntax-only",
        f"-I{source.parents[1]}",
    ]
    includes = [f"-isystem{path}" for path in include_paths()]
    for flags, accepted in (([], True), (["-ffast-math"], False)):
        result = subprocess.run([*command, *includes, *flags, source], capture_output=True)
        assert (result.returncode == 0) == accepted, result.stderr
    assert b"-ffast-math" in result.stderr
