"""Computes the least time that a call can take on a GPU with known limits."""

from collections.abc import Iterator
from dataclasses import dataclass

from rnn_ext.bench.workload import Mode

from .bounds import Bound, CallCost, CallCosts, Limit, add_up
from .cases import Case

__all__ = ["Roofline"]


@dataclass(frozen=True)
class Roofline(CallCosts):
    """FLOP/s of the fastest product, bytes/s of a copy (read and written), and costs of calls.

    The costs are those of the faster library. Python limits the smallest call; the latency of using
    the result of the previous step limits a further step.
    """

    flop_rate: float
    memory_rate: float
    calls: tuple[CallCost, ...]

    def bound(self, case: Case, mode: Mode) -> Bound:
        """Returns the bound of a call of ``case``: each pass over time takes its longest cost."""
        return Bound(*add_up(self._work(case, mode)), split=None)

    def _work(self, case: Case, mode: Mode) -> Iterator[dict[Limit, float]]:
        """Yields the sequential parts of a call, each with its simultaneous costs."""
        yield {"call": self.call_cost(mode, case.nonlinearity).call_seconds}
        rows = sum(case.lengths)
        for input_size in case.input_sizes:
            weights = case.output_size * (input_size + case.hidden_size)
            values = rows * (input_size + case.output_size) + weights
            for pass_name, latency in self.latencies(mode, case.nonlinearity).items():
                # Backward multiplies by each weight for two gradients. It reads what forward read
                # and wrote, and writes as much.
                passes = 1 if pass_name == "forward" else 2
                yield {
                    "flops": passes * 2 * rows * weights / self.flop_rate,
                    "memory": passes * values * case.dtype.itemsize / self.memory_rate,
                    "latency": case.seq_len * latency,
                }
