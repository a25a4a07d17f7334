"""``rnn-ext bench``: its flags, its table and its JSON."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from torch import nn

import rnn_ext

from ..cli.arguments import output_file, positive_float, positive_int, thread_count
from .check import MismatchError, check
from .timing import Timing, Timings, Waiting, scatter_warning, time_hot_and_cold
from .workload import MODES, Mode, Workload

__all__ = ["add_arguments", "integers", "modes", "run", "seconds_text", "thread_counts"]


TITLES = ["T", "B", "I", "H", "mode", "hot: torch", "rnn_ext", "ratio"]
TITLES += ["cold: torch", "rnn_ext", "ratio"]
WIDTHS = [5, 5, 5, 5, 8, 10, 8, 6, 11, 8, 6]
LEGEND = (
    "hot: calls in a loop; cold: each call after other work, as in a program. ratio: torch's time "
    "over that of rnn_ext, the median of alternating rounds. Results were compared first."
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a call; a cell has one step and one layer."""

    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        return f"T={self.seq_len} B={self.batch_size} I={self.input_size} H={self.hidden_size}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of ``rnn-ext bench`` to ``parser``."""
    parser.description = (
        "Time rnn_ext.RNN against torch.nn.RNN on the CPU, with the same weights and input, after "
        "comparing their results. A list such as 1,8,32 measures every combination."
    )
    add = parser.add_argument
    add("--cell", action="store_true", help="time RNNCell, a single step, instead of RNN")
    for flag, default, what in (
        ("--seq-len", (16, 128), "sequence lengths T"),
        ("--batch-size", (1, 32), "batch sizes B"),
        ("--hidden-size", (32, 128, 512), "hidden sizes H"),
    ):
        shown = ",".join(map(str, default))
        what += f" (default: {shown})"
        add(flag, type=integers, metavar="N[,N...]", default=default, help=what)
    add("--input-size", type=positive_int, metavar="N", help="input size I (default: H)")
    add("--num-layers", type=positive_int, default=1, metavar="N", help="layers (default: 1)")
    add("--bidirectional", action="store_true", help="both directions of time")
    add("--nonlinearity", choices=("tanh", "relu"), default="tanh", help="default: tanh")
    dtypes = ("float32", "float64", "bfloat16", "float16")
    add("--dtype", choices=dtypes, default="float32", help="default: float32")
    add(
        "--mode",
        type=modes,
        default=MODES,
        metavar="MODE[,MODE]",
        help="forward (without gradients), training (forward and backward); default: both",
    )
    add(
        "--threads",
        type=thread_counts,
        metavar="N[,N...]",
        help="numbers of threads, a table for each (default: torch's own, every core)",
    )
    add(
        "--seconds",
        type=positive_float,
        default=1.0,
        metavar="S",
        help="time for a line of the table (default: 1); slow calls take longer",
    )
    add("--json", type=output_file, metavar="FILE", help="write all measurements as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures and prints every combination.

    Returns 0; 1 if results differ; 130 after Ctrl-C, when the measurements so far are written.
    """
    own_threads = torch.get_num_threads()
    measured: list[dict[str, Any]] = []
    status = 0
    try:
        for threads in args.threads or (own_threads,):
            torch.set_num_threads(threads)
            _measure_table(args, measured, threads)
    except MismatchError as error:
        print(f"rnn-ext: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    finally:
        torch.set_num_threads(own_threads)
        if args.json:
            _write(args.json, measured)
    if status != 1:
        print(f"{LEGEND}\n{', '.join(f'{key} {value}' for key, value in _machine().items())}")
    return status


def integers(text: str) -> tuple[int, ...]:
    """Parses positive whole numbers, separated by commas, and drops duplicates."""
    return tuple(dict.fromkeys(positive_int(word) for word in text.split(",")))


def thread_counts(text: str) -> tuple[int, ...]:
    """Parses numbers of threads, separated by commas, and drops duplicates."""
    return tuple(dict.fromkeys(thread_count(word) for word in text.split(",")))


def modes(text: str) -> tuple[Mode, ...]:
    """Parses modes, separated by commas."""
    chosen = text.split(",")
    if unknown := [mode for mode in chosen if mode not in MODES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in chosen)


def seconds_text(seconds: float) -> str:
    """Returns three digits and a unit: ``456 ns``, ``12.3 µs``, ``4.56 ms``, ``7.89 s``."""
    units = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
    unit = next((unit for unit, scale in units.items() if seconds >= scale), "ns")
    value = seconds / units[unit]
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def _measure_table(args: argparse.Namespace, measured: list[dict[str, Any]], threads: int) -> None:
    """Prints a table, line by line, and appends the timings to ``measured``."""
    name = "RNNCell" if args.cell else "RNN"
    settings = [name, args.dtype, args.nonlinearity, f"{threads} thread{'s' * (threads > 1)}"]
    if not args.cell:
        settings.insert(3, f"{args.num_layers} layer{'s' * (args.num_layers > 1)}")
        settings[3] += " bidirectional" * args.bidirectional
    print(", ".join(settings))
    print(_line(TITLES))
    print(_line([f"{'-' * (width - 1)}:" for width in WIDTHS]))
    results: dict[Mode, list[Timings]] = {mode: [] for mode in args.mode}
    waiting = Waiting()
    for shape, mode in product(_shapes(args), args.mode):
        timings = _measure(args, shape, mode)
        cells = [*map(str, asdict(shape).values()), mode]
        print(_line([*cells, *_time_cells(timings.hot), *_time_cells(timings.cold)]), flush=True)
        results[mode].append(timings)
        case = {"module": name, "mode": mode, "threads": threads, "dtype": args.dtype}
        measured.append(asdict(shape) | case | asdict(timings))
    for mode, all_timings in results.items():
        print(f"{mode}: {_means(all_timings)}")
    hot = [timings.hot for many in results.values() for timings in many]
    if warning := waiting.warning() or scatter_warning(hot):
        print(warning)
    print()


def _shapes(args: argparse.Namespace) -> Iterator[Shape]:
    lengths = (1,) if args.cell else args.seq_len
    for seq_len, batch, hidden in product(lengths, args.batch_size, args.hidden_size):
        yield Shape(seq_len, batch, args.input_size or hidden, hidden)


def _measure(args: argparse.Namespace, shape: Shape, mode: Mode) -> Timings:
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    options: dict[str, Any] = {"nonlinearity": args.nonlinearity, "dtype": dtype}
    if not args.cell:
        options |= {"num_layers": args.num_layers, "bidirectional": args.bidirectional}
    kinds = (nn.RNNCell, rnn_ext.RNNCell) if args.cell else (nn.RNN, rnn_ext.RNN)
    theirs, ours = (
        kind(shape.input_size, shape.hidden_size, **options).train(mode == "training")
        for kind in kinds
    )
    steps = () if args.cell else (shape.seq_len,)
    rows = (*steps, shape.batch_size)
    training = mode == "training"
    directions = 2 if args.bidirectional and not args.cell else 1
    work = Workload(
        data=torch.randn(*rows, shape.input_size, dtype=dtype, requires_grad=training),
        hx=torch.randn(*rows, shape.hidden_size, dtype=dtype, requires_grad=training)
        if args.cell
        else None,
        grad_output=torch.randn(*rows, directions * shape.hidden_size, dtype=dtype)
        if training
        else None,
    )
    try:
        check(theirs, ours, work)
    except MismatchError as error:
        raise MismatchError(f"rnn_ext and torch differ at {shape} ({mode}): {error}") from None
    with torch.set_grad_enabled(training):
        return time_hot_and_cold(work.step(theirs), work.step(ours), args.seconds)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(str.rjust, cells, WIDTHS))} |"


def _time_cells(timing: Timing | None) -> list[str]:
    if timing is None:
        return ["", "", ""]
    times = timing.baseline_seconds.median, timing.rnn_ext_seconds.median
    return [*map(seconds_text, times), f"{timing.ratio.median:.2f}"]


def _means(all_timings: Sequence[Timings]) -> str:
    parts = []
    for name, many in (
        ("hot", [t.hot for t in all_timings]),
        ("cold", [t.cold for t in all_timings if t.cold]),
    ):
        if ratios := [timing.ratio.median for timing in many]:
            mean = f"{geometric_mean(ratios):.2f}"
            parts.append(
                f"{name} {mean} times as fast in geometric mean, {min(ratios):.2f} at worst"
            )
    return "; ".join(parts)


def _machine() -> dict[str, Any]:
    info = rnn_ext.build_info()
    return {
        "cores": os.cpu_count(),
        "ISA": info["isa"],
        "rnn_ext": info["version"],
        "torch": info["torch_running"],
    }


def _write(path: Path, measured: list[dict[str, Any]]) -> None:
    command = f"rnn-ext {shlex.join(sys.argv[1:])}"
    content = {"command": command, "machine": rnn_ext.build_info(), "timings": measured}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
