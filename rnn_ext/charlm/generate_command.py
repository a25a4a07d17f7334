"""``rnn-ext generate``: text from a model that ``rnn-ext train`` made."""

import argparse
from pathlib import Path

from ..arguments import non_negative_float, positive_int, seed
from ..errors import UserError
from .generation import generate
from .run import load

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``rnn-ext generate``."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="the folder that rnn-ext train wrote")
    add("--prompt", required=True, metavar="TEXT", help="what to go on from")
    add("--length", type=positive_int, default=200, metavar="N", help="characters to add")
    add(
        "--temperature",
        type=non_negative_float,
        default=0.0,
        metavar="X",
        help="0: the likeliest character every time; more: more variety",
    )
    add("--top-k", type=positive_int, metavar="N", help="draw from the N likeliest alone")
    add("--seed", type=seed, default=0, metavar="N", help="of the draws")


def run(args: argparse.Namespace) -> int:
    """Print the prompt, and the characters as they come."""
    model, vocabulary = load(args.dir)
    try:
        pieces = generate(
            model,
            vocabulary,
            args.prompt,
            args.length,
            temperature=args.temperature,
            top_k=args.top_k,
            seed=args.seed,
        )
    except ValueError as error:
        raise UserError(f"argument --prompt: {error}") from None
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0
