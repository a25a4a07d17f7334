"""Our kernels on a CUDA device: `make gpu-test`. Needs torch and pytest, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext
from rnn_ext import cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

DEVICE = "cuda"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Both sides of every shape of a kernel, and sizes that are no multiple of any.
HIDDEN_SIZES = (1, 33, 64, 65, 128, 200, 256, 257, 515)
# In units of a dtype's precision at a tensor's largest value, which at one unit may be what is left
# of a sum over 2200 rows. TF32 would be off by some thousands; products of 16-bit tensors are
# rounded once more by torch.
PRECISION = {torch.float32: 256, torch.float64: 256, torch.float16: 16, torch.bfloat16: 16}


@pytest.fixture(autouse=True)
def ours_without_tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every call takes our kernels, and matrix products have full precision."""
    monkeypatch.setattr(cuda, "setting", "ours")
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def module(
    hidden_size: int, dtype: torch.dtype = torch.float32, input_size: int = 17, **options: Any
) -> rnn_ext.RNN:
    rnn = rnn_ext.RNN(input_size, hidden_size, device=DEVICE, dtype=dtype, **options)
    if rnn.nonlinearity == "relu":
        # Half of the units on and half off, so that rounding carries none over the kink.
        with torch.no_grad():
            for name, parameter in rnn.named_parameters():
                parameter *= 0.1
                if name.startswith("bias_ih"):
                    parameter.copy_(torch.randn_like(parameter).sign() * 8)
    return rnn


def reference(rnn: rnn_ext.RNN) -> nn.RNN:
    """`nn.RNN` in fp64 on the CPU, with the same weights."""
    options = {"bidirectional": rnn.bidirectional, "nonlinearity": rnn.nonlinearity}
    theirs = nn.RNN(rnn.input_size, rnn.hidden_size, rnn.num_layers, **options).double()
    theirs.load_state_dict({k: v.double().cpu() for k, v in rnn.state_dict().items()})
    return theirs


def results(rnn: nn.Module, x: Tensor, hx: Tensor, lengths: Sequence[int] | None) -> list[Tensor]:
    """Output, h_n and the gradients of input, hx and parameters for one loss."""
    x, hx = (t.detach().clone().requires_grad_() for t in (x, hx))
    argument: Tensor | PackedSequence = x
    if lengths is not None:
        argument = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, h_n = rnn(argument, hx)
    data = output.data if isinstance(output, PackedSequence) else output
    weights = torch.linspace(-1, 1, data.numel(), dtype=torch.float64).view(data.shape)
    loss = (data * weights.to(data)).sum() + h_n.sum()
    return [data.detach(), h_n.detach(), *torch.autograd.grad(loss, [x, hx, *rnn.parameters()])]


