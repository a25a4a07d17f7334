"""``rnn-ext info``: show how this copy was built and what it runs on."""

import argparse

from .. import build_info

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: ``info`` takes no flags."""


def run(args: argparse.Namespace) -> int:
    """Prints ``build_info()``, one ``key: value`` a line."""
    facts = build_info()
    width = max(map(len, facts)) + 1
    for key, value in facts.items():
        print(f"{key + ':':<{width}} {_in_words(value)}")
    return 0


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
