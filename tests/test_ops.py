"""The raw ops: schemas, opcheck, fake kernels, autograd, and the checks that keep memory safe."""

import ctypes
import itertools

import pytest
import torch
from support import assert_close_fp64, assert_same_bits, layer_weights, leaves
from support.reference import reference_rnn
from torch._subclasses.fake_tensor import FakeTensorMode

import rnn_ext
from rnn_ext.functional import rnn

rnn_forward = torch.ops.rnn_ext.rnn_forward
rnn_backward = torch.ops.rnn_ext.rnn_backward
cell_forward = torch.ops.rnn_ext._cell_forward
cell_backward = torch.ops.rnn_ext._cell_backward

LIBC = ctypes.CDLL(None)
BATCH_SIZES = torch.tensor([3, 3, 1, 1])


def forward_arguments(
    nonlinearity="tanh",
    bias=True,
    bidirectional=False,
    given=True,
    packed=False,
    dtype=torch.float64,
):
    """Arguments of `rnn_forward`: T = 4, B = 3, I = 5, H = 6, all wanting gradients."""
    weights = layer_weights(5, 6, bias=bias, bidirectional=bidirectional, dtype=dtype)
    x = torch.randn(*((8,) if packed else (4, 3)), 5, dtype=dtype)
    hx = torch.randn(1 + bidirectional, 3, 6, dtype=dtype) if given or packed else None
    x, hx, *weights = leaves(x, hx, *weights)
    sizes = BATCH_SIZES if packed else None
    return x, hx, weights, sizes, nonlinearity, bidirectional


def backward_arguments(*args, mask=None):
    """Arguments of `rnn_backward` for the call `rnn_forward(*args)`, wanting no gradients."""
    x, hx, weights, *rest = args
    x, hx = x.detach(), None if hx is None else hx.detach()
    weights = [w.detach() for w in weights]
    output, h_n = rnn_forward(x, hx, weights, *rest)
    sizes, *flags = rest
    mask = mask or [True, hx is not None, *(True for _ in weights)]
    return (
        torch.randn_like(output),
        torch.randn_like(h_n),
        x,
        hx,
        weights,
        output,
        sizes,
        *flags,
        mask,
    )


SAMPLES = [
    {},
    {"dtype": torch.float32, "nonlinearity": "relu"},
    {"bias": False, "given": False},
    {"bidirectional": True, "nonlinearity": "relu"},
    {"bidirectional": True, "given": False},
    {"packed": True},
    {"packed": True, "bidirectional": True, "bias": False, "dtype": torch.float32},
    {"dtype": torch.bfloat16},
    {"packed": True, "bidirectional": True, "dtype": torch.float16},
]


def test_schemas_are_those_of_the_contract():
    assert str(rnn_forward.default._schema) == (
        "rnn_ext::rnn_forward(Tensor input, Tensor? hx, Tensor[] weights, Tensor? batch_sizes, "
        "str nonlinearity, bool bidirectional) -> (Tensor output, Tensor h_n)"
    )
    assert str(rnn_backward.default._schema) == (
        "rnn_ext::rnn_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor? hx, "
        "Tensor[] weights, Tensor output, Tensor? batch_sizes, str nonlinearity, "
        "bool bidirectional, bool[] output_mask) -> Tensor[]"
    )


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_opcheck_of_forward(sample):
    torch.library.opcheck(rnn_forward.default, forward_arguments(**sample))


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_opcheck_of_backward(sample):
    args = backward_arguments(*forward_arguments(**sample))
    torch.library.opcheck(rnn_backward.default, args)
    torch.library.opcheck(rnn_backward.default, (None, *args[1:]))
    torch.library.opcheck(rnn_backward.default, (args[0], None, *args[2:]))


def test_opcheck_of_non_contiguous_arguments():
    x, hx, weights, *rest = forward_arguments()
    x = x.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    hx = hx.detach()[:, :1].expand(-1, 3, -1)
    weights = [w.detach().t().contiguous().t() if w.dim() == 2 else w.detach() for w in weights]
    torch.library.opcheck(rnn_forward.default, (x, hx, weights, *rest))
    args = backward_arguments(x, hx, weights, *rest)
    expanded = torch.ones((), dtype=x.dtype).expand_as(args[0])
    torch.library.opcheck(rnn_backward.default, (expanded, *args[1:]))


