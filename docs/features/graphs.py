"""Capture: graphs of a call."""

from __future__ import annotations

import io
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .cases import (
    H0,
    LENGTHS,
    LONGER,
    Modules,
    OnBuffer,
    Output,
    Packs,
    Steps,
    X,
    case,
    check,
    functional,
    gradients,
    same,
)


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


@case("Graphs", "`torch.compile(fullgraph=True)`: a cell in a loop")
def _(modules: Modules) -> None:
    module = Steps(modules)
    same(torch.compile(module, fullgraph=True, backend="aot_eager")(X), module(X))


@case("Graphs", "`torch.compile(fullgraph=True)`: packed input")
def _(modules: Modules) -> None:
    rnn, packed, hx = modules.layer(3, 4), pack_padded_sequence(X, LENGTHS), modules.states(H0)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    same(compiled(packed, hx)[0].data, rnn(packed, hx)[0].data)


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
            torch.export.export(module, (X,)),
            package_path=f"{folder}/model.pt2",
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # compiles sooner
        )
        same(torch._inductor.aoti_load_package(package)(X), module(X))


@case("Graphs", "`torch.cond` with a layer in each branch")
def _(modules: Modules) -> None:
    module = Output(modules)

    def forward(x: Tensor) -> Any:
        return torch.cond(x.sum() > 1, lambda x: module(x), lambda x: module(-x), (x,))

    same(forward(X), module(-X))


@case("Graphs", "`scan` and `while_loop` over a cell")
def _(modules: Modules) -> None:
    from torch._higher_order_ops.scan import scan
    from torch._higher_order_ops.while_loop import while_loop

    module = Steps(modules).requires_grad_(False)

    def step(state: Any, x: Tensor) -> tuple[Any, Tensor]:
        state = module.cell(x, state)
        return state, modules.hidden(state).clone()

    def run(t: Tensor, state: Any) -> tuple[Tensor, Any]:
        return t + 1, module.cell(X[t.item()], state)

    zeros = modules.states(torch.zeros(2, 4))
    scanned, _ = scan(step, zeros, X)
    _, looped = while_loop(lambda t, _: t < 5, run, (torch.tensor(0), zeros))
    same([modules.hidden(state) for state in (scanned, looped)], [module(X)] * 2)


@case("Graphs", "`torch.onnx.export(dynamo=True)`")
def _(modules: Modules) -> None:
    import onnxscript  # noqa: F401

    torch.onnx.export(Output(modules).eval(), (X,), dynamo=True, verbose=False)


@case("Graphs", "`torch.onnx.export(dynamo=False)`: the operator RNN, GRU or LSTM")
def _(modules: Modules) -> None:
    import onnx

    file = io.BytesIO()
    torch.onnx.export(Output(modules).eval(), (X,), file, dynamo=False)
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    check(modules.kind in {node.op_type for node in nodes})


@case("Graphs", "`torch.fx.symbolic_trace`")
def _(modules: Modules) -> None:
    module = Output(modules)
    same(torch.fx.symbolic_trace(module)(LONGER), module(LONGER))


@case("Graphs", "`torch.fx.symbolic_trace` where hx alone is traced")
def _(modules: Modules) -> None:
    module = OnBuffer(modules)
    same(torch.fx.symbolic_trace(module)(H0), module(H0))


@case("Graphs", "`torch.fx.symbolic_trace`: a cell in a loop")
def _(modules: Modules) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = modules.cell(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return modules.hidden(self.cell(x[1], self.cell(x[0])))

    module = Two()
    same(torch.fx.symbolic_trace(module)(X), module(X))


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
