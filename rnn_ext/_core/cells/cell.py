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
from .text import describe, expression
from .trace import Signature, trace

__all__ = ["Cell", "cell"]

T = TypeVar("T")


def _without_modes(compute: Callable[[], T]) -> T:
    """Returns what ``compute`` returns where none of torch's modes is active.

    Modes (inference, autocast, fake tensors, default device, transforms) are those of a thread, so
    that it runs in a new one.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(compute).result()


@dataclass(frozen=True)
class Definition:
    """A cell without its function: all that the kernels and a description need.

    Attributes:
        name: the function's name.
        signature: its arguments.
        program: the encoded program.
        kept_states: the states whose every step backward reads, a bit each.
        kept_values: how many other values of a step backward reads.
        saved: what the backward pass keeps, as formulas.
        source: the function's text, where it is known.
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
                f"cell {name!r}: it has {slots} values at once, a program has at most {MAX_SLOTS} "
                f"slots: split it or use fewer gates and states"
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
    """What a time step of a recurrence computes for each unit; made by ``rnn_ext.cell``.

    Calling it runs the function as it was written. It is traced where ``program``, ``saved`` or
    ``describe()`` is used first, which raises ``rnn_ext.CellError`` where the function contains
    what a cell cannot. Pickling keeps the import path and the program: where the path leads to
    another cell, or to none, the copy has the program instead of the function.

    Attributes:
        name: the function's name.
        gates: G, the number of blocks of H columns in u, and in all products of a step together.
        products: how many of them each product of a step has; ``(G,)`` where the cell does not
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
        """Returns the cell at ``path`` where it computes the same, else one of ``definition``."""
        try:
            found = operator.attrgetter(path[1])(importlib.import_module(path[0]))
            if isinstance(found, cls) and torch.equal(found.program, definition.program):
                return found
        except (ImportError, AttributeError, CellError):
            pass
        restored = cls.__new__(cls)
        restored._function, restored._definition, restored._path = None, definition, path
        restored._describe_as(definition.name, definition.signature)
        return restored

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes one step: ``cell(u, v, y, *states, **operands)``, as torch operations.

        Where the function yields, returns the generator.
        """
        if self._function is not None:
            return self._function(*args, **kwargs)
        return run_step(self._decoded, *self._signature.flatten(args, kwargs))

    def run(
        self,
        u: Sequence[Tensor],
        multiply: Callable[[int, Tensor], Sequence[Tensor]],
        states: Sequence[Tensor],
        named: Sequence[Tensor],
    ) -> Any:
        """Computes one step with all its products.

        Args:
            u: the input's part of each gate.
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
    def _decoded(self) -> Program:
        return _without_modes(lambda: Program.decode(self.program))

    @property
    def program(self) -> Tensor:
        """The program as data, an int64 CPU tensor."""
        return self._definition.program

    @property
    def kept_states(self) -> int:
        """The states whose every step backward reads, a bit each; bit 0, for y, is never set."""
        return self._definition.kept_states

    @property
    def kept_values(self) -> int:
        """How many values of a unit and time step backward reads beside states."""
        return self._definition.kept_values

    @property
    def saved(self) -> tuple[str, ...]:
        """What backward keeps of each unit and time step, beside y: formulas, and kept states."""
        return self._definition.saved

    def describe(self) -> str:
        """Returns the function, the program as text, its slots, and what backward keeps."""
        return describe(self._definition.source, self._decoded, self._signature, self.saved)

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

    A function that yields has further products in a step: what it yields is multiplied by the next
    blocks of W_hh, their part of b_hh is added, and it receives the result as it does v. With
    ``gates=(2, 1)`` u has all three blocks, v the first two, and the one yield receives the third.

    Args:
        gates: G, how many blocks of H columns the two products have; for a function that yields,
            how many the first product by W_hh has, and each further one.
        states: names of the states beside y.
        parameters: names of the operands with one value per unit, of shape (H,).
        inputs: names of the operands with one value per unit and time step, of shape (T, B, H).

    Raises:
        CellError: where the arguments of the function are others. What else a cell cannot contain
            is raised where its program is used first.

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
    """Raises what is wrong with the arguments of a function."""
    name = f"cell {function.__name__!r} ({line_of_function(function)})"
    for kind, names in zip(("states", "parameters", "inputs"), given, strict=True):
        if isinstance(names, str):
            raise CellError(f"{name}: {kind}={names!r}, expected a tuple: {kind}=({names!r},)")
    products = signature.products
    if not products or not all(isinstance(g, int) and g >= 1 for g in products):
        shown = products[0] if len(products) == 1 else products
        raise CellError(f"{name}: gates={shown}, expected 1 or more in each product")
    if inspect.isgeneratorfunction(function) != (len(products) > 1):
        verb = "has" if len(products) > 1 else "yields, so that it needs"
        raise CellError(
            f"{name}: it {verb} gates for more than one product in a step, as gates=(2, 1) are"
            + (", but it does not yield" if len(products) > 1 else "")
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
