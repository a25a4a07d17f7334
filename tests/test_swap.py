"""replace_rnn and restore_rnn: what changes in a model, what stays, what is left and reported."""

import copy
import logging

import pytest
import torch
import torch.distributed as dist
from support import assert_close_fp64, assert_same_bits
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnn_ext

DOUBLE = torch.float64


class Net(nn.Module):
    """A stack, a cell in a container, and layers and cells of other kinds."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.RNN(3, 4, 2, bidirectional=True, dtype=DOUBLE)
        self.decoder = nn.ModuleDict({"cell": nn.RNNCell(8, 4, dtype=DOUBLE)})
        self.gru = nn.GRU(4, 4, dtype=DOUBLE)
        self.lstm = nn.LSTM(4, 4, 2, dtype=DOUBLE)
        self.gru_cell = nn.GRUCell(4, 4, dtype=DOUBLE)
        self.lstm_cell = nn.LSTMCell(4, 4, dtype=DOUBLE)

    def forward(self, x):
        output, _ = self.encoder(x)
        h = torch.stack([self.decoder["cell"](step) for step in output])
        h, (_, c_n) = self.lstm(self.gru(h)[0])
        return self.lstm_cell(self.gru_cell(h[-1]) + c_n[-1])[0]


@pytest.fixture
def x():
    return torch.randn(5, 2, 3, dtype=DOUBLE)


def rnn(*args, **kwargs):
    return nn.RNN(3, 4, *args, dtype=DOUBLE, **kwargs)


def parametrized(module, how=parametrizations.orthogonal):
    return how(module, "weight_hh_l0")


def trained(model, x):
    """The model's first result and the gradients of its parameters."""
    output = model(x)
    output = output[0] if isinstance(output, tuple) else output
    return output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))


def test_every_rnn_and_cell_is_swapped_in_place_and_back(x):
    model = Net()
    model.encoder.eval()
    before = dict(model.named_modules())
    parameters, state = list(model.parameters()), list(model.state_dict())
    expected = trained(model, x)

    assert rnn_ext.replace_rnn(model) is model
    kinds = {name: type(m).__name__ for name, m in before.items() if hasattr(m, "hidden_size")}
    assert len(kinds) == 6
    for name, kind in kinds.items():
        assert type(model.get_submodule(name)) is getattr(rnn_ext, kind)
    assert_close_fp64(trained(model, x), expected)

    def unchanged():
        return (
            all(m is before[name] for name, m in model.named_modules())
            and all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
            and list(model.state_dict()) == state
            and [m.training for m in model.modules()]
            == [m is not model.encoder for m in before.values()]
        )

    assert unchanged()
    assert rnn_ext.restore_rnn(model) is model
    for name, kind in kinds.items():
        assert type(model.get_submodule(name)) is getattr(nn, kind)
    assert unchanged()
    assert_same_bits(trained(model, x), expected)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_the_root_itself_is_swapped(kind):
    theirs, ours = getattr(nn, kind), getattr(rnn_ext, kind)
    module = theirs(3, 4)
    assert rnn_ext.replace_rnn(module) is module
    assert type(module) is ours
    assert rnn_ext.restore_rnn(module) is module
    assert type(module) is theirs


def test_modules_and_weights_in_several_places_stay_shared(x):
    shared, tied = rnn(), rnn()
    tied.weight_hh_l0 = shared.weight_hh_l0
    model = nn.ModuleDict({"a": shared, "b": shared, "c": tied})
    expected = trained(tied, x)
    rnn_ext.replace_rnn(model)
    assert model["a"] is model["b"] is shared
    assert tied.weight_hh_l0 is shared.weight_hh_l0
    assert len(list(model.parameters())) == 7
    assert_close_fp64(trained(tied, x), expected)


def test_an_optimizer_made_before_still_trains(x):
    theirs = Net()
    ours = copy.deepcopy(theirs)
    losses = []
    for model in (theirs, ours):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(12):
            if model is ours and step == 4:
                rnn_ext.replace_rnn(model)
            if model is ours and step == 8:
                rnn_ext.restore_rnn(model)
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    assert losses[11] < 0.9 * losses[0]
    # Adam divides by gradients near zero, which enlarges the rounding of the gradients.
    torch.testing.assert_close(losses[12:], losses[:12], rtol=1e-7, atol=0)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def _custom_on_two(module):
    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    parametrize.register_parametrization(module, "bias_ih_l0", Doubled())


