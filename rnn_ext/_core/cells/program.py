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

Operand = tuple[str, int]  # kind and index of what a program reads or writes in memory

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
# affine is a * x + y, where takes b where a is not 0 and else c, fma is a * b + c.
OPERATIONS = ("load", "store", "constant", "affine", *UNARY, *BINARY, "where", "fma")

# What a program reads and writes in memory.
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
    "grad_state",  # without what goes through v
    "grad_parameter",  # of this step
    "grad_input",
)

VERSION = 1
MAX_SLOTS = 256
HEADER = 16
INSTRUCTION = 7


class Instruction(NamedTuple):
    """One operation: ``dst``, ``a``, ``b`` and ``c`` are slots, ``x`` and ``y`` constants.

    A load reads operand ``b`` of kind ``a`` into ``dst``; a store writes ``a`` to operand ``c`` of
    kind ``b``.
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
        gates, states, parameters, inputs: how many there are; states count y.
        saved: how many values of a unit the forward program keeps for the backward one.
        merged: u and v occur as their sum alone, so that they have the same gradient.
        kept_states: the states, beside y, whose values at every step the backward program reads.
        forward_slots, backward_slots: how many slots each needs.
    """

    gates: int
    states: int
    parameters: int
    inputs: int
    saved: int
    merged: bool
    kept_states: tuple[int, ...]
    forward_slots: int
    forward: tuple[Instruction, ...]
    backward_slots: int
    backward: tuple[Instruction, ...]

    def encode(self) -> Tensor:
        """Returns the program as int64 of shape (16 + 7 * instructions,).

        The header is version, gates, states, parameters, inputs, saved, merged, kept states (a
        bit each), forward slots, forward length, backward slots, backward length and zeros. Each
        instruction is op, dst, a, b, c and the bits of x and y as float64.
        """
        kept = sum(1 << state for state in self.kept_states)
        header = [VERSION, self.gates, self.states, self.parameters, self.inputs]
        header += [self.saved, int(self.merged), kept]
        header += [self.forward_slots, len(self.forward), self.backward_slots, len(self.backward)]
        header += [0] * (HEADER - len(header))
        body = [
            value
            for op, dst, a, b, c, x, y in self.forward + self.backward
            for value in (OPERATIONS.index(op), dst, a, b, c, _bits(x), _bits(y))
        ]
        return torch.tensor(header + body, dtype=torch.int64, device="cpu")

    @classmethod
    def decode(cls, encoded: Tensor) -> Program:
        """Returns what ``encode`` encoded."""
        values: list[int] = encoded.tolist()
        version, gates, states, parameters, inputs, saved, merged, kept = values[:8]
        if version != VERSION:
            raise ValueError(f"a program of version {version}, expected {VERSION}")
        forward_slots, forward_length, backward_slots, _ = values[8:12]
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
