"""Every private name of torch that this package uses.

No other file uses one (``tests/test_torch_private.py`` checks this), so this is the file to read
when torch changes. All names exist in torch 2.10.0, 2.13.0 and 2.15.0. Without one of them ``import
rnn_ext`` still works; each has a fallback that is slower, has fewer features, or raises an error.

Functions that run in every call are torch's own, looked up once.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = [
    "CHECKS_OF_FORWARD",
    "add_batch_dim",
    "apply_function",
    "are_functorch_transforms_active",
    "assume_constant_result",
    "compiled_wrapper_type",
    "derivative_levels",
    "flat_weights",
    "is_any_autocast_enabled",
    "is_batchedtensor",
    "is_captured",
    "is_fake",
    "is_functionalized",
    "is_legacy_batchedtensor",
    "is_tracing",
    "is_transformed",
    "legacy_vmap_level",
    "overrides_operations",
    "preserve_version",
    "read_parameters",
    "record_operations",
    "refresh_flat_weights",
    "remember_weight",
    "remove_batch_dim",
    "scan",
]


def _find(path: str, fallback: Any = None) -> Any:
    """Returns ``torch.<path>``, or ``fallback`` in a release without it."""
    try:
        return operator.attrgetter(path)(torch)
    except AttributeError:
        return fallback


# The state of a call ------------------------------------------------------------------------------


def _is_any_autocast_enabled() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _always() -> bool:
    return True


# torch.jit.is_tracing calls it, through two functions in Python.
is_tracing: Callable[[], bool] = _find("_C._is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]


def is_captured() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace records a graph."""
    return torch.compiler.is_compiling() or is_tracing()


# RNNBase.check_input and RNNCell's torch op call it. The fallback knows only these two devices.
is_any_autocast_enabled: Callable[[], bool] = _find(
    "_C._is_any_autocast_enabled", _is_any_autocast_enabled
)

# torch.autograd.Function.apply calls it. The fallback treats every call as transformed, which gives
# the same results at several times the cost.
are_functorch_transforms_active: Callable[[], bool] = _find(
    "_C._are_functorch_transforms_active", _always
)

if hasattr(forward_ad, "_current_level"):

    def is_transformed() -> bool:
        """Whether a ``torch.func`` transform or forward-mode AD is active."""
        return are_functorch_transforms_active() or forward_ad._current_level >= 0

else:
    is_transformed = _always


_interpreters = _find("_C._functorch.get_interpreter_stack")
_types = _find("_C._functorch.TransformType")


def _transforms() -> list[Any]:
    """Returns the kind of each active transform of ``torch.func``."""
    if not are_functorch_transforms_active():
        return []
    return [level.key() for level in _interpreters() or ()]


if _interpreters is None or _types is None:

    def is_functionalized() -> bool:
        """Whether ``torch.func.functionalize`` is active, which has no ``autograd.Function``."""
        return False  # torch raises an error where it is

    def derivative_levels() -> tuple[int, bool]:
        """Returns how many derivatives are being taken of each other, and whether one is forward.

        Without torch's names this returns the most careful answer.
        """
        return 2, True

else:

    def is_functionalized() -> bool:
        """Whether ``torch.func.functionalize`` is active, which has no ``autograd.Function``."""
        return _types.Functionalize in _transforms()

    def derivative_levels() -> tuple[int, bool]:
        """Returns how many derivatives are being taken of each other, and whether one is forward.

        They are those of ``torch.func`` and ``torch.autograd.forward_ad``; other calls of autograd
        are not counted, because they show only later.
        """
        transforms = _transforms()
        forward = transforms.count(_types.Jvp)
        if forward == 0 and getattr(forward_ad, "_current_level", -1) >= 0:
            forward = 1
        return forward + transforms.count(_types.Grad), forward > 0


_PLAIN_HANDLERS = (
    torch.Tensor.__torch_function__.__func__,  # type: ignore[attr-defined]
    _find("_C._disabled_torch_function_impl"),
)
_plain_dispatch = _find("_C._disabled_torch_dispatch_impl")


