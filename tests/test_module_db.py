"""PyTorch's own sample inputs for its RNN modules, on ours.

Needs expecttest, which torch's internal test modules import.
"""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from support import as_function, assert_close_fp64, flat, outcome
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.testing._internal.common_utils import noncontiguous_like

import rnn_ext

REPLACEMENTS = {
    getattr(nn, name): getattr(rnn_ext, name)
    for kind in ("RNN", "GRU", "LSTM")
    for name in (kind, f"{kind}Cell")
}
INFOS = {info.module_cls: info for info in module_db if info.module_cls in REPLACEMENTS}


def samples(training=True, **options):
    """Every sample: a pair of modules with equal weights, and the arguments of their forward."""
    for theirs, ours in REPLACEMENTS.items():
        info = INFOS[theirs]
        for sample in info.module_inputs_func(
            info,
            device="cpu",
            dtype=torch.float64,
            requires_grad=True,
            training=training,
            **options,
        ):
            args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
            pair = [cls(*args, **kwargs, dtype=torch.float64) for cls in (theirs, ours)]
            pair[1].load_state_dict(pair[0].state_dict())
            yield *(m.train(training) for m in pair), sample


def results(module, sample, contiguous=True):
    """The results of forward, and the gradients of every argument and parameter."""
    args = [noncontiguous(a) if not contiguous else a for a in sample.forward_input.args]
    parts = flat(module(*args, **sample.forward_input.kwargs))
    wanted = [t for t in (*flat(tuple(args)), *module.parameters()) if t.requires_grad]
    upstream = [p.detach() if contiguous else noncontiguous(p) for p in parts]
    return [*(p.detach() for p in parts), *torch.autograd.grad(parts, wanted, upstream)]


def noncontiguous(value):
    if type(value) is tuple:
        return tuple(map(noncontiguous, value))
    if isinstance(value, PackedSequence):
        return value._replace(data=noncontiguous(value.data))
    result = noncontiguous_like(value)
    assert not result.is_contiguous()
    return result.detach().requires_grad_(value.requires_grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_samples_give_nn_rnns_results_and_gradients(training, contiguous, packed):
    count = 0
    for theirs, ours, sample in samples(training, with_packed_sequence=packed):
        assert_close_fp64(results(ours, sample, contiguous), results(theirs, sample))
        count += 1
    assert count >= (67 if packed else 35)


def test_samples_pass_their_own_reference():
    for _, ours, sample in samples():
        if sample.reference_fn is not None:
            args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
            expected = sample.reference_fn(ours, *args, **kwargs)
            assert_close_fp64(flat(ours(*args, **kwargs)), flat(expected))


def test_samples_pass_gradcheck_and_gradgradcheck():
    """Over input, hx and all parameters at once."""
    for _, ours, sample in samples():
        tensors = (*flat(sample.forward_input.args), *ours.parameters())
        assert torch.autograd.gradcheck(as_function(ours), tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(as_function(ours), tensors, fast_mode=True)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        nn.init.zeros_(parameter)
    copied.load_state_dict(torch.load(file))
    return copied


def through_float_and_back(module):
    return copy.deepcopy(module).to(torch.float32).to(torch.float64)


def in_memory_formats(module):
    return copy.deepcopy(module).to(memory_format=torch.channels_last)


def emptied_and_filled(module):
    empty = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    empty.load_state_dict(module.state_dict())
    return empty


CHANGES = (
    lambda module: pickle.loads(pickle.dumps(module)),
    saved_and_loaded,
    through_float_and_back,
    in_memory_formats,
    emptied_and_filled,
)


@pytest.mark.parametrize("change", CHANGES)
def test_samples_survive_copying_moving_and_pickling(
    change,
):
    for theirs, ours, sample in samples():
        changed = change(ours)
        assert type(changed) is type(ours)
        assert_close_fp64(results(changed, sample), results(change(theirs), sample))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_samples_are_built_on_the_device_and_in_the_dtype_requested(device, dtype):
    for _, ours, sample in samples():
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        by_arguments = type(ours)(*args, **kwargs, device=device, dtype=dtype)
        with torch.device(device):
            in_context = type(ours)(*args, **kwargs, dtype=dtype)
        for module in (by_arguments, in_context):
            assert {(p.device.type, p.dtype) for p in module.parameters()} == {(device, dtype)}


def test_forward_depends_on_the_mode_exactly_where_torchs_does():
    """PyTorch's own check: without the attribute `training`, such a module fails."""
    for theirs, ours, sample in samples():
        errors = []
        for module in (theirs, ours):
            del module.training
            errors.append(outcome(partial(module, *sample.forward_input.args)).error)
        assert errors == [AttributeError if isinstance(theirs, nn.RNNBase) else None] * 2


def test_error_samples_raise_nn_rnns_errors():
    for theirs, ours in REPLACEMENTS.items():
        info = INFOS[theirs]
        for sample in info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
        ):
            given = sample.module_error_input
            constructor, forward = given.constructor_input, given.forward_input

            def call(cls, constructor=constructor, forward=forward):
                module = cls(*constructor.args, **constructor.kwargs)
                return module(*forward.args, **forward.kwargs)

            assert sample.error_on in ModuleErrorEnum
            expected = outcome(lambda: call(theirs))  # noqa: B023
            assert expected.error is not None
            assert outcome(lambda: call(ours)) == expected  # noqa: B023