REPARAMETRIZED = {
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "custom": _custom_on_two,
    "old weight_norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "old spectral_norm": lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_reparametrized_modules_are_swapped_and_restored(name, called, x):
    theirs, ours = rnn(), rnn()
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        torch.manual_seed(1)
        REPARAMETRIZED[name](module)
        # nn.RNN reads weights several times a call, and spectral_norm iterates on each in training.
        module.eval()
        if called:
            module(x)
    assert_close_fp64(trained(rnn_ext.replace_rnn(ours), x), trained(theirs, x))
    assert isinstance(ours, rnn_ext.RNN)
    rnn_ext.replace_rnn(ours)
    assert_close_fp64(trained(ours, x), trained(theirs, x))
    rnn_ext.restore_rnn(ours)
    assert isinstance(ours, nn.RNN)
    assert_close_fp64(trained(ours, x), trained(theirs, x))


def test_swapping_takes_no_step_of_spectral_norms_iteration():
    module = parametrized(rnn(), parametrizations.spectral_norm)
    before = copy.deepcopy(module.state_dict())
    rnn_ext.restore_rnn(rnn_ext.replace_rnn(module))
    assert_same_bits(module.state_dict().values(), before.values())


def test_removing_the_last_parametrization_gives_ours(x):
    module = rnn()
    _custom_on_two(module)
    expected = trained(module, x)[0]
    rnn_ext.replace_rnn(module)
    for name in ("weight_hh_l0", "bias_ih_l0"):
        assert parametrize.type_before_parametrizations(module) is rnn_ext.RNN
        parametrize.remove_parametrizations(module, name)
    assert type(module) is rnn_ext.RNN
    assert_close_fp64(module(x)[:1], [expected])
    assert type(rnn_ext.restore_rnn(module)) is nn.RNN


def test_a_copy_that_shares_the_parametrized_class_stays_torchs(x):
    module = rnn()
    _custom_on_two(module)
    other = copy.deepcopy(module)
    expected = other(x)
    rnn_ext.replace_rnn(module)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert isinstance(other, nn.RNN)
    assert_same_bits(other(x), expected)


def test_hooks_stay(x):
    module = rnn()
    seen = []
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    module.register_state_dict_post_hook(lambda *_: seen.append("state"))
    module.weight_hh_l0.register_hook(lambda _: seen.append("gradient"))
    rnn_ext.replace_rnn(module)(x.requires_grad_())[0].sum().backward()
    module.state_dict()
    assert sorted(seen) == ["backward", "forward", "gradient", "pre", "state"]


def _replaced_by_attribute(module):
    module.weight_hh_l0 = nn.Parameter(torch.eye(4, dtype=DOUBLE))


def _registered_anew(module):
    del module.weight_hh_l0
    module.register_parameter("weight_hh_l0", nn.Parameter(torch.eye(4, dtype=DOUBLE)))


def _made_a_plain_tensor(module):
    del module.weight_hh_l0
    module.weight_hh_l0 = torch.eye(4, dtype=DOUBLE)


def _called_functionally(module):
    weights = {name: 2 * p for name, p in module.named_parameters()}
    torch.func.functional_call(module, weights, (torch.zeros(1, 1, 3, dtype=DOUBLE),))


def _loaded(module):
    module.load_state_dict({n: 2 * p for n, p in module.state_dict().items()}, assign=True)


@pytest.mark.parametrize(
    "change",
    [_replaced_by_attribute, _registered_anew, _made_a_plain_tensor, _called_functionally, _loaded],
)
@pytest.mark.parametrize("born", ["ours", "theirs"])
def test_a_restored_module_runs_on_its_current_weights(change, born, x):
    module = rnn_ext.RNN(3, 4, dtype=DOUBLE) if born == "ours" else rnn_ext.replace_rnn(rnn())
    module(x)
    change(module)
    expected = module(x)
    restored = rnn_ext.restore_rnn(module)
    assert type(restored) is nn.RNN
    assert all(
        weight is getattr(restored, name)
        for weight, name in zip(restored._flat_weights, restored._flat_weights_names, strict=True)
    )
    assert_close_fp64(restored(x), expected)


def test_restoring_calls_torchs_flatten_parameters(monkeypatch):
    flattened = []
    module = rnn_ext.RNN(3, 4)
    monkeypatch.setattr(nn.RNN, "flatten_parameters", lambda module: flattened.append(module))
    rnn_ext.restore_rnn(module)
    assert flattened == [module]


@pytest.mark.parametrize(
    ("again", "make", "line"),
    [
        (
            rnn_ext.replace_rnn,
            lambda: rnn_ext.replace_rnn(nn.Sequential(rnn())),
            "0: is rnn_ext.RNN already",
        ),
        (
            rnn_ext.restore_rnn,
            lambda: nn.ModuleDict({"cell": nn.RNNCell(3, 4)}),
            "cell: is torch.nn.RNNCell already",
        ),
        (
            rnn_ext.replace_rnn,
            lambda: nn.Linear(3, 4),
            "Linear: there is no torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM, torch.nn.RNNCell, "
            "torch.nn.GRUCell or torch.nn.LSTMCell in it",
        ),
        (
            rnn_ext.restore_rnn,
            lambda: nn.Linear(3, 4),
            "Linear: there is no rnn_ext.RNN, rnn_ext.GRU, rnn_ext.LSTM, rnn_ext.RNNCell, "
            "rnn_ext.GRUCell or rnn_ext.LSTMCell in it",
        ),
    ],
)
def test_swapping_again_or_nothing_is_harmless_and_reported(again, make, line, capsys):
    module = make()
    classes = [type(m) for m in module.modules()]
    assert again(module, report=True) is module
    assert [type(m) for m in module.modules()] == classes
    assert capsys.readouterr().out == f"{line}\n"


def test_cells_in_plain_containers_are_left_and_reported(capsys):
    model = nn.Module()
    model.inner = nn.Module()
    model.inner.cells = [nn.RNNCell(3, 4), nn.RNNCell(4, 4)]
    model.by_name = {"a": nn.RNN(3, 4)}
    rnn_ext.replace_rnn(model, report=True)
    assert type(model.inner.cells[0]) is nn.RNNCell
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: left, torch does not look into a plain list or dict: "
        "make it a torch.nn.ModuleList or torch.nn.ModuleDict"
        for name in ("by_name", "inner.cells")
    ]


