"""Cuts a cell's computation at the products within a step.

A product needs the values of all units, so that what it multiplies is computed for all of them
before it: that is a phase. Slots do not outlive a phase; what a later one needs of an earlier one
is passed on in memory, as few values as possible.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from .graph import Node, ancestors
from .program import Operand
from .saving import minimum_cut

__all__ = ["Phase", "Store", "split"]

Store = tuple[Operand, Node]


class Phase(NamedTuple):
    """What a phase stores, and which values it loads instead of computing them, from where."""

    stores: list[Store]
    available: dict[Node, Operand]


def split(
    stores: Sequence[Store], available: Mapping[Node, Operand], starts: Sequence[Collection[Node]]
) -> tuple[list[Phase], int]:
    """Returns the phases, and how many values are passed on.

    Args:
        stores: which value goes where.
        available: the values that every phase can load.
        starts: for each phase, what the product before it computes.
    """
    first = _first_phases([node for _, node in stores], available, starts)
    parts: list[list[Store]] = [[] for _ in starts]
    for operand, node in stores:
        parts[first.get(node, 0)].append((operand, node))
    passed: dict[Node, Operand] = {}
    for phase in reversed(range(1, len(starts))):
        earlier = {node for node, p in first.items() if p < phase}
        reached = ancestors([node for _, node in parts[phase]], {*available, *earlier})
        loads = {n for n in ancestors(reached, available) if n.op == "load" and n not in first}
        for node in minimum_cut(earlier.intersection(reached), {*available, *loads}):
            if node not in passed:
                passed[node] = "passed", len(passed)
                parts[first[node]].append((passed[node], node))
    return [
        Phase(part, {**available, **{n: p for n, p in passed.items() if first[n] < phase}})
        for phase, part in enumerate(parts)
    ], len(passed)


def _first_phases(
    roots: Sequence[Node], available: Collection[Node], starts: Sequence[Collection[Node]]
) -> dict[Node, int]:
    """Returns the first phase that has a value, for each that depends on a product."""
    first = {node: phase for phase, nodes in enumerate(starts) for node in nodes}
    for node in ancestors(roots, available):
        phases = [first[a] for a in node.args if a in first]
        if phases and node not in available:
            first[node] = max(phases)
    return first
