"""Copying, moving, pickling…: torch's module, ours, a swapped and a restored one behave alike."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from support import KINDS, assert_close_fp64, flat, outcome, twins
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnn_ext

MODULES = [kind + form for kind in KINDS for form in ("", "Cell")]
FORMS = ("ours", "swapped", "restored")


def arguments(name):
    """Arguments of the constructor."""
    return (3, 4) if name.endswith("Cell") else (3, 4, 2)


def random_input(name, dtype=torch.float64):
    return torch.randn((2, 3) if name.endswith("Cell") else (5, 2, 3), dtype=dtype)


def random_state(name):
    return made("theirs", name).state_dict()


def made(form, name, state=None):
    """A module in fp64 with the weights `state`: torch's of that name, ours, or a swapped one."""
    library = rnn_ext if form in ("ours", "restored") else nn
    module = getattr(library, name)(*arguments(name), dtype=torch.float64)
    if state is not None:
        module.load_state_dict(state)
    if form == "swapped":
        rnn_ext.replace_rnn(module)
    elif form == "restored":
        rnn_ext.restore_rnn(module)
    return module


def results(module, x):
    """The result of forward, and the gradients of the parameters that require one."""
    outputs = tuple(flat(module(x)))
    wanted = [p for p in module.parameters() if p.requires_grad]
    if not outputs[0].requires_grad:
        return outputs
    loss = sum((output.square().sum() for output in outputs), torch.zeros(()))
    return (*outputs, *torch.autograd.grad(loss, wanted))


def recurrent(module):
    """The name of the (first) recurrent weight."""
    return next(name for name, _ in module.named_parameters() if "weight_hh" in name)


def tenths(module):
    """A value for it."""
    return torch.full_like(module.get_parameter(recurrent(module)).detach(), 0.1)


def pickled(module, x):
    return results(pickle.loads(pickle.dumps(module)), x)


def saved_whole(module, x):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return results(torch.load(buffer, weights_only=False), x)


def state_saved_and_loaded_as_weights_only(module, x):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    module.reset_parameters()
    module.load_state_dict(torch.load(buffer, weights_only=True))
    return results(module, x)


def deep_copied_after_a_call(module, x):
    module(x)
    return results(copy.deepcopy(module), x)


