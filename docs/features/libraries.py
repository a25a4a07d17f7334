"""Other processes, other libraries."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .cases import H0, Modules, Output, X, case, check, gradients, one_process, same


@case("Distributed and libraries", "`DistributedDataParallel`")
def _(modules: Modules) -> None:
    module = Output(modules)
    with one_process():
        actual = gradients(nn.parallel.DistributedDataParallel(module))
    same(actual, gradients(module))


@case("Distributed and libraries", "`fully_shard` (FSDP2)")
def _(modules: Modules) -> None:
    from torch.distributed.fsdp import fully_shard

    module = Output(modules)
    expected = module(X)
    with one_process():
        mesh = dist.init_device_mesh("cpu", (1,))
        fully_shard(module, mesh=mesh)
        same(module(X), expected)
        module(X).sum().backward()


@case("Distributed and libraries", "`fully_shard` with mixed precision, `replicate`, FSDP1")
def _(modules: Modules) -> None:
    from torch.distributed._composable.replicate import replicate
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        MixedPrecisionPolicy,
        fully_shard,
    )

    with one_process():
        module = fully_shard(Output(modules), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
        check(module(X).dtype == torch.bfloat16)
        module(X).sum().backward()
        for wrap, options in (
            (replicate, {}),
            (FullyShardedDataParallel, {"device_id": torch.device("cpu")}),
        ):
            module = Output(modules)
            expected = module(X).detach()
            wrapped: Any = wrap(module, **options)
            same(wrapped(X), expected)
            wrapped(X).sum().backward()


@case("Distributed and libraries", "`torch.distributed.pipelining`")
def _(modules: Modules) -> None:
    from torch.distributed.pipelining import SplitPoint, pipeline

    module = nn.Sequential(Output(modules), nn.Linear(4, 4))
    stages = pipeline(module, (X,), split_spec={"1": SplitPoint.BEGINNING})
    check(stages.num_stages == 2)
    same(stages(X)[0], module(X))


@case("Distributed and libraries", "tensor parallel layers beside it, `ZeroRedundancyOptimizer`")
def _(modules: Modules) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    module = nn.Sequential(Output(modules), nn.Linear(4, 4))
    expected = module(X)
    with one_process():
        mesh = dist.init_device_mesh("cpu", (1,))
        parallelize_module(module, mesh, {"1": ColwiseParallel()})
        same(module(X), expected)
        rnn = module[0]
        optimizer = ZeroRedundancyOptimizer(rnn.parameters(), torch.optim.Adam, lr=0.1)
        rnn(X).sum().backward()
        optimizer.step()
    check(not torch.equal(module[0](X), Output(modules)(X)))


@case("Distributed and libraries", "`DTensor` weights and input, replicated", "torch's own op")
def _(modules: Modules) -> None:
    from torch.distributed.tensor import distribute_module, distribute_tensor

    rnn = modules.layer(3, 4)
    expected = rnn(X, modules.states(H0))[0].detach()
    with one_process():
        mesh = dist.init_device_mesh("cpu", (1,))
        distribute_module(rnn, mesh)
        actual, _ = rnn(distribute_tensor(X, mesh), modules.states(distribute_tensor(H0, mesh)))
        same(actual.full_tensor().detach(), expected)
        actual.full_tensor().sum().backward()


@case("Distributed and libraries", "`share_memory`")
def _(modules: Modules) -> None:
    module = Output(modules)
    expected = module(X)
    same(module.share_memory()(X), expected)


def private(modules: Modules, mode: str) -> None:
    """Trains a step with Opacus; checks the per-sample gradients."""
    from opacus import PrivacyEngine

    module = Output(modules, batch_first=True)
    expected = gradients(module)
    data = torch.utils.data.TensorDataset(X)
    wrapped, optimizer, _ = PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=5),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        loss_reduction="sum",
        grad_sample_mode=mode,
    )
    wrapped(X).square().sum().backward()
    same([p.grad_sample.sum(0) for p in module.parameters()], expected)
    optimizer.step()


@case(
    "Distributed and libraries",
    'Opacus, `grad_sample_mode="ew"`',
    'torch\'s own op; for LSTM `"no_op"` with `torch.func`',
)
def _(modules: Modules) -> None:
    private(modules, "ew")


@case(
    "Distributed and libraries",
    'Opacus, `"hooks"`, `"functorch"`, `"ghost"`',
    '`"ew"`, or `"no_op"` with `torch.func`',
)
def _(modules: Modules) -> None:
    private(modules, "hooks")


@case("Distributed and libraries", "Captum")
def _(modules: Modules) -> None:
    from captum.attr import IntegratedGradients

    module = Output(modules, batch_first=True)
    attribution = IntegratedGradients(lambda x: module(x).sum((1, 2))).attribute(X)
    check(attribution.shape == X.shape)


@case(
    "Distributed and libraries",
    "thop",
    "`custom_ops={rnn_ext.GRU: thop.rnn_hooks.count_gru}`, and the like",
)
def _(modules: Modules) -> None:
    import thop

    operations, _ = thop.profile(Output(modules), (X,), verbose=False)
    check(operations > 0)


@case("Distributed and libraries", "torchinfo")
def _(modules: Modules) -> None:
    import torchinfo

    module = Output(modules)
    summary = torchinfo.summary(module, input_data=X, verbose=0)
    check(summary.total_params == sum(p.numel() for p in module.parameters()))
    check(summary.total_mult_adds > 0)
