"""Chooses the values that forward saves for backward, as few as possible.

Backward can always read y, parameters and inputs, and can recompute values from others. The fewest
values to save are a minimum vertex cut between the values that backward needs and those that it
cannot read.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from .graph import Node, ancestors
from .program import Operand
from .trace import Formula

__all__ = ["Saving", "choose_saved", "minimum_cut"]


@dataclass(frozen=True)
class Saving:
    """The values of the forward pass that the backward program can read.

    Attributes:
        kept_states: states, beside y, that are kept at all steps: backward reads them before and
            after its step.
        saved: other saved values.
        free: the operand of each value that backward can read.
    """

    kept_states: tuple[int, ...]
    saved: tuple[Node, ...]
    free: dict[Node, Operand]


def choose_saved(formula: Formula) -> Saving:
    """Returns the choice with the fewest values, and among these the least recomputation."""
    needed = _needed(formula)
    kept: tuple[int, ...] = ()
    free = _free(formula, kept)
    cut = minimum_cut(needed, free)
    for state in range(1, len(formula.outputs)):
        own = {formula.graph.load("state", state), formula.outputs[state]}
        more = _free(formula, (*kept, state))
        smaller = minimum_cut(needed, more)
        # A kept state costs as much as a saved value, and gives its values before and after a step.
        saves = len(cut) - len(smaller)
        if saves > 1 or (saves == 1 and not own.isdisjoint(cut)):
            kept, free, cut = (*kept, state), more, smaller
    return Saving(kept, cut, {**{node: ("saved", k) for k, node in enumerate(cut)}, **free})


def _needed(formula: Formula) -> list[Node]:
    """Returns the values of the forward pass that the derivative reads or yields."""
    results = [g for g in formula.gradients.values() if g is not None]
    read = [a for node in ancestors(results) if node.is_gradient for a in node.args]
    nodes = dict.fromkeys([*read, *results, *formula.yielded])
    return [node for node in nodes if not node.is_gradient]


def _free(formula: Formula, kept_states: Iterable[int]) -> dict[Node, Operand]:
    free: dict[Node, Operand] = {}
    for state in (0, *kept_states):
        free[formula.graph.load("state", state)] = ("state", state)
        free.setdefault(formula.outputs[state], ("next_state", state))
    for kind, index in formula.gradients:
        if kind in ("parameter", "input"):
            free[formula.graph.load(kind, index)] = (kind, index)
    return free


def minimum_cut(needed: Iterable[Node], free: Collection[Node]) -> tuple[Node, ...]:
    """Returns the fewest nodes from which ``needed`` can be computed, those nearest to ``needed``.

    Each node is an edge of capacity 1 from ``(node, "in")`` to ``(node, "out")``. The source feeds
    the nodes without operands, and ``needed`` flows into the sink. The minimum cut has the size of
    the maximum flow. It is at the border of the part from which more could flow to the sink.
    """
    capacity: dict[Any, dict[Any, float]] = defaultdict(dict)

    def add_edge(a: Any, b: Any, flow: float) -> None:
        capacity[a][b] = flow
        capacity[b].setdefault(a, 0)

    nodes = [n for n in ancestors(needed, stop=free) if n not in free and n.op != "constant"]
    for node in nodes:
        add_edge((node, "in"), (node, "out"), 1)
        for origin in (*((a, "out") for a in node.args),) or ("source",):
            add_edge(origin, (node, "in"), math.inf)
    for node in set(needed).intersection(nodes):
        add_edge((node, "out"), "sink", math.inf)
    while "source" in (towards_sink := _search(capacity)):
        a: Any = "source"
        while a != "sink":
            b = towards_sink[a]
            capacity[a][b] -= 1
            capacity[b][a] += 1
            a = b
    return tuple(n for n in nodes if (n, "out") in towards_sink and (n, "in") not in towards_sink)


def _search(capacity: dict[Any, dict[Any, float]]) -> dict[Any, Any]:
    """Returns the next vertex towards the sink for each vertex with capacity left to reach it.

    The search stops when it reaches the source.
    """
    towards_sink: dict[Any, Any] = {"sink": None}
    queue = deque(towards_sink)
    while queue and "source" not in towards_sink:
        b = queue.popleft()
        for a in capacity[b]:
            if a not in towards_sink and capacity[a][b] > 0:
                towards_sink[a] = b
                queue.append(a)
    return towards_sink
