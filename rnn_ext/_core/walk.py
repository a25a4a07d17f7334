"""How a layer goes through time: which step follows which, for its directions and packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Walk"]


@dataclass(frozen=True)
class Walk:
    """How a layer goes through time; ``reverse``: its directions are swapped."""

    batch_sizes: Tensor | None
    nonlinearity: str
    bidirectional: bool
    reverse: bool = False

    @property
    def backward_in_time(self) -> list[bool]:
        """For each direction."""
        return [self.reverse, not self.reverse][: 1 + self.bidirectional]

    def opposite(self) -> Walk:
        return Walk(self.batch_sizes, self.nonlinearity, self.bidirectional, not self.reverse)

    def split(self, states: Tensor) -> tuple[Tensor, ...]:
        """The directions' parts of ``(..., D·H)``."""
        return states.chunk(1 + self.bidirectional, -1)

    def before(self, states: Tensor, initial: Tensor | None) -> list[Tensor]:
        """What each step follows, by direction: a step of ``states``, or ``initial`` (zeros)."""
        results = []
        for d, (y, backward) in enumerate(
            zip(self.split(states), self.backward_in_time, strict=True)
        ):
            if self.batch_sizes is None:
                first = y.new_zeros(y.shape[1:]) if initial is None else initial[d]
                parts = [y[1:], first[None]] if backward else [first[None], y[:-1]]
                results.append(torch.cat(parts))
            else:
                rows = self._rows_before(backward).to(y.device)
                first = y.new_zeros(self._batch, y.size(-1)) if initial is None else initial[d]
                results.append(torch.cat([first, y]).index_select(0, rows))
        return results

    def add_before(self, states: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The transposed map of ``before``: values for what each step follows are added there.

        Returns:
            ``states`` with what belongs to a step, and ``(D, B, H)`` with what belongs to the
            initial rows.
        """
        sums, firsts = [], []
        for d, (y, value) in enumerate(zip(self.split(states), values, strict=True)):
            backward = self.backward_in_time[d]
            if self.batch_sizes is None:
                none = y.new_zeros(1, *y.shape[1:])
                parts = [none, value[:-1]] if backward else [value[1:], none]
                sums.append(y + torch.cat(parts))
                firsts.append(value[-1] if backward else value[0])
            else:
                rows = self._rows_before(backward).to(y.device)
                both = torch.cat([y.new_zeros(self._batch, y.size(-1)), y]).index_add(
                    0, rows, value
                )
                firsts.append(both[: self._batch])
                sums.append(both[self._batch :])
        return torch.cat(sums, -1), torch.stack(firsts)

    def first_rows(self, states: Tensor) -> list[Tensor]:
        """The rows ``(B, H)`` that follow no other, by direction."""
        return [
            self._ends(y, at_last=backward)
            for y, backward in zip(self.split(states), self.backward_in_time, strict=True)
        ]

    def last_rows(self, states: Tensor) -> list[Tensor]:
        """The rows that no other follows."""
        return self.opposite().first_rows(states)

    def add_to_last_rows(self, states: Tensor, values: Tensor) -> Tensor:
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

    def _ends(self, y: Tensor, at_last: bool) -> Tensor:
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
        """The row of packed data at which each batch row starts or ends in time."""
        assert self.batch_sizes is not None
        batch = torch.arange(self._batch)
        if not at_last:
            return batch
        lengths = (self.batch_sizes[:, None] > batch).sum(0)
        return self._offsets[lengths - 1] + batch

    def _rows_before(self, backward: bool) -> Tensor:
        """For each row of packed data, its index in the initial rows and, after these, the data."""
        assert self.batch_sizes is not None
        steps = torch.arange(len(self.batch_sizes)).repeat_interleave(self.batch_sizes)
        batch = torch.arange(len(steps)) - self._offsets[steps]
        neighbor = steps + 1 if backward else steps - 1
        inside = neighbor.clamp(0, len(self.batch_sizes) - 1)
        follows = (inside == neighbor) & (batch < self.batch_sizes[inside])
        return torch.where(follows, self._batch + self._offsets[inside] + batch, batch)
