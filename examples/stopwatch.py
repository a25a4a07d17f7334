"""Compares a layer with the loop over time steps that it replaces."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer


def compare(layer: nn.Module, loop: Callable[..., Tensor], *args: Tensor, **kwargs: Tensor) -> None:
    """Prints the times of forward and backward of a layer and of `loop(layer, ...)`.

    Both get the same arguments. They have to return the same values, which is checked in float64.
    """
    twin = copy.deepcopy(layer).double()
    exact_args = [to_double(x) for x in args]
    exact_kwargs = {name: to_double(x) for name, x in kwargs.items()}
    torch.testing.assert_close(
        twin(*exact_args, **exact_kwargs)[0], loop(twin, *exact_args, **exact_kwargs)
    )
    ours = milliseconds(lambda: layer(*args, **kwargs)[0])
    loops = milliseconds(lambda: loop(layer, *args, **kwargs))
    print(
        f"{type(layer).__name__}, forward and backward: {ours:.2f} ms; "
        f"the loop: {loops:.1f} ms, {loops / ours:.1f} times as long"
    )


def to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def milliseconds(forward: Callable[[], Tensor]) -> float:
    """The median time of forward and backward, with as many threads as torch uses."""
    timer = Timer(
        "forward().sum().backward()",
        globals={"forward": forward},
        num_threads=torch.get_num_threads(),
    )
    return 1e3 * timer.blocked_autorange().median
