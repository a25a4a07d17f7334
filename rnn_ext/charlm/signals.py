"""Records the signals that ask a run to stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["noted_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Keys repeat, and terminals and launchers may send a signal twice.
_SAME_PRESS = 2.0  # seconds


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yields a list to which SIGINT (Ctrl-C), SIGTERM and SIGHUP append their numbers.

    The run checks the list between two steps. A further signal, two seconds or more after the
    first, raises ``KeyboardInterrupt``. Ignored signals, such as SIGHUP under nohup, stay ignored.
    """
    received: list[int] = []
    first = 0.0

    def note(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if received and now - first >= _SAME_PRESS:
            raise KeyboardInterrupt
        first = first if received else now
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield received
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}
    for number in handlers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
