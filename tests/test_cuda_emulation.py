"""The CUDA driver and kernels, executed on the emulated device, against the plain RNN in fp64."""

import ctypes
import re
import subprocess
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from support import TELLS_REASONS, assert_same_bits, emulation, reason_told, same_bits
from support.reference import reference_rnn, reference_tangent
from torch import Tensor

NO_PERSISTENT = 0  # bytes of shared memory for a block
FEW, MANY = 1, 132  # multiprocessors


@dataclass(frozen=True)
class Case:
    """One layer, forward and backward, on a device that makes the plan choose one kernel."""

    hidden_size: int
    multiprocessors: int = MANY
    shared_bytes: int = 227 << 10
    dtype: torch.dtype = torch.float32
    nonlinearity: str = "tanh"
    seq_len: int = 4
    batch: int = 5
    input_size: int = 3
    bidirectional: bool = True
    is_packed: bool = False
    bias: bool = True
    has_hx: bool = True

    def __str__(self):
        regime = "persistent" if self.shared_bytes else "steps"
        return (
            f"{regime}-H{self.hidden_size}-{self.multiprocessors}SM-"
            f"{str(self.dtype)[6:]}-{self.nonlinearity}{'-packed' * self.is_packed}"
        )


@dataclass
class Tensors:
    """The arguments of a case."""

    input: Tensor
    hx: Tensor | None
    weights: list[Tensor]
    batch_sizes: Tensor | None

    @classmethod
    def of(cls, case):
        generator = torch.Generator().manual_seed(1)

        def draw(*shape, scale=1.0):
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return (values * scale).to(case.dtype)

        directions, hidden = 1 + case.bidirectional, case.hidden_size
        batch_sizes = None
        rows = (case.seq_len, case.batch)
        if case.is_packed:
            sizes = [
                max(1, case.batch - t * case.batch // case.seq_len) for t in range(case.seq_len)
            ]
            batch_sizes = torch.tensor(sizes)
            rows = (sum(sizes),)
        # For relu, half of the units are on and half off: rounding moves none across the kink.
        is_relu = case.nonlinearity == "relu"
        weights = []
        for _ in range(directions):
            weights += [
                draw(hidden, case.input_size, scale=0.3),
                draw(hidden, hidden, scale=(0.1 if is_relu else 0.5) / hidden**0.5),
            ]
            if case.bias:
                biases = [draw(hidden, scale=0.3), draw(hidden, scale=0.3)]
                if is_relu:
                    biases[0] = biases[0].sign() * 8
                weights += biases
        hx = draw(directions, case.batch, hidden) if case.has_hx or case.is_packed else None
        return cls(draw(*rows, case.input_size), hx, weights, batch_sizes)

    def upstream(self, case):
        generator = torch.Generator().manual_seed(2)
        directions = 1 + case.bidirectional
        shapes = [
            (*self.input.shape[:-1], directions * case.hidden_size),
            (directions, case.batch, case.hidden_size),
        ]
        return tuple(torch.randn(s, generator=generator).to(case.dtype) for s in shapes)


def run(case, tensors, upstream, order="identity", mask=None):
    """Output, h_n and the gradients of input, hx and weights, from the emulated device."""
    settings = (tensors.batch_sizes, case.nonlinearity, case.bidirectional)
    operands = (tensors.input, tensors.hx, tensors.weights)
    if mask is None:
        mask = [True, tensors.hx is not None, *[True] * len(tensors.weights)]
    with emulation.device(order, case.multiprocessors, case.shared_bytes):
        output, h_n = emulation.OPS.rnn_forward(*operands, *settings)
        grads = emulation.OPS.rnn_backward(*upstream, *operands, output, *settings, list(mask))
    return [output, h_n, *grads]


def expected(case, tensors, upstream):
    """The same from the plain RNN in fp64."""
    operands = [
        t.detach().double().clone().requires_grad_()
        for t in (tensors.input, tensors.hx, *tensors.weights)
        if t is not None
    ]
    has_hx = tensors.hx is not None
    results = reference_rnn(
        operands[0],
        operands[1] if has_hx else None,
        operands[1 + has_hx :],
        nonlinearity=case.nonlinearity,
        bias=case.bias,
        bidirectional=case.bidirectional,
        batch_sizes=tensors.batch_sizes,
    )
    pairs = [(r, g.double()) for r, g in zip(results, upstream, strict=True) if g is not None]
    grads = torch.autograd.grad([r for r, _ in pairs], operands, [g for _, g in pairs])
    return [*(r.detach() for r in results), *grads]


def worst_error(actual, reference):
    """The largest error, in units of a dtype's precision at each tensor's largest value."""
    errors = [0.0]
    for a, b in zip(actual, reference, strict=True):
        assert a.shape == b.shape
        if b.numel():
            scale = b.abs().max().item() * torch.finfo(a.dtype).eps
            error = (a.double() - b).abs().max().item()
            errors.append(error / scale if error == error else float("inf"))
    return max(errors)


# A few roundings of every stored value, over a handful of steps. Seen: 6.2 and 0.96.
PRECISION = {
    torch.float32: 16,
    torch.float64: 16,
    torch.float16: 4,
    torch.bfloat16: 4,
}


@cache
def parity_error(case, order="identity"):
    tensors = Tensors.of(case)
    upstream = tensors.upstream(case)
    return worst_error(run(case, tensors, upstream, order), expected(case, tensors, upstream))


def shapes_of(dtype):
    """A case for each shape of each kernel, at sizes that are not a multiple of it."""
    widths = (61, 127) if dtype == torch.float64 else (61, 127, 200)
    for multiprocessors in (MANY, FEW):
        for hidden_size in widths:
            yield Case(hidden_size, multiprocessors, dtype=dtype)
        yield Case(70, multiprocessors, NO_PERSISTENT, dtype=dtype)
    yield Case(70, MANY, NO_PERSISTENT, dtype=dtype, batch=3)


SWEEP = [
    replace(case, nonlinearity=nonlinearity, is_packed=is_packed)
    for dtype in PRECISION
    for case in shapes_of(dtype)
    for nonlinearity, is_packed in (("tanh", True), ("relu", False))
]


@pytest.mark.parametrize("case", SWEEP, ids=str)
def test_kernel_computes_the_recurrence_and_its_gradients(case):
    assert parity_error(case) <= PRECISION[case.dtype]


def kernel_names(source):
    return re.findall(r"__global__ void(?: __launch_bounds__\(.*\))?\s+(\w+)\(", source)


def test_every_kernel_was_executed_in_every_instantiation():
    for case in SWEEP:
        parity_error(case)
    launched = emulation.launched_kernels()
    sources = [s.read_text() for s in emulation.kernel_sources(emulation.ROOT / "csrc")]
    names = {name for source in sources for name in kernel_names(source)}
    assert len(names) == sum(source.count("__global__") for source in sources)
    assert {re.search(r"rnn_ext::cuda::(\w+)", k)[1] for k in launched} == names

    command = ["nm", "-C", "--defined-only", str(emulation.build_library())]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pattern = rf".* [TW] ((?:void )?rnn_ext::cuda::(?:{'|'.join(names)})(?:<.*>)?\(.*\))"
    assert set(re.findall(pattern, listing)) == launched


KINDS = [
    Case(61),
    Case(200, FEW, is_packed=True),
    Case(70, MANY, NO_PERSISTENT),
    Case(70, FEW, NO_PERSISTENT, is_packed=True),
]


def tangent_operands(case):
    """The arguments of `_rnn_tangent` without the last flag; `initial` is None without an hx."""
    tensors = Tensors.of(case)
    seed, initial = tensors.upstream(case)
    matrices = tensors.weights[1 :: 4 if case.bias else 2]
    settings = (tensors.batch_sizes, case.nonlinearity)
    return [seed, initial if case.has_hx else None, matrices, seed.sin(), *settings]


def run_tangent(case, operands, reverse=False, order="identity"):
    with emulation.device(order, case.multiprocessors, case.shared_bytes):
        return emulation.OPS._rnn_tangent(*operands, reverse)


def expected_tangent(operands, reverse=False):
    seed, initial, matrices, states, batch_sizes, nonlinearity = operands
    start = None if initial is None else initial.double()
    exact = (seed.double(), start, [m.double() for m in matrices], states.double())
    return reference_tangent(*exact, batch_sizes, nonlinearity, reverse)


@pytest.mark.parametrize(
    ("nonlinearity", "has_hx", "reverse"), [("tanh", True, False), ("relu", False, True)]
)
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_tangent_recurrence(case, dtype, nonlinearity, has_hx, reverse):
    case = replace(case, dtype=dtype, nonlinearity=nonlinearity, has_hx=has_hx)
    operands = tangent_operands(case)
    result = run_tangent(case, operands, reverse)
    assert worst_error([result], [expected_tangent(operands, reverse)]) <= PRECISION[dtype]
    assert_same_bits([run_tangent(case, operands, reverse, "shuffled")], [result])


@pytest.mark.parametrize("case", KINDS[::2], ids=str)
def test_tangent_recurrence_reads_any_layout(case):
    seed, initial, matrices, *rest = operands = tangent_operands(case)
    strided = [
        seed.transpose(0, 1).contiguous().transpose(0, 1),
        initial.transpose(0, 2).contiguous().transpose(0, 2),
        [m.t().contiguous().t() for m in matrices],
        *rest,
    ]
    result = run_tangent(case, strided)
    assert worst_error([result], [expected_tangent(operands)]) <= PRECISION[case.dtype]


def test_tangent_recurrence_of_an_empty_batch():
    case = replace(KINDS[0], batch=0)
    result = run_tangent(case, tangent_operands(case))
    assert result.shape == (case.seq_len, 0, 2 * case.hidden_size)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_results_do_not_depend_on_the_order_of_threads(case, order):
    tensors = Tensors.of(case)
    upstream = tensors.upstream(case)
    assert_same_bits(run(case, tensors, upstream, order), run(case, tensors, upstream))


@pytest.mark.parametrize("case", KINDS, ids=str)
@pytest.mark.parametrize("hidden_size", [1, 64, 65])
def test_sizes_at_the_edges_of_tiles(case, hidden_size):
    for batch, seq_len, input_size in [(1, 1, 1), (2, 3, 17), (33, 2, 1)]:
        sized = replace(
            case, hidden_size=hidden_size, batch=batch, seq_len=seq_len, input_size=input_size
        )
        assert parity_error(sized) <= PRECISION[case.dtype]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("has_hx", [False, True])
@pytest.mark.parametrize("case", KINDS[::2], ids=str)
def test_with_and_without_bias_hx_and_second_direction(case, bidirectional, bias, has_hx):
    case = replace(case, bidirectional=bidirectional, bias=bias, has_hx=has_hx)
    assert parity_error(case) <= PRECISION[case.dtype]


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_packed_sequence_longer_than_one_upload(case):
    case = replace(case, hidden_size=3, batch=2, seq_len=300, is_packed=True, dtype=torch.float64)
    assert parity_error(case) <= PRECISION[case.dtype]


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_gradients_that_do_not_arrive_count_as_zero(case):
    tensors = Tensors.of(case)
    for_output, for_h_n = tensors.upstream(case)
    for upstream in [(for_output, None), (None, for_h_n)]:
        error = worst_error(run(case, tensors, upstream), expected(case, tensors, upstream))
        assert error <= PRECISION[case.dtype]


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_only_the_requested_gradients_are_returned_and_have_the_same_bits(case):
    tensors = Tensors.of(case)
    upstream = tensors.upstream(case)
    _, _, *everything = run(case, tensors, upstream)
    for wanted in range(len(everything)):
        mask = [i == wanted for i in range(len(everything))]
        _, _, *result = run(case, tensors, upstream, mask=mask)
        assert_same_bits(result, [everything[wanted]])


@pytest.mark.parametrize("case", [KINDS[0], KINDS[2]], ids=str)
def test_results_do_not_depend_on_memory_layouts(case):
    tensors = Tensors.of(case)
    for_output, for_h_n = tensors.upstream(case)
    assert tensors.hx is not None
    strided = Tensors(
        tensors.input.transpose(0, 1).contiguous().transpose(0, 1),
        tensors.hx.transpose(0, 2).contiguous().transpose(0, 2),
        [
            w.t().contiguous().t() if w.dim() == 2 else w[:, None].repeat(1, 2)[:, 0]
            for w in tensors.weights
        ],
        None,
    )
    upstream = (
        for_output.repeat(1, 1, 2)[..., ::1][..., : for_output.size(2)],
        for_h_n.transpose(0, 2).contiguous().transpose(0, 2),
    )
    results = run(case, strided, upstream)
    assert worst_error(results, expected(case, tensors, (for_output, for_h_n))) <= 16

    ones = torch.ones(1, 1, 1).expand(for_output.shape)
    assert_same_bits(
        run(case, tensors, (ones, None)), run(case, tensors, (ones.contiguous(), None))
    )


@pytest.mark.parametrize("has_hx", [False, True])
@pytest.mark.parametrize("case", KINDS[::2], ids=str)
def test_cell_gives_the_bits_of_a_layer_of_one_step(case, has_hx):
    case = replace(case, seq_len=1, bidirectional=False, has_hx=has_hx)
    tensors = Tensors.of(case)
    for_output, _ = tensors.upstream(case)
    output, _, *grads = run(case, tensors, (for_output, None))
    x, hx = tensors.input[0], None if tensors.hx is None else tensors.hx[0]
    mask = [True, has_hx, *[True] * len(tensors.weights)]
    with emulation.device("identity", case.multiprocessors, case.shared_bytes):
        h = emulation.OPS._cell_forward(x, hx, tensors.weights, case.nonlinearity)
        result = emulation.OPS._cell_backward(
            for_output[0], x, hx, tensors.weights, h, case.nonlinearity, mask
        )
    states = 1 + has_hx
    assert_same_bits([h, *result], [output[0], *(g[0] for g in grads[:states]), *grads[states:]])


@pytest.mark.parametrize("case", KINDS[::2], ids=str)
def test_empty_batch_gives_empty_states_and_zero_gradients(case):
    case = replace(case, batch=0)
    tensors = Tensors.of(case)
    output, h_n, *grads = run(case, tensors, tensors.upstream(case))
    assert output.shape == (case.seq_len, 0, 2 * case.hidden_size)
    assert h_n.shape == (2, 0, case.hidden_size)
    assert all(not g.count_nonzero() for g in grads)


@pytest.mark.parametrize("case", KINDS[::2], ids=str)
def test_a_missing_hx_means_zeros_also_where_a_weight_is_infinite(case):
    case = replace(case, has_hx=False, bidirectional=False)
    tensors = Tensors.of(case)
    tensors.weights[1][7, 3] = float("inf")
    output, _, *_ = run(case, tensors, tensors.upstream(case))
    assert output[0, :, 7].isnan().all()
    assert output[0].isnan().sum() == case.batch


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_nan_of_one_batch_row_stays_in_it(case):
    case = replace(case, is_packed=False)
    for nonlinearity in ("tanh", "relu"):
        case = replace(case, nonlinearity=nonlinearity)
        tensors = Tensors.of(case)
        clean, *_ = run(case, tensors, tensors.upstream(case))
        tensors.input[1, 2] = float("nan")
        output, *_ = run(case, tensors, tensors.upstream(case))
        forward = output[..., : case.hidden_size]
        assert forward[1:, 2].isnan().all()
        others = [0, 1, 3, 4]
        assert same_bits(output[:, others], clean[:, others])


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize("is_backward", [False, True])
@pytest.mark.parametrize(
    ("reason", "beginning"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "rnn_ext: out of memory: "),
        ("CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasSgemm`", "rnn_ext: "),
    ],
)
def test_a_failed_matrix_product_reports_torchs_reason(is_backward, reason, beginning, capfd):
    emulation.load()
    tensors = Tensors.of(KINDS[0])
    settings = (tensors.batch_sizes, "tanh", True)
    operands = (tensors.input, tensors.hx, tensors.weights)
    output, h_n = emulation.OPS.rnn_forward(*operands, *settings)
    mask = [True] * (2 + len(tensors.weights))
    op, arguments = emulation.OPS.rnn_forward, (*operands, *settings)
    if is_backward:
        op = emulation.OPS.rnn_backward
        arguments = (output, h_n, *operands, output, *settings, mask)

    def fail(*_, **__):
        raise RuntimeError(reason)

    with torch.library._scoped_library("aten", "IMPL") as aten:
        aten.impl("mm.out", fail, "CPU", allow_override=True)
        with pytest.raises(RuntimeError) as caught:
            op(*arguments)
    assert str(caught.value).startswith(beginning if TELLS_REASONS else "rnn_ext: ")
    assert reason in reason_told(caught.value, capfd.readouterr().err)


