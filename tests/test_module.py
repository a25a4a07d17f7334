"""RNN, GRU and LSTM as modules: constructor, attributes, state_dict, copies, live weights."""

import copy
import inspect
import io
import itertools
import pickle

import pytest
import torch
from support import KINDS, assert_like, assert_same_bits, flat, hx_of, twins
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._pytree import tree_map

import rnn_ext

# Settings of each kind of layer; only an RNN has a nonlinearity.
OPTIONS = [
    (kind, dict(zip(("num_layers", "bias", "bidirectional"), values, strict=True)) | own)
    for kind in KINDS
    for values in itertools.product((1, 3), (True, False), (False, True))
    for own in ([{"nonlinearity": "tanh"}, {"nonlinearity": "relu"}] if kind == "RNN" else [{}])
]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def seeded(library, kind, *args, **kwargs):
    """The module of `library`, torch.nn or rnn_ext, drawn from one seed."""
    torch.manual_seed(7)
    return getattr(library, kind)(*args, **kwargs)


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_same_seed_draws_the_same_parameters_in_the_same_order(options, kind):
    theirs = seeded(nn, kind, 5, 7, **options)
    state = torch.get_rng_state()
    ours = seeded(rnn_ext, kind, 5, 7, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert_same_bits(ours.parameters(), theirs.parameters())


def test_reset_parameters_draws_like_nn_rnn(kind):
    theirs, ours = twins(4, 5, 2, kind=kind)
    for module in (theirs, ours):
        torch.manual_seed(3)
        module.reset_parameters()
    assert_same_bits(ours.parameters(), theirs.parameters())


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_attributes_and_repr_equal_nn_rnn(options, kind):
    theirs = getattr(nn, kind)(
        5, 7, batch_first=True, dropout=0.25 * (options["num_layers"] > 1), **options
    )
    ours = getattr(rnn_ext, kind)(
        5, 7, batch_first=True, dropout=0.25 * (options["num_layers"] > 1), **options
    )
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    own = ("nonlinearity",) if kind == "RNN" else ()
    for name in (*nn.RNN.__constants__, *own, "training", "_flat_weights_names"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.__constants__ == theirs.__constants__
    assert [[p.shape for p in group] for group in ours.all_weights] == [
        [p.shape for p in group] for group in theirs.all_weights
    ]
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))


def test_is_an_rnn_base_but_not_an_nn_rnn(kind):
    module = getattr(rnn_ext, kind)(2, 3)
    assert isinstance(module, nn.RNNBase)
    assert not isinstance(module, getattr(nn, kind))
    assert type(module).__name__ == kind


def test_forward_takes_nn_rnn_s_arguments_and_optional_ones_behind(kind):
    theirs = list(inspect.signature(getattr(nn, kind).forward).parameters.values())
    ours = list(inspect.signature(getattr(rnn_ext, kind).forward).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]
    assert all(p.default is None for p in ours[len(theirs) :])


