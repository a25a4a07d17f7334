"""Features of torch, each as a function that uses it with nn.RNN or with rnn_ext.RNN.

`what_works.py` makes a page of them.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnn_ext


class Modules(NamedTuple):
    """The two classes to try."""

    RNN: Any
    RNNCell: Any


TORCHS = Modules(nn.RNN, nn.RNNCell)
OURS = Modules(rnn_ext.RNN, rnn_ext.RNNCell)


class Case(NamedTuple):
    """A line of the page; `run` raises if the feature does not work with the modules."""

    section: str
    feature: str
    note: str
    run: Callable[[Modules], None]


CASES: list[Case] = []


def case(section: str, feature: str, note: str = "") -> Callable[[Callable[[Modules], None]], Any]:
    def add(run: Callable[[Modules], None]) -> Callable[[Modules], None]:
        CASES.append(Case(section, feature, note, run))
        return run

    return add


# What the cases share -----------------------------------------------------------------------------

X = torch.linspace(-1, 1, 30).reshape(5, 2, 3)
LONGER = torch.linspace(-1, 1, 63).reshape(7, 3, 3)
H0 = torch.linspace(-1, 1, 8).reshape(1, 2, 4)
LENGTHS = torch.tensor([5, 3])


class Output(nn.Module):
    """An RNN's output alone."""

    def __init__(self, modules: Modules, num_layers: int = 1, **options: Any) -> None:
        super().__init__()
        self.rnn = modules.RNN(3, 4, num_layers, **options)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


class OnBuffer(Output):
    """Runs on a buffer, so that hx alone is an argument."""

    def __init__(self, modules: Modules) -> None:
        super().__init__(modules)
        self.register_buffer("x", X)

    def forward(self, hx: Tensor) -> Any:
        return self.rnn(self.x, hx)[0]


