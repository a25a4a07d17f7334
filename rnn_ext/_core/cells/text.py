"""Describes a program and the values that it saves, as text."""

from __future__ import annotations

from collections.abc import Sequence

from .graph import Node
from .program import BINARY, OPERANDS, UNARY, Instruction, Program
from .trace import Signature

__all__ = ["describe", "expression"]

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"} | {
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
}
LONGEST = 60


def _operand(kind: str, index: int, signature: Signature) -> str:
    """Returns an operand's name in the function."""
    names = {
        "state": ("y", *signature.states),
        "parameter": signature.parameters,
        "input": signature.inputs,
    }
    base = kind.removeprefix("grad_").removeprefix("next_")
    if base in names:
        name = names[base][index]
    elif base in ("projection", "recurrent"):
        letter = "u" if base == "projection" else "v"
        name = f"{letter}[{index}]" if signature.gates > 1 else letter
    else:
        name = f"{base}[{index}]"
    prefix = ("grad " if kind.startswith("grad_") else "") + ("next " if "next_" in kind else "")
    return prefix + name


def expression(node: Node, signature: Signature) -> str:
    """Returns the formula of a value, shortened if it is long."""
    if node.op == "load":
        kind, index = node.data
        text = _operand(kind, index, signature)
    elif node.op == "constant":
        text = f"{node.data[0]:g}"
    else:
        args = [expression(a, signature) for a in node.args]
        text = _formula(node.op, args, *node.data)
    return text if len(text) <= LONGEST else f"{node.op}(…)"


def _formula(op: str, args: Sequence[str], x: float = 0.0, y: float = 0.0) -> str:
    a = args[0]
    if op == "affine":
        scaled = {1.0: a, -1.0: f"-{a}"}.get(x, f"{x:g} * {a}")
        return scaled if y == 0 else f"({scaled} + {y:g})"
    if op == "fma":
        return f"({a} * {args[1]} + {args[2]})"
    if op == "fms":
        return f"({a} * {args[1]} - {args[2]})"
    if op == "fnma":
        return f"({args[2]} - {a} * {args[1]})"
    if op in INFIX:
        return f"({a} {INFIX[op]} {args[1]})"
    return f"{op}({', '.join(args)})"


def describe(source: str, program: Program, signature: Signature, saved: Sequence[str]) -> str:
    """Returns the function, the saved values and the two programs of a cell."""

    def line(i: Instruction) -> str:
        if i.op == "product":
            return "product of what was yielded" + (f", {i.a} gates" if i.a else ", transposed")
        if i.op == "load":
            return f"r{i.dst} = {_operand(OPERANDS[i.a], i.b, signature)}"
        if i.op == "store":
            return f"{_operand(OPERANDS[i.b], i.c, signature)} = r{i.a}"
        if i.op == "constant":
            return f"r{i.dst} = {i.x:g}"
        count = 1 if i.op in (*UNARY, "affine") else 2 if i.op in BINARY else 3
        text = _formula(i.op, [f"r{slot}" for slot in (i.a, i.b, i.c)[:count]], i.x, i.y)
        return f"r{i.dst} = {text.removeprefix('(').removesuffix(')') if text[0] == '(' else text}"

    def part(name: str, instructions: Sequence[Instruction], slots: int) -> list[str]:
        title = f"{name}: {len(instructions)} operations a step, {slots} slots"
        return [title, *(f"    {line(i)}" for i in instructions)]

    last = signature.products[0] - 1
    first = _operand("recurrent", 0, signature) + (f" to v[{last}]" if last else "")
    return "\n".join(
        [
            *source.splitlines(),
            f"saved for backward, beside y: {', '.join(saved) or 'nothing'}",
            *part("forward", program.forward, program.forward_slots),
            *part("backward", program.backward, program.backward_slots),
            f"forward starts with {first} in r0" + (f" to r{last}" if last else ""),
        ]
    )
