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

__all__ = ["folded_or_looped", "is_in_legacy_vmap", "legacy_vmap", "loops_over_samples"]


def folded_or_looped(
    call: Callable[..., Any],
    rowwise: int,
    count: int,
    in_dims: Sequence[int | None],
    tensors: Sequence[Tensor | None],
    packed: bool,
) -> tuple[Any, Any]:
    """Runs ``call`` on tensors with an additional axis, as ``Function.vmap`` requires.

    The first ``rowwise`` tensors have a batch axis, 1, into which the additional axis is folded. If
    samples have different weights, or packed input, ``call`` runs once for each sample.
    """
    if not loops_over_samples(rowwise, [dim is not None for dim in in_dims], packed):
        folded = [
            t if t is None else _folded(t, dim, count)
            for t, dim in zip(tensors[:rowwise], in_dims, strict=False)
        ]
        result = call(*folded, *tensors[rowwise:])
        if isinstance(result, Tensor):
            return _unfolded(result, count), 1
        return tuple(_unfolded(t, count) for t in result), (1,) * len(result)
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


def loops_over_samples(rowwise: int, are_batched: Sequence[bool], packed: bool) -> bool:
    """Whether a vmap runs one call for each sample instead of one for all.

    Args:
        rowwise: the number of leading tensors that have a batch axis.
        are_batched: for each tensor, whether it differs between samples.
        packed: whether the calls have packed input.
    """
    return any(are_batched[rowwise:]) or (packed and any(are_batched))


def _folded(t: Tensor, dim: int | None, count: int) -> Tensor:
    if dim is not None:
        return t.movedim(dim, 1).flatten(1, 2)
    return t.unsqueeze(1).expand(t.size(0), count, *t.shape[1:]).flatten(1, 2)


def _unfolded(t: Tensor, count: int) -> Tensor:
    return t.unflatten(1, (count, t.size(1) // count))


def is_in_legacy_vmap(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the vmap of ``torch.autograd`` is active, as with ``is_grads_batched=True``."""
    if torch.compiler.is_compiling():
        return False  # torch.compile traces neither such a vmap nor the test below
    return any(t is not None and is_legacy_batchedtensor(t) for t in tensors)


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
