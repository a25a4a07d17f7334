"""The modules and random tensors of a case."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnn_ext
from rnn_ext.bench.workload import Mode, Workload

from .cases import Case

__all__ = ["build", "build_pair", "draw"]


def build(kind: Callable[..., nn.Module], case: Case, mode: Mode, device: str = "cpu") -> nn.Module:
    """Returns a module for ``case``, in eval mode unless it is trained."""
    module = kind(
        case.input_size,
        case.hidden_size,
        bias=case.bias,
        device=device,
        dtype=case.dtype,
        **({"nonlinearity": case.nonlinearity} if case.kind == "RNN" else {}),
        **(
            {}
            if case.cell
            else {
                "num_layers": case.num_layers,
                "batch_first": case.batch_first,
                "dropout": case.dropout,
                "bidirectional": case.bidirectional,
            }
        ),
    )
    return module.train(mode == "training")


def build_pair(case: Case, mode: Mode, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """Returns torch's module and ours."""
    theirs, ours = (
        build(getattr(library, case.module), case, mode, device) for library in (nn, rnn_ext)
    )
    return theirs, ours


def draw(case: Case, mode: Mode, device: str = "cpu") -> Workload:
    """Returns random tensors for ``case``; in training, those that need gradients are leaves."""
    training = mode == "training"
    shape, batch = [case.seq_len, case.batch_size], [case.batch_size]
    if case.cell:
        shape = batch
    elif case.layout == "unbatched":
        shape, batch = [case.seq_len], []
    elif case.batch_first:
        shape.reverse()

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=case.dtype, device=device)

    data, batch_sizes = random(*shape, case.input_size), None
    if case.layout == "packed":
        packed = pack_padded_sequence(data, torch.tensor(case.lengths), case.batch_first)
        data, batch_sizes = packed.data, packed.batch_sizes
    hx = cx = grad_output = None
    if case.hx != "zeros":
        states = [] if case.cell else [case.num_layers * (2 if case.bidirectional else 1)]
        hx = random(*states, *batch, case.hidden_size)
        hx.requires_grad_(training and case.hx == "learned")
        if case.kind == "LSTM":
            cx = torch.randn_like(hx).requires_grad_(hx.requires_grad)
    if training:
        grad_output = random(*data.shape[:-1], case.output_size)
    return Workload(data.requires_grad_(training), hx, grad_output, batch_sizes, cx)
