"""``Recurrent`` and ``RecurrentCell``: modules of a recurrence with any cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._core import node
from ._core.cells.cell import Cell
from ._core.recurrence import run_layers, run_step
from ._core.resets import as_states, read_reset
from ._core.torch_private import is_any_autocast_enabled, read_parameters

__all__ = ["Recurrent", "RecurrentCell"]

# The arguments of forward.
_RESERVED = ("input", "hx", "return_states", "reset", "reset_state")


class _Base(nn.Module):
    """The part of both modules that has the cell and its parameters."""

    cell: Cell
    input_size: int
    hidden_size: int
    bias: bool

    def _set_cell(self, cell: Cell, values: Mapping[str, Any], **factory: Any) -> None:
        """Sets the cell and the ``values`` of its parameters."""
        name = type(self).__name__
        if not isinstance(cell, Cell):
            raise TypeError(
                f"{name} needs a cell, a function decorated with rnn_ext.cell; got "
                f"{type(cell).__name__}"
            )
        _check_names(f"{name} of cell {cell.name!r}", cell.parameters, values)
        for taken in cell.inputs:
            if taken in _RESERVED:
                raise ValueError(f"cell {cell.name!r}: {name} cannot have an input named {taken!r}")
        self.cell = cell
        _ = cell.program  # raises an error if it cannot be a cell
        for operand in cell.parameters:
            value = values[operand]
            if hasattr(self, operand):
                raise ValueError(
                    f"cell {cell.name!r}: {name} cannot have a parameter named {operand!r}"
                )
            tensor = torch.as_tensor(value, **factory)
            if tensor.shape not in ((), (1,), (self.hidden_size,)):
                raise ValueError(
                    f"{operand} must be one value, or one for each of the {self.hidden_size} "
                    f"units, got shape {tuple(tensor.shape)}"
                )
            if isinstance(value, nn.Parameter):
                self.register_parameter(operand, value)
            else:
                self.register_buffer(operand, tensor)

    def _add_weights(self, like: Tensor, features: int, suffix: str = "") -> list[str]:
        """Registers the weights of one direction of a layer; returns their names."""
        rows = self.cell.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]]
        shapes = {"weight_ih": (rows, features), "weight_hh": (rows, self.hidden_size)}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, nn.Parameter(like.new_empty(shape)))
        return [name + suffix for name in shapes]

    def reset_parameters(self) -> None:
        """Draws the weights as ``nn.RNN`` does; the cell's parameters keep their values."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith(("weight_", "bias_")) and name not in self.cell.parameters:
                nn.init.uniform_(parameter, -bound, bound)

    def _per_unit(self) -> list[Tensor]:
        values = [getattr(self, name).expand(self.hidden_size) for name in self.cell.parameters]
        # AOTInductor cannot hand a constant number, expanded, to an op.
        return [t.clone() for t in values] if torch.compiler.is_compiling() else values

    def _read_hx(self, hx: Any, shape: tuple[int, ...]) -> list[Tensor]:
        """Returns the initial states in a list, each of ``shape``."""
        names = ("y", *self.cell.states)
        states = as_states("hx", hx, names)
        for name, state in zip(names, states, strict=True):
            if state.shape != shape:
                raise ValueError(f"hx: expected {name} of shape {shape}, got {tuple(state.shape)}")
        return states

    def _check_input(self, input: Tensor, dims: Sequence[int], weight: Tensor) -> None:
        name = type(self).__name__
        if input.dim() not in dims:
            expected = " or ".join(f"{d}-D" for d in dims)
            raise ValueError(f"{name}: expected input to be {expected}, got {input.dim()}-D")
        if input.size(-1) != self.input_size:
            raise ValueError(
                f"{name}: input has {input.size(-1)} features, expected {self.input_size}"
            )
        if input.dtype != weight.dtype and not is_any_autocast_enabled():
            raise ValueError(f"{name}: input is {input.dtype}, its weights are {weight.dtype}")

    def _describe(self, settings: str) -> str:
        return f"{self.cell.name}, {self.input_size}, {self.hidden_size}{settings}"


def _read_operand(
    name: str, value: Any, like: Tensor, shape: tuple[int, ...], copies: int = 0
) -> Tensor:
    """Returns an input of a cell, a tensor or a number, expanded to ``shape``.

    With ``copies`` the result has a first axis of that size, which ``value`` may have, too.
    """
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, dtype=like.dtype)
    full = (copies, *shape) if copies else shape
    try:
        return value.expand(full)
    except RuntimeError:
        expected = f"{shape} or {full}" if copies else f"{shape}"
        raise ValueError(
            f"{name} must broadcast to {expected}, got shape {tuple(value.shape)}"
        ) from None