class OwnForward(nn.RNN):
    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        return -output, h_n


class OwnInit(nn.RNN):
    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)


class Holder(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


def replaced_check():
    module = rnn()
    module.check_input = lambda *_: None
    return module


def replaced_forward():
    module = rnn()
    inner = module.forward
    module.forward = lambda *args: (-inner(*args)[0], None)
    return module


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: OwnForward(3, 4, dtype=DOUBLE),
            "a: left, OwnForward is a subclass of torch.nn.RNN: derive it from rnn_ext.RNN",
        ),
        (
            lambda: parametrized(OwnInit(3, 4, dtype=DOUBLE)),
            "a: left, OwnInit is a subclass of torch.nn.RNN: derive it from rnn_ext.RNN",
        ),
        (replaced_forward, "a: left, its forward was replaced on the instance"),
        (replaced_check, "a: left, its check_input was replaced on the instance"),
        (lambda: torch.jit.script(Holder(rnn())), "a.rnn: left, it is TorchScript"),
        (
            lambda: torch.compile(rnn(), backend="eager"),
            "a._orig_mod: left, torch.compile wraps it: swap before compiling",
        ),
    ],
    ids=[
        "own forward",
        "own init, parametrized",
        "replaced forward",
        "replaced check",
        "scripted",
        "compiled",
    ],
)
def test_modules_that_cannot_be_swapped_still_work_and_are_reported(make, line, x, capsys):
    model = nn.ModuleDict({"a": make()})
    expected, kinds = model["a"](x)[0], [type(m) for m in model.modules()]
    rnn_ext.replace_rnn(model, report=True)
    assert capsys.readouterr().out == f"{line}\n"
    assert [type(m) for m in model.modules()] == kinds
    assert_same_bits([model["a"](x)[0]], [expected])


