"""Runs a program in torch operations: what the kernels compute, slowly, on any device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .program import OPERANDS, UNARY, Instruction, Operand, Program

__all__ = ["execute", "run_step"]


def execute(
    instructions: Iterable[Instruction],
    memory: Mapping[Operand, Tensor],
    in_slots: Sequence[Tensor] = (),
) -> dict[Operand, Tensor]:
    """Runs a forward or a backward program for one time step.

    Args:
        instructions: the program.
        memory: what it loads, by kind and index; of one dtype, in shapes that broadcast. y before
            the step is always there.
        in_slots: what its first slots hold at the start.

    Returns:
        What it stores, by kind and index, in the shape of y.
    """
    like = memory["state", 0]
    slots = dict(enumerate(in_slots))
    stored: dict[Operand, Tensor] = {}
    for op, dst, a, b, c, x, y in instructions:
        if op == "load":
            slots[dst] = memory[OPERANDS[a], b]
        elif op == "store":
            stored[OPERANDS[b], c] = slots[a].expand_as(like)
        elif op == "constant":
            slots[dst] = torch.full_like(like, x)
        elif op == "affine":
            slots[dst] = slots[a] * x + y
        elif op == "where":
            slots[dst] = torch.where(slots[a] != 0, slots[b], slots[c])
        elif op == "fma":
            slots[dst] = torch.addcmul(slots[c], slots[a], slots[b])
        elif op in UNARY:
            slots[dst] = getattr(torch, op)(slots[a])
        else:
            slots[dst] = getattr(torch, op)(slots[a], slots[b]).to(like.dtype)
    return stored


def run_step(program: Program, operands: Sequence[Tensor]) -> Any:
    """Returns y, or y and the states, after a step; differentiable once.

    Args:
        program: what to run.
        operands: u and v of each gate, the states, parameters and inputs.
    """
    results = _Step.apply(program, *operands)
    return results[0] if program.states == 1 else results


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, program: Program, *operands: Tensor) -> tuple[Tensor, ...]:
        gates = program.gates
        memory = _memory(program, operands)
        # The first of a shape that all broadcast to.
        shape = torch.broadcast_shapes(*(t.shape for t in operands))
        memory["state", 0] = memory["state", 0].expand(shape)
        stored = execute(program.forward, memory, operands[gates : 2 * gates])
        results = tuple(stored["next_state", s] for s in range(program.states))
        saved = [stored["saved", k] for k in range(program.saved)]
        ctx.save_for_backward(*operands, *results, *saved)
        ctx.program = program
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        program: Program = ctx.program
        count = len(ctx.saved_tensors) - program.states - program.saved
        operands = ctx.saved_tensors[:count]
        memory = _memory(program, operands)
        memory["state", 0] = memory["state", 0].expand_as(grads[0])
        memory |= {
            ("next_state", s): t for s, t in enumerate(ctx.saved_tensors[count:][: program.states])
        }
        memory |= {
            ("saved", k): t for k, t in enumerate(ctx.saved_tensors[count + program.states :])
        }
        memory |= {("grad_next_state", s): t for s, t in enumerate(grads)}
        stored = execute(program.backward, memory)
        if program.merged:
            stored |= {
                ("grad_projection", g): stored["grad_recurrent", g] for g in range(program.gates)
            }
        gradients = [stored.get((f"grad_{kind}", i)) for kind, i in _operands(program)]
        return None, *(
            None if g is None else g.sum_to_size(t.shape)
            for g, t in zip(gradients, operands, strict=True)
        )


def _operands(program: Program) -> list[Operand]:
    counts = {"projection": program.gates, "recurrent": program.gates, "state": program.states}
    counts |= {"parameter": program.parameters, "input": program.inputs}
    return [(kind, i) for kind, count in counts.items() for i in range(count)]


def _memory(program: Program, operands: Sequence[Tensor]) -> dict[Operand, Tensor]:
    return dict(zip(_operands(program), operands, strict=True))
