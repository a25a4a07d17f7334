"""What the cases share: the classes to try, the list of cases, models and checks."""

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
    """A layer and its cell to try, of torch.nn or of rnn_ext."""

    library: Any
    kind: str

    @property
    def layer(self) -> Any:
        return getattr(self.library, self.kind)

    @property
    def cell(self) -> Any:
        return getattr(self.library, f"{self.kind}Cell")

    def states(self, h: Tensor) -> Any:
        """Returns ``h`` as the module takes it: an LSTM has two states."""
        return (h, h) if self.kind == "LSTM" else h

    def hidden(self, states: Any) -> Tensor:
        """Returns the first of what the module takes or gives."""
        return states[0] if self.kind == "LSTM" else states


KINDS = ("RNN", "GRU", "LSTM")
TORCHS = tuple(Modules(nn, kind) for kind in KINDS)
OURS = tuple(Modules(rnn_ext, kind) for kind in KINDS)


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
        self.rnn = modules.layer(3, 4, num_layers, **options)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


class OnBuffer(Output):
    """Runs on a buffer, so that hx alone is an argument."""

    def __init__(self, modules: Modules) -> None:
        super().__init__(modules)
        self.register_buffer("x", X)
        self.states = modules.states

    def forward(self, h: Tensor) -> Any:
        return self.rnn(self.x, self.states(h))[0]


class Packs(Output):
    """Packs inside forward."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:  # type: ignore[override]
        return pad_packed_sequence(super().forward(pack_padded_sequence(x, lengths)))[0]


class Steps(nn.Module):
    """A cell in a loop."""

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.cell, self.hidden = modules.cell(3, 4), modules.hidden

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(0):
            state = self.cell(step, state)
        return self.hidden(state)


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
