"""Measures errors against extended precision; prints the tables of numerics.md, draws numerics.png.

Weights, inputs and initial states have 8 significant bits, so they are the same numbers in every
dtype. The reference is a plain loop in numpy's 80-bit long double; for gradients and for cells
without a class in torch.nn, torch's float64.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import rnn_ext
from rnn_ext import Cell, cells

DOCS = Path(__file__).parent
BATCH, INPUT, HIDDEN = 2, 4, 32
LENGTHS = (100, 10_000)
RADII = (0.1, 0.5, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KINDS = ("tanh", "relu", "GRU", "LSTM")


def coarse(t: Tensor) -> Tensor:
    """`t` in float64 with 8 significant bits, and zeros where float16 would have fewer."""
    rounded = t.to(torch.bfloat16).double()
    return rounded.where(rounded.abs() >= 2**-16, 0.0)


def recurrent_weight(gates: int, radius: float) -> Tensor:
    """Each gate's part of W_hh has this spectral radius, up to the rounding."""
    blocks = torch.randn(gates, HIDDEN, HIDDEN, dtype=torch.float64)
    sizes = torch.linalg.eigvals(blocks).abs().amax(1)
    return coarse((blocks * (radius / sizes).view(-1, 1, 1)).flatten(0, 1))


def layer_of(library: Any, kind: str, dtype: torch.dtype) -> nn.Module:
    options = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
    name = "RNN" if options else kind
    module: nn.Module = getattr(library, name)(INPUT, HIDDEN, dtype=dtype, **options)
    return module


