"""Tells good reviews from bad ones: two bidirectional LSTM layers over packed sequences.

An outline of github.com/bentrevett/pytorch-sentiment-analysis, "legacy/2 - Upgraded Sentiment
Analysis.ipynb": embeddings of size 100, 256 units, two bidirectional layers, dropout 0.5. A batch
there has 64 reviews, many of several hundred words; here it has 16 of up to 100.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

VOCAB_SIZE, BATCH_SIZE, LONGEST = 1000, 16, 100
PRAISE, BLAME = (1, 101), (101, 201)  # ranges of words; 0 is padding, the others are neutral


class ReviewClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, 100, padding_idx=0)
        self.rnn = nn.LSTM(100, 256, num_layers=2, bidirectional=True, dropout=0.5)
        self.fc = nn.Linear(2 * 256, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:  # words: (time, batch)
        embedded = self.dropout(self.embedding(words))
        packed = pack_padded_sequence(embedded, lengths, enforce_sorted=False)
        _, (hidden, _) = self.rnn(packed)
        return self.fc(self.dropout(torch.cat([hidden[-2], hidden[-1]], 1))).squeeze(1)


def make_reviews() -> tuple[Tensor, Tensor, Tensor]:
    """Words (time, batch), lengths and labels (batch,); a third of the words express an opinion."""
    lengths = torch.randint(10, LONGEST + 1, (BATCH_SIZE,))
    labels = torch.randint(2, (BATCH_SIZE,))
    size = (LONGEST, BATCH_SIZE)
    opinions = torch.where(labels.bool(), torch.randint(*PRAISE, size), torch.randint(*BLAME, size))
    others = torch.randint(BLAME[1], VOCAB_SIZE, size)
    words = torch.where(torch.rand(size) < 1 / 3, opinions, others)
    return words * (torch.arange(LONGEST)[:, None] < lengths), lengths, labels


def build() -> ReviewClassifier:
    return ReviewClassifier()


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def train(model: ReviewClassifier, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    while True:
        words, lengths, labels = make_reviews()
        optimizer.zero_grad()
        logits = model(words[: lengths.max()], lengths)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        loss.backward()
        optimizer.step()
        yield loss.item()
