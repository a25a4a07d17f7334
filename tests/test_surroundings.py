"""Code that looks inside an RNN finds in ours what torch's has: tracers, subclasses, recipes."""

import io
import warnings

import pytest
import torch
from support import KINDS, assert_close_fp64, assert_like, twins
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map_only

import rnn_ext
from rnn_ext._core.torch_private import CHECKS_OF_FORWARD

# How we treat each name of torch's classes. A torch release that adds one fails here.
RNN_NAMES = {
    "mode input_size hidden_size num_layers bias": "read in calls",
    "batch_first bidirectional dropout": "read in calls",
    "proj_size": "other than 0: nn.RNN's forward decides",
    "_flat_weights _flat_weights_names _flat_weight_refs": "tensors put there are used",
    " ".join(name for name in CHECKS_OF_FORWARD if hasattr(nn.RNN, name)): "called if overridden",
    "_all_weights all_weights extra_repr reset_parameters _apply _init_flat_weights": "inherited",
    "_replicate_for_data_parallel __getstate__ __setstate__ __constants__": "inherited",
    "__jit_unused_properties__ __setattr__": "inherited",
    "nonlinearity": "set once, then ignored as by nn.RNN",
    "flatten_parameters": "does nothing",
    "__init__ forward": "our own",
}
LSTM_NAMES = {
    names: what for names, what in RNN_NAMES.items() if names not in ("nonlinearity", "mode")
} | {"get_expected_cell_size": "called if overridden"}
CELL_NAMES = {
    "input_size hidden_size weight_ih weight_hh bias nonlinearity": "read in calls",
    "extra_repr reset_parameters": "inherited",
    "__constants__ __init__ forward": "our own",
}
OF_PYTHON = {
    "__annotations__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__static_attributes__",
    "__annotate_func__",
    "__annotations_cache__",
}


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ((nn.RNNBase, nn.RNN), RNN_NAMES),
        ((nn.RNNBase, nn.LSTM), LSTM_NAMES),
        ((nn.RNNCellBase, nn.RNNCell), CELL_NAMES),
    ],
    ids=["RNN", "LSTM", "RNNCell"],
)
def test_every_name_of_torchs_classes_is_decided(classes, names):
    actual = {name for cls in classes for name in (*vars(cls), *cls.__annotations__)}
    actual |= vars(classes[-1](3, 4)).keys() - vars(nn.Module()).keys()
    assert actual - OF_PYTHON == set(" ".join(names).split())


X = torch.randn(5, 2, 3, dtype=torch.float64)


@pytest.mark.parametrize("on", ["class", "instance"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in KINDS
        for name in CHECKS_OF_FORWARD
        if hasattr(getattr(nn, kind), name)
    ],
)
def test_overridden_checks_are_called(kind, name, on):
    called = []

    def method(self, *args):
        called.append(name)
        return getattr(getattr(nn, kind), name)(self, *args)

    results = []
    for cls in (getattr(nn, kind), getattr(rnn_ext, kind)):
        torch.manual_seed(1)
        if on == "class":
            module = type("Own", (cls,), {name: method})(3, 4, dtype=torch.float64)
        else:
            module = cls(3, 4, dtype=torch.float64)
            setattr(module, name, method.__get__(module))
        called.clear()
        results.append((module(X)[0], len(called)))
    assert results[1][1] == results[0][1] > 0
    assert_close_fp64([results[1][0]], [results[0][0]])


def _all_at_once(module):
    module._flat_weights = [2 * w for w in module._flat_weights]


def _one(module):
    module._flat_weights[1] = module._flat_weights[1] * 0


def _after_a_new_parameter(module):
    module.weight_hh_l0 = nn.Parameter(torch.ones_like(module.weight_hh_l0))
    module(X)
    _one(module)


def _of_a_deleted_parameter(module):
    raw = module.weight_hh_l0
    del module.weight_hh_l0
    module.weight_hh_l0_raw = raw
    module._flat_weights[1] = 0.5 * raw


def _then_a_new_parameter(module):
    _all_at_once(module)
    module.weight_hh_l0 = nn.Parameter(torch.ones_like(module.weight_hh_l0))


def _then_called_functionally(module):
    weights = {name: 0 * p for name, p in module.named_parameters()}
    assert not torch.func.functional_call(module, weights, (X,))[0].any()


