"""Types of the sub-commands' arguments: functions that convert a word, or raise an error.

Messages follow the name of the flag: ``argument --epochs: must be …``.
"""

import math
import os
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

import torch

__all__ = [
    "add_threads",
    "device",
    "folder",
    "fraction",
    "non_empty",
    "non_negative_float",
    "output_file",
    "positive_float",
    "positive_int",
    "seed",
    "thread_count",
]

# Above this, torch's own integer and float types overflow.
_LARGEST = 10**9

# More than any machine needs, and few enough for a process to start.
_MAX_THREADS = 1024


def add_threads(parser: ArgumentParser) -> None:
    """Adds ``--threads``."""
    parser.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="number of threads (default: torch's own, one for each core)",
    )


def positive_int(word: str) -> int:
    """Returns a whole number from 1 to 10⁹."""
    return _whole_number(word, 1, _LARGEST)


def thread_count(word: str) -> int:
    """Returns a number of threads."""
    return _whole_number(word, 1, _MAX_THREADS)


def seed(word: str) -> int:
    """Returns a seed for ``torch.manual_seed``, from 0; negative ones are aliases."""
    return _whole_number(word, 0, 2**64 - 1)


def positive_float(word: str) -> float:
    """Returns a number above 0 and at most 10⁹."""
    value = _number(word)
    if not 0 < value <= _LARGEST:
        raise ArgumentTypeError(f"must be a number above 0 and at most {_LARGEST}, not {word!r}")
    return value


def non_negative_float(word: str) -> float:
    """Returns a number from 0 to 10⁹."""
    value = _number(word)
    if not 0 <= value <= _LARGEST:
        raise ArgumentTypeError(f"must be a number from 0 to {_LARGEST}, not {word!r}")
    return value


def fraction(word: str) -> float:
    """Returns a number from 0 to below 1."""
    value = _number(word)
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"must be a number from 0 to below 1, not {word!r}")
    return value


def non_empty(word: str) -> str:
    """Returns the word; it must not be empty."""
    if not word:
        raise ArgumentTypeError("must not be empty")
    return word


def folder(word: str) -> Path:
    """Returns the path of a folder, which need not exist."""
    path = Path(non_empty(word))
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"must be a folder, but {word!r} is a file")
    return path


def device(word: str) -> torch.device:
    """Returns a device on which torch can compute and whose results it can read (not ``meta``)."""
    try:
        value = torch.device(word)
        torch.zeros(1, device=value).item()
    except Exception:  # torch raises five unrelated classes here
        raise ArgumentTypeError(
            f"cannot use {word!r}; torch {torch.__version__} offers {_devices()} here"
        ) from None
    return value


def output_file(word: str) -> Path:
    """Returns a path; checks early, before any work, that it can be written."""
    path = Path(word)
    if path.is_dir():
        raise ArgumentTypeError(f"must be a file, but {word!r} is a folder")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"the folder {str(path.parent)!r} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ArgumentTypeError(f"the folder {str(path.parent)!r} is not writable")
    return path


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _whole_number(word: str, low: int, high: int) -> int:
    try:
        value = int(word)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise ArgumentTypeError(f"must be a whole number from {low} to {high}, not {word!r}")
    return value


def _devices() -> str:
    names = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        names += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    return ", ".join(names)
