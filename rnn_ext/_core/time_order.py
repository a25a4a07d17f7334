"""The time order of a layer's steps, for both directions and packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TimeOrder"]


@dataclass(frozen=True)
class TimeOrder:
    """The time order of a layer's steps; with ``reverse`` the directions are swapped."""

    batch_sizes: Tensor | None
    nonlinearity: str
    bidirectional: bool
    reverse: bool = False

    @property
    def backward_in_time(self) -> list[bool]:
        """Whether each direction runs backward in time."""
        return [self.reverse, not self.reverse][: 1 + self.bidirectional]

    def reversed(self) -> TimeOrder:
        """Returns the opposite order."""
        return TimeOrder(self.batch_sizes, self.nonlinearity, self.bidirectional, not self.reverse)

    def split(self, states: Tensor) -> tuple[Tensor, ...]:
        """Splits ``(..., D·H)`` into the parts of the directions."""
        return states.chunk(1 + self.bidirectional, -1)

    def previous(self, states: Tensor, initial: Tensor | None) -> list[Tensor]:
        """Returns the previous states of every step, per direction.

        Args:
            states: ``(T, B, D·H)``, or packed ``(N, D·H)``.
            initial: the states before the first step, ``(D, B, H)``; None for zeros.
        """
        results = []
        for d, (y, backward) in enumerate(
            zip(self.split(states), self.backward_in_time, strict=True)
        ):
            if self.batch_sizes is None:
                first = y.new_zeros(y.shape[1:]) if initial is None else initial[d]
                parts = [y[1:], first[None]] if backward else [first[None], y[:-1]]
                results.append(torch.cat(parts))
            else:
                rows = self._previous_rows(backward).to(y.device)
                first = y.new_zeros(self._batch, y.size(-1)) if initial is None else initial[d]
                results.append(torch.cat([first, y]).index_select(0, rows))
        return results

    def add_to_previous(self, states: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The transpose of ``previous``: adds each step's ``values`` to its previous step.

        Returns:
            The sums, shaped like ``states``, and the values for the initial states, ``(D, B, H)``.
        """
        sums, initial = [], []
        for d, (y, value) in enumerate(zip(self.split(states), values, strict=True)):
            backward = self.backward_in_time[d]
            if self.batch_sizes is None:
                none = y.new_zeros(1, *y.shape[1:])
                parts = [none, value[:-1]] if backward else [value[1:], none]
                sums.append(y + torch.cat(parts))
                initial.append(value[-1] if backward else value[0])
            else:
                rows = self._previous_rows(backward).to(y.device)
                both = torch.cat([y.new_zeros(self._batch, y.size(-1)), y]).index_add(
                    0, rows, value
                )
                initial.append(both[: self._batch])
                sums.append(both[self._batch :])
        return torch.cat(sums, -1), torch.stack(initial)

    def initial_rows(self, states: Tensor) -> list[Tensor]:
        """Returns the states at each row's first step, ``(B, H)`` per direction."""
        return [
            self._end_values(y, at_last=backward)
            for y, backward in zip(self.split(states), self.backward_in_time, strict=True)
        ]

    def final_rows(self, states: Tensor) -> list[Tensor]:
        """Returns the states at each row's last step, ``(B, H)`` per direction."""
        return self.reversed().initial_rows(states)

    def add_to_final_rows(self, states: Tensor, values: Tensor) -> Tensor:
        """Returns ``states`` with ``values``, ``(D, B, H)``, added at each row's last step."""
        results = []
        for d, (y, backward) in enumerate(
            zip(self.split(states), self.backward_in_time, strict=True)
        ):
            if self.batch_sizes is not None:
                rows = self._end_rows(at_last=not backward).to(y.device)
                results.append(y.index_add(0, rows, values[d]))
            elif backward:
                results.append(torch.cat([(y[0] + values[d])[None], y[1:]]))
            else:
                results.append(torch.cat([y[:-1], (y[-1] + values[d])[None]]))
        return torch.cat(results, -1)

    def _end_values(self, y: Tensor, at_last: bool) -> Tensor:
        if self.batch_sizes is None:
            return y[-1] if at_last else y[0]
        return y.index_select(0, self._end_rows(at_last).to(y.device))

    @property
    def _batch(self) -> int:
        assert self.batch_sizes is not None
        return int(self.batch_sizes[0])

    @property
    def _offsets(self) -> Tensor:
        assert self.batch_sizes is not None
        return self.batch_sizes.cumsum(0) - self.batch_sizes

    def _end_rows(self, at_last: bool) -> Tensor:
        """Returns the row of packed data at which each batch row starts or ends in time."""
        assert self.batch_sizes is not None
        batch = torch.arange(self._batch)
        if not at_last:
            return batch
        lengths = (self.batch_sizes[:, None] > batch).sum(0)
        return self._offsets[lengths - 1] + batch

    def _previous_rows(self, backward: bool) -> Tensor:
        """Returns the index of each packed row's previous row, in initial rows followed by data."""
        assert self.batch_sizes is not None
        steps = torch.arange(len(self.batch_sizes)).repeat_interleave(self.batch_sizes)
        batch = torch.arange(len(steps)) - self._offsets[steps]
        neighbor = steps + 1 if backward else steps - 1
        inside = neighbor.clamp(0, len(self.batch_sizes) - 1)
        follows = (inside == neighbor) & (batch < self.batch_sizes[inside])
        return torch.where(follows, self._batch + self._offsets[inside] + batch, batch)
