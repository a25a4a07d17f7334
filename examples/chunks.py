"""Truncated backpropagation: an endless stream, learned in chunks that pass on the state.

The input has a pulse of +1 or -1 every 50 steps on average; the target is the sign of the last one.
Gradients reach back to the start of a chunk of 25 steps. A GRU that passes its state on to the next
chunk remembers older pulses nevertheless. One that starts each chunk from zeros cannot.

    python examples/chunks.py
"""

import torch
from matplotlib.figure import Figure
from stopwatch import compare
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import rnn_ext

CHUNK, STREAMS, HIDDEN, PULSES = 25, 32, 32, 0.02


class Stream:
    """Streams of pulses, side by side."""

    def __init__(self) -> None:
        self.sign = (torch.rand(STREAMS) < 0.5).float()  # of the last pulse, as 0 or 1
        self.age = torch.zeros(STREAMS)  # steps since then

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next chunk: input (T, B, 1), signs (T, B) and ages (T, B)."""
        steps = []
        for pulse in torch.rand(CHUNK, STREAMS) < PULSES:
            self.sign = torch.where(pulse, (torch.rand(STREAMS) < 0.5).float(), self.sign)
            self.age = torch.where(pulse, 0, self.age + 1)
            steps.append((pulse * (2 * self.sign - 1), self.sign, self.age))
        input, signs, ages = map(torch.stack, zip(*steps, strict=True))
        return input.unsqueeze(-1), signs, ages


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = rnn_ext.GRU(1, HIDDEN)
        self.linear = nn.Linear(HIDDEN, 1)

    def forward(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, state = self.layer(input, state)
        return self.linear(output).squeeze(-1), state


def loop(layer: rnn_ext.GRU, input: Tensor, state: Tensor) -> Tensor:
    """The layer's output, by a call of torch's cell for each time step."""
    h, output = state[0], []
    for x in input:
        h = torch.gru_cell(x, h, *layer.all_weights[0])
        output.append(h)
    return torch.stack(output)


def train(model: Memory, carries: bool, chunks: int) -> tuple[Tensor, Tensor]:
    """In the last quarter of the chunks: which answers are right, and the ages of the pulses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    stream, state = Stream(), torch.zeros(1, STREAMS, HIDDEN)
    results = []
    for _ in range(chunks):
        input, signs, ages = stream.read()
        logits, last = model(input, state)
        if carries:
            state = last.detach()  # the next chunk starts here; its gradients stop here
        loss = binary_cross_entropy_with_logits(logits, signs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        results.append(((logits > 0) == signs.bool(), ages))
    right, ages = zip(*results[-(chunks // 4) :], strict=True)
    return torch.cat(right).float(), torch.cat(ages)


def main(chunks: int = 1500) -> None:
    figure = Figure((6.5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0, CHUNK, color="0.9", label="one chunk")
    starts = range(0, 100, 10)
    for carries, label in ((True, "state passed on"), (False, "each chunk from zeros")):
        torch.manual_seed(0)
        model = Memory()
        right, ages = train(model, carries, chunks)
        print(f"{label}: {right[ages > CHUNK].mean():.1%} right if the pulse is older than a chunk")
        shares = [right[(ages >= start) & (ages < start + 10)].mean() for start in starts]
        axes.plot([start + 5 for start in starts], shares, "o-", markersize=4, label=label)
    compare(model.layer, loop, Stream().read()[0], torch.zeros(1, STREAMS, HIDDEN))
    axes.axhline(0.5, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="steps since the last pulse", ylabel="share of right answers", ylim=(0.4, 1.03))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig("chunks.png", dpi=110)


if __name__ == "__main__":
    main()
