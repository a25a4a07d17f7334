"""Which kernels take a call on a GPU."""

import pytest
import torch
from support import assert_same_bits
from support.gpu import DEVICE, NEEDS_GPU, PERSISTENT, STEP, draw, layer
from torch import nn

import rnn_ext
from rnn_ext._core import cuda

pytestmark = NEEDS_GPU


def test_this_build_has_kernels_for_this_device():
    assert not isinstance(cuda.limits(0), str), cuda.limits(0)


@pytest.mark.parametrize(
    ("hidden_size", "regime"), [(PERSISTENT, "persistent"), (STEP, "step")], ids=str
)
def test_explain_names_the_kernel(hidden_size, regime):
    line = rnn_ext.explain(layer(hidden_size), draw(3, 2, 17))
    assert line.startswith(f"rnn_ext CUDA kernels, {regime}, float32: ")


def test_the_setting_torch_gives_exactly_nn_rnns_results(monkeypatch):
    monkeypatch.setattr(cuda, "setting", "torch")
    rnn, x = layer(64), draw(5, 3, 17)
    theirs = nn.RNN(17, 64, device=DEVICE)
    theirs.load_state_dict(rnn.state_dict())
    assert_same_bits(rnn(x), theirs(x))


@pytest.mark.parametrize("hidden_size", [PERSISTENT, STEP])
def test_auto_takes_calls_that_cudnn_does_not_support(hidden_size, monkeypatch):
    monkeypatch.setattr(cuda, "setting", "auto")
    rnn = layer(hidden_size)
    rnn(draw(70_000, 1, 17))[0].sum().backward()
    rnn.eval()(draw(3, 2, 17))[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rnn.parameters())


@pytest.mark.parametrize("hidden_size", [PERSISTENT, STEP])
def test_dtypes_without_a_kernel_go_to_torchs_op(hidden_size):
    rnn = layer(hidden_size, torch.complex64)
    assert rnn_ext.explain(rnn, draw(3, 2, 17, dtype=torch.complex64)).startswith("torch's own op")
