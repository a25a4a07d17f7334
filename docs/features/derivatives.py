"""Derivatives."""

from __future__ import annotations

from typing import Any

import torch

from .cases import Modules, Output, X, case, check, functional, gradients, same


@case("Derivatives", "second and third derivatives")
def _(modules: Modules) -> None:
    module = Output(modules).double()
    x = X.double().requires_grad_()
    torch.autograd.gradgradcheck(module, (x,))
    y = module(x).pow(4).sum()
    for _order in range(3):
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        y = gradient.sin().sum()
    check(bool(gradient.any()))


@case("Derivatives", "forward mode: `torch.autograd.forward_ad`")
def _(modules: Modules) -> None:
    module = Output(modules).double()
    torch.autograd.gradcheck(module, (X.double().requires_grad_(),), check_forward_ad=True)


@case("Derivatives", "`torch.autograd.functional`, `vectorize` and forward mode included")
def _(modules: Modules) -> None:
    from torch.autograd.functional import hessian, jacobian

    module, x = Output(modules).double(), X.double()
    for vectorized in ({}, {"strategy": "forward-mode"}):
        same(jacobian(module, x, vectorize=True, **vectorized), jacobian(module, x))
    expected = hessian(lambda x: module(x).square().sum(), x)
    same(hessian(lambda x: module(x).square().sum(), x, vectorize=True), expected)


@case("Derivatives", "`backward(retain_graph=True)` twice")
def _(modules: Modules) -> None:
    module = Output(modules)
    loss = module(X).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    same([p.grad for p in module.parameters()], [2 * g for g in gradients(module)])


@case("Derivatives", "`is_grads_batched=True`")
def _(modules: Modules) -> None:
    module = Output(modules)
    output, seeds = module(X), torch.randn(6, 5, 2, 4)
    weight = module.rnn.weight_hh_l0
    (batched,) = torch.autograd.grad(
        output, weight, seeds, is_grads_batched=True, retain_graph=True
    )
    looped = [torch.autograd.grad(output, weight, s, retain_graph=True)[0] for s in seeds]
    same(batched, torch.stack(looped))


@case("Derivatives", "`torch.utils.checkpoint`, both kinds")
def _(modules: Modules) -> None:
    from torch.utils.checkpoint import checkpoint

    module = Output(modules, 2, dropout=0.5)
    for reentrant in (False, True):
        actual = []
        for run in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant)):  # noqa: B023
            torch.manual_seed(0)
            x = X.clone().requires_grad_()
            run(x).square().sum().backward()
            actual.append(x.grad)
        same(*actual)


@case("Derivatives", "selective checkpointing")
def _(modules: Modules) -> None:
    from torch.utils.checkpoint import (
        CheckpointPolicy,
        checkpoint,
        create_selective_checkpoint_contexts,
    )

    module = Output(modules)

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(
            lambda *_, **__: CheckpointPolicy.PREFER_RECOMPUTE
        )

    output = checkpoint(module, X, use_reentrant=False, context_fn=contexts)
    found = torch.autograd.grad(output.square().sum(), list(module.parameters()))
    same(list(found), gradients(module))


@case("Derivatives", "gradient edges, hooks of nodes, `register_multi_grad_hook`")
def _(modules: Modules) -> None:
    from torch.autograd.graph import get_gradient_edge, register_multi_grad_hook

    module, called = Output(modules), []
    output, weights = module(X), list(module.parameters())
    edge, grad = get_gradient_edge(output), 2 * output.detach()
    found = torch.autograd.grad([edge], weights, [grad], retain_graph=True)
    register_multi_grad_hook(weights, called.append)
    output.grad_fn.register_prehook(called.append)
    output.grad_fn.register_hook(lambda *_: called.append(None))
    output.backward(grad)
    same([p.grad for p in weights], list(found))
    check(len(called) == 3)


@case("Derivatives", "`saved_tensors_hooks`, `save_on_cpu`")
def _(modules: Modules) -> None:
    module = Output(modules)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(), torch.from_numpy):
        actual = [gradients(module)]
    with torch.autograd.graph.save_on_cpu():
        actual.append(gradients(module))
    same(actual, [gradients(module)] * 2)


