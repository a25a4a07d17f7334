"""Trains eight models before and after a call of rnn_ext.replace_rnn: same losses, other times.

Run: python examples/swap.py
"""

import argparse
import copy
import statistics
import time

import torch
from models import MODELS

import rnn_ext


def compare(task, steps):
    """Trains a model and a swapped copy of it; returns their last losses and median step times.

    They take turns, step by step, so that whatever else the machine does meets both.
    """
    torch.manual_seed(0)
    before = task.build()
    after = rnn_ext.replace_rnn(copy.deepcopy(before))  # the one line that a model needs
    runs = [task.train(model, task.build_optimizer(model)) for model in (before, after)]

    losses = [0.0, 0.0]
    times = [[], []]
    for step in range(steps):
        for i in range(2):
            torch.manual_seed(step)  # the same dropout and the same actions for both
            start = time.perf_counter()
            losses[i] = next(runs[i])
            times[i].append(time.perf_counter() - start)
    return losses, [statistics.median(t) for t in times]


def main(steps):
    print(f"{'':20}       loss after {steps:3} steps             time of a step")
    print(f"{'model':20}  torch.nn   rnn_ext    torch.nn   rnn_ext   ratio")
    for name, task in MODELS.items():
        (loss, loss_after), (seconds, seconds_after) = compare(task, steps)
        print(
            f"{name:20}  {loss:8.4f}  {loss_after:8.4f}  {1e3 * seconds:7.2f} ms"
            f"  {1e3 * seconds_after:6.2f} ms  {seconds / seconds_after:5.2f}x"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="training steps of each (40)")
    main(parser.parse_args().steps)
