"""The time before the first result: the import, and the first call of a cell."""

import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

# No other module of this folder: they import rnn_ext.

__all__ = ["measure_start"]


def measure_start(cells: Sequence[str], repeats: int = 3) -> dict[str, float]:
    """Returns seconds, each the median of new processes.

    ``"import"`` is that of ``rnn_ext`` after torch's. With the name of a cell: building a layer of
    it and calling it for the first time, which traces the cell, derives and lowers it.
    """
    found: dict[str, list[float]] = {"import": [], **{cell: [] for cell in cells}}
    for _ in range(repeats):
        for cell in cells:
            command = [sys.executable, "-m", __spec__.name, cell]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            seconds = map(float, done.stdout.split())
            for name, value in zip(("import", cell), seconds, strict=True):
                found[name].append(value)
    return {name: median(values) for name, values in found.items()}


def _main(name: str) -> None:
    import torch

    start = time.perf_counter()
    import rnn_ext

    print(time.perf_counter() - start)
    from .recurrences import CELLS

    x = torch.randn(10, 1, 32)
    cell = getattr(rnn_ext.cells, name)
    start = time.perf_counter()
    layer = rnn_ext.Recurrent(cell, 32, 32, **CELLS[name])
    layer(x, **dict.fromkeys(cell.inputs, x))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    _main(sys.argv[1])
