"""``rnn-ext demo``: train a character RNN on one sentence until it can recite it.

The sentence is its own lesson: at each character the network has to name the one that follows.
As the hidden state is carried from epoch to epoch, the network sees the sentence come round and
round, and gradients never cross the seam: where only what lies beyond it could tell two places
apart (``abracadabra``), the loss settles above zero and the recital goes astray.
"""

import argparse
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import RNN
from ..arguments import device, positive_float, positive_int, seed
from ..errors import UserError
from .model import CharRNN
from .vocabulary import Vocabulary

__all__ = ["add_arguments", "run"]

_REPORT_EVERY = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``rnn-ext demo``."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("--text", type=_text, default="Hello, how are you?", help="what to learn by heart")
    add("--epochs", type=positive_int, default=100, metavar="N", help="passes over the text")
    add(
        "--hidden-size",
        type=positive_int,
        default=32,
        metavar="N",
        help="width of the embedding and of the hidden state",
    )
    add("--lr", type=positive_float, default=0.01, metavar="X", help="learning rate of Adam")
    add("--seed", type=seed, default=0, metavar="N", help="seed of the initial weights")
    add("--nonlinearity", choices=("tanh", "relu"), default="tanh", help="of the RNN")
    add("--device", type=device, default="cpu", help="where to train, such as cpu or cuda:0")
    add(
        "--reference",
        action="store_true",
        help="train torch.nn.RNN instead of rnn_ext.RNN, for comparison",
    )


def run(args: argparse.Namespace) -> int:
    """Train, report the loss every tenth epoch and after the last, recite."""
    torch.manual_seed(args.seed)
    vocabulary = Vocabulary(args.text)
    model = CharRNN(
        len(vocabulary),
        args.hidden_size,
        nonlinearity=args.nonlinearity,
        rnn_class=nn.RNN if args.reference else RNN,
    ).to(args.device)
    tokens = vocabulary.encode(args.text).to(args.device)

    for epoch, loss in enumerate(train(model, tokens, args.epochs, args.lr), start=1):
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} in epoch {epoch}; choose a smaller --lr")
        if epoch % _REPORT_EVERY == 0 or epoch == args.epochs:
            print(f"Epoch [{epoch}/{args.epochs}], Loss: {loss:.4f}", flush=True)

    print(f"Generated Text: {vocabulary.decode(recite(model, tokens[0], len(tokens)))}")
    return 0


def train(model: CharRNN, tokens: Tensor, epochs: int, lr: float) -> Iterator[float]:
    """Teach ``model`` to predict each of ``tokens`` (shape ``(T,)``) from those before it.

    Yields the loss of each epoch. An epoch begins with the hidden state that the one before ended
    with, detached: gradients do not reach back into it.
    """
    inputs, targets = tokens[:-1].unsqueeze(1), tokens[1:]  # characters are the time axis; B = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    hidden: Tensor | None = None
    for _ in range(epochs):
        logits, hidden = model(inputs, hidden)
        hidden = hidden.detach()
        loss = nn.functional.cross_entropy(logits.squeeze(1), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def recite(model: CharRNN, first: Tensor, length: int) -> list[int]:
    """Indices of ``length`` characters: ``first``, then always the likeliest next one."""
    token, hidden = first.view(1, 1), None
    indices = [int(token)]
    while len(indices) < length:
        logits, hidden = model(token, hidden)
        token = logits.argmax(dim=-1)
        indices.append(int(token))
    return indices


def _text(word: str) -> str:
    if len(word) < 2:
        raise argparse.ArgumentTypeError(
            f"must have at least two characters, one to start from and one to learn, not {word!r}"
        )
    try:
        word.encode()
    except UnicodeEncodeError:  # lone surrogates: how Python passes on bytes that it cannot decode
        raise argparse.ArgumentTypeError(
            "is not valid Unicode; pass UTF-8 text under a UTF-8 locale such as LC_ALL=C.UTF-8"
        ) from None
    return word
