"""Gradients: which are computed, when they may be requested, and what may change in between."""

import itertools

import pytest
import torch
from support import (
    assert_close_fp64,
    assert_like,
    assert_same_bits,
    layer_weights,
    leaves,
    loss_of,
    outcome,
    same_bits,
    twins,
)
from support.reference import reference_rnn
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import rnn_ext
from rnn_ext.functional import rnn

NAMES = ("input", "hx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
SUBSETS = [wanted for n in range(len(NAMES) + 1) for wanted in itertools.combinations(NAMES, n)]


def one_layer(dtype=torch.float64):
    """T = 4, B = 3, I = 5, H = 6."""
    weights = layer_weights(5, 6, dtype=dtype)
    x, hx = torch.randn(4, 3, 5, dtype=dtype), torch.randn(1, 3, 6, dtype=dtype)
    return dict(zip(NAMES, (x, hx, *weights), strict=True))


def run(tensors, forward=rnn):
    x, hx, *weights = tensors.values()
    return forward(x, hx, weights)


@pytest.mark.parametrize("wanted", SUBSETS, ids="+".join)
def test_exactly_the_requested_gradients_are_computed(wanted):
    values = one_layer()
    tensors = {n: t.clone().requires_grad_(n in wanted) for n, t in values.items()}
    output, h_n = run(tensors)
    assert output.requires_grad == h_n.requires_grad == bool(wanted)
    if not wanted:
        return
    loss_of(output, h_n).backward()
    exact = {n: t.clone().requires_grad_(n in wanted) for n, t in values.items()}
    loss_of(*run(exact, reference_rnn)).backward()
    for name in NAMES:
        grad, expected = tensors[name].grad, exact[name].grad
        assert (grad is not None) == (name in wanted)
        if grad is not None and expected is not None:
            assert_close_fp64([grad], [expected])


@pytest.mark.parametrize("wanted", [w for w in SUBSETS if len(w) == 1], ids="+".join)
@pytest.mark.parametrize("form", ["packed", "stacked two-way"])
def test_single_gradients_of_other_forms(form, wanted):
    sizes = torch.tensor([3, 2, 2, 1])
    options = {"batch_sizes": sizes}
    weights = layer_weights(5, 6, dtype=torch.float64)
    if form != "packed":
        options = {"num_layers": 2, "bidirectional": True}
        weights = layer_weights(5, 6, dtype=torch.float64, **options)
    x = torch.randn(*((8,) if form == "packed" else (4, 3)), 5, dtype=torch.float64)
    hx = torch.randn(len(weights) // 4, 3, 6, dtype=torch.float64)
    kinds = [*NAMES[:2], *(n for _ in range(len(weights) // 4) for n in NAMES[2:])]
    results = []
    for forward in (rnn, reference_rnn):
        tensors = [
            t.clone().requires_grad_(n in wanted)
            for n, t in zip(kinds, (x, hx, *weights), strict=True)
        ]
        loss_of(*forward(tensors[0], tensors[1], tensors[2:], **options)).backward()
        assert all((t.grad is not None) == t.requires_grad for t in tensors)
        results.append([t.grad for t in tensors if t.grad is not None])
    assert_close_fp64(*results)


def test_frozen_modules_train_the_layers_below():
    theirs, ours = twins(5, 6, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    grads = []
    for module in (theirs, ours):
        module.requires_grad_(False)
        (leaf,) = leaves(x)
        module(leaf)[0].square().sum().backward()
        assert all(p.grad is None for p in module.parameters())
        grads.append([leaf.grad])
    assert_close_fp64(*grads)


@pytest.mark.parametrize("part", [0, 1], ids=["output", "h_n"])
def test_a_result_without_gradient_counts_as_zero(part):
    results = []
    for forward in (rnn, reference_rnn):
        torch.manual_seed(0)
        tensors = dict(zip(NAMES, leaves(*one_layer().values()), strict=True))
        used = run(tensors, forward)[part]
        results.append(torch.autograd.grad(used.sum(), list(tensors.values())))
    assert_close_fp64(*results)


# The node calls kernels without torch's dispatcher, which would materialize such views.
@pytest.mark.parametrize("kind", ["RNN", "RNNCell", "LSTM"])
@pytest.mark.parametrize("view", [torch._neg_view, lambda t: torch._efficientzerotensor(t.shape)])
def test_views_that_torch_has_not_computed_yet(kind, view):
    is_cell = kind.endswith("Cell")
    module = getattr(rnn_ext, kind)(5, 6)
    x = torch.randn(3, 5) if is_cell else torch.randn(4, 3, 5)
    found = []
    for change in (lambda t: t, lambda t: t.clone()):
        torch.manual_seed(0)
        data = change(view(x)).requires_grad_()
        output = module(data) if is_cell else module(data)[0]
        upstream = change(view(torch.randn(output.shape)))
        leaves = [data, *module.parameters()]
        found.append([output, *torch.autograd.grad(output, leaves, upstream)])
    assert_same_bits(*found)


class Names(TorchDispatchMode):
    """Records the ops of this package."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += [func.name().removeprefix("rnn_ext::")] if "rnn_ext" in func.name() else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    [
        ("RNN", "_rnn_forward", "_rnn_backward"),
        ("RNNCell", "_cell_forward", "_cell_backward"),
        ("GRU", "recurrence_forward", "recurrence_backward"),
    ],
)
def test_profilers_and_modes_see_the_ops(kind, forward, backward):
    module = getattr(rnn_ext, kind)(5, 6)
    x = torch.randn(3, 5) if kind.endswith("Cell") else torch.randn(4, 3, 5)

    def call():
        results = module(x)
        return results if isinstance(results, Tensor) else results[0]

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call().sum().backward()
    assert {f"rnn_ext::{forward}", f"rnn_ext::{backward}"} <= {
        e.key for e in profiler.key_averages()
    }
    output = call()  # the mode sees its backward pass alone
    with Names() as names:
        output.sum().backward()
    assert names.seen == [backward]


def test_zero_strided_and_broadcast_upstream_gradients():
    theirs, ours = twins(5, 6, 2, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    reductions = [
        lambda y: y.sum(),
        lambda y: y.mean(0).square().sum(),
        lambda y: y[-1].sum(),
        lambda y: y[:, 1].square().sum(),
        lambda y: y[..., 2:4].sum(),
        lambda y: y.transpose(0, 2).reshape(-1)[::3].sum(),
        lambda y: (y * torch.zeros(())).sum(),
    ]
    for reduce in reductions:
        actual = torch.autograd.grad(reduce(ours(x)[0]), list(ours.parameters()))
        expected = torch.autograd.grad(reduce(theirs(x)[0]), list(theirs.parameters()))
        assert_close_fp64(actual, expected)


def test_retained_graph_gives_the_same_bits_again(isa):
    module = rnn_ext.RNN(5, 17, 2, bidirectional=True)
    x, hx = leaves(torch.randn(9, 3, 5), torch.randn(4, 3, 17))
    wanted = [x, hx, *module.parameters()]
    loss = loss_of(*module(x, hx))
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert_same_bits(torch.autograd.grad(loss, wanted, retain_graph=True), first)
    assert_same_bits(torch.autograd.grad(loss, wanted), first)


def test_second_backward_without_retained_graph_is_refused():
    module = rnn_ext.RNN(5, 6)
    loss = module(torch.randn(4, 3, 5))[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_accumulate_over_calls():
    module = rnn_ext.RNN(5, 6, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    module(x)[0].sum().backward()
    once = [p.grad.clone() for p in module.parameters()]
    module(x)[0].sum().backward()
    assert_close_fp64([p.grad for p in module.parameters()], [2 * g for g in once])


def test_one_graph_through_two_calls_with_carried_state():
    theirs, ours = twins(5, 6, 2, dtype=torch.float64)
    x = torch.randn(8, 3, 5, dtype=torch.float64)
    results = []
    for module in (theirs, ours):
        (leaf,) = leaves(x)
        first, state = module(leaf[:3])
        second, state = module(leaf[3:], state)
        loss = loss_of(torch.cat([first, second]), state)
        results.append(torch.autograd.grad(loss, [leaf, *module.parameters()]))
    assert_close_fp64(*results)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.filterwarnings("ignore:Error detected in:UserWarning")
def test_anomaly_mode_works_and_names_a_nan():
    module = rnn_ext.RNN(5, 6)
    x = torch.randn(4, 3, 5)
    with torch.autograd.detect_anomaly(check_nan=True):
        module(x)[0].sum().backward()
        output, _ = module(x)
        with pytest.raises(RuntimeError, match="nan values"):
            (output * torch.nan).sum().backward()


@pytest.mark.parametrize("name", ["input", "hx", "weight_ih", "weight_hh"])
def test_a_saved_tensor_changed_in_place_is_an_error(name):
    tensors = one_layer()
    for n in ("input", "weight_ih"):
        tensors[n].requires_grad_()
    loss = loss_of(*run(tensors))
    with torch.no_grad():
        tensors[name].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("change", [Tensor.relu_, Tensor.zero_, lambda t: t.mul_(3)])
def test_an_output_changed_in_place_gives_right_gradients(change):
    def gradient(forward):
        torch.manual_seed(0)
        tensors = dict(zip(NAMES, leaves(*one_layer().values()), strict=True))
        output, h_n = run(tensors, forward)
        change(output)
        return list(torch.autograd.grad(loss_of(output, h_n), list(tensors.values())))

    assert_close_fp64(gradient(rnn), gradient(reference_rnn))


def test_changing_h_n_in_place_changes_nothing_else():
    def results(touch):
        torch.manual_seed(0)
        tensors = dict(zip(NAMES, leaves(*one_layer().values()), strict=True))
        output, h_n = run(tensors)
        if touch:
            h_n.mul_(0)
        return [output, *torch.autograd.grad(output.sum(), list(tensors.values()))]

    assert_same_bits(results(touch=True), results(touch=False))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("seq_len", [1, 4])
@pytest.mark.parametrize("form", ["batched", "unbatched", "packed"])
def test_results_share_no_memory_with_anything(form, seq_len, mode):
    module = rnn_ext.RNN(6, 6)
    x = torch.randn(seq_len, 6) if form == "unbatched" else torch.randn(seq_len, 1, 6)
    hx = torch.randn(1, 6) if form == "unbatched" else torch.randn(1, 1, 6)
    argument = x
    if form == "packed":
        argument = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([seq_len]))
        x = argument.data
    with mode():
        output, h_n = module(argument, hx)
        output = output.data if form == "packed" else output
    owners = [t.untyped_storage().data_ptr() for t in (output, h_n, x, hx, *module.parameters())]
    assert len(set(owners)) == len(owners)


def test_no_grad_and_inference_mode_record_nothing():
    module = rnn_ext.RNN(5, 6, 2)
    x = torch.randn(4, 3, 5, requires_grad=True)
    with torch.no_grad():
        results = module(x)
    assert all(t.grad_fn is None and not t.requires_grad for t in results)
    with torch.inference_mode():
        assert all(t.is_inference() and not t.requires_grad for t in module(x))


def test_inference_tensors_are_taken_or_refused_like_by_nn_rnn():
    with torch.inference_mode():
        theirs, ours = twins(5, 6)
        x = torch.randn(4, 3, 5)
    with torch.no_grad():
        expected = theirs(x)
        assert_like(ours(x), expected)
    trained_theirs, trained_ours = twins(5, 6)
    assert outcome(lambda: trained_ours(x)) == outcome(lambda: trained_theirs(x))


def test_backward_works_in_eval_mode():
    theirs, ours = twins(5, 6, 2, dropout=0.5, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    grads = [
        torch.autograd.grad(module.eval()(x)[0].sum(), list(module.parameters()))
        for module in (theirs, ours)
    ]
    assert_close_fp64(*grads[::-1])


@pytest.mark.parametrize("seq_len", [1, 2])
def test_one_tensor_as_input_and_hx(seq_len):
    theirs, ours = twins(6, 6, seq_len, dtype=torch.float64)
    (x,) = leaves(torch.randn(seq_len, 3, 6, dtype=torch.float64))
    grads = [torch.autograd.grad(loss_of(*module(x, x)), [x]) for module in (theirs, ours)]
    assert_close_fp64(*grads[::-1])


def test_tied_weights_accumulate_both_gradients():
    theirs, ours = twins(6, 6, 2, dtype=torch.float64)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    grads = []
    for module in (theirs, ours):
        module.weight_hh_l0 = module.weight_ih_l0
        module.bias_hh_l0 = module.bias_ih_l0
        module.weight_ih_l1 = module.weight_ih_l0
        assert sum(1 for _ in module.parameters()) == 5
        grads.append(torch.autograd.grad(loss_of(*module(x)), list(module.parameters())))
    assert_close_fp64(*grads[::-1])


def test_the_same_module_twice_in_one_graph():
    theirs, ours = twins(6, 6, dtype=torch.float64)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    grads = []
    for module in (theirs, ours):
        output, _ = module(module(x)[0])
        grads.append(torch.autograd.grad(output.sum(), list(module.parameters())))
    assert_close_fp64(*grads[::-1])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_empty_batch_has_shapes_and_zero_gradients(bidirectional):
    theirs, ours = twins(5, 6, 2, bidirectional=bidirectional)
    (x,) = leaves(torch.randn(4, 0, 5))
    (hx,) = leaves(torch.randn(2 * (1 + bidirectional), 0, 6))
    for given in (None, hx):
        output, h_n = ours(x, given)
        assert [t.shape for t in (output, h_n)] == [t.shape for t in theirs(x, given)]
        wanted = [x, *ours.parameters(), *([] if given is None else [hx])]
        for grad, tensor in zip(
            torch.autograd.grad(loss_of(output, h_n), wanted), wanted, strict=True
        ):
            assert grad.shape == tensor.shape
            assert not grad.any()


def test_saved_for_backward_are_input_output_and_hx_only():
    """The contract's training memory: nothing of size T * B * H beyond x and h is kept."""
    module = rnn_ext.RNN(5, 64)
    x, hx = leaves(torch.randn(50, 8, 5), torch.randn(1, 8, 64))
    saved = {}

    def record(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        output, _ = module(x, hx)
    weights = [p.untyped_storage().data_ptr() for p in module.parameters()]
    kept = sum(size for pointer, size in saved.items() if pointer not in weights)
    assert kept <= sum(t.untyped_storage().nbytes() for t in (x, hx, output))


def test_saved_tensor_hooks_may_replace_saved_tensors():
    module = rnn_ext.RNN(5, 6)
    x = torch.randn(4, 3, 5)
    expected = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    with saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        loss = module(x)[0].sum()
    assert_same_bits(torch.autograd.grad(loss, list(module.parameters())), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_bits(use_reentrant):
    module = rnn_ext.RNN(5, 6, 2)
    (x,) = leaves(torch.randn(4, 3, 5))
    module(x)[0].sum().backward()
    expected = [x.grad, *(p.grad for p in module.parameters())]
    x.grad = None
    module.zero_grad()
    checkpoint(module, x, use_reentrant=use_reentrant)[0].sum().backward()
    assert_same_bits([x.grad, *(p.grad for p in module.parameters())], expected)


def test_gradient_hooks_get_the_gradients_of_nn_rnn():
    theirs, ours = twins(5, 6, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    seen = []
    for module in (theirs, ours):
        output, h_n = module(x)
        grads = {}
        hooked = {"weight": module.weight_hh_l0, "output": output, "h_n": h_n}
        for name, tensor in hooked.items():
            tensor.register_hook(lambda grad, n=name, g=grads: g.update({n: grad}))
        loss_of(output, h_n).backward()
        seen.append([grads[name] for name in hooked])
    assert_close_fp64(*seen[::-1])


def test_gradients_are_writable_and_not_shared():
    """Gradients of the two biases are equal, but must be two tensors: clipping scales each."""
    tensors = dict(zip(NAMES, leaves(*one_layer().values()), strict=True))
    loss_of(*run(tensors)).backward()
    grads = [t.grad for t in tensors.values()]
    pointers = [g.untyped_storage().data_ptr() for g in grads]
    spans = [(g.data_ptr(), g.data_ptr() + g.nbytes) for g in grads]
    assert len(set(pointers)) == len(pointers) or all(
        a[1] <= b[0] or b[1] <= a[0] for a, b in itertools.combinations(spans, 2)
    )
    before = tensors["bias_hh"].grad.clone()
    tensors["bias_ih"].grad.zero_()
    assert same_bits(tensors["bias_hh"].grad, before)
