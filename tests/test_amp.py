"""Mixed precision: autocast casts as for torch's own modules, then our kernels run."""

import copy
from contextlib import nullcontext

import pytest
import torch
from support import KINDS, assert_same_bits, flat, hx_of, onednn_has_lstm, twins
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnn_ext

HALVES = [torch.bfloat16, torch.float16]


def autocast(dtype):
    return torch.autocast("cpu", dtype=dtype)


def pairs():
    """Torch's module, ours with the same weights, and arguments of their forward."""
    packed = pack_sequence([torch.randn(n, 5) for n in (4, 3, 1)])
    found = [(*twins(5, 6, nonlinearity="relu", batch_first=True), (torch.randn(3, 9, 5),))]
    for kind in KINDS:
        two_ways = {"kind": kind, "num_layers": 2, "bidirectional": True}
        cells = twins(5, 6, kind=f"{kind}Cell")
        found += [
            (*twins(5, 6, **two_ways), (torch.randn(9, 3, 5), hx_of(kind, 4, 3, 6))),
            (*twins(5, 6, **two_ways), (packed, hx_of(kind, 4, 3, 6))),
            (*cells, (torch.randn(3, 5), hx_of(kind, 3, 6))),
            (*copy.deepcopy(cells), (torch.randn(5),)),
        ]
    return found


def to(dtype, args):
    if isinstance(args, tuple) and not isinstance(args, PackedSequence):
        return tuple(to(dtype, a) for a in args)
    return args.to(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_have_the_dtypes_that_torchs_modules_give(dtype):
    for theirs, ours, args in pairs():
        is_packed = isinstance(args[0], PackedSequence)
        if type(theirs) is nn.LSTM and not is_packed and not onednn_has_lstm(dtype):
            continue  # torch raises an error
        for given in (torch.float32, dtype):
            dtypes = []
            for module in (theirs, ours):
                with autocast(dtype):
                    results = flat(module(*to(given, args)))
                    loss = sum(r.float().sum() for r in results)
                grads = torch.autograd.grad(loss, list(module.parameters()))
                dtypes.append([t.dtype for t in (*results, *grads)])
            assert dtypes[1] == dtypes[0]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_are_those_of_a_module_in_their_dtype(dtype):
    for _, module, args in pairs():
        with autocast(dtype):
            results = flat(module(*args))
            line = rnn_ext.explain(module, *args)
        grads = torch.autograd.grad([r.sum() for r in results], list(module.parameters()))
        used = results[0].dtype
        module.to(used)
        expected = flat(module(*to(used, args)))
        assert_same_bits(results, expected)
        expected = torch.autograd.grad([r.sum() for r in expected], list(module.parameters()))
        assert_same_bits(grads, [g.float() for g in expected])
        assert line == rnn_ext.explain(module, *to(used, args))
        assert "rnn_ext CPU kernels" in line


def test_float64_stays_float64():
    theirs, ours = twins(5, 6, dtype=torch.float64)
    x = torch.randn(9, 3, 5, dtype=torch.float64)
    expected = ours(x)
    with autocast(torch.bfloat16):
        assert [t.dtype for t in theirs(x)] == [torch.float64] * 2
        assert_same_bits(ours(x), expected)


def test_a_transform_or_graph_under_autocast_gives_that_dtype_too():
    module = rnn_ext.RNN(5, 6)
    x = torch.randn(9, 3, 5)
    torch._dynamo.reset()
    graph = torch.compile(module, fullgraph=True, backend="aot_eager")
    with autocast(torch.bfloat16):
        assert_same_bits(graph(x), module(x))
        _, tangent = torch.func.jvp(lambda t: module(t)[0], (x,), (x,))
    assert tangent.dtype == torch.bfloat16
    assert tangent.any()


def test_a_grad_scaler_skips_steps_that_overflow_and_trains_in_the_others():
    module = rnn_ext.RNN(5, 6)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1)
    x, target = torch.randn(9, 3, 5), torch.rand(9, 3, 6) - 0.5
    losses, scales = [], []
    for _ in range(30):
        before = [p.clone() for p in module.parameters()]
        optimizer.zero_grad()
        with autocast(torch.float16):
            loss = nn.functional.mse_loss(module(x)[0].float(), target)
        scale = scaler.get_scale()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        skipped = scaler.get_scale() < scale
        assert all(map(torch.equal, before, module.parameters())) == skipped
        losses.append(loss.item())
        scales.append(skipped)
    assert True in scales
    assert False in scales
    assert losses[-1] < losses[0]


def test_autocast_switched_off_inside_runs_our_kernels():
    module = rnn_ext.RNN(5, 6)
    x = torch.randn(9, 3, 5)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert_same_bits(module(x), expected)


def _of_gpu_autocast():
    return torch.autocast("cuda", dtype=torch.float16)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*device_type of 'cuda'.*:UserWarning")
@pytest.mark.parametrize("context", [nullcontext, _of_gpu_autocast])
def test_ignores_autocast_of_another_device(context):
    module = rnn_ext.RNN(5, 6)
    x = torch.randn(9, 3, 5)
    expected = module(x)
    with context():
        assert_same_bits(module(x), expected)
