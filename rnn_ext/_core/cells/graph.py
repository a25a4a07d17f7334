"""Expressions of one unit, as nodes that are unique and simplified when they are created.

A node's operation is one of the program's (``program.py``). Equal expressions are the same node:
``is`` compares them, and common subexpressions need no search.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

__all__ = ["Graph", "Node"]

COMMUTATIVE = frozenset({"add", "mul", "minimum", "maximum", "eq", "ne"})


class Node:
    """An operation on other nodes.

    Attributes:
        op: the program's name for it.
        args: the operands.
        data: (kind, index) of a load, (x,) of a constant, (x, y) of an affine operation.
        number: the node's number in the graph; operands have lower ones.
        is_gradient: whether the value depends on the gradient of a next state or a yielded value.
    """

    __slots__ = ("args", "data", "graph", "is_gradient", "number", "op")

    def __init__(self, graph: Graph, op: str, args: tuple[Node, ...], data: tuple[Any, ...]):
        self.graph, self.op, self.args, self.data = graph, op, args, data
        self.number = len(graph.nodes)
        self.is_gradient: bool = data[:1] in (("grad_next_state",), ("grad_yielded",)) or any(
            a.is_gradient for a in args
        )

    def __add__(self, other: Node | float) -> Node:
        return self.graph.apply("add", self, other)

    def __sub__(self, other: Node | float) -> Node:
        return self.graph.apply("sub", self, other)

    def __mul__(self, other: Node | float) -> Node:
        return self.graph.apply("mul", self, other)

    def __truediv__(self, other: Node | float) -> Node:
        return self.graph.apply("div", self, other)

    def __rsub__(self, other: float) -> Node:
        return self.graph.apply("sub", other, self)

    def __rtruediv__(self, other: float) -> Node:
        return self.graph.apply("div", other, self)

    def __neg__(self) -> Node:
        return self.graph.affine(self, -1.0, -0.0)

    __radd__, __rmul__ = __add__, __mul__

    @property
    def constant(self) -> float | None:
        """The value of a constant; None for other nodes."""
        return self.data[0] if self.op == "constant" else None

    def __repr__(self) -> str:
        return f"<{self.number}: {self.op} {[a.number for a in self.args]} {self.data}>"


class Graph:
    def __init__(self) -> None:
        self.nodes: dict[Any, Node] = {}

    def _node(self, op: str, args: tuple[Node, ...] = (), data: tuple[Any, ...] = ()) -> Node:
        # By its digits: 0.0 and -0.0 differ, NaN is itself.
        digits = tuple(d.hex() if isinstance(d, float) else d for d in data)
        key = (op, tuple(a.number for a in args), digits)
        if key not in self.nodes:
            self.nodes[key] = Node(self, op, args, data)
        return self.nodes[key]

    def load(self, kind: str, index: int) -> Node:
        return self._node("load", (), (kind, index))

    def constant(self, value: float) -> Node:
        return self._node("constant", (), (float(value),))

    def affine(self, node: Node, x: float, y: float) -> Node:
        """Returns ``node * x + y``; a y of -0.0 does not change the sign of a zero either."""
        if node.op == "affine":
            a, b = node.data
            product, offset = a * x, b * x + y
            # The product of the constants may overflow or underflow.
            if math.isfinite(product) and math.isfinite(offset) and product != 0:
                return self.affine(node.args[0], product, offset)
        if x == 1 and y == 0:
            return node
        return self._node("affine", (node,), (float(x), float(y)))

    def apply(self, op: str, *operands: Node | float) -> Node:
        """Returns ``op`` of ``operands``, simplified."""
        args = [a if isinstance(a, Node) else self.constant(a) for a in operands]
        if op in COMMUTATIVE:
            # Constants last.
            args.sort(key=lambda a: (a.op == "constant", a.number))
        simplify = getattr(self, f"_{op}", None)
        result: Node | None = simplify(*args) if simplify else None
        return self._node(op, tuple(args)) if result is None else result

    def _add(self, a: Node, b: Node) -> Node | None:
        if b.constant is not None:
            return self.affine(a, 1.0, b.constant)
        if _is_negation(b):
            return self.apply("sub", a, b.args[0])
        return self.apply("sub", b, a.args[0]) if _is_negation(a) else None

    def _sub(self, a: Node, b: Node) -> Node | None:
        if b.constant is not None:
            return self.affine(a, 1.0, -b.constant)
        if a.constant is not None:
            return self.affine(b, -1.0, a.constant)
        return self.apply("add", a, b.args[0]) if _is_negation(b) else None

    def _mul(self, a: Node, b: Node) -> Node | None:
        if b.constant is not None:
            return self.affine(a, b.constant, -0.0)
        # Move the sign outward, where a sum can absorb it.
        if _is_negation(a):
            return -self.apply("mul", a.args[0], b)
        return -self.apply("mul", a, b.args[0]) if _is_negation(b) else None

    def _div(self, a: Node, b: Node) -> Node | None:
        if b.constant and math.isfinite(1 / b.constant):
            return self.affine(a, 1 / b.constant, -0.0)
        return self.apply("reciprocal", b) if a.constant == 1 else None

    def _neg(self, a: Node) -> Node:
        return -a

    def _where(self, mask: Node, a: Node, b: Node) -> Node | None:
        if a is b:
            return a
        if mask.constant is not None:
            return a if mask.constant else b
        # 1 - m negates a mask.
        if mask.op == "affine" and mask.data == (-1.0, 1.0):
            return self.apply("where", mask.args[0], b, a)
        return None


def _is_negation(node: Node) -> bool:
    return node.op == "affine" and node.data == (-1.0, 0.0)


def ancestors(nodes: Iterable[Node], stop: Iterable[Node] = ()) -> list[Node]:
    """Returns ``nodes`` and what they are made of, operands first, nothing beyond ``stop``."""
    ends = set(stop)
    seen: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(() if node in ends else node.args)
    return sorted(seen, key=lambda node: node.number)
