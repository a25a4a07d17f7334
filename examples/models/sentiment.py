"""Is a review good or bad? Reviews of many lengths, packed into one batch."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

VOCAB_SIZE = 200
PRAISE, BLAME = (1, 21), (21, 41)  # word numbers; 0 is padding, the others say nothing
BATCH_SIZE = 32


class SentimentClassifier(nn.Module):
    def __init__(self, vocab_size: int, embedding_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim, padding_idx=0)
        self.rnn = nn.RNN(embedding_dim, hidden_size, batch_first=True)
        self.classifier = nn.Linear(hidden_size, 1)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:  # words: (batch, time)
        packed = pack_padded_sequence(
            self.embedding(words), lengths, batch_first=True, enforce_sorted=False
        )
        _, h_n = self.rnn(packed)
        return self.classifier(h_n[-1]).squeeze(1)  # from each review's own last state


def make_reviews(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Padded words, lengths and labels: a third of a review's words tell which kind it is."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, size, generator=generator)

    lengths = draw(5, 41, (count,))
    labels = draw(0, 2, (count,))
    size = (count, 40)
    opinions = torch.where(labels.bool().unsqueeze(1), draw(*PRAISE, size), draw(*BLAME, size))
    words = torch.where(draw(0, 3, size) == 0, opinions, draw(BLAME[1], VOCAB_SIZE, size))
    return words * (torch.arange(40) < lengths.unsqueeze(1)), lengths, labels


def build() -> SentimentClassifier:
    return SentimentClassifier(VOCAB_SIZE, embedding_dim=32, hidden_size=64)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def train(model: SentimentClassifier, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    criterion = nn.BCEWithLogitsLoss()
    reviews = make_reviews(16 * BATCH_SIZE)
    while True:
        for words, lengths, labels in zip(*(t.split(BATCH_SIZE) for t in reviews), strict=True):
            words = words[:, : lengths.max()]
            optimizer.zero_grad()
            logits = model(words, lengths)
            loss = criterion(logits, labels.to(logits.dtype))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield loss.item()
