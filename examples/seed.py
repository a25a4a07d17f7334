"""A character RNN learns one sentence by heart. Run: python examples/seed.py"""

import torch
from torch import nn

import rnn_ext

torch.manual_seed(0)

# Characters to numbers and back. Sorted, so that the numbers are the same in every run.
text = "Hello, how are you?"
chars = sorted(set(text))
char2idx = {char: i for i, char in enumerate(chars)}
idx2char = dict(enumerate(chars))


class CharRNN(nn.Module):
    def __init__(self, vocab_size, hidden_size):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.rnn = rnn_ext.RNN(hidden_size, hidden_size)  # the one line to change; was: nn.RNN(...)
        self.linear = nn.Linear(hidden_size, vocab_size)

    def forward(self, x, hidden=None):  # x: (time, batch)
        output, hidden = self.rnn(self.embedding(x), hidden)  # output: (time, batch, hidden)
        return self.linear(output), hidden  # a score for every possible next character


model = CharRNN(len(chars), hidden_size=32)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

# At each character, predict the one that follows. The characters are the time axis:
# one sequence of 18 steps, so the shape is (18, 1).
indices = torch.tensor([char2idx[char] for char in text])
inputs = indices[:-1].unsqueeze(1)
targets = indices[1:]

num_epochs = 100
hidden = None
for epoch in range(1, num_epochs + 1):
    logits, hidden = model(inputs, hidden)
    hidden = hidden.detach()  # carry the state on, but do not backpropagate into the last epoch
    loss = criterion(logits.squeeze(1), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if epoch % 10 == 0:
        print(f"Epoch [{epoch}/{num_epochs}], Loss: {loss.item():.4f}")


@torch.no_grad()
def generate(start_char, length):
    result = start_char
    x = torch.tensor([[char2idx[start_char]]])  # one step, one sequence
    hidden = None
    while len(result) < length:
        logits, hidden = model(x, hidden)
        x = logits.argmax(dim=-1)  # the likeliest next character is the next input
        result += idx2char[x.item()]
    return result


print(f"Generated Text: {generate(text[0], len(text))}")
