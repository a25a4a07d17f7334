"""A case with numbers in it: modules, and what they are called with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .cases import Case, Mode
from .check import GRADIENT

__all__ = ["Workload", "build_module"]


def build_module(
    kind: Callable[..., nn.Module], case: Case, mode: Mode, device: str = "cpu"
) -> nn.Module:
    """A module for ``case``; one that is not trained is in eval mode."""
    module = kind(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        nonlinearity=case.nonlinearity,
        bias=case.bias,
        batch_first=case.batch_first,
        dropout=case.dropout,
        bidirectional=case.bidirectional,
        device=device,
        dtype=case.dtype,
    )
    return module.train(mode == "training")


@dataclass(frozen=True)
class Workload:
    """The tensors of a call; ``grad_output`` is None in forward.

    ``data`` is the input, or what a packed one holds. ``batch_sizes`` are a packed input's.
    """

    data: Tensor
    batch_sizes: Tensor | None
    hx: Tensor | None
    grad_output: Tensor | None

    @classmethod
    def draw(cls, case: Case, mode: Mode, device: str = "cpu") -> "Workload":
        """Random tensors for ``case``; in training, those that need gradients are leaves."""
        training = mode == "training"
        shape, batch = [case.seq_len, case.batch_size], [case.batch_size]
        if case.layout == "unbatched":
            shape, batch = [case.seq_len], []
        elif case.batch_first:
            shape.reverse()

        def random(*sizes: int) -> Tensor:
            return torch.randn(*sizes, dtype=case.dtype, device=device)

        data, batch_sizes = random(*shape, case.input_size), None
        if case.layout == "packed":
            packed = pack_padded_sequence(data, torch.tensor(case.lengths), case.batch_first)
            data, batch_sizes = packed.data, packed.batch_sizes
        hx = grad_output = None
        if case.hx != "zeros":
            states = case.num_layers * (2 if case.bidirectional else 1)
            hx = random(states, *batch, case.hidden_size)
            hx.requires_grad_(training and case.hx == "learned")
        if training:
            grad_output = random(*data.shape[:-1], case.output_size)
        return cls(data.requires_grad_(training), batch_sizes, hx, grad_output)

    def redraw_input(self) -> None:
        """Other numbers in ``data``."""
        self.data.detach().normal_()

    def to(self, dtype: torch.dtype) -> "Workload":
        """A copy in another dtype."""

        def convert(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

        data, hx, grad_output = (
            None if tensor is None else convert(tensor)
            for tensor in (self.data, self.hx, self.grad_output)
        )
        assert data is not None
        return Workload(data, self.batch_sizes, hx, grad_output)

    def arguments(self) -> tuple[Any, ...]:
        """What a module is called with."""
        packed = self.batch_sizes is not None
        input = PackedSequence(self.data, self.batch_sizes) if packed else self.data
        return (input,) if self.hx is None else (input, self.hx)

    def tensors(self) -> list[Tensor]:
        """All that the caller holds before the call."""
        held = (self.data, self.batch_sizes, self.hx, self.grad_output)
        return [tensor for tensor in held if tensor is not None]

    def leaves(self, module: nn.Module) -> dict[str, Tensor]:
        """All that gets a gradient in training, by name."""
        given = {"input": self.data} | ({} if self.hx is None else {"hx": self.hx})
        leaves = {**given, **dict(module.named_parameters())}
        return {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}

    def step(self, module: nn.Module) -> Callable[[], tuple[Any, Tensor]]:
        """A function that calls ``module`` once; in training also its backward pass."""
        arguments, grad_output = self.arguments(), self.grad_output
        if grad_output is None:
            return lambda: module(*arguments)
        leaves = list(self.leaves(module).values())
        packed = self.batch_sizes is not None

        def step() -> tuple[Any, Tensor]:
            # Inside the timing: a training step does it too, it costs a short call well under a
            # microsecond, and a gradient left from the call before would be added to: other work.
            for leaf in leaves:
                leaf.grad = None
            output, h_n = module(*arguments)
            (output.data if packed else output).backward(grad_output)
            return output, h_n

        return step

    def results(self, module: nn.Module) -> dict[str, Tensor]:
        """Outputs and gradients of one step, by name; dropout draws the same each time."""
        torch.manual_seed(0)
        output, h_n = self.step(module)()
        gradients = {GRADIENT + name: leaf.grad for name, leaf in self.leaves(module).items()}
        return {"output": output.data.detach(), "h_n": h_n.detach()} | {
            name: gradient for name, gradient in gradients.items() if gradient is not None
        }
