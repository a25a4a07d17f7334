"""Reads the text in an image: convolutions, two bidirectional LSTM layers, CTC loss.

An outline of github.com/meijieru/crnn.pytorch, models/crnn.py and train.py: images of 32 x 100
pixels become 26 steps of 512 features; 256 units; 37 classes. It has seven convolutions and batches
of 64 images; this one has two convolutions and batches of 16.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

CLASSES, LETTERS, BATCH_SIZE, UNITS = 37, 5, 16, 256
HEIGHT, WIDTH, STEPS = 32, 104, 26


class BidirectionalLSTM(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, UNITS, bidirectional=True)
        self.embedding = nn.Linear(2 * UNITS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(self.rnn(x)[0])


class CRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            *(nn.Conv2d(1, 64, 4, stride=4), nn.ReLU()),
            *(nn.Conv2d(64, 512, (HEIGHT // 4, 1)), nn.BatchNorm2d(512), nn.ReLU()),
        )
        self.rnn = nn.Sequential(BidirectionalLSTM(512, UNITS), BidirectionalLSTM(UNITS, CLASSES))

    def forward(self, images: Tensor) -> Tensor:  # (batch, 1, 32, 104) -> (26, batch, classes)
        features = self.cnn(images).squeeze(2).permute(2, 0, 1)
        return self.rnn(features).log_softmax(2)


class Font:
    """A fixed random pattern for each letter."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.letters = torch.rand(CLASSES, HEIGHT, WIDTH // LETTERS, generator=generator).round()

    def draw(self, text: Tensor) -> Tensor:
        """(batch, letters) -> (batch, 1, height, width), with noise."""
        images = torch.zeros(len(text), HEIGHT, WIDTH)
        line = self.letters[text].permute(0, 2, 1, 3).flatten(2)
        images[:, :, : line.size(2)] = line
        return (images + 0.2 * torch.randn(images.shape)).unsqueeze(1)


def build() -> CRNN:
    return CRNN()


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def train(model: CRNN, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    font, weight = Font(), next(model.parameters())
    while True:
        text = torch.randint(1, CLASSES, (BATCH_SIZE, LETTERS))  # 0 is CTC's blank
        scores = model(font.draw(text).to(weight.dtype))
        sizes = [torch.full((BATCH_SIZE,), size) for size in (STEPS, LETTERS)]
        loss = nn.functional.ctc_loss(scores, text, *sizes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        yield loss.item()
