"""Malformed arguments of the raw ops, drawn from random numbers; fuzz_ops.py makes the calls."""

import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rnn_ext import Cell
from rnn_ext.cells import alif, elman, gru, leaky_current, lstm

CELLS = [elman, leaky_current, gru, lstm, alif]
OPS = sorted(
    name.partition("::")[2]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("rnn_ext::")
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [0, 1, 2, 3, 5, 17, 33, 65]
# More than a block of a sum; rare, because to draw the weights takes longer than a call.
LARGE = 300
HUGE = [2**31, 2**32 + 1, 2**40, 2**60, 2**62, 2**63 - 1]
# Calls with more work than the first limit take too long; tensors with a number of values between
# the other two could be allocated.
MOST_WORK = 2**20
MOST_VALUES, IMPOSSIBLE_VALUES = 2**17, 2**46


def pick_size(rng: random.Random) -> int:
    kind = rng.randrange(32)
    return rng.choice(HUGE) if kind > 28 else LARGE if kind > 27 else rng.choice(SIZES)


@dataclass
class Layer:
    """Sizes of a well-formed call."""

    steps: int
    batch: int
    inputs: int
    hidden: int
    directions: int
    biases: bool
    dtype: torch.dtype
    batch_sizes: list[int] | None

    @classmethod
    def draw(cls, rng: random.Random, is_step: bool = False) -> "Layer":
        while True:
            steps, batch, inputs, hidden_size = (pick_size(rng) for _ in range(4))
            layer = cls(
                1 if is_step else steps,
                batch,
                inputs,
                hidden_size,
                directions=1 if is_step else rng.choice([1, 2]),
                biases=rng.random() < 0.5,
                dtype=rng.choice(DTYPES),
                batch_sizes=None,
            )
            rows, hidden = layer.steps * layer.batch, layer.directions * layer.hidden
            tensors = [rows * layer.inputs, rows * hidden, hidden * layer.inputs, hidden**2]
            is_small = max(tensors) <= MOST_VALUES
            if not (is_small or max(tensors) >= IMPOSSIBLE_VALUES):
                continue
            if is_small and rows * hidden * (layer.inputs + layer.hidden) > MOST_WORK:
                continue
            if not is_step and 0 < layer.steps * layer.batch < 2**12 and rng.random() < 0.4:
                sizes = sorted(rng.randint(1, layer.batch) for _ in range(layer.steps))[::-1]
                layer.batch_sizes, layer.batch = sizes, sizes[0]
            return layer

    def rows(self, features: int) -> Tensor:
        if self.batch_sizes is None:
            return self.tensor(self.steps, self.batch, features)
        return self.tensor(sum(self.batch_sizes), features)

    def tokens(self, vocab_size: int) -> Tensor:
        shape = self.rows(1).shape[:-1]
        if math.prod(shape) <= MOST_VALUES:
            return torch.randint(max(1, vocab_size), shape)
        return torch.zeros(1, dtype=torch.int64).expand(shape)

    def states(self) -> Tensor:
        return self.tensor(self.directions, self.batch, self.hidden)

    def weights(self) -> list[Tensor]:
        shapes: list[tuple[int, ...]] = [(self.hidden, self.inputs), (self.hidden, self.hidden)]
        shapes += [(self.hidden,)] * (2 if self.biases else 0)
        return [self.tensor(*shape) for shape in shapes * self.directions]

    def tensor(self, *shape: int) -> Tensor:
        if math.prod(shape) <= MOST_VALUES:
            return torch.randn(shape, dtype=self.dtype)
        last = shape[-1] if shape[-1] <= MOST_VALUES else 1
        return torch.zeros((*[1] * (len(shape) - 1), last), dtype=self.dtype).expand(shape)

    def flags(self, *shape: int) -> Tensor:
        if math.prod(shape) <= MOST_VALUES:
            return torch.rand(shape) < 0.3
        return torch.zeros([1] * len(shape), dtype=torch.bool).expand(shape)

    def settings(self, rng: random.Random) -> list[Any]:
        sizes = None if self.batch_sizes is None else torch.tensor(self.batch_sizes)
        return [sizes, rng.choice(["tanh", "relu"]), self.directions == 2]


def maybe(rng: random.Random, t: Tensor) -> Tensor | None:
    return t if rng.random() < 0.7 else None


def mask_of(rng: random.Random, length: int) -> list[bool]:
    return [rng.random() < 0.7 for _ in range(length)]


def forward(rng: random.Random) -> list[Any]:
    a = Layer.draw(rng)
    return [a.rows(a.inputs), maybe(rng, a.states()), a.weights(), *a.settings(rng)]


def pack(rng: random.Random) -> list[Any]:
    a = Layer.draw(rng)
    return [a.weights(), a.directions == 2]


def forward_packed(rng: random.Random) -> list[Any]:
    input, hx, weights, *settings = forward(rng)
    packed = torch.ops.rnn_ext._rnn_pack(weights, settings[-1])
    return [input, hx, weights, packed, *settings]


def backward(rng: random.Random) -> list[Any]:
    a = Layer.draw(rng)
    outputs, weights = a.directions * a.hidden, a.weights()
    return [
        *(maybe(rng, a.rows(outputs)), maybe(rng, a.states())),
        *(a.rows(a.inputs), maybe(rng, a.states()), weights, a.rows(outputs)),
        *(*a.settings(rng), mask_of(rng, 2 + len(weights))),
    ]


def cell_forward(rng: random.Random) -> list[Any]:
    a = Layer.draw(rng, is_step=True)
    x, hx = a.tensor(a.batch, a.inputs), maybe(rng, a.tensor(a.batch, a.hidden))
    return [x, hx, a.weights(), rng.choice(["tanh", "relu"])]


def cell_backward(rng: random.Random) -> list[Any]:
    a = Layer.draw(rng, is_step=True)
    weights, state = a.weights(), a.tensor(a.batch, a.hidden)
    return [
        *(state, a.tensor(a.batch, a.inputs), maybe(rng, state), weights, state),
        *(rng.choice(["tanh", "relu"]), mask_of(rng, 2 + len(weights))),
    ]


def tangent(rng: random.Random) -> list[Any]:
    a = Layer.draw(rng)
    outputs = a.directions * a.hidden
    matrices = [a.tensor(a.hidden, a.hidden) for _ in range(a.directions)]
    sizes, nonlinearity, _ = a.settings(rng)
    seed, output = a.rows(outputs), a.rows(outputs)
    reverse = rng.random() < 0.5
    return [seed, maybe(rng, a.states()), matrices, output, sizes, nonlinearity, reverse]


def generate(rng: random.Random) -> list[Any]:
    vocabulary, hidden, layers = rng.choice([1, 2, 40]), rng.choice([0, 1, 33, 300]), 2
    prompt = torch.randint(vocabulary, (rng.choice([1, 5]),))
    draws = torch.rand(rng.choice([1, 7]), dtype=torch.float64)
    square = torch.randn(hidden, hidden)
    return [
        *(prompt, draws, torch.randn(vocabulary, hidden), torch.randn(layers, 1, hidden)),
        *([square, square, square, torch.randn(hidden)], torch.randn(vocabulary, hidden)),
        *(torch.randn(vocabulary), rng.choice([0.0, 1.0, 0.01]), rng.choice([1, 3, 100])),
        *(rng.choice([-1, 0, 1]), rng.choice(["tanh", "relu"])),
    ]


def recurrence(rng: random.Random) -> tuple[Layer, Cell, list[Any], list[Any]]:
    """A layer, its cell, the operands in front of reset, and the settings from it on."""
    a, cell = Layer.draw(rng), rng.choice(CELLS)
    rows, columns = [(a.inputs,), (a.hidden,), (), ()], cell.gates * a.hidden
    weights = [a.tensor(columns, *shape) for shape in rows[: 4 if a.biases else 2]]
    x = a.rows(a.inputs)
    if rng.random() < 0.3:
        x, weights[0] = a.tokens(a.inputs), a.tensor(a.inputs, columns)
    steps = [sum(a.batch_sizes)] if a.batch_sizes else [a.steps, a.batch]
    operand = a.tensor(1, 1).expand(a.directions, *steps, a.hidden)
    operands = [
        *(x, [a.states() for _ in range(1 + len(cell.states))]),
        *(weights * a.directions, [a.tensor(a.hidden) for _ in cell.parameters]),
        [operand for _ in cell.inputs],
    ]
    sizes, _, bidirectional = a.settings(rng)
    reset, reset_states = None, []
    if sizes is None and rng.random() < 0.5:
        reset = a.flags(a.steps, a.batch)
        each: list[int] = rng.choice([[], [a.steps]])
        state = a.tensor(*each, a.directions, rng.choice([1, a.batch]), a.hidden)
        reset_states = [state] * rng.choice([0, 1 + len(cell.states)])
    return a, cell, [*operands, reset_states], [reset, sizes, cell.program, bidirectional]


def recurrence_forward(rng: random.Random) -> list[Any]:
    _, cell, operands, settings = recurrence(rng)
    states = 1 + len(cell.states)
    return [
        *operands,
        *settings,
        states,
        rng.choice([0, 1, 2, 7]),
        rng.choice([0, cell.kept_values]),
    ]


def recurrence_backward(rng: random.Random) -> list[Any]:
    a, cell, operands, settings = recurrence(rng)
    sequence, states = a.rows(a.directions * a.hidden), 1 + len(cell.states)
    given = mask_of(rng, 2 * states)
    kinds = [sequence, *[a.states()] * states, *[sequence] * (states - 1)]
    gradients = [kind for kind, is_given in zip(kinds, given, strict=True) if is_given]
    saved = cell.kept_values
    kept = cell.kept_states.bit_count()
    wanted = 1 + sum(len(part) for part in operands[1:])
    return [
        *(gradients, given, *operands, sequence, [sequence] * kept, [sequence] * saved),
        *(*settings, cell.kept_states, mask_of(rng, wanted)),
    ]


# Well-formed arguments of each op, with odd sizes.
MAKERS: dict[str, Callable[[random.Random], list[Any]]] = {
    "rnn_forward": forward,
    "_rnn_forward": forward,
    "_rnn_pack": pack,
    "_rnn_forward_packed": forward_packed,
    "rnn_backward": backward,
    "_rnn_backward": backward,
    "_cell_forward": cell_forward,
    "_cell_backward": cell_backward,
    "_rnn_tangent": tangent,
    "_rnn_generate": generate,
    "recurrence_forward": recurrence_forward,
    "recurrence_backward": recurrence_backward,
}

# Changes that do not copy the values, so they work for a tensor of any size.
VIEWS: list[Callable[[random.Random, Tensor], Any]] = [
    lambda rng, t: None,
    lambda rng, t: t.unsqueeze(rng.randint(0, t.dim())),
    lambda rng, t: t.select(0, 0),
    lambda rng, t: t[: rng.randint(0, 2)],
    lambda rng, t: t[..., : rng.randint(0, 2)],
    lambda rng, t: t.transpose(0, -1),
    lambda rng, t: t[:1].expand_as(t),
    lambda rng, t: t.as_strided(t.shape, [rng.choice([0, 1]) for _ in t.shape]),
    lambda rng, t: t.new_zeros([1] * t.dim()).expand([rng.choice(HUGE) for _ in t.shape]),
    lambda rng, t: t.new_zeros([1] * t.dim()).expand([rng.choice([*HUGE, n]) for n in t.shape]),
    lambda rng, t: torch._neg_view(t),
    lambda rng, t: t.detach().requires_grad_(),
    lambda rng, t: torch.tensor([rng.choice([-(2**63), -1, 0, 1, 2, *HUGE]) for _ in range(5)]),
    lambda rng, t: torch.tensor([2**62] * 4 + [t.shape[0]]),
]
COPIES: list[Callable[[random.Random, Tensor], Any]] = [
    lambda rng, t: t.to("meta"),
    lambda rng, t: t.to(rng.choice([*DTYPES, torch.int64, torch.int32, torch.bool])),
    lambda rng, t: t.to(torch.complex64),
    lambda rng, t: t.flatten(),
    lambda rng, t: t.sum() if t.is_floating_point() else t.min(),
    lambda rng, t: torch.cat([t, t], -1),
    lambda rng, t: torch.cat([t, t]),
    lambda rng, t: t.transpose(0, -1).contiguous().transpose(0, -1),
    lambda rng, t: torch.stack([t, t], -1)[..., 0],
    lambda rng, t: torch.cat([t, t[..., :1]], -1)[..., :-1],
    lambda rng, t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),  # not aligned
    lambda rng, t: t.new_ones(()).expand_as(t),
    lambda rng, t: t * torch.nan,
    lambda rng, t: t.to_sparse(),
]
LIST_DAMAGE: list[Callable[[random.Random, list[Any]], Any]] = [
    lambda rng, v: [],
    lambda rng, v: v[:-1],
    lambda rng, v: v * 2,
    lambda rng, v: v[::-1],
    lambda rng, v: None,
]
SCALARS: dict[type, list[Any]] = {
    bool: [True, False, None],
    int: [-(2**63), -1, 0, 1, 2**31, 2**63 - 1],
    float: [math.nan, math.inf, -1.0, 0.0, 1e-300],
    str: ["", "gelu", "tan", "tanhh", "relu\0", "ü" * 5000],
}


