"""Who takes a call on a CUDA device: what can be told without having one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from rnn_ext import _C, cuda

H100: cuda.Limits = (132, 227 << 10, 65536)
Choose = Callable[..., str | None]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """The choice on an H100 for a fp32 layer."""
    monkeypatch.setattr(cuda, "limits", lambda _: H100)

    def call(setting: str, hidden_size: int, *, torch_refuses: bool = False) -> str | None:
        return cuda.choose(setting, 0, hidden_size, torch.float32, torch_refuses)

    return call


def test_auto_takes_our_kernels_where_persistent_ones_fit_or_torchs_op_refuses(
    choose: Choose,
) -> None:
    assert choose("auto", 256) is None
    assert choose("auto", 257, torch_refuses=True) is None
    reason = choose("auto", 257)
    assert reason is not None
    assert "257 units" in reason


def test_a_setting_overrules_what_would_be_chosen(choose: Choose) -> None:
    assert choose("ours", 5000) is None
    assert choose("torch", 16, torch_refuses=True) == "RNN_EXT_CUDA=torch"


def test_a_device_that_cannot_run_them_gets_torchs_op_and_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "limits", lambda _: "the driver is too old")
    for setting in ("auto", "ours"):
        chosen = cuda.choose(setting, 0, 16, torch.float32, torch_refuses=True)
        assert chosen == "the driver is too old"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_the_reason_without_a_device_is_one_sentence_of_the_binarys() -> None:
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
    archs: list[str], capability: tuple[int, int], expected: bool
) -> None:
    assert cuda.runs_on(archs, capability) == expected


def test_the_choice_does_not_break_a_compiled_graph(choose: Choose) -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def f(x: torch.Tensor) -> torch.Tensor:
        reason = cuda.choose("auto", 0, x.size(0), x.dtype, torch_refuses=False)
        return x + 1 if reason is None else x

    assert f(torch.zeros(4)).tolist() == [1] * 4


def test_importing_the_package_does_not_import_the_compiler() -> None:
    program = "import sys, rnn_ext; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_wrong_setting_is_an_error_that_lists_the_valid_ones() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import rnn_ext"],
        env=os.environ | {"RNN_EXT_CUDA": "mine"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: RNN_EXT_CUDA=mine is not one of auto, ours, torch."
