"""The processes that train one model together, as torchrun starts them; or this one alone."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["Processes"]


class Processes:
    """This process's place among those that train together.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator["Processes"]:
        """Those that torchrun's environment names, connected until the block ends.

        Raises:
            UserError: another one went away.
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
            raise UserError(
                f"process {dist.get_rank()} of {size} lost contact with another one; "
                "start all of them again with --resume"
            ) from error
        finally:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This one's part of ``count`` things."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def device(self, name: str) -> torch.device:
        """The device that ``name`` stands for here: of several GPUs, one for each process."""
        if name == "cuda" and self.size > 1:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        return torch.device(name)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def mean(self, *values: float) -> list[float]:
        """Of what every process gives, value by value."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return (total / self.size).tolist()

    def joined_along_batch(self, states: Tensor) -> Tensor:
        """Every process's ``(L, B, H)``, side by side in order of rank."""
        if self.size == 1:
            return states
        parts = [torch.empty_like(states) for _ in range(self.size)]
        dist.all_gather(parts, states.contiguous())
        return torch.cat(parts, dim=1)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every process's gradients the mean of all; what data parallelism comes down to.

        In one message: torch's DistributedDataParallel cuts it up, to send what is done while the
        rest of backward goes on; but a model of one RNN has its gradients all at the end.
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
