"""The processes that train one model together, started by torchrun, or a single process."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import CharLMError

__all__ = ["Processes"]


class Processes:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator["Processes"]:
        """Joins the process group that torchrun's environment describes until the block ends.

        Raises:
            CharLMError: another process ended or no longer answers.
        """
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            yield cls()
            return
        dist.init_process_group()  # gloo for tensors on the CPU, nccl on a GPU
        try:
            yield cls(dist.get_rank(), size)
        except RuntimeError as error:
            if not _is_lost_contact(error):
                raise
            raise CharLMError(
                f"process {dist.get_rank()} of {size} lost the connection to another process; "
                "resume the run with all of them"
            ) from error
        finally:
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Returns this process's part of ``count`` streams."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def device(self, name: str) -> torch.device:
        """Returns the device ``name``; for ``"cuda"``, each of several processes gets its own."""
        if name == "cuda" and self.size > 1:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        return torch.device(name)

    def wait(self) -> None:
        """Waits until every process has called it."""
        if self.size > 1:
            dist.barrier()

    def mean(self, *values: float) -> list[float]:
        """Returns the mean over all processes of each value."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return (total / self.size).tolist()

    def joined_along_batch(self, states: Tensor) -> Tensor:
        """Returns the states ``(L, B, H)`` of all processes, concatenated in order of rank."""
        if self.size == 1:
            return states
        parts = [torch.empty_like(states) for _ in range(self.size)]
        dist.all_gather(parts, states.contiguous())
        return torch.cat(parts, dim=1)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every process's gradients by the mean over all processes.

        Sends them in one message. DistributedDataParallel sends several, to overlap them with
        backward, but an RNN's gradients are complete only when its backward ends.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients]) / self.size
        dist.all_reduce(message)
        parts = message.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _is_lost_contact(error: RuntimeError) -> bool:
    # gloo has no exception class of its own.
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "peer" in str(error)