def overrides_operations(tensor: Any) -> bool:
    """Whether the class of ``tensor`` handles torch's functions or operations itself.

    Such a class knows torch's operations, but not ours. The classes with which torch records graphs
    accept any operation.
    """
    cls = type(tensor)
    if cls is Tensor or cls is nn.Parameter or tensor is None:
        return False
    handler = getattr(cls, "__torch_function__", None)
    if handler is not None and getattr(handler, "__func__", handler) not in _PLAIN_HANDLERS:
        return True
    dispatch = getattr(cls, "__torch_dispatch__", _plain_dispatch)
    return dispatch is not _plain_dispatch and not cls.__module__.startswith("torch._subclasses.")


def is_fake(tensor: Tensor) -> bool:
    """Whether this is a ``FakeTensor``, without importing the module that defines it."""
    return type(tensor).__module__ == "torch._subclasses.fake_tensor"


# torch.autograd.Function --------------------------------------------------------------------------

_unwrap_if_dead = _find("_C._functorch.unwrap_if_dead")

_skips_wrapper = bool(_unwrap_if_dead and _find("_C._FunctionBase.apply"))


def apply_function(
    function: type[torch.autograd.Function],
    settings: tuple[Any, ...],
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
) -> Any:
    """``function.apply`` without its Python wrapper (5 µs), which only ``torch.func`` needs."""
    if not _skips_wrapper:
        return function.apply(*settings, input, hx, *weights)
    # The wrapper does this too: a tensor kept from a transform that has ended wraps the tensor that
    # gets the gradients.
    return super(torch.autograd.Function, function).apply(  # type: ignore[misc]
        *settings,
        _unwrap_if_dead(input),
        None if hx is None else _unwrap_if_dead(hx),
        *map(_unwrap_if_dead, weights),
    )


_preserve_version_counter = _find(
    "autograd._unsafe_preserve_version_counter", lambda _: nullcontext()
)


def preserve_version(tensor: Tensor) -> AbstractContextManager[Any]:
    """Within this context, changes of ``tensor`` in place do not increase its version."""
    return nullcontext() if tensor.is_inference() else _preserve_version_counter(tensor)


# torch.func.vmap, and the vmap of torch.autograd (is_grads_batched=True) --------------------------


def _is_never_batched(tensor: Tensor) -> bool:
    return False


# Whether a tensor is one sample of a batch. The fallback says no.
is_batchedtensor: Callable[[Tensor], bool] = _find(
    "_C._functorch.is_batchedtensor", _is_never_batched
)


def _refuse_legacy_vmap(*_: Any) -> Any:
    raise NotImplementedError(
        f"is_grads_batched=True through an rnn_ext layer needs functions that torch "
        f"{torch.__version__} does not have: use torch.func.vmap, or vectorize=False"
    )


# A torch without such tensors has no such vmap.
is_legacy_batchedtensor: Callable[[Tensor], bool] = _find(
    "_C._functorch.is_legacy_batchedtensor", _is_never_batched
)
add_batch_dim: Callable[[Tensor, int, int], Tensor] = _find("_add_batch_dim", _refuse_legacy_vmap)
remove_batch_dim: Callable[[Tensor, int, int, int], Tensor] = _find(
    "_remove_batch_dim", _refuse_legacy_vmap
)

_increment_nesting = _find("_C._vmapmode_increment_nesting", _refuse_legacy_vmap)
_decrement_nesting = _find("_C._vmapmode_decrement_nesting", _refuse_legacy_vmap)


def legacy_vmap_level() -> int:
    """Returns the level of the innermost such vmap, which torch returns only when changing it."""
    level: int = _increment_nesting() - 1
    _decrement_nesting()
    return level


# Operations below autograd ------------------------------------------------------------------------

_DispatchMode = _find("utils._python_dispatch.TorchDispatchMode")


