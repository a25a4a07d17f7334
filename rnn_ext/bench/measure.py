"""Measures one case: builds both modules, compares their results, then times them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import rnn_ext

from .cases import Case, Mode
from .check import GRADIENT, first_difference
from .timing import Timing, time_pair

__all__ = ["MismatchError", "measure"]

Step = Callable[[], tuple[Tensor, Tensor]]

# With relu, about one draw of the input in a hundred costs the gradients more than their tolerance
# (see there why); a kernel that is wrong fails with every input.
RELU_DRAWS = 3


class MismatchError(Exception):
    """``rnn_ext.RNN`` and ``nn.RNN`` differ by more than rounding explains."""


def measure(case: Case, mode: Mode, seconds: float) -> Timing:
    """Time a call of ``rnn_ext.RNN`` against ``nn.RNN`` with the same weights and input.

    ``"forward"`` is the call under ``torch.no_grad()``; ``"training"`` is the call and the backward
    pass to the input and every parameter, from a fixed random gradient of the output.

    Raises:
        MismatchError: the results differ; nothing was timed then.
    """
    torch.manual_seed(0)
    theirs, ours = _modules(case)
    shape = (case.seq_len, case.batch_size)
    training = mode == "training"
    input = torch.randn(*shape, case.input_size, dtype=case.dtype, requires_grad=training)
    if training:
        grad_output = torch.randn(*shape, case.output_size, dtype=case.dtype)
        their_step = _training_step(theirs, input, grad_output)
        our_step = _training_step(ours, input, grad_output)
    else:
        their_step = _forward_step(theirs, input)
        our_step = _forward_step(ours, input)

    # Around the timing, not inside it: entering no_grad costs as much as a short call's arithmetic.
    with torch.set_grad_enabled(training):
        for _ in range(RELU_DRAWS if training and case.nonlinearity == "relu" else 1):
            found = first_difference(
                case, _results(their_step, theirs, input), _results(our_step, ours, input)
            )
            if found is None:
                return time_pair(their_step, our_step, seconds)
            input.detach().normal_()
    raise MismatchError(f"rnn_ext.RNN and nn.RNN differ at {case} ({mode}): {found}")


def _modules(case: Case) -> tuple[nn.Module, nn.Module]:
    theirs, ours = (
        kind(
            case.input_size,
            case.hidden_size,
            case.num_layers,
            nonlinearity=case.nonlinearity,
            bidirectional=case.bidirectional,
            dtype=case.dtype,
        )
        for kind in (nn.RNN, rnn_ext.RNN)
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _forward_step(module: nn.Module, input: Tensor) -> Step:
    return lambda: module(input)


def _training_step(module: nn.Module, input: Tensor, grad_output: Tensor) -> Step:
    leaves = [input, *module.parameters()]

    def step() -> tuple[Tensor, Tensor]:
        # Inside the timing: a training step does it too, it costs a short call well under a
        # microsecond, and a gradient left from the call before would be added to: other work.
        for leaf in leaves:
            leaf.grad = None
        output, h_n = module(input)
        output.backward(grad_output)
        return output, h_n

    return step


def _results(step: Step, module: nn.Module, input: Tensor) -> dict[str, Tensor]:
    output, h_n = step()
    leaves = {"input": input, **dict(module.named_parameters())}
    gradients = {GRADIENT + name: leaf.grad for name, leaf in leaves.items()}
    return {"output": output.detach(), "h_n": h_n.detach()} | {
        name: gradient for name, gradient in gradients.items() if gradient is not None
    }
