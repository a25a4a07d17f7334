"""Compares the results of two modules, up to rounding."""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .workload import GRADIENT, Workload

__all__ = ["MismatchError", "check", "difference", "first_difference", "tolerance"]

# With relu, about one random input in a hundred has gradients that differ by more than `tolerance`
# allows (its docstring says why). A wrong kernel fails with every input.
RELU_DRAWS = 3


class MismatchError(Exception):
    """Two modules differ by more than rounding explains."""


def check(theirs: nn.Module, ours: nn.Module, work: Workload) -> None:
    """Gives ``ours`` the weights of ``theirs`` and compares their results on ``work``.

    Raises:
        MismatchError: the results differ. The message names the first that does.
    """
    ours.load_state_dict(theirs.state_dict())
    draws = RELU_DRAWS if _is_relu(theirs) and work.mode == "training" else 1
    with torch.set_grad_enabled(work.mode == "training"):
        for _ in range(draws):
            mismatch = difference(theirs, work.results(ours), work)
            if mismatch is None:
                return
            work.data.detach().normal_()
    raise MismatchError(mismatch)


def _is_relu(module: nn.Module) -> bool:
    return getattr(module, "nonlinearity", "") == "relu"  # GRU and LSTM have none


def difference(theirs: nn.Module, results: Mapping[str, Tensor], work: Workload) -> str | None:
    """Returns which of ``results`` differs from those of ``theirs``, and by how much."""
    precise, dtype = None, _precise_dtype(work.data)
    if dtype is not None:
        precise = work.to(dtype).results(copy.deepcopy(theirs).to(dtype))
    relu = _is_relu(theirs)
    return first_difference(work.results(theirs), results, precise, relu=relu)


def tolerance(dtype: torch.dtype, name: str, *, relu: bool) -> float:
    """Returns how large the error of result ``name`` may be, relative to the result (2-norms).

    float32 and float64: ``nn.RNN`` in float32 is 1 to 10 eps away from itself in float64 (T up to
    4096, H up to 1024). 64 eps covers the rounding of both sides, but not one wrong element among
    1e9.

    Half precision: 1 eps, in addition to twice ``nn.RNN``'s own error, which ``first_difference``
    allows. Rounding a result and the states that it is computed from changes it by less.

    Gradients through a relu need more. Where a pre-activation is within rounding of zero, the two
    sides may disagree on its sign, and so on all of its gradient. This happens to a fraction of
    about eps of the elements, so it changes the norm by about sqrt(eps) of its value; the 8 is for
    elements with a larger gradient than most. In half precision ``nn.RNN``'s own error has such
    elements too.
    """
    eps = torch.finfo(dtype).eps
    through_relu = relu and name.startswith(GRADIENT)
    if dtype.itemsize == 2:
        return math.sqrt(eps) if through_relu else eps
    return 8 * math.sqrt(eps) if through_relu else 64 * eps


def first_difference(
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    precise: Mapping[str, Tensor] | None = None,
    *,
    relu: bool = False,
) -> str | None:
    """Returns which of our results differs first, and by how much; None if none does.

    If ``precise`` results are given, our distance from them may be ``tolerance`` plus twice that of
    ``theirs``. Half precision needs this: over a long sequence ``nn.RNN`` itself is many eps off.
    """
    for name, expected in (precise or theirs).items():
        actual = ours.get(name)
        if actual is None:
            return f"{name} is missing"
        if actual.shape != expected.shape:
            return f"{name} has shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
        error = _distance(actual, expected)
        allowed = tolerance(actual.dtype, name, relu=relu) * float(
            torch.linalg.vector_norm(expected)
        )
        if precise is not None:
            allowed += 2 * _distance(theirs[name], expected)
        # Written so that NaN is a difference.
        if not error <= allowed:
            return f"{name} is off by {error:.2g} (2-norm), more than {allowed:.2g}"
    return None


def _precise_dtype(like: Tensor) -> torch.dtype | None:
    """Returns the dtype of the reference for both sides; None to compare them directly."""
    if like.is_cuda and like.dtype != torch.float64:
        # TF32 has the precision of half, and float32 sums over all rows have any order.
        return torch.float64
    return torch.float32 if like.dtype.itemsize == 2 else None


def _distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b))
