"""A leaky rate network learns a perceptual decision, and its psychometric curve is drawn.

Two noisy inputs are shown for a second: which one is stronger on average? The network is that of
Song, Yang and Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive tasks"
(2016), without separate excitatory and inhibitory units. The task is their version of the random
dots of Britten et al. (1992).

    python examples/decision.py
"""

import math

import torch
from matplotlib.figure import Figure
from stopwatch import compare
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import rnn_ext

STEP, TAU = 20, 100  # the time step and the time constant of the units, ms
FIXATION, STIMULUS, RESPONSE = 200 // STEP, 1000 // STEP, 300 // STEP  # the parts of a trial, steps
TRIAL = FIXATION + STIMULUS + RESPONSE
ALPHA = STEP / TAU
COHERENCES = torch.tensor([0.032, 0.064, 0.128, 0.256, 0.512])
INPUT_NOISE, UNIT_NOISE = 0.5, 0.05
HIDDEN, BATCH = 64, 64


def draw_trials(coherence: Tensor) -> Tensor:
    """Inputs left, right and "answer now", (T, B, 3).

    coherence (B,) is by how much the right input is stronger.
    """
    input = torch.zeros(TRIAL, len(coherence), 3)
    stimulus, response = input[FIXATION:-RESPONSE, :, :2], input[-RESPONSE:, :, 2]
    means = torch.stack([1 - coherence, 1 + coherence], -1) / 2
    stimulus.copy_(means + INPUT_NOISE * torch.randn(stimulus.shape))
    response.fill_(1)
    return input


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = rnn_ext.CTRNN(
            input_size=3,
            hidden_size=HIDDEN,
            form="current",
            alpha=ALPHA,
            nonlinearity="relu",
            noise_std=math.sqrt(2 * ALPHA) * UNIT_NOISE,
        )
        self.linear = nn.Linear(HIDDEN, 2)

    def forward(self, input: Tensor) -> Tensor:
        """Scores of left and right (B, 2), averaged over the time for the response."""
        rates, _ = self.layer(input)
        return self.linear(rates[-RESPONSE:]).mean(0)


def loop(layer: rnn_ext.CTRNN, input: Tensor, noise: Tensor) -> Tensor:
    """The layer's output, one time step after the other."""
    w_ih, w_hh, b_ih, b_hh = layer.all_weights[0]
    x = r = input.new_zeros(input.size(1), HIDDEN)
    rates = []
    for u, n in zip(input, noise, strict=True):
        x = (1 - ALPHA) * x + ALPHA * (linear(u, w_ih, b_ih) + linear(r, w_hh, b_hh)) + n
        r = torch.relu(x)
        rates.append(r)
    return torch.stack(rates)


def train(network: Network, steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002)
    # Without a decay, the last updates leave a bias to one side.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        is_right = torch.randint(2, (BATCH,))
        strength = COHERENCES[torch.randint(len(COHERENCES), (BATCH,))]
        scores = network(draw_trials(strength * (2 * is_right - 1)))
        loss = cross_entropy(scores, is_right)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def main(steps: int = 1000, trials: int = 400) -> None:
    torch.manual_seed(0)
    network = Network()
    train(network, steps)

    levels = torch.cat([-COHERENCES.flip(0), torch.zeros(1), COHERENCES])
    with torch.no_grad():
        choices = network(draw_trials(levels.repeat_interleave(trials))).argmax(1)
    rates = choices.view(-1, trials).float().mean(1)
    # An ideal observer adds up the whole stimulus. The difference of the sums over n steps has mean
    # n coherence and variance 2 n INPUT_NOISE².
    grid = torch.linspace(-0.55, 0.55, 200)
    width = INPUT_NOISE * math.sqrt(2 / STIMULUS)
    ideal = torch.special.ndtr(grid / width)
    for level, rate in zip(levels, rates, strict=True):
        best = torch.special.ndtr(level / width)
        print(
            f"coherence {level:6.1%}: chooses right in {rate:4.0%}, an ideal observer {best:4.0%}"
        )
    noise = network.layer.noise_std * torch.randn(TRIAL, BATCH, HIDDEN)
    compare(network.layer, loop, draw_trials(torch.zeros(BATCH)), noise=noise)

    figure = Figure((6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(100 * grid, ideal, ":", color="black", label="ideal observer")
    errors = (rates * (1 - rates) / trials).sqrt()
    axes.errorbar(100 * levels, rates, errors, fmt="o-", markersize=4, label="network")
    axes.set(xlabel="coherence, %", ylabel="share of choices to the right")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig("decision.png", dpi=110)


if __name__ == "__main__":
    main()
