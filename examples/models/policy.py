"""An agent that has to remember: actor and critic on a recurrent cell, one step at a time (A2C)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

CORRIDORS, ROLLOUT = 16, 20


class Corridors:
    """Corridors side by side, with an agent in each.

    A sign at the entrance says left or right. Two to four steps on there is a fork, where the
    sign's side wins 1 and the other one loses 1.
    """

    def __init__(self, count: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.side, self.length = self._draw(count)
        self.walked = torch.zeros_like(self.side)

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        side = torch.randint(2, (count,), generator=self.generator)
        return side, torch.randint(2, 5, (count,), generator=self.generator)

    def observe(self) -> Tensor:
        """What the sign says (0 out of its sight), and whether this is the fork: (count, 2)."""
        sign = torch.where(self.walked == 0, 2 * self.side - 1, 0)
        return torch.stack([sign, self.walked == self.length], dim=1)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Reward, and whether the episode ended; where it did, the next one begins."""
        done = self.walked == self.length
        reward = done * (2 * (action == self.side) - 1)
        side, length = self._draw(len(done))
        self.side = torch.where(done, side, self.side)
        self.length = torch.where(done, length, self.length)
        self.walked = torch.where(done, 0, self.walked + 1)
        return reward, done


class RecurrentActorCritic(nn.Module):
    def __init__(self, observations: int, actions: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.RNNCell(observations, hidden_size)
        self.actor = nn.Linear(hidden_size, actions)
        self.critic = nn.Linear(hidden_size, 1)
        nn.init.orthogonal_(self.cell.weight_hh)

    def forward(self, observation: Tensor, hidden: Tensor) -> tuple[Categorical, Tensor, Tensor]:
        hidden = self.cell(observation.to(hidden.dtype), hidden)
        return Categorical(logits=self.actor(hidden)), self.critic(hidden).squeeze(1), hidden

    def init_hidden(self, count: int) -> Tensor:
        return self.actor.weight.new_zeros(count, self.cell.hidden_size)


def build() -> RecurrentActorCritic:
    return RecurrentActorCritic(observations=2, actions=2, hidden_size=32)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def discounted_returns(rewards: list[Tensor], ends: list[Tensor], last: Tensor) -> Tensor:
    returns = []
    for reward, end in zip(reversed(rewards), reversed(ends), strict=True):
        last = reward + 0.9 * last * ~end
        returns.append(last)
    return torch.stack(returns[::-1])


def train(model: RecurrentActorCritic, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    corridors = Corridors(CORRIDORS)
    hidden = model.init_hidden(CORRIDORS)
    while True:
        hidden = hidden.detach()
        log_probs, values, entropies, rewards, ends = [], [], [], [], []
        for _ in range(ROLLOUT):
            policy, value, hidden = model(corridors.observe(), hidden)
            action = policy.sample()
            reward, end = corridors.step(action)
            hidden = hidden * ~end.unsqueeze(1)  # a new episode starts without memories
            log_probs.append(policy.log_prob(action))
            values.append(value)
            entropies.append(policy.entropy())
            rewards.append(reward)
            ends.append(end)
        with torch.no_grad():
            _, value, _ = model(corridors.observe(), hidden)
        advantages = discounted_returns(rewards, ends, value) - torch.stack(values)
        loss = (
            -(torch.stack(log_probs) * advantages.detach()).mean()
            + 0.5 * advantages.square().mean()
            - 0.01 * torch.stack(entropies).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        yield loss.item()
