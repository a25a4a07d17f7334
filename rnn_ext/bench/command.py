"""``rnn-ext bench``: the walk over the cases."""

import argparse
import shlex
import sys
from contextlib import nullcontext
from datetime import datetime, timezone
from importlib import import_module

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from .cases import MODES, Case, Mode
from .flags import add_arguments, cases_from, refuse_beside
from .gemm import gemm_rates
from .limits import measure_limits
from .machine import available_memory, facts
from .measure import MismatchError, measure
from .memory import LIBRARIES, MemoryProbeError, check_support, measure_memory
from .peers.pool import Pool, versions
from .peers.report import format_peers
from .report import format_limits, format_report
from .results import Measured, Row, Run, read, write

__all__ = ["add_arguments", "run"]

SECONDS_PER_CELL = 2.0


def run(args: argparse.Namespace) -> int:
    """Measure, or take the results of an earlier run; print the report and draw the picture.

    Returns 0; 1 where results differ; 130 after Ctrl-C, with what was measured until then.
    """
    # Without matplotlib, fail now, not after minutes of measuring.
    plot = import_module(".plot", __package__) if args.plot else None
    status = 0
    if args.source:
        refuse_beside("--from", "shows an earlier run", args)
        results = read(args.source)
    else:
        cases = cases_from(args)
        if args.memory:
            check_support()
        results = Run(
            command=f"rnn-ext {shlex.join(sys.argv[1:])}",
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=facts(),
            seconds_per_cell=args.seconds_per_cell or SECONDS_PER_CELL,
            peers=versions() if args.peers else {},
        )
        try:
            _walk(results, cases, args)
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


def _walk(results: Run, cases: list[Case], args: argparse.Namespace) -> None:
    """Measure ``cases`` into ``results``, which are in the JSON file after every step."""
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
            _measure_limits(results, cases, numbers)
            for threads in [] if args.limits else numbers:
                torch.set_num_threads(threads)
                with Pool(threads) if args.peers else nullcontext() as pool:
                    for case in cases:
                        row = Row(case, threads)
                        results.rows.append(row)
                        for mode in modes:
                            bar.set_postfix_str(f"{case} {mode}")
                            seconds = results.seconds_per_cell / len(modes)
                            row.measured[mode] = _measure(
                                row, mode, seconds, pool, with_memory=args.memory
                            )
                            bar.update()
                            keep()
        results.complete = True
        keep()
    finally:
        torch.set_num_threads(own_threads)


def _measure_limits(results: Run, cases: list[Case], numbers: list[int]) -> None:
    """Those of every number of threads, and of one, since a call may be left to a single thread."""
    for threads in dict.fromkeys([*numbers, 1]):
        torch.set_num_threads(threads)
        gemm = gemm_rates(cases[0].dtype)
        asked_for = threads in numbers
        if asked_for:
            results.gemm[threads] = gemm
        results.limits[threads] = measure_limits(cases, gemm, with_products=asked_for)


def _measure(
    row: Row, mode: Mode, seconds: float, pool: Pool | None, *, with_memory: bool
) -> Measured:
    needed, available = row.case.memory(mode), available_memory()
    if pool is not None:
        needed *= len(pool)  # each has its own tensors, all at once
    if needed > available:
        return Measured(
            note=f"skipped {row.case} ({mode}): takes up to {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available"
        )
    measured = Measured(measure(row.case, mode, seconds))
    if with_memory:
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
