"""The operands of our cells, computed from the weights of torchrecurrent's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import rnn_ext
from rnn_ext import Cell, Recurrent

from . import cells

__all__ = ["PUBLISHED", "Published", "as_ours"]


Weights = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """The arguments of a call of ``Recurrent``: the four weights of its layer, and the operands."""

    input: Tensor
    weights: Weights
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    hx: tuple[Tensor, ...] | None = None


Convert = Callable[[Any, Tensor], Call]


@dataclass(frozen=True)
class Published:
    """A cell of torchrecurrent as ours.

    Attributes:
        cell: ours.
        convert: from a cell of torchrecurrent and the input to the call of ours.
        output: the state that torchrecurrent's layer returns.
    """

    cell: Cell
    convert: Convert
    output: str = "y"


def as_ours(entry: Published, theirs: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns a function that computes ``theirs(input)[0]`` with our layer and the same parameters.

    Args:
        entry: which cell.
        theirs: a layer of torchrecurrent of that cell.
    """
    module: Any = theirs
    first = entry.convert(
        module.cells[0], module.cells[0].weight_ih.new_zeros(1, 1, module.input_size)
    )
    sizes = first.weights[0].size(1), first.weights[1].size(1)
    layer = Recurrent(entry.cell, *sizes, device="meta", **first.parameters)
    names = [f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    states = entry.cell.states
    place = 0 if entry.output == "y" else 2 + len(states) + states.index(entry.output)

    def run(input: Tensor) -> Tensor:
        call = entry.convert(module.cells[0], input)
        values = {**dict(zip(names, call.weights, strict=True)), **call.parameters}
        keywords = {**call.inputs, "return_states": place > 0}
        output: Tensor = functional_call(layer, values, (call.input, call.hx), keywords)[place]
        return output

    return run


def _blocks(t: Tensor, layout: str, size: int) -> Tensor:
    """Returns the blocks of ``size`` rows that ``layout`` names, of zeros where it says ``-``."""
    blocks = t.split(size)
    return torch.cat([torch.zeros_like(blocks[0]) if c == "-" else blocks[int(c)] for c in layout])


def _weights(m: Any, ih: str, hh: str) -> Weights:
    """Returns the weights with the blocks of their input and of their recurrent side so laid out.

    A layout of ``-`` alone is that of a cell without recurrent weights.
    """
    size = m.hidden_size
    if hh == "-" * len(hh):
        like = m.weight_ih
        recurrent = like.new_zeros(len(hh) * size, size), like.new_zeros(len(hh) * size)
    else:
        recurrent = _blocks(m.weight_hh, hh, size), _blocks(m.bias_hh, hh, size)
    return _blocks(m.weight_ih, ih, size), recurrent[0], _blocks(m.bias_ih, ih, size), recurrent[1]


def _plain(ih: str = "0", hh: str = "0", *parameters: str) -> Convert:
    """The weights in another order; ``parameters`` have the same names in both."""
    return lambda m, x: Call(
        x, _weights(m, ih, hh), {name: getattr(m, name) for name in parameters}
    )


def _skew(m: Any, gates: int) -> Weights:
    """The antisymmetric weight for each gate; only the last has a recurrent bias."""
    skew = m.weight_hh - m.weight_hh.T - m.gamma * torch.eye(m.hidden_size).to(m.weight_hh)
    w_ih, b_ih = m.weight_ih, m.bias_ih
    bias = torch.cat([torch.zeros_like(m.bias_hh)] * (gates - 1) + [m.bias_hh])
    return w_ih, torch.cat([skew] * gates), b_ih, bias


def _antisymmetric(m: Any, x: Tensor) -> Call:
    return Call(x, _skew(m, 1), _numbers(m, "epsilon"))


def _gated_antisymmetric(m: Any, x: Tensor) -> Call:
    return Call(x, _skew(m, 2), _numbers(m, "epsilon"))


def _bistable(m: Any, x: Tensor) -> Call:
    (w_a, w_c), (b_a, b_c) = m.weight_hh.chunk(2), m.bias_hh.chunk(2)
    return Call(x, _weights(m, "012", "---"), {"w_a": w_a, "w_c": w_c, "b_a": b_a, "b_c": b_c})


def _fast_gated(m: Any, x: Tensor) -> Call:
    b_z, b_h = (m.bias_ih + m.bias_hh).chunk(2)
    zeros = torch.zeros_like(b_z)
    weights = m.weight_ih, m.weight_hh, zeros, zeros
    return Call(x, weights, {"zeta": m.zeta, "nu": m.nu, "b_z": b_z, "b_h": b_h})


def _independent(m: Any, x: Tensor) -> Call:
    return Call(x, _weights(m, "0", "-"), {"w": m.vector_u, "b": m.bias_hh})


def _intersection(m: Any, x: Tensor) -> Call:
    return Call(x, _weights(m, "0123", "0123"), inputs={"x": x})


def _minimal_rnn(m: Any, x: Tensor) -> Call:
    latent = torch.tanh(F.linear(x, m.weight_ih, m.bias_ih))
    weights = m.weight_mm, m.weight_hh, torch.zeros_like(m.bias_hh), m.bias_hh
    return Call(latent, weights, inputs={"latent": latent})


def _minion_2(m: Any, x: Tensor) -> Call:
    weights = m.weight_ih, m.reset_coefficient * m.weight_hh, m.bias_ih, m.bias_hh
    return Call(x, weights, {"update": m.weight_ih.new_tensor(m.update_coefficient)})


def _peephole(m: Any, x: Tensor) -> Call:
    parameters = dict(zip(("p_i", "p_f", "p_o"), m.weight_ph.chunk(3), strict=True))
    return Call(x, _weights(m, "0123", "0123"), parameters)


def _recurrent_additive(m: Any, x: Tensor) -> Call:
    size = m.hidden_size
    weight_hh, bias_ih, bias_hh = (
        _blocks(t, "-01", size) for t in (m.weight_hh, m.bias_ih, m.bias_hh)
    )
    return Call(x, (m.weight_ih, weight_hh, bias_ih, bias_hh))


def _with_previous_input(m: Any, x: Tensor) -> Call:
    """The input of the step before is part of the input."""
    _, w_hh, _, b_hh = _weights(m, "012", "---")
    previous = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    weight = torch.cat([m.weight_ih, m.weight_hh], 1)
    return Call(torch.cat([x, previous], -1), (weight, w_hh, m.bias_ih + m.bias_hh, b_hh))


def _joined(m: Any, ih: str, *recurrent: str) -> Weights:
    """The weights with those of all products one below the other, by the ends of their names."""
    size = m.hidden_size
    weights = [getattr(m, f"weight_{name}") for name in recurrent]
    biases = [
        getattr(m, f"bias_{name}", weight.new_zeros(weight.size(0)))
        for name, weight in zip(recurrent, weights, strict=True)
    ]
    w_ih, b_ih = _blocks(m.weight_ih, ih, size), _blocks(m.bias_ih, ih, size)
    return w_ih, torch.cat(weights), b_ih, torch.cat(biases)


def _numbers(m: Any, *names: str) -> dict[str, Tensor]:
    return {name: m.weight_ih.new_tensor(getattr(m, name)) for name in names}


def _coupled_oscillators(m: Any, x: Tensor) -> Call:
    return Call(x, _joined(m, "0-", "hh", "ch"), _numbers(m, "dt", "gamma", "epsilon"))


def _long_expressive_memory(m: Any, x: Tensor) -> Call:
    return Call(x, _joined(m, "0123", "hh", "ch"), _numbers(m, "dt"))


def _minion_1(m: Any, x: Tensor) -> Call:
    update = m.weight_ih.new_tensor(m.update_coefficient)
    return Call(x, _weights(m, "01", "01"), {"update": update})


def _multiplicative_lstm(m: Any, x: Tensor) -> Call:
    return Call(x, _joined(m, "01234", "hh", "mh"))


def _residual_lstm(m: Any, x: Tensor) -> Call:
    w_ih, w_hh, b_ih, b_hh = _joined(m, "0123", "hh", "proj")
    weights = torch.cat([w_ih, m.weight_res]), w_hh, F.pad(b_ih, (0, m.hidden_size)), b_hh
    return Call(x, weights, _peephole(m, x).parameters)


def _structurally_constrained(m: Any, x: Tensor) -> Call:
    w_ih, w_hh, b_ih, b_hh = _joined(m, "10--", "hh", "ch")
    w_hh, b_hh = (_blocks(t, "0231", m.hidden_size) for t in (w_hh, b_hh))
    return Call(x, (w_ih, w_hh, b_ih, b_hh), {"alpha": m.alpha})


def _deep_simple_gated_unit(m: Any, x: Tensor) -> Call:
    w_ih, w_hh, b_ih, b_hh = _joined(m, "10-", "hh", "ho")
    w_hh, b_hh = (_blocks(t, "102", m.hidden_size) for t in (w_hh, b_hh))
    return Call(x, (w_ih, w_hh, b_ih, b_hh))


def _working_memory_lstm(m: Any, x: Tensor) -> Call:
    shape = 1, x.size(1), m.hidden_size
    zeros = x.new_zeros(shape)
    # Before the first step the memory is zero, and its products are the biases.
    to_i, to_f, _ = (b.expand(shape) for b in m.bias_mh.chunk(3))
    return Call(x, _joined(m, "0123---", "hh", "mh"), hx=(zeros, zeros, to_i, to_f))


def _undamped_oscillators(m: Any, x: Tensor) -> Call:
    step = m.dt * torch.sigmoid(m.weight_ch)
    parameters = {"w": m.weight_hh, "b": m.bias_hh, "step": step, **_numbers(m, "alpha")}
    return Call(x, _weights(m, "0", "-"), parameters)


PUBLISHED = {
    "AntisymmetricRNN": Published(cells.antisymmetric, _antisymmetric),
    "GatedAntisymmetricRNN": Published(cells.gated_antisymmetric, _gated_antisymmetric),
    "ATR": Published(cells.addition_subtraction_twin_gated, _plain()),
    "BR": Published(cells.bistable, _bistable),
    "NBR": Published(cells.neuromodulated_bistable, _plain("012", "01-")),
    "CFN": Published(cells.chaos_free, _plain("012", "01-")),
    "coRNN": Published(cells.coupled_oscillators, _coupled_oscillators),
    "FastRNN": Published(cells.fast, _plain("0", "0", "alpha", "beta")),
    "FastGRNN": Published(cells.fast_gated, _fast_gated),
    "IndRNN": Published(cells.independent, _independent),
    "IntersectionRNN": Published(cells.intersection, _intersection, output="output"),
    "JANET": Published(cells.just_another_network, _plain("01", "01", "beta")),
    "LEM": Published(cells.long_expressive_memory, _long_expressive_memory),
    "LightRU": Published(cells.light_recurrent_unit, _plain("01", "-0")),
    "LiGRU": Published(cells.light_gru, _plain("01", "01")),
    "MCLSTM": Published(cells.memory_controlled_lstm, _plain("01234", "01234"), output="h"),
    "MGU": Published(rnn_ext.cells.minimal_gru, _plain("01", "01")),
    "MinimalRNN": Published(cells.minimal_rnn, _minimal_rnn),
    "MiRU1": Published(cells.minion_1, _minion_1),
    "MiRU2": Published(cells.minion_2, _minion_2),
    "MultiplicativeLSTM": Published(cells.multiplicative_lstm, _multiplicative_lstm),
    "MUT1": Published(cells.mutant_1, _plain("012", "-01")),
    "MUT2": Published(cells.mutant_2, _plain("012", "012")),
    "MUT3": Published(cells.mutant_3, _plain("102", "102")),
    "NAS": Published(cells.architecture_search, _plain("01234567", "01234567")),
    "OriginalLSTM": Published(cells.original_lstm, _plain("012", "012")),
    "PeepholeLSTM": Published(rnn_ext.cells.peephole_lstm, _peephole),
    "RAN": Published(cells.recurrent_additive, _recurrent_additive),
    "ResLSTM": Published(cells.residual_lstm, _residual_lstm),
    "SCRN": Published(cells.structurally_constrained, _structurally_constrained),
    "SGRN": Published(cells.simple_gated, _plain()),
    "SGU": Published(cells.simple_gated_unit, _plain("10", "10")),
    "DSGU": Published(cells.deep_simple_gated_unit, _deep_simple_gated_unit),
    "STAR": Published(cells.stackable, _plain("01", "-0")),
    "tauGRU": Published(cells.delayed_gru, _plain("0231", "0231")),
    "TRNN": Published(cells.typed_rnn, _plain("01", "--")),
    "TGRU": Published(cells.typed_gru, _with_previous_input),
    "TLSTM": Published(cells.typed_lstm, _with_previous_input),
    "UGRNN": Published(rnn_ext.cells.ugrnn, _plain("01", "01")),
    "UnICORNN": Published(cells.undamped_oscillators, _undamped_oscillators),
    "WMCLSTM": Published(cells.working_memory_lstm, _working_memory_lstm),
}
