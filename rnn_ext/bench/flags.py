"""The flags of ``rnn-ext bench``, and which cases they ask for."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..cli.arguments import output_file
from ..cli.errors import UserError
from .cases import BATCH_SIZES, HIDDEN_SIZES, LEFT_OUT, MODES, SEQ_LENS, Case, Mode, shapes
from .gpu import check_support
from .real import real_cases

__all__ = ["add_arguments", "cases_from", "device_from", "refuse_beside"]

# Keeps every product of sizes within a float's range.
MAX_SIZE = 2**31 - 1

# Far more than helps, and fewer than the process dies of.
MAX_THREADS = 1024

# The grid beside --peers: with all sizes, compiling and large cells would make it an hour.
PEERS_BATCH_SIZES = (1, 8, 32)
PEERS_HIDDEN_SIZES = (32, 128, 512)

# None where the flag is not given, so that it can be refused beside another.
SHAPE_FLAGS = {
    "seq_len": "--seq-len",
    "batch_size": "--batch-size",
    "hidden_size": "--hidden-size",
    "input_size": "--input-size",
    "num_layers": "--num-layers",
    "bidirectional": "--bidirectional",
    "nonlinearity": "--nonlinearity",
}
CELL_FLAGS = {
    "mode": "--mode",
    "seconds_per_cell": "--seconds-per-cell",
    "memory": "--memory",
    "plot": "--plot",
    "peers": "--peers",
}
CPU_FLAGS = {"threads": "--threads", "memory": "--memory"}

# What not every other runtime can do, or not alike.
NOT_FOR_PEERS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("real", "num_layers", "bidirectional", "nonlinearity", "dtype")
}
RUN_FLAGS = SHAPE_FLAGS | {
    "real": "--real",
    "dtype": "--dtype",
    "device": "--device",
    "tf32": "--tf32",
    "mode": "--mode",
    "threads": "--threads",
    "seconds_per_cell": "--seconds-per-cell",
    "memory": "--memory",
    "limits": "--limits",
    "peers": "--peers",
    "json": "--json",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``rnn-ext bench`` to ``parser``."""
    parser.description = (
        "Time rnn_ext.RNN against torch.nn.RNN, in turns, with the same weights and "
        "input, after comparing their results. With none of the first three flags the grid lacks "
        "its largest cell, {}x{}x{}.".format(*LEFT_OUT)
    )
    _add_shapes(parser)
    add = parser.add_argument
    add(
        "--real",
        type=_names,
        nargs="?",
        const=tuple(_real_names()),
        metavar="NAME[,NAME...]",
        help="calls as public projects make them, all or those named, instead of the grid",
    )
    add("--dtype", choices=("float32", "float64", "bfloat16", "float16"), help="default: float32")
    add("--device", choices=("cpu", "cuda"), help="where the calls run (default: cpu)")
    add(
        "--tf32",
        action="store_true",
        default=None,
        help="with --device cuda: products in float32 may be rounded to TF32, everybody's alike",
    )
    add(
        "--mode",
        type=_modes,
        metavar="MODE[,MODE]",
        help="forward (without gradients), training (forward and backward); default: both",
    )
    add(
        "--threads",
        type=_numbers(MAX_THREADS),
        metavar="N[,N...]",
        help="numbers of threads, a table for each (default: torch's own, every core)",
    )
    add(
        "--seconds-per-cell",
        type=_seconds,
        metavar="S",
        help="time for a cell, split over its modes; a cell with slow calls takes longer, for "
        "three rounds (default: 2)",
    )
    add(
        "--memory",
        action="store_true",
        default=None,
        help="also measure peak memory and what autograd keeps, each in a process of its own "
        "(some 8 seconds a cell)",
    )
    add(
        "--limits",
        action="store_true",
        default=None,
        help="measure and print only what the machine allows at best: products, memory, barriers, "
        "calls",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        default=None,
        help="also time other runtimes, each in a process of its own: nn.RNN, a loop under "
        "torch.compile, and on the CPU ONNX Runtime, OpenVINO and JAX, as far as they are "
        "installed; fewer sizes are the default then (batch {}; hidden {})".format(
            *(",".join(map(str, sizes)) for sizes in (PEERS_BATCH_SIZES, PEERS_HIDDEN_SIZES))
        ),
    )
    _add_files(parser)


