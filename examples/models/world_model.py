"""Predicts what an agent will observe: a recurrent state-space model that loops over a GRUCell.

An outline of github.com/Kaixhin/PlaNet, models.py and main.py (Hafner et al., "Learning latent
dynamics for planning from pixels", 2019): 200 units, 30 latent variables, batches of 50 sequences
of 50 steps. An observation here is 16 numbers instead of an image, and there are no rewards.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

UNITS, LATENT, OBSERVED, ACTIONS, BATCH_SIZE, STEPS = 200, 30, 16, 2, 50, 50


def two_layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, UNITS), nn.ReLU(), nn.Linear(UNITS, outputs))


def normal(parameters: Tensor) -> Normal:
    mean, std = parameters.chunk(2, -1)
    return Normal(mean, nn.functional.softplus(std) + 0.1)


class WorldModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(LATENT + ACTIONS, UNITS), nn.ReLU())
        self.cell = nn.GRUCell(UNITS, UNITS)
        self.prior = two_layers(UNITS, 2 * LATENT)
        self.posterior = two_layers(UNITS + OBSERVED, 2 * LATENT)
        self.decoder = two_layers(UNITS + LATENT, OBSERVED)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The loss of sequences (time, batch, ...): error of the reconstruction, and KL."""
        belief = observations.new_zeros(observations.size(1), UNITS)
        latent = observations.new_zeros(observations.size(1), LATENT)
        losses = []
        for observation, action in zip(observations, actions, strict=True):
            belief = self.cell(self.embed(torch.cat([latent, action], 1)), belief)
            posterior = normal(self.posterior(torch.cat([belief, observation], 1)))
            latent = posterior.rsample()
            error = self.decoder(torch.cat([belief, latent], 1)) - observation
            divergence = kl_divergence(posterior, normal(self.prior(belief))).sum(1)
            losses.append(error.square().sum(1) + divergence.clamp(min=3.0))
        return torch.stack(losses).mean()


def make_sequences() -> tuple[Tensor, Tensor]:
    """A point on a circle, which the actions push, as bumps on 16 sensors."""
    actions = torch.rand(STEPS, BATCH_SIZE, ACTIONS) - 0.5
    angle = 2 * math.pi * torch.rand(BATCH_SIZE) + actions.sum(2).cumsum(0)
    sensors = 2 * math.pi / OBSERVED * torch.arange(OBSERVED)
    return torch.cos(angle[:, :, None] - sensors), actions


def build() -> WorldModel:
    return WorldModel()


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def train(model: WorldModel, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    dtype = next(model.parameters()).dtype
    while True:
        observations, actions = (t.to(dtype) for t in make_sequences())
        optimizer.zero_grad()
        loss = model(observations, actions)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
        optimizer.step()
        yield loss.item()
