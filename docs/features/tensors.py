"""Kinds of tensors, and modes."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .cases import LENGTHS, Modules, Output, X, case, check, gradients, same


@case("Tensors and modes", "autocast on the CPU")
def _(modules: Modules) -> None:
    module = Output(modules)
    with torch.autocast("cpu", torch.bfloat16):
        actual = module(X)
    # torch's choices. Its own LSTM raises an error on a CPU without AVX-512.
    check(actual.dtype == (torch.float32 if modules.kind == "GRU" else torch.bfloat16))
    # 2**-8 is the distance of two bfloat16; a state is below 1.
    same(actual.float(), module(X), atol=0.03, rtol=0)


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
    names = ("rnn", modules.kind.lower())
    check(any(name in event.key for event in profile.key_averages() for name in names))


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
