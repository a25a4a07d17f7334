"""The accuracy of a layer's results: a case's fp64 reference, nn.RNN's errors, the bounds."""

import functools
import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from support import using_threads
from support.cases import Case, Problem
from support.reference import reference_layers


@dataclass(frozen=True)
class Error:
    """Errors of one tensor against the fp64 reference."""

    name: str
    ours_max: float
    theirs_max: float
    ours_rms: float
    theirs_rms: float
    scale: float
    eps: float

    @classmethod
    def of(cls, name: str, ours: Tensor, theirs: Tensor, exact: Tensor, scale: float) -> "Error":
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape == exact.shape, name
        errors = [(t.double() - exact).flatten() for t in (ours, theirs)]
        ours_max, theirs_max = (e.abs().max().item() for e in errors)
        ours_rms, theirs_rms = (e.square().mean().sqrt().item() for e in errors)
        eps = torch.finfo(ours.dtype).eps
        return cls(name, ours_max, theirs_max, ours_rms, theirs_rms, scale, eps)

    @property
    def ratio(self) -> float:
        """Our error over theirs. The floor, 1/64 ulp of the scale, is far below a rounding error;
        it only keeps a tensor that came out exact from dividing by zero."""
        floor = self.eps / 64 * self.scale + sys.float_info.min
        return (self.ours_rms + floor) / (self.theirs_rms + floor)


@dataclass(frozen=True)
class Exact:
    """The fp64 reference's results for a problem.

    `scales` are the sizes that errors are measured by: the largest value of each tensor, of a
    gradient also under upstream gradients of other signs, for a gradient of few elements may
    come out small only because large terms cancel. `nearest_to_kink` is the pre-activation
    nearest to zero over their root mean square; exact zeros, of rows that are zero altogether,
    are the same in any precision.
    """

    results: dict[str, Tensor]
    scales: dict[str, float]
    nearest_to_kink: float


@functools.lru_cache(maxsize=4)
def expected(case: Case) -> tuple[Problem, Exact, dict[str, Tensor]]:
    """The case's tensors, the fp64 reference's results and nn.RNN's.

    At a relu pre-activation within rounding of zero either gradient is right, so such draws are
    passed over; in the 16-bit types, where hardly a draw would be left, the bounds pass over the
    gradients instead.
    """
    for attempt in range(50):
        problem = Problem.of(case, attempt)
        with using_threads(1):  # tensors this small gain nothing from torch's own threads
            exact = run_reference(problem)
            theirs = problem.run(case.module(nn))
        if case.is_smooth or case.dtype != torch.float32 or exact.nearest_to_kink > 4e-6:
            return problem, exact, theirs
    raise AssertionError(f"no draw of {case} is clear of the kink: make it smaller")


def run_reference(problem: Problem) -> Exact:
    case, packing = problem.case, problem.packing
    exact = {name: leaf.double().requires_grad_() for name, leaf in problem.leaves.items()}
    x, initial = problem.arguments(exact)
    if case.form == "unbatched":
        x, initial = x.unsqueeze(1), [t.unsqueeze(1) for t in initial]
    elif case.batch_first and packing is None:
        x = x.transpose(0, 1)
    if packing is not None and packing.sorted_indices is not None:
        initial = [t[:, packing.sorted_indices] for t in initial]
    preactivations: list[Tensor] = []
    output, *finals = reference_layers(
        x,
        initial,
        [leaf for name, leaf in exact.items() if name.startswith(("weight_", "bias_"))],
        kind=case.kind,
        nonlinearity=case.nonlinearity,
        num_layers=case.num_layers,
        bias=case.bias,
        bidirectional=case.bidirectional,
        batch_sizes=None if packing is None else packing.batch_sizes,
        preactivations=preactivations,
    )
    if case.form == "unbatched":
        output, finals = output.squeeze(1), [t.squeeze(1) for t in finals]
    elif case.batch_first and packing is None:
        output = output.transpose(0, 1)
    if packing is not None and packing.unsorted_indices is not None:
        finals = [t[:, packing.unsorted_indices] for t in finals]
    produced = problem.named([output, *finals])
    nearest = math.inf
    if not case.is_smooth:
        z = torch.cat([z.abs().flatten() for z in preactivations])
        nearest = (z.where(z > 0, torch.inf).min() / z.square().mean().sqrt()).item()
    scales = {}
    if case.dtype != torch.float64:
        scales = problem.typical_gradients(exact, produced)
    results = problem.results(exact, produced)
    for name, result in results.items():
        scales[name] = max(scales.get(name, 0.0), result.abs().max().item())
    return Exact(results, scales, nearest)


def errors_of(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], exact: Exact
) -> tuple[Error, ...]:
    """The errors of every tensor, all on the CPU."""
    assert ours.keys() == theirs.keys() == exact.results.keys()
    with using_threads(1):
        return tuple(
            Error.of(name, ours[name], theirs[name], result, exact.scales[name])
            for name, result in exact.results.items()
        )


def assert_as_exact_as_nn_rnn(case: Case, errors: tuple[Error, ...], where: str) -> None:
    """The contract's bounds on single tensors."""
    for error in errors:
        if case.dtype == torch.float64:
            bound = 1e-9 * error.scale
        elif case.dtype == torch.float32:
            bound = 8 * error.theirs_max + 64 * error.eps * error.scale
        elif not case.is_smooth and error.name.startswith("grad"):
            continue
        else:
            # Twice nn.RNN's, and one unit in the last place of stored values: a tensor of few
            # elements may be exact in nn.RNN by chance.
            bound = 2 * error.theirs_max + error.eps * error.scale
        assert error.ours_max <= bound, (str(case), where, error)
