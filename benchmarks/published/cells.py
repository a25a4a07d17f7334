"""Recurrent cells from papers as ``rnn_ext.cell``; ``docs/published-cells.md`` links the papers.

In all of them, for each unit, u = W_ih x + b_ih and v = W_hh y + b_hh, a block of H rows for each
gate.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_ext import cell

Received = TypeVar("Received")
Result = TypeVar("Result")
Step = Generator[Tensor, Received, Result]
Gates = tuple[Tensor, ...]


# One product in a step ----------------------------------------------------------------------------


@cell(parameters=("epsilon",))
def antisymmetric(u: Tensor, v: Tensor, y: Tensor, *, epsilon: Tensor) -> Tensor:
    return y + epsilon * torch.tanh(u + v)


@cell(gates=2, parameters=("epsilon",))
def gated_antisymmetric(u: Gates, v: Gates, y: Tensor, *, epsilon: Tensor) -> Tensor:
    return y + epsilon * torch.sigmoid(u[0] + v[0]) * torch.tanh(u[1] + v[1])


@cell
def addition_subtraction_twin_gated(u: Tensor, v: Tensor, y: Tensor) -> Tensor:
    return torch.sigmoid(u + v) * u + torch.sigmoid(u - v) * y


@cell(gates=3, parameters=("w_a", "w_c", "b_a", "b_c"))
def bistable(
    u: Gates, v: Gates, y: Tensor, *, w_a: Tensor, w_c: Tensor, b_a: Tensor, b_c: Tensor
) -> Tensor:
    a = 1 + torch.tanh(u[0] + w_a * y + b_a)
    c = torch.sigmoid(u[1] + w_c * y + b_c)
    return c * y + (1 - c) * torch.tanh(u[2] + a * y)


@cell(gates=3)
def neuromodulated_bistable(u: Gates, v: Gates, y: Tensor) -> Tensor:
    a = 1 + torch.tanh(u[0] + v[0])
    c = torch.sigmoid(u[1] + v[1])
    return c * y + (1 - c) * torch.tanh(u[2] + a * y)


@cell(gates=3)
def chaos_free(u: Gates, v: Gates, y: Tensor) -> Tensor:
    theta, eta = torch.sigmoid(u[0] + v[0]), torch.sigmoid(u[1] + v[1])
    return theta * torch.tanh(y) + eta * torch.tanh(u[2])


@cell(parameters=("alpha", "beta"))
def fast(u: Tensor, v: Tensor, y: Tensor, *, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.sigmoid(alpha) * torch.tanh(u + v) + torch.sigmoid(beta) * y


@cell(parameters=("zeta", "nu", "b_z", "b_h"))
def fast_gated(
    u: Tensor, v: Tensor, y: Tensor, *, zeta: Tensor, nu: Tensor, b_z: Tensor, b_h: Tensor
) -> Tensor:
    z, h = torch.tanh(u + v + b_z), torch.tanh(u + v + b_h)
    return (torch.sigmoid(zeta) * (1 - z) + torch.sigmoid(nu)) * h + z * y


@cell(parameters=("w", "b"))
def independent(u: Tensor, v: Tensor, y: Tensor, *, w: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(u + w * y + b)


@cell(gates=4, states=("output",), inputs=("x",))
def intersection(
    u: Gates, v: Gates, y: Tensor, output: Tensor, *, x: Tensor
) -> tuple[Tensor, Tensor]:
    depth, h, g_out, g_y = (a + b for a, b in zip(u, v, strict=True))
    g_out, g_y = torch.sigmoid(g_out), torch.sigmoid(g_y)
    output = g_out * x + (1 - g_out) * torch.relu(depth)
    return g_y * y + (1 - g_y) * torch.tanh(h), output


@cell(gates=2, parameters=("beta",))
def just_another_network(u: Gates, v: Gates, y: Tensor, *, beta: Tensor) -> Tensor:
    s = u[0] + v[0]
    return torch.sigmoid(s) * y + (1 - torch.sigmoid(s - beta)) * torch.tanh(u[1] + v[1])


@cell(gates=2)
def light_recurrent_unit(u: Gates, v: Gates, y: Tensor) -> Tensor:
    f = torch.sigmoid(u[1] + v[1])
    return (1 - f) * y + f * torch.tanh(u[0])


@cell(gates=2)
def light_gru(u: Gates, v: Gates, y: Tensor) -> Tensor:
    z = torch.sigmoid(u[0] + v[0])
    return z * y + (1 - z) * torch.relu(u[1] + v[1])


@cell(gates=5, states=("c", "h"))
def memory_controlled_lstm(
    u: Gates, v: Gates, y: Tensor, c: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    f, i, o, control, g = (a + b for a, b in zip(u, v, strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(control) * torch.tanh(c), c, torch.sigmoid(o) * torch.tanh(c)


@cell(inputs=("latent",))
def minimal_rnn(u: Tensor, v: Tensor, y: Tensor, *, latent: Tensor) -> Tensor:
    gate = torch.sigmoid(u + v)
    return gate * y + (1 - gate) * latent


@cell(parameters=("update",))
def minion_2(u: Tensor, v: Tensor, y: Tensor, *, update: Tensor) -> Tensor:
    return update * y + (1 - update) * torch.tanh(u + v)


@cell(gates=8, states=("c",))
def architecture_search(u: Gates, v: Gates, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    g = [a + b for a, b in zip(u, v, strict=True)]
    first = torch.tanh(torch.sigmoid(g[0]) * torch.relu(g[1]))
    second = torch.tanh(torch.sigmoid(g[2]) + torch.relu(g[3]))
    third = torch.tanh(torch.tanh(g[4]) * torch.sigmoid(g[5]))
    fourth = torch.sigmoid(torch.tanh(g[6]) + torch.sigmoid(g[7]))
    c = torch.tanh(first + c) * second
    return torch.tanh(c * torch.tanh(third + fourth)), c


@cell(gates=3, states=("c",))
def original_lstm(u: Gates, v: Gates, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    c = c + torch.sigmoid(u[0] + v[0]) * torch.tanh(u[1] + v[1])
    return torch.sigmoid(u[2] + v[2]) * torch.tanh(c), c


@cell(gates=3, states=("c",))
def recurrent_additive(u: Gates, v: Gates, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    c = torch.sigmoid(u[1] + v[1]) * u[0] + torch.sigmoid(u[2] + v[2]) * c
    return torch.tanh(c), c


@cell
def simple_gated(u: Tensor, v: Tensor, y: Tensor) -> Tensor:
    f = torch.sigmoid(u + v)
    return torch.tanh((1 - f) * u + f * y)


@cell(gates=2)
def stackable(u: Gates, v: Gates, y: Tensor) -> Tensor:
    k = torch.sigmoid(u[1] + v[1])
    return torch.tanh((1 - k) * y + k * torch.tanh(u[0]))


@cell(gates=2)
def typed_rnn(u: Gates, v: Gates, y: Tensor) -> Tensor:
    f = torch.sigmoid(u[1])
    return f * y + (1 - f) * u[0]


@cell(gates=3)
def typed_gru(u: Gates, v: Gates, y: Tensor) -> Tensor:
    return torch.sigmoid(u[1]) * y + u[0] * torch.tanh(u[2])


@cell(gates=3, states=("c",))
def typed_lstm(u: Gates, v: Gates, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    f = torch.sigmoid(u[1])
    c = f * c + (1 - f) * u[0]
    return c * torch.tanh(u[2]), c


@cell(states=("z",), parameters=("w", "b", "step", "alpha"))
def undamped_oscillators(
    u: Tensor, v: Tensor, y: Tensor, z: Tensor, *, w: Tensor, b: Tensor, step: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor]:
    z = z - step * (torch.tanh(u + w * y + b) + alpha * y)
    return y + step * z, z


# More products in a step --------------------------------------------------------------------------


@cell(gates=(1, 1), states=("z",), parameters=("dt", "gamma", "epsilon"))
def coupled_oscillators(
    u: Gates, v: Tensor, y: Tensor, z: Tensor, *, dt: Tensor, gamma: Tensor, epsilon: Tensor
) -> Step[Tensor, tuple[Tensor, Tensor]]:
    w = yield z
    z = z + dt * (torch.tanh(u[0] + v + w) - gamma * y - epsilon * z)
    return y + dt * z, z


@cell(gates=(3, 1), states=("z",), parameters=("dt",))
def long_expressive_memory(
    u: Gates, v: Gates, y: Tensor, z: Tensor, *, dt: Tensor
) -> Step[Tensor, tuple[Tensor, Tensor]]:
    w = yield z
    step_y, step_z = dt * torch.sigmoid(u[0] + v[0]), dt * torch.sigmoid(u[1] + v[1])
    z = (1 - step_z) * z + step_z * torch.tanh(u[2] + v[2])
    return (1 - step_y) * y + step_y * torch.tanh(u[3] + w), z


@cell(gates=(1, 1), parameters=("update",))
def minion_1(u: Gates, v: Tensor, y: Tensor, *, update: Tensor) -> Step[Tensor, Tensor]:
    w = yield torch.sigmoid(u[0] + v) * y
    return update * y + (1 - update) * torch.tanh(u[1] + w)


@cell(gates=(1, 4), states=("c",))
def multiplicative_lstm(
    u: Gates, v: Tensor, y: Tensor, c: Tensor
) -> Step[Gates, tuple[Tensor, Tensor]]:
    w = yield u[0] * v
    i, f, g, o = (a + b for a, b in zip(u[1:], w, strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell(gates=(2, 1))
def mutant_1(u: Gates, v: Gates, y: Tensor) -> Step[Tensor, Tensor]:
    z = torch.sigmoid(u[0])
    w = yield torch.sigmoid(u[1] + v[1]) * y
    return torch.tanh(w + torch.tanh(u[2])) * z + y * (1 - z)


@cell(gates=(2, 1))
def mutant_2(u: Gates, v: Gates, y: Tensor) -> Step[Tensor, Tensor]:
    z = torch.sigmoid(u[0] + v[0])
    w = yield torch.sigmoid(u[1] + v[1]) * y
    return torch.tanh(u[2] + w) * z + y * (1 - z)


@cell(gates=(1, 1, 1))
def mutant_3(u: Gates, v: Tensor, y: Tensor) -> Step[Tensor, Tensor]:
    w = yield torch.tanh(y)
    z = torch.sigmoid(u[1] + w)
    w = yield torch.sigmoid(u[0] + v) * y
    return torch.tanh(u[2] + w) * z + y * (1 - z)


@cell(gates=(4, 1), states=("c",), parameters=("p_i", "p_f", "p_o"))
def residual_lstm(
    u: Gates, v: Gates, y: Tensor, c: Tensor, *, p_i: Tensor, p_f: Tensor, p_o: Tensor
) -> Step[Tensor, tuple[Tensor, Tensor]]:
    i, f, g, o = (a + b for a, b in zip(u[:4], v, strict=True))
    c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
    w = yield torch.tanh(c)
    return torch.sigmoid(o + p_o * c) * (w + u[4]), c


@cell(gates=(1, 2, 1), states=("c",), parameters=("alpha",))
def structurally_constrained(
    u: Gates, v: Tensor, y: Tensor, c: Tensor, *, alpha: Tensor
) -> Step[Any, tuple[Tensor, Tensor]]:
    c = (1 - alpha) * u[1] + alpha * c
    to_hidden, to_output = yield c
    w = yield torch.sigmoid(u[0] + v + to_hidden)
    return torch.tanh(w + to_output), c


@cell(gates=(1, 1))
def simple_gated_unit(u: Gates, v: Tensor, y: Tensor) -> Step[Tensor, Tensor]:
    w = yield u[1] * y
    z = F.hardsigmoid(u[0] + v)
    return (1 - z) * y + z * F.softplus(torch.tanh(w) * y)


@cell(gates=(1, 1, 1))
def deep_simple_gated_unit(u: Gates, v: Tensor, y: Tensor) -> Step[Tensor, Tensor]:
    w = yield u[1] * y
    w = yield torch.tanh(w) * y
    z = F.hardsigmoid(u[0] + v)
    return (1 - z) * y + z * torch.sigmoid(w)


@cell(gates=(3, 1), states=("delayed",))
def delayed_gru(
    u: Gates, v: Gates, y: Tensor, delayed: Tensor
) -> Step[Tensor, tuple[Tensor, Tensor]]:
    w = yield delayed
    n = torch.tanh(u[0] + v[0])
    g, a = torch.sigmoid(u[1] + v[1]), torch.sigmoid(u[2] + v[2])
    return (1 - g) * y + g * (n + a * torch.tanh(u[3] + w)), y


@cell(gates=(4, 3), states=("c", "to_i", "to_f"))
def working_memory_lstm(
    u: Gates, v: Gates, y: Tensor, c: Tensor, to_i: Tensor, to_f: Tensor
) -> Step[Gates, tuple[Tensor, Tensor, Tensor, Tensor]]:
    i, f, g, o = (a + b for a, b in zip(u[:4], v, strict=True))
    i, f = torch.sigmoid(i + torch.tanh(to_i)), torch.sigmoid(f + torch.tanh(to_f))
    c = f * c + i * torch.tanh(g)
    to_i, to_f, to_o = yield c
    return torch.sigmoid(o + torch.tanh(to_o)) * torch.tanh(c), c, to_i, to_f