FAULTS = {
    "divergent": "do not meet at the same barrier",
    "early_exit": "do not meet at the same barrier",
    "beyond_shared": "wrote beyond its shared memory",
    "too_much_shared": "in a shape that the device does not offer",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_emulation_reports_faults_of_a_kernel(fault):
    run_fault = emulation.load().emulation_run_fault
    run_fault.restype = ctypes.c_char_p
    assert FAULTS[fault] in run_fault(fault.encode()).decode()


def test_shared_memory_starts_as_nan():
    is_nan = emulation.load().emulation_fresh_shared_memory_is_nan
    assert is_nan()


def test_packed_backward_needs_hx_and_a_packed_tangent_does_not():
    case = Case(8, is_packed=True)
    tensors = Tensors.of(case)
    settings = (tensors.batch_sizes, case.nonlinearity, case.bidirectional)
    mask = [True, False, *[True] * len(tensors.weights)]
    with emulation.device("identity", case.multiprocessors, case.shared_bytes):
        output, h_n = emulation.OPS.rnn_forward(
            tensors.input, tensors.hx, tensors.weights, *settings
        )
        with pytest.raises(RuntimeError, match="packed input needs hx"):
            emulation.OPS.rnn_backward(
                *(output, h_n, tensors.input, None, tensors.weights, output, *settings, mask)
            )
        matrices = [tensors.weights[1], tensors.weights[5]]
        without, zeros = (
            emulation.OPS._rnn_tangent(
                output, initial, matrices, output, tensors.batch_sizes, case.nonlinearity, False
            )
            for initial in (None, torch.zeros_like(h_n))
        )
    assert_same_bits([without], [zeros])
