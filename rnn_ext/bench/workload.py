"""The tensors of a call."""

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

    ``data`` is the input, or the data of a packed input, which has ``batch_sizes``. With
    ``grad_output``, the gradient of the output, a step has a backward pass, which computes the
    gradients of the tensors that require one. ``cx`` is the second state of an LSTM.
    """

    data: Tensor
    hx: Tensor | None = None
    grad_output: Tensor | None = None
    batch_sizes: Tensor | None = None
    cx: Tensor | None = None

    @property
    def mode(self) -> Mode:
        """``"training"`` if a step has a backward pass."""
        return "forward" if self.grad_output is None else "training"

    def to(self, dtype: torch.dtype) -> "Workload":
        """Returns a copy in another dtype."""

        def convert(tensor: Tensor | None) -> Any:
            if tensor is not None:
                tensor = tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)
            return tensor

        tensors = (self.data, self.hx, self.grad_output, self.cx)
        data, hx, grad_output, cx = map(convert, tensors)
        return Workload(data, hx, grad_output, self.batch_sizes, cx)

    def arguments(self) -> tuple[Any, ...]:
        """Returns the arguments of the call."""
        packed = self.batch_sizes is not None
        input = PackedSequence(self.data, self.batch_sizes) if packed else self.data
        if self.hx is None:
            return (input,)
        return input, self.hx if self.cx is None else (self.hx, self.cx)

    def tensors(self) -> list[Tensor]:
        """Returns all tensors that the caller holds before the call."""
        held = (self.data, self.batch_sizes, self.hx, self.cx, self.grad_output)
        return [tensor for tensor in held if tensor is not None]

    def step(
        self, call: Callable[..., Any], parameters: Iterable[Tensor] | None = None
    ) -> Callable[[], Any]:
        """Returns a function that runs ``call`` once, in training also its backward pass.

        ``parameters`` get gradients too; by default they are those of ``call``, a module. All
        gradients are cleared first, since adding to an old one would be additional work.
        """
        arguments, grad_output = self.arguments(), self.grad_output
        if grad_output is None:
            return lambda: call(*arguments)
        if parameters is None:
            assert isinstance(call, nn.Module)
            parameters = call.parameters()
        tensors = (self.data, self.hx, self.cx, *parameters)
        leaves = [t for t in tensors if t is not None and t.requires_grad]

        def step() -> Any:
            for leaf in leaves:
                leaf.grad = None
            results = call(*arguments)
            self._output(results).backward(grad_output)
            return results

        return step

    def results(self, module: nn.Module) -> dict[str, Tensor]:
        """Returns outputs and gradients of one step, by name; the seed of dropout is fixed."""
        torch.manual_seed(0)
        outputs = self.step(module)()
        results = {"output": self._output(outputs).detach()}
        if isinstance(outputs, tuple):
            last = outputs[1]
            if isinstance(last, tuple):
                results |= {"h_n": last[0].detach(), "c_n": last[1].detach()}
            else:
                results["h_n" if self.cx is None else "c"] = last.detach()  # c: of an LSTM's cell
        own = {"input": self.data, "hx": self.hx, "cx": self.cx}
        leaves = {**own, **dict(module.named_parameters())}
        if self.grad_output is not None:
            for name, leaf in leaves.items():
                if leaf is not None and leaf.grad is not None:
                    results[GRADIENT + name] = leaf.grad
        return results

    def _output(self, results: Any) -> Tensor:
        """Returns the output of a layer, the data of a packed one, or the state of a cell."""
        output = results[0] if isinstance(results, tuple) else results
        return output if self.batch_sizes is None else output.data
