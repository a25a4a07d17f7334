"""Which ops run."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Ops(TorchDispatchMode):
    """Counts the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.counts[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def ours(self) -> dict[str, int]:
        """How often each op of this package ran."""
        return {n: c for n, c in self.counts.items() if n.startswith("rnn_ext::")}
