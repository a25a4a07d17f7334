"""What is done with modules."""

from __future__ import annotations

import copy
import io
import pickle
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from .cases import Modules, Output, X, case, check, same


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
    rnn, file = modules.layer(3, 4), io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    with torch.serialization.safe_globals([modules.layer, set, getattr]):
        same(torch.load(file, weights_only=True)(X), rnn(X))


@case("Modules", "`state_dict`, to and from torch's, `assign=True`")
def _(modules: Modules) -> None:
    module, meta = Output(modules), Output(modules, device="meta")
    theirs = Output(modules._replace(library=nn))
    theirs.load_state_dict(module.state_dict())
    meta.load_state_dict(theirs.state_dict(), assign=True)
    same([theirs(X), meta(X)], [module(X)] * 2)


@case("Modules", "`torch.package`", '`exporter.extern("rnn_ext.**")`')
def _(modules: Modules) -> None:
    rnn, file = modules.layer(3, 4), io.BytesIO()
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
    nn.utils.skip_init(modules.layer, 3, 4)


@case("Modules", "meta device, `to_empty`")
def _(modules: Modules) -> None:
    with torch.device("meta"):
        check(modules.layer(3, 4)(X.to("meta"))[0].shape == (5, 2, 4))
        rnn = modules.layer(3, 4)
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
    rnn, called = modules.layer(3, 4), []
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

    class Own(modules.layer):  # type: ignore[misc, name-defined]
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


@case("Modules", "`quantize_dynamic` of a layer", "call `restore_rnn` before it")
def _(modules: Modules) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(modules.layer(3, 4)))
    check("quantized" in type(quantized[0]).__module__)


@case("Modules", "`quantize_dynamic` of a cell", "call `restore_rnn` before it")
def _(modules: Modules) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(modules.cell(3, 4)))
    check("quantized" in type(quantized[0]).__module__)


@case("Modules", "FX quantization of the layers around it, static and dynamic")
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