def state_assigned(module, x):
    state = {name: 2 * value for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return results(module, x)


def partly_loaded(module, x):
    state = {recurrent(module): tenths(module), "unknown": torch.ones(1)}
    result = module.load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["unknown"]
    assert len(result.missing_keys) == len(module.state_dict()) - 1
    return results(module, x)


def through_half_and_back(module, x):
    return results(module.half().double(), x)


def converted_by_swapping_tensors(module, x):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return results(module.float().double(), x)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def in_shared_memory(module, x):
    assert all(p.is_shared() for p in module.share_memory().parameters())
    return results(module, x)


def through_meta_and_emptied(module, x):
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module.to("meta").to_empty(device="cpu").load_state_dict(state)
    return results(module, x)


def built_in_a_meta_context(module, x):
    with torch.device("meta"):
        twin = type(module)(*arguments(type(module).__name__))
    twin.load_state_dict(module.state_dict(), assign=True)
    return results(twin, x)


def replicated_for_data_parallel(module, x):
    """Like torch.nn.parallel.replicate: plain tensors replace the parameters."""
    replica = module._replicate_for_data_parallel()
    copies = {name: 1 * p for name, p in module.named_parameters()}
    for name, value in copies.items():
        setattr(replica, name, value)
    outputs = flat(replica(x))
    gradients = torch.autograd.grad(outputs[0].square().sum(), list(module.parameters()))
    return *outputs, *gradients, *results(module, x)


def weight_replaced_by_attribute(module, x):
    module(x)
    setattr(module, recurrent(module), nn.Parameter(tenths(module)))
    return results(module, x)


def weight_deleted_and_registered(module, x):
    name, value = recurrent(module), tenths(module)
    delattr(module, name)
    module.register_parameter(name, nn.Parameter(value))
    return results(module, x)


def weight_made_a_buffer(module, x):
    name, value = recurrent(module), tenths(module)
    delattr(module, name)
    module.register_buffer(name, value)
    return results(module, x)


def weight_made_a_plain_tensor(module, x):
    name, value = recurrent(module), tenths(module)
    delattr(module, name)
    setattr(module, name, value)
    return results(module, x)


def weight_data_edited_between_calls(module, x):
    module(x)
    module.get_parameter(recurrent(module)).data.mul_(2)
    return results(module, x)


def weights_written_from_a_vector(module, x):
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(2 * vector, module.parameters())
    return results(module, x)


def called_functionally_before(module, x):
    given = {name: 2 * p for name, p in module.named_parameters()}
    torch.func.functional_call(module, given, (x,))
    return results(module, x)


def weights_transposed_in_memory(module, x):
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    return results(module, x)


def weight_expanded(module, x):
    expanded = tenths(module)[:, :1].expand(-1, 4)
    setattr(module, recurrent(module), nn.Parameter(expanded))
    return results(module, x)


def weights_overlapping_in_one_storage(module, x):
    storage, start = torch.linspace(-0.4, 0.4, 600, dtype=torch.float64), 0
    for parameter in module.parameters():
        parameter.data = storage[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel() - 1
    return results(module, x)


def one_bias_in_two_places(module, x):
    name = recurrent(module).replace("weight_hh", "bias_hh")
    setattr(module, name, getattr(module, name.replace("_hh", "_ih")))
    assert len(list(module.parameters())) == len(module.state_dict()) - 1
    return results(module, x)


def parametrized_and_assigned(module, x):
    name = recurrent(module)
    parametrizations.orthogonal(module, name)
    rows, _ = getattr(module, name).shape
    setattr(module, name, torch.eye(rows, 4, dtype=torch.float64))
    return results(module, x)


def parametrized_and_cached(module, x):
    parametrizations.orthogonal(module, recurrent(module))
    with parametrize.cached():
        module(x)
        return results(module, x)


def pruned_for_good(module, x):
    name = recurrent(module)
    prune.l1_unstructured(module, name, 0.5)
    module(x)
    prune.remove(module, name)
    return results(module, x)


def used_in_inference_mode(module, x):
    with torch.inference_mode():
        inside = results(module, x)
    return *(t.clone() for t in inside), *results(module, x)


def mapped_by_apply(module, x):
    module._apply(lambda t: 2 * t)
    return results(module, x)


def nonlinearity_changed(module, x):
    """RNNCell follows the attribute, RNN follows `mode`; the others follow neither."""
    module.nonlinearity = "relu"
    return results(module, x)


def mode_changed(module, x):
    module.mode = "RNN_RELU"
    return results(module, x)


EVENTS = [
    pickled,
    saved_whole,
    state_saved_and_loaded_as_weights_only,
    deep_copied_after_a_call,
    state_assigned,
    partly_loaded,
    through_half_and_back,
    converted_by_swapping_tensors,
    in_shared_memory,
    through_meta_and_emptied,
    built_in_a_meta_context,
    replicated_for_data_parallel,
    weight_replaced_by_attribute,
    weight_deleted_and_registered,
    weight_made_a_buffer,
    weight_made_a_plain_tensor,
    weight_data_edited_between_calls,
    weights_written_from_a_vector,
    called_functionally_before,
    weights_transposed_in_memory,
    weight_expanded,
    weights_overlapping_in_one_storage,
    one_bias_in_two_places,
    parametrized_and_assigned,
    parametrized_and_cached,
    pruned_for_good,
    used_in_inference_mode,
    mapped_by_apply,
    nonlinearity_changed,
    mode_changed,
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("name", MODULES)
def test_modules_behave_like_torchs_after_every_event(event, name):
    state, x = random_state(name), random_input(name)

    def after_event(form):
        torch.manual_seed(1)  # parametrizations draw
        return event(made(form, name, state), x)

    expected = after_event("theirs")
    for form in FORMS:
        assert_close_fp64(after_event(form), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_computes_in_the_dtype_it_was_moved_to(name, dtype):
    state, x = random_state(name), random_input(name, dtype)
    expected = made("theirs", name, state).to(dtype)(x)
    for form in FORMS:
        actual = made(form, name, state).to(dtype)(x)
        # |h| <= 1: five steps of two layers, each of which rounds a few times.
        torch.testing.assert_close(actual, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_reach_exactly_the_parameters_that_are_not_frozen(name):
    state, x = random_state(name), random_input(name)
    theirs = made("theirs", name, state)
    everything = dict(zip(state, results(theirs, x)[-len(state) :], strict=True))
    modules = [made(form, name, state) for form in FORMS]
    for count in range(len(state) + 1):
        for frozen in itertools.combinations(state, count):
            wanted = [gradient for key, gradient in everything.items() if key not in frozen]
            for module in modules:
                module.requires_grad_(True)
                for parameter in frozen:
                    module.get_parameter(parameter).requires_grad_(False)
                outputs = results(module, x)
                assert outputs[0].requires_grad == bool(wanted)
                assert_close_fp64(outputs[len(outputs) - len(wanted) :], wanted)


def _torch_1_0(state):
    """The state before torch 1.0: the parameters themselves, under a name without underscore."""
    weights = list(state["_parameters"].values())
    del state["_flat_weights"], state["_flat_weights_names"], state["_all_weights"]
    del state["proj_size"]
    state.pop("nonlinearity", None)
    state["all_weights"] = [weights[:4], weights[4:]]


def _torch_1_4(state):
    del state["proj_size"]


def _torch_1_12(state):
    """The weights as they are, and no weak references to them."""
    assert "_flat_weight_refs" not in state


@pytest.mark.parametrize("age", [_torch_1_0, _torch_1_4, _torch_1_12])
@pytest.mark.parametrize("kind", KINDS)
def test_state_pickled_by_an_older_torch_is_taken(kind, age):
    own = {"nonlinearity": "relu"} if kind == "RNN" else {}
    theirs = getattr(nn, kind)(3, 4, 2, dtype=torch.float64, **own)
    state = theirs.__getstate__()
    age(state)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = results(theirs, x)

    def unpickled(cls):
        module = cls.__new__(cls)
        module.__setstate__(copy.deepcopy(state))
        return module

    swapped = rnn_ext.replace_rnn(unpickled(getattr(nn, kind)))
    ours = unpickled(getattr(rnn_ext, kind))
    for module in (ours, swapped, rnn_ext.restore_rnn(copy.deepcopy(swapped))):
        assert_close_fp64(results(module, x), expected)
        assert repr(module) == repr(theirs)
        assert_close_fp64(results(pickle.loads(pickle.dumps(module)), x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_skip_init_builds_a_cell_and_refuses_the_layer_as_torchs(kind):
    skip_init = nn.utils.skip_init
    own = {"nonlinearity": "relu"} if kind == "RNN" else {}
    theirs = getattr(nn, f"{kind}Cell")(3, 4, **own)
    ours = skip_init(getattr(rnn_ext, f"{kind}Cell"), 3, 4, **own)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    refused = outcome(lambda: skip_init(getattr(rnn_ext, kind), 3, 4))
    assert refused == outcome(lambda: skip_init(getattr(nn, kind), 3, 4))
    assert refused.error is RuntimeError


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_of_stacked_states_runs_under_one_vmap(kind):
    models = [getattr(rnn_ext, kind)(3, 4, 2, dtype=torch.float64) for _ in range(3)]
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def call(parameters, buffers):
        return torch.func.functional_call(base, (parameters, buffers), (x,))

    together = torch.func.vmap(call)(parameters, buffers)
    for index, model in enumerate(models):
        assert_close_fp64([t[index] for t in flat(together)], flat(model(x)))


class _Scaled:
    """A constructor, a forward and a parameter of its own."""

    def __init__(self, size, *, scale):
        super().__init__(size, size, dtype=torch.float64)
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, input, hx=None):
        output, states = super().forward(input, hx)
        return self.scale * output, states


class ScaledRNN(_Scaled, rnn_ext.RNN):
    pass


class ScaledGRU(_Scaled, rnn_ext.GRU):
    pass


class ScaledLSTM(_Scaled, rnn_ext.LSTM):
    pass


@pytest.mark.parametrize("cls", [ScaledRNN, ScaledGRU, ScaledLSTM])
def test_a_subclass_may_have_its_own_parameter_and_forward(cls):
    module = cls(4, scale=0.5)
    assert list(module.state_dict())[-1] == "scale"
    plain = getattr(nn, cls.__name__.removeprefix("Scaled"))(4, 4, dtype=torch.float64)
    plain.load_state_dict(module.state_dict(), strict=False)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    output, states = plain(x)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is cls
        assert_close_fp64(flat(twin(x)), flat((0.5 * output, states)))
        (gradient,) = torch.autograd.grad(twin(x)[0].sum(), twin.scale)
        assert_close_fp64([gradient], [output.sum()])


@pytest.mark.parametrize("mode", ["RNN_RELU", "GRU", "LSTM", "unknown"])
@pytest.mark.parametrize("kind", KINDS)
def test_another_mode_has_torchs_outcome(kind, mode):
    """An RNN alone follows it."""
    theirs, ours = twins(3, 4, kind=kind, dtype=torch.float64)
    theirs.mode = ours.mode = mode
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = outcome(lambda: theirs(x))
    assert outcome(lambda: ours(x)) == expected
    if expected.error is None:
        assert_close_fp64(flat(ours(x)), flat(theirs(x)))
