"""``rnn-ext train``: its flags."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..arguments import device, fraction, positive_float, positive_int, seed
from .settings import Settings
from .training import train

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; those of :class:`Settings` are in the namespace only if given."""
    parser.add_argument(
        "corpus", nargs="*", type=Path, metavar="FILE", help="UTF-8 text to learn from"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for all that comes of it"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR")

    def add(flag: str, help: str, **options: Any) -> None:
        default = getattr(Settings, flag.strip("-").replace("-", "_"))
        parser.add_argument(
            flag,
            default=argparse.SUPPRESS,
            help=help if default is False else f"{help} (default: {default})",
            **options,
        )

    number: dict[str, Any] = {"type": positive_int, "metavar": "N"}
    add("--steps", "optimizer steps in all", **number)
    add("--batch-size", "parallel streams of text, over all processes", **number)
    add("--seq-len", "characters of each stream in a step", **number)
    add("--hidden-size", "width of the embedding and of the hidden state", **number)
    add("--num-layers", "RNN layers", **number)
    add("--nonlinearity", "of the RNN", choices=("tanh", "relu"))
    add("--dropout", "share of a layer's output to drop", type=fraction, metavar="X")
    add("--tied", "embedding and output layer share their weights", action="store_true")
    add("--lr", "learning rate of Adam", type=positive_float, metavar="X")
    add("--schedule", "of the learning rate", choices=("constant", "cosine"))
    add("--clip", "largest norm of the gradient", type=positive_float, metavar="X")
    add("--min-count", "rarer characters become <unk>", **number)
    add("--val-fraction", "share of the text to validate on", type=fraction, metavar="X")
    add("--dtype", "bf16: compute in bfloat16, where that serves", choices=("fp32", "bf16"))
    add("--device", "where to train, such as cpu or cuda", type=_device)
    add("--seed", "seed of the initial weights and of dropout", type=seed, metavar="N")
    add("--reference", "train torch.nn.RNN, for comparison", action="store_true")
    add("--log-every", "steps between lines of the log", **number)
    add("--eval-every", "steps between validations", **number)
    add("--sample-every", "steps between samples of what it writes", **number)
    add("--checkpoint-every", "steps between checkpoints", **number)


def run(args: argparse.Namespace) -> int:
    """Train; what there is to say goes to stdout, the progress bar to stderr."""
    given = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
    train(args.corpus, args.out, resume=args.resume, **given)
    return 0


def _device(word: str) -> str:
    return str(device(word))
