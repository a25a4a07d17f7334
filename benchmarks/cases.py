"""The shape of a call, what it costs, and the grid of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

import rnn_ext
from rnn_ext.bench.workload import Mode

__all__ = [
    "BATCH_SIZES",
    "GATES",
    "HIDDEN_SIZES",
    "LEFT_OUT",
    "SEQ_LENS",
    "Case",
    "Kind",
    "Layout",
    "Nonlinearity",
    "State",
    "shapes",
]

Nonlinearity = Literal["tanh", "relu"]
Kind = Literal["RNN", "GRU", "LSTM"]
Layout = Literal["batched", "packed", "unbatched"]
State = Literal["zeros", "given", "learned"]

GATES: dict[Kind, int] = {"RNN": 1, "GRU": 3, "LSTM": 4}

# The grid that is measured unless flags say otherwise.
SEQ_LENS = (16, 128, 1024)
BATCH_SIZES = (1, 8, 32, 128)
HIDDEN_SIZES = (32, 128, 512, 1024)

# It takes as long as many other cells together, and does the same kind of work as its neighbors.
LEFT_OUT = (1024, 128, 1024)


@dataclass(frozen=True)
class Case:
    """One call of a recurrent module, or of a ``cell``, whose sequence length is 1.

    ``hx`` is left out (``"zeros"``), passed (``"given"``), or passed and differentiated
    (``"learned"``). ``dropout`` acts in training alone. ``name`` says who makes such calls.
    ``kind`` names the module, ``torch.nn``'s and ours; with ``recurrence`` it is
    ``rnn_ext.Recurrent`` instead, and ``recurrence`` is the name of the cell in ``rnn_ext.cells``.
    """

    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    nonlinearity: Nonlinearity = "tanh"
    dtype: torch.dtype = torch.float32
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    layout: Layout = "batched"
    hx: State = "zeros"
    name: str = ""
    cell: bool = False
    recurrence: str = ""
    kind: Kind = "RNN"

    def __str__(self) -> str:
        return f"{self.title} {self.sizes}" if self.title else self.sizes

    @property
    def title(self) -> str:
        """The name of the call or of the recurrence; "" on the grid."""
        return self.name or self.recurrence

    @property
    def gates(self) -> int:
        """How many blocks of rows the weights have."""
        if self.recurrence:
            return int(getattr(rnn_ext.cells, self.recurrence).gates)
        return GATES[self.kind]

    @property
    def module(self) -> str:
        """The module's name in ``torch.nn``."""
        return self.kind + ("Cell" if self.cell else "")

    @property
    def dtype_name(self) -> str:
        """``"float32"`` and so on."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def sizes(self) -> str:
        """Sequence length, batch size, input size and hidden size."""
        return f"T={self.seq_len} B={self.batch_size} I={self.input_size} H={self.hidden_size}"

    @property
    def settings(self) -> str:
        """All but the sizes and the dtype, in words."""
        return ", ".join(
            [
                *([] if self.recurrence or self.kind != "RNN" else [self.nonlinearity]),
                "cell" if self.cell else f"{self.num_layers} layer{'s' * (self.num_layers > 1)}",
                *(["bidirectional"] if self.bidirectional else []),
                *([] if self.layout == "batched" else [self.layout]),
                *(["batch first"] if self.batch_first else []),
                *([f"dropout {self.dropout:g}"] if self.dropout else []),
                *([] if self.hx == "zeros" else [f"hx {self.hx}"]),
                *([] if self.bias else ["no bias"]),
            ]
        )

    @property
    def output_size(self) -> int:
        """Features of an output row: hidden size times directions."""
        return self.hidden_size * (2 if self.bidirectional else 1)

    @property
    def input_sizes(self) -> list[int]:
        """Features of an input row of each layer."""
        return [self.input_size] + [self.output_size] * (self.num_layers - 1)

    @property
    def lengths(self) -> list[int]:
        """Steps of each sequence: T, but packed ones fall evenly from T to T / 2."""
        longest, last = self.seq_len, max(1, self.batch_size - 1)
        shorter = longest // 2 if self.layout == "packed" else 0
        return [longest - shorter * i // last for i in range(self.batch_size)]

    def flops(self, mode: Mode) -> int:
        """Multiplications and additions of the matrix products; backward has twice forward's."""
        return (2 if mode == "forward" else 6) * sum(self.lengths) * self._weights()

    def memory(self, mode: Mode) -> int:
        """Bytes that measuring takes at most, the comparison's copies of the results included."""
        # nn.RNN needs more than rnn_ext: its peak is under 6 output-sized tensors in forward;
        # autograd keeps under 3 more for each layer. Input and gradient exist once more as copies.
        saved = 0 if mode == "forward" else 3 * self.num_layers
        if self.recurrence:
            saved *= 8 * self.gates  # by a loop that keeps the result of every operation
        row = (6 + saved) * self.output_size + 4 * self.input_size
        # Two modules; each with gradients, of which one set is copied; and a packed copy.
        elements = sum(self.lengths) * row + 6 * self._weights()
        # Results in half precision are compared with a third module's, in float32.
        return elements * (self.dtype.itemsize + (4 if self.dtype.itemsize == 2 else 0))

    def _weights(self) -> int:
        """Elements of the weight matrices of all layers and directions."""
        return (
            self.gates
            * self.output_size
            * sum(size + self.hidden_size for size in self.input_sizes)
        )


def shapes(
    seq_lens: Sequence[int], batch_sizes: Sequence[int], hidden_sizes: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Returns every combination ``(seq_len, batch_size, hidden_size)``.

    The default grid lacks ``LEFT_OUT``.
    """
    sizes = (seq_lens, batch_sizes, hidden_sizes)
    combinations = list(product(*sizes))
    if sizes == (SEQ_LENS, BATCH_SIZES, HIDDEN_SIZES):
        combinations.remove(LEFT_OUT)
    return combinations
