"""Form "inside": which of two noisy inputs is stronger? A tutorial that many networks started from.

Yang, `RNN_tutorial.ipynb` in github.com/gyyang/nn-brain, with the task "PerceptualDecisionMaking"
of github.com/neurogym/neurogym. The tutorial states form "rate"; its code leaks inside the relu.
"""

import math

import torch
from torch import nn

import rnn_ext

DT, TAU = 20, 100  # milliseconds
FIXATION, STIMULUS, DECISION = 100 // DT, 2000 // DT, 100 // DT  # steps
TRIAL = FIXATION + STIMULUS + DECISION
INPUT_SIZE, HIDDEN_SIZE, OUTPUT_SIZE, BATCH_SIZE, SEQ_LEN = 3, 128, 3, 16, 100
LEARNING_RATE = 1e-2


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = rnn_ext.CTRNN(
            INPUT_SIZE, HIDDEN_SIZE, form="inside", dt=DT, tau=TAU, nonlinearity="relu"
        )
        self.readout = nn.Linear(HIDDEN_SIZE, OUTPUT_SIZE)

    def forward(self, input, noise=None):
        rates, _ = self.layer(input, noise=noise)
        return self.readout(rates)


def loop(network, input, noise):
    """The output, with h_t = relu((1 - α) h + α (W h + U u_t + b) + noise_t); theirs is 0."""
    w_in, w_rec, b_in, b_rec = network.layer.all_weights[0]
    alpha, outputs = DT / TAU, []
    h = input.new_zeros(input.size(1), HIDDEN_SIZE)
    for u, xi in zip(input, noise, strict=True):
        h = torch.relu((1 - alpha) * h + alpha * (u @ w_in.T + b_in + h @ w_rec.T + b_rec) + xi)
        outputs.append(network.readout(h))
    return torch.stack(outputs)


def draw_trials():
    """Inputs (T, B, 3) and answers (T, B): windows of T steps out of trials that follow each other.

    The first input asks to wait, which is answer 0; in the last steps of a trial the answer is the
    stronger of the others, 1 or 2.
    """
    inputs, answers = [], []
    for _ in range(2):
        answer = torch.randint(2, (BATCH_SIZE,))
        coherence = torch.tensor([0, 6.4, 12.8, 25.6, 51.2])[torch.randint(5, (BATCH_SIZE,))]
        sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[answer]
        input = torch.zeros(TRIAL, BATCH_SIZE, INPUT_SIZE)
        input[:-DECISION, :, 0] = 1
        shown = input[FIXATION:-DECISION, :, 1:]
        shown += 0.5 + coherence[:, None] / 200 * sign
        shown += torch.randn(shown.shape) / math.sqrt(DT)
        inputs.append(input)
        answers.append(torch.zeros(TRIAL, BATCH_SIZE, dtype=torch.int64))
        answers[-1][-DECISION:] = 1 + answer
    start = int(torch.randint(TRIAL, ()))
    window = slice(start, start + SEQ_LEN)
    return torch.cat(inputs)[window], torch.cat(answers)[window], None


def loss_of(output, answers, _):
    return nn.functional.cross_entropy(output.flatten(0, 1), answers.flatten())
