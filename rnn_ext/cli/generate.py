"""``rnn-ext generate``: generate text with a model from ``rnn-ext train``."""

import argparse
import sys

import torch

from .. import charlm
from .arguments import add_threads, folder, non_negative_float, positive_int, seed
from .errors import UserError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of ``rnn-ext generate``."""
    add = parser.add_argument
    add("dir", type=folder, metavar="DIR", help="the folder that rnn-ext train wrote")
    add("--prompt", default="", metavar="TEXT", help="text to continue (default: start a line)")
    add(
        "--length",
        type=positive_int,
        default=200,
        metavar="N",
        help="number of characters to generate (default: 200)",
    )
    add(
        "--temperature",
        type=non_negative_float,
        default=0.8,
        metavar="X",
        help="0 always takes the most likely character; larger values vary more (default: 0.8)",
    )
    add(
        "--top-k",
        type=positive_int,
        metavar="N",
        help="draw only from the N most likely characters (default: from all)",
    )
    add("--seed", type=seed, default=0, metavar="N", help="seed of the draws (default: 0)")
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the prompt, then each character as it is generated."""
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        model, vocabulary = charlm.load(args.dir)
        pieces = charlm.generate(
            model,
            vocabulary,
            args.prompt,
            args.length,
            temperature=args.temperature,
            top_k=args.top_k,
            seed=args.seed,
        )
    except charlm.CharLMError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"argument --prompt: {error}") from None
    has_terminal = sys.stdout is not None and sys.stdout.isatty()
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(charlm.escape_controls(piece) if has_terminal else piece, end="", flush=True)
    print()
    return 0
