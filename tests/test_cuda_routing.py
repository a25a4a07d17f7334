"""Which kernels take a call on a CUDA device, tested without one.

The calls run on fake tensors, which have a device and shapes but no data. Autograd cannot record
them where torch has no CUDA; for calls under autograd the tests ask `explain`.
"""

import os
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from support.ops import Ops
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence

import rnn_ext
from rnn_ext import _C
from rnn_ext._core import cuda
from rnn_ext.functional import rnn
from rnn_ext.info import route_of

H100 = (132, 227 << 10, 65536)
# Persistent blocks on it: of four rows, of two in float64.
MOST_ROWS = 132 * 4


@pytest.fixture
def h100(monkeypatch):
    """All CUDA devices are like an H100, which our kernels were built for."""
    monkeypatch.setattr(cuda, "limits", lambda _: H100)
    monkeypatch.setattr(cuda, "setting", "auto")


FAKE = FakeTensorMode(allow_non_fake_inputs=True)  # batch_sizes are real


def tensor(*shape, dtype=torch.float32):
    with FAKE:
        return torch.empty(shape, dtype=dtype, device="cuda")


def on_cuda(module, dtype=torch.float32):
    for name, parameter in list(module.named_parameters()):
        with FAKE:
            fake = nn.Parameter(tensor(*parameter.shape, dtype=dtype))
        setattr(module, name, fake)
    return module


def layer(hidden_size, dtype=torch.float32, **options):
    return on_cuda(rnn_ext.RNN(17, hidden_size, device="meta", **options), dtype)


class TorchsOp(Exception):
    """Stands in for torch's op, which needs a device even if tensors are fake."""

    @classmethod
    def call(cls, *_):
        raise cls


def op_of(module, *arguments):
    """The op that the call runs: one of ours, or torch's."""
    torchs = {"rnn_tanh": TorchsOp.call, "rnn_tanh_cell": TorchsOp.call}
    try:
        with torch.no_grad(), Ops() as ops, patch.multiple(torch, **torchs):
            module(*arguments)
    except TorchsOp:
        return "torch's own op"
    (op,) = ops.ours
    return op


def packed(*batch_sizes):
    return PackedSequence(tensor(sum(batch_sizes), 17), torch.tensor(batch_sizes))


def assert_ours(module, input, why):
    line = rnn_ext.explain(module, input)
    assert line.startswith("rnn_ext CUDA kernels")
    assert line.endswith(f"({why})")
    assert op_of(module, input).startswith("rnn_ext::")


def assert_torchs(module, input, why):
    assert rnn_ext.explain(module, input) == f"torch's own op: {why}"
    assert op_of(module, input) == "torch's own op"


FITS = "a persistent kernel takes all rows at once"


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hidden_size", [1, 64, 256])
def test_auto_takes_our_kernels_up_to_the_rows_that_persistent_blocks_hold_at_once(
    hidden_size, dtype
):
    module = layer(hidden_size, dtype)
    for batch in (1, 0, MOST_ROWS):
        assert_ours(module, tensor(2, batch, 17, dtype=dtype), FITS)
    assert_torchs(
        module,
        tensor(2, MOST_ROWS + 1, 17, dtype=dtype),
        f"persistent CUDA kernels take up to {MOST_ROWS} rows of {hidden_size} units of {dtype} "
        "at once on this device",
    )


