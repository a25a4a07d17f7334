"""Calls of layers of any cell: drawn, printed in one line, run by rnn_ext and by a plain loop."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext
from rnn_ext import Cell, cells
from support import ISA_LEVELS, PLANS, flat
from support.cases import base_shape, viewed
from support.programs import as_argument

Function = Callable[..., Any]


@rnn_ext.cell
def relu(u: Tensor, v: Tensor, y: Tensor) -> Tensor:
    return torch.relu(u + v)


CELLS: dict[str, Cell] = {
    "relu": relu,
    **{name: c for name in cells.__all__ if isinstance(c := getattr(cells, name), Cell)},
}
# A spiking cell's result jumps; where it does, torch and the plain loop have no derivatives either.
SMOOTH = [name for name in CELLS if name not in ("lif", "alif")]
# By torch's names, with the cell that each runs.
KIND_OF = {"elman": "RNN", "relu": "RNN", "gru": "GRU", "lstm": "LSTM"}
TRANSFORMS = ("none", "backward", "second", "jvp", "vmap", "per-sample gradient")
LAYOUTS = ("contiguous", "transposed", "strided", "sliced", "expanded")


@dataclass(frozen=True)
class LayerCall:
    """A call of a layer.

    Args:
        by: "module" (`rnn_ext.RNN`, …), "functional", "Recurrent", or "steps": the module or
            `RecurrentCell` of one step, in a loop.
        cell: a name of `CELLS`.
        lengths: of the sequences, if they are packed.
        reset: None, "zeros", "states", or "states of each step".
        transform: one of `TRANSFORMS`; "none" records no gradients.
    """

    by: str
    cell: str
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    lengths: tuple[int, ...] | None = None
    has_hx: bool = True
    reset: str | None = None
    dtype: torch.dtype = torch.float64
    input_layout: str = "contiguous"
    hx_layout: str = "contiguous"
    isa: str = ISA_LEVELS[-1]
    split: str | None = None
    transform: str = "backward"

    @property
    def definition(self) -> Cell:
        return CELLS[self.cell]

    @property
    def places(self) -> int:
        """Layers times directions."""
        return self.num_layers * (2 if self.bidirectional else 1)

    @property
    def states(self) -> int:
        return 1 + len(self.definition.states)

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape of time steps and batch."""
        return (sum(self.lengths),) if self.lengths else (self.steps, self.batch)

    @property
    def reset_states(self) -> int:
        return self.states if self.reset in ("states", "states of each step") else 0


@st.composite
def layer_calls(draw: st.DrawFn) -> LayerCall:
    """Valid calls, of small sizes."""
    by = draw(st.sampled_from(["module", "functional", "Recurrent", "steps"]))
    names = {"module": list(KIND_OF), "functional": ["elman", "relu"]}.get(by, list(CELLS))
    cell = draw(st.sampled_from(names))
    sizes = st.sampled_from([1, 2, 3, 5, 8, 17, 33])
    steps, batch = draw(st.sampled_from([1, 2, 3, 6])), draw(st.sampled_from([1, 2, 3, 9]))
    flags = st.booleans()
    lengths, reset = None, None
    is_layer = by != "steps"
    if is_layer and draw(flags):
        lengths = tuple(draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch)))
    elif by in ("module", "Recurrent"):
        kinds = [None, "zeros", "states", "states of each step"]
        reset = draw(st.sampled_from(kinds))
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    dtype = draw(st.sampled_from(dtypes if cell in SMOOTH and cell != "relu" else dtypes[:1]))
    is_exact = dtype == torch.float64 and cell in SMOOTH
    transform = draw(st.sampled_from(TRANSFORMS if is_exact else TRANSFORMS[:2]))
    # torch takes no dual number of a tensor whose elements share memory.
    layouts = st.sampled_from(LAYOUTS[:-1] if transform == "jvp" else LAYOUTS)
    return LayerCall(
        *(by, cell, steps, batch, draw(sizes), draw(sizes)),
        num_layers=draw(st.sampled_from([1, 2])) if is_layer else 1,
        bidirectional=is_layer and draw(flags),
        bias=draw(flags),
        batch_first=is_layer and lengths is None and draw(flags),
        lengths=lengths,
        has_hx=draw(flags),
        reset=reset,
        dtype=dtype,
        input_layout=draw(layouts),
        hx_layout=draw(layouts),
        isa=draw(st.sampled_from(ISA_LEVELS)),
        split=draw(st.sampled_from(PLANS)),
        transform=transform,
    )


