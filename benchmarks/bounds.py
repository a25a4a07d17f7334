"""Computes the least time that a call can take on a machine with known limits."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from rnn_ext.bench.workload import Mode

from .cases import Case, Nonlinearity

__all__ = [
    "Bound",
    "CallCost",
    "CallCosts",
    "Level",
    "Limit",
    "Limits",
    "StepProduct",
    "add_up",
    "bound",
]

Limit = Literal["flops", "weights", "memory", "sync", "latency", "call"]


@dataclass(frozen=True)
class Level:
    """A level of the memory hierarchy: its bytes per core (None: unlimited), and its bytes/s.

    The rate is that of each thread while all threads read.
    """

    name: str
    size: int | None
    read_rate: float


@dataclass(frozen=True)
class CallCost:
    """Seconds of the smallest call, and of each further step of a net of one unit."""

    mode: Mode
    nonlinearity: Nonlinearity
    call_seconds: float
    step_seconds: float


class CallCosts:
    """Costs of calls, by mode and nonlinearity."""

    calls: tuple[CallCost, ...]

    def call_cost(self, mode: Mode, nonlinearity: Nonlinearity) -> CallCost:
        """Returns the cost of such calls; raises ``StopIteration`` if it was not measured."""
        wanted = (mode, nonlinearity)
        return next(cost for cost in self.calls if (cost.mode, cost.nonlinearity) == wanted)

    def latencies(self, mode: Mode, nonlinearity: Nonlinearity) -> dict[str, float]:
        """Returns the seconds of a step of one unit, for each pass over time of ``mode``."""
        forward = self.call_cost("forward", nonlinearity).step_seconds
        if mode == "forward":
            return {"forward": forward}
        both = self.call_cost("training", nonlinearity).step_seconds
        return {"forward": forward, "backward": max(0.0, both - forward)}


@dataclass(frozen=True)
class StepProduct:
    """FLOP/s, by library, of ``(batch_size, hidden_size)`` times a square matrix."""

    batch_size: int
    hidden_size: int
    flop_rates: dict[str, float]


@dataclass(frozen=True)
class Limits(CallCosts):
    """Limits measured with one number of threads; ``flop_rate`` is the best of any product.

    ``members`` is the number of threads that work on a call, at most the number of cores.
    """

    members: int
    flop_rate: float
    levels: tuple[Level, ...]
    barrier_seconds: float
    fork_join_seconds: float
    calls: tuple[CallCost, ...]
    products: tuple[StepProduct, ...]

    def read_seconds(self, size: float) -> float:
        """Returns the seconds to read ``size`` bytes again: each level holds as many as it can."""
        seconds = 0.0
        for level in self.levels:
            part = size if level.size is None else min(size, level.size)
            seconds += part / level.read_rate
            size -= part
        return seconds


@dataclass(frozen=True)
class Bound:
    """The least seconds of a call, the limit that takes most of them, and the best split.

    The split is the number of parts of a step's batch rows, and of each part's columns; None on a
    GPU, for which no split is considered.
    """

    seconds: float
    limit: Limit
    split: tuple[int, int] | None


def bound(case: Case, mode: Mode, alone: Limits, team: Limits) -> Bound:
    """Returns the bound of a call of ``case``, given the limits of one thread and of a team.

    It is the smallest bound of all splits of a step.
    """
    bounds = [_bound(case, mode, alone, 1, 1)]
    for groups in range(1, min(team.members, case.batch_size) + 1):
        for members in range(1, min(team.members // groups, case.hidden_size) + 1):
            if groups * members > 1:
                bounds.append(_bound(case, mode, team, groups, members))
    return min(bounds, key=lambda candidate: candidate.seconds)


def _bound(case: Case, mode: Mode, limits: Limits, groups: int, members: int) -> Bound:
    return Bound(*add_up(_work(case, mode, limits, groups, members)), (groups, members))


def add_up(work: Iterable[dict[Limit, float]]) -> tuple[float, Limit]:
    """Returns the seconds of ``work``, each part taking its longest cost, and the main limit."""
    spent: dict[Limit, float] = dict.fromkeys(get_args(Limit), 0.0)
    for costs in work:
        limit = max(costs, key=costs.__getitem__)
        spent[limit] += costs[limit]
    return sum(spent.values()), max(spent, key=spent.__getitem__)


def _work(
    case: Case, mode: Mode, limits: Limits, groups: int, members: int
) -> Iterator[dict[Limit, float]]:
    """Yields the parts of a call that run one after another: each with its simultaneous costs."""
    threads = groups * members
    directions = 2 if case.bidirectional else 1
    flop_rate = limits.flop_rate * threads / limits.members

    def product_seconds(input_size: int) -> float:
        columns = directions * case.hidden_size
        return 2 * sum(case.lengths) * input_size * columns / flop_rate

    def weight_seconds(input_size: int, parts: int) -> float:
        size = input_size * case.hidden_size * case.dtype.itemsize
        return directions * limits.read_seconds(size / parts)

    yield {"call": limits.call_cost(mode, case.nonlinearity).call_seconds}
    recurrence = product_seconds(case.hidden_size)
    for input_size in case.input_sizes:
        for pass_name, latency in limits.latencies(mode, case.nonlinearity).items():
            if threads > 1:
                yield {"sync": limits.fork_join_seconds}
            # One step after another. The two directions could run at the same time.
            step_weights = weight_seconds(case.hidden_size, members)
            yield {
                "flops": recurrence,
                "weights": case.seq_len * step_weights,
                "sync": case.seq_len * limits.barrier_seconds if members > 1 else 0.0,
                "latency": case.seq_len * latency,
            }
            # All steps at once: the input projection; backward its gradients and that of W_hh.
            projection = product_seconds(input_size)
            yield {
                "flops": projection if pass_name == "forward" else 2 * projection + recurrence,
                "weights": weight_seconds(input_size, threads),
            }
