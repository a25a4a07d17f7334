"""DistributedDataParallel and fully_shard: two processes train to what one process does."""

import time

import pytest
import torch
import torch.distributed as dist
from support import PATIENCE, assert_close_fp64
from torch import nn

import rnn_ext

WORLD = 2
STEPS = 5


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = rnn_ext.RNN(3, 4, 2, bidirectional=True)
        self.cell = rnn_ext.RNNCell(8, 2)

    def forward(self, x):
        output, _ = self.rnn(x)
        return self.cell(output[-1])


def train(wrap, rows):
    """A model trained on these rows of the batch, its loss the mean over rows."""
    torch.manual_seed(0)
    model = wrap(Tagger().double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(STEPS, 5, 4, 3, dtype=torch.float64)
    target = torch.randn(STEPS, 4, 2, dtype=torch.float64)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x[step, :, rows]), target[step, rows])
        loss.backward()
        optimizer.step()
    return model


def data_parallel(model):
    return nn.parallel.DistributedDataParallel(model)


def fully_sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (model.rnn, model.cell, model):
        fully_shard(part, mesh=mesh)
    return model


WRAPPERS = {"data parallel": data_parallel, "fully sharded": fully_sharded}


def work(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    for name, wrap in WRAPPERS.items():
        model = train(wrap, slice(2 * rank, 2 * rank + 2))
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        torch.save([p.detach() for p in whole], f"{folder}/{name} {rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs the processes; returns the folder with their weights."""
    path = tmp_path_factory.mktemp("ranks")
    processes = torch.multiprocessing.start_processes(
        work, (str(path),), WORLD, join=False, start_method="spawn"
    )
    assert processes is not None
    deadline = time.monotonic() + PATIENCE
    while not processes.join(1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the processes hang")
    return path


@pytest.mark.parametrize("name", WRAPPERS)
def test_two_processes_train_to_the_result_of_one(name, folder):
    expected = [p.detach() for p in train(lambda model: model, slice(None)).parameters()]
    for rank in range(WORLD):
        assert_close_fp64(torch.load(folder / f"{name} {rank}.pt"), expected)
