"""The dtypes of the kernels, and the casts of autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["KERNEL_DTYPES", "cast_for_autocast"]

KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def cast_for_autocast(tensors: Sequence[Any]) -> list[Any]:
    """Casts all but float64, as autocast on the first tensor's device does for torch's op."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Any) -> Any:
        if t is None or not t.is_floating_point() or t.dtype == torch.float64:
            return t
        return t.to(dtype)

    return [cast(t) for t in tensors]