class Packs(Output):
    """Packs inside forward."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:  # type: ignore[override]
        return pad_packed_sequence(super().forward(pack_padded_sequence(x, lengths)))[0]


class Steps(nn.Module):
    """A cell in a loop."""

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.cell = modules.RNNCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in x.unbind(0):
            h = self.cell(step, h)
        return h  # type: ignore[return-value]


def check(condition: bool) -> None:
    if not condition:
        raise AssertionError


def same(actual: Any, expected: Any, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, **tolerance)


def gradients(module: nn.Module, x: Tensor = X) -> list[Tensor]:
    return list(torch.autograd.grad(module(x).square().sum(), list(module.parameters())))


def functional(module: nn.Module) -> tuple[dict[str, Tensor], Callable[..., Tensor]]:
    weights = {name: p.detach() for name, p in module.named_parameters()}
    return weights, lambda w, x: torch.func.functional_call(module, w, (x,))


@contextmanager
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


# Capture ------------------------------------------------------------------------------------------


@case("Graphs", "`torch.compile`, gradients included")
def _(modules: Modules) -> None:
    module = Output(modules)
    expected = gradients(module)
    same(gradients(torch.compile(module, backend="aot_eager")), expected)  # type: ignore[arg-type]


@case("Graphs", "`torch.compile(fullgraph=True, dynamic=True)`")
def _(modules: Modules) -> None:
    module = Output(modules)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    same(compiled(X), module(X))


@case("Graphs", "`torch.compile(fullgraph=True)`: RNNCell in a loop")
def _(modules: Modules) -> None:
    module = Steps(modules)
    same(torch.compile(module, fullgraph=True, backend="aot_eager")(X), module(X))


@case("Graphs", "`torch.compile(fullgraph=True)`: packed input")
def _(modules: Modules) -> None:
    rnn, packed = modules.RNN(3, 4), pack_padded_sequence(X, LENGTHS)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    same(compiled(packed, H0)[0].data, rnn(packed, H0)[0].data)


@case("Graphs", "compiled autograd")
def _(modules: Modules) -> None:
    module = Output(modules)
    expected = gradients(module)

    def compiler(graph: Any) -> Any:
        return torch.compile(graph, backend="eager")

    with torch._dynamo.compiled_autograd._enable(compiler):
        module(X).square().sum().backward()
    same([p.grad for p in module.parameters()], expected)


@case("Graphs", "`torch.export`, any length and batch")
def _(modules: Modules) -> None:
    module = Output(modules)
    dims = {0: torch.export.Dim("length"), 1: torch.export.Dim("batch")}
    program = torch.export.export(module, (X,), dynamic_shapes={"x": dims})
    same(program.module()(LONGER), module(LONGER))


@case("Graphs", "`torch.export.save` and `load`")
def _(modules: Modules) -> None:
    module, file = Output(modules), io.BytesIO()
    torch.export.save(torch.export.export(module, (X,)), file)
    file.seek(0)
    same(torch.export.load(file).module()(X), module(X))


@case("Graphs", "`torch.export`: `strict`, `run_decompositions`, `unflatten`")
def _(modules: Modules) -> None:
    module = Output(modules).eval()
    program = torch.export.export(module, (X,), strict=True)
    same(program.run_decompositions().module()(X), module(X))
    same(torch.export.unflatten(program)(X), module(X))


# Its check of arguments takes an optional tensor that is absent for one that was changed.
@case("Graphs", "`torch.export.draft_export`", "`torch.export.export`")
def _(modules: Modules) -> None:
    module = Output(modules).eval()
    same(torch.export.draft_export(module, (X,)).module()(X), module(X))


@case("Graphs", "AOTInductor")
def _(modules: Modules) -> None:
    module = Output(modules).eval()
    with TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(
            torch.export.export(module, (X,)), package_path=f"{folder}/model.pt2"
        )
        same(torch._inductor.aoti_load_package(package)(X), module(X))


@case("Graphs", "`torch.cond` with an RNN in each branch")
def _(modules: Modules) -> None:
    module = Output(modules)

    def forward(x: Tensor) -> Any:
        return torch.cond(x.sum() > 1, lambda x: module(x), lambda x: module(-x), (x,))

    same(forward(X), module(-X))


@case("Graphs", "`scan` and `while_loop` over RNNCell")
def _(modules: Modules) -> None:
    from torch._higher_order_ops.scan import scan
    from torch._higher_order_ops.while_loop import while_loop

    module = Steps(modules).requires_grad_(False)

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = module.cell(x, h)
        return h, h.clone()

    def run(t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return t + 1, module.cell(X[t.item()], h)

    zeros = torch.zeros(2, 4)
    same(scan(step, zeros, X)[0], module(X))
    same(while_loop(lambda t, h: t < 5, run, (torch.tensor(0), zeros))[1], module(X))


@case("Graphs", "`torch.onnx.export(dynamo=True)`")
def _(modules: Modules) -> None:
    import onnxscript  # noqa: F401

    torch.onnx.export(Output(modules).eval(), (X,), dynamo=True, verbose=False)


@case("Graphs", "`torch.onnx.export(dynamo=False)`: the operator RNN")
def _(modules: Modules) -> None:
    import onnx

    file = io.BytesIO()
    torch.onnx.export(Output(modules).eval(), (X,), file, dynamo=False)
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    check("RNN" in {node.op_type for node in nodes})


@case("Graphs", "`torch.fx.symbolic_trace`")
def _(modules: Modules) -> None:
    module = Output(modules)
    same(torch.fx.symbolic_trace(module)(LONGER), module(LONGER))


@case("Graphs", "`torch.fx.symbolic_trace` where hx alone is traced")
def _(modules: Modules) -> None:
    module = OnBuffer(modules)
    same(torch.fx.symbolic_trace(module)(H0), module(H0))


@case("Graphs", "`torch.fx.symbolic_trace`: RNNCell in a loop")
def _(modules: Modules) -> None:
    cell = modules.RNNCell(3, 4)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x[1], self.cell(x[0]))

    same(torch.fx.symbolic_trace(Two())(X), cell(X[1], cell(X[0])))


@case("Graphs", "`torch.fx`: `Interpreter`, `Transformer`, `ShapeProp`, `split_module`")
def _(modules: Modules) -> None:
    from torch.fx.passes.shape_prop import ShapeProp
    from torch.fx.passes.split_module import split_module

    module = nn.Sequential(nn.Linear(3, 3), Output(modules))
    graph = torch.fx.symbolic_trace(module)
    ShapeProp(graph).propagate(X)
    parts = split_module(
        graph, module, lambda node: int(node.op != "placeholder" and node.name != "_0")
    )
    for found in (torch.fx.Interpreter(graph).run, torch.fx.Transformer(graph).transform(), parts):
        same(found(X), module(X))


@case("Graphs", "`make_fx`, any length and batch")
def _(modules: Modules) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    weights, run = functional(Output(modules))
    graph = make_fx(run, tracing_mode="symbolic")(weights, X)
    same(graph(weights, LONGER), run(weights, LONGER))


@case("Graphs", "`torch.jit.trace`, other lengths and batches")
def _(modules: Modules) -> None:
    module = Output(modules)
    same(torch.jit.trace(module, (X,))(LONGER), module(LONGER))


@case("Graphs", "`torch.jit.trace` of a model that packs, other batches")
def _(modules: Modules) -> None:
    module = Packs(modules)
    others = LONGER, torch.tensor([7, 4, 2])
    same(torch.jit.trace(module, (X, LENGTHS))(*others), module(*others))


@case("Graphs", "`torch.jit.freeze` of a traced model, saved and loaded")
def _(modules: Modules) -> None:
    module, file = Output(modules).eval(), io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.trace(module, (X,))), file)
    file.seek(0)
    same(torch.jit.load(file)(X), module(X))


@case("Graphs", "`torch.jit.script`", "call `restore_rnn` before it")
def _(modules: Modules) -> None:
    class Typed(Output):
        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    module = Typed(modules)
    same(torch.jit.script(module)(X), module(X))


# Derivatives --------------------------------------------------------------------------------------


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


# Modules ------------------------------------------------------------------------------------------


@case("Modules", "`copy.deepcopy`, `pickle`, `torch.save` of the whole module")
def _(modules: Modules) -> None:
    module, file = Output(modules), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        same(other(X), module(X))


@case("Modules", "`torch.load(weights_only=True)` of the whole module, with `safe_globals`")
def _(modules: Modules) -> None:
    rnn, file = modules.RNN(3, 4), io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    with torch.serialization.safe_globals([modules.RNN, set, getattr]):
        same(torch.load(file, weights_only=True)(X), rnn(X))


@case("Modules", "`state_dict`, to and from `nn.RNN`, `assign=True`")
def _(modules: Modules) -> None:
    module, theirs, meta = Output(modules), Output(TORCHS), Output(modules, device="meta")
    theirs.load_state_dict(module.state_dict())
    meta.load_state_dict(theirs.state_dict(), assign=True)
    same([theirs(X), meta(X)], [module(X)] * 2)


@case("Modules", "`torch.package`", '`exporter.extern("rnn_ext.**")`')
def _(modules: Modules) -> None:
    rnn, file = modules.RNN(3, 4), io.BytesIO()
    with torch.package.PackageExporter(file) as exporter:
        exporter.extern("rnn_ext.**")
        exporter.save_pickle("models", "rnn.pkl", rnn)
    file.seek(0)
    loaded = torch.package.PackageImporter(file).load_pickle("models", "rnn.pkl")
    same(loaded(X), rnn(X))


@case("Modules", "`torch.distributed.checkpoint`")
def _(modules: Modules) -> None:
    import torch.distributed.checkpoint as dcp

    module, other = Output(modules), Output(modules)
    with TemporaryDirectory() as folder:
        dcp.save(module.state_dict(), checkpoint_id=folder, no_dist=True)
        dcp.load(other.state_dict(), checkpoint_id=folder, no_dist=True)
    same(other(X), module(X))


@case("Modules", "`skip_init`")
def _(modules: Modules) -> None:
    nn.utils.skip_init(modules.RNN, 3, 4)


@case("Modules", "meta device, `to_empty`")
def _(modules: Modules) -> None:
    with torch.device("meta"):
        check(modules.RNN(3, 4)(X.to("meta"))[0].shape == (5, 2, 4))
        rnn = modules.RNN(3, 4)
    rnn.to_empty(device="cpu").reset_parameters()
    check(bool(rnn(X)[0].isfinite().all()))


@case("Modules", "conversion: `double`, `bfloat16`, `half`, swapped parameters")
def _(modules: Modules) -> None:
    module = Output(modules)
    expected = module(X)
    for swapped in (False, True):
        torch.__future__.set_swap_module_params_on_conversion(swapped)
        try:
            for dtype in (torch.float64, torch.bfloat16, torch.float16):
                converted = copy.deepcopy(module).to(dtype)
                # 2**-8 is the distance of two bfloat16; a state is below 1.
                same(converted(X.to(dtype)).float(), expected, atol=0.03, rtol=0)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)


@case("Modules", "hooks: forward, backward, of weights, of all modules")
def _(modules: Modules) -> None:
    rnn, called = modules.RNN(3, 4), []
    rnn.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    rnn.register_forward_hook(lambda _, args, result: (3 * result[0], result[1]))
    rnn.register_full_backward_hook(lambda *_: called.append("backward"))
    rnn.weight_hh_l0.register_hook(lambda _: called.append("weight"))
    rnn.weight_ih_l0.register_post_accumulate_grad_hook(lambda _: called.append("grad"))
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: called.append("all"))
    try:
        output, _ = rnn(X)
    finally:
        everywhere.remove()
    same(output, 3 * rnn.forward(2 * X)[0])
    output.sum().backward()
    check(set(called) == {"all", "backward", "weight", "grad"})


@case("Modules", "parametrizations: `weight_norm`, `spectral_norm`, `orthogonal`")
def _(modules: Modules) -> None:
    from torch.nn.utils import parametrizations, parametrize

    for register in (
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ):
        module = Output(modules).eval()
        register(module.rnn, "weight_hh_l0")
        output = module(X)
        output.sum().backward()
        check(all(p.grad is not None for p in module.parameters()))
        parametrize.remove_parametrizations(module.rnn, "weight_hh_l0")
        same(module(X), output)


@case("Modules", "`torch.nn.utils.prune`")
def _(modules: Modules) -> None:
    from torch.nn.utils import prune

    module = Output(modules)
    prune.l1_unstructured(module.rnn, "weight_hh_l0", 0.5)
    output = module(X)
    prune.remove(module.rnn, "weight_hh_l0")
    same(module(X), output)


@case("Modules", "`torch.ao.pruning.WeightNormSparsifier`")
def _(modules: Modules) -> None:
    from torch.ao.pruning import WeightNormSparsifier

    module = Output(modules)
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1))
    sparsifier.prepare(module, [{"tensor_fqn": "rnn.weight_hh_l0"}])
    sparsifier.step()
    expected = module(X)
    sparsifier.squash_mask()
    same(module(X), expected)
    check(int((module.rnn.weight_hh_l0 == 0).sum()) >= 8)


@case("Modules", "tensors put into `_flat_weights`: DropConnect recipes")
def _(modules: Modules) -> None:
    module = Output(modules)
    other = copy.deepcopy(module)
    module.rnn._flat_weights[1] = module.rnn.weight_hh_l0 * 0
    with torch.no_grad():
        other.rnn.weight_hh_l0.zero_()
    same(module(X), other(X))


@case("Modules", "subclasses that override `check_forward_args` and the like")
def _(modules: Modules) -> None:
    called: list[None] = []

    class Own(modules.RNN):  # type: ignore[misc, name-defined]
        def check_forward_args(self, *args: Any) -> None:
            called.append(None)

    Own(3, 4)(X)
    check(bool(called))


@case("Modules", "tied weights, vectors of parameters, clipping, frozen weights")
def _(modules: Modules) -> None:
    module = Output(modules, 2)
    module.rnn.weight_hh_l1 = module.rnn.weight_hh_l0
    module.rnn.weight_ih_l0.requires_grad_(False)
    parameters = list(module.parameters())
    vector = nn.utils.parameters_to_vector(parameters)
    nn.utils.vector_to_parameters(vector / 2, parameters)
    module(X).sum().backward()
    nn.utils.clip_grad_norm_(parameters, 0.1)
    check(module.rnn.weight_ih_l0.grad is None)
    check(bool(module.rnn.weight_hh_l0.grad.any()))


@case("Modules", "optimizers: `foreach`, `fused`, LBFGS, averaged models")
def _(modules: Modules) -> None:
    module = Output(modules)
    average = torch.optim.swa_utils.AveragedModel(module)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (module(X) - 0.5).square().sum()
        loss.backward()
        return loss

    for optimizer in (
        torch.optim.Adam(module.parameters(), foreach=True),
        torch.optim.Adam(module.parameters(), fused=True),
        torch.optim.LBFGS(module.parameters(), 0.1),
    ):
        before = float(closure())
        for _step in range(3):
            optimizer.step(closure)
        check(float(closure()) < before)
    average.update_parameters(module)
    same(average(X), module(X))


@case("Modules", "`quantize_dynamic` of RNN")
def _(modules: Modules) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(modules.RNN(3, 4)))
    check("quantized" in type(quantized[0]).__module__)


@case("Modules", "`quantize_dynamic` of RNNCell", "call `restore_rnn` before it")
def _(modules: Modules) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(modules.RNNCell(3, 4)))
    check("quantized" in type(quantized[0]).__module__)


@case("Modules", "FX quantization of the layers around an RNN, static and dynamic")
def _(modules: Modules) -> None:
    from torch.ao import quantization
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    module = nn.Sequential(nn.Linear(3, 3), Output(modules)).eval()
    dynamic = quantization.QConfigMapping().set_global(quantization.default_dynamic_qconfig)
    for mapping in (quantization.get_default_qconfig_mapping("x86"), dynamic):
        prepared = prepare_fx(module, mapping, (X,))
        prepared(X)
        quantized = convert_fx(prepared)
        check(type(quantized.get_submodule("0")) is not nn.Linear)
        same(quantized(X), module(X), atol=0.1, rtol=0)  # int8


# Tensors and modes --------------------------------------------------------------------------------


@case("Tensors and modes", "autocast on the CPU")
def _(modules: Modules) -> None:
    module = Output(modules)
    with torch.autocast("cpu", torch.bfloat16):
        actual = module(X)
    check(actual.dtype == torch.bfloat16)
    same(actual.float(), module(X), atol=0.03, rtol=0)  # as above


@case("Tensors and modes", "complex tensors", "torch's own op")
def _(modules: Modules) -> None:
    module = Output(modules).to(torch.complex64)
    check(module(X.to(torch.complex64)).isfinite().all())  # type: ignore[arg-type]


@case("Tensors and modes", "sparse weights", "torch's own op")
def _(modules: Modules) -> None:
    module = Output(modules)
    expected = module(X)
    weight = module.rnn.weight_ih_l0.detach()
    module.rnn.weight_ih_l0 = nn.Parameter(weight.to_sparse(), requires_grad=False)
    same(module(X), expected)


@case("Tensors and modes", "nested tensors")
def _(modules: Modules) -> None:
    nested = torch.nested.nested_tensor([X[:, 0], X[:3, 1]], layout=torch.jagged)
    Output(modules, batch_first=True)(nested)


@case("Tensors and modes", "tensor subclasses")
def _(modules: Modules) -> None:
    class Own(Tensor):
        pass

    module = Output(modules)
    actual = module(X.as_subclass(Own))
    check(type(actual) is Own)
    same(actual.as_subclass(Tensor), module(X))


@case("Tensors and modes", "`FakeTensorMode`")
def _(modules: Modules) -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        module = Output(modules)
        output = module(torch.empty(5, 2, 3))
        output.sum().backward()
    check(output.shape == (5, 2, 4))


@case("Tensors and modes", "`TorchDispatchMode`, `TorchFunctionMode`")
def _(modules: Modules) -> None:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kw: Any = None) -> Any:
            return func(*args, **(kw or {}))

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kw: Any = None) -> Any:
            return func(*args, **(kw or {}))

    module = Output(modules)
    expected = gradients(module)
    for mode in (Functions(), Operations()):
        with mode:
            actual = gradients(module)
        same(actual, expected)


@case("Tensors and modes", "`FlopCounterMode`")
def _(modules: Modules) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        gradients(Output(modules))
    check(counter.get_total_flops() > 0)


@case("Tensors and modes", "`torch.profiler` with shapes and memory")
def _(modules: Modules) -> None:
    with torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
        gradients(Output(modules))
    check(any("rnn" in event.key for event in profile.key_averages()))


@case("Tensors and modes", "`torch.profiler(with_flops=True)`", "`FlopCounterMode`")
def _(modules: Modules) -> None:
    with torch.profiler.profile(with_flops=True) as profile:
        Output(modules)(X)
    check(sum(event.flops or 0 for event in profile.key_averages()) > 0)


@case("Tensors and modes", "`use_deterministic_algorithms`")
def _(modules: Modules) -> None:
    module = Output(modules)
    torch.use_deterministic_algorithms(True)
    try:
        actual = [gradients(module) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    same(*actual, atol=0, rtol=0)


@case("Tensors and modes", "calls from several threads")
def _(modules: Modules) -> None:
    module = Output(modules)
    actual: list[list[Tensor]] = []
    threads = [threading.Thread(target=lambda: actual.append(gradients(module))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(actual, [gradients(module)] * 4)


@case("Tensors and modes", "`PackedSequence`, unsorted")
def _(modules: Modules) -> None:
    module = Output(modules)
    packed = pack_padded_sequence(X, LENGTHS.flip(0), enforce_sorted=False)
    output = module(packed)
    check(type(output) is PackedSequence)
    same(pad_packed_sequence(output)[0][:, 1:], module(X[:, 1:]))


# Other processes, other libraries -----------------------------------------------------------------


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


@case(
    "Distributed and libraries", "tensor parallel layers beside an RNN, `ZeroRedundancyOptimizer`"
)
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

    rnn = modules.RNN(3, 4)
    expected = rnn(X, H0)[0].detach()
    with one_process():
        mesh = dist.init_device_mesh("cpu", (1,))
        distribute_module(rnn, mesh)
        actual, _ = rnn(distribute_tensor(X, mesh), distribute_tensor(H0, mesh))
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


@case("Distributed and libraries", 'Opacus, `grad_sample_mode="ew"`', "torch's own op")
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
    "`custom_ops={rnn_ext.RNN: thop.rnn_hooks.count_rnn}`",
)
def _(modules: Modules) -> None:
    import thop

    operations, _ = thop.profile(Output(modules), (X,), verbose=False)
    check(operations > 0)


@case("Distributed and libraries", "torchinfo")
def _(modules: Modules) -> None:
    import torchinfo

    summary = torchinfo.summary(Output(modules), input_data=X, verbose=0)
    check(summary.total_params == 36 and summary.total_mult_adds > 0)