@pytest.mark.usefixtures("h100")
def test_auto_counts_the_blocks_of_both_directions_and_of_float64():
    both = layer(64, bidirectional=True, num_layers=2)
    assert_ours(both, tensor(2, MOST_ROWS // 2, 17), FITS)
    assert op_of(both, tensor(2, MOST_ROWS // 2 + 1, 17)) == "torch's own op"
    wide = layer(128, torch.float64)
    assert_ours(wide, tensor(2, MOST_ROWS // 2, 17, dtype=torch.float64), FITS)
    assert op_of(wide, tensor(2, MOST_ROWS // 2 + 1, 17, dtype=torch.float64)) == "torch's own op"


@pytest.mark.usefixtures("h100")
def test_auto_leaves_states_that_fit_no_block_to_torchs_op():
    reason = "no persistent CUDA kernel holds {} on this device"
    assert_torchs(layer(257), tensor(2, 1, 17), reason.format("257 units of torch.float32"))
    module, x = layer(129, torch.float64), tensor(2, 1, 17, dtype=torch.float64)
    assert_torchs(module, x, reason.format("129 units of torch.float64"))


@pytest.mark.usefixtures("h100")
def test_auto_counts_steps_and_rows_in_every_layout():
    batch_first = layer(64, batch_first=True)
    assert_ours(batch_first, tensor(MOST_ROWS, 3, 17), FITS)
    assert op_of(batch_first, tensor(MOST_ROWS + 1, 3, 17)) == "torch's own op"
    assert_ours(layer(64), tensor(MOST_ROWS + 1, 17), FITS)  # steps of one row
    assert_ours(layer(64), packed(MOST_ROWS, 3, 1), FITS)
    assert op_of(layer(64), packed(MOST_ROWS + 1, 3, 1)) == "torch's own op"


@pytest.mark.usefixtures("h100")
def test_auto_treats_a_cell_as_a_layer_of_one_step():
    cell = on_cuda(rnn_ext.RNNCell(17, 64, device="meta")).eval()
    assert_ours(cell, tensor(MOST_ROWS, 17), FITS)
    assert_ours(cell, tensor(17), FITS)
    assert op_of(cell, tensor(MOST_ROWS + 1, 17)) == "torch's own op"
    assert "torch's own op" in rnn_ext.explain(cell, tensor(MOST_ROWS + 1, 17))


LONG = "cuDNN does not support sequences of more than 65535 steps"


@pytest.mark.usefixtures("h100")
def test_auto_takes_sequences_longer_than_cudnn_does():
    assert_ours(layer(300), tensor(65536, 1, 17), LONG)
    assert_ours(layer(300), packed(*[1] * 65536), LONG)
    # 65536 rows are not steps.
    for shorter in (tensor(65535, 1, 17), packed(*[1] * 65535), packed(65536)):
        assert op_of(layer(300), shorter) == "torch's own op"


@pytest.mark.usefixtures("h100")
def test_auto_takes_backward_in_eval_mode_but_not_inference():
    module, x = layer(300).eval(), tensor(2, 1, 17)
    ours, reason = "rnn_ext CUDA kernels", "(cuDNN has no backward in eval mode)"
    line = rnn_ext.explain(module, x)
    assert line.startswith(ours)
    assert line.endswith(reason)
    with torch.no_grad():
        assert_torchs(
            module, x, "no persistent CUDA kernel holds 300 units of torch.float32 on this device"
        )
    module.requires_grad_(False)
    assert rnn_ext.explain(module, x).startswith("torch's own op")
    assert rnn_ext.explain(module, x.requires_grad_()).startswith(ours)


@pytest.mark.usefixtures("h100")
def test_auto_takes_calls_under_deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        assert_ours(
            layer(300),
            tensor(2, 1, 17),
            "deterministic algorithms are requested, which cuDNN does not guarantee",
        )
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("h100")
def test_the_setting_overrides_the_choice(monkeypatch):
    monkeypatch.setattr(cuda, "setting", "ours")
    assert_ours(layer(5000), tensor(2, 4096, 17), "RNN_EXT_CUDA=ours")
    monkeypatch.setattr(cuda, "setting", "torch")
    assert_torchs(layer(16), tensor(65536, 1, 17), "RNN_EXT_CUDA=torch")


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("setting", ["auto", "ours"])
def test_a_device_that_cannot_run_them_gets_torchs_op_and_the_reason(monkeypatch, setting):
    monkeypatch.setattr(cuda, "setting", setting)
    monkeypatch.setattr(cuda, "limits", lambda _: "the driver is too old")
    assert_torchs(layer(16), tensor(2, 1, 17), "the driver is too old")


@pytest.mark.usefixtures("h100")
def test_autocast_and_dtypes_without_kernels_go_to_torchs_op():
    torch.set_autocast_enabled("cuda", True)
    try:
        assert rnn_ext.explain(layer(16), tensor(2, 1, 17)) == "torch's own op: autocast is on"
    finally:
        torch.set_autocast_enabled("cuda", False)
    module, x = layer(16, torch.complex64), tensor(2, 1, 17, dtype=torch.complex64)
    assert_torchs(module, x, "no CUDA kernel for torch.complex64")


@pytest.mark.usefixtures("h100")
def test_too_few_weights_are_an_error_on_cuda_too():
    with pytest.raises(ValueError, match="weights"):
        rnn(tensor(2, 1, 17), None, [])
    module = layer(64)
    module.num_layers = 2
    line = rnn_ext.explain(module, tensor(2, 1, 17))
    assert line == "torch's own op: num_layers, bidirectional and bias do not fit the weights"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_the_reason_without_a_device_is_one_sentence_from_the_binary():
    reason = cuda.limits(0)
    assert isinstance(reason, str)
    if _C.build_info()["cuda_archs"] is None:
        assert reason == "rnn_ext was built without CUDA kernels"
    else:
        assert reason.startswith("rnn_ext: the CUDA kernels cannot run here: ")


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        (["80"], (8, 0), True),
        (["80"], (8, 6), True),
        (["86"], (8, 0), False),
        (["80"], (9, 0), False),
        (["80+PTX"], (12, 0), True),
        (["90+PTX"], (8, 9), False),
        (["90a"], (9, 0), True),
        (["100a"], (10, 3), False),
        (["75", "120"], (12, 1), True),
    ],
)
def test_code_runs_on_devices_of_its_major_version_and_ptx_on_later_ones(
    archs, capability, expected
):
    assert cuda.runs_on(archs, capability) == expected


def test_the_choice_neither_breaks_a_compiled_graph_nor_recompiles_for_each_batch(monkeypatch):
    monkeypatch.setattr(cuda, "limits", lambda _: H100)
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend, dynamic=True)
    def f(x):
        choice = cuda.decide("auto", 0, x.dtype, x.size(0), 64, 1, None)
        return x + 1 if choice.ours else x

    for batch in (2, 3, 100, MOST_ROWS):
        assert f(torch.zeros(batch)).tolist() == [1] * batch
    assert len(compiled) == 1
    assert f(torch.zeros(MOST_ROWS + 1)).sum() == 0


def test_importing_the_package_does_not_import_the_compiler():
    program = "import sys, rnn_ext; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_wrong_setting_is_an_error_that_lists_the_valid_ones():
    done = subprocess.run(
        [sys.executable, "-c", "import rnn_ext"],
        env=os.environ | {"RNN_EXT_CUDA": "mine"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: RNN_EXT_CUDA=mine is not one of auto, ours, torch."


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize(
    ("setting", "hidden_size", "kernels"),
    [("ours", 64, "persistent"), ("ours", 4096, "step"), ("torch", 64, "torch")],
)
def test_the_route_names_the_kernels(monkeypatch, setting, hidden_size, kernels):
    monkeypatch.setattr(cuda, "setting", setting)
    module, x = layer(hidden_size), tensor(2, 1, 17)
    assert route_of(module, x).kernels() == kernels
    assert (f", {kernels}, " in rnn_ext.explain(module, x)) == (kernels != "torch")
