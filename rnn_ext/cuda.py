"""Whether a call on a CUDA device takes our kernels: the build, the device, and RNN_EXT_CUDA."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import Tensor

from . import _C

__all__ = ["Limits", "choose", "limits", "plan", "reason_for_torch", "runs_on"]

# What a plan needs to know of a device: multiprocessors, and the bytes of shared memory and the
# registers that a block may have.
Limits = tuple[int, int, int]

_SETTINGS = ("auto", "ours", "torch")
_LONGEST_OF_TORCH = 65535


def _setting() -> str:
    value = os.environ.get("RNN_EXT_CUDA") or "auto"
    if value not in _SETTINGS:
        raise ImportError(f"RNN_EXT_CUDA={value} is not one of {', '.join(_SETTINGS)}.")
    return value


setting = _setting()


@functools.cache
def limits(index: int) -> Limits | str:
    """The limits of a CUDA device, or why our kernels cannot run on it."""
    try:
        found = _C.cuda_limits(index)
    except RuntimeError as error:
        return str(error)
    archs: Any = _C.build_info()["cuda_archs"]
    capability = torch.cuda.get_device_capability(index)
    if not runs_on(archs, capability):
        have = ".".join(map(str, capability))
        return f"the CUDA kernels were built for {', '.join(archs)}, and this device has {have}"
    return found


def runs_on(archs: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for ``archs`` (``'90'``, ``'90a'``, ``'90+PTX'``) runs on such a device.

    Machine code serves its own major version from its minor version on (``a``: itself alone), PTX
    every later device.
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


def plan(
    batch: int, hidden_size: int, directions: int, dtype: torch.dtype, limits: Limits
) -> tuple[str, int, int]:
    """The regime, ``'persistent'`` or ``'step'``, and the units and batch rows of a block."""
    return _C.cuda_plan(batch, hidden_size, directions, dtype == torch.float64, *limits)


def reason_for_torch(input: Tensor, hidden_size: int, training: bool) -> str | None:
    """Why torch's own op takes a call with CUDA tensors; None where our kernels do."""
    torch_refuses = (
        (input.dim() == 3 and input.size(0) > _LONGEST_OF_TORCH)
        or torch.are_deterministic_algorithms_enabled()
        or (not training and torch.is_grad_enabled())
    )
    return choose(setting, input.device.index, hidden_size, input.dtype, torch_refuses)


def choose(
    setting: str, index: int, hidden_size: int, dtype: torch.dtype, torch_refuses: bool
) -> str | None:
    """``reason_for_torch`` in terms of what it depends on."""
    if setting == "torch":
        return "RNN_EXT_CUDA=torch"
    regime = _regime(index, hidden_size, dtype)
    if regime not in ("persistent", "step"):
        return regime
    if setting == "ours" or regime == "persistent" or torch_refuses:
        return None
    return f"no persistent CUDA kernel holds {hidden_size} units of {dtype} on this device"


def _regime(index: int, hidden_size: int, dtype: torch.dtype) -> str:
    """The regime of a call on a device, or why none of our kernels can run on it."""
    found = limits(index)
    return found if isinstance(found, str) else plan(1, hidden_size, 1, dtype, found)[0]


# torch.compile does not trace calls of the binary. This is all that
# torch.compiler.assume_constant_result does, which imports the compiler: a second for every user.
_regime._dynamo_marked_constant = True  # type: ignore[attr-defined]
