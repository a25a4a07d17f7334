"""Form "current": which of two noisy inputs is stronger on average? The first example of PsychRNN.

Ehrlich et al., "PsychRNN: an accessible and flexible Python package for training recurrent neural
network models on cognitive tasks", 2021; `psychrnn/backend/models/basic.py` and
`psychrnn/tasks/perceptual_discrimination.py` in github.com/murraylab/PsychRNN.
"""

import math

import torch
from torch import nn

import rnn_ext

DT, TAU, TRIAL = 10, 100, 2000  # milliseconds
INPUT_SIZE, HIDDEN_SIZE, OUTPUT_SIZE, BATCH_SIZE = 2, 50, 2, 128
LEARNING_RATE = 1e-3


class Network(nn.Module):
    def __init__(self, recurrent_noise=0.0):
        super().__init__()
        alpha = DT / TAU
        self.layer = rnn_ext.CTRNN(
            INPUT_SIZE,
            HIDDEN_SIZE,
            form="current",
            alpha=alpha,
            nonlinearity="relu",
            noise_std=math.sqrt(2 * alpha) * recurrent_noise,
            learn_initial_state=True,
        )
        nn.init.constant_(self.layer.initial_state, 0.1)
        self.readout = nn.Linear(HIDDEN_SIZE, OUTPUT_SIZE)

    def forward(self, input, noise=None):
        rates, _ = self.layer(input, noise=noise)
        return self.readout(rates)


def loop(network, input, noise):
    """The output, with x_t = (1 - α) x + α (W relu(x) + U u_t + b) + noise_t."""
    w_in, w_rec, b_in, b_rec = network.layer.all_weights[0]
    alpha, outputs = DT / TAU, []
    x = network.layer.initial_state.expand(input.size(1), -1)
    for u, xi in zip(input, noise, strict=True):
        current = torch.relu(x) @ w_rec.T + u @ w_in.T + b_in + b_rec
        x = (1 - alpha) * x + alpha * current + xi
        outputs.append(network.readout(torch.relu(x)))
    return torch.stack(outputs)


def draw_trials():
    """Inputs and targets (T, B, 2), and a mask that is 0 until the stimulus has ended."""
    time = DT * torch.arange(TRIAL // DT)[:, None]
    coherence = torch.tensor([0.1, 0.3, 0.5, 0.7])[torch.randint(4, (BATCH_SIZE,))]
    is_stronger = torch.eye(2)[torch.randint(2, (BATCH_SIZE,))]
    onset = TRIAL / 2 * torch.rand(BATCH_SIZE)
    end = onset + TRIAL / 8 + TRIAL / 4 * torch.rand(BATCH_SIZE)
    input_std = math.sqrt(2 * 0.01 * math.sqrt(10) * math.sqrt(DT) * 0.1**2)
    is_shown = ((time > onset) & (time < end))[:, :, None]
    input = is_shown * (1 + coherence[:, None] * is_stronger)
    input = input + input_std * torch.randn(input.shape)
    target = (time > end + 20)[:, :, None] * (0.2 + 0.8 * is_stronger)
    return input, target, (time >= end)[:, :, None].float()


def loss_of(output, target, mask):
    return (mask * (output - target)).square().mean()
