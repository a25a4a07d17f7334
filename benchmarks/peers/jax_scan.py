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

    def forward(weights: Any, input: Any) -> Any:
        weight_ih, weight_hh, bias_ih, bias_hh = weights

        def step(h: Any, projected: Any) -> Any:
            h = jnp.tanh(projected + h @ weight_hh)
            return h, h

        start = jnp.zeros((input.shape[1], weight_hh.shape[0]), input.dtype)
        h_n, output = jax.lax.scan(step, start, input @ weight_ih + (bias_ih + bias_hh))
        return output, h_n[None]

    def training(weights: Any, input: Any, grad_output: Any) -> Any:
        output, backward, h_n = jax.vjp(forward, weights, input, has_aux=True)
        return output, h_n, backward(grad_output)

    weights = tuple(jnp.array(problem.array(name).T) for name in WEIGHTS)
    arguments = [weights, jnp.array(problem.array("input"))]
    if problem.mode == "training":
        arguments.append(jnp.array(problem.array("grad_output")))
    compiled = jax.jit(training if problem.mode == "training" else forward)

    def call() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    def results() -> dict[str, torch.Tensor]:
        output, h_n, *gradients = call()
        values = {"output": output, "h_n": h_n}
        for of_weights, of_input in gradients:
            values[GRADIENT + "input"] = of_input
            for name, gradient in zip(WEIGHTS, of_weights, strict=True):
                values[GRADIENT + name] = gradient.T
        return {name: torch.tensor(jax.device_get(value)) for name, value in values.items()}

    return Prepared(call, results)
