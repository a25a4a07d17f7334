"""``python -m benchmarks.published``: our layers against torchrecurrent's, forward and backward.

Both use the parameters of torchrecurrent's layer. Ours reorders them on each call.
"""

import argparse
import importlib
from collections.abc import Callable, Sequence

import torch
from tabulate import tabulate
from torch import Tensor

from rnn_ext.bench.timing import time_pair

from .weights import PUBLISHED, as_ours

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the times of each cell."""
    parser = argparse.ArgumentParser("python -m benchmarks.published", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cells (default: all)")
    parser.add_argument("--seq-len", type=int, default=100, metavar="N")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="of input and state")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="for each cell")
    args = parser.parse_args(argv)
    if unknown := set(args.names).difference(PUBLISHED):
        parser.error(f"no cell is named {', '.join(sorted(unknown))}")
    torch.set_num_threads(args.threads)
    x = torch.randn(args.seq_len, args.batch_size, args.size)
    rows = [_row(name, x, args.seconds) for name in args.names or PUBLISHED]
    print(tabulate(rows, ("cell", "torchrecurrent, ms", "rnn_ext, ms", "ratio"), floatfmt=".2f"))


def _row(name: str, x: Tensor, seconds: float) -> tuple[str, float, float, float]:
    theirs = getattr(importlib.import_module("torchrecurrent"), name)(x.size(-1), x.size(-1))
    grad = torch.randn_like(x)

    def step(layer: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> None:
            theirs.zero_grad()
            layer(x).backward(grad)

        return run

    ours = as_ours(PUBLISHED[name], theirs)
    timing = time_pair(step(lambda x: theirs(x)[0]), step(ours), seconds)
    times = timing.baseline_seconds.median, timing.rnn_ext_seconds.median
    return name, 1e3 * times[0], 1e3 * times[1], timing.ratio.median


if __name__ == "__main__":
    main()
