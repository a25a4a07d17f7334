"""``rnn-ext bench``: the walk over the cases."""

import argparse
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from importlib import import_module

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from . import gpu
from .cases import MODES, Case, Mode
from .flags import add_arguments, cases_from, device_from, refuse_beside
from .gemm import gemm_rates
from .limits import measure_limits
from .machine import available_memory, facts
from .measure import MismatchError, measure, route
from .memory import LIBRARIES, MemoryProbeError, check_support, measure_memory
from .peers.pool import Pool, versions
from .peers.report import format_peers
from .report import format_limits, format_report
from .results import Measured, Row, Run, read, write

__all__ = ["add_arguments", "run"]

SECONDS_PER_CELL = 2.0


def run(args: argparse.Namespace) -> int:
    """Measure, or take the results of an earlier run; print the report and draw the picture.

    Returns 0; 1 where results differ, or a call on a GPU fails; 130 after Ctrl-C, with what was
    measured until then.
    """
    # Without matplotlib, fail now, not after minutes of measuring.
    plot = import_module(".plot", __package__) if args.plot else None
    status = 0
    if args.source:
        refuse_beside("--from", "shows an earlier run", args)
        results = read(args.source)
    else:
        cases, device = cases_from(args), device_from(args)
        if args.memory:
            check_support()
        machine = facts()
        if device == "cuda":
            gpu.set_precision(bool(args.tf32))
            machine["gpu"] = gpu.facts(bool(args.tf32))
        results = Run(
            command=f"rnn-ext {shlex.join(sys.argv[1:])}",
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=machine,
            seconds_per_cell=args.seconds_per_cell or SECONDS_PER_CELL,
            peers=versions(device) if args.peers else {},
        )
        try:
            status = _walk(results, cases, args, device)
        except KeyboardInterrupt:
            status = 130
        except MismatchError as error:
            print(f"rnn-ext: {error}", file=sys.stderr)
            return 1
    if args.limits:
        print(format_limits(results))
    else:
        print("\n\n".join([format_report(results), *format_peers(results)]))
    if plot is not None:
        plot.save(results, args.plot)
    return status


def _walk(results: Run, cases: list[Case], args: argparse.Namespace, device: str) -> int:
    """Measure ``cases`` into ``results``, which are in the JSON file after every step.

    Returns the exit code. What fails on a GPU is noted and the rest measured, since one may be at
    hand for minutes only.
    """
    status = 0
    modes: tuple[Mode, ...] = args.mode or MODES
    own_threads = torch.get_num_threads()
    numbers = list(dict.fromkeys(args.threads or [own_threads]))

    def keep() -> None:
        if args.json:
            write(results, args.json)

    keep()
    try:
        # disable=None: silent where stderr is no terminal.
        total = len(numbers) * len(cases) * len(modes)
        with tqdm(total=total, unit="timing", leave=False, disable=None) as bar:
            bar.set_postfix_str("limits of the machine")
            if device == "cuda":
                _measure_gpu(results, cases)
            else:
                _measure_limits(results, cases, numbers)
            for threads in [] if args.limits else numbers:
                torch.set_num_threads(threads)
                with _pool(args, threads, device) as pool:
                    for case in cases:
                        row = Row(case, threads)
                        results.rows.append(row)
                        for mode in modes:
                            bar.set_postfix_str(f"{case} {mode}")
                            seconds = results.seconds_per_cell / len(modes)
                            try:
                                found = _measure(row, mode, seconds, pool, args, device)
                            except (MismatchError, RuntimeError) as error:
                                if device == "cpu":
                                    raise
                                found, status = Measured(note=f"{row.case} ({mode}): {error}"), 1
                            row.measured[mode] = found
                            bar.update()
                            keep()
        results.complete = True
        keep()
    finally:
        torch.set_num_threads(own_threads)
    return status


def _pool(
    args: argparse.Namespace, threads: int, device: str
) -> AbstractContextManager[Pool | None]:
    return Pool(threads, device, tf32=bool(args.tf32)) if args.peers else nullcontext()


def _measure_limits(results: Run, cases: list[Case], numbers: list[int]) -> None:
    """Those of every number of threads, and of one, since a call may be left to a single thread."""
    for threads in dict.fromkeys([*numbers, 1]):
        torch.set_num_threads(threads)
        gemm = gemm_rates(cases[0].dtype)
        asked_for = threads in numbers
        if asked_for:
            results.gemm[threads] = gemm
        results.limits[threads] = measure_limits(cases, gemm, with_products=asked_for)


def _measure_gpu(results: Run, cases: list[Case]) -> None:
    rates = gpu.gemm_rates(cases[0].dtype)
    results.gemm[torch.get_num_threads()] = rates
    results.roofline = gpu.measure_roofline(cases, rates)


def _measure(
    row: Row,
    mode: Mode,
    seconds: float,
    pool: Pool | None,
    args: argparse.Namespace,
    device: str,
) -> Measured:
    needed, available = row.case.memory(mode), available_memory()
    if device == "cuda":
        needed *= 3  # nn.RNN in float64 beside it
        available = gpu.available_memory()
    if pool is not None:
        needed *= len(pool)  # each has its own tensors, all at once
    if needed > available:
        return Measured(
            note=f"skipped {row.case} ({mode}): takes up to {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available"
        )
    measured = Measured(measure(row.case, mode, seconds, device))
    if device == "cuda":
        measured.route = route(row.case, mode, device)
    if args.memory:
        try:
            measured.memory = {
                library: measure_memory(row.case, mode, library, row.threads)
                for library in LIBRARIES
            }
        except MemoryProbeError as error:
            measured.note = f"memory of {row.case} ({mode}) is unknown: {error}"
    if pool is not None:
        # As long for each as it had in turns with nn.RNN.
        measured.peers, notes = pool.measure(row.case, mode, seconds / 2)
        measured.note = "\n".join(filter(None, [measured.note, *notes]))
    return measured
