"""Runs a program in torch operations: slower than the kernels, on any device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from .program import OPERANDS, UNARY, Instruction, Operand, Program
from .trace import unpack

__all__ = ["execute", "run_forward", "run_step"]


def execute(
    instructions: Iterable[Instruction],
    memory: Mapping[Operand, Tensor],
    in_slots: Sequence[Tensor] = (),
    multiply: Callable[[dict[Operand, Tensor]], Sequence[Tensor]] | None = None,
) -> dict[Operand, Tensor]:
    """Runs a forward or a backward program for one time step.

    Args:
        instructions: the program.
        memory: the operands that it loads, by kind and index; of one dtype, in shapes that
            broadcast. It always has y before the step.
        in_slots: the values of the first slots at the start.
        multiply: called for each product with all operands stored so far; returns the values of
            the first slots.

    Returns:
        The operands that it stores, by kind and index, in the shape of y.
    """
    like = memory["state", 0]
    slots = dict(enumerate(in_slots))
    stored: dict[Operand, Tensor] = {}
    for op, dst, a, b, c, x, y in instructions:
        if op == "load":
            operand = OPERANDS[a], b
            slots[dst] = stored[operand] if operand in stored else memory[operand]
        elif op == "store":
            stored[OPERANDS[b], c] = slots[a].expand_as(like)
        elif op == "product":
            assert multiply is not None
            slots = dict(enumerate(multiply(stored)))
        elif op == "constant":
            slots[dst] = torch.full_like(like, x)
        elif op == "affine":
            slots[dst] = slots[a] * x + y
        elif op == "where":
            slots[dst] = torch.where(slots[a] != 0, slots[b], slots[c])
        elif op == "fma":
            slots[dst] = torch.addcmul(slots[c], slots[a], slots[b])
        elif op == "fms":
            slots[dst] = slots[a] * slots[b] - slots[c]
        elif op == "fnma":
            slots[dst] = torch.addcmul(slots[c], slots[a], slots[b], value=-1)
        elif op in UNARY:
            slots[dst] = getattr(torch, op)(slots[a])
        else:
            slots[dst] = getattr(torch, op)(slots[a], slots[b]).to(like.dtype)
    return stored


def run_forward(
    program: Program,
    u: Sequence[Tensor],
    multiply: Callable[[int, Tensor], Sequence[Tensor]],
    states: Sequence[Tensor],
    named: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Returns the states after a step with all its products; the arguments are ``Cell.run``'s."""

    def multiply_next(stored: dict[Operand, Tensor]) -> Sequence[Tensor]:
        k = sum(kind == "yielded" for kind, _ in stored)
        return multiply(k, stored["yielded", k - 1])

    memory = {("projection", g): t for g, t in enumerate(u)}
    memory |= {("state", s): t for s, t in enumerate(states)}
    others = [("parameter", i) for i in range(program.parameters)]
    others += [("input", i) for i in range(program.inputs)]
    memory |= dict(zip(others, named, strict=True))
    stored = execute(program.forward, memory, multiply(0, states[0]), multiply_next)
    return tuple(stored["next_state", s] for s in range(program.states))


def run_step(
    program: Program, u: Sequence[Tensor], v: Sequence[Tensor], others: Sequence[Tensor]
) -> Any:
    """Returns y, or y and the states, after a step; differentiable once.

    For a cell that yields, it returns a generator that yields and then returns these.

    Args:
        u: u of each gate.
        v: v of each gate of the first product.
        others: the states, parameters and inputs.
    """
    steps = _run_phases(program, u, v, others)
    return steps if len(program.products) > 1 else _value_of(steps)


def _value_of(steps: Iterator[Tensor]) -> Any:
    try:
        next(steps)
    except StopIteration as end:
        return end.value


def _run_phases(
    program: Program, u: Sequence[Tensor], v: Sequence[Tensor], others: Sequence[Tensor]
) -> Generator[Tensor, Any, Any]:
    results: tuple[Tensor, ...] = ()
    for phase in range(len(program.products)):
        # No result of this phase depends on the later products.
        missing = [torch.zeros_like(v[0])] * (program.gates - len(v))
        results = _Phase.apply(program, phase, *u, *v, *missing, *others)
        if phase + 1 < len(program.products):
            v = (*v, *unpack((yield results[0])))
    return results[0] if program.states == 1 else results


class _Phase(torch.autograd.Function):
    """A step up to the end of a phase: returns what is yielded there; after the last, the states.

    Its backward runs the whole backward program, with zeros for the gradients of other results.
    """

    @staticmethod
    def forward(ctx: Any, program: Program, phase: int, *operands: Tensor) -> tuple[Tensor, ...]:
        gates = program.gates
        memory = _memory(program, operands)
        # execute needs y in the shape to which all operands broadcast.
        shape = torch.broadcast_shapes(*(t.shape for t in operands))
        memory["state", 0] = memory["state", 0].expand(shape)
        ends = accumulate(program.products, initial=gates)
        products = iter([operands[a:b] for a, b in pairwise(ends)])
        stored = execute(program.forward, memory, next(products), lambda _: next(products))
        states = [stored["next_state", s] for s in range(program.states)]
        yielded = [stored["yielded", k] for k in range(len(program.products) - 1)]
        saved = [stored["saved", k] for k in range(program.saved)]
        ctx.save_for_backward(*operands, *states, *saved)
        ctx.program, ctx.phase = program, phase
        return (yielded[phase],) if phase < len(yielded) else tuple(states)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        program: Program = ctx.program
        count = len(ctx.saved_tensors) - program.states - program.saved
        operands = ctx.saved_tensors[:count]
        kept = ctx.saved_tensors[count:]
        memory = _memory(program, operands)
        memory["state", 0] = memory["state", 0].expand_as(grads[0])
        memory |= {("next_state", s): t for s, t in enumerate(kept[: program.states])}
        memory |= {("saved", k): t for k, t in enumerate(kept[program.states :])}
        zero = torch.zeros_like(grads[0])
        yields = len(program.products) - 1
        is_last = ctx.phase == yields
        memory |= {
            ("grad_next_state", s): grads[s] if is_last else zero for s in range(program.states)
        }
        memory |= {("grad_yielded", k): grads[0] if k == ctx.phase else zero for k in range(yields)}
        stored = execute(program.backward, memory, multiply=lambda _: ())
        if program.merged:
            stored |= {
                ("grad_projection", g): stored["grad_recurrent", g] for g in range(program.gates)
            }
        gradients = [stored.get((f"grad_{kind}", i)) for kind, i in _operands(program)]
        return (
            None,
            None,
            *(
                None if g is None else g.sum_to_size(t.shape)
                for g, t in zip(gradients, operands, strict=True)
            ),
        )


def _operands(program: Program) -> list[Operand]:
    counts = {"projection": program.gates, "recurrent": program.gates, "state": program.states}
    counts |= {"parameter": program.parameters, "input": program.inputs}
    return [(kind, i) for kind, count in counts.items() for i in range(count)]


def _memory(program: Program, operands: Sequence[Tensor]) -> dict[Operand, Tensor]:
    return dict(zip(_operands(program), operands, strict=True))