def assert_parity(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        bound = PRECISION[a.dtype] * torch.finfo(a.dtype).eps * b.abs().max().item()
        error = (a.double().cpu() - b).abs().max().item()
        assert error <= bound, f"tensor {index}: off by {error}, bound {bound}"


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


GRID = list(product(DTYPES, HIDDEN_SIZES, ("tanh", "relu"), (False, True), (3, 200)))


@pytest.mark.parametrize(("dtype", "hidden_size", "nonlinearity", "packed", "batch"), GRID, ids=str)
def test_results_and_gradients_are_those_of_nn_rnn_in_fp64(
    dtype: torch.dtype, hidden_size: int, nonlinearity: str, packed: bool, batch: int
) -> None:
    rnn = module(hidden_size, dtype, bidirectional=True, nonlinearity=nonlinearity)
    x = torch.randn(11, batch, 17, device=DEVICE, dtype=dtype)
    hx = torch.randn(2, batch, hidden_size, device=DEVICE, dtype=dtype)
    lengths = [1 + i % 11 for i in range(batch - 1)] + [11] if packed else None
    actual = results(rnn, x, hx, lengths)
    expected = results(reference(rnn), x.double().cpu(), hx.double().cpu(), lengths)
    assert_parity(actual, expected)


@pytest.mark.parametrize("hidden_size", [64, 256, 515])
def test_explain_names_the_kernel(hidden_size: int) -> None:
    line = rnn_ext.explain(module(hidden_size), torch.zeros(3, 2, 17, device=DEVICE))
    assert "rnn_ext CUDA kernels" in line


@pytest.mark.parametrize("hidden_size", [64, 256, 515])
def test_twenty_runs_give_the_same_bits(hidden_size: int) -> None:
    rnn = module(hidden_size, num_layers=2)
    x = torch.randn(50, 33, 17, device=DEVICE)
    hx = torch.zeros(2, 33, hidden_size, device=DEVICE)
    first = results(rnn, x, hx, None)
    assert all(same_bits(results(rnn, x, hx, None), first) for _ in range(20))


@pytest.mark.parametrize("hidden_size", [64, 515])
def test_backward_works_in_eval_mode(hidden_size: int) -> None:
    rnn = module(hidden_size)
    x, hx = torch.randn(9, 4, 17, device=DEVICE), torch.zeros(1, 4, hidden_size, device=DEVICE)
    assert same_bits(results(rnn.eval(), x, hx, None), results(rnn.train(), x, hx, None))


def test_double_backward_is_right() -> None:
    rnn = module(5, torch.float64, input_size=3, bidirectional=True)
    x = torch.randn(4, 2, 3, device=DEVICE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: rnn(x)[0], x)


@pytest.mark.parametrize("hidden_size", [64, 515])
def test_work_goes_to_the_current_stream(hidden_size: int) -> None:
    rnn = module(hidden_size)
    x = torch.randn(200, 64, 17, device=DEVICE)
    hx = torch.zeros(1, 64, hidden_size, device=DEVICE)
    expected = results(rnn, x, hx, None)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x * 1  # ready only after the pause: another stream would read too early
        actual = results(rnn, late, hx, None)
    torch.cuda.current_stream().wait_stream(stream)
    assert same_bits(actual, expected)


@pytest.mark.parametrize("lengths", [None, [9, 3, 1, 7]], ids=["padded", "packed"])
@pytest.mark.parametrize("hidden_size", [64, 515])
def test_a_captured_graph_replays_on_new_input(
    hidden_size: int, lengths: Sequence[int] | None
) -> None:
    rnn = module(hidden_size)
    x = torch.randn(9, 4, 17, device=DEVICE)
    hx = torch.zeros(1, 4, hidden_size, device=DEVICE)
    argument: Tensor | PackedSequence = x
    if lengths is not None:
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        x, argument = packed.data, packed

    def step() -> Tensor:
        output, _ = rnn(argument, hx)
        return output.data if isinstance(output, PackedSequence) else output

    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        if lengths is not None:  # reordering hx by the host's order copies; sorted input does not
            argument = PackedSequence(packed.data, packed.batch_sizes)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(captured, step())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one device")
def test_a_second_device_works_while_the_first_is_current() -> None:
    rnn = module(64).to("cuda:1")
    output, _ = rnn(torch.randn(5, 3, 17, device="cuda:1"))
    assert output.device.index == 1
    assert torch.cuda.current_device() == 0


def test_running_out_of_memory_is_told_and_leaves_a_usable_process() -> None:
    rnn = module(64)
    rows = torch.cuda.get_device_properties(0).total_memory // (4 * 64) + 1
    with pytest.raises(torch.OutOfMemoryError):
        rnn(torch.zeros(1, 1, 17, device=DEVICE).expand(rows, 1, 17))
    torch.cuda.empty_cache()
    assert rnn(torch.randn(5, 3, 17, device=DEVICE))[0].isfinite().all()


def test_autocast_gives_exactly_nn_rnns_results() -> None:
    rnn = module(64)
    theirs = nn.RNN(17, 64, device=DEVICE)
    theirs.load_state_dict(rnn.state_dict())
    x = torch.randn(5, 3, 17, device=DEVICE)
    with torch.autocast("cuda", torch.float16):
        assert same_bits(rnn(x), theirs(x))


@pytest.mark.parametrize("hidden_size", [16, 300])
def test_longer_sequences_than_cudnn_takes(hidden_size: int) -> None:
    rnn = module(hidden_size, input_size=3)
    x = torch.randn(70_000, 1, 3, device=DEVICE)
    hx = torch.zeros(1, 1, hidden_size, device=DEVICE)
    whole, _ = rnn(x, hx)
    last, _ = rnn(x[-100:], rnn(x[:-100], hx)[1])
    assert torch.equal(whole[-100:], last)
    whole.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rnn.parameters())


@pytest.mark.parametrize("hidden_size", [64, 515])
def test_a_large_batch_and_an_empty_one(hidden_size: int) -> None:
    rnn = module(hidden_size)
    x = torch.randn(3, 4096, 17, device=DEVICE)
    hx = torch.zeros(1, 4096, hidden_size, device=DEVICE)
    expected = results(reference(rnn), x.double().cpu(), hx.double().cpu(), None)
    # The gradients of weights are sums over 12288 rows: their rounding is not that of a row.
    assert_parity(results(rnn, x, hx, None)[:4], expected[:4])
    output, h_n = rnn(x[:, :0])
    assert output.shape == (3, 0, hidden_size)
    assert h_n.shape == (1, 0, hidden_size)


def test_the_setting_torch_gives_exactly_nn_rnns_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "setting", "torch")
    rnn = module(64)
    theirs = nn.RNN(17, 64, device=DEVICE)
    theirs.load_state_dict(rnn.state_dict())
    x = torch.randn(5, 3, 17, device=DEVICE)
    assert same_bits(rnn(x), theirs(x))


def test_this_build_has_kernels_for_this_device() -> None:
    assert not isinstance(cuda.limits(0), str), cuda.limits(0)
