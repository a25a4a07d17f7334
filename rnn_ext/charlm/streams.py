"""Cuts tokens into the inputs and targets of each training step."""

import torch
from torch import Tensor

__all__ = ["Streams", "windows"]


class Streams:
    """Parallel streams through a text, each of which continues where its last step ended.

    The streams start at equal distances, and the text continues at its beginning after its end.
    Each step moves every stream by ``seq_len`` characters, no stream ends, and the final state of a
    step is the initial state of the next.

    Args:
        tokens: the text, shape ``(N,)``, N ≥ 2.
        count: number of streams of all processes.
        seq_len: characters of a stream in a step, T.
        local: the streams that this process reads.
    """

    def __init__(self, tokens: Tensor, count: int, seq_len: int, local: slice) -> None:
        self._tokens = tokens
        self._seq_len = seq_len
        starts = (torch.arange(count) * len(tokens) // count)[local]
        self._places = torch.arange(seq_len + 1).unsqueeze(1) + starts

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns the inputs of a step, counted from 1, and the character that follows each.

        Both are int64, shape ``(T, local streams)``.
        """
        places = (self._places + (step - 1) * self._seq_len) % len(self._tokens)
        tokens = self._tokens[places].long()
        return tokens[:-1], tokens[1:]


def windows(tokens: Tensor, count: int, seq_len: int) -> list[tuple[Tensor, Tensor]]:
    """Returns inputs and targets for one pass over a text on at most ``count`` streams."""
    count = min(count, len(tokens) // 2)
    length = len(tokens) // count
    streams = tokens[: count * length].view(count, length).t().long()
    return list(zip(streams[:-1].split(seq_len), streams[1:].split(seq_len), strict=True))
