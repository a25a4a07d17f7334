"""``rnn_ext.Recurrent`` and ``RecurrentCell`` against a loop, and against plain RNNs."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import rnn_ext
from rnn_ext.bench.check import MismatchError, first_difference
from rnn_ext.bench.timing import time_hot_and_cold
from rnn_ext.bench.workload import GRADIENT, Mode

from .cases import Case
from .draw import build, draw
from .results import Measured

__all__ = ["BASELINES", "CELLS", "measure_recurrence"]

BASELINES = ("loop", "G x rnn_ext.RNN")

# The cells that are measured, with values of their parameters.
CELLS: dict[str, dict[str, Any]] = {
    "leaky_current": {"alpha": 0.2},
    "leaky_rate": {"alpha": 0.2},
    "gru": {},
    "lstm": {},
    "lif": {"beta": 0.9, "threshold": 0.5},
    "alif": {"beta": 0.9, "threshold": 0.5, "rho": 0.95, "gamma": 0.2},
}

COMPILE_SECONDS = 300


class _Call:
    """A layer, or a step, with random tensors."""

    def __init__(self, case: Case, mode: Mode) -> None:
        torch.manual_seed(0)
        kind = rnn_ext.RecurrentCell if case.cell else rnn_ext.Recurrent
        self.cell: rnn_ext.Cell = getattr(rnn_ext.cells, case.recurrence)
        self.layer = kind(
            self.cell,
            case.input_size,
            case.hidden_size,
            dtype=case.dtype,
            **CELLS[case.recurrence],
        )
        self.work = draw(case, mode)
        shape = (case.seq_len, case.batch_size, case.hidden_size)[case.cell :]
        self.inputs = {
            name: 0.1 * torch.randn(shape, dtype=case.dtype) for name in self.cell.inputs
        }
        # A step gets states, and computes their gradients, as in a loop over time.
        count = 1 + len(self.cell.states) if case.cell else 0
        self.states = [torch.randn(shape, dtype=case.dtype) for _ in range(count)]
        for state in self.states:
            state.requires_grad_(mode == "training")

    def leaves(self) -> dict[str, Tensor]:
        """Returns the tensors other than the input that get gradients."""
        return dict(self.layer.named_parameters()) | {
            f"state {i}": state for i, state in enumerate(self.states)
        }

    def step(self, function: Callable[..., Any]) -> Callable[[], Any]:
        """Returns a function that calls ``function`` with the input, and runs backward."""
        return self.work.step(function, self.leaves().values())

    def ours(self) -> Callable[..., Any]:
        """Returns what takes the input to the results."""
        hx = {"hx": self.states if self.cell.states else self.states[0]} if self.states else {}
        return partial(self.layer, **hx, **self.inputs)

    def loop(self, input: Tensor) -> Any:
        """The same layer, or step, as people write it in torch's operations."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.layer.parameters()
        parameters = {name: getattr(self.layer, name) for name in self.cell.parameters}
        gates = self.cell.gates

        def step(u: Tensor, states: Any, inputs: dict[str, Tensor]) -> Any:
            v = F.linear(states[0], weight_hh, bias_hh)
            blocks = (u, v) if gates == 1 else (u.chunk(gates, -1), v.chunk(gates, -1))
            return self.cell(*blocks, *states, **parameters, **inputs)

        projected = F.linear(input, weight_ih, bias_ih)
        if self.states:
            return step(projected, self.states, self.inputs)
        zeros = input.new_zeros(input.size(1), self.layer.hidden_size)
        states = [zeros] * (1 + len(self.cell.states))
        outputs = []
        for t, u in enumerate(projected):
            found = step(u, states, {name: x[t] for name, x in self.inputs.items()})
            states = found if self.cell.states else [found]
            outputs.append(states[0])
        return torch.stack(outputs), *(state.unsqueeze(0) for state in states)

    def results(self, function: Callable[..., Any]) -> dict[str, Tensor]:
        """Returns results and gradients of ``function``, by name."""
        found = self.step(function)()
        results = found if isinstance(found, tuple) else (found,)
        leaves = {"input": self.work.data, **self.leaves()}
        gradients = {GRADIENT + k: t.grad for k, t in leaves.items() if t.grad is not None}
        return {f"result {i}": t.detach() for i, t in enumerate(results)} | gradients


def measure_recurrence(case: Case, mode: Mode, baseline: str, seconds: float) -> Measured:
    """Times ours against ``baseline``: one of ``BASELINES``, or ``"torch.compile"`` of the loop.

    ``"G x rnn_ext.RNN"`` is as many calls of a plain RNN of the same size as the cell has gates,
    which is as many products.

    Raises:
        MismatchError: ours and the loop differ; nothing was timed then.
    """
    with torch.set_grad_enabled(mode == "training"):
        # Rounding may flip a spike, and with it all that follows. The steep derivative of a spike
        # multiplies the rounding of gradients from step to step: they get the bound of a relu's.
        spiking = case.recurrence in ("lif", "alif")
        call = _Call(replace(case, dtype=torch.float64) if spiking else case, mode)
        results = call.results(call.loop), call.results(call.ours())
        if found := first_difference(*results, relu=spiking):
            raise MismatchError(f"rnn_ext and the loop differ at {case} ({mode}): {found}")
        call, note = _Call(case, mode), ""
        if baseline == "loop":
            theirs = call.step(call.loop)
        elif baseline == "torch.compile":
            torch.compiler.reset()
            theirs = call.step(torch.compile(call.loop, fullgraph=True, dynamic=False))
            took = _compile(theirs)
            if isinstance(took, Exception):
                reason = f"{type(took).__name__}: {took}".splitlines()[0]
                return Measured(note=f"skipped torch.compile of {case} ({mode}): {reason}")
            note = f"{case} ({mode}): torch.compile took {took:.1f} s"
        else:
            plain = replace(case, recurrence="")
            theirs = _repeated(call.work.step(build(rnn_ext.RNN, plain, mode)), call.cell.gates)
        timings = time_hot_and_cold(theirs, call.step(call.ours()), seconds)
    return Measured(timings.hot, timings.cold, note=note)


def _repeated(function: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            function()

    return run


def _compile(step: Callable[[], object]) -> float | Exception:
    """Makes the first call of a compiled step; returns its seconds, or why there is none."""
    start = time.perf_counter()
    try:
        with _time_limit(COMPILE_SECONDS):
            step()
    except Exception as error:
        return error
    return time.perf_counter() - start


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
