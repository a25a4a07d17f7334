"""``replace_rnn`` and ``restore_rnn``: swap the RNNs of an existing model, and swap them back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import nn
from torch.jit import ScriptModule
from torch.nn.utils import parametrize

from ._core.kinds import trace_cells
from ._core.torch_private import (
    CHECKS_OF_FORWARD,
    compiled_wrapper_type,
    refresh_flat_weights,
)
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["replace_rnn", "restore_rnn"]

M = TypeVar("M", bound=nn.Module)
Classes = Mapping[type, type]

_OURS: Classes = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}
_THEIRS: Classes = {ours: theirs for theirs, ours in _OURS.items()}
_NAMES: Mapping[type, str] = {theirs: f"torch.nn.{theirs.__name__}" for theirs in _OURS} | {
    ours: f"rnn_ext.{ours.__name__}" for ours in _THEIRS
}

# Modules of torch that derive a new class from the class of a module and assign it.
_MAKERS = ("torch.nn.utils.parametrize", "torch.distributed.")

# The attributes in which torch keeps the parts of a module.
_OF_TORCH = frozenset(vars(nn.Module()))

_logger = logging.getLogger("rnn_ext")


def replace_rnn(model: M, *, report: bool = False) -> M:
    """Turns each RNN, GRU, LSTM and cell of ``torch.nn`` in a model into ours, in place.

    Only the class of these modules changes. The module objects and all references to them stay, and
    so do parameters, parametrizations, hooks, buffers and training mode; an existing optimizer
    trains them as before. ``isinstance(m, nn.LSTM)`` becomes False: a function that tests for
    ``nn.LSTM`` in ``model.apply(init)`` silently skips them. Apply it before the swap, or test for
    ``nn.RNNBase``, which is True before and after.

    These are not swapped: subclasses of torch's modules; modules with a ``forward``, or a method
    that it calls, replaced on the instance; TorchScript; modules inside a ``torch.compile``
    wrapper; modules in a plain list, tuple or dict, which torch does not count as parts of the
    model.

    Args:
        model: any module; it may be an RNN itself.
        report: print a line for each RNN, swapped or left with the reason, or a line that there is
            none. Otherwise the lines go to the logger ``"rnn_ext"``, at level INFO, or WARNING for
            modules that are left.

    Returns:
        ``model``, the same object.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

    Example::

        >>> model = rnn_ext.replace_rnn(nn.ModuleDict({"encoder": nn.RNN(10, 20)}), report=True)
        encoder: torch.nn.RNN is now rnn_ext.RNN
    """
    return _swap(model, _OURS, report)


def restore_rnn(model: M, *, report: bool = False) -> M:
    """Turns each RNN, GRU, LSTM and cell of this package in a model into torch's, in place.

    This is the inverse of :func:`replace_rnn`, with the same arguments, result and errors. It also
    swaps modules that were created as ours.
    """
    return _swap(model, _THEIRS, report)


def _swap(model: M, classes: Classes, report: bool) -> M:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    lines = list(_swap_each(model, classes))
    if not lines:
        *names, last = (_NAMES[cls] for cls in classes)
        lines = [
            (
                logging.INFO,
                f"{type(model).__name__}: there is no {', '.join(names)} or {last} in it",
            )
        ]
    for level, line in lines:
        if report:
            print(line)
        else:
            _logger.log(level, line)
    return model


def _swap_each(model: nn.Module, classes: Classes) -> Iterator[tuple[int, str]]:
    """Swaps the RNNs of a model; yields a logging level and a line for each."""
    compiled = _held_by_compiled_wrappers(model)
    for path, module in model.named_modules():
        name = path or type(module).__name__
        if _is_candidate(module, classes):
            reason = _reason_to_leave(module, classes, compiled)
            if reason:
                yield logging.WARNING, f"{name}: left, {reason}"
                continue
            kind = _kind(type(module))
            trace_cells(kind.__name__.removesuffix("Cell"))
            module.__class__ = _rebased(type(module), classes)
            _remember_weights(module)
            yield logging.INFO, f"{name}: {_NAMES[kind]} is now {_NAMES[classes[kind]]}"
        elif _kind(type(module)) in classes.values():
            yield logging.INFO, f"{name}: is {_NAMES[_kind(type(module))]} already"
        for attribute in _plain_containers(module, classes):
            where = f"{path}.{attribute}" if path else attribute
            yield (
                logging.WARNING,
                f"{where}: left, torch does not look into a plain list or dict: "
                "make it a torch.nn.ModuleList or torch.nn.ModuleDict",
            )


def _plain_containers(module: nn.Module, classes: Classes) -> Iterator[str]:
    """Yields the attributes that hold RNNs where ``named_modules`` does not look."""
    for attribute, container in vars(module).items():
        if attribute in _OF_TORCH or not isinstance(container, (list, tuple, dict)):
            continue
        held = container.values() if isinstance(container, dict) else container
        if any(isinstance(item, nn.Module) and _is_candidate(item, classes) for item in held):
            yield attribute


def _is_candidate(module: nn.Module, classes: Classes) -> bool:
    if isinstance(module, ScriptModule):
        return getattr(module, "original_name", None) in {cls.__name__ for cls in classes}
    return isinstance(module, tuple(classes))


def _reason_to_leave(module: nn.Module, classes: Classes, compiled: set[int]) -> str | None:
    if isinstance(module, ScriptModule):
        return "it is TorchScript"
    if id(module) in compiled:
        return "torch.compile wraps it: swap before compiling"
    for method in ("forward", *CHECKS_OF_FORWARD):
        if method in vars(module):
            return f"its {method} was replaced on the instance"
    kind = _kind(type(module))
    if kind not in classes:
        (base,) = (cls for cls in classes if issubclass(kind, cls))
        target = _NAMES[classes[base]]
        return f"{kind.__name__} is a subclass of {_NAMES[base]}: derive it from {target}"
    return None


def _held_by_compiled_wrappers(model: nn.Module) -> set[int]:
    wrapper_type = compiled_wrapper_type()
    if wrapper_type is None:
        return set()
    wrappers = (m for m in model.modules() if isinstance(m, wrapper_type))
    return {id(inner) for wrapper in wrappers for inner in wrapper.modules()}


def _kind(cls: type) -> type:
    """Returns the class that a module had before torch derived a new one from it."""
    while cls.__module__.startswith(_MAKERS):
        cls = cls.__bases__[-1]
    return cls


def _rebased(cls: type, classes: Classes) -> type:
    """Returns ``classes[cls]``; for a class derived by torch, the same class on another base."""
    if cls in classes:
        return classes[cls]
    *others, base = cls.__bases__
    namespace = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, (*others, _rebased(base, classes)), namespace)


def _remember_weights(module: nn.Module) -> None:
    """Updates the list of weights that ``nn.RNN``'s forward passes to its op.

    Not for parametrized weights: forward computes these, and computing them here as well would be
    an additional step of spectral_norm.
    """
    if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
        refresh_flat_weights(module)