@pytest.mark.parametrize(
    "assign",
    [
        _all_at_once,
        _one,
        _after_a_new_parameter,
        _of_a_deleted_parameter,
        _then_a_new_parameter,
        _then_called_functionally,
    ],
)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_flat_weights_are_used_as_torch_uses_them(assign, kind, num_layers):
    results = []
    for module in twins(3, 4, num_layers, kind=kind, dtype=torch.float64):
        module(X)
        assign(module)
        results.append(module(X)[0])
    assert_close_fp64(results[1:], results[:1])


class Holder(nn.Module):
    """A model that calls `module` on a buffer, so that only hx is traced."""

    def __init__(self, module, x):
        super().__init__()
        self.module = module
        self.register_buffer("x", x)

    def forward(self, hx):
        return self.module(self.x, hx)


@pytest.mark.parametrize("cls", [rnn_ext.RNN, rnn_ext.RNNCell])
def test_fx_traces_a_model_in_which_only_hx_is_traced(cls):
    shapes = [(5, 2, 3), (1, 2, 4)] if cls is rnn_ext.RNN else [(2, 3), (2, 4)]
    x, hx = map(torch.randn, shapes)
    model = Holder(cls(3, 4), x)
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 1
    for a, b in zip(graph(hx), model(hx), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cls", [rnn_ext.RNN, rnn_ext.RNNCell])
def test_fx_says_that_the_module_itself_is_one_node(cls):
    with pytest.raises(torch.fx.proxy.TraceError, match="trace the model that calls it"):
        torch.fx.symbolic_trace(cls(3, 4))


class Packs(nn.Module):
    def __init__(self, rnn, enforce_sorted=True):
        super().__init__()
        self.rnn, self.enforce_sorted = rnn, enforce_sorted

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=self.enforce_sorted)
        output, h_n = self.rnn(packed)
        return pad_packed_sequence(output)[0] + h_n.sum()


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and pack_padded_sequence warns
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_a_traced_model_that_packs_takes_other_batches(enforce_sorted):
    model = Packs(rnn_ext.RNN(3, 4), enforce_sorted)
    traced = torch.jit.trace(model, (torch.randn(5, 2, 3), torch.tensor([5, 3])))
    others = torch.randn(6, 3, 3), torch.tensor([6, 4, 2])
    assert torch.equal(traced(*others), model(*others))


def test_a_compiled_model_that_packs_gets_no_warning_about_our_code():
    rnn = rnn_ext.RNN(3, 4)

    # Without pad_packed_sequence, which torch.compile of torch 2.10 traces in no model.
    def forward(x, lengths):
        output, h_n = rnn(pack_padded_sequence(x, lengths))
        return output.data, h_n

    torch._dynamo.reset()
    args = torch.randn(5, 2, 3), torch.tensor([5, 3])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = torch.compile(forward, backend="eager")(*args)
    assert not [w for w in caught if "does not know how to trace" in str(w.message)]
    assert_like(results, forward(*args))


@pytest.mark.parametrize(("enforce_sorted", "scalars"), [(False, False), (True, True)])
def test_code_after_packing_inside_forward_is_one_graph(enforce_sorted, scalars):
    rnn, counter = rnn_ext.RNN(3, 4), CompileCounter()

    def forward(x, lengths):
        output, h_n = rnn(pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted))
        return output.data.sigmoid(), h_n

    torch._dynamo.reset()
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 3])
    with torch._dynamo.config.patch(capture_scalar_outputs=scalars):
        assert_like(torch.compile(forward, backend=counter)(x, lengths), forward(x, lengths))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["padded", "packed", "cell"])
def test_the_old_onnx_exporter_gets_torchs_own_op(kind):
    onnx = pytest.importorskip("onnx")
    args = (torch.randn(5, 2, 3),)
    model = rnn_ext.RNN(3, 4).eval()
    if kind == "packed":
        model, args = Packs(model), (*args, torch.tensor([5, 3]))
    elif kind == "cell":
        model, args = rnn_ext.RNNCell(3, 4).eval(), (torch.randn(2, 3),)
    buffer = io.BytesIO()
    torch.onnx.export(model, args, buffer, dynamo=False)
    operators = [node.op_type for node in onnx.load_from_string(buffer.getvalue()).graph.node]
    assert ("Tanh" if kind == "cell" else "RNN") in operators


@pytest.mark.parametrize("layers", [1, 2])
def test_batch_first_output_is_not_a_view(layers):
    theirs, ours = twins(3, 4, layers, batch_first=True, dtype=torch.float64)
    gradients = []
    for module in (theirs, ours):
        output, _ = module(X)
        assert not output._is_view()
        gradients.append(torch.autograd.grad((output * output).sum(), module.weight_hh_l0)[0])
        output, _ = module(X)
        assert not output.detach_().requires_grad
    assert_close_fp64(gradients[1:], gradients[:1])


