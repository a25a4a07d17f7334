"""Information about the build, and about the path of a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _C
from ._core import cuda, dispatch, lookup, node
from ._core.call import Call
from ._core.cells.cell import Cell
from ._core.dispatch import Path, Route
from ._core.modules import Layers, Step
from ._core.resets import as_states
from .embedding_rnn import EmbeddingRNN
from .frozen import FrozenRNN
from .recurrent import Recurrent, RecurrentCell

__all__ = [
    "build_info",
    "explain",
    "keep_freed_memory",
    "release_scratch",
    "route_of",
    "uses_openmp",
]


def uses_openmp() -> bool:
    """Whether torch's thread pool is OpenMP's, whose threads run at the same time."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


def build_info() -> dict[str, Any]:
    """Returns information about the build and the installed torch.

    Returns:
        ``version``, ``compiler``, ``isa_compiled`` (levels in the binary), ``isa`` (the level in
        use), ``openmp``, ``cuda_archs`` (None without CUDA kernels), ``autograd_node`` (``"C++"``
        or ``"Python"``), ``torch_built`` and ``torch_running``.
    """
    info = _C.build_info()
    info["openmp"] = uses_openmp()
    info["autograd_node"] = "C++" if node.is_loaded else "Python"
    info["torch_running"] = torch.__version__
    return info


def release_scratch() -> int:
    """Frees the scratch memory that finished calls on the CPU keep for later calls.

    Later calls allocate it again. Otherwise unused memory is freed after some hundreds of further
    calls.

    Returns:
        The number of freed bytes. Memory of running calls is not freed.
    """
    return _C.release_scratch()


def keep_freed_memory(keep: bool) -> None:
    """Sets whether this process keeps the memory that it frees, for later allocations.

    glibc returns large blocks to the system when they are freed, so the output of the next call is
    fresh memory, which the system hands out page by page while the kernels write to it. With
    ``keep=True``, outputs reuse freed memory. This saves time in calls of megabytes, in all
    libraries of the process; ``docs/performance.md`` has measurements.

    The cost is memory: the process never shrinks, and free memory between blocks in use may not fit
    later ones. A loop of calls with an output of 64 MiB grew by 192 to 384 MiB, then no further.
    Threads other than the main one keep only blocks below 64 MiB. With another malloc than glibc's,
    such as a preloaded jemalloc, the setting has no effect.

    Args:
        keep: True: freed memory is kept, until the process ends. False: large blocks are returned
            again, from 32 MiB, and what is free now is returned.

    Raises:
        RuntimeError: the C library is not glibc.
    """
    if not _C.keep_freed_memory(keep):
        raise RuntimeError("keep_freed_memory needs the malloc of glibc")


def route_of(module: Layers | Step, input: Tensor | PackedSequence, hx: Any = None) -> Route:
    """Returns the route of ``module(input, hx)``; runs nothing.

    Raises:
        ValueError: torch's own module would raise an error for these arguments or attributes.
    """
    call = module._call(input, hx)
    if call is None:
        raise ValueError(f"{type(module).__name__} does not accept these arguments")
    return dispatch.route(call)


def explain(
    module: nn.Module,
    input: Tensor | PackedSequence,
    hx: Any = None,
    *,
    reset: Tensor | None = None,
) -> str:
    """Returns one line that says which path ``module(input, hx)`` takes, and why.

    Args:
        module: a module of this package; for any other the line says that it is none.
        input, hx, reset: the arguments of the call.

    Returns:
        The kernels, threads and autograd node of the call in the current state (gradient mode,
        autocast, transforms); or the reason why torch's own op would run.
    """
    if isinstance(module, EmbeddingRNN):
        return _explain_embedding(module, input, hx)
    if isinstance(module, (Recurrent, RecurrentCell)):
        return _explain_recurrent(module, input, hx)
    if not isinstance(module, (Layers, Step)):
        return f"{type(module).__name__} is not a module of rnn_ext"
    if isinstance(module, Layers) and module._own_check:
        return f"torch's own op: {module._own_check} was overridden"
    if isinstance(module, Layers) and module.proj_size:
        return "torch's own op: proj_size is not 0"
    call = module._call(input, hx)
    if call is None:
        return "torch's own op: an argument, or an attribute of the module, does not fit"
    route = dispatch.route(call._replace(reset=reset))
    if route.path is Path.TORCH:
        return f"torch's own op: {route.reason}"
    if isinstance(module, Layers) and not module._fits(route):
        return "torch's own op: an attribute of the module does not fit the call"
    reason = f" ({route.reason})" if route.reason else ""
    if route.path in (Path.LOOP, Path.ONNX):
        return f"{route.path.value}{reason}"
    call = route.call
    if call.is_program():
        kernels = _program_kernels(call.kind.cell, call.input.dtype, call.hidden_size)
        return (
            f"{kernels}{_stack(call.num_layers)}; {route.path.value}{reason}; "
            "second derivatives as a loop"
        )
    kernels = (_cuda_kernels if call.input.is_cuda else _cpu_kernels)(call)
    if isinstance(module, FrozenRNN) and module._is_packed_for(route):
        return f"{kernels}{_stack(call.num_layers)}; packed weights"
    return f"{kernels}{_stack(call.num_layers)}; {route.path.value}{reason}"


