"""Are two sets of results the same, up to rounding?"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .cases import Case

__all__ = ["GRADIENT", "first_difference", "tolerance"]

# What the name of a gradient starts with.
GRADIENT = "gradient of "


def tolerance(case: Case, name: str) -> float:
    """How large the error of result ``name`` may be, as a share of the result (2-norms).

    float32 and float64: ``nn.RNN`` in fp32 is 1 to 10 eps away from itself in fp64 (T up to 4096,
    H up to 1024): 64 eps has room for the rounding of both sides, and one wrong element among 1e9
    is above it.

    Half precision: beside twice ``nn.RNN``'s own error, which ``first_difference`` allows, 1 eps.
    Rounding a result and the states that it comes from moves it by less than that.

    Gradients through a relu need more. Where a pre-activation is within rounding of zero, the two
    sides may disagree on its sign, and so on all of its gradient. This strikes a share of about eps
    of the elements, hence a share of about sqrt(eps) of the norm; the 8 is for elements whose
    gradient is larger than most. In half precision ``nn.RNN``'s own error has such elements too.
    """
    eps = torch.finfo(case.dtype).eps
    through_relu = case.nonlinearity == "relu" and name.startswith(GRADIENT)
    if case.is_half:
        return math.sqrt(eps) if through_relu else eps
    return 8 * math.sqrt(eps) if through_relu else 64 * eps


def first_difference(
    case: Case,
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    precise: Mapping[str, Tensor] | None = None,
) -> str | None:
    """Say which of our results differs first and by how much; ``None`` where none does.

    Ours are compared with ``nn.RNN``'s. Half precision is too coarse for that: over a long sequence
    ``nn.RNN`` itself is many eps off. There ``precise`` are its results in float32 (on a GPU
    float64), and our distance from them may be twice theirs.
    """
    for name, expected in (precise or theirs).items():
        actual = ours.get(name)
        if actual is None:
            return f"{name} is missing"
        if actual.shape != expected.shape:
            return f"{name} has shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
        error = _distance(actual, expected)
        allowed = tolerance(case, name) * float(torch.linalg.vector_norm(expected))
        if precise is not None:
            allowed += 2 * _distance(theirs[name], expected)
        # Written so that NaN is a difference.
        if not error <= allowed:
            return f"{name} is off by {error:.2g} (2-norm), allowed are {allowed:.2g}"
    return None


def _distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b))