def cell_arguments(*args):
    """Arguments of both ops of the cell from `rnn_forward`'s, for its first time step."""
    x, hx, weights, _, nonlinearity, _ = args
    x, hx = x.detach()[0], None if hx is None else hx.detach()[0]
    forward = (x, hx, [w.detach() for w in weights], nonlinearity)
    output = cell_forward(*forward)
    mask = [True, hx is not None, *(True for _ in weights)]
    return forward, (torch.randn_like(output), *forward[:3], output, nonlinearity, mask)


ONE_WAY = [s for s in SAMPLES if not {"packed", "bidirectional"} & set(s)]


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_opcheck_of_the_ops_without_autograd(sample):
    args = _f(**sample)
    opcheck_below_autograd(torch.ops.rnn_ext._rnn_forward, args)
    opcheck_below_autograd(torch.ops.rnn_ext._rnn_backward, backward_arguments(*args))


@pytest.mark.parametrize("sample", ONE_WAY, ids=str)
def test_opcheck_of_the_cell(sample):
    forward, backward = cell_arguments(*forward_arguments(**sample))
    opcheck_below_autograd(cell_forward, forward)
    opcheck_below_autograd(cell_backward, backward)


def opcheck_below_autograd(op, args):
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(op.default, args, test_utils=checks)


@pytest.mark.parametrize("sample", ONE_WAY, ids=str)
def test_the_cell_has_the_bits_of_a_layer_of_one_step(sample, isa):
    forward, backward = cell_arguments(*forward_arguments(**sample))
    x, hx, weights, nonlinearity = forward
    grad, *_, output, _, mask = backward
    hx = None if hx is None else hx[None]
    expected, h_n = rnn_forward(x[None], hx, weights, None, nonlinearity, False)
    assert_same_bits([output, output], [expected[0], h_n[0]])
    grads = rnn_backward(
        grad[None], None, x[None], hx, weights, expected, None, nonlinearity, False, mask
    )
    assert_same_bits([g.flatten() for g in cell_backward(*backward)], [g.flatten() for g in grads])


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_forward_is_one_layer_of_the_functional_form(sample):
    x, hx, weights, sizes, nonlinearity, bidirectional = forward_arguments(**sample)
    expected = rnn(
        x,
        hx,
        weights,
        nonlinearity=nonlinearity,
        bias=sample.get("bias", True),
        bidirectional=bidirectional,
        batch_sizes=sizes,
    )
    actual = rnn_forward(x, hx, weights, sizes, nonlinearity, bidirectional)
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if "dtype" not in s], ids=str)
def test_forward_has_autograd_of_its_own(sample):
    x, hx, weights, sizes, nonlinearity, bidirectional = forward_arguments(**sample)
    wanted = [x, *weights, *([] if hx is None else [hx])]
    expected = reference_rnn(
        x,
        hx,
        weights,
        nonlinearity=nonlinearity,
        bias=sample.get("bias", True),
        bidirectional=bidirectional,
        batch_sizes=sizes,
    )
    actual = rnn_forward(x, hx, weights, sizes, nonlinearity, bidirectional)
    results = []
    for output, h_n in (actual, expected):
        loss = output.square().sum() + h_n.sum()
        results.append(torch.autograd.grad(loss, wanted))
    assert_close_fp64(*results)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_backward_returns_the_masked_gradients_in_order(packed, bidirectional):
    args = forward_arguments(packed=packed, bidirectional=bidirectional)
    everything = backward_arguments(*args)
    full = rnn_backward(*everything)
    count = len(everything[-1])
    assert [g.shape for g in full] == [t.shape for t in (args[0], args[1], *args[2])]
    masks = [[i == j for j in range(count)] for i in range(count)]
    masks += [[i != j for j in range(count)] for i in range(count)]
    masks += [list(m) for m in itertools.islice(itertools.product((True, False), repeat=count), 40)]
    for mask in masks:
        some = rnn_backward(*everything[:-1], mask)
        wanted = [g for g, m in zip(full, mask, strict=True) if m]
        assert_close_fp64(some, wanted)


