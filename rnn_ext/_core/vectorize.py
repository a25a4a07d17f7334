"""Rules for vmap: the one of ``torch.func``, and the older one of ``torch.autograd``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .torch_private import (
    add_batch_dim,
    is_legacy_batchedtensor,
    legacy_vmap_level,
    remove_batch_dim,
)

__all__ = ["call_batched", "folded_or_looped", "is_in_legacy_vmap", "legacy_vmap"]


def folded_or_looped(
    call: Callable[..., Any],
    rows: Sequence[int | None],
    count: int,
    in_dims: Sequence[int | None],
    tensors: Sequence[Tensor | None],
    must_loop: bool,
    result_rows: Sequence[int] | None = None,
) -> tuple[Any, Any]:
    """Runs ``call`` on tensors with an additional axis, as ``Function.vmap`` requires.

    The additional axis is folded into the batch. If samples have different weights, or
    ``must_loop``, ``call`` runs once for each sample.

    Args:
        rows: the batch axis of each tensor; None for weights, which have none. A tensor without
            the additional axis is expanded.
        count: the number of samples.
        in_dims: the additional axis of each tensor; None if it has none.
        must_loop: whether the samples cannot be folded, such as packed input.
        result_rows: the batch axis of each result; 1 for all by default.

    Returns:
        The results of ``call``, and the additional axis of each.
    """
    differ = any(axis is None and dim is not None for axis, dim in zip(rows, in_dims, strict=True))
    if not (must_loop or differ):
        folded = [
            t if t is None or axis is None else _folded(t, dim, axis, count)
            for t, dim, axis in zip(tensors, in_dims, rows, strict=True)
        ]
        result = call(*folded)
        if isinstance(result, Tensor):
            return _unfolded(result, 1, count), 1
        axes = tuple(result_rows or [1] * len(result))
        return tuple(_unfolded(t, a, count) for t, a in zip(result, axes, strict=True)), axes
    results = [
        call(
            *(
                t if t is None or dim is None else t.select(dim, i)
                for t, dim in zip(tensors, in_dims, strict=True)
            )
        )
        for i in range(count)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def _folded(t: Tensor, dim: int | None, axis: int, count: int) -> Tensor:
    if dim is None:
        t = t.unsqueeze(axis).expand(*t.shape[:axis], count, *t.shape[axis:])
    else:
        t = t.movedim(dim, axis)
    return t.flatten(axis, axis + 1)


def _unfolded(t: Tensor, axis: int, count: int) -> Tensor:
    return t.unflatten(axis, (count, t.size(axis) // count))


def is_in_legacy_vmap(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the vmap of ``torch.autograd`` is active, as with ``is_grads_batched=True``."""
    if torch.compiler.is_compiling():
        return False  # torch.compile traces neither such a vmap nor the test below
    return any(t is not None and is_legacy_batchedtensor(t) for t in tensors)


def call_batched(
    function: Callable[..., Sequence[Tensor | None]], tensors: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """Returns ``function(*tensors)``, under that vmap if it is active."""
    if is_in_legacy_vmap(tensors):
        return legacy_vmap(function, tensors)
    return function(*tensors)


def legacy_vmap(
    function: Callable[..., Sequence[Tensor | None]], tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Runs ``function(*tensors)`` under that vmap, which ignores ``Function.vmap``."""
    level = legacy_vmap_level()
    dims = tuple(0 if t is not None and is_legacy_batchedtensor(t) else None for t in tensors)
    plain = [
        t if t is None or dim is None else remove_batch_dim(t, level, 0, 0)
        for t, dim in zip(tensors, dims, strict=True)
    ]
    present: list[bool] = []

    def call(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        results = function(*tensors)
        present[:] = [r is not None for r in results]
        return tuple(r for r in results if r is not None)

    results = iter(torch.func.vmap(call, dims)(*plain))
    # Its rules for views require the new axis to come first in memory.
    return [
        add_batch_dim(next(results).contiguous(), 0, level) if is_present else None
        for is_present in present
    ]
