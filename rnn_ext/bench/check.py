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
    """How large the difference in result ``name`` may be, as a share of the result (2-norms).

    ``nn.RNN`` in fp32 is 1 to 10 eps away from itself in fp64 (T up to 4096, H up to 1024): 64 eps
    has room for the rounding of both sides, and one wrong element among 1e9 is above it.

    Gradients through a relu need more. Where a pre-activation is within rounding of zero, the two
    sides may disagree on its sign, and so on all of its gradient. This strikes a share of about eps
    of the elements, hence a share of about sqrt(eps) of the norm; the 8 is for elements whose
    gradient is larger than most.
    """
    eps = torch.finfo(case.dtype).eps
    if case.nonlinearity == "relu" and name.startswith(GRADIENT):
        return 8 * math.sqrt(eps)
    return 64 * eps


def first_difference(
    case: Case, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> str | None:
    """Say which of the results differs first and by how much; ``None`` where none does."""
    for name, expected in theirs.items():
        actual = ours.get(name)
        if actual is None:
            return f"{name} is missing"
        if actual.shape != expected.shape:
            return f"{name} has shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
        norm = float(torch.linalg.vector_norm(expected))
        error = float(torch.linalg.vector_norm(actual - expected))
        allowed = tolerance(case, name) * norm
        # Written so that NaN is a difference.
        if not error <= allowed:
            return f"{name} is off by {error:.2g} (2-norm), allowed are {allowed:.2g}"
    return None
