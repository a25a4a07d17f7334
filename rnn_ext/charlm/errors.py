"""Exceptions of the text generator."""

__all__ = ["CharLMError", "Interrupted"]


class CharLMError(Exception):
    """A mistake that the caller can correct; the message says what is wrong and what to do."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training, after a checkpoint was saved.

    Like ``KeyboardInterrupt``, it is not an ``Exception``, so ``except Exception`` lets it pass.

    Attributes:
        signal: number of the signal: SIGINT (Ctrl-C), SIGTERM, SIGHUP, or SIGPIPE if the reader of
            the output went away.
        step: steps that the saved run has taken.
    """

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"stopped by signal {signal} after step {step}, which is saved")
        self.signal = signal
        self.step = step
