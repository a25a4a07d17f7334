"""``rnn-ext bench``: flags, and the walk over the grid."""

import argparse
import math
import sys
from collections.abc import Callable

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from .cases import BATCH_SIZES, HIDDEN_SIZES, LEFT_OUT, MODES, SEQ_LENS, Case, Mode, shapes
from .machine import available_memory, describe
from .measure import MismatchError, measure
from .report import Row, Table, format_table

__all__ = ["add_arguments", "run"]

# Keeps every product of sizes within a float's range.
MAX_SIZE = 2**31 - 1

# Far more than helps, and fewer than the process dies of.
MAX_THREADS = 1024

LEGEND = (
    "ratio: time of nn.RNN over time of rnn_ext, above 1 where rnn_ext is faster; GFLOP/s: rnn_ext"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``rnn-ext bench`` to ``parser``."""
    parser.description = (
        "Time rnn_ext.RNN against torch.nn.RNN on the CPU, in turns, with the same weights and "
        "input, after comparing their results. With none of the first three flags the grid lacks "
        "its largest cell, {}x{}x{}.".format(*LEFT_OUT)
    )
    for flag, default, what in (
        ("--seq-len", SEQ_LENS, "sequence lengths T"),
        ("--batch-size", BATCH_SIZES, "batch sizes B"),
        ("--hidden-size", HIDDEN_SIZES, "hidden sizes H"),
    ):
        shown = ",".join(map(str, default))
        parser.add_argument(
            flag, type=_numbers(MAX_SIZE), metavar="N[,N...]", help=f"{what} (default: {shown})"
        )
    parser.add_argument(
        "--input-size", type=_number(MAX_SIZE), metavar="N", help="input size I (default: H)"
    )
    parser.add_argument(
        "--num-layers", type=_number(MAX_SIZE), default=1, metavar="N", help="layers (default: 1)"
    )
    parser.add_argument("--bidirectional", action="store_true", help="both directions of time")
    parser.add_argument("--nonlinearity", choices=("tanh", "relu"), default="tanh")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument(
        "--mode",
        type=_modes,
        default=MODES,
        metavar="MODE[,MODE]",
        help="forward (without gradients), training (forward and backward); default: both",
    )
    parser.add_argument(
        "--threads",
        type=_numbers(MAX_THREADS),
        metavar="N[,N...]",
        help="numbers of threads, a table for each (default: torch's own, every core)",
    )
    parser.add_argument(
        "--seconds-per-cell",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="time for a cell, split over its modes; a cell with slow calls takes longer "
        "(default: 2)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure the grid and print the report.

    Returns 0; 1 where results differ; 130 after Ctrl-C, with what was measured until then.
    """
    cases = _cases(args)
    own_threads = torch.get_num_threads()
    tables = [Table(threads) for threads in args.threads or (own_threads,)]
    total = len(tables) * len(cases) * len(args.mode)
    status = 0
    try:
        # disable=None: silent where stderr is no terminal.
        with tqdm(total=total, unit="timing", leave=False, disable=None) as bar:
            for table in tables:
                torch.set_num_threads(table.threads)
                for case in cases:
                    table.rows.append(Row(case))
                    for mode in args.mode:
                        bar.set_postfix_str(f"{case} {mode}")
                        _measure_into(table.rows[-1], mode, args.seconds_per_cell / len(args.mode))
                        bar.update()
    except KeyboardInterrupt:
        status = 130
    except MismatchError as error:
        print(f"rnn-ext: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(own_threads)
    print(*(format_table(table, args.mode) for table in tables), LEGEND, describe(), sep="\n\n")
    return status


def _cases(args: argparse.Namespace) -> list[Case]:
    return [
        Case(
            seq_len=seq_len,
            batch_size=batch_size,
            input_size=args.input_size or hidden_size,
            hidden_size=hidden_size,
            num_layers=args.num_layers,
            bidirectional=args.bidirectional,
            nonlinearity=args.nonlinearity,
            dtype=getattr(torch, args.dtype),
        )
        for seq_len, batch_size, hidden_size in shapes(
            args.seq_len, args.batch_size, args.hidden_size
        )
    ]


def _measure_into(row: Row, mode: Mode, seconds: float) -> None:
    needed, available = row.case.memory(mode), available_memory()
    if needed <= available:
        row.timings[mode] = measure(row.case, mode, seconds)
    else:
        row.timings[mode] = None
        row.notes.append(
            f"skipped {row.case} ({mode}): takes up to {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available"
        )


def _number(largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if text.isdecimal() and len(text) <= len(str(largest)) and 1 <= int(text) <= largest:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {largest}")

    return parse


def _numbers(largest: int) -> Callable[[str], tuple[int, ...]]:
    parse = _number(largest)
    return lambda text: tuple(parse(part) for part in text.split(","))


def _modes(text: str) -> tuple[Mode, ...]:
    chosen = text.split(",")
    if unknown := [mode for mode in chosen if mode not in MODES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in chosen)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds
