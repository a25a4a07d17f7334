"""JAX: ``lax.scan`` under ``jit``; for training its ``vjp`` in the same compiled function."""

import os
from typing import Any

import torch

from rnn_ext.bench.workload import GRADIENT

from .runtimes import Prepared, Problem

__all__ = ["prepare"]

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def prepare(problem: Problem) -> Prepared:
    """Keeps weights as (inputs, outputs), since JAX programs write ``x @ w``."""
    # XLA reads the size of its thread pool from the environment when it is loaded.
    os.environ["NPROC"] = str(problem.threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    # Calls run faster on the caller's thread: the smallest takes 17 instead of 29 µs.
    jax.config.update("jax_cpu_enable_async_dispatch", False)

    sigmoid, tanh, split = jax.nn.sigmoid, jnp.tanh, jnp.split

    # (u, v, states) -> the next states, where u = W_ih x + b_ih and v = W_hh h + b_hh.
    def rnn(u: Any, v: Any, states: Any) -> Any:
        return (tanh(u + v),)

    def gru(u: Any, v: Any, states: Any) -> Any:
        (u_r, u_z, u_n), (v_r, v_z, v_n), (h,) = split(u, 3, -1), split(v, 3, -1), states
        n = tanh(u_n + sigmoid(u_r + v_r) * v_n)
        return (n + sigmoid(u_z + v_z) * (h - n),)

    def lstm(u: Any, v: Any, states: Any) -> Any:
        i, f, g, o = split(u + v, 4, -1)
        c = sigmoid(f) * states[1] + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    cell = {"RNN": rnn, "GRU": gru, "LSTM": lstm}[problem.case.kind]

    def forward(weights: Any, input: Any) -> Any:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        # Only a GRU multiplies the bias of the product.
        of_input, of_product = (bias_ih, bias_hh) if cell is gru else (bias_ih + bias_hh, 0)

        def step(states: Any, u: Any) -> Any:
            states = cell(u, states[0] @ weight_hh + of_product, states)
            return states, states[0]

        zeros = jnp.zeros((input.shape[1], weight_hh.shape[0]), input.dtype)
        start = (zeros,) * len(problem.states)
        states, output = jax.lax.scan(step, start, input @ weight_ih + of_input)
        return output, [state[None] for state in states]

    def training(weights: Any, input: Any, grad_output: Any) -> Any:
        output, backward, states = jax.vjp(forward, weights, input, has_aux=True)
        return output, states, backward(grad_output)

    weights = tuple(jnp.array(problem.array(name).T) for name in WEIGHTS)
    arguments = [weights, jnp.array(problem.array("input"))]
    if problem.mode == "training":
        arguments.append(jnp.array(problem.array("grad_output")))
    compiled = jax.jit(training if problem.mode == "training" else forward)

    def call() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    def results() -> dict[str, torch.Tensor]:
        output, states, *gradients = call()
        values = {"output": output, **dict(zip(problem.states, states, strict=True))}
        for of_weights, of_input in gradients:
            values[GRADIENT + "input"] = of_input
            for name, gradient in zip(WEIGHTS, of_weights, strict=True):
                values[GRADIENT + name] = gradient.T
        return {name: torch.tensor(jax.device_get(value)) for name, value in values.items()}

    return Prepared(call, results)
