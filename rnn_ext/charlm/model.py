"""The network: character → embedding → recurrence → score of each possible next character."""

from collections.abc import Callable

from torch import Tensor, nn

from .. import RNN

__all__ = ["CharRNN"]


class CharRNN(nn.Module):
    """Predicts the next character at every position of a text.

    ``Embedding(vocab_size, hidden_size)`` → RNN ``(hidden_size, hidden_size)`` →
    ``Linear(hidden_size, vocab_size)``.

    Args:
        vocab_size: number of different characters V.
        hidden_size: width H of the embedding and of the hidden state.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        rnn_class: ``rnn_ext.RNN`` or ``torch.nn.RNN``; both draw the same initial weights for the
            same seed.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 32,
        *,
        nonlinearity: str = "tanh",
        rnn_class: Callable[..., nn.Module] = RNN,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.rnn = rnn_class(hidden_size, hidden_size, nonlinearity=nonlinearity)
        self.linear = nn.Linear(hidden_size, vocab_size)

    def forward(self, tokens: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score every possible next character.

        Args:
            tokens: indices of characters, shape ``(T, B)``: time first.
            hx: hidden state before the first of them, shape ``(1, B, H)``; ``None`` means zeros.

        Returns:
            Logits of shape ``(T, B, V)`` and the hidden state after the last, ``(1, B, H)``.
        """
        output, h_n = self.rnn(self.embedding(tokens), hx)
        return self.linear(output), h_n