def _check_names(what: str, expected: Sequence[str], given: Mapping[str, Any]) -> None:
    if len(given) == len(expected) and all(map(given.__contains__, expected)):
        return
    missing = [name for name in expected if name not in given]
    if missing:
        raise TypeError(f"{what} needs {', '.join(f'{name}=' for name in missing)}")
    unknown = [name for name in given if name not in expected]
    if unknown:
        known = ", ".join(expected) or "none"
        raise TypeError(f"{what} has no operand named {', '.join(unknown)}; it has: {known}")


def _unpack(input: Tensor | PackedSequence) -> tuple[PackedSequence | None, Tensor]:
    if isinstance(input, PackedSequence):
        return input, input.data
    return None, input


class Recurrent(_Base):
    r"""A multi-layer recurrence with a function as its cell, which runs a sequence in one call.

    With the cell f and its G gates, each layer computes, for each time step t,

    .. math::
        u_t = W_{ih} x_t + b_{ih}, \qquad v_t = W_{hh} y_{t-1} + b_{hh}, \qquad
        (y_t, s_t, \ldots) = f(u_t, v_t, y_{t-1}, s_{t-1}, \ldots)

    A cell that yields has further products with the other blocks of :math:`W_{hh}` in a step.

    Args:
        cell: a function decorated with :func:`rnn_ext.cell`, or one of :mod:`rnn_ext.cells`.
        input_size: number of features I of the input.
        hidden_size: number of units H.
        num_layers: number of stacked layers L. Default: 1
        bias: whether the layers have ``bias_ih`` and ``bias_hh``. Default: ``True``
        batch_first: whether sequences are ``(B, T, ·)`` rather than ``(T, B, ·)``; does not apply
            to hx and final states. Default: ``False``
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training mode. Default: 0
        bidirectional: whether every layer also runs from the last step to the first (D = 2).
            Default: ``False``
        device, dtype: of the parameters.
        parameters: the cell's parameters by name, one value, or one per unit ``(H,)``; the same in
            all layers. A :class:`torch.nn.Parameter` is registered as it is and gets gradients,
            anything else becomes a buffer.

    Inputs: input, hx, return_states, reset, reset_state, \**inputs
        * **input**: ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, ``(T, I)`` without a batch,
          or a :class:`~torch.nn.utils.rnn.PackedSequence`.
        * **hx**: the initial value of y and of each further state, ``(L·D, B, H)``, or
          ``(L·D, H)`` without a batch: a tensor for a cell without further states, else a tuple.
          Default: zeros
        * **return_states**: whether to return the last layer's further states at all steps.
          Default: ``False``
        * **reset**: bool, ``(T, B)``, ``(B, T)`` with ``batch_first``, or ``(T,)`` without a batch:
          where True, every state of that row is replaced before the step is computed, in all layers
          and, by each direction, before it processes that step; not with packed input.
          :doc:`resets` has a picture. Default: None
        * **reset_state**: the states that replace them, ``(L·D, B or 1, H)``, or
          ``(T, L·D, B or 1, H)`` for values of each step; without the axis of B if input has no
          batch. A tensor or a tuple, like hx; it gets gradients. Default: zeros
        * **inputs**: the cell's inputs by name. Each has the layout of input with H features, or
          broadcasts to it, and goes to every layer and direction; with one more axis in front, of
          L·D elements, each layer and direction has its own. For packed input: a PackedSequence, or
          a tensor that broadcasts to ``(N, H)``.

    Outputs: output, y_n, \*s_n, \*s
        * **output**: y of the last layer at all steps, shaped like input with ``D·H`` features.
        * **y_n** and one **s_n** for each further state: final values, ``(L·D, B, H)``.
        * **s**, with ``return_states``: one for each further state, shaped like output.

    Attributes:
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k]: the parameters of layer k, of
            shapes ``(G·H, I)`` (above the first layer ``(G·H, D·H)``), ``(G·H, H)``, ``(G·H,)``,
            ``(G·H,)``, gate after gate; those of the reverse direction end in ``_reverse``. All
            start from :math:`\mathcal{U}(-\sqrt{1/H}, \sqrt{1/H})`.

    Raises:
        rnn_ext.CellError: the function contains an operation that a cell cannot have.
        TypeError: an operand is missing or unknown.
        ValueError: a shape or dtype does not fit.

    .. note::
        float32, float64, bfloat16 and float16 on the CPU run on this package's kernels. Other
        devices and dtypes, and second derivatives, run as a loop of torch operations;
        :func:`rnn_ext.explain` says which path a call takes.

    .. note::
        Results are the same bits for every number of threads, and a batch row's result does not
        depend on the other rows, on padding or on packing.

    Example::

        >>> layer = rnn_ext.Recurrent(rnn_ext.cells.lstm, 10, 20, num_layers=2)
        >>> output, h_n, c_n = layer(torch.randn(5, 3, 10))
        >>> output.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        settings = (num_layers, "tanh", bias, batch_first, dropout, bidirectional)
        nn.RNN(input_size, hidden_size, *settings, device="meta")  # checks them
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        weight = torch.empty(0, device=device, dtype=dtype)
        self._set_cell(cell, parameters, device=weight.device, dtype=weight.dtype)
        self._weight_names: list[list[str]] = []
        for layer in range(num_layers):
            features = input_size if layer == 0 else self._directions * hidden_size
            names = self._add_weights(weight, features, f"_l{layer}")
            if bidirectional:
                names += self._add_weights(weight, features, f"_l{layer}_reverse")
            self._weight_names.append(names)
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, in the order of ``nn.RNN``."""
        size = 4 if self.bias else 2
        return [
            [getattr(self, name) for name in names[i : i + size]]
            for names in self._weight_names
            for i in range(0, len(names), size)
        ]

    def extra_repr(self) -> str:
        """Returns the arguments that differ from their defaults."""
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        given = {k: getattr(self, k) for k, v in defaults.items() if getattr(self, k) != v}
        return self._describe("".join(f", {name}={value}" for name, value in given.items()))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        return_states: bool = False,
        reset: Tensor | None = None,
        reset_state: Tensor | Sequence[Tensor] | None = None,
        **inputs: Any,
    ) -> tuple[Any, ...]:
        """Runs the layers; see the class for the shapes."""
        if not torch.compiler.is_compiling():
            found: tuple[Any, ...] | None = node.run_recurrent(
                *(self, self.cell, self._weight_names, input, hx, inputs),
                *(reset, reset_state, return_states),
            )
            if found is not None:
                return found
        _check_names(f"forward of cell {self.cell.name!r}", self.cell.inputs, inputs)
        packed, data = _unpack(input)
        has_batch = packed is not None or data.dim() == 3
        weights = [read_parameters(self, names) for names in self._weight_names]
        self._check_input(data, (2, 3) if packed is None else (2,), weights[0][0])
        operands = [self._read_input(name, inputs[name], input) for name in self.cell.inputs]
        if packed is None:
            data = self._time_major(data, has_batch)
            if data.size(0) == 0:
                raise ValueError("Recurrent: input has no time steps")
        states = self.num_layers * self._directions
        resets = read_reset(
            *(reset, reset_state, input, self.batch_first, ("y", *self.cell.states)),
            *(states, self.hidden_size),
        )
        batch = data.size(1) if packed is None else _packed_batch(packed, hx)
        initial: Sequence[Tensor] = []
        if hx is not None:
            shape = (states, batch, self.hidden_size)
            initial = self._read_hx(hx, shape if has_batch else (states, self.hidden_size))
            if not has_batch:
                initial = [state.unsqueeze(1) for state in initial]
            if packed is not None:
                initial = _reordered(initial, packed.sorted_indices)
        elif packed is not None:
            zeros = data.new_zeros(states, batch, self.hidden_size)
            initial = [zeros] * (1 + len(self.cell.states))
        batch_sizes = None if packed is None else packed.batch_sizes
        sequences, finals = run_layers(
            *(self.cell, data, initial, weights, self._per_unit(), operands, batch_sizes),
            *(self.bidirectional, return_states, self.dropout if self.training else 0.0, *resets),
        )
        results: Sequence[Any]
        if packed is not None:
            finals = _reordered(finals, packed.unsorted_indices)
            ordered = (packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
            results = [PackedSequence(t, *ordered) for t in sequences]
        elif has_batch:
            results = [t.transpose(0, 1) if self.batch_first else t for t in sequences]
        else:
            results = [t.squeeze(1) for t in sequences]
            finals = [t.squeeze(1) for t in finals]
        return results[0], *finals, *results[1:]

    def _time_major(self, t: Tensor, has_batch: bool) -> Tensor:
        """Returns ``(…, T, B, ·)`` from a tensor in the layout of the user's sequence."""
        if not has_batch:
            return t.unsqueeze(-2)
        return t.transpose(-3, -2) if self.batch_first else t

    def _read_input(self, name: str, value: Any, input: Tensor | PackedSequence) -> Tensor:
        """Returns an input of the cell as ``(L·D, T, B, H)``, or packed ``(L·D, N, H)``."""
        packed, data = _unpack(input)
        if isinstance(value, PackedSequence):
            if packed is None or not torch.equal(value.batch_sizes, packed.batch_sizes):
                raise ValueError(f"{name}: expected the batch_sizes of input")
            value = value.data
        shape = (*data.shape[:-1], self.hidden_size)
        value = _read_operand(name, value, data, shape, self.num_layers * self._directions)
        return value if packed is not None else self._time_major(value, data.dim() == 3)


def _packed_batch(packed: PackedSequence, hx: Tensor | Sequence[Tensor] | None) -> int:
    """Returns how many sequences there are, in a graph without reading their lengths."""
    if torch.compiler.is_compiling():
        if hx is not None:
            return (hx if isinstance(hx, Tensor) else hx[0]).size(-2)  # the op compares them
        if packed.sorted_indices is not None:
            return packed.sorted_indices.size(0)
    return int(packed.batch_sizes[0])


def _reordered(states: Sequence[Tensor], indices: Tensor | None) -> Sequence[Tensor]:
    """Returns states ``(L·D, B, H)`` with their batch rows in another order."""
    return states if indices is None else [t.index_select(1, indices) for t in states]


class RecurrentCell(_Base):
    r"""One step of a recurrence with a function as its cell, like :class:`torch.nn.RNNCell`.

    Args:
        cell: a function decorated with :func:`rnn_ext.cell`, or one of :mod:`rnn_ext.cells`.
        input_size: number of features I of the input.
        hidden_size: number of units H.
        bias: whether the module has ``bias_ih`` and ``bias_hh``. Default: ``True``
        device, dtype: of the parameters.
        parameters: as in :class:`Recurrent`.

    Inputs: input, hx, \**inputs
        * **input**: ``(B, I)``, or ``(I,)`` without a batch.
        * **hx**: y and each further state, ``(B, H)``, or ``(H,)`` without a batch: a tensor for a
          cell without further states, else a tuple. Default: zeros
        * **inputs**: the cell's inputs by name; each broadcasts to ``(B, H)``, or ``(H,)``.

    There is no ``reset``: to reset rows, pass ``torch.where(done.unsqueeze(-1), 0.0, y)`` instead
    of each state.

    Output:
        The next y, or a tuple of y and the further states, shaped like hx.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: of shapes ``(G·H, I)``, ``(G·H, H)``, ``(G·H,)``,
            ``(G·H,)``; all start from :math:`\mathcal{U}(-\sqrt{1/H}, \sqrt{1/H})`.

    Raises:
        rnn_ext.CellError, TypeError, ValueError: as :class:`Recurrent` does.

    Example::

        >>> step = rnn_ext.RecurrentCell(rnn_ext.cells.leaky_rate, 10, 20, alpha=0.1)
        >>> y = step(torch.randn(3, 10), noise=0.0)
        >>> y.shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        nn.RNN(input_size, hidden_size, bias=bias, device="meta")  # checks them
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        weight = torch.empty(0, device=device, dtype=dtype)
        self._set_cell(cell, parameters, device=weight.device, dtype=weight.dtype)
        self._weight_names = self._add_weights(weight, input_size)
        if not bias:
            self.register_parameter("bias_ih", None)
            self.register_parameter("bias_hh", None)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Returns the arguments that differ from their defaults."""
        return self._describe("" if self.bias else ", bias=False")

    def forward(
        self, input: Tensor, hx: Tensor | Sequence[Tensor] | None = None, **inputs: Any
    ) -> Any:
        """Returns the next state or states; see the class for the shapes."""
        if not torch.compiler.is_compiling():
            result = node.run_step(self, self.cell, input, hx, inputs)
            if result is not None:
                return result
        _check_names(f"forward of cell {self.cell.name!r}", self.cell.inputs, inputs)
        weights = read_parameters(self, self._weight_names)
        self._check_input(input, (1, 2), weights[0])
        shape = (*input.shape[:-1], self.hidden_size)
        initial = [] if hx is None else self._read_hx(hx, shape)
        operands = [_read_operand(name, inputs[name], input, shape) for name in self.cell.inputs]
        states = run_step(self.cell, input, initial, weights, self._per_unit(), operands)
        return states[0] if len(states) == 1 else tuple(states)
