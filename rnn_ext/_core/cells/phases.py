"""Splits a cell's computation into phases, at the products within a step.

A product needs the values of all units, so a phase computes the values that it multiplies for all
units first. Slots do not outlive a phase: values that a later phase needs are passed in memory, as
few as possible.
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
    """The values that a phase stores, and those that it loads instead of computing them."""

    stores: list[Store]
    available: dict[Node, Operand]


def split(
    stores: Sequence[Store], available: Mapping[Node, Operand], starts: Sequence[Collection[Node]]
) -> tuple[list[Phase], int]:
    """Returns the phases, and the number of values passed between them.

    Args:
        stores: the values to store, each with its operand.
        available: the values that every phase can load.
        starts: for each phase, the results of the product before it.
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
    """Returns the first phase that can compute each value that depends on a product."""
    first = {node: phase for phase, nodes in enumerate(starts) for node in nodes}
    for node in ancestors(roots, available):
        phases = [first[a] for a in node.args if a in first]
        if phases and node not in available:
            first[node] = max(phases)
    return first