def test_absent_upstream_gradients_count_as_zero():
    args = backward_arguments(*forward_arguments(bidirectional=True))
    zero_output, zero_h_n = torch.zeros_like(args[0]), torch.zeros_like(args[1])
    assert_same_bits(rnn_backward(None, *args[1:]), rnn_backward(zero_output, *args[1:]))
    assert_same_bits(
        rnn_backward(args[0], None, *args[2:]), rnn_backward(args[0], zero_h_n, *args[2:])
    )
    for gradient in rnn_backward(None, None, *args[2:]):
        assert not gradient.any()


def test_ops_leave_their_arguments_as_they_were():
    args = forward_arguments(packed=True)
    before = [args[0].clone(), args[1].clone(), *(w.clone() for w in args[2])]
    backward = backward_arguments(*args)
    copies = [t.clone() for t in (backward[0], backward[1], backward[5])]
    rnn_backward(*backward)
    assert_same_bits([args[0], args[1], *args[2]], before)
    assert_same_bits((backward[0], backward[1], backward[5]), copies)
    assert torch.equal(args[3], torch.tensor([3, 3, 1, 1]))


@pytest.mark.parametrize("packed", [False, True])
def test_fake_kernels_give_shapes_dtype_and_device_without_data(packed):
    real_args = forward_arguments(packed=packed, bidirectional=True, dtype=torch.float32)
    real = rnn_forward(*real_args)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, hx, weights, *rest = real_args
        fake = rnn_forward(
            mode.from_tensor(x), mode.from_tensor(hx), [mode.from_tensor(w) for w in weights], *rest
        )
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


def test_meta_tensors_give_meta_results():
    x, hx, weights, *rest = forward_arguments()
    meta = [t.detach().to("meta") for t in (x, hx, *weights)]
    output, h_n = rnn_forward(meta[0], meta[1], meta[2:], *rest)
    assert output.is_meta
    assert h_n.is_meta
    assert output.shape == (4, 3, 6)
    assert h_n.shape == (1, 3, 6)


def _replaced(args, index, value):
    return (*args[:index], value, *args[index + 1 :])


def _weight(args, index, value):
    return _replaced(args, 2, _replaced(tuple(args[2]), index, value))


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


UNSAFE_FORWARDS = {
    "input of another width": lambda: _replaced(_f(), 0, zeros(4, 3, 7)),
    "2-D input, not packed": lambda: _replaced(_f(), 0, zeros(4, 5)),
    "4-D input": lambda: _replaced(_f(), 0, zeros(4, 3, 5, 1)),
    "integer input": lambda: _replaced(_f(), 0, zeros(4, 3, 5).long()),
    "no time steps": lambda: _replaced(_f(), 0, zeros(0, 3, 5)),
    "hx of fewer rows": lambda: _replaced(_f(), 1, zeros(1, 2, 6)),
    "hx of one row": lambda: _replaced(_f(), 1, zeros(1, 1, 6)),
    "hx of another width": lambda: _replaced(_f(), 1, zeros(1, 3, 5)),
    "hx of two directions": lambda: _replaced(_f(), 1, zeros(2, 3, 6)),
    "2-D hx": lambda: _replaced(_f(), 1, zeros(3, 6)),
    "hx of another dtype": lambda: _replaced(_f(), 1, zeros(1, 3, 6).float()),
    "no weights": lambda: _replaced(_f(), 2, []),
    "too few weights": lambda: _replaced(_f(), 2, _f()[2][:1]),
    "too many weights": lambda: _replaced(_f(), 2, _f()[2] * 2),
    "one bias of two": lambda: _replaced(_f(), 2, _f()[2][:3]),
    "one direction's weights for two": lambda: _replaced(_f(), 5, True),
    "short w_hh": lambda: _weight(_f(), 1, zeros(6, 5)),
    "flat w_hh": lambda: _weight(_f(), 1, zeros(36)),
    "short bias": lambda: _weight(_f(), 3, zeros(5)),
    "2-D bias": lambda: _weight(_f(), 3, zeros(6, 6)),
    "weight of another dtype": lambda: _weight(_f(), 1, zeros(6, 6).float()),
    "unknown nonlinearity": lambda: _replaced(_f(), 4, "gelu"),
    "packed without hx": lambda: _replaced(_p(), 1, None),
    "packed 3-D input": lambda: _replaced(_p(), 0, zeros(8, 1, 5)),
    "packed, too few rows": lambda: _replaced(_p(), 0, zeros(7, 5)),
    "packed, too many rows": lambda: _replaced(_p(), 0, zeros(9, 5)),
    "packed, hx of fewer rows": lambda: _replaced(_p(), 1, zeros(1, 2, 6)),
    "growing batch sizes": lambda: _replaced(_p(), 3, torch.tensor([1, 3, 3, 1])),
    "negative batch size": lambda: _replaced(_p(), 3, torch.tensor([3, 3, 3, -1])),
    "a batch size of zero": lambda: _replaced(_p(), 3, torch.tensor([3, 3, 2, 0])),
    "no batch sizes": lambda: _replaced(_p(), 3, zeros(0).long()),
    "int32 batch sizes": lambda: _replaced(_p(), 3, BATCH_SIZES.int()),
    "2-D batch sizes": lambda: _replaced(_p(), 3, BATCH_SIZES.view(2, 2)),
}


