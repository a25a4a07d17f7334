"""Which values of the forward pass are kept for the backward pass: as few as possible.

The backward pass has y, parameters and inputs for free, and recomputes what it can. The fewest
values that separate what it needs from what it does not have are a minimum vertex cut.
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
    """What the backward program can read of the forward pass.

    Attributes:
        kept_states: states, beside y, that are kept at every step: before it and after it.
        saved: the other values that are kept.
        free: where all of these are, and all that is there in any case.
    """

    kept_states: tuple[int, ...]
    saved: tuple[Node, ...]
    free: dict[Node, Operand]


def choose_saved(formula: Formula) -> Saving:
    """Returns the choice that keeps the fewest values, and of those what recomputes least."""
    needed = _needed(formula)
    kept: tuple[int, ...] = ()
    free = _free(formula, kept)
    cut = minimum_cut(needed, free)
    for state in range(1, len(formula.outputs)):
        own = {formula.graph.load("state", state), formula.outputs[state]}
        more = _free(formula, (*kept, state))
        smaller = minimum_cut(needed, more)
        # A kept state costs what a saved value does, and is there before the step and after it.
        saves = len(cut) - len(smaller)
        if saves > 1 or (saves == 1 and not own.isdisjoint(cut)):
            kept, free, cut = (*kept, state), more, smaller
    return Saving(kept, cut, {**{node: ("saved", k) for k, node in enumerate(cut)}, **free})


def _needed(formula: Formula) -> list[Node]:
    """The values of the forward pass that the derivative reads, or multiplies by."""
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
    """Returns the fewest nodes from which ``needed`` follows, and of these those nearest to it.

    A node is an edge of capacity 1 from ``(node, "in")`` to ``(node, "out")``. The smallest cut
    between the source, where values come from nowhere else, and the sink, behind ``needed``, is as
    large as the largest flow, and lies where nothing more flows to the sink.
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
    """Returns what can flow to the sink, and for each where to, until the source is among it."""
    towards_sink: dict[Any, Any] = {"sink": None}
    queue = deque(towards_sink)
    while queue and "source" not in towards_sink:
        b = queue.popleft()
        for a in capacity[b]:
            if a not in towards_sink and capacity[a][b] > 0:
                towards_sink[a] = b
                queue.append(a)
    return towards_sink
