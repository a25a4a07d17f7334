"""``rnn-ext demo``: train a character RNN on one sentence until it can recite it.

At each character the network predicts the next one. The hidden state is carried from one epoch to
the next; gradients stop at the start of an epoch. If only the previous epoch tells two positions
apart (``abracadabra``), the loss stays above zero and the network cannot recite the sentence.
"""

import argparse
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import restore_rnn
from ..charlm import CharRNN, Vocabulary, generate
from .arguments import device, positive_float, positive_int, seed
from .errors import UserError

__all__ = ["add_arguments", "run"]

_REPORT_EVERY = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of ``rnn-ext demo``."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("--text", type=_text, default="Hello, how are you?", help="the text to learn")
    add("--epochs", type=positive_int, default=100, metavar="N", help="passes over the text")
    add(
        "--hidden-size",
        type=positive_int,
        default=32,
        metavar="N",
        help="size of the embedding and of the hidden state",
    )
    add("--lr", type=positive_float, default=0.01, metavar="X", help="learning rate of Adam")
    add("--seed", type=seed, default=0, metavar="N", help="seed of the initial weights")
    add("--nonlinearity", choices=("tanh", "relu"), default="tanh", help="activation of the RNN")
    add("--device", type=device, default="cpu", help="device to train on, such as cpu or cuda:0")
    add(
        "--reference",
        action="store_true",
        help="train torch.nn.RNN instead of rnn_ext.RNN, for comparison",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, prints the loss of every tenth epoch and the last, then prints the recited text."""
    torch.manual_seed(args.seed)
    vocabulary = Vocabulary(args.text)
    model = CharRNN(len(vocabulary), args.hidden_size, nonlinearity=args.nonlinearity)
    if args.reference:
        restore_rnn(model)
    model.to(args.device)
    tokens = vocabulary.encode(args.text).to(args.device)

    for epoch, loss in enumerate(train(model, tokens, args.epochs, args.lr), start=1):
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} in epoch {epoch}; choose a smaller --lr")
        if epoch % _REPORT_EVERY == 0 or epoch == args.epochs:
            print(f"Epoch [{epoch}/{args.epochs}], Loss: {loss:.4f}", flush=True)

    rest = generate(model, vocabulary, args.text[0], len(args.text) - 1, temperature=0)
    print(f"Generated Text: {args.text[0]}{''.join(rest)}")
    return 0


def train(model: CharRNN, tokens: Tensor, epochs: int, lr: float) -> Iterator[float]:
    """Trains ``model`` to predict each of ``tokens`` (shape ``(T,)``) from those before it.

    Yields the loss of each epoch. An epoch begins with the detached hidden state of the one before.
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


def _text(word: str) -> str:
    if len(word) < 2:
        raise argparse.ArgumentTypeError(
            f"must have at least two characters, one to start from and one to learn, not {word!r}"
        )
    try:
        word.encode()
    except UnicodeEncodeError:  # lone surrogates, which stand for bytes that Python cannot decode
        raise argparse.ArgumentTypeError(
            "is not valid Unicode; pass UTF-8 text under a UTF-8 locale such as LC_ALL=C.UTF-8"
        ) from None
    return word
