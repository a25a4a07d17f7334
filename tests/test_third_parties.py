"""Libraries that look inside a model: Opacus, Captum (`make test-extras`), pruning, safetensors."""

import pytest
import torch
from support import assert_close_fp64, assert_same_bits
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import prune

import rnn_ext


class Classifier(nn.Module):
    """Reads the last output and the final state."""

    def __init__(self, cls=rnn_ext.RNN, num_layers=2):
        super().__init__()
        self.rnn = cls(5, 6, num_layers, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        output, h_n = self.rnn(x)
        return self.head(output.mean(1) + h_n[-1])


X, TARGET = torch.randn(8, 7, 5, dtype=torch.float64), torch.randint(3, (8,))


def loss_of_one(model, weights, x, target):
    return nn.functional.cross_entropy(functional_call(model, weights, (x[None],)), target[None])


def per_sample(model):
    weights = {name: p.detach() for name, p in model.named_parameters()}
    gradient = grad(lambda w, x, y: loss_of_one(model, w, x, y))
    return vmap(gradient, in_dims=(None, 0, 0))(weights, X, TARGET)


def looped(model):
    rows = []
    for x, target in zip(X, TARGET, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), target[None])
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, map(torch.stack, zip(*rows, strict=True)), strict=True))


def make_private(model, mode, **options):
    opacus = pytest.importorskip("opacus")
    data = torch.utils.data.TensorDataset(X, TARGET)
    return opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=8),
        noise_multiplier=0.0,
        max_grad_norm=0.5,
        poisson_sampling=False,
        grad_sample_mode=mode,
        **options,
    )


@pytest.mark.filterwarnings("ignore:Secure RNG turned off")
@pytest.mark.parametrize("mode", ["no_op", "ew"])
def test_opacus_trains_privately_on_our_per_sample_gradients(mode):
    model = Classifier().double()
    wrapped, private, _ = make_private(model, mode)
    expected = looped(model)
    norms = sum(g.flatten(1).square().sum(1) for g in expected.values()).sqrt()
    assert (norms > 0.5).any(), "nothing is clipped"
    scale = (0.5 / (norms + 1e-6)).clamp(max=1)  # as Opacus guards its division
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    private.zero_grad()
    if mode == "ew":
        nn.functional.cross_entropy(wrapped(X), TARGET).backward()
    else:
        for name, sampled in per_sample(model).items():
            model.get_parameter(name).grad_sample = sampled
    private.step()
    for name, p in model.named_parameters():
        clipped = torch.einsum("b,b...->...", scale, expected[name]) / 8
        assert_close_fp64([p.detach()], [before[name] - 0.1 * clipped])


class Steps(nn.Module):
    """Runs a cell over time."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = rnn_ext.RNNCell(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = None
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.head(h)


@pytest.mark.filterwarnings("ignore:Secure RNG turned off", "ignore:Full backward hook")
@pytest.mark.parametrize("make", [Classifier, Steps])
@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
def test_rejects_opacus_modes_that_would_lose_the_states(mode, make):
    def train():
        loss = nn.CrossEntropyLoss()
        options = {"criterion": loss} if mode == "ghost" else {}
        wrapped, _, *others = make_private(make().double(), mode, **options)
        if mode == "ghost":
            loss = others[0]
        loss(wrapped(X), TARGET).backward()

    with pytest.raises(NotImplementedError, match="loses hx and h_n in this grad_sample_mode"):
        train()


def test_pruned_weights_train_through_their_mask():
    model = Classifier().double()
    prune.l1_unstructured(model.rnn, "weight_hh_l1", amount=0.5)
    mask = model.rnn.weight_hh_l1_mask
    model(X).sum().backward()
    gradient = model.rnn.weight_hh_l1_orig.grad
    assert gradient is not None
    assert not gradient[mask == 0].any()
    assert gradient[mask == 1].all()


def test_captum_attributes_in_eval_mode():
    attr = pytest.importorskip("captum.attr")
    model, theirs = Classifier().double().eval(), Classifier(nn.RNN).double().eval()
    theirs.load_state_dict(model.state_dict())
    results = [
        attr.IntegratedGradients(m).attribute(X, target=1, n_steps=20, method="gausslegendre")
        for m in (model, theirs)
    ]
    assert_close_fp64([results[0]], [results[1]])
    change = model(X)[:, 1] - model(torch.zeros_like(X))[:, 1]
    # 20 nodes integrate so smooth a function to nine digits.
    torch.testing.assert_close(results[0].sum((1, 2)), change, rtol=1e-8, atol=1e-9)


def test_safetensors_keeps_tied_weights(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = Classifier()
    model.rnn.weight_hh_l1 = model.rnn.weight_hh_l0
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    other = Classifier()
    other.rnn.weight_hh_l1 = other.rnn.weight_hh_l0
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    assert_same_bits([other(X.float())], [model(X.float())])
