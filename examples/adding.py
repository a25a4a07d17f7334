"""The adding problem: which layer remembers two numbers over many steps?

Each step shows a number between 0 and 1, and a mark. Two steps are marked, one in each half of the
sequence; the target is the sum of their numbers (Hochreiter and Schmidhuber, "Long short-term
memory", 1997). A model that always answers 1 has a mean squared error of 1/6.

    python examples/adding.py
"""

import torch
from matplotlib.figure import Figure
from stopwatch import compare
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import rnn_ext

LENGTH, BATCH, HIDDEN = 60, 64, 64
CELLS = {
    rnn_ext.RNN: torch.rnn_tanh_cell,
    rnn_ext.GRU: torch.gru_cell,
    rnn_ext.LSTM: torch.lstm_cell,
}


def draw_batch() -> tuple[Tensor, Tensor]:
    """Inputs (T, B, 2) and targets (B, 1)."""
    numbers, marks = torch.rand(LENGTH, BATCH), torch.zeros(LENGTH, BATCH)
    half, rows = LENGTH // 2, torch.arange(BATCH)
    marks[torch.randint(half, (BATCH,)), rows] = 1
    marks[torch.randint(half, LENGTH, (BATCH,)), rows] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0).unsqueeze(1)


class Adder(nn.Module):
    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.layer = layer(2, HIDDEN)
        self.linear = nn.Linear(HIDDEN, 1)
        if layer is rnn_ext.LSTM:
            # Open forget gates: at first the LSTM keeps what is in its cells.
            nn.init.ones_(self.layer.bias_ih_l0.data[HIDDEN : 2 * HIDDEN])

    def forward(self, input: Tensor) -> Tensor:
        output, _ = self.layer(input)
        return self.linear(output[-1])


def loop(layer: nn.Module, input: Tensor) -> Tensor:
    """The layer's output, by a call of torch's cell for each time step."""
    cell, weights = CELLS[type(layer)], layer.all_weights[0]
    is_lstm = isinstance(layer, rnn_ext.LSTM)
    zeros = input.new_zeros(BATCH, HIDDEN)
    state = (zeros, zeros) if is_lstm else zeros
    output = []
    for x in input:
        state = cell(x, state, *weights)
        output.append(state[0] if is_lstm else state)
    return torch.stack(output)


def train(model: Adder, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        input, target = draw_batch()
        loss = mse_loss(model(input), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 800) -> None:
    figure = Figure((7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1 / 6, color="black", linewidth=1, linestyle=":", label="always 1")
    for layer in CELLS:
        torch.manual_seed(0)
        model = Adder(layer)
        losses = train(model, steps)
        last = losses[-50:]
        print(f"{layer.__name__}: error {sum(last) / len(last):.4f} after {steps} training steps")
        compare(model.layer, loop, draw_batch()[0])
        axes.semilogy(losses, linewidth=1, label=layer.__name__)
    axes.set(xlabel="training step", ylabel="mean squared error", title=f"{LENGTH} time steps")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig("adding.png", dpi=110)


if __name__ == "__main__":
    main()
