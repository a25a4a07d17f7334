"""``log.jsonl``: what a run reports, a line of JSON at a time."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Log", "read"]


class Log:
    """The log of a run that is at ``step``: what it holds of later steps is cut off.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        # A line that was being written when the run was killed has no end yet.
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        self._file = path.open("ab")
        self._file.truncate(sum(map(len, kept)))

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, for all to see at once."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Return when all lines are on disk."""
        os.fsync(self._file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]