@case("Derivatives", "`allow_mutation_on_saved_tensors`")
def _(modules: Modules) -> None:
    module = Output(modules)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        x = X.clone()
        loss = module(x).square().sum()
        x.zero_()
        actual = torch.autograd.grad(loss, list(module.parameters()))
    same(list(actual), gradients(module))


@case("Derivatives", "`detect_anomaly`")
def _(modules: Modules) -> None:
    module = Output(modules)
    with torch.autograd.detect_anomaly(check_nan=True):
        actual = gradients(module)
    same(actual, gradients(module))


@case("Derivatives", "the output changed in place before backward")
def _(modules: Modules) -> None:
    module = Output(modules)
    loss = module(X).mul_(2).square().sum()
    actual = torch.autograd.grad(loss, list(module.parameters()))
    same(list(actual), [4 * g for g in gradients(module)])


@case(
    "Derivatives",
    "`output.detach().numpy()` changed before backward",
    "wrong gradients, as with `torch.tanh`: copy the array",
)
def _(modules: Modules) -> None:
    module = Output(modules)
    output = module(X)
    loss = output.sum()
    output.detach().numpy()[:] = 7
    actual = torch.autograd.grad(loss, list(module.parameters()))
    same(list(actual), list(torch.autograd.grad(module(X).sum(), list(module.parameters()))))


@case("Derivatives", "`output.detach_()` with `batch_first=True`")
def _(modules: Modules) -> None:
    check(not Output(modules, batch_first=True)(X).detach_().requires_grad)


@case("Derivatives", "`inference_mode`")
def _(modules: Modules) -> None:
    module = Output(modules)
    with torch.inference_mode():
        actual = module(X)
    same(actual.clone(), module(X).detach())


@case("Derivatives", "`torch.func`: `jvp`, `vjp`, `jacrev`, `jacfwd`")
def _(modules: Modules) -> None:
    module = Output(modules)
    jacobian = torch.func.jacrev(module)(X)
    same(torch.func.jacfwd(module)(X), jacobian)
    change = torch.einsum("abcxyz,xyz->abc", jacobian, X)
    same(torch.func.jvp(module, (X,), (X,))[1], change)
    y, pull = torch.func.vjp(module, X)
    same(pull(y)[0], torch.einsum("abcxyz,abc->xyz", jacobian, y))


@case("Derivatives", "`torch.func.linearize`")
def _(modules: Modules) -> None:
    module = Output(modules)
    same(torch.func.linearize(module, X)[1](X), torch.func.jvp(module, (X,), (X,))[1])


@case("Derivatives", "`torch.func.hessian`")
def _(modules: Modules) -> None:
    module = Output(modules).double()
    x = X.double()
    hessian = torch.func.hessian(lambda x: module(x).square().sum())(x)
    same(hessian, torch.autograd.functional.hessian(lambda x: module(x).square().sum(), x))


@case("Derivatives", "`torch.func.vmap` over inputs")
def _(modules: Modules) -> None:
    module, x = Output(modules), torch.randn(6, 5, 2, 3)
    same(torch.func.vmap(module)(x), torch.stack([module(part) for part in x]))


@case("Derivatives", "`torch.func.vmap` over weights: an ensemble")
def _(modules: Modules) -> None:
    members = [Output(modules) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)
    _, run = functional(members[0])
    actual = torch.func.vmap(run, (0, None))(weights, X)
    same(actual, torch.stack([member(X) for member in members]))


@case("Derivatives", "per-sample gradients: `vmap` of `grad`")
def _(modules: Modules) -> None:
    module = Output(modules)
    weights, run = functional(module)
    gradient = torch.func.grad(lambda w, x: run(w, x[:, None]).square().sum())
    actual = torch.func.vmap(gradient, (None, 1))(weights, X)
    same([g[0] for g in actual.values()], gradients(module, X[:, :1]))


@case("Derivatives", "`torch.func.functionalize`", "a loop over time steps")
def _(modules: Modules) -> None:
    module = Output(modules)
    same(torch.func.functionalize(module)(X), module(X))


@case("Derivatives", "in-place change of the output under `torch.func.grad`")
def _(modules: Modules) -> None:
    module = Output(modules)
    actual = torch.func.grad(lambda x: module(x).mul_(2).sum())(X)
    same(actual, torch.func.grad(lambda x: 2 * module(x).sum())(X))
