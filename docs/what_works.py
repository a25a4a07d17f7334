"""Tries features of torch with its RNN, GRU and LSTM and with ours, and prints what-works.md.

    python docs/what_works.py > docs/what-works.md

It needs the packages of `make test-extras`.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import torch
from features import CASES, KINDS, OURS, TORCHS, Case, Modules

INTRODUCTION = """\
# What works with it

`python docs/what_works.py` tries each line on the CPU with the RNN, GRU and LSTM of torch 2.13, or
the cells, and with ours, and prints this page. "yes" means that it gives the result of the plain
call.
[Compatibility](compatibility.md) says what else differs, and has cuDNN beside them.
"""
HEADINGS = (
    *("", "`nn.RNN`", *KINDS[1:]),
    *("`rnn_ext.RNN`", *KINDS[1:], "with `rnn_ext`"),
)


def failure(case: Case, modules: Modules) -> str:
    """Runs a case and returns its error, empty if it works; drops what it prints and logs."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    logging.disable()
    silence = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(silence), redirect_stderr(silence):
            warnings.simplefilter("ignore")
            case.run(modules)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        logging.disable(logging.NOTSET)
    return ""


def row(*cells: str) -> str:
    """Returns a line of a table."""
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """Runs all cases and returns the page; errors go to stderr, each of which deserves a look."""
    lines = [INTRODUCTION.rstrip()]
    section = ""
    for case in CASES:
        if case.section != section:
            section = case.section
            lines.append(f"\n## {section}\n\n{row(*HEADINGS)}\n{row(*['---'] * len(HEADINGS))}")
        outcomes = []
        for modules in (*TORCHS, *OURS):
            error = failure(case, modules)
            if error:
                name = f"{modules.library.__name__}.{modules.kind}"
                print(f"{case.feature}, {name}: {error:.300}", file=sys.stderr)
            outcomes.append("no" if error else "yes")
        lines.append(row(case.feature, *outcomes, case.note))
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
