"""Form "rate": look where a target appears, the task "go" of a network that learns twenty tasks.

Yang et al., "Task representations in neural networks trained to perform many cognitive tasks",
2019; `LeakyRNNCell` in `network.py` and `go` in `task.py` in github.com/gyyang/multitask.
"""

import math

import torch
from torch import nn

import rnn_ext

DT, TAU = 20, 100  # milliseconds
RING, RULES = 32, 20  # units of each of two rings of inputs, and of the output; rules of tasks
INPUT_SIZE, HIDDEN_SIZE, OUTPUT_SIZE, BATCH_SIZE = 1 + 2 * RING + RULES, 256, 1 + RING, 64
GO = 1 + 2 * RING  # the input that names the task
INPUT_NOISE, RECURRENT_NOISE = 0.01, 0.05
LEARNING_RATE = 1e-3


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        alpha = DT / TAU
        self.layer = rnn_ext.CTRNN(
            INPUT_SIZE,
            HIDDEN_SIZE,
            form="rate",
            alpha=alpha,
            nonlinearity="softplus",
            noise_std=math.sqrt(2 / alpha) * RECURRENT_NOISE,
        )
        self.readout = nn.Linear(HIDDEN_SIZE, OUTPUT_SIZE)

    def forward(self, input, noise=None):
        rates, _ = self.layer(input, noise=noise)
        return torch.sigmoid(self.readout(rates))


def loop(network, input, noise):
    """The output, with r_t = (1 - α) r + α softplus(W r + U u_t + b + noise_t)."""
    w_in, w_rec, b_in, b_rec = network.layer.all_weights[0]
    alpha, outputs = DT / TAU, []
    r = input.new_zeros(input.size(1), HIDDEN_SIZE)
    for u, xi in zip(input, noise, strict=True):
        current = r @ w_rec.T + u @ w_in.T + b_in + b_rec + xi
        r = (1 - alpha) * r + alpha * nn.functional.softplus(current)
        outputs.append(torch.sigmoid(network.readout(r)))
    return torch.stack(outputs)


def bump(place):
    """The activity (B, RING) of a ring of units around a place on it."""
    preferred = 2 * math.pi / RING * torch.arange(RING)
    distance = (place[:, None] - preferred).abs()
    distance = torch.minimum(distance, 2 * math.pi - distance)
    return 0.8 * torch.exp(-((distance / (math.pi / 8)) ** 2) / 2)


def draw_trials():
    """Inputs (T, B, 85), targets and weights of the loss (T, B, 33); T differs from call to call.

    A fixation point is on for the first 80 % of a trial, then a target on one of the rings.
    """
    steps = int(1000 + 1000 * torch.rand(())) // DT
    go = int(0.8 * steps)
    start, answer = 50 // DT, go + 100 // DT  # no output counts before, and between go and answer
    ring = bump(2 * math.pi * torch.rand(BATCH_SIZE))
    first = 1 + RING * int(torch.randint(2, ()))

    input = torch.zeros(steps, BATCH_SIZE, INPUT_SIZE)
    input[:go, :, 0] = 1
    input[go:, :, first : first + RING] = ring
    input[:, :, GO] = 1
    input += math.sqrt(2 * TAU / DT) * INPUT_NOISE * torch.randn(input.shape)

    target = torch.full((steps, BATCH_SIZE, OUTPUT_SIZE), 0.05)
    target[:go, :, 0] = 0.8
    target[go:, :, 1:] += ring

    weight = torch.zeros(steps, BATCH_SIZE, OUTPUT_SIZE)
    weight[start:go] = 1
    weight[answer:] = (go - start) / (steps - answer)
    weight[:, :, 0] *= 2
    return input, target, weight


def loss_of(output, target, weight):
    return (weight * (output - target)).square().mean()
