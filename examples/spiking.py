"""A spiking network classifies patterns of spikes by their timing.

In a pattern each input neuron fires once, at a time of its own. A sample shifts these spikes by a
few steps, drops some and adds others. A layer of adaptive leaky integrate-and-fire neurons (Bellec
et al., 2018) reads a sample, and a linear layer reads how often each neuron fired. Training uses
surrogate gradients (Neftci et al., 2019).

    python examples/spiking.py
"""

import torch
from matplotlib.figure import Figure
from stopwatch import compare
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import rnn_ext
from rnn_ext import cells

STEPS, INPUTS, HIDDEN, CLASSES, BATCH = 100, 40, 100, 8, 64
NEURON = {"beta": 0.9, "threshold": 1.0, "rho": 0.97, "gamma": 1.8}


def draw_samples(patterns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Spikes (T, B, inputs) and classes (B,), from the times of the patterns (classes, inputs)."""
    classes = torch.randint(CLASSES, (count,))
    times = (patterns[classes] + 3 * torch.randn(count, INPUTS)).round()
    is_dropped = torch.rand(count, INPUTS) < 0.2
    spikes = (torch.arange(STEPS)[:, None, None] == times) & ~is_dropped
    return (spikes | (torch.rand(spikes.shape) < 0.01)).float(), classes


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = rnn_ext.Recurrent(cells.alif, INPUTS, HIDDEN, **NEURON)
        nn.init.normal_(self.layer.weight_ih_l0, std=3.0)  # a few spikes make a neuron fire
        self.linear = nn.Linear(HIDDEN, CLASSES)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, classes) and the spikes of the hidden neurons (T, B, hidden)."""
        spikes, *_ = self.layer(input)
        return self.linear(0.1 * spikes.sum(0)), spikes


def loop(layer: rnn_ext.Recurrent, input: Tensor) -> Tensor:
    """The layer's output: the same cell, called for each time step."""
    w_ih, w_hh, b_ih, b_hh = layer.all_weights[0]
    y = x = a = input.new_zeros(input.size(1), HIDDEN)
    spikes = []
    for u in linear(input, w_ih, b_ih):
        y, x, a = cells.alif(u, linear(y, w_hh, b_hh), y, x, a, **NEURON)
        spikes.append(y)
    return torch.stack(spikes)


def train(network: Network, patterns: Tensor, steps: int) -> list[float]:
    """The share of right answers in each training step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    accuracies = []
    for _ in range(steps):
        input, classes = draw_samples(patterns, BATCH)
        scores, _ = network(input)
        loss = cross_entropy(scores, classes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        accuracies.append((scores.argmax(1) == classes).float().mean().item())
    return accuracies


def main(steps: int = 400) -> None:
    torch.manual_seed(0)
    patterns, network = torch.rand(CLASSES, INPUTS) * STEPS, Network()
    accuracies = train(network, patterns, steps)
    input, classes = draw_samples(patterns, 1000)
    with torch.no_grad():
        scores, spikes = network(input)
    right = (scores.argmax(1) == classes).float().mean()
    print(f"{right:.1%} of new samples are classified right; chance is {1 / CLASSES:.1%}")
    print(f"a hidden neuron fires in {spikes.mean():.1%} of the steps")
    compare(network.layer, loop, input[:, :BATCH])

    figure = Figure((9, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    sample, by_time = int((classes == 0).nonzero()[0]), patterns[0].argsort()
    rasters = {"input": input[:, sample, by_time], "hidden": spikes[:, sample]}
    for axes, (name, raster) in zip(panels[:2], rasters.items(), strict=True):
        times, neurons = raster.nonzero(as_tuple=True)
        axes.scatter(times, neurons, s=12, marker="|", color="black", linewidths=1)
        axes.set(title=f"{name} spikes of a sample", xlabel="time step", ylabel=f"{name} neuron")
    panels[2].plot(accuracies)
    panels[2].axhline(1 / CLASSES, color="black", linestyle=":", linewidth=1)
    panels[2].set(title="training", xlabel="training step", ylabel="accuracy", ylim=(0, 1.03))
    figure.savefig("spiking.png", dpi=110)


if __name__ == "__main__":
    main()