def _f(**options):
    x, hx, weights, *rest = forward_arguments(**options)
    hx = None if hx is None else hx.detach()
    return x.detach(), hx, [w.detach() for w in weights], *rest


def _p():
    return _f(packed=True)


@pytest.mark.parametrize("make", UNSAFE_FORWARDS.values(), ids=UNSAFE_FORWARDS)
def test_forward_rejects_arguments_that_would_leave_its_memory(make):
    with pytest.raises(RuntimeError):
        rnn_forward(*make())


UNSAFE_CELLS = {
    "input of another width": lambda a: _replaced(a, 0, zeros(3, 7)),
    "3-D input": lambda a: _replaced(a, 0, zeros(1, 3, 5)),
    "1-D input": lambda a: _replaced(a, 0, zeros(5)),
    "hx of fewer rows": lambda a: _replaced(a, 1, zeros(1, 6)),
    "hx of another width": lambda a: _replaced(a, 1, zeros(3, 5)),
    "3-D hx": lambda a: _replaced(a, 1, zeros(1, 3, 6)),
    "two directions' weights": lambda a: _replaced(a, 2, a[2] * 2),
    "unknown nonlinearity": lambda a: _replaced(a, 3, "gelu"),
}


@pytest.mark.parametrize("damage", UNSAFE_CELLS.values(), ids=UNSAFE_CELLS)
def test_the_cell_rejects_arguments_that_would_leave_its_memory(damage):
    forward, backward = cell_arguments(*forward_arguments())
    grad, *_, output, _, mask = backward
    x, hx, weights, nonlinearity = damage(forward)
    with pytest.raises(RuntimeError):
        cell_forward(x, hx, weights, nonlinearity)
    with pytest.raises(RuntimeError):
        cell_backward(grad, x, hx, weights, output, nonlinearity, mask)
    with pytest.raises(RuntimeError, match="grad_output has an unexpected shape"):
        cell_backward(grad[:2], *backward[1:])


UNSAFE_BACKWARDS = {
    "grad_output of fewer steps": lambda a: _replaced(a, 0, a[0][1:]),
    "grad_output of another width": lambda a: _replaced(a, 0, a[0][..., :5]),
    "grad_output of another dtype": lambda a: _replaced(a, 0, a[0].float()),
    "grad_h_n of fewer rows": lambda a: _replaced(a, 1, a[1][:, 1:]),
    "grad_h_n of another dtype": lambda a: _replaced(a, 1, a[1].float()),
    "output of fewer steps": lambda a: _replaced(a, 5, a[5][1:]),
    "output of another dtype": lambda a: _replaced(a, 5, a[5].float()),
    "input of another width": lambda a: _replaced(a, 2, a[2][..., :4]),
    "hx of fewer rows": lambda a: _replaced(a, 3, a[3][:, 1:]),
    "too few weights": lambda a: _replaced(a, 4, a[4][:3]),
    "unknown nonlinearity": lambda a: _replaced(a, 7, "gelu"),
    "short mask": lambda a: _replaced(a, 9, a[9][:-1]),
    "long mask": lambda a: _replaced(a, 9, [*a[9], True]),
    "gradient of an absent hx": lambda a: _replaced(a, 3, None),
}


