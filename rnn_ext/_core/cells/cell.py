"""``rnn_ext.cell``: a Python function as the cell of a recurrence."""

from __future__ import annotations

import importlib
import inspect
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from .errors import CellError, line_of_function
from .interpreter import run_step
from .lower import lower
from .program import MAX_SLOTS, Program
from .saving import choose_saved
from .tangent import has_tangent, tangent_function, tangent_signature
from .text import describe, expression
from .trace import Signature, trace

__all__ = ["Cell", "cell"]

T = TypeVar("T")


def _without_modes(compute: Callable[[], T]) -> T:
    """Returns ``compute()``, run where none of torch's modes is active.

    Modes (inference, autocast, fake tensors, default device, transforms) belong to a thread, so
    this uses a new one.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(compute).result()


@dataclass(frozen=True)
class Definition:
    """A cell without its function: all that the kernels and ``describe`` need.

    Attributes:
        name: the function's name.
        signature: its arguments.
        program: the encoded program.
        kept_states: the states that backward reads at all steps, a bit each.
        kept_values: the number of other values that backward reads of each step.
        saved: the values that backward reads, as formulas.
        source: the function's text; empty if unknown.
    """

    name: str
    signature: Signature
    program: Tensor
    kept_states: int
    kept_values: int
    saved: tuple[str, ...]
    source: str

    @classmethod
    def of(cls, function: Callable[..., Any], signature: Signature) -> Definition:
        name = function.__name__
        formula = trace(function, name, signature)
        saving = choose_saved(formula)
        program = lower(formula, saving, signature.split(range(signature.gates)))
        slots = max(program.forward_slots, program.backward_slots)
        if slots > MAX_SLOTS:
            raise CellError(
                f"cell {name!r}: it needs {slots} values at the same time, more than the "
                f"{MAX_SLOTS} slots of a program: split it or use fewer gates and states"
            )
        saved = [expression(node, signature) for node in saving.saved]
        kept = [signature.states[state - 1] for state in saving.kept_states]
        try:
            source = inspect.cleandoc(inspect.getsource(function))
        except (OSError, TypeError):
            source = ""
        kept_states = sum(1 << state for state in program.kept_states)
        return cls(
            *(name, signature, program.encode(), kept_states, program.saved),
            *((*saved, *kept), source),
        )


class Cell:
    """The computation of a time step, for each unit of a recurrence; ``rnn_ext.cell`` returns it.

    A call runs the Python function. The first use of ``program``, ``saved`` or ``describe()``
    traces the function, and raises ``rnn_ext.CellError`` if it contains an operation that a cell
    cannot have. Pickling stores the import path and the program: if that path has another cell, or
    none, when the pickle is loaded, the copy runs the program.

    Attributes:
        name: the function's name.
        gates: G, the number of blocks of H columns in u, and in all products of a step together.
        products: the number of blocks of each product of a step; ``(G,)`` if the cell does not
            yield.
        states: the names of the states beside y.
        parameters: the names of the operands with one value per unit.
        inputs: the names of the operands with one value per unit and time step.
    """

    def __init__(self, function: Callable[..., Any], signature: Signature) -> None:
        self._function: Callable[..., Any] | None = function
        self._path = function.__module__, function.__qualname__
        update_wrapper(self, function)
        self._describe_as(function.__name__, signature)

    def _describe_as(self, name: str, signature: Signature) -> None:
        self.name, self._signature = name, signature
        self.gates, self.products = signature.gates, signature.products
        self.states = signature.states
        self.parameters, self.inputs = signature.parameters, signature.inputs

    @classmethod
    def _restore(cls, path: tuple[str, str], definition: Definition) -> Cell:
        """Returns the cell at ``path`` if it has the same program, else one from ``definition``."""
        try:
            cell = operator.attrgetter(path[1])(importlib.import_module(path[0]))
            if isinstance(cell, cls) and torch.equal(cell.program, definition.program):
                return cell
        except (ImportError, AttributeError, CellError):
            pass
        restored = cls.__new__(cls)
        restored._function, restored._definition, restored._path = None, definition, path
        restored._describe_as(definition.name, definition.signature)
        return restored

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes one step in torch operations: ``cell(u, v, y, *states, **operands)``.

        If the function yields, this returns its generator.
        """
        if self._function is not None:
            return self._function(*args, **kwargs)
        return run_step(self.decoded, *self._signature.flatten(args, kwargs))

    def run(
        self,
        u: Sequence[Tensor],
        multiply: Callable[[int, Tensor], Sequence[Tensor]],
        states: Sequence[Tensor],
        named: Sequence[Tensor],
    ) -> Any:
        """Computes one step with all its products.

        Args:
            u: the input's contribution to each gate.
            multiply: ``(k, x)`` -> the gates of product k of the step, which multiplies x.
            states: y and the further states.
            named: parameters and inputs.

        Returns:
            y, or a tuple of y and the states.
        """
        return self._signature.run(self, u, multiply, states, named)

    @cached_property
    def _definition(self) -> Definition:
        function = self._function
        assert function is not None
        return _without_modes(lambda: Definition.of(function, self._signature))

    @cached_property
    def decoded(self) -> Program:
        """The program as a list of instructions."""
        return _without_modes(lambda: Program.decode(self.program))

    @cached_property
    def tangent(self) -> Cell | None:
        """The cell that computes the tangents of a step; None if no program can.

        ``tangent.py`` describes its arguments.
        """
        signature = self._signature
        function = tangent_function(self, signature)
        function.__name__ = f"tangent of {self.name}"
        tangent = Cell(function, tangent_signature(signature))
        try:
            _ = tangent._definition
        except CellError:
            return None
        return tangent if _without_modes(lambda: has_tangent(self, signature)) else None

    @property
    def program(self) -> Tensor:
        """The encoded program, an int64 CPU tensor."""
        return self._definition.program

    @property
    def kept_states(self) -> int:
        """The states that backward reads at all steps, a bit each; bit 0, for y, is never set."""
        return self._definition.kept_states

    @property
    def kept_values(self) -> int:
        """The number of values that backward reads of each unit and step, beside states."""
        return self._definition.kept_values

    @property
    def saved(self) -> tuple[str, ...]:
        """The values that backward reads of each unit and step, beside y: formulas and states."""
        return self._definition.saved

    def describe(self) -> str:
        """Returns the function, its program as text, its slots, and what backward reads."""
        return describe(self._definition.source, self.decoded, self._signature, self.saved)

    def __repr__(self) -> str:
        parts = [f"gates={self.products if len(self.products) > 1 else self.gates}"]
        parts += [
            f"{kind}={names}"
            for kind in ("states", "parameters", "inputs")
            if (names := getattr(self, kind))
        ]
        return f"<rnn_ext.cell {self.name}: {', '.join(parts)}>"

    def __reduce__(self) -> Any:
        return Cell._restore, (self._path, self._definition)

    def __copy__(self) -> Cell:
        return self

    def __deepcopy__(self, memo: Any) -> Cell:
        # A cell never changes.
        return self


