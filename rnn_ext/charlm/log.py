"""``log.jsonl``: the log of a run, one JSON object on each line."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from .files import new_file, with_name

__all__ = ["Log", "read"]


class Log:
    """The log of a run that has taken ``step`` steps, open for appending.

    Opening it removes lines of later steps and lines that are not entries of a log, such as one
    that was cut short when the run was killed.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and _step(line) <= step]
        if kept != lines:
            with new_file(path) as file:
                file.writelines(kept)
        self._path = path
        self._file = path.open("ab")

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with with_name(self._path):
            self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line; other programs can read it at once."""
        with with_name(self._path):
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def sync(self) -> None:
        """Waits until all lines are on disk."""
        with with_name(self._path):
            os.fsync(self._file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """Returns all complete lines."""
    return [
        json.loads(line) for line in path.read_bytes().splitlines() if _step(line) < float("inf")
    ]


def _step(line: bytes) -> float:
    """Returns the step of a line of the log; infinity for anything else."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, IndexError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")
