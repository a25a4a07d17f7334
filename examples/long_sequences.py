"""Long sequences in little memory: chunks that backward computes again.

Backward needs values of every step, so memory grows with the sequence length T. With
`torch.utils.checkpoint` a chunk keeps only its initial state and runs again in backward. With √T
chunks of √T steps, memory grows with √T at the cost of one more forward pass (Chen et al.,
"Training deep nets with sublinear memory cost", 2016). The gradients are the same.

    python examples/long_sequences.py
"""

import multiprocessing
import os
import re
import resource
import time
from itertools import product
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import rnn_ext

INPUTS, HIDDEN, BATCH = 8, 128, 16


def one_call(gru: rnn_ext.GRU, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, made up for this example, and the final state (1, B, H)."""
    output, state = gru(input, state)
    return output.square().sum(), state


def in_chunks(gru: rnn_ext.GRU, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    loss = input.new_zeros(())
    for chunk in input.split(round(len(input) ** 0.5)):
        part, state = checkpoint(one_call, gru, chunk, state, use_reentrant=False)
        loss = loss + part
    return loss, state


def in_loop(gru: rnn_ext.GRU, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    h, loss = state[0], input.new_zeros(())
    for x in input:
        h = torch.gru_cell(x, h, *gru.all_weights[0])
        loss = loss + h.square().sum()
    return loss, h.unsqueeze(0)


RUNS = {"one call": one_call, "√T chunks": in_chunks, "loop": in_loop}


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def measure(length: int, name: str) -> tuple[float, float, float]:
    """MiB, seconds and the norm of the gradients of a forward and backward."""
    torch.manual_seed(0)
    gru, input = rnn_ext.GRU(INPUTS, HIDDEN), torch.randn(length, BATCH, INPUTS)
    state = torch.zeros(1, BATCH, HIDDEN)
    RUNS[name](gru, input[:64], state)[0].backward()  # loads what the first call loads
    gru.zero_grad()
    before, start = peak(), time.perf_counter()
    RUNS[name](gru, input, state)[0].backward()
    seconds = time.perf_counter() - start
    norm = torch.cat([p.grad.flatten() for p in gru.parameters()]).norm().item()
    return (peak() - before) / 2**20, seconds, norm


def main(lengths: tuple[int, ...] = (1024, 4096, 16384)) -> None:
    # glibc's malloc: give large tensors back to the system, instead of leaving holes between them.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    cases = list(product(lengths, RUNS))
    # A new process for each case, because the peak of a process never falls.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = dict(zip(cases, pool.starmap(measure, cases, chunksize=1), strict=True))
    for (length, name), (memory, seconds, norm) in results.items():
        print(f"T = {length:5}, {name:9}: {memory:7.1f} MiB, {seconds:5.2f} s")
        expected = results[length, "loop"][2]
        # The sums over T steps are rounded in another order.
        assert abs(norm - expected) < 1e-3 * expected, "the gradients differ"

    figure = Figure((6, 3.8), layout="constrained")
    axes = figure.subplots()
    for name in RUNS:
        axes.loglog(lengths, [results[n, name][0] for n in lengths], "o-", label=name)
    axes.set(xlabel="time steps T", ylabel="memory of forward and backward, MiB")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig("long_sequences.png", dpi=110)


if __name__ == "__main__":
    main()