def cases_from(args: argparse.Namespace) -> list[Case]:
    """What to measure; ``UserError`` where flags contradict each other."""
    batch_sizes, hidden_sizes = args.batch_size, args.hidden_size
    if args.peers:
        refuse_beside("--peers", "times one tanh layer in float32", args, NOT_FOR_PEERS)
        batch_sizes = batch_sizes or PEERS_BATCH_SIZES
        hidden_sizes = hidden_sizes or PEERS_HIDDEN_SIZES
    dtype = getattr(torch, args.dtype or "float32")
    if args.limits:
        refuse_beside("--limits", "measures no cell", args, CELL_FLAGS)
    if args.real is not None:
        refuse_beside("--real", "has its own shapes", args, SHAPE_FLAGS)
        return [case for case in real_cases(dtype) if case.name in args.real]
    return [
        Case(
            seq_len=seq_len,
            batch_size=batch_size,
            input_size=args.input_size or hidden_size,
            hidden_size=hidden_size,
            num_layers=args.num_layers or 1,
            bidirectional=bool(args.bidirectional),
            nonlinearity=args.nonlinearity or "tanh",
            dtype=dtype,
        )
        for seq_len, batch_size, hidden_size in shapes(args.seq_len, batch_sizes, hidden_sizes)
    ]


def device_from(args: argparse.Namespace) -> str:
    """What the calls run on; ``UserError`` where other flags have no meaning there."""
    device: str = args.device or "cpu"
    if device == "cuda":
        check_support()
        refuse_beside("--device cuda", "measures neither", args, CPU_FLAGS)
    elif args.tf32:
        raise UserError("--tf32 is about a GPU: give --device cuda too")
    if args.tf32 and args.dtype not in (None, "float32"):
        raise UserError(f"--tf32 is about float32: leave out --dtype {args.dtype}")
    return device


def refuse_beside(
    flag: str, reason: str, args: argparse.Namespace, others: dict[str, str] = RUN_FLAGS
) -> None:
    """Raise ``UserError`` where one of ``others`` was given."""
    if given := [other for name, other in others.items() if getattr(args, name) is not None]:
        raise UserError(f"{flag} {reason}: leave out {', '.join(given)}")


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    for flag, default, what in (
        ("--seq-len", SEQ_LENS, "sequence lengths T"),
        ("--batch-size", BATCH_SIZES, "batch sizes B"),
        ("--hidden-size", HIDDEN_SIZES, "hidden sizes H"),
    ):
        shown = ",".join(map(str, default))
        add(flag, type=_numbers(MAX_SIZE), metavar="N[,N...]", help=f"{what} (default: {shown})")
    add("--input-size", type=_number(MAX_SIZE), metavar="N", help="input size I (default: H)")
    add("--num-layers", type=_number(MAX_SIZE), metavar="N", help="layers (default: 1)")
    add("--bidirectional", action="store_true", default=None, help="both directions of time")
    add("--nonlinearity", choices=("tanh", "relu"), help="default: tanh")


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--json",
        type=output_file,
        metavar="FILE",
        help="write all that was measured, and on what, anew after every cell",
    )
    add(
        "--plot",
        type=_picture,
        metavar="FILE.png",
        help="draw the ratios: a heat map of the grid, bars for --real",
    )
    add(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="measure nothing: show (and --plot) what an earlier run wrote with --json",
    )


def _real_names() -> list[str]:
    return [case.name for case in real_cases()]


def _names(word: str) -> tuple[str, ...]:
    known = _real_names()
    chosen = tuple(word.split(","))
    if unknown := [name for name in chosen if name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return chosen


def _picture(word: str) -> Path:
    if not word.endswith(".png"):
        raise argparse.ArgumentTypeError(f"must end in .png, not {word!r}")
    return output_file(word)


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
    chosen: Sequence[str] = text.split(",")
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
