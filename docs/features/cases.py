"""What the cases share: the two classes to try, the list of cases, models and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnn_ext


class Modules(NamedTuple):
    """The two classes to try."""

    RNN: Any
    RNNCell: Any


TORCHS = Modules(nn.RNN, nn.RNNCell)
OURS = Modules(rnn_ext.RNN, rnn_ext.RNNCell)


class Case(NamedTuple):
    """A line of the page; `run` raises if the feature does not work with the modules."""

    section: str
    feature: str
    note: str
    run: Callable[[Modules], None]


CASES: list[Case] = []


def case(section: str, feature: str, note: str = "") -> Callable[[Callable[[Modules], None]], Any]:
    def add(run: Callable[[Modules], None]) -> Callable[[Modules], None]:
        CASES.append(Case(section, feature, note, run))
        return run

    return add


X = torch.linspace(-1, 1, 30).reshape(5, 2, 3)
LONGER = torch.linspace(-1, 1, 63).reshape(7, 3, 3)
H0 = torch.linspace(-1, 1, 8).reshape(1, 2, 4)
LENGTHS = torch.tensor([5, 3])


class Output(nn.Module):
    """An RNN's output alone."""

    def __init__(self, modules: Modules, num_layers: int = 1, **options: Any) -> None:
        super().__init__()
        self.rnn = modules.RNN(3, 4, num_layers, **options)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


class OnBuffer(Output):
    """Runs on a buffer, so that hx alone is an argument."""

    def __init__(self, modules: Modules) -> None:
        super().__init__(modules)
        self.register_buffer("x", X)

    def forward(self, hx: Tensor) -> Any:
        return self.rnn(self.x, hx)[0]


class Packs(Output):
    """Packs inside forward."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:  # type: ignore[override]
        return pad_packed_sequence(super().forward(pack_padded_sequence(x, lengths)))[0]


class Steps(nn.Module):
    """A cell in a loop."""

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.cell = modules.RNNCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in x.unbind(0):
            h = self.cell(step, h)
        return h  # type: ignore[return-value]


def check(condition: bool) -> None:
    if not condition:
        raise AssertionError


def same(actual: Any, expected: Any, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, **tolerance)


def gradients(module: nn.Module, x: Tensor = X) -> list[Tensor]:
    return list(torch.autograd.grad(module(x).square().sum(), list(module.parameters())))


def functional(module: nn.Module) -> tuple[dict[str, Tensor], Callable[..., Tensor]]:
    weights = {name: p.detach() for name, p in module.named_parameters()}
    return weights, lambda w, x: torch.func.functional_call(module, w, (x,))


@contextmanager
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
