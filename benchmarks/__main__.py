"""``python -m benchmarks``: the sub-commands and their flags."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import torch

from rnn_ext.bench.check import MismatchError
from rnn_ext.bench.command import integers, modes, thread_counts
from rnn_ext.bench.workload import MODES

from . import gpu, memory
from .cases import BATCH_SIZES, GATES, HIDDEN_SIZES, SEQ_LENS, Case, shapes
from .frozen import NOT_FROZEN
from .machine import facts
from .peers.pool import versions
from .peers.report import format_peers
from .real import real_cases
from .recurrences import BASELINES, CELLS
from .report import format_limits, format_report
from .resets import LOOP, WITHOUT
from .results import Run, read, write
from .run import Plan, measure_limits, measure_rows
from .start import measure_start

__all__ = ["main"]

COMMANDS = {
    "grid": "rnn_ext.RNN, GRU or LSTM against torch.nn's over a grid of shapes",
    "real": "the same for calls with the sizes of public projects",
    "cells": "rnn_ext.RNNCell, GRUCell or LSTMCell against torch.nn's",
    "recurrences": "rnn_ext.Recurrent and RecurrentCell against loops and plain RNNs",
    "resets": "reset= of rnn_ext.RNN, GRU and LSTM against a loop around torch.nn's, and without",
    "frozen": "rnn_ext.RNN against its frozen copy",
    "call": "a small call against F.linear and against nn.RNN",
    "peers": "other runtimes: torch.compile, ONNX Runtime, OpenVINO, JAX, as far as installed",
    "limits": "what this machine allows at best: products, memory, barriers, calls",
    "show": "print (and plot) what an earlier run wrote",
}

# The sizes of each command. All of them would take an hour with the peers, mostly to compile.
SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "grid": (SEQ_LENS, BATCH_SIZES, HIDDEN_SIZES),
    "cells": ((1,), (1, 8, 32), (16, 64, 256, 1024)),
    "recurrences": ((100,), (1, 16), (32, 64, 128, 256)),
    "resets": ((100,), (1, 32), (32, 128, 256)),
    "frozen": ((1, 16, 128), (1,), (128, 512, 1024)),
    "call": ((18,), (1,), (32,)),
    "peers": (SEQ_LENS, (1, 8, 32), (32, 128, 512)),
    "limits": ((1,), BATCH_SIZES, HIDDEN_SIZES),
}

NAMES = {"real": [case.name for case in real_cases()], "recurrences": list(CELLS)}

DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("seq_len", "batch_size", "hidden_size", "input_size", "threads")),
    "num_layers": 1,
    "bidirectional": False,
    "nonlinearity": "tanh",
    "names": [],
    "layer": "RNN",
    "dtype": "float32",
    "mode": MODES,
    "device": "cpu",
    "tf32": False,
    "compile": False,
    "memory": False,
    "seconds_per_cell": 2.0,
    "json": None,
    "plot": None,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command.

    Returns 0; 1 if results differ or a call on a GPU fails; 130 after Ctrl-C, when the measurements
    so far are printed.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.plot:
        from .plot import save  # fails now, not after minutes, if its libraries are missing
    if args.command == "show":
        try:
            run, status = read(args.file), 0
        except (OSError, msgspec.MsgspecError) as error:
            parser.error(f"{args.file} is not a result of this version: {error}")
    else:
        if reason := _refusal(args):
            parser.error(reason)
        try:
            run, status = _measure(args)
        except MismatchError as error:
            print(error, file=sys.stderr)
            return 1
    print(
        "\n\n".join([format_report(run) if run.cells else format_limits(run), *format_peers(run)])
    )
    if args.plot:
        save(run, args.plot)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.set_defaults(**DEFAULTS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        # Flags that are not given leave the defaults above alone.
        command = commands.add_parser(
            name, help=summary, description=summary, argument_default=argparse.SUPPRESS
        )
        _add_flags(command, name)
    return parser


def _add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    add = parser.add_argument
    if command == "show":
        add("file", type=Path, metavar="FILE.json")
    if command in NAMES:
        choices = NAMES[command]
        add("names", nargs="*", metavar="NAME", help=f"some of {', '.join(choices)} (default: all)")
    if command in SIZES:
        for flag, default in zip(
            ("seq-len", "batch-size", "hidden-size"), SIZES[command], strict=True
        ):
            shown = ",".join(map(str, default))
            add(f"--{flag}", type=integers, metavar="N[,N...]", help=f"default: {shown}")
    if command in ("grid", "call"):
        add("--input-size", type=int, metavar="N", help="default: the hidden size")
    if command in ("grid", "cells", "peers"):
        add("--layer", choices=tuple(GATES), help="default: RNN")
    if command == "grid":
        add("--num-layers", type=int, metavar="N", help="default: 1")
        add("--bidirectional", action="store_true")
        add("--nonlinearity", choices=("tanh", "relu"))
    if command in ("grid", "real", "limits"):
        add("--dtype", choices=("float32", "float64", "bfloat16", "float16"))
    if command in ("grid", "real"):
        add("--memory", action="store_true", help="also peak memory, and what autograd keeps")
    if command in ("grid", "real", "peers"):
        add("--device", choices=("cpu", "cuda"), help="on a GPU all calls are timed hot")
        add("--tf32", action="store_true", help="on a GPU: let float32 products round to TF32")
    if command == "recurrences":
        add("--compile", action="store_true", help="also torch.compile of each loop: hours")
    if command in ("grid", "real", "show"):
        add("--plot", type=Path, metavar="FILE.png", help="draw the ratios")
    if command == "frozen":
        parser.set_defaults(mode=("forward",))
    elif command not in ("limits", "show"):
        add("--mode", type=modes, metavar="MODE[,MODE]", help="forward, training; default: both")
    if command not in ("limits", "show"):
        add("--seconds-per-cell", type=float, metavar="S", help="default: 2; split over the modes")
    if command != "show":
        add("--threads", type=thread_counts, metavar="N[,N...]", help="default: every core")
        add("--json", type=Path, metavar="FILE", help="write the results after every cell")


def _refusal(args: argparse.Namespace) -> str:
    """Says what cannot be measured here; "" where all can."""
    if args.device == "cuda" and not torch.cuda.is_available():
        return f"--device cuda needs a GPU, and torch {torch.__version__} sees none"
    if args.device == "cuda" and (args.threads or args.memory):
        return "--threads and --memory are for the CPU: leave them out with --device cuda"
    if args.tf32 and (args.device == "cpu" or args.dtype != "float32"):
        return "--tf32 is for float32 on a GPU: give --device cuda, and no other --dtype"
    if args.memory and not memory.can_measure():
        return "--memory needs Linux, which tells the peak of resident memory: leave it out"
    if unknown := set(args.names) - set(NAMES.get(args.command, ())):
        return f"nothing to measure is named {', '.join(sorted(unknown))}"
    return ""


def _measure(args: argparse.Namespace) -> tuple[Run, int]:
    machine = facts()
    if args.device == "cuda":
        gpu.set_precision(args.tf32)
        machine["gpu"] = gpu.facts(args.tf32)
    run = Run(
        command=f"python -m benchmarks {shlex.join(sys.argv[1:])}",
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=machine,
        seconds_per_cell=args.seconds_per_cell,
        peers=versions(args.device) if args.command == "peers" else {},
    )
    plan = Plan(
        cases=_cases(args),
        modes=args.mode,
        threads=args.threads or (torch.get_num_threads(),),
        device=args.device,
        tf32=args.tf32,
        memory=args.memory,
        peers=args.command == "peers",
    )

    def keep() -> None:
        if args.json:
            write(run, args.json)

    keep()
    status = 0
    try:
        if args.command in ("grid", "real", "limits"):
            measure_limits(run, plan)
        if args.command == "recurrences":
            run.start_seconds = measure_start(args.names or NAMES["recurrences"])
        if args.command != "limits":
            status = measure_rows(run, plan, keep)
        run.complete = True
        keep()
    except KeyboardInterrupt:
        status = 130
    return run, status


def _cases(args: argparse.Namespace) -> list[tuple[Case, str]]:
    """Returns each case with its baseline."""
    dtype = getattr(torch, args.dtype)
    if args.command == "real":
        return [(c, "nn.RNN") for c in real_cases(dtype) if not args.names or c.name in args.names]
    given = (args.seq_len, args.batch_size, args.hidden_size)
    sizes = shapes(
        *(own or default for own, default in zip(given, SIZES[args.command], strict=True))
    )
    if args.command == "cells":
        return [
            (Case(1, b, h, h, cell=True, hx="learned", kind=args.layer), f"nn.{args.layer}Cell")
            for _, b, h in sizes
        ]
    if args.command == "recurrences":
        return _recurrences(args.names or NAMES["recurrences"], sizes, args.compile)
    if args.command == "resets":
        return [
            (Case(*size, size[-1], hx="given", kind=kind, name=kind), baseline)
            for kind in GATES
            for size in sizes
            for baseline in (LOOP, WITHOUT)
        ]
    cases = [
        Case(
            *(seq_len, batch_size, args.input_size or hidden_size, hidden_size),
            num_layers=args.num_layers,
            bidirectional=args.bidirectional,
            nonlinearity=args.nonlinearity,
            dtype=dtype,
            kind=args.layer,
        )
        for seq_len, batch_size, hidden_size in sizes
    ]
    torchs = f"nn.{args.layer}"
    baselines = {"call": ("F.linear", torchs), "frozen": (NOT_FROZEN,)}.get(args.command, (torchs,))
    return [(case, baseline) for case in cases for baseline in baselines]


def _recurrences(
    names: Sequence[str], sizes: Sequence[tuple[int, int, int]], compiled: bool
) -> list[tuple[Case, str]]:
    """Returns the layers, then single steps, which are compared with a step of the loop alone."""
    steps = dict.fromkeys((batch, size) for _, batch, size in sizes)
    baselines = (*BASELINES, *(["torch.compile"] if compiled else []))
    layers = [Case(t, b, h, h, recurrence=name) for name in names for t, b, h in sizes]
    cells = [Case(1, b, h, h, cell=True, recurrence=name) for name in names for b, h in steps]
    return [(c, baseline) for c in layers for baseline in baselines] + [(c, "loop") for c in cells]


if __name__ == "__main__":
    sys.exit(main())
