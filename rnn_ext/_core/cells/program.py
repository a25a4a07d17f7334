"""A cell's program: vector operations on slots, and the tensor that carries it to the kernels.

``OPERATIONS`` and ``OPERANDS`` are the numbers of the encoding; the kernels have the same lists.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "BINARY",
    "MAX_SLOTS",
    "OPERANDS",
    "OPERATIONS",
    "UNARY",
    "Instruction",
    "Operand",
    "Program",
]

Operand = tuple[str, int]  # kind and index of a value in memory

# Torch's functions of these names.
UNARY = (
    *("neg", "abs", "sign", "floor", "ceil", "round", "trunc"),
    *("sqrt", "rsqrt", "reciprocal"),
    *("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf"),
)
BINARY = (
    *("add", "sub", "mul", "div"),
    *("minimum", "maximum"),
    *("lt", "le", "eq", "ne"),  # 1.0 or 0.0
)
# affine is a * x + y; where is b if a is not 0, else c; fma is a * b + c, fms a * b - c and fnma
# c - a * b. A product separates two phases: the first runs for all units before
# the second starts, and slots are lost between them, except for values passed in memory.
OPERATIONS = (
    *("load", "store", "constant", "affine", *UNARY, *BINARY),
    *("where", "fma", "fms", "fnma", "product"),
)

# The kinds of values that a program reads and writes in memory.
OPERANDS = (
    "projection",  # u of a gate
    "state",  # before the step; 0 is y
    "parameter",  # one value per unit
    "input",  # one per unit and step
    "saved",  # kept from the forward program for the backward one
    "next_state",  # after the step
    "grad_next_state",
    "grad_projection",
    "grad_recurrent",  # of v
    "grad_state",  # without the part through v
    "grad_parameter",  # of this step
    "grad_input",
    "yielded",  # the operand of the next product
    "grad_yielded",
    "passed",  # from one phase of a step to a later one
)

VERSION = 3
MAX_SLOTS = 256
HEADER = 16
INSTRUCTION = 7


class Instruction(NamedTuple):
    """One operation: ``dst``, ``a``, ``b`` and ``c`` are slots, ``x`` and ``y`` constants.

    A load reads operand ``b`` of kind ``a`` into ``dst``; a store writes ``a`` to operand ``c`` of
    kind ``b``. A product writes its ``a`` gates to the first slots; in the backward program it
    writes the gradient of the yielded value to slot 0.
    """

    op: str
    dst: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True)
class Program:
    """The forward and the backward program of a cell.

    Attributes:
        gates, states, parameters, inputs: their numbers; states include y.
        saved: the number of values of a unit that forward saves for backward.
        merged: whether u and v occur only as their sum and so have the same gradient.
        kept_states: the states, beside y, that backward reads at all steps.
        passed: the number of values passed between phases, the larger of the two programs'.
        forward_slots, backward_slots: the number of slots of each program.
    """

    gates: int
    states: int
    parameters: int
    inputs: int
    saved: int
    merged: bool
    kept_states: tuple[int, ...]
    passed: int
    forward_slots: int
    forward: tuple[Instruction, ...]
    backward_slots: int
    backward: tuple[Instruction, ...]

    @property
    def products(self) -> tuple[int, ...]:
        """The gates of each product in a step."""
        later = [i.a for i in self.forward if i.op == "product"]
        return self.gates - sum(later), *later

    def encode(self) -> Tensor:
        """Returns the program as int64 of shape (16 + 7 * instructions,).

        The header is version, gates, states, parameters, inputs, saved, merged, kept states (a
        bit each), forward slots, forward length, backward slots, backward length, passed and zeros.
        Each instruction is op, dst, a, b, c and the bits of x and y as float64.
        """
        kept = sum(1 << state for state in self.kept_states)
        header = [VERSION, self.gates, self.states, self.parameters, self.inputs]
        header += [self.saved, int(self.merged), kept]
        header += [self.forward_slots, len(self.forward), self.backward_slots, len(self.backward)]
        header += [self.passed]
        header += [0] * (HEADER - len(header))
        body = [
            value
            for op, dst, a, b, c, x, y in self.forward + self.backward
            for value in (OPERATIONS.index(op), dst, a, b, c, _bits(x), _bits(y))
        ]
        return torch.tensor(header + body, dtype=torch.int64, device="cpu")

    @classmethod
    def decode(cls, encoded: Tensor) -> Program:
        """Returns the program that ``encode`` encoded."""
        values: list[int] = encoded.tolist()
        version, gates, states, parameters, inputs, saved, merged, kept = values[:8]
        if version != VERSION:
            raise ValueError(f"a program of version {version}, expected {VERSION}")
        forward_slots, forward_length, backward_slots, _, passed = values[8:13]
        instructions = tuple(
            Instruction(OPERATIONS[op], dst, a, b, c, _number(x), _number(y))
            for op, dst, a, b, c, x, y in zip(
                *(values[HEADER + i :: INSTRUCTION] for i in range(INSTRUCTION)), strict=True
            )
        )
        return cls(
            gates,
            states,
            parameters,
            inputs,
            saved,
            bool(merged),
            tuple(state for state in range(states) if kept >> state & 1),
            passed,
            forward_slots,
            instructions[:forward_length],
            backward_slots,
            instructions[forward_length:],
        )


def _bits(number: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


def _number(bits: int) -> float:
    number: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return number
