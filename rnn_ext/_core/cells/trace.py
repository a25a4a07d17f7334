"""Traces a cell: runs it and its derivative with arbitrary numbers and records a graph."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from typing import Any

import torch
from torch import Tensor

from ..torch_private import record_operations
from .errors import CellError, line_of_frame, line_of_function, line_of_traceback
from .graph import Graph, Node
from .operations import RULES

__all__ = ["Formula", "Signature", "gradients_of", "trace", "unpack"]

# Results of these are constants, read from the result.
FACTORIES = {
    *("scalar_tensor", "lift_fresh", "full", "full_like", "new_full", "fill_", "zero_"),
    *("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones"),
}
# Results of these have the values of an argument, at this index.
COPIES = {
    **dict.fromkeys(("detach", "alias", "clone", "view", "expand", "_to_copy"), 0),
    "copy_": 1,
}
# The operations that these are if all tensors are masks.
ON_MASKS = {f"bitwise_{name}": f"logical_{name}" for name in ("and", "or", "xor", "not")}
ON_MASKS["add"] = "logical_or"
READS = {"_local_scalar_dense", "equal", "is_nonzero", "item"}

NO_DIMENSIONS = (
    "; a cell computes each unit separately, so its tensors have no dimensions while it is traced"
)


@dataclass(frozen=True)
class Signature:
    """The arguments of a cell: their names, and the gates of each product in a step."""

    products: tuple[int, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]

    @property
    def gates(self) -> int:
        return sum(self.products)

    def split(self, gates: Sequence[Any]) -> list[Sequence[Any]]:
        """Splits a list with an element for each gate into one list for each product."""
        ends = accumulate(self.products, initial=0)
        return [gates[a:b] for a, b in pairwise(ends)]

    def operands(self) -> list[tuple[str, int]]:
        """The kind and index of each argument, as the program names them; recurrent is v."""
        counts = {
            "projection": self.gates,
            "recurrent": self.gates,
            "state": 1 + len(self.states),
            "parameter": len(self.parameters),
            "input": len(self.inputs),
        }
        return [(kind, i) for kind, count in counts.items() for i in range(count)]

    def run(
        self,
        function: Callable[..., Any],
        u: Sequence[Any],
        multiply: Callable[[int, Any], Sequence[Any]],
        states: Sequence[Any],
        named: Iterable[Any],
    ) -> Any:
        """Runs one step of ``function``.

        Args:
            u: the input's contribution to each gate.
            multiply: ``(k, x)`` -> the gates of product k of a step, which multiplies x.
            states: y and the further states.
            named: parameters and inputs.

        Returns:
            The function's result.
        """

        def product(k: int, x: Any) -> Any:
            return _pack(multiply(k, x))

        keywords = dict(zip(self.parameters + self.inputs, named, strict=True))
        result = function(_pack(u), product(0, states[0]), *states, **keywords)
        if len(self.products) == 1:
            return result
        try:
            yielded = next(result)
            for k in count(1):
                yielded = result.send(product(k, yielded))
        except StopIteration as end:
            return end.value

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Sequence[Any]]:
        """Returns u, v and all other operands of a call of the function."""
        u, v, *states = args
        named = [kwargs[name] for name in self.parameters + self.inputs]
        return [unpack(u), unpack(v), [*states, *named]]


def _pack(gates: Sequence[Any]) -> Any:
    """Returns the argument for gates: the tensor of a single gate, else a tuple."""
    return gates[0] if len(gates) == 1 else tuple(gates)


def unpack(gates: Any) -> Sequence[Any]:
    return gates if isinstance(gates, tuple) else (gates,)


@dataclass(frozen=True)
class Formula:
    """The computation of a cell for one unit.

    Attributes:
        graph: the graph of all nodes.
        outputs: the next states, y first.
        yielded: the operand of each product but the first.
        gradients: by (kind, index) of an argument; None if no output depends on it.
    """

    graph: Graph
    outputs: tuple[Node, ...]
    yielded: tuple[Node, ...]
    gradients: dict[tuple[str, int], Node | None]


def trace(function: Callable[..., Any], name: str, signature: Signature) -> Formula:
    """Returns the formula of ``function`` and its derivative.

    The function runs twice, with different values and shapes, and both runs must record the same
    formula.

    Raises:
        CellError: the function contains an operation that a cell cannot have.
    """
    graph = Graph()
    first, second = (
        Recorder(graph, name).record(function, signature, value, shape)
        for value, shape in ((0.25, ()), (-0.5, (3,)))
    )
    if first != second:
        raise CellError(
            f"cell {name!r} ({line_of_function(function)}): two calls compute different formulas: "
            f"it reads values or shapes, draws random numbers, or keeps something between calls"
        )
    return first


class Recorder:
    """One run of a cell, with the node of each tensor."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name
        # By address, which views and tensors changed in place share. self.tensors keeps all alive.
        self.nodes: dict[int, Node] = {}
        self.tensors: list[Tensor] = []
        self.is_backward = False

    def record(
        self,
        function: Callable[..., Any],
        signature: Signature,
        value: float,
        shape: tuple[int, ...],
    ) -> Formula:
        self.shape, self.frame = shape, sys._getframe()
        self.home = line_of_function(function)
        operands = signature.operands()
        arguments = [self._argument(kind, i, value).requires_grad_() for kind, i in operands]
        sizes = {"grad_next_state": 1 + len(signature.states)}
        sizes |= {"grad_yielded": len(signature.products) - 1}
        seeds = [self._argument(kind, i, 0.5) for kind, size in sizes.items() for i in range(size)]
        try:
            with record_operations(self.operation):
                result, yielded = self._run(function, signature, arguments)
                outputs = self._check_result(result, signature)
                tensors = (*outputs, *yielded)
                nodes = [self._node_of(tensor) for tensor in tensors]
                for (kind, i), argument in zip(operands, arguments, strict=True):
                    if self.nodes[argument.data_ptr()] is not self.graph.load(kind, i):
                        raise self._error("it changes an argument in place")
                gradients = self._derive(tensors, seeds, arguments)
        except CellError:
            raise
        except Exception as error:
            line = line_of_traceback(error.__traceback__)
            text = f"{type(error).__name__}: {error}{NO_DIMENSIONS}"
            raise self._error(text, line) from error
        return Formula(
            self.graph,
            tuple(nodes[: len(outputs)]),
            tuple(nodes[len(outputs) :]),
            dict(zip(operands, gradients, strict=True)),
        )

    def _run(
        self, function: Callable[..., Any], signature: Signature, arguments: Sequence[Tensor]
    ) -> tuple[Any, list[Tensor]]:
        """Returns the function's result and the values that it yields."""
        g, expected = signature.gates, len(signature.products) - 1
        u, v, others = arguments[:g], signature.split(arguments[g : 2 * g]), arguments[2 * g :]
        states = 1 + len(signature.states)
        yielded: list[Tensor] = []

        def multiply(k: int, x: Any) -> Sequence[Tensor]:
            if k > expected:
                raise self._error(
                    f"it yields more than {expected} times, for {1 + expected} products"
                )
            if k > 0:
                yielded.append(self._check_tensor(x, "yields", ""))
            return v[k]

        result = signature.run(function, u, multiply, others[:states], others[states:])
        if len(yielded) < expected:
            raise self._error(f"it yields {len(yielded)} times, expected {expected}")
        return result, yielded

    def _argument(self, kind: str, index: int, value: float) -> Tensor:
        tensor = torch.full(self.shape, value, dtype=torch.float64, device="cpu")
        self._keep(tensor, self.graph.load(kind, index))
        return tensor

    def _derive(
        self, outputs: Sequence[Tensor], seeds: Sequence[Tensor], arguments: Sequence[Tensor]
    ) -> list[Node | None]:
        self.is_backward = True
        gradients = gradients_of(outputs, arguments, seeds)
        return [None if g is None else self._node_of(g) for g in gradients]

    def _check_result(self, result: Any, signature: Signature) -> tuple[Tensor, ...]:
        names = ("y", *signature.states)
        tensors = result if isinstance(result, tuple) else (result,)
        if len(tensors) != len(names):
            raise self._error(
                f"it returns {len(tensors)} values, expected {len(names)}: {', '.join(names)}"
            )
        for name, tensor in zip(names, tensors, strict=True):
            self._check_tensor(tensor, "returns", f" for {name}")
        return tensors

    def _check_tensor(self, value: Any, verb: str, purpose: str) -> Tensor:
        if not isinstance(value, Tensor):
            raise self._error(f"it {verb} {value!r}{purpose}, expected a tensor")
        if not value.is_floating_point():
            raise self._error(f"it {verb} a tensor of {value.dtype}{purpose}, expected y's dtype")
        return value

    def _node_of(self, tensor: Tensor) -> Node:
        try:
            return self.nodes[tensor.data_ptr()]
        except KeyError:
            raise self._error(
                f"it uses a tensor of shape {tuple(tensor.shape)} that is not one of its "
                f"arguments: make it a parameter or an input"
            ) from None

    def _keep(self, tensor: Tensor, node: Node) -> None:
        self.tensors.append(tensor)
        self.nodes[tensor.data_ptr()] = node

    def _error(self, text: str, line: str | None = None) -> CellError:
        line = line or line_of_frame(sys._getframe(), self.frame) or self.home
        return CellError(f"cell {self.name!r} ({line}): {text}")

    # The operations of torch ----------------------------------------------------------------------

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operation of torch and records the nodes of its results."""
        name: str = func.overloadpacket.__name__
        is_known = name in FACTORIES or name in COPIES
        nodes = None if is_known else self._apply(func, name, args, kwargs)
        results = func(*args, **kwargs)
        tensors = results if isinstance(results, tuple) else (results,)
        if any(tensor.shape not in ((), self.shape) for tensor in tensors):
            raise self._error(f"{name} returns another shape{NO_DIMENSIONS}")
        if name in COPIES:
            nodes = (self._copy(args[COPIES[name]], results),)
        elif nodes is None:
            nodes = tuple(self.graph.constant(t.reshape(-1)[0].item()) for t in tensors)
        for tensor, node in zip(tensors, nodes, strict=True):
            self._keep(tensor, node)
        return results

    def _apply(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Node, ...] | None:
        """Returns the nodes of the results; None if they are constants, like all operands."""
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if not name.startswith("_"):
            name = name.rstrip("_")
        if all(tensor.dtype == torch.bool for tensor in tensors):
            name = ON_MASKS.get(name, name)
        if name not in RULES:
            raise self._error(_refusal(func, name))
        if all(self._node_of(tensor).constant is not None for tensor in tensors):
            return None
        args = tuple(self._node_of(a) if isinstance(a, Tensor) else a for a in args)
        kwargs = {k: self._node_of(a) if isinstance(a, Tensor) else a for k, a in kwargs.items()}
        try:
            bound = inspect.signature(RULES[name]).bind(*args, **kwargs)
        except TypeError as error:
            raise self._error(
                f"a cell cannot contain {name} with such arguments: {error}"
            ) from None
        nodes = RULES[name](*bound.args, **bound.kwargs)
        if nodes is NotImplemented:
            raise self._error(f"a cell cannot contain {name} of these arguments")
        return nodes if isinstance(nodes, tuple) else (nodes,)

    def _copy(self, source: Tensor, result: Tensor) -> Node:
        node = self._node_of(source)
        if not source.is_floating_point() or source.dtype == result.dtype:
            return node
        if result.dtype == torch.bool:
            return self.graph.apply("ne", node, 0.0)
        # Backward casts a gradient to the dtype of its value, which may come from a mask.
        widens = result.dtype == torch.float64 or self.is_backward
        if result.is_floating_point() and widens:
            return node
        raise self._error(
            f"it converts a number to {result.dtype}: a cell computes in the dtype of its arguments"
        )


def _refusal(func: Any, name: str) -> str:
    if name in READS:
        return (
            "it reads the value of a tensor, as if, while, bool() and item() do: "
            "use torch.where to choose"
        )
    if torch.Tag.nondeterministic_seeded in func.tags:
        return f"it draws random numbers ({name}): draw them before the call and make them an input"
    if torch.Tag.pointwise in func.tags:
        return f"a cell cannot contain {name}: no operation of a program computes it"
    return (
        f"a cell cannot contain {name}: a cell computes each unit from the values of that unit, "
        f"without reductions, indexing and shapes"
    )


def gradients_of(
    outputs: Sequence[Tensor],
    arguments: Sequence[Tensor],
    seeds: Sequence[Tensor],
    create_graph: bool = False,
) -> Sequence[Tensor | None]:
    """Returns the gradients of ``arguments`` for ``seeds``, those of ``outputs``.

    ``torch.autograd.grad`` with gradients of the outputs would import sympy (0.5 s).
    """
    pairs = [pair for pair in zip(outputs, seeds, strict=True) if pair[0].requires_grad]
    if not pairs:
        return [None] * len(arguments)
    end = _Seeds.apply([seed for _, seed in pairs], *(y for y, _ in pairs))
    return torch.autograd.grad(end, arguments, create_graph=create_graph, allow_unused=True)


class _Seeds(torch.autograd.Function):
    """A scalar that depends on tensors with the gradients ``seeds``."""

    @staticmethod
    def forward(ctx: Any, seeds: list[Tensor], *outputs: Tensor) -> Tensor:
        ctx.seeds = seeds
        return torch.zeros((), device="cpu")

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        return None, *ctx.seeds
