"""Shows the progress of a run: lines on stdout, speed and time left on stderr."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

__all__ = ["Progress"]

_SECONDS = 30  # between lines on stderr, if it is not a terminal


class Progress:
    """Shows the progress of a run: as a bar on a terminal, else as a line from time to time.

    Args:
        step: number of steps that the run has taken.
        steps: number of steps at the end of the run.
        characters: characters that the run reads in a step.
        shown: whether to show anything.

    Attributes:
        failure: the error of the first write that failed; nothing is shown after it.
    """

    def __init__(self, step: int, steps: int, characters: int, *, shown: bool) -> None:
        self.failure: OSError | None = None
        self._first = step
        self._steps = steps
        self._characters = characters
        self._is_shown = shown
        self._begun = self._reported = time.perf_counter()
        has_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(
            total=steps * characters,
            initial=step * characters,
            unit="char",
            unit_scale=True,
            disable=not (shown and has_terminal),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._show(self._bar.close)

    def say(self, text: str) -> None:
        """Prints a line on stdout, above the bar."""
        if sys.stdout is not None:  # None if the shell closed it
            self._show(tqdm.write, text)
            self._show(sys.stdout.flush)

    def advance(self, step: int) -> None:
        """Shows that the run has taken ``step`` steps."""
        self._show(self._bar.update, self._characters)
        now = time.perf_counter()
        if self._bar.disable and sys.stderr is not None and now - self._reported >= _SECONDS:
            self._reported = now
            seconds = (now - self._begun) / (step - self._first)  # a step
            left = tqdm.format_interval(seconds * (self._steps - step))
            self._show(
                lambda: print(
                    f"Step [{step}/{self._steps}], {self._characters / seconds:,.0f} characters "
                    f"per second, {left} left",
                    file=sys.stderr,
                    flush=True,
                )
            )

    def _show(self, write: Any, *args: Any) -> None:
        if not self._is_shown or self.failure:
            return
        try:
            write(*args)
        except OSError as error:  # the reader of a pipe went away, a terminal was closed
            self.failure = error