@pytest.mark.parametrize("operand", ["weight", "input"])
def test_sparse_operands_go_to_torchs_op(operand):
    theirs, ours = twins(3, 4)
    x = torch.randn(5, 2, 3)
    if operand == "weight":
        for module in (theirs, ours):
            weight = module.weight_ih_l0.detach().to_sparse()
            module.weight_ih_l0 = nn.Parameter(weight)
        assert_like(ours(x), theirs(x))
        assert "no kernel for layout torch.sparse_coo" in rnn_ext.explain(ours, x)
        return
    texts = []
    for module in (theirs, ours):
        with pytest.raises(RuntimeError) as caught:
            module(x.to_sparse())
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


class Plain(Tensor):
    pass


class Counting(Tensor):
    """Handles torch's functions itself."""

    seen = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_results_of_a_tensor_subclass_can_be_changed_in_place():
    module = rnn_ext.RNN(3, 4, dtype=torch.float64)
    gradients = []
    for x in (X, X.as_subclass(Plain)):
        output, _ = module(x)
        assert type(output) is type(x)
        output.mul_(2)
        gradients.append(
            torch.autograd.grad(output.sum(), module.weight_hh_l0)[0].as_subclass(Tensor)
        )
    assert_close_fp64(gradients[1:], gradients[:1])


def test_a_subclass_with_handlers_of_its_own_sees_torchs_function():
    Counting.seen.clear()
    rnn_ext.RNN(3, 4)(torch.randn(5, 2, 3).as_subclass(Counting))
    assert "rnn_tanh" in Counting.seen


class Wrapper(Tensor):
    """Wraps a tensor and runs torch's operations on it, as DTensor and quantized weights do."""

    @staticmethod
    def __new__(cls, inner):
        wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func.namespace != "aten":
            raise NotImplementedError(func)
        args, kwargs = tree_map_only(Wrapper, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapper, func(*args, **kwargs))


def test_a_subclass_that_handles_only_torchs_operations_sees_those():
    module = rnn_ext.RNN(3, 4, dtype=torch.float64)
    output, _ = module(Wrapper(X))
    assert type(output) is Wrapper
    assert_close_fp64([output.inner.detach()], [module(X)[0].detach()])
    cell = rnn_ext.RNNCell(3, 4, dtype=torch.float64)
    assert_close_fp64([cell(Wrapper(X[0])).inner.detach()], [cell(X[0]).detach()])


def test_functionalize_gives_the_result():
    module = rnn_ext.RNN(3, 4, dtype=torch.float64)
    result = torch.func.functionalize(lambda x: module(x)[0])(X)
    assert_close_fp64([result.detach()], [module(X)[0].detach()])


def test_a_result_can_be_changed_in_place_under_torch_func():
    theirs, ours = twins(3, 4, dtype=torch.float64)
    results = []
    for module in (theirs, ours):

        def loss(x, module=module):
            return module(x)[0].mul_(2).square().sum()

        results.append(torch.func.grad(loss)(X))
    assert_close_fp64(results[1:], results[:1])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize")
@pytest.mark.parametrize("kind", ["RNNCell", "GRU", "GRUCell", "LSTM", "LSTMCell"])
def test_quantization_warns_and_works_after_restore_rnn(kind):
    model = nn.Sequential(getattr(nn, kind)(3, 4))
    quantized = type(torch.ao.quantization.quantize_dynamic(model)[0])
    assert quantized is not getattr(nn, kind)
    rnn_ext.replace_rnn(model)
    with pytest.warns(UserWarning, match=r"call rnn_ext.restore_rnn\(model\) before"):
        torch.ao.quantization.quantize_dynamic(model)
    rnn_ext.restore_rnn(model)
    assert type(torch.ao.quantization.quantize_dynamic(model)[0]) is quantized


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_package_needs_rnn_ext_as_extern():
    model, buffer = nn.Sequential(rnn_ext.RNN(3, 4)), io.BytesIO()
    with torch.package.PackageExporter(buffer) as exporter:
        exporter.extern("rnn_ext.**")
        exporter.save_pickle("models", "model.pkl", model)
    buffer.seek(0)
    loaded = torch.package.PackageImporter(buffer).load_pickle("models", "model.pkl")
    assert type(loaded[0]) is rnn_ext.RNN
    x = torch.randn(5, 2, 3)
    assert torch.equal(loaded(x)[0], model(x)[0])