def _stack(layers: int) -> str:
    return "" if layers == 1 else f", {layers} layers one after the other"


def _explain_embedding(
    module: EmbeddingRNN, tokens: Tensor | PackedSequence, hx: Tensor | None
) -> str:
    rnn = module.rnn
    if not isinstance(rnn, Layers):
        return explain(rnn, tokens, hx)
    data = tokens.data if isinstance(tokens, PackedSequence) else tokens
    reason = lookup.obstacle(data, module.embedding.weight)
    kind = rnn._kind()
    if kind is not None and not reason:
        kernels = _program_kernels(kind.cell, module.embedding.weight.dtype, rnn.hidden_size)
        return f"{kernels}{_stack(rnn.num_layers)}; embedding looked up after the product with W_ih"
    embedded = module.embedding(data)
    input = tokens._replace(data=embedded) if isinstance(tokens, PackedSequence) else embedded
    return f"embedding, then {type(rnn).__name__} ({reason}): {explain(rnn, input, hx)}"


def _explain_recurrent(
    module: Recurrent | RecurrentCell, input: Tensor | PackedSequence, hx: Any
) -> str:
    data = input.data if isinstance(input, PackedSequence) else input
    states = [] if hx is None else as_states("hx", hx, ("y", *module.cell.states))
    is_packed = isinstance(input, PackedSequence)
    weights = [*module.parameters(), *module.buffers()]
    path, reason = dispatch.program_path(module.cell, [data, *states], weights, is_packed)
    reason = f" ({reason})" if reason else ""
    if path is Path.LOOP:
        return f"{path.value}{reason}"
    layers = module.num_layers if isinstance(module, Recurrent) else 1
    kernels = _program_kernels(module.cell, data.dtype, module.hidden_size)
    return f"{kernels}{_stack(layers)}; {path.value}{reason}; second derivatives as a loop"


def _program_kernels(cell: Cell, dtype: torch.dtype, hidden_size: int) -> str:
    return (
        f"rnn_ext CPU kernels, {_C.isa()}, {str(dtype)[6:]}: program of cell {cell.name!r}, "
        f"{cell.gates} x {hidden_size} columns"
    )


def _cuda_kernels(call: Call) -> str:
    plan = cuda.plan_of(call)
    dtype = str(call.input.dtype)[6:]
    return (
        f"rnn_ext CUDA kernels, {plan.regime}, {dtype}: "
        f"blocks of {plan.rows} rows, {plan.units} units"
    )


def _cpu_kernels(call: Call) -> str:
    dtype = call.input.dtype
    groups, at_once, threads = _C.plan(
        *(call.seq_len(), call.batch_size(), call.input.size(-1), call.hidden_size),
        *(dtype == torch.float64, call.directions() == 2),
        _C.available_threads(torch.get_num_threads()),
    )
    work = f"{threads} of {torch.get_num_threads()} threads"
    if at_once:
        threads //= 2
        work += f", {threads} for each direction"
    work += _sharing(groups, threads // groups)
    return f"rnn_ext CPU kernels, {_C.isa()}, {str(dtype)[6:]}: {work}"


def _sharing(groups: int, members: int) -> str:
    if groups * members == 1:
        return ""
    if members == 1:
        return " sharing the batch rows"
    if groups == 1:
        return " sharing the hidden columns"
    return f" sharing the batch rows in {groups} groups, and {members} each the hidden columns"