def test_a_subclass_of_ours_is_not_restored(capsys):
    class Mine(rnn_ext.RNNCell):
        pass

    module = rnn_ext.restore_rnn(Mine(3, 4), report=True)
    assert type(module) is Mine
    assert capsys.readouterr().out == (
        "Mine: left, Mine is a subclass of rnn_ext.RNNCell: derive it from torch.nn.RNNCell\n"
    )


def test_without_report_the_lines_go_to_the_logger(caplog, capsys):
    model = nn.Sequential(nn.RNN(3, 4), OwnInit(3, 4))
    with caplog.at_level(logging.INFO, logger="rnn_ext"):
        rnn_ext.replace_rnn(model)
        rnn_ext.restore_rnn(model)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "0: torch.nn.RNN is now rnn_ext.RNN"),
        (
            "WARNING",
            "1: left, OwnInit is a subclass of torch.nn.RNN: derive it from rnn_ext.RNN",
        ),
        ("INFO", "0: rnn_ext.RNN is now torch.nn.RNN"),
    ]
    assert capsys.readouterr().out == ""


def test_a_line_names_the_module_and_both_classes(capsys):
    rnn_ext.replace_rnn(Net(), report=True)
    rnn_ext.replace_rnn(nn.RNNCell(3, 4), report=True)
    assert capsys.readouterr().out.splitlines() == [
        "encoder: torch.nn.RNN is now rnn_ext.RNN",
        "decoder.cell: torch.nn.RNNCell is now rnn_ext.RNNCell",
        "gru: torch.nn.GRU is now rnn_ext.GRU",
        "lstm: torch.nn.LSTM is now rnn_ext.LSTM",
        "gru_cell: torch.nn.GRUCell is now rnn_ext.GRUCell",
        "lstm_cell: torch.nn.LSTMCell is now rnn_ext.LSTMCell",
        "RNNCell: torch.nn.RNNCell is now rnn_ext.RNNCell",
    ]


def test_rejects_other_objects_than_modules():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        rnn_ext.replace_rnn([nn.RNN(3, 4)])


@pytest.mark.parametrize("allow_rnn", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_follows_a_swap_of_what_it_compiled(allow_rnn, in_place, x):
    """Dynamo guards the class of a module, so a swapped one is traced again."""
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounter()
    model = Holder(rnn())
    expected = model(x)
    call = model
    if in_place:
        model.compile(backend=graphs)
    else:
        call = torch.compile(model, backend=graphs)
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        assert_close_fp64([call(x)], [expected])
        before = graphs.frame_count
        rnn_ext.replace_rnn(model)
        assert type(model.rnn) is rnn_ext.RNN
        assert_close_fp64([call(x)], [expected])
        assert graphs.frame_count > before
        rnn_ext.restore_rnn(model)
        assert_same_bits([call(x)], [expected])


def test_a_compiled_module_is_left_wherever_it_is():
    inner = rnn()
    rnn_ext.replace_rnn(nn.ModuleList([inner, torch.compile(inner, backend="eager")]))
    assert type(inner) is nn.RNN


def test_the_module_inside_a_data_parallel_wrapper_is_swapped(x):
    model = nn.DataParallel(rnn())
    expected = model(x)
    assert type(rnn_ext.replace_rnn(model).module) is rnn_ext.RNN
    assert_close_fp64(model(x), expected)


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("wrapper", ["fully_shard", "replicate"])
def test_a_distributed_modules_own_class_is_rebased(wrapper, x):
    from torch.distributed._composable import replicate
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = rnn()
    expected = trained(module, x)
    if wrapper == "fully_shard":
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    else:
        replicate(module)
    ours = type(rnn_ext.replace_rnn(module)).__mro__
    assert rnn_ext.RNN in ours
    assert nn.RNN not in ours
    output = module(x)[0]
    output.square().sum().backward()
    gradients = [getattr(p.grad, "_local_tensor", p.grad) for p in module.parameters()]
    assert_close_fp64([output, *gradients], expected)
    rnn_ext.restore_rnn(module)
    assert isinstance(module, nn.RNN)
    assert_same_bits(module(x)[:1], expected[:1])
