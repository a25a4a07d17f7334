"""Translates sentences: a GRU encodes, a GRU with attention decodes, one word per call.

An outline of PyTorch's tutorial "Translation with a Sequence to Sequence Network and Attention",
github.com/pytorch/tutorials, intermediate_source/seq2seq_translation_tutorial.py: 128 units, 32
sentences of up to 10 words, dropout 0.1. The made-up translation has the words in reverse order.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

VOCAB_SIZE, HIDDEN_SIZE, BATCH_SIZE, LENGTH = 500, 128, 32, 10
START = 0


class Attention(nn.Module):
    """Additive attention (Bahdanau et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE) for _ in range(2))
        self.score = nn.Linear(HIDDEN_SIZE, 1)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.query(query) + self.key(keys)))
        return scores.softmax(1).transpose(1, 2) @ keys


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = (nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE) for _ in range(2))
        self.encoder = nn.GRU(HIDDEN_SIZE, HIDDEN_SIZE, batch_first=True)
        self.attention = Attention()
        self.decoder = nn.GRU(2 * HIDDEN_SIZE, HIDDEN_SIZE, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)

    def forward(self, words: Tensor, translation: Tensor) -> Tensor:  # both (batch, time)
        keys, hidden = self.encoder(self.dropout(self.source(words)))
        previous = torch.full_like(translation[:, :1], START)
        outputs = []
        for step in range(translation.size(1)):
            context = self.attention(hidden.transpose(0, 1), keys)
            input = torch.cat([self.dropout(self.target(previous)), context], 2)
            output, hidden = self.decoder(input, hidden)
            outputs.append(output)
            previous = translation[:, step : step + 1]  # teacher forcing
        return self.out(torch.cat(outputs, 1))


def build() -> Translator:
    return Translator()


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def train(model: Translator, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    while True:
        # Some words are much more frequent than others.
        words = 1 + (torch.rand(BATCH_SIZE, LENGTH) ** 4 * (VOCAB_SIZE - 1)).long()
        translation = words.flip(1)
        optimizer.zero_grad()
        scores = model(words, translation)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), translation.flatten())
        loss.backward()
        optimizer.step()
        yield loss.item()
