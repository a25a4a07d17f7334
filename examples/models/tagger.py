"""A tag for every word, as in part-of-speech tagging: both directions, two layers, dropout."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

VOCAB_SIZE, TAGS = 120, 4
BATCH_SIZE, LENGTH = 32, 24


class SequenceTagger(nn.Module):
    def __init__(
        self, vocab_size: int, tags: int, embedding_dim: int, hidden_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.rnn = nn.RNN(
            embedding_dim,
            hidden_size,
            num_layers=2,
            batch_first=True,
            dropout=dropout,
            bidirectional=True,
        )
        self.dropout = nn.Dropout(dropout)
        self.tag = nn.Linear(2 * hidden_size, tags)

    def forward(self, words: Tensor) -> Tensor:  # (batch, time) -> (batch, time, tags)
        self.rnn.flatten_parameters()
        output, _ = self.rnn(self.embedding(words))
        return self.tag(self.dropout(output))


def make_sentences(count: int) -> tuple[Tensor, Tensor]:
    """Words and their tags.

    The number of a word decides its tag, but for every fourth word: such a word has the tag of its
    neighbor, on the left or on the right.
    """
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(VOCAB_SIZE, (count, LENGTH), generator=generator)
    tags = words % TAGS
    tags = torch.where(words % 8 == 6, tags.roll(-1, dims=1), tags)
    return words, torch.where(words % 8 == 7, tags.roll(1, dims=1), tags)


def build() -> SequenceTagger:
    return SequenceTagger(VOCAB_SIZE, TAGS, embedding_dim=32, hidden_size=48, dropout=0.2)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


def train(model: SequenceTagger, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    criterion = nn.CrossEntropyLoss()
    sentences = make_sentences(16 * BATCH_SIZE)
    while True:
        for words, tags in zip(*(t.split(BATCH_SIZE) for t in sentences), strict=True):
            optimizer.zero_grad()
            loss = criterion(model(words).flatten(0, 1), tags.flatten())
            loss.backward()
            optimizer.step()
            yield loss.item()
