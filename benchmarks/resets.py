"""Measures calls with ``reset=``: against a loop over time steps, and the same call without it."""

import torch
from torch import Tensor, nn

from rnn_ext.bench.check import check
from rnn_ext.bench.timing import Timings, time_hot_and_cold
from rnn_ext.bench.workload import Mode

from .cases import Case
from .draw import build_pair, draw

__all__ = ["LOOP", "WITHOUT", "measure_resets"]

LOOP, WITHOUT = "loop with resets", "no resets"

# Mean number of steps between two resets of a row.
EPISODE = 20

States = Tensor | tuple[Tensor, ...]


class _Loop(nn.Module):
    """Calls a layer once for each step, as stable-baselines3-contrib and CleanRL do."""

    def __init__(self, layer: nn.Module, starts: Tensor) -> None:
        super().__init__()
        self.layer, self.starts = layer, starts.float()

    def forward(self, input: Tensor, states: States) -> tuple[Tensor, States]:
        steps = []
        for x, start in zip(input, self.starts, strict=True):
            keep = (1 - start).view(1, -1, 1)
            if isinstance(states, tuple):
                states = tuple(keep * state for state in states)
            else:
                states = keep * states
            y, states = self.layer(x.unsqueeze(0), states)
            steps.append(y)
        return torch.cat(steps), states


class _Call(nn.Module):
    def __init__(self, layer: nn.Module, starts: Tensor | None) -> None:
        super().__init__()
        self.layer, self.starts = layer, starts

    def forward(self, input: Tensor, states: States) -> tuple[Tensor, States]:
        found: tuple[Tensor, States] = self.layer(input, states, reset=self.starts)
        return found


def measure_resets(case: Case, mode: Mode, baseline: str, seconds: float) -> Timings:
    """Times a layer with resets against ``baseline``: ``LOOP`` around torch's, or ``WITHOUT``.

    Raises:
        MismatchError: ours and the loop differ; nothing was timed then.
    """
    torch.manual_seed(0)
    theirs, ours = build_pair(case, mode)
    starts = torch.rand(case.seq_len, case.batch_size) < 1 / EPISODE
    work, call = draw(case, mode), _Call(ours, starts)
    other = _Loop(theirs, starts) if baseline == LOOP else _Call(ours, None)
    if baseline == LOOP:
        check(other, call, work)
    with torch.set_grad_enabled(mode == "training"):
        return time_hot_and_cold(work.step(other), work.step(call), seconds)