def drawn(kind: str, radius: float) -> list[Tensor]:
    """The four weights of a layer."""
    torch.manual_seed(0)
    layer = layer_of(nn, kind, torch.float64)
    weights = [coarse(p.detach()) for p in layer.parameters()]
    weights[1] = recurrent_weight(len(weights[1]) // HIDDEN, radius)
    return weights


def inputs_of(steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return coarse(torch.randn(steps, BATCH, INPUT, generator=generator, dtype=torch.float64))


def exact_states(kind: str, weights: list[Tensor], x: Tensor) -> np.ndarray:
    """The states at all steps in long double."""
    w_ih, w_hh, b_ih, b_hh = (w.numpy().astype(np.longdouble) for w in weights)
    u = x.numpy().astype(np.longdouble) @ w_ih.T + b_ih
    h = c = np.zeros((BATCH, HIDDEN), np.longdouble)
    states = []
    for row in u:
        v = h @ w_hh.T + b_hh
        if kind == "tanh":
            h = np.tanh(row + v)
        elif kind == "relu":
            h = np.maximum(row + v, 0)
        elif kind == "GRU":
            (ur, uz, un), (vr, vz, vn) = np.split(row, 3, -1), np.split(v, 3, -1)
            r, z = sigmoid(ur + vr), sigmoid(uz + vz)
            h = (1 - z) * np.tanh(un + r * vn) + z * h
        else:
            i, f, g, o = np.split(row + v, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error over the largest value; NaN if either is not finite."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def with_weights(layer: nn.Module, weights: list[Tensor]) -> nn.Module:
    with torch.no_grad():
        for parameter, weight in zip(layer.parameters(), weights, strict=True):
            parameter.copy_(weight)
    return layer


def measure(kind: str, radius: float) -> dict[tuple[torch.dtype, str, int], float]:
    """Errors of the states by dtype, library and length."""
    weights, x = drawn(kind, radius), inputs_of(max(LENGTHS))
    errors = {}
    with np.errstate(all="ignore"):
        exact = exact_states(kind, weights, x)
        for dtype in DTYPES:
            for name, library in (("rnn_ext", rnn_ext), ("torch", nn)):
                layer = with_weights(layer_of(library, kind, dtype), weights)
                with torch.no_grad():
                    found = layer(x.to(dtype))[0].double().numpy()
                for steps in LENGTHS:
                    errors[dtype, name, steps] = relative(found[:steps], exact[:steps])
    return errors


def gradient_errors(kind: str, radius: float, dtype: torch.dtype, steps: int = 100) -> list[float]:
    """Of the gradients of all weights, ours and torch's."""
    weights, x = drawn(kind, radius), inputs_of(steps)
    upstream = coarse(torch.randn(steps, BATCH, HIDDEN, dtype=torch.float64))

    def gradients(library: Any, dtype: torch.dtype) -> np.ndarray:
        layer = with_weights(layer_of(library, kind, dtype), weights)
        layer(x.to(dtype))[0].backward(upstream.to(dtype))
        grads = [p.grad.double().flatten() for p in layer.parameters() if p.grad is not None]
        return torch.cat(grads).numpy()

    exact = gradients(nn, torch.float64)
    return [relative(gradients(library, dtype), exact) for library in (rnn_ext, nn)]


def cell_errors(cell: Cell, dtype: torch.dtype, steps: int = 1000) -> list[float]:
    """Of the states: ours, and a loop of torch operations in the same dtype."""
    torch.manual_seed(0)
    values = {name: coarse(0.2 + 0.6 * torch.rand(HIDDEN)) for name in cell.parameters}
    x, noise = inputs_of(steps), coarse(0.1 * torch.randn(steps, BATCH, HIDDEN))
    shape = rnn_ext.Recurrent(cell, INPUT, HIDDEN, **values)
    weights = [coarse(p.detach()) for p in shape.parameters()]
    weights[1] = recurrent_weight(cell.gates, 1.0)

    def loop(dtype: torch.dtype) -> np.ndarray:
        w_ih, w_hh, b_ih, b_hh = (w.to(dtype) for w in weights)
        sizes = [HIDDEN * gates for gates in cell.products]
        blocks = list(zip(w_hh.split(sizes), b_hh.split(sizes), strict=True))
        states = [torch.zeros(BATCH, HIDDEN, dtype=dtype)] * (1 + len(cell.states))
        history = []
        for t in range(steps):
            u = x[t].to(dtype) @ w_ih.T + b_ih
            named = [value.to(dtype) for value in values.values()]
            named += [noise[t].to(dtype)] * len(cell.inputs)
            found = cell.run(
                u.chunk(cell.gates, -1),
                lambda k, y: (y @ blocks[k][0].T + blocks[k][1]).split(HIDDEN, -1),
                states,
                named,
            )
            states = list(found) if cell.states else [found]
            history.append(states[0].double())
        return torch.stack(history).numpy()

    module = rnn_ext.Recurrent(cell, INPUT, HIDDEN, dtype=dtype, **values)
    with torch.no_grad():
        with_weights(module, weights)
        inputs = {name: noise.to(dtype) for name in cell.inputs}
        ours = module(x.to(dtype), **inputs)[0].double().numpy()
        exact = loop(torch.float64)
        return [relative(ours, exact), relative(loop(dtype), exact)]


def draw(errors: dict[str, dict[float, dict[tuple[torch.dtype, str, int], float]]]) -> Figure:
    figure = Figure((10, 8), layout="constrained")
    grid = figure.subplots(len(DTYPES), len(KINDS), sharex=True, sharey="row")
    for row, dtype in zip(grid, DTYPES, strict=True):
        for axes, kind in zip(row, KINDS, strict=True):
            for steps, color in zip(LENGTHS, ("tab:blue", "tab:orange"), strict=True):
                for name, style in (("rnn_ext", "-"), ("torch", ":")):
                    values = [errors[kind][r][dtype, name, steps] for r in RADII]
                    label = f"{name}, T = {steps}"
                    axes.semilogy(RADII, values, style, color=color, label=label, lw=2)
            axes.grid(alpha=0.3)
            if dtype is DTYPES[0]:
                axes.set_title(kind)
            if dtype is DTYPES[-1]:
                axes.set_xlabel("spectral radius of W_hh")
        row[0].set_ylabel(str(dtype).removeprefix("torch."))
    figure.supylabel("largest error / largest value")
    grid[0][0].legend(fontsize=7)
    return figure


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(x: float) -> str:
    return f"{x:.1e}" if np.isfinite(x) else "not finite"


if __name__ == "__main__":
    torch.set_num_threads(1)
    errors = {kind: {radius: measure(kind, radius) for radius in RADII} for kind in KINDS}
    draw(errors).savefig(DOCS / "numerics.png", dpi=100)
    libraries = ("rnn_ext", "torch")
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
    shown = [0.5, 1.0, 1.5, 3.0]
    rows = [
        [kind, names[dtype], *(
            " / ".join(number(errors[kind][r][dtype, name, 10_000]) for name in libraries)
            for r in shown
        )]
        for kind in KINDS for dtype in DTYPES
    ]  # fmt: skip
    print(table(["layer", "dtype", *(f"radius {r}" for r in shown)], rows))
    rows = [
        [kind, names[dtype], *(
            " / ".join(map(number, gradient_errors(kind, r, dtype))) for r in (0.5, 1.0, 1.5)
        )]
        for kind in KINDS for dtype in DTYPES[1:]
    ]  # fmt: skip
    print(table(["layer", "dtype", *(f"radius {r}" for r in (0.5, 1.0, 1.5))], rows))
    smooth = [c for n in cells.__all__ if isinstance(c := getattr(cells, n), Cell)]
    rows = [
        [c.name, *(" / ".join(map(number, cell_errors(c, dtype))) for dtype in DTYPES[1:])]
        for c in smooth if c.name not in ("lif", "alif")
    ]  # fmt: skip
    print(table(["cell", *(names[d] for d in DTYPES[1:])], rows))
