"""Parity with torch over the grid of kinds, options, sizes, layouts, ISA levels and threads."""

import functools
import itertools
import statistics
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from support import ISA_LEVELS, KINDS, SPLITS, same_bits, using_isa, using_threads
from support.cases import Case, Problem, base_shape, covering_design, viewed
from support.parity import assert_as_exact_as_nn_rnn, errors_of, expected

import rnn_ext

GRID = tuple(covering_design(seed=0))

# Reductions so long that a single chain of additions would exceed the error bound: over hidden and
# input size in a step, over all time steps and rows in the weight gradients.
LONG_RNN = (
    Case(2, 1, 3, 1100),
    Case(2, 3, 1500, 5, upstream="sum"),
    Case(3, 2, 33, 1025, nonlinearity="relu", bidirectional=True),
    Case(3000, 1, 1, 1, upstream="sum"),
    Case(1000, 17, 2, 3, upstream="sum"),
    Case(1500, 8, 7, 5, bias=True, form="packed", upstream="sum"),
    Case(700, 33, 3, 17, bidirectional=True, threads="2"),
    Case(40, 257, 17, 31, num_layers=2, threads="many", upstream="sum"),
)
LONG = LONG_RNN + tuple(
    replace(case, kind=kind, nonlinearity="tanh") for case in LONG_RNN for kind in ("GRU", "LSTM")
)
HALVES = (torch.bfloat16, torch.float16)
LONG_HALVES = tuple(replace(case, dtype=dtype) for case in LONG_RNN for dtype in HALVES)


@functools.cache
def errors(case, isa):
    """Every tensor's error. Cached: the case's own test and the means over all cases share it."""
    problem, exact, theirs = expected(case)
    # Each way to share a call, for the cases with a team.
    split = SPLITS[case.hidden_size % len(SPLITS)] if case.thread_count > 1 else None
    with using_isa(isa), using_threads(case.thread_count, split):
        ours = problem.run(case.module(rnn_ext))
    return errors_of(ours, theirs, exact)


def mean_ratios(cases, isa, kind, dtype=torch.float32):
    """Geometric means of the error ratios over a kind's cases: of each tensor, and all."""
    ratios = defaultdict(list)
    for case in cases:
        if case.dtype == dtype and case.kind == kind:
            for error in errors(case, isa):
                ratios[error.name.split("_l")[0]].append(error.ratio)
                ratios["all"].append(error.ratio)
    return {name: statistics.geometric_mean(values) for name, values in ratios.items()}


def replayable(cases):
    """One test per case and ISA level; the id describes the whole case."""
    return [pytest.param(case, isa, id=f"{case}-{isa}") for case in cases for isa in ISA_LEVELS]


@pytest.mark.parametrize(("case", "isa"), replayable(GRID))
def test_forward_and_every_gradient_are_as_exact_as_nn_rnn(case, isa):
    assert_as_exact_as_nn_rnn(case, errors(case, isa), isa)


@pytest.mark.parametrize(("case", "isa"), replayable(LONG + LONG_HALVES))
def test_long_reductions_are_as_exact_as_nn_rnn(case, isa):
    assert_as_exact_as_nn_rnn(case, errors(case, isa), isa)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISA_LEVELS)
def test_mean_error_over_the_grid_is_that_of_torch(isa, kind):
    means = mean_ratios(GRID, isa, kind)
    assert means["all"] <= 1.25, means


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISA_LEVELS)
def test_mean_error_of_long_reductions_is_that_of_torch(isa, kind):
    means = mean_ratios(LONG, isa, kind)
    assert means["all"] <= 1.25, means
    # Bias gradients summed in one chain over all steps and rows measure 6, in chunks of 32 rows
    # 2; the mean over all tensors alone would let the chain pass.
    assert max(means.values()) <= 3, means


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISA_LEVELS)
def test_mean_error_in_16_bits_is_below_that_of_torch(isa, kind, dtype):
    """State and sums are fp32, so little but the rounding of stored values is left, in relu too."""
    assert mean_ratios(GRID, isa, kind, dtype)["all"] <= 0.75
    if kind == "RNN":
        assert mean_ratios(LONG_HALVES, isa, kind, dtype)["all"] <= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_further_covering_designs(seed):
    cases = tuple(covering_design(seed))
    for case, isa in itertools.product(cases, ISA_LEVELS):
        assert_as_exact_as_nn_rnn(case, errors(case, isa), isa)
    for isa, kind in itertools.product(ISA_LEVELS, KINDS):
        means = mean_ratios(cases, isa, kind)
        assert means["all"] <= 1.25, (isa, kind, means)
        for dtype in HALVES:
            assert mean_ratios(cases, isa, kind, dtype)["all"] <= 0.75, (isa, kind, dtype)


@pytest.mark.parametrize("case", GRID[::4], ids=str)
def test_forward_without_gradients_gives_the_same_bits(case, isa):
    problem = Problem.of(case)
    module = case.module(rnn_ext)
    with_gradients = problem.run(module)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for name, result in problem.call(module, problem.leaves).items():
                assert same_bits(result, with_gradients[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_reference_agrees_with_torch_in_fp64(kind):
    """The reference is itself checked, against torch's own op on packed, stacked, two-way data."""
    case = Case(7, 5, 3, 4, 2, True, kind, dtype=torch.float64, form="packed_unsorted")
    _, exact, theirs = expected(case)
    for name, reference in exact.results.items():
        # Rounding of fp64 over some 30 products a value.
        assert (theirs[name] - reference).abs().max() <= 1e-13 * reference.abs().max(), name


def test_layouts_have_the_strides_of_their_names():
    shape = (4, 5, 6)
    for layout in ("transposed", "strided", "sliced", "expanded"):
        view = viewed(layout, torch.randn(base_shape(layout, shape)), shape)
        assert view.shape == shape
        assert not view.is_contiguous()