def damaged(rng: random.Random, value: Any) -> Any:
    """`value` with a change that the op may not expect."""
    if isinstance(value, Tensor):
        is_huge = max(value.shape, default=0) > MOST_VALUES or value.numel() > MOST_VALUES
        return rng.choice(VIEWS if is_huge else VIEWS + COPIES)(rng, value)
    if isinstance(value, list):
        if value and rng.random() < 0.6:
            at = rng.randrange(len(value))
            return [*value[:at], damaged(rng, value[at]), *value[at + 1 :]]
        return rng.choice(LIST_DAMAGE)(rng, value)
    return value if value is None else rng.choice(SCALARS[type(value)])


def well_formed(op: str, rng: random.Random) -> list[Any]:
    while True:
        # Torch refuses tensors of more than 2**63 values, and sizes above that.
        with contextlib.suppress(RuntimeError, TypeError):
            return MAKERS[op](rng)


def tensors_in(args: list[Any]) -> list[tuple[list[Any], int]]:
    """The place, a list and an index, of each tensor among arguments and in lists of them."""
    places = [(args, i) for i in range(len(args))]
    places += [(arg, i) for arg in args if isinstance(arg, list) for i in range(len(arg))]
    return [(values, i) for values, i in places if isinstance(values[i], Tensor)]


def alias(rng: random.Random, args: list[Any]) -> None:
    """Passes the memory of one tensor in two places of the same shape, if there are two."""
    places = tensors_in(args)
    rng.shuffle(places)
    for (values, i), (others, k) in pairwise(places):
        if values[i].shape == others[k].shape:
            values[i] = others[k].detach()  # it has one gradient
            return


def arguments(rng: random.Random) -> tuple[str, list[Any]]:
    """An op and its arguments."""
    torch.default_generator.manual_seed(rng.getrandbits(16))  # the function takes much longer
    op = rng.choice(OPS)
    args = well_formed(op, rng)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        at = rng.randrange(len(args))
        # Some tensors cannot be changed in some ways.
        with contextlib.suppress(RuntimeError, IndexError, TypeError):
            args[at] = damaged(rng, args[at])
    if rng.random() < 0.1:
        alias(rng, args)
    return op, args