class Operands:
    """The tensors of a call, all drawn from its line.

    `tensors` are those that can have a gradient: input, initial states, reset states, the cell's
    parameters and inputs, the weights.
    """

    def __init__(self, call: LayerCall) -> None:
        self.call = call
        rng = torch.Generator().manual_seed(zlib.crc32(repr(call).encode()))
        h, cell, dtype = call.hidden_size, call.definition, call.dtype
        batch = call.batch

        def draw(*shape: int, layout: str = "contiguous", scale: float = 1) -> Tensor:
            base = torch.randn(base_shape(layout, shape), generator=rng, dtype=torch.float64)
            return viewed(layout, (scale * base).to(dtype), shape)

        x = draw(*call.rows, call.input_size, layout=call.input_layout)
        hx = [
            draw(call.places, batch, h, layout=call.hx_layout)
            for _ in range(call.states if call.has_hx else 0)
        ]
        steps = (call.steps,) if call.reset == "states of each step" else ()
        self.reset = None
        if call.reset is not None:
            self.reset = torch.rand(call.steps, batch, generator=rng) < 0.3
        resets = [draw(*steps, call.places, batch, h) for _ in range(call.reset_states)]
        parameters = [0.2 + 0.6 * draw(h).double().sigmoid().to(dtype) for _ in cell.parameters]
        inputs = [draw(*call.rows, h, scale=0.3) for _ in cell.inputs]
        weights = []
        for place in range(call.places):
            directions = 2 if call.bidirectional else 1
            features = call.input_size if place < directions else directions * h
            shapes: list[tuple[int, ...]] = [(cell.gates * h, features), (cell.gates * h, h)]
            shapes += [(cell.gates * h,)] * 2 if call.bias else []
            weights += [draw(*shape, scale=h**-0.5) for shape in shapes]
        self._counts = [1, len(hx), len(resets), len(parameters), len(inputs)]
        self._module = self._new_module(parameters)
        self.tensors = [x, *hx, *resets, *parameters, *inputs, *weights]
        self._packing: list[Any] = []
        if call.lengths is not None:
            padded = torch.zeros(max(call.lengths), len(call.lengths), 1)
            packed = pack_padded_sequence(padded, torch.tensor(call.lengths), enforce_sorted=False)
            _, *self._packing = packed

    def parts(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Input, initial states, reset states, parameters, inputs and weights, a list of each."""
        rest = list(tensors)
        parts = []
        for count in self._counts:
            parts.append(rest[:count])
            rest = rest[count:]
        return [*parts, rest]

    def ours(self) -> Function:
        """The call as a function of its tensors."""
        call = self.call
        run = {"functional": self._functional, "steps": self._steps}.get(call.by, self._layer)

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(run(*self.parts(tensors)))

        return function

    def _functional(
        self, xs: Any, hx: Any, resets: Any, parameters: Any, inputs: Any, weights: Any
    ) -> list[Tensor]:
        call = self.call
        batch_sizes, sorted_indices, unsorted_indices = self._packing or [None] * 3
        x = xs[0].transpose(0, 1) if call.batch_first else xs[0]
        start = hx[0] if hx else None
        if sorted_indices is not None and start is not None:
            start = start[:, sorted_indices]
        output, h_n = rnn_ext.functional.rnn(
            *(x, start, weights),
            nonlinearity="tanh" if call.cell == "elman" else "relu",
            num_layers=call.num_layers,
            bias=call.bias,
            batch_first=call.batch_first,
            bidirectional=call.bidirectional,
            batch_sizes=batch_sizes,
        )
        if unsorted_indices is not None:
            h_n = h_n[:, unsorted_indices]
        return [output.transpose(0, 1) if call.batch_first else output, h_n]

    def _layer(
        self, xs: Any, hx: Any, resets: Any, parameters: Any, inputs: Any, weights: Any
    ) -> list[Tensor]:
        call = self.call
        x, *inputs = [self._turned(t) for t in (*xs, *inputs)]
        options: dict[str, Any] = dict(zip(call.definition.inputs, inputs, strict=True))
        if call.by == "Recurrent":
            options["return_states"] = True
        if self.reset is not None:
            options["reset"] = self.reset.t() if call.batch_first else self.reset
            options["reset_state"] = as_argument(resets)
        given = self._named(parameters, weights)
        found = flat(torch.func.functional_call(self._module, given, (x, as_argument(hx)), options))
        if call.batch_first:
            finals = range(1, 1 + call.states)
            found = [t if i in finals else t.transpose(0, 1) for i, t in enumerate(found)]
        return found

    def _steps(
        self, xs: Any, hx: Any, resets: Any, parameters: Any, inputs: Any, weights: Any
    ) -> list[Tensor]:
        given = self._named(parameters, weights)
        state = as_argument([h[0] for h in hx])
        outputs = []
        for t in range(self.call.steps):
            pairs = zip(self.call.definition.inputs, inputs, strict=True)
            now = {name: x[t] for name, x in pairs}
            state = torch.func.functional_call(self._module, given, (xs[0][t], state), now)
            outputs.append(flat(state)[0])
        return [torch.stack(outputs), *(t.unsqueeze(0) for t in flat(state))]

    def _new_module(self, parameters: Sequence[Tensor]) -> torch.nn.Module:
        """The module of `call.by`, whose weights are given on each call."""
        call, is_step = self.call, self.call.by == "steps"
        sizes = (call.input_size, call.hidden_size)
        options: dict[str, Any] = {"bias": call.bias, "dtype": call.dtype}
        if not is_step:
            options["num_layers"] = call.num_layers
            options["batch_first"] = call.batch_first
            options["bidirectional"] = call.bidirectional
        module: torch.nn.Module
        if call.by == "module" or (is_step and call.cell in KIND_OF):
            kind = KIND_OF[call.cell]
            if kind == "RNN":
                options["nonlinearity"] = "tanh" if call.cell == "elman" else "relu"
            module = getattr(rnn_ext, f"{kind}Cell" if is_step else kind)(*sizes, **options)
        else:
            names = call.definition.parameters
            for name, value in zip(names, parameters, strict=True):
                options[name] = torch.nn.Parameter(value)
            make = rnn_ext.RecurrentCell if is_step else rnn_ext.Recurrent
            module = make(call.definition, *sizes, **options)
        return module

    def _named(self, parameters: Any, weights: Any) -> dict[str, Tensor]:
        """The module's parameters by name."""
        given = dict(zip(self.call.definition.parameters, parameters, strict=True))
        names = [name for name, _ in self._module.named_parameters() if name not in given]
        return given | dict(zip(names, weights, strict=True))

    def _turned(self, t: Tensor) -> Any:
        """A tensor of all rows as forward takes it."""
        if self._packing:
            return PackedSequence(t, *self._packing)
        return t.transpose(0, 1) if self.call.batch_first else t

    def loop(self) -> Function:
        """The same as a plain loop over time steps, in the dtype of the tensors."""
        has_states = self.call.by == "Recurrent"

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            output, finals, further = self._loop(*self.parts(tensors))
            return (output, *finals, *(further if has_states else []))

        return function

    def _loop(
        self, xs: Any, hx: Any, resets: Any, parameters: Any, inputs: Any, weights: Any
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        call = self.call
        per_place = 4 if call.bias else 2
        x, places = self._rows(xs[0]), range(call.places)
        inputs = [self._rows(t) for t in inputs]
        finals: list[list[Tensor]] = []
        sides: list[list[list[Tensor]]] = []
        for place in places:
            if place > 0 and (place % 2 == 0 or not call.bidirectional):
                x = [
                    torch.cat(parts, -1) for parts in zip(*(side[0] for side in sides), strict=True)
                ]
                sides = []
            group = weights[place * per_place : (place + 1) * per_place]
            reverse = call.bidirectional and place % 2 == 1
            history, last = self._direction(
                *(place, x, [h[place] for h in hx], resets, parameters, inputs, group, reverse)
            )
            sides.append(history)
            finals.append(last)
        output, *further = [
            self._joined([torch.cat(parts, -1) for parts in zip(*states, strict=True)])
            for states in zip(*sides, strict=True)
        ]
        return output, [torch.stack(states) for states in zip(*finals, strict=True)], further

    def _direction(
        self,
        place: int,
        xs: Sequence[Tensor],
        hx: Sequence[Tensor],
        resets: Sequence[Tensor],
        parameters: Sequence[Tensor],
        inputs: Sequence[Sequence[Tensor]],
        weights: Sequence[Tensor],
        reverse: bool,
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Each state at each step, (B, H), and the final states.

        A row of a packed sequence stands still beyond its end.
        """
        call, cell = self.call, self.call.definition
        w_ih, w_hh, *biases = weights
        h = call.hidden_size
        zeros = xs[0].new_zeros(call.batch, h)
        states = list(hx) or [zeros] * call.states
        history: list[list[Tensor]] = [[zeros] * len(xs) for _ in states]
        widths = [h * gates for gates in cell.products]
        blocks = w_hh.split(widths)
        constants = biases[1].split(widths) if biases else [None] * len(blocks)

        def multiply(k: int, y: Tensor) -> Sequence[Tensor]:
            product = y @ blocks[k].T
            return (product if constants[k] is None else product + constants[k]).split(h, -1)

        for t in reversed(range(len(xs))) if reverse else range(len(xs)):
            if self.reset is not None:
                given = [r[t, place] if r.dim() == 4 else r[place] for r in resets]
                given = given or [torch.zeros_like(s) for s in states]
                mask = self.reset[t].unsqueeze(-1)
                states = [torch.where(mask, r, s) for r, s in zip(given, states, strict=True)]
            u = xs[t] @ w_ih.T
            u = u + biases[0] if biases else u
            named = (*parameters, *(x[t] for x in inputs))
            result = cell.run(u.chunk(cell.gates, -1), multiply, states, named)
            new = [r.expand_as(zeros) for r in (result if cell.states else (result,))]
            if call.lengths is not None:
                runs = torch.tensor([t < length for length in call.lengths]).unsqueeze(-1)
                new = [torch.where(runs, n, s) for n, s in zip(new, states, strict=True)]
            states = new
            for values, state in zip(history, states, strict=True):
                values[t] = state
        return history, states

    def _rows(self, t: Tensor) -> list[Tensor]:
        """The steps of a tensor of all rows, (B, ·) each; zeros beyond the end of a sequence."""
        if not self._packing:
            return list(t.unbind(0))
        batch_sizes, _, unsorted_indices = self._packing
        batch = len(unsorted_indices)
        steps = []
        for rows in t.split(batch_sizes.tolist()):
            missing = rows.new_zeros(batch - rows.size(0), rows.size(1))
            steps.append(torch.cat([rows, missing])[unsorted_indices])
        return steps

    def _joined(self, steps: Sequence[Tensor]) -> Tensor:
        """The inverse of `_rows`."""
        if not self._packing:
            return torch.stack(list(steps))
        batch_sizes, sorted_indices, _ = self._packing
        pairs = zip(steps, batch_sizes.tolist(), strict=True)
        return torch.cat([rows[sorted_indices][:count] for rows, count in pairs])


def transformed(call: LayerCall, function: Function, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What the call's transform gives: results, then derivatives."""
    rng = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=rng, dtype=torch.float64).to(t.dtype)

    def loss(*tensors: Tensor) -> Tensor:
        products = [
            (r.sin() * torch.linspace(1, 2, r.numel()).view(r.shape).to(r)).sum()
            for r in function(*tensors)
        ]
        return torch.stack(products).sum()

    if call.transform == "none":
        with torch.no_grad():
            return list(function(*tensors))
    if call.transform == "jvp":
        tangents = tuple(like(t) for t in tensors)
        results, derivatives = torch.func.jvp(function, tuple(tensors), tangents)[:2]
        return [*results, *derivatives]
    if call.transform in ("vmap", "per-sample gradient"):
        is_batched = [bool(torch.rand((), generator=rng) < 0.6) for _ in tensors]
        is_batched[0] = True
        # The second sample has values of the same size: a ReLU layer with weights of a normal
        # distribution grows so fast that the sine in `loss` keeps few of its digits.
        copies = [
            torch.stack([t, -t.flip(-1)]) if batched else t
            for t, batched in zip(tensors, is_batched, strict=True)
        ]
        dims = tuple(0 if batched else None for batched in is_batched)
        if call.transform == "vmap":
            return list(torch.func.vmap(function, dims)(*copies))
        every = tuple(range(len(tensors)))
        return list(torch.func.vmap(torch.func.grad(loss, every), dims)(*copies))
    leaves = [t.detach().requires_grad_() for t in tensors]
    results = function(*leaves)
    upstream = [like(r) for r in results]
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    is_second = call.transform == "second"
    grads = torch.autograd.grad(results, leaves, upstream, create_graph=is_second, **options)
    found = [*results, *grads]
    if is_second:
        moved = [(g, like(g)) for g in grads if g.requires_grad]
        if moved:
            found += torch.autograd.grad(
                [g.sin() for g, _ in moved], leaves, [d for _, d in moved], **options
            )
    return [t.detach() for t in found]
