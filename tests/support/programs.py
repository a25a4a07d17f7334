"""A recurrence as a plain loop, by a cell's program in Python, and by the kernels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import Any

import torch
from torch import Tensor

from rnn_ext import Cell
from rnn_ext._core.cells.interpreter import execute
from rnn_ext._core.cells.program import OPERANDS, Instruction, Operand, Program


@dataclass
class Run:
    """The tensors of a recurrence of T steps.

    projection (T, B, G·H), weight (G·H, H), bias (G·H), the initial states (B, H) each, parameters
    (H) each, inputs (T, B, H) each.
    """

    projection: Tensor
    weight: Tensor
    bias: Tensor
    states: list[Tensor]
    parameters: list[Tensor]
    inputs: list[Tensor]

    def multiply(self, products: Sequence[int]) -> Callable[[int, Tensor], Sequence[Tensor]]:
        """Returns a function ``(k, x)`` -> the gates of product k of a step."""
        width = self.weight.size(1)
        sizes = [width * gates for gates in products]
        blocks = list(zip(self.weight.split(sizes), self.bias.split(sizes), strict=True))

        def multiply(k: int, x: Tensor) -> Sequence[Tensor]:
            weight, bias = blocks[k]
            return (x @ weight.T + bias).split(width, -1)

        return multiply

    def tensors(self) -> list[Tensor]:
        lists = (self.states, self.parameters, self.inputs)
        return [self.projection, self.weight, self.bias, *(t for ts in lists for t in ts)]

    def detached(self) -> "Run":
        states, parameters, inputs = (
            [t.detach() for t in ts] for ts in (self.states, self.parameters, self.inputs)
        )
        projection, weight, bias = (t.detach() for t in self.tensors()[:3])
        return Run(projection, weight, bias, states, parameters, inputs)


def random_run(cell: Cell, steps: int = 5, batch: int = 3, hidden_size: int = 7) -> Run:
    def draw(*shape: int, scale: float = 1) -> Tensor:
        return (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()

    return Run(
        draw(steps, batch, cell.gates * hidden_size),
        draw(cell.gates * hidden_size, hidden_size, scale=hidden_size**-0.5),
        draw(cell.gates * hidden_size),
        [draw(batch, hidden_size) for _ in range(1 + len(cell.states))],
        [draw(hidden_size) for _ in cell.parameters],
        [draw(steps, batch, hidden_size) for _ in cell.inputs],
    )


def plain_loop(cell: Cell, run: Run) -> list[Tensor]:
    """Returns every state at every step, (T, B, H) each: the cell's function in a loop."""
    states, history = run.states, []
    for t, u in enumerate(run.projection):
        values = (*run.parameters, *(x[t] for x in run.inputs))
        result = cell.run(u.chunk(cell.gates, -1), run.multiply(cell.products), states, values)
        results = result if cell.states else (result,)
        # One of parameters alone has one value per unit.
        states = [x.expand_as(run.states[0]) for x in results]
        history.append(states)
    return [torch.stack(steps) for steps in zip(*history, strict=True)]


