"""Measures the rows of a run, one after the other."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from rnn_ext.bench.check import MismatchError
from rnn_ext.bench.workload import MODES, Mode

from . import gpu, limits
from .call import measure_linear
from .cases import Case
from .frozen import NOT_FROZEN, measure_frozen
from .gemm import gemm_rates
from .machine import available_memory
from .measure import kernels, measure
from .memory import LIBRARIES, MemoryProbeError, measure_memory
from .peers.pool import Pool
from .recurrences import measure_recurrence
from .resets import LOOP, WITHOUT, measure_resets
from .results import Measured, Row, Run

__all__ = ["Plan", "measure_limits", "measure_rows"]


@dataclass(frozen=True)
class Plan:
    """The measurements of a run.

    ``cases`` are pairs of a case and its baseline. With ``peers`` the other runtimes are timed, and
    not the baseline.
    """

    cases: Sequence[tuple[Case, str]]
    modes: Sequence[Mode] = MODES
    threads: Sequence[int] = (1,)
    device: str = "cpu"
    tf32: bool = False
    memory: bool = False
    peers: bool = False


def measure_rows(run: Run, plan: Plan, keep: Callable[[], object]) -> int:
    """Measures into ``run`` and calls ``keep`` after every step.

    Returns the exit code. A failure on a GPU is noted and the rest measured, since a GPU may be at
    hand for minutes only.
    """
    status = 0
    own_threads = torch.get_num_threads()
    try:
        # disable=None: silent where stderr is no terminal.
        total = len(plan.threads) * len(plan.cases) * len(plan.modes)
        with tqdm(total=total, unit="timing", leave=False, disable=None) as bar:
            for threads in plan.threads:
                torch.set_num_threads(threads)
                workers = Pool(threads, plan.device, tf32=plan.tf32) if plan.peers else None
                with workers or nullcontext():
                    for case, baseline in plan.cases:
                        row = Row(case, threads, baseline)
                        run.cells.append(row)
                        for mode in plan.modes:
                            bar.set_postfix_str(f"{case} {mode}")
                            seconds = run.seconds_per_cell / len(plan.modes)
                            try:
                                found = _measure(row, mode, seconds, plan, workers)
                            except (MismatchError, RuntimeError) as error:
                                if plan.device == "cpu":
                                    raise
                                found, status = Measured(note=f"{case} ({mode}): {error}"), 1
                            setattr(row, mode, found)
                            bar.update()
                            keep()
    finally:
        torch.set_num_threads(own_threads)
    return status


def measure_limits(run: Run, plan: Plan) -> None:
    """Measures the limits of every number of threads, and of one, which a call may choose."""
    cases = [case for case, _ in plan.cases]
    if plan.device == "cuda":
        run.gemm[torch.get_num_threads()] = rates = gpu.gemm_rates(cases[0].dtype)
        run.roofline = gpu.measure_roofline(cases, rates)
        return
    own_threads = torch.get_num_threads()
    for threads in dict.fromkeys([*plan.threads, 1]):
        torch.set_num_threads(threads)
        gemm = gemm_rates(cases[0].dtype)
        asked_for = threads in plan.threads
        if asked_for:
            run.gemm[threads] = gemm
        run.limits[threads] = limits.measure_limits(cases, gemm, with_products=asked_for)
    torch.set_num_threads(own_threads)


def _measure(row: Row, mode: Mode, seconds: float, plan: Plan, workers: Pool | None) -> Measured:
    case = row.case
    needed, available = case.memory(mode), available_memory()
    if plan.device == "cuda":
        needed *= 3  # nn.RNN in float64 beside it
        available = gpu.available_memory()
    if workers:
        needed *= len(workers)  # each has its own tensors, all at once
    if needed > available:
        return Measured(
            note=f"skipped {case} ({mode}): takes up to {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available"
        )
    if workers:
        peer_seconds, notes = workers.measure(case, mode, seconds)
        return Measured(peer_seconds=peer_seconds, note="\n".join(notes))
    if case.recurrence:
        return measure_recurrence(case, mode, row.baseline, seconds)
    if row.baseline == "F.linear":
        timings = measure_linear(case, mode, seconds)
    elif row.baseline == NOT_FROZEN:
        timings = measure_frozen(case, mode, seconds)
    elif row.baseline in (LOOP, WITHOUT):
        timings = measure_resets(case, mode, row.baseline, seconds)
    else:
        timings = measure(case, mode, seconds, plan.device)
    measured = Measured(timings.hot, timings.cold)
    if plan.device == "cuda":
        measured.kernels = kernels(case, mode, plan.device)
    if plan.memory:
        try:
            for library in LIBRARIES:
                memory = measure_memory(case, mode, library, row.threads)
                measured.memory_bytes[library] = memory
        except MemoryProbeError as error:
            measured.note = f"memory of {case} ({mode}) is unknown: {error}"
    return measured
