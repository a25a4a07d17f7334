"""The linear recurrence behind higher derivatives, against torch's own operations."""

import pytest
import torch
from support import PLANS, assert_same_bits, using_threads
from support.reference import reference_tangent
from torch import Tensor

rnn_tangent = torch.ops.rnn_ext._rnn_tangent

SHAPES = {
    "one row": {"lead": (7, 1), "hidden_size": 129},
    "few rows": {"lead": (5, 3), "hidden_size": 33, "directions": 2},
    "many rows": {"lead": (4, 65), "hidden_size": 16, "reverse": True},
    "one step": {"lead": (1, 2), "hidden_size": 65, "directions": 2},
    "one unit": {"lead": (3, 2), "hidden_size": 1, "directions": 2},
    "packed": {"lead": (9,), "hidden_size": 17, "batch_sizes": torch.tensor([4, 3, 1, 1])},
    "packed, two ways, reversed": {
        "lead": (9,),
        "hidden_size": 17,
        "batch_sizes": torch.tensor([4, 3, 1, 1]),
        "directions": 2,
        "reverse": True,
    },
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def arguments(
    lead,
    hidden_size,
    directions=1,
    batch_sizes=None,
    reverse=False,
    *,
    nonlinearity="tanh",
    given=True,
    dtype=torch.float64,
):
    batch = lead[1] if batch_sizes is None else int(batch_sizes[0])
    shape = (*lead, directions * hidden_size)
    bound = hidden_size**-0.5
    return (
        torch.randn(shape).to(dtype),
        torch.randn(directions, batch, hidden_size).to(dtype) if given else None,
        [(torch.randn(hidden_size, hidden_size) * bound).to(dtype) for _ in range(directions)],
        (2 * torch.rand(shape) - 1).to(dtype),
        batch_sizes,
        nonlinearity,
        reverse,
    )


def in_float64(args):
    def convert(value):
        if isinstance(value, list):
            return [convert(v) for v in value]
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floats else value

    return tuple(map(convert, args))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torchs_operations(shape, dtype, isa):
    for nonlinearity in ("tanh", "relu"):
        for given in (True, False):
            args = arguments(**SHAPES[shape], nonlinearity=nonlinearity, given=given, dtype=dtype)
            expected = reference_tangent(*in_float64(args))
            error = (rnn_tangent(*args).double() - expected).abs().max()
            # One rounding of each y, and in float32 and float64 sums of up to 129 terms in at most
            # seven steps, each of which shrinks what came before.
            assert error <= 8 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_has_the_same_bits_at_every_thread_count(shape, isa):
    args = arguments(**SHAPES[shape], dtype=torch.float32)
    with using_threads(1):
        expected = rnn_tangent(*args)
    for plan in PLANS:
        for count in (2, 3, 4):
            with using_threads(count, plan):
                assert_same_bits([rnn_tangent(*args)], [expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden_size", [3, 64, 300])
def test_a_few_rows_have_the_bits_that_they_have_among_many(hidden_size, dtype, isa):
    seed, initial, matrices, output, *rest = arguments((1, 40), hidden_size, dtype=dtype)
    expected = rnn_tangent(seed, initial, matrices, output, *rest)
    for rows in (1, 7):
        few = (seed[:, :rows], initial[:, :rows], matrices, output[:, :rows], *rest)
        assert_same_bits([rnn_tangent(*few)], [expected[:, :rows]])


def test_strided_seeds_and_matrices_are_read_right():
    seed, *rest = arguments((5, 3), 6, 2)
    expanded = torch.ones((), dtype=seed.dtype).expand_as(seed)
    assert_same_bits([rnn_tangent(expanded, *rest)], [rnn_tangent(expanded.clone(), *rest)])
    initial, matrices, *rest = rest
    flipped = [m.t().contiguous().t() for m in matrices]
    by_time = seed.transpose(0, 1).contiguous().transpose(0, 1)
    assert_same_bits(
        [rnn_tangent(by_time, initial, flipped, *rest)],
        [rnn_tangent(seed, initial, matrices, *rest)],
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_opcheck(shape):
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(rnn_tangent.default, arguments(**SHAPES[shape]), test_utils=checks)


def test_empty_batch_gives_an_empty_result():
    assert rnn_tangent(*arguments((5, 0), 6)).shape == (5, 0, 6)


def replaced(index, value):
    def make():
        args = list(arguments((5, 3), 6, 2))
        args[index] = value(args[index])
        return tuple(args)

    return make


UNSAFE = {
    "seed of one direction": replaced(0, lambda t: t[..., :6]),
    "seed of fewer steps": replaced(0, lambda t: t[1:]),
    "seed of another dtype": replaced(0, lambda t: t.float()),
    "seed without columns": replaced(0, lambda t: t[0, 0, 0]),
    "initial of fewer rows": replaced(1, lambda t: t[:, 1:]),
    "initial of one direction": replaced(1, lambda t: t[:1]),
    "no matrices": replaced(2, lambda t: []),
    "three matrices": replaced(2, lambda t: [*t, t[0]]),
    "a matrix that is not square": replaced(2, lambda t: [t[0], t[1][:, 1:]]),
    "a vector for a matrix": replaced(2, lambda t: [t[0][0], t[1][0]]),
    "output of fewer steps": replaced(3, lambda t: t[1:]),
    "strided output": replaced(3, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)),
    "batch sizes for padded rows": replaced(4, lambda t: torch.tensor([3, 3, 3, 3, 3])),
    "unknown nonlinearity": replaced(5, lambda t: "gelu"),
}


@pytest.mark.parametrize("make", UNSAFE.values(), ids=UNSAFE)
def test_rejects_arguments_that_would_leave_its_memory(make):
    with pytest.raises(RuntimeError):
        rnn_tangent(*make())
