"""A call with its tensors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["GRADIENT", "MODES", "Mode", "Workload"]

Mode = Literal["forward", "training"]
MODES: tuple[Mode, ...] = get_args(Mode)

# The name of a gradient in ``Workload.results`` starts with this.
GRADIENT = "gradient of "


@dataclass(frozen=True)
class Workload:
    """The tensors of a call of a layer or a cell.

    ``data`` is the input, or the data of a packed input, whose ``batch_sizes`` are given. With
    ``grad_output``, the gradient of the output, a step has a backward pass; it needs gradients of
    those tensors that require them.
    """

    data: Tensor
    hx: Tensor | None = None
    grad_output: Tensor | None = None
    batch_sizes: Tensor | None = None

    @property
    def mode(self) -> Mode:
        """``"training"`` where a step has a backward pass."""
        return "forward" if self.grad_output is None else "training"

    def to(self, dtype: torch.dtype) -> "Workload":
        """Returns a copy in another dtype."""

        def convert(tensor: Tensor | None) -> Any:
            if tensor is not None:
                tensor = tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)
            return tensor

        data, hx, grad_output = map(convert, (self.data, self.hx, self.grad_output))
        return Workload(data, hx, grad_output, self.batch_sizes)

    def arguments(self) -> tuple[Any, ...]:
        """Returns the arguments of the call."""
        packed = self.batch_sizes is not None
        input = PackedSequence(self.data, self.batch_sizes) if packed else self.data
        return (input,) if self.hx is None else (input, self.hx)

    def tensors(self) -> list[Tensor]:
        """Returns all tensors that the caller holds before the call."""
        held = (self.data, self.batch_sizes, self.hx, self.grad_output)
        return [tensor for tensor in held if tensor is not None]

    def step(
        self, call: Callable[..., Any], parameters: Iterable[Tensor] | None = None
    ) -> Callable[[], Any]:
        """Returns a function that runs ``call`` once, in training also its backward pass.

        ``parameters``, by default those of ``call``, a module, get gradients too. All gradients
        are cleared first: an old one would be added to, which is other work.
        """
        arguments, grad_output = self.arguments(), self.grad_output
        if grad_output is None:
            return lambda: call(*arguments)
        if parameters is None:
            assert isinstance(call, nn.Module)
            parameters = call.parameters()
        leaves = [t for t in (self.data, self.hx, *parameters) if t is not None and t.requires_grad]

        def step() -> Any:
            for leaf in leaves:
                leaf.grad = None
            results = call(*arguments)
            self._output(results).backward(grad_output)
            return results

        return step

    def results(self, module: nn.Module) -> dict[str, Tensor]:
        """Returns outputs and gradients of one step, by name; dropout always draws the same."""
        torch.manual_seed(0)
        results = self.step(module)()
        found = {"output": self._output(results).detach()}
        if isinstance(results, tuple):
            found["h_n"] = results[1].detach()
        leaves = {"input": self.data, "hx": self.hx, **dict(module.named_parameters())}
        if self.grad_output is not None:
            for name, leaf in leaves.items():
                if leaf is not None and leaf.grad is not None:
                    found[GRADIENT + name] = leaf.grad
        return found

    def _output(self, results: Any) -> Tensor:
        """The output of a layer, a packed one's data, or the state of a cell."""
        output = results[0] if isinstance(results, tuple) else results
        return output if self.batch_sizes is None else output.data
