"""The network: character → embedding → recurrence → score of each possible next character."""

from collections.abc import Callable

from torch import Tensor, nn

from .. import RNN
from .token_rnn import can_look_up, token_rnn

__all__ = ["CharRNN"]


class CharRNN(nn.Module):
    """Predicts the next character at every position of a text.

    ``Embedding(vocab_size, hidden_size)`` → RNN ``(hidden_size, hidden_size)`` →
    ``Linear(hidden_size, vocab_size)``.

    Args:
        vocab_size: number of different characters V.
        hidden_size: width H of the embedding and of the hidden state.
        num_layers: layers L of the RNN.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        dropout: probability with which a value that an RNN layer puts out is dropped in training.
        tied: embedding and linear layer share one matrix.
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
            dropout=dropout if num_layers > 1 else 0.0,  # it knows only what is between layers
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, vocab_size)
        if tied:
            # In this direction: an embedding's own initial values are too large for an output.
            self.embedding.weight = self.linear.weight

    def forward(self, tokens: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score every possible next character.

        Args:
            tokens: indices of characters, shape ``(T, B)``: time first.
            hx: hidden state before the first of them, shape ``(L, B, H)``; ``None`` means zeros.

        Returns:
            Logits of shape ``(T, B, V)`` and the hidden state after the last, ``(L, B, H)``.
        """
        if can_look_up(self.embedding, self.rnn, tokens):
            output, h_n = token_rnn(self.embedding, self.rnn, tokens, hx)
        else:
            output, h_n = self.rnn(self.embedding(tokens), hx)
        return self.linear(self.dropout(output)), h_n
