"""The network: character → embedding → recurrence → score of each possible next character."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import RNN, functional
from .settings import Settings

__all__ = ["CharRNN", "build_model"]


class CharRNN(nn.Module):
    """Predicts the next character at every position of a text.

    ``Embedding(vocab_size, hidden_size)`` → RNN ``(hidden_size, hidden_size)`` →
    ``Linear(hidden_size, vocab_size)``.

    Args:
        vocab_size: number of different characters V.
        hidden_size: size H of the embedding and of the hidden state.
        num_layers: layers L of the RNN.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        dropout: probability of zeroing an element of an RNN layer's output in training.
        tied: whether embedding and linear layer share one matrix.
        rnn_class: ``rnn_ext.RNN`` or ``torch.nn.RNN``; both draw the same initial weights for the
            same seed.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 32,
        *,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        dropout: float = 0.0,
        tied: bool = False,
        rnn_class: Callable[..., nn.RNNBase] = RNN,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.rnn = rnn_class(
            hidden_size,
            hidden_size,
            num_layers,
            nonlinearity=nonlinearity,
            dropout=dropout if num_layers > 1 else 0.0,  # RNNs apply it between layers only
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, vocab_size)
        if tied:
            # The linear layer's initial values: an embedding's are too large for an output layer.
            self.embedding.weight = self.linear.weight

    def forward(self, tokens: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores every possible next character.

        Args:
            tokens: indices of characters, shape ``(T, B)``: time first.
            hx: initial hidden state, shape ``(L, B, H)``; ``None`` means zeros.

        Returns:
            Logits of shape ``(T, B, V)`` and the final hidden state, ``(L, B, H)``.
        """
        if type(self.rnn) is RNN:
            output, h_n = functional.embedding_rnn(
                tokens,
                hx,
                self.embedding.weight,
                self.rnn_weights,
                nonlinearity=self.rnn.nonlinearity,
                num_layers=self.rnn.num_layers,
                dropout=self.rnn.dropout,
                training=self.training,
            )
        else:
            output, h_n = self.rnn(self.embedding(tokens), hx)
        return self.linear(self.dropout(output)), h_n

    @property
    def rnn_weights(self) -> list[Tensor]:
        """The RNN's weights in the order that :func:`rnn_ext.functional.rnn` takes."""
        return [weight for layer in self.rnn.all_weights for weight in layer]


def build_model(settings: Settings, vocab_size: int) -> CharRNN:
    """Returns an untrained model with these settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return CharRNN(
            vocab_size,
            settings.hidden_size,
            num_layers=settings.num_layers,
            nonlinearity=settings.nonlinearity,
            dropout=settings.dropout,
            tied=settings.tied,
            rnn_class=nn.RNN if settings.reference else RNN,
        )
