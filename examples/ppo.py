"""PPO with a recurrent policy: one call of a GRU over a rollout, with resets at episode starts.

A sign at the entrance of a corridor tells which side of the fork at its end has the reward. Each
rollout has a fixed number of steps, so episodes start and end inside it. stable-baselines3-contrib
and CleanRL loop over the steps of a rollout; here `reset=` resets the states inside one call.

    python examples/ppo.py
"""

import torch
from matplotlib.figure import Figure
from models.policy import Corridors, discounted_returns
from stopwatch import compare
from torch import Tensor, nn
from torch.distributions import Categorical

import rnn_ext

CORRIDORS, STEPS, HIDDEN = 32, 64, 64
EPOCHS, CLIP = 4, 0.2


class Policy(nn.Module):
    """Actor and critic on a GRU.

    Args:
        remembers: if False, the state is reset in every step.
    """

    def __init__(self, remembers: bool) -> None:
        super().__init__()
        self.remembers = remembers
        self.layer = rnn_ext.GRU(2, HIDDEN)
        self.actor, self.critic = nn.Linear(HIDDEN, 2), nn.Linear(HIDDEN, 1)

    def forward(
        self, observations: Tensor, starts: Tensor, state: Tensor
    ) -> tuple[Categorical, Tensor, Tensor]:
        """Actions, values (T, B) and the final state, from (T, B, 2), (T, B) and (1, B, H)."""
        reset = starts if self.remembers else torch.ones_like(starts)
        output, state = self.layer(observations, state, reset=reset)
        return Categorical(logits=self.actor(output)), self.critic(output).squeeze(-1), state


def loop(layer: rnn_ext.GRU, observations: Tensor, state: Tensor, reset: Tensor) -> Tensor:
    """The layer's output, by a call of torch's cell for each time step."""
    h, output = state[0], []
    for x, starts in zip(observations, reset, strict=True):
        h = torch.gru_cell(x, h * ~starts.unsqueeze(1), *layer.all_weights[0])
        output.append(h)
    return torch.stack(output)


class Rollout:
    """What a policy observes, does and gains in some steps of all corridors."""

    def __init__(self) -> None:
        self.corridors = Corridors(CORRIDORS)
        self.last_state = torch.zeros(1, CORRIDORS, HIDDEN)
        self.start = torch.ones(CORRIDORS, dtype=torch.bool)  # whether an episode starts

    @torch.no_grad()
    def collect(self, policy: Policy) -> None:
        self.state = self.last_state
        steps = []
        for _ in range(STEPS):
            observation, start = self.corridors.observe().float(), self.start
            actions, value, self.last_state = policy(
                observation[None], start[None], self.last_state
            )
            action = actions.sample()
            reward, self.start = self.corridors.step(action[0])
            log_prob = actions.log_prob(action)[0]
            steps.append((observation, start, action[0], log_prob, value[0], reward, self.start))
        (self.observations, self.starts, self.actions, self.log_probs, values, rewards, ends) = map(
            torch.stack, zip(*steps, strict=True)
        )
        observation = self.corridors.observe().float()
        _, next_value, _ = policy(observation[None], self.start[None], self.last_state)
        self.returns = discounted_returns(list(rewards), list(ends), next_value[0])
        advantages = self.returns - values
        self.advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        self.won = ((rewards == 1).sum() / ends.sum()).item()


def update(policy: Policy, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    for _ in range(EPOCHS):
        actions, values, _ = policy(rollout.observations, rollout.starts, rollout.state)
        ratio = (actions.log_prob(rollout.actions) - rollout.log_probs).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        loss = (
            -torch.minimum(ratio * rollout.advantages, clipped * rollout.advantages).mean()
            + 0.5 * (values - rollout.returns).square().mean()
            - 0.01 * actions.entropy().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()


def main(updates: int = 60) -> None:
    figure = Figure((6, 3.5), layout="constrained")
    axes = figure.subplots()
    for remembers, label in ((True, "reset at episode starts"), (False, "reset in every step")):
        torch.manual_seed(0)
        policy, rollout = Policy(remembers), Rollout()
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.003)
        won = []
        for _ in range(updates):
            rollout.collect(policy)
            update(policy, optimizer, rollout)
            won.append(rollout.won)
        print(f"{label}: {won[-1]:.0%} of the last episodes are won")
        axes.plot(won, label=label)
    compare(policy.layer, loop, rollout.observations, rollout.state, reset=rollout.starts)
    axes.set(xlabel="update", ylabel="share of episodes won", ylim=(0.3, 1.03))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig("ppo.png", dpi=110)


if __name__ == "__main__":
    main()
