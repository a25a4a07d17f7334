"""What is measured: the shape of a call, what it costs, and the grid of shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch

__all__ = [
    "BATCH_SIZES",
    "HIDDEN_SIZES",
    "LEFT_OUT",
    "MODES",
    "SEQ_LENS",
    "Case",
    "Layout",
    "Mode",
    "Nonlinearity",
    "State",
    "shapes",
]

Mode = Literal["forward", "training"]
MODES: tuple[Mode, ...] = get_args(Mode)

Nonlinearity = Literal["tanh", "relu"]
Layout = Literal["batched", "packed", "unbatched"]
State = Literal["zeros", "given", "learned"]

# The grid that is measured where no flag says otherwise.
SEQ_LENS = (16, 128, 1024)
BATCH_SIZES = (1, 8, 32, 128)
HIDDEN_SIZES = (32, 128, 512, 1024)

# As long as many of the other cells together, and no other kind of work than its neighbors.
LEFT_OUT = (1024, 128, 1024)


@dataclass(frozen=True)
class Case:
    """One call of a recurrent module.

    ``hx`` is left out (``"zeros"``), passed (``"given"``), or passed and differentiated
    (``"learned"``). ``dropout`` acts in training alone. ``name`` says who makes such calls.
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

    def __str__(self) -> str:
        name = f"{self.name} " if self.name else ""
        return (
            f"{name}T={self.seq_len} B={self.batch_size} I={self.input_size} H={self.hidden_size}"
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Case":
        """The inverse of ``to_dict``; ``TypeError`` where a field is missing or unknown."""
        return cls(**{**values, "dtype": getattr(torch, values["dtype"])})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {**asdict(self), "dtype": self.dtype_name}

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
                self.nonlinearity,
                f"{self.num_layers} layer{'s' if self.num_layers > 1 else ''}"
                + (" bidirectional" if self.bidirectional else ""),
                *([] if self.layout == "batched" else [self.layout]),
                *(["batch first"] if self.batch_first else []),
                *([f"dropout {self.dropout:g}"] if self.dropout else []),
                *([] if self.hx == "zeros" else [f"hx {self.hx}"]),
                *([] if self.bias else ["no bias"]),
            ]
        )

    @property
    def is_half(self) -> bool:
        """Whether the dtype has 16 bits."""
        return self.dtype.itemsize == 2

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
        # nn.RNN is the hungrier of the two: its peak is under 6 output-sized tensors in forward;
        # autograd keeps under 3 more for each layer. Input and gradient exist once more as copies.
        saved = 0 if mode == "forward" else 3 * self.num_layers
        row = (6 + saved) * self.output_size + 4 * self.input_size
        # Two modules; each with gradients, of which one set is copied; and a packed copy.
        elements = sum(self.lengths) * row + 6 * self._weights()
        # Results in half precision are compared with a third module's, in float32.
        return elements * (self.dtype.itemsize + (4 if self.is_half else 0))

    def _weights(self) -> int:
        """Elements of the weight matrices of all layers and directions."""
        return self.output_size * sum(size + self.hidden_size for size in self.input_sizes)


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
