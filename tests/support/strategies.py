"""Hypothesis strategies for constructors' arguments and calls, valid and invalid."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from support.calls import Call, Data

__all__ = ["cell_arguments", "cell_calls", "constructions", "layer_arguments", "layer_calls"]

Change = Callable[[st.DrawFn, Call], Call]

# Around the widths of tiles and panels, and small, so that an example takes milliseconds.
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 15, 17, 33])
STEPS = st.sampled_from([1, 2, 3, 4, 5, 9])
BATCHES = st.sampled_from([1, 2, 3, 7, 17, 0])
DTYPES = st.sampled_from(
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128]
)
LAYOUTS = st.sampled_from(["contiguous", "transposed", "strided", "sliced", "expanded"])
SPECIAL = st.sampled_from(["nan", "inf", "-inf", "zeros", "denormal"])
WEIGHTS = st.integers(0, 11)  # taken modulo their number
FLAGS = st.booleans()

OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "num_layers": st.sampled_from([1, 2, 3]),
    "nonlinearity": st.sampled_from(["tanh", "relu"]),
    "bias": FLAGS,
    "batch_first": FLAGS,
    "dropout": st.sampled_from([0.0, 0.5, 1.0]),
    "bidirectional": FLAGS,
}
# Values for a module's attributes, which may contradict its weights.
ATTRIBUTES = OPTIONS | {
    "input_size": SIZES,
    "hidden_size": SIZES,
    "mode": st.sampled_from(["RNN_TANH", "RNN_RELU", "GRU", "LSTM"]),
    "proj_size": st.sampled_from([0, 1]),
    "training": st.sampled_from([True, 0, None]),
}


def layer_calls(kind: str, attributes_change: bool) -> st.SearchStrategy[Call]:
    """Calls of a layer: valid ones, often with a mistake or special numbers.

    Packings are valid: a PackedSequence is not meant to be made by hand.
    """
    partly = [("output",), ("h_n",), ("h_n", "c_n")]
    return _calls(_layer_shapes(kind), attributes_change, partly)


def cell_calls(kind: str) -> st.SearchStrategy[Call]:
    """Calls of a cell, like `layer_calls`."""
    # No gradient arrives at c alone. Ours would multiply the zero gradient of h with values
    # that may be infinite, which gives NaN; torch would not.
    return _calls(_cell_shapes(kind), True, [("output",)])


def _of_kind(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that this kind of layer has."""
    return {name: o for name, o in options.items() if name != "nonlinearity" or kind == "RNN"}


@st.composite
def _layer_shapes(draw: st.DrawFn, kind: str) -> Call:
    input_size, hidden_size, steps = draw(SIZES), draw(SIZES), draw(STEPS)
    kwargs = draw(st.fixed_dictionaries({}, optional=_of_kind(kind, OPTIONS)))
    form = draw(st.sampled_from(["batched", "unbatched", "packed"]))
    batch: tuple[int, ...] = () if form == "unbatched" else (draw(BATCHES),)
    lengths = None
    lead: tuple[int, ...]
    if form == "packed":
        lengths = tuple(draw(st.lists(STEPS, min_size=1, max_size=5)))
        lead, batch = (sum(lengths),), (len(lengths),)
    else:
        lead = (*batch, steps) if kwargs.get("batch_first") else (steps, *batch)
    states = kwargs.get("num_layers", 1) * (2 if kwargs.get("bidirectional") else 1)
    hx = Data((states, *batch, hidden_size))
    return Call(
        args=(input_size, hidden_size),
        kwargs=kwargs,
        input=Data((*lead, input_size)),
        hx=hx,
        cx=hx if kind == "LSTM" else None,
        lengths=lengths,
    )


@st.composite
def _cell_shapes(draw: st.DrawFn, kind: str) -> Call:
    input_size, hidden_size = draw(SIZES), draw(SIZES)
    batch = draw(st.just(()) | st.tuples(BATCHES))
    options = {name: OPTIONS[name] for name in ("nonlinearity", "bias")}
    hx = Data((*batch, hidden_size))
    return Call(
        args=(input_size, hidden_size),
        kwargs=draw(st.fixed_dictionaries({}, optional=_of_kind(kind, options))),
        input=Data((*batch, input_size)),
        hx=hx,
        cx=hx if kind == "LSTM" else None,
    )


@st.composite
def _calls(
    draw: st.DrawFn,
    shapes: st.SearchStrategy[Call],
    attributes_change: bool,
    partly: list[tuple[str, ...]],
) -> Call:
    """Calls of these shapes, with all else drawn, and up to two changes made to it.

    Gradients arrive at all results, or at one of the sets of `partly`.
    """
    call = draw(shapes)
    place: dict[str, Any] = {
        "dtype": draw(DTYPES),
        "device": draw(st.sampled_from(["cpu"] * 9 + ["meta"])),
    }

    def detailed(data: Data) -> Data:
        layout = draw(LAYOUTS) if len(data.shape) > 1 else "contiguous"
        return replace(data, layout=layout, needs_grad=draw(FLAGS), **place)

    has_hx = draw(FLAGS)
    call = replace(
        call,
        kwargs=call.kwargs | place,
        input=detailed(call.input),
        hx=detailed(call.hx) if call.hx is not None and has_hx else None,
        cx=detailed(call.cx) if call.cx is not None and has_hx else None,
        attributes=draw(st.sampled_from([{}, {"training": False}])),
        frozen=tuple(draw(st.lists(WEIGHTS, max_size=3))),
        mode=draw(st.sampled_from(["grad"] * 8 + ["no_grad", "inference"])),
        upstream=draw(st.sampled_from([("output", "h_n", "c_n"), *partly])),
    )
    changes = [_special_data, _special_weight, _mistaken_data, _mistaken_weight]
    changes += [_mistaken_attribute] if attributes_change else []
    for change in draw(st.lists(st.sampled_from(changes), max_size=2)):
        call = change(draw, call)
    return call


