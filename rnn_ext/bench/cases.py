"""What is measured: the shape of a call, what it costs, and the grid of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch

__all__ = [
    "BATCH_SIZES",
    "HIDDEN_SIZES",
    "LEFT_OUT",
    "MODES",
    "SEQ_LENS",
    "Case",
    "Mode",
    "Nonlinearity",
    "shapes",
]

Mode = Literal["forward", "training"]
MODES: tuple[Mode, ...] = get_args(Mode)

Nonlinearity = Literal["tanh", "relu"]

# The grid that is measured where no flag says otherwise.
SEQ_LENS = (16, 128, 1024)
BATCH_SIZES = (1, 8, 32, 128)
HIDDEN_SIZES = (32, 128, 512, 1024)

# As long as many of the other cells together, and no other kind of work than its neighbors.
LEFT_OUT = (1024, 128, 1024)


@dataclass(frozen=True)
class Case:
    """One call of a recurrent module, time-major: input ``(seq_len, batch_size, input_size)``."""

    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    nonlinearity: Nonlinearity = "tanh"
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"T={self.seq_len} B={self.batch_size} I={self.input_size} H={self.hidden_size}"

    @property
    def output_size(self) -> int:
        """Features of an output row: hidden size times directions."""
        return self.hidden_size * (2 if self.bidirectional else 1)

    def flops(self, mode: Mode) -> int:
        """Multiplications and additions of the matrix products; backward has twice forward's."""
        return (2 if mode == "forward" else 6) * self.seq_len * self.batch_size * self._weights()

    def memory(self, mode: Mode) -> int:
        """Bytes that measuring takes at most, the comparison's copies of the results included."""
        # nn.RNN is the hungrier of the two: its peak is under 6 output-sized tensors in forward;
        # autograd keeps under 3 more for each layer. Input and gradient exist once more as copies.
        saved = 0 if mode == "forward" else 3 * self.num_layers
        row = (6 + saved) * self.output_size + 4 * self.input_size
        # Two modules; each with gradients, of which one set is copied; and a packed copy.
        elements = self.seq_len * self.batch_size * row + 6 * self._weights()
        return elements * self.dtype.itemsize

    def _weights(self) -> int:
        """Elements of the weight matrices of all layers and directions."""
        first = self.input_size + self.hidden_size
        other = self.output_size + self.hidden_size
        return self.output_size * (first + (self.num_layers - 1) * other)


def shapes(
    seq_lens: Sequence[int] | None = None,
    batch_sizes: Sequence[int] | None = None,
    hidden_sizes: Sequence[int] | None = None,
) -> list[tuple[int, int, int]]:
    """Every combination ``(seq_len, batch_size, hidden_size)``; ``None`` stands for the default.

    With all three left at their defaults, ``LEFT_OUT`` is not among them.
    """
    combinations = list(
        product(seq_lens or SEQ_LENS, batch_sizes or BATCH_SIZES, hidden_sizes or HIDDEN_SIZES)
    )
    if seq_lens is batch_sizes is hidden_sizes is None:
        combinations.remove(LEFT_OUT)
    return combinations
