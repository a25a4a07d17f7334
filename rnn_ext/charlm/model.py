"""The network: character → embedding → recurrence → score of each possible next character."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import EmbeddingRNN, restore_rnn
from .settings import Settings

__all__ = ["STATES", "CharRNN", "build_model"]

# The names, in checkpoints, of the states that a layer of each kind passes to the next step.
STATES: Mapping[str, tuple[str, ...]] = {
    "rnn": ("hidden",),
    "gru": ("hidden",),
    "lstm": ("hidden", "cell_state"),
}


class CharRNN(EmbeddingRNN):
    """Predicts the next character at every position of a text.

    ``Embedding(vocab_size, hidden_size)`` → RNN, GRU or LSTM ``(hidden_size, hidden_size)`` →
    ``Linear(hidden_size, vocab_size)``.

    Args:
        vocab_size: number of different characters V.
        hidden_size: size H of the embedding and of the hidden state.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        num_layers: layers L of the RNN, GRU or LSTM.
        nonlinearity: of an RNN, ``"tanh"`` or ``"relu"``.
        dropout: probability of zeroing an element of a layer's output in training.
        tied: whether embedding and linear layer share one matrix.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 32,
        *,
        cell: str = "rnn",
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__(
            vocab_size,
            hidden_size,
            hidden_size,
            num_layers,
            cell=cell,
            nonlinearity=nonlinearity,
            dropout=dropout if num_layers > 1 else 0.0,  # layers apply it between them only
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, vocab_size)
        if tied:
            # The linear layer's initial values: an embedding's are too large for an output layer.
            self.embedding.weight = self.linear.weight

    def forward(  # type: ignore[override]  # takes no packed tokens
        self, tokens: Tensor, hx: Any = None
    ) -> tuple[Tensor, Any]:
        """Scores every possible next character.

        Args:
            tokens: indices of characters, shape ``(T, B)``: time first.
            hx: initial state, shape ``(L, B, H)``, for an LSTM a tuple of two; ``None`` means
                zeros.

        Returns:
            Logits of shape ``(T, B, V)`` and the final state, shaped like ``hx``.
        """
        output, h_n = super().forward(tokens, hx)
        return self.linear(self.dropout(output)), h_n


def build_model(settings: Settings, vocab_size: int) -> CharRNN:
    """Returns an untrained model with these settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = CharRNN(
            vocab_size,
            settings.hidden_size,
            cell=settings.cell,
            num_layers=settings.num_layers,
            nonlinearity=settings.nonlinearity,
            dropout=settings.dropout,
            tied=settings.tied,
        )
    return restore_rnn(model) if settings.reference else model