def by_program(cell: Cell, run: Run, grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the same, and the gradients of ``run.tensors()`` given those of the states.

    Each value of a step is kept from forward to backward only where the program says so.
    """
    program = Program.decode(cell.program)
    check(program)
    gates = range(program.gates)
    tensors = run.detached()
    multiply = tensors.multiply(program.products)
    later = range(1, len(program.products))
    history, kept = [tensors.states], []
    for t, u in enumerate(tensors.projection):
        memory = _step_memory(program, tensors, t)
        memory |= {("projection", g): x for g, x in enumerate(u.chunk(program.gates, -1))}
        memory |= {("state", s): x for s, x in enumerate(history[-1])}
        products = iter(later)

        def forward_product(
            stored: dict[Operand, Tensor], products: Iterator[int] = products
        ) -> Sequence[Tensor]:
            k = next(products)
            return multiply(k, stored["yielded", k - 1])

        v = multiply(0, history[-1][0])
        stored = execute(program.forward, memory, v, forward_product)
        history.append([stored["next_state", s] for s in range(program.states)])
        kept.append({key: x for key, x in stored.items() if key[0] == "saved"})

    width = tensors.weight.size(1)
    weights = tensors.weight.split([width * g for g in program.products])
    ends = list(accumulate(program.products, initial=0))
    blocks = [range(a, b) for a, b in pairwise(ends)]
    state_grads = [torch.zeros_like(x) for x in history[0]]
    projection_grads: list[Tensor] = []
    weight_grad, bias_grad = torch.zeros_like(tensors.weight), torch.zeros_like(tensors.bias)
    parameter_grads = [torch.zeros_like(p) for p in tensors.parameters]
    input_grads = [torch.zeros_like(x) for x in tensors.inputs]
    for t in reversed(range(len(kept))):
        memory = _step_memory(program, tensors, t) | kept[t]
        for s in (0, *program.kept_states):
            memory["state", s], memory["next_state", s] = history[t][s], history[t + 1][s]
        for s, grad in enumerate(grads):
            memory["grad_next_state", s] = state_grads[s] + grad[t]
        backward = iter(reversed(later))

        def backward_product(
            stored: dict[Operand, Tensor],
            memory: dict[Operand, Tensor] = memory,
            products: Iterator[int] = backward,
        ) -> Sequence[Tensor]:
            k = next(products)
            dv = torch.cat([stored["grad_recurrent", g] for g in blocks[k]], -1)
            memory["grad_yielded", k - 1] = dv @ weights[k]
            return ()

        stored = execute(program.backward, memory, multiply=backward_product)
        dv = torch.cat([stored["grad_recurrent", g] for g in gates], -1)
        du_kind = "grad_recurrent" if program.merged else "grad_projection"
        du = torch.cat([stored[du_kind, g] for g in gates], -1)
        projection_grads.insert(0, du)
        multiplied = [history[t][0], *(stored["yielded", k - 1] for k in later)]
        grads_of_products = dv.split([w.size(0) for w in weights], -1)
        weight_grad += torch.cat(
            [g.T @ x for g, x in zip(grads_of_products, multiplied, strict=True)]
        )
        bias_grad += dv.sum(0)
        zero = torch.zeros_like(history[0][0])
        state_grads = [stored.get(("grad_state", s), zero) for s in range(program.states)]
        state_grads[0] = state_grads[0] + grads_of_products[0] @ weights[0]
        for p, grad in enumerate(parameter_grads):
            grad += stored["grad_parameter", p].sum(0)
        for n, grad in enumerate(input_grads):
            grad[t] = stored["grad_input", n]
    states = [torch.stack(steps) for steps in zip(*history[1:], strict=True)]
    return states, [
        torch.stack(projection_grads),
        weight_grad,
        bias_grad,
        *state_grads,
        *parameter_grads,
        *input_grads,
    ]


def by_kernels(cell: Cell, run: Run, grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the same as ``by_program``, from the ops."""
    program, data = Program.decode(cell.program), cell.program
    tensors = run.detached()
    states = range(program.states)
    width = tensors.bias.numel()
    identity, no_bias = torch.eye(width).to(tensors.bias), torch.zeros_like(tensors.bias)
    call = (
        [s[None] for s in tensors.states],
        [identity, tensors.weight, no_bias, tensors.bias],
        tensors.parameters,
        [x[None] for x in tensors.inputs],
    )
    everything = sum(1 << s for s in states[1:])
    output, *rest = torch.ops.rnn_ext.recurrence_forward(
        tensors.projection,
        *(*call, [], None, None),
        data,
        False,
        program.states,
        everything,
        program.saved,
    )
    sequences, saved = rest[program.states : 2 * program.states - 1], rest[2 * program.states - 1 :]
    for final, sequence in zip(rest, [output, *sequences], strict=False):
        torch.testing.assert_close(final[0], sequence[-1], rtol=0, atol=0, equal_nan=True)
    given = [True] + [False] * program.states + [True] * (program.states - 1)
    wanted = [True] * (1 + program.states)
    wanted += [False, True, False, True]
    wanted += [True] * (program.parameters + program.inputs)
    x, *results = torch.ops.rnn_ext.recurrence_backward(
        grads,
        given,
        tensors.projection,
        *(*call, []),
        output,
        sequences,
        saved,
        *(None, None),
        data,
        False,
        everything,
        wanted,
    )
    initial, (weight, bias, *others) = results[: program.states], results[program.states :]
    return [output, *sequences], [x, weight, bias, *(t[0] for t in (*initial, *others))]


def assert_program_equals_loop(
    cell: Cell, hidden_size: int = 7, steps: int = 5, batch: int = 3
) -> None:
    """Compares the program and the kernels with the function, states and gradients."""
    run = random_run(cell, steps, batch, hidden_size)
    expected = plain_loop(cell, run)
    grads = [torch.randn_like(x) for x in expected]
    differentiable = [(x, g) for x, g in zip(expected, grads, strict=True) if x.requires_grad]
    expected_grads = torch.autograd.grad(
        [x for x, _ in differentiable],
        run.tensors(),
        [g for _, g in differentiable],
        allow_unused=True,
        materialize_grads=True,
    )
    # Float64 with other roundings: about 50 of 1e-16 a step, five steps, each of which may double
    # an error or more.
    of_program, of_kernels = by_program(cell, run, grads), by_kernels(cell, run, grads)
    of_projection, *others = expected_grads
    # The kernels get the projection as a product by the identity, where NaN reaches a whole row.
    of_input = of_projection @ torch.eye(run.bias.numel(), dtype=torch.float64)
    for results, first in ((of_program, of_projection), (of_kernels, of_input)):
        wanted_results = (*expected, first, *others)
        for actual, wanted in zip((*results[0], *results[1]), wanted_results, strict=True):
            torch.testing.assert_close(
                actual, wanted.detach(), rtol=1e-10, atol=1e-10, equal_nan=True
            )


def _step_memory(program: Program, run: Run, t: int) -> dict[Operand, Tensor]:
    memory: dict[Operand, Tensor] = {("parameter", p): x for p, x in enumerate(run.parameters)}
    return memory | {("input", n): x[t] for n, x in enumerate(run.inputs)}


def accesses(instructions: Sequence[Instruction]) -> list[tuple[str, Operand]]:
    """The loads and stores of a program, in order."""
    return [
        (i.op, (OPERANDS[i.a], i.b) if i.op == "load" else (OPERANDS[i.b], i.c))
        for i in instructions
        if i.op in ("load", "store")
    ]


def check(program: Program) -> None:
    """Asserts what the kernels rely on."""
    gates, states = range(program.gates), range(program.states)
    yielded = range(len(program.products) - 1)
    passed = {("passed", k) for k in range(program.passed)}
    forward, backward = accesses(program.forward), accesses(program.backward)
    # Each once in a phase, and in place: a state is loaded before it is stored.
    for code, loaded, stored in (
        (program.forward, "state", "next_state"),
        (program.backward, "grad_next_state", "grad_state"),
    ):
        phases = phases_of(code)
        assert len(phases) == len(program.products)
        for phase, s in product(phases, states):
            steps = accesses(phase)
            assert len(set(steps)) == len(steps)
            if ("load", (loaded, s)) in steps and ("store", (stored, s)) in steps:
                load, store = (
                    steps.index(x) for x in (("load", (loaded, s)), ("store", (stored, s)))
                )
                assert load < store
    stores = {operand for op, operand in forward if op == "store"}
    expected = {("next_state", s) for s in states}
    expected |= {("saved", k) for k in range(program.saved)}
    expected |= {("yielded", k) for k in yielded}
    assert stores - passed == expected
    stores = {operand for op, operand in backward if op == "store" and operand[0] != "grad_state"}
    expected = {("grad_recurrent", g) for g in gates}
    expected |= {("grad_parameter", p) for p in range(program.parameters)}
    expected |= {("grad_input", n) for n in range(program.inputs)}
    if not program.merged:
        expected |= {("grad_projection", g) for g in gates}
    expected |= {("yielded", k) for k in yielded}
    assert stores - passed == expected
    # A product is in slot 0 until this is loaded.
    results = [("grad_next_state", 0), *(("grad_yielded", k) for k in reversed(yielded))]
    for phase, result in zip(phases_of(program.backward), results, strict=True):
        if ("load", result) in accesses(phase):
            assert accesses(phase[:1]) == [("load", result)]
    for instructions, slots in (
        (program.forward, program.forward_slots),
        (program.backward, program.backward_slots),
    ):
        assert all(max(i.dst, *_slots_read(i)) < slots for i in instructions)


def phases_of(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """A program's instructions, cut at the products."""
    phases: list[list[Instruction]] = [[]]
    for i in code:
        if i.op == "product":
            phases.append([])
        else:
            phases[-1].append(i)
    return phases


def _slots_read(i: Instruction) -> tuple[int, ...]:
    return {"load": (0,), "store": (i.a,)}.get(i.op, (i.a, i.b, i.c))


def as_argument(states: Sequence[Tensor]) -> Any:
    """Returns the states of a layer as its `hx`."""
    return None if not states else states[0] if len(states) == 1 else tuple(states)