@overload
def cell(function: Callable[..., Any], /) -> Cell: ...


@overload
def cell(
    *,
    gates: int | Sequence[int] = 1,
    states: Sequence[str] = (),
    parameters: Sequence[str] = (),
    inputs: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], Cell]: ...


def cell(
    function: Callable[..., Any] | None = None,
    /,
    *,
    gates: int | Sequence[int] = 1,
    states: Sequence[str] = (),
    parameters: Sequence[str] = (),
    inputs: Sequence[str] = (),
) -> Any:
    """Turns a function of one time step into the cell of a recurrence.

    For each unit, elementwise::

        u_t = W_ih x_t + b_ih
        v_t = W_hh y_{t-1} + b_hh
        (y_t, s_t...) = f(u_t, v_t, y_{t-1}, s_{t-1}..., parameters, inputs of the step)

    The function takes u, v, y, the states by name, and the operands as keyword-only arguments. It
    returns y alone, or a tuple of y and the states. With one gate u and v are tensors, with more
    they are tuples of ``gates`` tensors. All tensors have shape (B, H) or broadcast to it, and the
    same dtype. It may contain torch's elementwise operations and a ``torch.autograd.Function``.

    A function that yields has further products in a step. The yielded tensor is multiplied by the
    next blocks of W_hh, their part of b_hh is added, and the yield returns the result in the form
    of v. With ``gates=(2, 1)`` u has all three blocks, v the first two, and the yield returns the
    third.

    Args:
        gates: G, the number of blocks of H columns of the two products; for a function that yields,
            the number of blocks of each product with W_hh.
        states: names of the states beside y.
        parameters: names of the operands with one value per unit, of shape (H,).
        inputs: names of the operands with one value per unit and time step, of shape (T, B, H).

    Raises:
        CellError: the function has other arguments. Operations that a cell cannot have raise it
            when the cell is first used.

    Example::

        @rnn_ext.cell(gates=2)
        def ugrnn(u, v, y):
            g = (u[0] + v[0]).sigmoid()
            return g * y + (1 - g) * (u[1] + v[1]).tanh()
    """

    def decorate(function: Callable[..., Any]) -> Cell:
        products = (gates,) if isinstance(gates, int) else tuple(gates)
        signature = Signature(products, *map(tuple, (states, parameters, inputs)))
        _check(function, signature, (states, parameters, inputs))
        return Cell(function, signature)

    return decorate if function is None else decorate(function)


def _check(function: Callable[..., Any], signature: Signature, given: tuple[Any, ...]) -> None:
    """Raises an error if the arguments of a function do not fit."""
    name = f"cell {function.__name__!r} ({line_of_function(function)})"
    for kind, names in zip(("states", "parameters", "inputs"), given, strict=True):
        if isinstance(names, str):
            raise CellError(f"{name}: {kind}={names!r}, expected a tuple: {kind}=({names!r},)")
    products = signature.products
    if not products or not all(isinstance(g, int) and g >= 1 for g in products):
        shown = products[0] if len(products) == 1 else products
        raise CellError(f"{name}: gates={shown}, expected 1 or more in each product")
    if inspect.isgeneratorfunction(function) != (len(products) > 1):
        raise CellError(
            f"{name}: gates={products} are several products in a step, but the function does not "
            "yield"
            if len(products) > 1
            else f"{name}: it yields, so it needs the gates of each product, such as gates=(2, 1)"
        )
    named = signature.parameters + signature.inputs
    arguments = inspect.signature(function).parameters.values()
    positional = [
        a.name for a in arguments if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD)
    ]
    keywords = [a.name for a in arguments if a.kind == a.KEYWORD_ONLY]
    is_plain = len(positional) + len(keywords) == len(arguments)
    if (
        not is_plain
        or len(positional) < 3
        or tuple(positional[3:]) != signature.states
        or sorted(keywords) != sorted(named)
    ):
        expected = ", ".join(["u", "v", "y", *signature.states, *(("*", *named) if named else ())])
        raise CellError(
            f"{name}: its arguments are {inspect.signature(function)}, expected ({expected})"
        )