def record_operations(operation: Callable[[Any, Any, Any], Any]) -> AbstractContextManager[Any]:
    """Returns a context in which torch calls ``operation(func, args, kwargs)`` for each operation.

    ``func`` is the aten operation that torch would run, below autograd. Inside ``operation``,
    operations run as usual.
    """
    if _DispatchMode is None:
        raise NotImplementedError(
            f"a cell needs functions that torch {torch.__version__} does not have"
        )

    class Recording(_DispatchMode):  # type: ignore[misc, valid-type]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # Otherwise torch imports Dynamo, which takes seconds, to exclude the method from it.
            return False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return operation(func, args, kwargs or {})

    return Recording()


# torch.compile ------------------------------------------------------------------------------------


def assume_constant_result(function: Any) -> None:
    """Does what ``torch.compiler.assume_constant_result`` does, without importing the compiler."""
    function._dynamo_marked_constant = True


def compiled_wrapper_type() -> type[nn.Module] | None:
    """Returns the class of ``torch.compile(module)``; None if nothing was compiled yet."""
    # If Dynamo is not imported, nothing was compiled; importing it takes a second.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return getattr(dynamo, "OptimizedModule", None)


def scan(
    body: Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]],
    initial: list[Tensor],
    sequences: list[Tensor],
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Records ``(states, of the step) -> (next states, results)`` as one operation over all steps.

    Returns:
        The last states, and the results at all steps.
    """
    try:
        # Not at the import of this package: torch imports it late.
        from torch._higher_order_ops import scan
    except ImportError:
        raise NotImplementedError(
            f"exporting a cell needs an operation that torch {torch.__version__} does not have"
        ) from None
    results: tuple[list[Tensor], list[Tensor]] = scan(body, initial, sequences, reverse=reverse)
    return results


# Modules ------------------------------------------------------------------------------------------


# The methods that forward of torch's RNNs calls.
CHECKS_OF_FORWARD = (
    "_update_flat_weights",
    "_weights_have_changed",
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
)


def read_parameters(module: nn.Module, names: Iterable[str]) -> list[Any]:
    """Returns the parameters, reading each once, since reading a parametrized one computes it."""
    # nn.Module.__getattr__ looks there last, which is slow.
    plain = module._parameters
    return [plain[name] if name in plain else getattr(module, name) for name in names]


def flat_weights(rnn: nn.RNNBase) -> list[Tensor]:
    """Returns the current weights of an RNN, for each direction of each layer.

    As in ``nn.RNN``, tensors that a program has assigned to ``_flat_weights`` (as recipes for
    DropConnect do) take precedence, unless a parameter was replaced, swapped or parametrized since.
    """
    try:
        names: list[str] = rnn._flat_weights_names
        assigned: list[Any] = rnn._flat_weights
        remembered = rnn._flat_weight_refs
    except AttributeError:
        return [weight for layer in rnn.all_weights for weight in layer]
    try:
        weights = read_parameters(rnn, names)
    except AttributeError:
        return assigned  # a weight was deleted
    if all(map(operator.is_, assigned, weights)):
        return weights
    for ref, weight in zip(remembered, weights, strict=False):
        if weight is not None and ref is not None and ref() is not weight:
            return weights
    return assigned


def remember_weight(rnn: nn.RNNBase, name: str, value: Any) -> None:
    """Records that the attribute ``name`` was set, which ``nn.RNN`` finds out in its next forward.

    As in ``nn.RNN``, a new weight replaces all tensors assigned to ``_flat_weights`` before.
    """
    attributes = vars(rnn)
    names, refs = attributes.get("_flat_weights_names", ()), attributes.get("_flat_weight_refs", ())
    if name not in names or len(refs) != len(names):
        return
    refs[names.index(name)] = None if value is None else weakref.ref(value)
    for i, other in enumerate(names):
        if other in rnn._parameters:
            rnn._flat_weights[i] = rnn._parameters[other]


def refresh_flat_weights(rnn: nn.RNNBase) -> None:
    """Updates the list of weights that ``nn.RNN``'s forward passes to its op."""
    if hasattr(rnn, "_init_flat_weights"):
        rnn._init_flat_weights()
        return
    for name, parameter in list(rnn.named_parameters(recurse=False)):
        setattr(rnn, name, parameter)
