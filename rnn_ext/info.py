"""What this build is, and which way a call goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _C, cuda, routing
from .modules import RNN, RNNCell

__all__ = ["build_info", "explain", "uses_openmp"]


def uses_openmp() -> bool:
    """Whether torch's thread pool is OpenMP's, whose threads run at the same time."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


def build_info() -> dict[str, Any]:
    """What was built and what is running.

    Returns:
        ``version``, ``compiler``, ``isa_compiled`` (levels in the binary), ``isa`` (the level in
        use), ``openmp``, ``cuda_archs`` (None without CUDA kernels), ``torch_built`` and
        ``torch_running``.
    """
    info = _C.build_info()
    info["openmp"] = uses_openmp()
    info["torch_running"] = torch.__version__
    return info


def explain(module: nn.Module, input: Tensor | PackedSequence) -> str:
    """Says in one line which way ``module(input)`` goes, and why.

    Args:
        module: an :class:`rnn_ext.RNN` or :class:`rnn_ext.RNNCell`; of any other module it says
            that it is not one.
        input: what the module would be called with.
    """
    if not isinstance(module, (RNN, RNNCell)):
        return f"{type(module).__name__} is not an rnn_ext module: this package takes no part"
    if isinstance(input, PackedSequence):
        data, batch_sizes = input.data, input.batch_sizes
        steps, batch = len(batch_sizes), int(batch_sizes[0])
    else:
        data, batch_sizes = _time_major(module, input), None
        steps, batch = data.size(0), data.size(1)
    if isinstance(module, RNN):
        weights = module._read_weights()
        directions, layers = (2 if module.bidirectional else 1), module.num_layers
        training = module.training
    else:
        weights = [module.weight_ih, module.weight_hh]
        weights += [module.bias_ih, module.bias_hh] if module.bias else []
        directions, layers, training = 1, 1, True
    data, _, weights = routing.under_autocast(data, None, weights)
    reason = routing.reason_for_torch(
        data, None, weights, module.bias, directions, training, batch_sizes
    )
    if reason:
        return f"torch's own op: {reason}"
    stack = "" if layers == 1 else f", {layers} layers one after the other"
    dtype = str(data.dtype)[6:]
    if data.is_cuda:
        limits = cuda.limits(data.device.index)
        assert not isinstance(limits, str), limits  # a reason for torch
        regime, units, rows = cuda.plan(batch, module.hidden_size, directions, data.dtype, limits)
        why = cuda.choose(data, None, weights, batch_sizes, directions, training).reason
        return (
            f"rnn_ext CUDA kernels, {regime}, {dtype}: blocks of {rows} rows, {units} units{stack} "
            f"({why})"
        )
    groups, at_once, threads = _C.plan(
        steps,
        batch,
        data.size(-1),
        module.hidden_size,
        data.dtype == torch.float64,
        directions == 2,
        _C.available_threads(torch.get_num_threads()),
    )
    work = f"{threads} of {torch.get_num_threads()} threads"
    if at_once:
        threads //= 2
        work += f", {threads} for each direction"
    work += _sharing(groups, threads // groups)
    return f"rnn_ext CPU kernels, {_C.isa()}, {dtype}: {work}{stack}"


def _sharing(groups: int, members: int) -> str:
    if groups * members == 1:
        return ""
    if members == 1:
        return " sharing the batch rows"
    if groups == 1:
        return " sharing the hidden columns"
    return f" sharing the batch rows in {groups} groups, and {members} each the hidden columns"


def _time_major(module: RNN | RNNCell, input: Tensor) -> Tensor:
    """An unpacked input as ``(T, B, I)``."""
    if isinstance(module, RNNCell):
        return (input if input.dim() == 2 else input.unsqueeze(0)).unsqueeze(0)
    if input.dim() == 2:
        return input.unsqueeze(1)
    return input.transpose(0, 1) if module.batch_first else input
