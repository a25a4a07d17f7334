"""``rnn-ext train``: train a character model on text files."""

import argparse
import errno
import sys
from dataclasses import fields, replace
from typing import Any

import torch

from .. import charlm
from .arguments import (
    add_threads,
    device,
    folder,
    fraction,
    non_empty,
    non_negative_float,
    positive_float,
    positive_int,
    seed,
)
from .errors import UserError, sentence

__all__ = ["add_arguments", "run"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The type of a flag's argument: by the name of the setting, else by the type of its default.
_READ_NAMED = {
    "clip": non_negative_float,
    "device": lambda word: str(device(word)),
    "dropout": fraction,
    "encoding": non_empty,
    "seed": seed,
    "val_fraction": fraction,
}
_READ_TYPED = {int: positive_int, float: positive_float, str: str}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags. Those of settings appear in the namespace only if given."""
    parser.add_argument(
        "corpus",
        nargs="*",
        type=non_empty,
        metavar="FILE",
        help="text to learn from; - is standard input",
    )
    parser.add_argument(
        "--out",
        type=folder,
        required=True,
        metavar="DIR",
        help="folder for checkpoints, log and plot; created if it is missing",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR, if any")
    add_threads(parser)
    for setting in fields(charlm.Settings):
        default, about = setting.default, setting.metadata
        options: dict[str, Any] = {"action": "store_true"}
        if not isinstance(default, bool):
            read = _READ_NAMED.get(setting.name) or _READ_TYPED[type(default)]
            metavar = {int: "N", float: "X"}.get(type(default))
            options = {"type": read, "choices": about["choices"], "metavar": metavar}
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=about["help"] + ("" if default is False else f" (default: {default})"),
            **options,
        )


def run(args: argparse.Namespace) -> int:
    """Trains. Returns 0, or 128 plus the number of the signal that stopped it, as a shell does."""
    if args.threads:
        torch.set_num_threads(args.threads)
    names = (setting.name for setting in fields(charlm.Settings))
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    continuation = f"continue with: rnn-ext train --out {args.out} --resume"
    try:
        resumed = charlm.read_settings(args.out) if args.resume else None
        settings = replace(resumed or charlm.Settings(), **given)
        charlm.train(args.corpus, args.out, settings, resume=args.resume)
    except charlm.Interrupted as stop:
        if sys.stderr is not None:
            print(
                f"rnn-ext: stopped and saved at step {stop.step} of {settings.steps}; "
                f"{continuation}",
                file=sys.stderr,
            )
        return 128 + stop.signal
    except charlm.CharLMError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(f"{sentence(error)}; free some space, then {continuation}") from None
    return 0