@pytest.mark.parametrize("damage", UNSAFE_BACKWARDS.values(), ids=UNSAFE_BACKWARDS)
def test_backward_rejects_arguments_that_would_leave_its_memory(damage):
    args = backward_arguments(*forward_arguments())
    with pytest.raises(RuntimeError):
        rnn_backward(*damage(args))


def test_accepts_empty_batches_and_features():
    weights = layer_weights(5, 6)
    output, h_n = rnn_forward(torch.zeros(4, 0, 5), None, weights, None, "tanh", False)
    assert output.shape == (4, 0, 6)
    assert h_n.shape == (1, 0, 6)
    bare = [torch.zeros(6, 0), *weights[1:]]
    x = torch.zeros(4, 3, 0)
    output, _ = rnn_forward(x, None, bare, None, "tanh", False)
    expected, _ = reference_rnn(x.double(), None, [w.double() for w in bare])
    # |h| <= 1 and sums of a few fp32 products.
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-6)


def test_a_larger_call_reads_and_writes_inside_its_tensors():
    """Arguments and results are surrounded by NaN, so that a read outside of them is visible."""

    def inside(t):
        around = torch.full((t.numel() + 256,), torch.nan)
        return around[128 : 128 + t.numel()].view_as(t).copy_(t)

    for hidden_size, batch in itertools.product((1, 15, 17, 33, 65), (1, 3, 9)):
        weights = [inside(w) for w in layer_weights(7, hidden_size, bidirectional=True)]
        x, hx = inside(torch.randn(5, batch, 7)), inside(torch.randn(2, batch, hidden_size))
        args = (x, hx, weights, None, "tanh", True)
        backward = backward_arguments(*args)
        backward = (inside(backward[0]), inside(backward[1]), *backward[2:])
        for result in (*rnn_forward(*args), *rnn_backward(*backward)):
            assert result.isfinite().all()


class _Heap(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="needs glibc 2.33 to count the heap")
def test_calls_leave_nothing_on_the_heap():
    LIBC.mallinfo2.restype = _Heap
    args = _f()
    backward = backward_arguments(*args)
    cell, cell_back = cell_arguments(*args)
    calls = 2000
    for _ in range(2):
        before = LIBC.mallinfo2().uordblks
        for _ in range(calls):
            rnn_forward(*args)
            rnn_backward(*backward)
            cell_forward(*cell)
            cell_backward(*cell_back)
        grown = LIBC.mallinfo2().uordblks - before
    # malloc's smallest block has 32 bytes; other threads may allocate a few.
    assert grown < 32 * calls / 2


def test_ops_are_found_after_importing_the_package():
    assert rnn_ext.functional is not None
    assert {"rnn_forward", "rnn_backward"} <= set(dir(torch.ops.rnn_ext))


def test_batch_sizes_whose_sum_wraps_are_refused():
    """Five sizes that add up to 3, modulo 2**64, and an expanded hx of as many rows."""
    x, weights = zeros(3, 1), [zeros(1, 1), zeros(1, 1)]
    hx = zeros(1, 1, 1).expand(1, 2**62, 1)
    sizes = torch.tensor([2**62] * 4 + [3])
    with pytest.raises(RuntimeError, match="batch_sizes must add up"):
        rnn_backward(x, None, x, hx, weights, x, sizes, "tanh", False, [True, False, True, True])


@pytest.mark.parametrize(
    ("x", "hidden_size"), [((3, 1, 4), 2**31), ((2**40, 2**40, 1), 1), ((1, 1, 2**60), 4)]
)
def test_sizes_that_overflow_are_rejected_first(x, hidden_size):
    """A packed weight of 2**31 by 2**31 floats has 2**64 bytes, which is 0."""
    weights = [[hidden_size, x[-1]], [hidden_size, hidden_size]]
    reason = rnn_ext._C.find_obstacle(x, None, weights, None, False, 1, 1)
    assert reason == "the sizes are beyond what memory can hold"
