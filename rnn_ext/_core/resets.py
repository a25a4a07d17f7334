"""The arguments ``reset`` and ``reset_state`` of a layer's forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .torch_private import is_any_autocast_enabled

__all__ = ["as_states", "read_reset"]


def read_reset(
    reset: Any,
    reset_state: Tensor | Sequence[Tensor] | None,
    input: Tensor | PackedSequence,
    batch_first: bool,
    names: Sequence[str],
    count: int,
    hidden_size: int,
) -> tuple[Tensor | None, list[Tensor]]:
    """Checks the arguments and returns them in the shapes of ``recurrence.run_layers``.

    Args:
        reset, reset_state: the user's arguments.
        input: likewise, already checked.
        batch_first: whether input and reset are ``(B, T, ·)``.
        names: the names of the states.
        count: layers times directions, L·D.

    Returns:
        reset as ``(T, B)``, or None; and each reset state, ``(T, L·D, B or 1, H)``, or
        ``(L·D, B or 1, H)`` for all steps. No reset states for zeros.

    Raises:
        ValueError: a shape, dtype or device does not fit; or input is packed.
    """
    if reset is None:
        if reset_state is not None:
            raise ValueError("reset_state has no effect without reset: pass both")
        return None, []
    if isinstance(input, PackedSequence):
        raise ValueError("reset does not support a PackedSequence: pad the sequences instead")
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        kind = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise ValueError(f"reset must be a bool tensor, got {kind}")
    if reset.shape != input.shape[:-1]:
        expected = tuple(input.shape[:-1])
        raise ValueError(f"reset: expected shape {expected}, got {tuple(reset.shape)}")
    if reset.device != input.device:
        raise ValueError(f"reset is on {reset.device}, input on {input.device}")
    has_batch = input.dim() == 3
    if not has_batch:
        reset = reset.unsqueeze(1)
    elif batch_first:
        reset = reset.t()
    states = []
    if reset_state is not None:
        shape = (*reset.shape, count, hidden_size)
        for name, state in zip(names, as_states("reset_state", reset_state, names), strict=True):
            states.append(_read_state(name, state, input, shape))
    return reset, states


def as_states(what: str, given: Tensor | Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """Returns the states as a list, one tensor for each of ``names``."""
    states = [given] if isinstance(given, Tensor) else list(given)
    if len(states) != len(names):
        raise ValueError(
            f"{what} must be {len(names)} tensors, for {', '.join(names)}; got {len(states)}"
        )
    return states


def _read_state(name: str, state: Tensor, input: Tensor, shape: tuple[int, ...]) -> Tensor:
    steps, batch, count, hidden_size = shape
    has_batch = input.dim() == 3
    value = state if has_batch else state.unsqueeze(-2)
    of_step = ((count, batch, hidden_size), (count, 1, hidden_size))
    if value.shape not in of_step and value.shape not in [(steps, *s) for s in of_step]:
        expected = of_step[0] if has_batch else (count, hidden_size)
        raise ValueError(
            f"reset_state: expected {name} of shape {expected}, or {(steps, *expected)} for values "
            f"of each step, got {tuple(state.shape)}"
        )
    if value.device != input.device:
        raise ValueError(f"reset_state: {name} is on {value.device}, input on {input.device}")
    if value.dtype != input.dtype and not is_any_autocast_enabled():
        raise ValueError(f"reset_state: {name} is {value.dtype}, input is {input.dtype}")
    return value