def _special_data(draw: st.DrawFn, call: Call) -> Call:
    name = _input_or_hx(draw, call)
    return _with(call, name, replace(getattr(call, name), content=draw(SPECIAL)))


def _special_weight(draw: st.DrawFn, call: Call) -> Call:
    how = draw(SPECIAL | st.just("transposed"))
    return replace(call, weights=call.weights | {draw(WEIGHTS): how})


def _mistaken_data(draw: st.DrawFn, call: Call) -> Call:
    name = _input_or_hx(draw, call)
    data: Data = getattr(call, name)
    what = draw(st.sampled_from(["shape", "dtype", "device"]))
    if what == "shape":
        shape = list(data.shape)
        at = draw(st.integers(0, len(shape)))
        shape[at : at + 1] = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=2))
        data = replace(data, shape=tuple(shape), layout="contiguous")
    elif what == "dtype":
        dtype = draw(DTYPES | st.sampled_from([torch.int64, torch.bool]))
        differentiable = dtype.is_floating_point or dtype.is_complex
        data = replace(data, dtype=dtype, needs_grad=data.needs_grad and differentiable)
    else:
        data = replace(data, device="meta" if data.device == "cpu" else "cpu")
    return _with(call, name, data)


def _mistaken_weight(draw: st.DrawFn, call: Call) -> Call:
    how = draw(st.sampled_from(["wider", "complex", "meta", "none"]))
    return replace(call, weights=call.weights | {draw(WEIGHTS): how})


def _mistaken_attribute(draw: st.DrawFn, call: Call) -> Call:
    name = draw(st.sampled_from(sorted(ATTRIBUTES)))
    return replace(call, attributes=call.attributes | {name: draw(ATTRIBUTES[name])})


def _with(call: Call, name: str, data: Data) -> Call:
    return replace(call, input=data) if name == "input" else replace(call, hx=data)


def _input_or_hx(draw: st.DrawFn, call: Call) -> str:
    names = [n for n in ("input", "hx", "cx") if getattr(call, n) is not None]
    return draw(st.sampled_from(names))


@st.composite
def constructions(
    draw: st.DrawFn, arguments: dict[str, st.SearchStrategy[Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a constructor: some by position, some of the others by name."""
    names = list(arguments)
    count = draw(st.integers(0, len(names)))
    args = tuple(draw(arguments[name]) for name in names[:count])
    required = {name: arguments[name] for name in names[count:2]}
    optional = {name: arguments[name] for name in names[max(2, count) :]}
    kwargs = draw(st.fixed_dictionaries(required, optional=optional))
    # One missing, given twice, or unknown.
    mistake = draw(st.sampled_from([None] * 9 + [*names[:4], "unheard_of"]))
    if mistake in kwargs:
        del kwargs[mistake]
    elif mistake is not None:
        kwargs[mistake] = 1
    return args, kwargs


def _or_else(usual: st.SearchStrategy[Any], *mistakes: Any) -> st.SearchStrategy[Any]:
    """Mostly `usual`, so that of ten arguments few are mistaken."""
    return st.integers(0, 15).flatmap(lambda n: st.sampled_from(mistakes) if n == 7 else usual)


_ARGUMENTS = {
    "input_size": _or_else(SIZES, 0, -1, 2.0, None, "3", True),
    "hidden_size": _or_else(SIZES, 0, -1, 2.0, None, "3", True),
    "num_layers": _or_else(OPTIONS["num_layers"], 0, -1, 2.0, None, "3", True),
    "nonlinearity": _or_else(OPTIONS["nonlinearity"], "gelu", "Tanh", None, 1),
    "bias": _or_else(FLAGS, 1, 0, None, "yes"),
    "batch_first": _or_else(FLAGS, 1, 0, None, "yes"),
    "dropout": _or_else(OPTIONS["dropout"], 1, -0.1, 1.5, math.nan, True, None, "a", 1j),
    "bidirectional": _or_else(FLAGS, 1, 0, None, "yes"),
    "proj_size": _or_else(st.just(0), 1, -1, None),
    "device": _or_else(st.none(), "cpu", "meta", "nowhere", 1.5),
    "dtype": _or_else(st.none() | DTYPES, torch.int64, torch.bool, "float32"),
}


def layer_arguments(kind: str) -> dict[str, st.SearchStrategy[Any]]:
    """Arguments in the order of a layer's constructor.

    `proj_size` by name is an error, except to an LSTM.
    """
    return _of_kind(kind, _ARGUMENTS)


def cell_arguments(kind: str) -> dict[str, st.SearchStrategy[Any]]:
    """Arguments in the order of a cell's constructor."""
    names = ("input_size", "hidden_size", "bias", "nonlinearity", "device", "dtype")
    return _of_kind(kind, {name: _ARGUMENTS[name] for name in names})
