"""The least time that a call can take on a GPU whose limits are known: pure arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass

from rnn_ext.bench.workload import Mode

from .bounds import Bound, CallCost, CallCosts, Limit, add_up
from .cases import Case

__all__ = ["Roofline"]


@dataclass(frozen=True)
class Roofline(CallCosts):
    """FLOP/s of the fastest product, bytes/s of a copy (read and written), and costs of calls.

    These are of the quicker library: the smallest call is bound by Python, a further step by what
    it takes to use what the step before has written.
    """

    flop_rate: float
    memory_rate: float
    calls: tuple[CallCost, ...]

    def bound(self, case: Case, mode: Mode) -> Bound:
        """The bound of a call of ``case``: of each walk over time the longest of its costs."""
        return Bound(*add_up(self._work(case, mode)), split=None)

    def _work(self, case: Case, mode: Mode) -> Iterator[dict[Limit, float]]:
        """What must be done one after the other, each with what it costs at the same time."""
        yield {"call": self.call_cost(mode, case.nonlinearity).call_seconds}
        rows = sum(case.lengths)
        for input_size in case.input_sizes:
            weights = case.output_size * (input_size + case.hidden_size)
            values = rows * (input_size + case.output_size) + weights
            for walk, latency in self.latencies(mode, case.nonlinearity).items():
                # Backward multiplies with each weight for two gradients; it reads what forward
                # read and wrote, and writes as much.
                passes = 1 if walk == "forward" else 2
                yield {
                    "flops": passes * 2 * rows * weights / self.flop_rate,
                    "memory": passes * values * case.dtype.itemsize / self.memory_rate,
                    "latency": case.seq_len * latency,
                }