@pytest.mark.parametrize(
    "arguments",
    [
        (4, 5),
        (4, 5, 2),
        (4, 5, 2, "relu"),
        (4, 5, 2, "relu", False),
        (4, 5, 2, "tanh", True, True),
        (4, 5, 2, "tanh", True, True, 0.5),
        (4, 5, 2, "relu", True, True, 0.5, True),
    ],
    ids=str,
)
def test_positional_arguments_mean_what_they_mean_to_nn_rnn(arguments):
    theirs, ours = seeded(nn, "RNN", *arguments), seeded(rnn_ext, "RNN", *arguments)
    assert repr(ours) == repr(theirs)
    assert_same_bits(ours.parameters(), theirs.parameters())


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_state_dict_goes_both_ways(options, kind):
    theirs, ours = getattr(nn, kind)(5, 7, **options), getattr(rnn_ext, kind)(5, 7, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.load_state_dict(theirs.state_dict(), strict=True) == ([], [])
    assert_same_bits(ours.parameters(), theirs.parameters())
    ours.reset_parameters()
    assert theirs.load_state_dict(ours.state_dict(), strict=True) == ([], [])
    assert_same_bits(ours.parameters(), theirs.parameters())


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_used_at_once(assign, kind):
    theirs, ours = getattr(nn, kind)(3, 4), getattr(rnn_ext, kind)(3, 4)
    x = torch.randn(5, 2, 3)
    ours(x)
    ours.load_state_dict(theirs.state_dict(), assign=assign)
    assert_like(flat(ours(x)), flat(theirs(x)))


def _scale_data(module):
    module.get_parameter("weight_hh_l0").data.mul_(2)


def _replace_parameter(module):
    torch.manual_seed(1)
    module.weight_hh_l0 = nn.Parameter(torch.randn(module.weight_hh_l0.shape))


def _replace_data(module):
    module.bias_ih_l0.data = torch.ones_like(module.bias_ih_l0)


def _write_through_detached(module):
    module.get_parameter("weight_ih_l0").detach()[1] = 0.5


def _optimizer_step(module):
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(module.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    "change",
    [_scale_data, _replace_parameter, _replace_data, _write_through_detached, _optimizer_step],
)
@pytest.mark.parametrize("inference", [False, True])
def test_changed_weights_are_seen_by_the_next_call(change, inference, kind):
    theirs, ours = twins(3, 4, kind=kind)
    x = torch.randn(5, 2, 3)
    with torch.inference_mode(inference):
        before = ours(x)
        for module in (theirs, ours):
            with torch.no_grad():
                change(module)
        after = ours(x)
        assert_like(flat(after), flat(theirs(x)))
    assert not torch.equal(after[0], before[0])


def test_moves_between_dtypes_like_nn_rnn(kind):
    theirs, ours = twins(3, 4, 2, kind=kind)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for a, b in zip(flat(ours.double()(x)), flat(theirs.double()(x)), strict=True):
        # |h| <= 1: thousands of fp64 roundings.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert ours(x)[0].dtype == torch.float64
    assert_like(flat(ours.float()(x.float())), flat(theirs.float()(x.float())))


def test_flatten_parameters_does_not_move_parameters():
    module = rnn_ext.RNN(3, 4, 2)
    before = [(id(p), p.data_ptr()) for p in module.parameters()]
    assert module.flatten_parameters() is None
    assert [(id(p), p.data_ptr()) for p in module.parameters()] == before


def test_built_on_meta_and_materialized(kind):
    theirs, ours = (
        getattr(nn, kind)(3, 4, device="meta"),
        getattr(rnn_ext, kind)(3, 4, device="meta"),
    )
    assert all(p.is_meta for p in ours.parameters())
    torch.manual_seed(5)
    state = getattr(nn, kind)(3, 4).state_dict()
    for module in (theirs, ours):
        module.to_empty(device="cpu").load_state_dict(state)
    x = torch.randn(5, 2, 3)
    assert_like(flat(ours(x)), flat(theirs(x)))


def _pickled(module):
    return pickle.loads(pickle.dumps(module))


def _saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, _pickled, _saved])
def test_copies_compute_the_same_and_share_nothing(duplicate, kind):
    module = getattr(rnn_ext, kind)(3, 4, 2, bidirectional=True).eval()
    x = torch.randn(5, 2, 3)
    expected = flat(module(x))
    twin = duplicate(module)
    assert type(twin) is getattr(rnn_ext, kind)
    assert not twin.training
    assert repr(twin) == repr(module)
    assert_same_bits(flat(twin(x)), expected)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert_same_bits(flat(twin(x)), expected)


def test_functional_call_uses_the_given_weights_and_differentiates_them(kind):
    theirs, ours = twins(3, 4, 2, kind=kind)
    x = torch.randn(5, 2, 3)
    grads = []
    for module in (theirs, ours):
        given = {n: (2 * p).detach().requires_grad_() for n, p in module.named_parameters()}
        output, *finals = flat(torch.func.functional_call(module, given, (x,)))
        grads.append((output, *finals, *torch.autograd.grad(output.sum(), list(given.values()))))
    for a, b in zip(grads[1], grads[0], strict=True):
        # Gradients sum some tens of fp32 products of values up to ten: rounding, with a margin.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert all(p.grad is None for p in ours.parameters())


class _Counting(nn.Module):
    """A parametrization that counts how often the weight is read."""

    reads = 0

    def forward(self, weight):
        self.reads += 1
        return 2 * weight


def test_each_weight_is_read_exactly_once_a_forward(kind):
    module = getattr(rnn_ext, kind)(3, 4, 2, bidirectional=True)
    counters = {name: _Counting() for name, _ in list(module.named_parameters())}
    for name, counter in counters.items():
        parametrize.register_parametrization(module, name, counter, unsafe=True)
        counter.reads = 0
    module(torch.randn(5, 2, 3))
    assert {name: c.reads for name, c in counters.items()} == dict.fromkeys(counters, 1)


def _weight_norm(module):
    parametrizations.weight_norm(module, "weight_hh_l0")


def _orthogonal(module):
    parametrizations.orthogonal(module, "weight_hh_l0")


def _old_weight_norm(module):
    nn.utils.weight_norm(module, "weight_hh_l0")


def _pruned(module):
    torch.manual_seed(2)
    prune.random_unstructured(module, "weight_ih_l0", 0.5)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [_weight_norm, _orthogonal, _old_weight_norm, _pruned])
