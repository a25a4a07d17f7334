"""Decides whether our kernels take a call on a CUDA device: build, device and RNN_EXT_CUDA."""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import torch

from .. import _C
from .call import Call
from .torch_private import assume_constant_result

__all__ = ["Choice", "Limits", "Plan", "choose", "decide", "limits", "plan", "plan_of", "runs_on"]

# The limits of a device that a plan depends on: its multiprocessors, and a block's bytes of shared
# memory and registers.
Limits = tuple[int, int, int]

_SETTINGS = ("auto", "ours", "torch")
_LONGEST_OF_TORCH = 65535


class Plan(NamedTuple):
    """The kernels of a call, and the units and batch rows of a block."""

    regime: str  # "persistent" or "step"
    units: int
    rows: int


class Choice(NamedTuple):
    """Whether our kernels take a call, and why they do or do not."""

    ours: bool
    reason: str


def _setting() -> str:
    value = os.environ.get("RNN_EXT_CUDA") or "auto"
    if value not in _SETTINGS:
        raise ImportError(f"RNN_EXT_CUDA={value} is not one of {', '.join(_SETTINGS)}.")
    return value


setting = _setting()


@functools.cache
def limits(index: int) -> Limits | str:
    """Returns the limits of a CUDA device, or why our kernels cannot run on it."""
    try:
        device_limits: Limits = _C.cuda_limits(index)
    except RuntimeError as error:
        return str(error)
    archs: Any = _C.build_info()["cuda_archs"]
    capability = torch.cuda.get_device_capability(index)
    if not runs_on(archs, capability):
        have = ".".join(map(str, capability))
        return f"the CUDA kernels were built for {', '.join(archs)}, and this device has {have}"
    return device_limits


def runs_on(archs: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for ``archs`` (``'90'``, ``'90a'``, ``'90+PTX'``) runs on a device.

    Machine code runs on devices of the same major version and at least its minor version (with
    ``a``: only of exactly its version), PTX on every later device.
    """
    for arch in archs:
        code, _, ptx = arch.partition("+")
        digits = code.rstrip("abcdefghijklmnopqrstuvwxyz")
        built_for = int(digits[:-1]), int(digits[-1])
        if digits != code:
            if built_for == capability:
                return True
        elif built_for <= capability and (ptx or built_for[0] == capability[0]):
            return True
    return False


def plan(batch: int, hidden_size: int, directions: int, dtype: torch.dtype, limits: Limits) -> Plan:
    """Returns the plan of a call with these sizes on a device with ``limits``."""
    return Plan(*_C.cuda_plan(batch, hidden_size, directions, dtype == torch.float64, *limits))


def plan_of(call: Call) -> Plan:
    """Returns the plan of a call that our kernels take."""
    device_limits = limits(call.input.device.index)
    assert not isinstance(device_limits, str), device_limits  # a reason for torch's op
    sizes = (call.batch_size(), call.hidden_size, call.directions())
    return plan(*sizes, call.input.dtype, device_limits)


def choose(call: Call) -> Choice:
    """Decides whether our kernels take a call whose tensors are on one CUDA device."""
    # torch's op can always run backward of a step.
    training = call.training or call.is_step
    operands = [call.input, *call.weights] if call.hx is None else [*call[:2], *call.weights]
    refusal = None
    if call.seq_len() > _LONGEST_OF_TORCH:
        refusal = f"cuDNN does not support sequences of more than {_LONGEST_OF_TORCH} steps"
    elif not training and torch.is_grad_enabled() and any(t.requires_grad for t in operands):
        refusal = "cuDNN has no backward in eval mode"
    elif torch.are_deterministic_algorithms_enabled():
        refusal = "deterministic algorithms are requested, which cuDNN does not guarantee"
    return decide(
        *(setting, call.input.device.index, call.input.dtype, call.batch_size()),
        *(call.weights[1].size(0), call.directions()),
        torch_refusal=refusal,
    )


def decide(
    setting: str,
    index: int,
    dtype: torch.dtype,
    batch: int,
    hidden_size: int,
    directions: int,
    torch_refusal: str | None,
) -> Choice:
    """Decides from these values; ``torch_refusal`` says why torch's op cannot run, if so."""
    if setting == "torch":
        return Choice(False, "RNN_EXT_CUDA=torch")
    most = _most_persistent_rows(index, hidden_size, directions, dtype)
    if isinstance(most, str):
        return Choice(False, most)
    if setting == "ours":
        return Choice(True, "RNN_EXT_CUDA=ours")
    if torch_refusal:
        return Choice(True, torch_refusal)
    if batch <= most:
        return Choice(True, "a persistent kernel takes all rows at once")
    units = f"{hidden_size} units of {dtype}"
    return Choice(
        False,
        f"persistent CUDA kernels take up to {most} rows of {units} at once on this device"
        if most
        else f"no persistent CUDA kernel holds {units} on this device",
    )


def _most_persistent_rows(
    index: int, hidden_size: int, directions: int, dtype: torch.dtype
) -> int | str:
    """Returns the largest batch whose persistent blocks all run at once, one per multiprocessor.

    Returns 0 if W_hh does not fit into a block, and a reason if our kernels cannot run there.
    """
    device_limits = limits(index)
    if isinstance(device_limits, str):
        return device_limits
    many = 2**40
    regime, _, rows = plan(many, hidden_size, directions, dtype, device_limits)
    return device_limits[0] // directions * rows if regime == "persistent" else 0


# torch.compile cannot trace calls of the binary. The batch size is not an argument, because it
# changes from call to call and the result must be constant.
assume_constant_result(_most_persistent_rows)
