"""Predicts the next word of a long text, read window by window with the state carried on."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

VOCAB_SIZE = 100
BATCH_SIZE, BPTT = 20, 35


class WordLanguageModel(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab_size, hidden_size)
        self.rnn = nn.RNN(hidden_size, hidden_size, num_layers, dropout=dropout)
        self.decoder = nn.Linear(hidden_size, vocab_size)
        self.decoder.weight = self.encoder.weight  # tied: one table of words for both ends
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)

    def forward(self, words: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        output, hidden = self.rnn(self.drop(self.encoder(words)), hidden)  # words: (time, batch)
        return self.decoder(self.drop(output)), hidden

    def init_hidden(self, batch_size: int) -> Tensor:
        return self.encoder.weight.new_zeros(self.rnn.num_layers, batch_size, self.rnn.hidden_size)


def make_text(length: int) -> Tensor:
    """Words of a made-up language in which each word has three that may follow it."""
    generator = torch.Generator().manual_seed(0)
    followers = torch.randint(VOCAB_SIZE, (VOCAB_SIZE, 3), generator=generator).tolist()
    words = [0]
    for choice in torch.randint(3, (length - 1,), generator=generator).tolist():
        words.append(followers[words[-1]][choice])
    return torch.tensor(words)


def batchify(text: Tensor) -> Tensor:
    """Cuts the text into BATCH_SIZE columns that are read side by side: (time, batch)."""
    return text[: len(text) // BATCH_SIZE * BATCH_SIZE].view(BATCH_SIZE, -1).t().contiguous()


def repackage_hidden(hidden: Tensor) -> Tensor:
    """The state without its history, so that backpropagation stops at the window's start."""
    return hidden.detach()


def build() -> WordLanguageModel:
    return WordLanguageModel(VOCAB_SIZE, hidden_size=64, num_layers=2, dropout=0.2)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=5)


def train(model: WordLanguageModel, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    criterion = nn.CrossEntropyLoss()
    columns = batchify(make_text(BATCH_SIZE * (10 * BPTT + 1)))
    while True:
        hidden = model.init_hidden(BATCH_SIZE)
        for start in range(0, len(columns) - 1, BPTT):
            words, targets = columns[start : start + BPTT], columns[start + 1 : start + BPTT + 1]
            hidden = repackage_hidden(hidden)
            optimizer.zero_grad()
            scores, hidden = model(words, hidden)
            loss = criterion(scores.flatten(0, 1), targets.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            yield loss.item()