def test_reparametrized_weights_work_and_train(wrap, kind):
    theirs, ours = twins(3, 4, kind=kind)
    x = torch.randn(5, 2, 3)
    for module in (theirs, ours):
        torch.manual_seed(3)  # orthogonal draws what a weight of more rows lacks
        wrap(module)
        module(x)[0].square().sum().backward()
    ours.load_state_dict(theirs.state_dict())
    assert_like(flat(ours(x)), flat(theirs(x)))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # fp32 rounding through two passes and the sums of the gradients, some hundred roundings.
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "arguments",
    [(4, 5), (4, 5, 2, False), (4, 5, 2, True, True, 0.5, True)],
    ids=str,
)
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_positional_arguments_mean_what_they_mean_to_torch(arguments, kind):
    theirs, ours = seeded(nn, kind, *arguments), seeded(rnn_ext, kind, *arguments)
    assert repr(ours) == repr(theirs)
    assert_same_bits(ours.parameters(), theirs.parameters())


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_an_lstm_with_a_projection_runs_on_torchs_op(options):
    theirs, ours = twins(3, 4, kind="LSTM", proj_size=2, **options)
    assert repr(ours) == repr(theirs)
    x = torch.randn(5, 2, 3)
    assert_same_bits(flat(ours(x)), flat(theirs(x)))
    assert rnn_ext.explain(ours, x) == "torch's own op: proj_size is not 0"


def test_output_views_that_nn_rnn_documents_work():
    """`output.view(seq_len, batch, num_directions, hidden_size)`, and h_n's by layer."""
    module = rnn_ext.RNN(3, 4, 2, bidirectional=True)
    output, h_n = module(torch.randn(5, 7, 3))
    directions = output.view(5, 7, 2, 4)
    layers = h_n.view(2, 2, 7, 4)
    assert_same_bits((directions[-1, :, 0], directions[0, :, 1]), layers[1])


def test_batch_first_transposes_input_and_output_but_not_hx(kind):
    theirs, first = twins(3, 4, 2, batch_first=True, kind=kind)
    last = getattr(rnn_ext, kind)(3, 4, 2)
    last.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(7, 5, 3), hx_of(kind, 2, 7, 4)
    output, *finals = flat(first(x, hx))
    assert output.shape == (7, 5, 4)
    assert {t.shape for t in finals} == {(2, 7, 4)}
    expected_output, *expected = flat(last(x.transpose(0, 1), hx))
    assert_same_bits((output, *finals), (expected_output.transpose(0, 1), *expected))


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_input_is_a_batch_of_one(batch_first, kind):
    module = getattr(rnn_ext, kind)(3, 4, 2, bidirectional=True, batch_first=batch_first)
    x, hx = torch.randn(5, 3), hx_of(kind, 4, 4)
    batch_dim = 0 if batch_first else 1
    batched_hx = tree_map(lambda t: t.unsqueeze(1), hx)
    output, *finals = flat(module(x.unsqueeze(batch_dim), batched_hx))
    expected = [output.squeeze(batch_dim), *(t.squeeze(1) for t in finals)]
    assert_same_bits(flat(module(x, hx)), expected)


def test_hooks_run(kind):
    module = getattr(rnn_ext, kind)(3, 4)
    seen = []
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    module(torch.randn(5, 2, 3, requires_grad=True))[0].sum().backward()
    assert seen == ["pre", "forward", "backward"]


def test_a_subclass_may_add_state_before_and_after_init():
    class Named(rnn_ext.RNN):
        def __init__(self, name, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.label = name

    module = Named("encoder", 3, 4, nonlinearity="relu")
    assert module.label == "encoder"
    assert module(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


def test_a_deleted_weight_is_still_used_as_by_nn_rnn(kind):
    """Both keep it in `_flat_weights`; the call must use that weight, not freed memory."""
    theirs, ours = twins(3, 4, kind=kind)
    x = torch.randn(5, 2, 3)
    del theirs.weight_hh_l0, ours.weight_hh_l0
    assert_like(flat(ours(x)), flat(theirs(x)))


def test_works_inside_sequential_containers_and_module_lists():
    class Net(nn.Module):
        def __init__(self, cls):
            super().__init__()
            self.blocks = nn.ModuleList([cls(3, 4), cls(4, 4)])
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            for block in self.blocks:
                x, _ = block(x)
            return self.head(x)

    torch.manual_seed(7)
    theirs = Net(nn.RNN)
    torch.manual_seed(7)
    ours = Net(rnn_ext.RNN)
    x = torch.randn(5, 2, 3)
    assert_like((ours(x),), (theirs(x),))
