"""Prints how many instructions a time step takes. Run by `make arm-check`.

`count.c` counts those of a process, which are mostly of its start: two processes that differ in the
number of steps tell those of a step.
"""

import os
import subprocess
import sys

SIZE = 256
ROWS = 2048
QEMU = ["qemu-aarch64", "-plugin", "./count.so", sys.executable, __file__]


def run(batch: int, steps: int) -> None:
    import torch

    import rnn_ext

    torch.set_num_threads(1)
    with torch.inference_mode():
        rnn_ext.RNN(SIZE, SIZE)(torch.ones(steps, batch, SIZE))


def count(batch: int, steps: int) -> int:
    environment = {**os.environ, "PYTHONPATH": ".", "PYTHONHASHSEED": "0"}
    command = [*QEMU, str(batch), str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stderr.splitlines()[-1])


def main() -> None:
    print(f"instructions of a step of an RNN, forward, float32, I = H = {SIZE}, one thread")
    for batch in (1, 32):
        steps = ROWS // batch
        added = count(batch, 2 * steps) - count(batch, steps)
        print(f"B = {batch}: {added // steps:,}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
