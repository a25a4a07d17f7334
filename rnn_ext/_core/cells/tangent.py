"""The tangent of a cell, as a cell: what forward-mode AD computes in each step.

With f the cell and d the tangent of a value, the tangent cell computes, elementwise::

    (dy_t, ds_t...) = f'(u_t, v_t, y_{t-1}, s_{t-1}...)(du_t, dv_t + w_t, dy_{t-1}, ds_{t-1}...)

``dv_t = W_hh dy_{t-1}`` is the product of the recurrence. All else is known before the first step:
the values of f's arguments, and ``w_t = dW_hh y_{t-1} + db_hh``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from .trace import Signature, gradients_of, unpack

__all__ = ["has_tangent", "tangent_function", "tangent_signature"]


def tangent_signature(signature: Signature) -> Signature:
    """Returns the arguments of the tangent of a cell.

    The parameters are the cell's and their tangents. The inputs are the cell's and their tangents,
    and, for each step, u and v of each gate, the states before it, and w of each gate.
    """

    def tangents(names: Sequence[str]) -> list[str]:
        return [f"tangent of {name}" for name in names]

    values = [f"{name} of gate {g}" for name in ("u", "v") for g in range(signature.gates)]
    values += [f"{name} before" for name in ("y", *signature.states)]
    values += [f"w of gate {g}" for g in range(signature.gates)]
    return Signature(
        signature.products,
        signature.states,
        (*signature.parameters, *tangents(signature.parameters)),
        (*signature.inputs, *tangents(signature.inputs), *values),
    )


def tangent_function(cell: Callable[..., Any], signature: Signature) -> Callable[..., Any]:
    """Returns the function of the tangent of ``cell``, which has the arguments ``signature``.

    It differentiates backward twice: the gradient is linear in the gradients of the results, and
    the transpose of that map is the tangent. So a ``torch.autograd.Function`` needs no ``jvp``.
    """
    gates, states = signature.gates, 1 + len(signature.states)
    parameters, inputs = len(signature.parameters), len(signature.inputs)
    counts = [parameters, parameters, inputs, inputs, gates, gates, states, gates]

    def steps(du: Any, dv: Any, *dstates: Tensor, **named: Tensor) -> Generator[Tensor, Any, Any]:
        ends = accumulate(counts, initial=0)
        values = list(named.values())
        p, dp, i, di, u, v, before, w = (values[a:b] for a, b in pairwise(ends))
        results, seeds, gradients = _pull(cell, signature, u, v, before, (*p, *i))
        known = list(unpack(dv))
        for phase in range(len(signature.products)):
            # No result of this phase depends on the later products.
            missing = [torch.zeros_like(w[0])] * (gates - len(known))
            dv_and_w = [a + b for a, b in zip([*known, *missing], w, strict=True)]
            directions = [*unpack(du), *dv_and_w, *dstates, *dp, *di]
            tangents = _push(results, seeds, gradients, directions)
            if phase + 1 < len(signature.products):
                known += unpack((yield tangents[phase]))
        tangents = tangents[len(signature.products) - 1 :]
        return tangents[0] if states == 1 else tuple(tangents)

    if len(signature.products) > 1:
        return steps

    def step(*args: Any, **named: Tensor) -> Any:
        try:
            next(steps(*args, **named))
        except StopIteration as end:
            return end.value

    return step


def has_tangent(cell: Callable[..., Any], signature: Signature) -> bool:
    """Whether the tangent of ``cell`` at a point is the transpose of its gradient.

    It is not if a ``torch.autograd.Function`` of the cell cannot be differentiated twice.
    """
    count = len(signature.operands())
    points = torch.linspace(0.2, 0.7, count, dtype=torch.float64, device="cpu").unbind()
    arguments = [point.clone().requires_grad_() for point in points]
    g, states = signature.gates, 1 + len(signature.states)
    u, v, others = arguments[:g], arguments[g : 2 * g], arguments[2 * g :]
    directions = torch.linspace(1, 2, count, dtype=torch.float64, device="cpu").unbind()
    results, seeds, gradients = _pull(cell, signature, u, v, others[:states], others[states:])
    tangents = _push(results, seeds, gradients, directions)
    forward = sum((t * s).item() for t, s in zip(tangents, seeds, strict=True))
    pairs = zip(gradients, directions, strict=True)
    backward = sum((g * d).item() for g, d in pairs if g is not None)
    return math.isclose(forward, backward, rel_tol=1e-9, abs_tol=1e-9)  # of float64 sums


def _pull(
    cell: Callable[..., Any],
    signature: Signature,
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    states: Sequence[Tensor],
    named: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor], Sequence[Tensor | None]]:
    """Returns what the cell yields and returns, gradients of these, and those of its arguments."""
    products = signature.split(v)
    yielded: list[Tensor] = []

    def multiply(k: int, x: Tensor) -> Sequence[Tensor]:
        if k > 0:
            yielded.append(x)
        return products[k]

    result = signature.run(cell, u, multiply, states, named)
    results = [*yielded, *unpack(result)]
    seeds = [torch.full_like(r, 0.5).requires_grad_() for r in results]
    gradients = gradients_of(results, [*u, *v, *states, *named], seeds, create_graph=True)
    return results, seeds, gradients


def _push(
    results: Sequence[Tensor],
    seeds: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    directions: Sequence[Tensor],
) -> list[Tensor]:
    """Returns the tangents of the results for ``directions``, those of the arguments."""
    pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g is not None]
    tangents = gradients_of([g for g, _ in pairs], seeds, [d for _, d in pairs], create_graph=True)
    return [torch.zeros_like(r) if t is None else t for r, t in zip(results, tangents, strict=True)]
