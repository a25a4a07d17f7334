"""Turns a cell's graph into its program: orders the operations and gives each value a slot."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from .graph import Node, ancestors
from .phases import Phase, Store, split
from .program import OPERANDS, Instruction, Operand, Program
from .saving import Saving
from .trace import Formula

__all__ = ["lower"]


def lower(formula: Formula, saving: Saving, products: Sequence[Sequence[int]]) -> Program:
    """Returns the program of ``formula``, which saves the values of ``saving``.

    Args:
        products: the gates of each product in a step.
    """
    graph = formula.graph
    counts = Counter(kind for kind, _ in formula.gradients)
    gates = counts["projection"]
    merged = _is_merged(formula, gates)
    yielded: list[Store] = [(("yielded", k), node) for k, node in enumerate(formula.yielded)]
    values: list[Store] = [(("next_state", s), node) for s, node in enumerate(formula.outputs)]
    values += [(("saved", k), node) for k, node in enumerate(saving.saved)]
    gradients: list[Store] = [
        ((f"grad_{kind}", index), graph.constant(0.0) if node is None else node)
        for (kind, index), node in formula.gradients.items()
        if not (kind == "projection" and merged) and not (kind == "state" and node is None)
    ]
    recurrent = [[graph.load("recurrent", g) for g in product] for product in products]
    forward_phases, passed = split([*values, *yielded], {}, recurrent)
    forward_slots, forward = _write(forward_phases, in_slots=recurrent)
    # A product leaves in slot 0 the gradient of y, then those of the yielded values, last first.
    ends = [graph.load("grad_next_state", 0)]
    ends += [graph.load("grad_yielded", k) for k in reversed(range(len(yielded)))]
    backward_phases, passed_back = split(
        [*gradients, *yielded], saving.free, [[node] for node in ends]
    )
    backward_slots, backward = _write(backward_phases, first=ends)
    return Program(
        gates=gates,
        states=counts["state"],
        parameters=counts["parameter"],
        inputs=counts["input"],
        saved=len(saving.saved),
        merged=merged,
        kept_states=saving.kept_states,
        passed=max(passed, passed_back),
        forward_slots=forward_slots,
        forward=forward,
        backward_slots=backward_slots,
        backward=backward,
    )


def _is_merged(formula: Formula, gates: int) -> bool:
    """Whether u and v of each gate occur only as their sum."""
    load = formula.graph.load
    pairs = [{load("projection", g), load("recurrent", g)} for g in range(gates)]
    alone = set().union(*pairs)
    gradients = [g for g in formula.gradients.values() if g is not None]
    results = [*formula.outputs, *formula.yielded, *gradients]
    return alone.isdisjoint(results) and all(
        alone.isdisjoint(node.args) or (node.op == "add" and set(node.args) in pairs)
        for node in ancestors(results)
    )


def _write(
    phases: Sequence[Phase],
    in_slots: Sequence[Sequence[Node]] | None = None,
    first: Sequence[Node] | None = None,
) -> tuple[int, tuple[Instruction, ...]]:
    """Returns the number of slots and the instructions of all phases.

    Args:
        in_slots: the values of slots 0, 1… at the start of each phase.
        first: the value that each phase loads first, if it uses it.
    """
    count = 0
    code: list[Instruction] = []
    for number, (stores, available) in enumerate(phases):
        held = in_slots[number] if in_slots else ()
        if number > 0:
            code.append(Instruction("product", a=len(held)))
        steps = _order(stores, available, held, first[number] if first else None)
        slots = _Slots(steps, held)
        code += map(slots.place, steps)
        count = max(count, slots.count)
    return count, tuple(code)


class _Step(NamedTuple):
    """An instruction whose values have no slots yet; a store has no result."""

    op: str
    result: Node | None
    args: tuple[Node, ...]
    data: tuple[Any, ...]


def _order(
    stores: Sequence[Store],
    available: dict[Node, Operand],
    in_slots: Sequence[Node],
    first: Node | None,
) -> list[_Step]:
    """Returns the steps, operands first, in an order that keeps few values alive."""
    computed = _computations([node for _, node in stores], available)
    heights: dict[Node, int] = {}  # slots that a value needs if its operands form a tree
    for node, step in computed.items():
        below = sorted((heights[a] for a in set(step.args)), reverse=True)
        heights[node] = max((height + i for i, height in enumerate(below)), default=1)
    destinations: dict[Node, list[Operand]] = defaultdict(list)
    for operand, node in stores:
        destinations[node].append(operand)
    loads = {step.data: node for node, step in computed.items() if step.op == "load"}

    steps: list[_Step] = []
    done = set()
    # A stack, since a cell can be deeper than Python's recursion limit; the last is next.
    todo = [node for _, node in reversed(stores)]
    if first in computed:
        todo.append(first)

    def emit(node: Node) -> None:
        if node not in done:
            done.add(node)
            if node not in in_slots:
                steps.append(computed[node])

    while todo:
        node = todo[-1]
        before = {a for a in computed[node].args if a not in done}
        if node not in done and before:
            todo.extend(sorted(before, key=lambda a: (heights[a], a.number)))
            continue
        emit(todo.pop())
        for kind, index in destinations.pop(node, ()):
            overwritten = loads.get((OVERWRITES.get(kind, ""), index))
            if overwritten is not None:
                emit(overwritten)
            steps.append(_Step("store", None, (node,), (kind, index)))
    return steps


# Stores that may overwrite the memory of an operand, by kind: it must be loaded before.
OVERWRITES = {"next_state": "state", "grad_state": "grad_next_state"}


def _computations(roots: Sequence[Node], available: dict[Node, Operand]) -> dict[Node, _Step]:
    """Returns the step that computes or loads each value, operands first.

    A product that is used only in one sum or difference becomes part of it.
    """
    nodes = ancestors(roots, stop=available)
    uses = Counter(roots)
    steps: dict[Node, _Step] = {}
    for node in nodes:
        if node in available:
            steps[node] = _Step("load", node, (), available[node])
        elif node.op == "affine" and node.data == (-1, 0):
            steps[node] = _Step("neg", node, node.args, ())
            uses.update(node.args)
        else:
            steps[node] = _Step(node.op, node, node.args, node.data)
            uses.update(node.args)
    for node in nodes:
        if steps[node].op in ("add", "sub"):
            fused = {"add": ("fma", "fma"), "sub": ("fms", "fnma")}[steps[node].op]
            pairs = zip(fused, (node.args, node.args[::-1]), strict=True)
            for op, (product, other) in pairs:
                if steps[product].op == "mul" and uses[product] == 1:
                    steps[node] = _Step(op, node, (*product.args, other), ())
                    break
    used = set(roots).union(*(step.args for step in steps.values()))
    return {node: step for node, step in steps.items() if node in used}


class _Slots:
    """Assigns a slot to each value, from its step to its last use."""

    def __init__(self, steps: Sequence[_Step], in_slots: Sequence[Node]) -> None:
        self.uses = Counter(a for step in steps for a in step.args)
        self.slots = {node: slot for slot, node in enumerate(in_slots)}
        self.count = len(in_slots)
        self.free = [slot for node, slot in self.slots.items() if not self.uses[node]]

    def place(self, step: _Step) -> Instruction:
        args = [self.slots[a] for a in step.args]
        for node in step.args:
            self.uses[node] -= 1
            if not self.uses[node]:
                heapq.heappush(self.free, self.slots[node])
        if step.op == "store":
            kind, index = step.data
            return Instruction("store", 0, args[0], OPERANDS.index(kind), index)
        if not self.free:
            self.free.append(self.count)
            self.count += 1
        dst = heapq.heappop(self.free)
        if step.result is not None:
            self.slots[step.result] = dst
        if step.op == "load":
            kind, index = step.data
            return Instruction("load", dst, OPERANDS.index(kind), index)
        return Instruction(step.op, dst, *args, *(0,) * (3 - len(args)), *step.data)
