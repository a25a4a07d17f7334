"""``CTRNN`` against plain loops with the formulas of its docstring; the parametrizations."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.nn.utils.rnn import pack_sequence

import rnn_ext
from rnn_ext import CTRNN
from rnn_ext.ctrnn import NONLINEARITIES
from rnn_ext.parametrizations import Dale, FixedZeros, NoSelfConnection

SEQ_LEN, BATCH, INPUT, HIDDEN = 7, 3, 2, 6


def loop(layer, phi, place, input, x0, noise):
    """One layer as a loop: r at all steps, and the last x (in form "current") or r."""
    alpha, x, r = layer.alpha, x0, phi(x0) if layer.form == "current" else x0
    w_ih, w_hh, b_ih, b_hh = layer.all_weights[0]
    before, after = (noise, 0 * noise) if place == "inside" else (0 * noise, noise)
    output = []
    for t in range(input.size(0)):
        drive = input[t] @ w_ih.T + b_ih + r @ w_hh.T + b_hh
        if layer.form == "current":
            x = (1 - alpha) * x + alpha * drive + before[t]
            r = phi(x) + after[t]
        elif layer.form == "rate":
            x = r = (1 - alpha) * r + alpha * phi(drive + before[t]) + after[t]
        else:
            x = r = phi((1 - alpha) * r + alpha * drive + before[t]) + after[t]
        output.append(r)
    return torch.stack(output), x


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("form", ["current", "rate", "inside"])
@pytest.mark.parametrize("phi", [*NONLINEARITIES, nn.functional.gelu])
def test_forms_are_those_of_a_loop(form, phi, place):
    torch.manual_seed(0)
    settings = {"form": form, "nonlinearity": phi, "noise": place}
    tau = torch.linspace(20.0, 100.0, HIDDEN, dtype=torch.float64)
    layer = CTRNN(INPUT, HIDDEN, dt=10.0, tau=tau, dtype=torch.float64, **settings)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double().requires_grad_()
    hx = torch.randn(1, BATCH, HIDDEN).double().requires_grad_()
    noise = (0.1 * torch.randn(SEQ_LEN, BATCH, HIDDEN).double()).requires_grad_()
    output, h_n = layer(x, hx, noise=noise)
    function = NONLINEARITIES[phi] if isinstance(phi, str) else phi
    expected, last = loop(layer, function, place, x, hx[0], noise)
    tensors = [x, hx, noise, *layer.parameters()]
    found = torch.autograd.grad(output.sin().sum() + h_n.cos().sum(), tensors)
    wanted = torch.autograd.grad(expected.sin().sum() + last.cos().sum(), tensors)
    for a, b in zip([output, h_n[0], *found], [expected, last, *wanted], strict=True):
        # float64, sums in another order over a few steps.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_starts_from_phi_of_the_state():
    layer = CTRNN(INPUT, HIDDEN, alpha=0.5, nonlinearity="softplus", dtype=torch.float64)
    x = torch.randn(SEQ_LEN, BATCH, INPUT).double()
    zeros = torch.zeros(BATCH, HIDDEN).double()
    noise = torch.zeros(SEQ_LEN, 1, 1).double()
    expected, _ = loop(layer, nn.functional.softplus, "inside", x, zeros, noise)
    # float64, sums in another order over a few steps.
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-10, atol=1e-12)
    currents = layer(x, return_states=True)[2]
    torch.testing.assert_close(nn.functional.softplus(currents), layer(x)[0])


def test_layers_directions_packed_and_no_batch():
    layer = CTRNN(INPUT, HIDDEN, 2, alpha=0.3, bidirectional=True, learn_initial_state=True)
    nn.init.normal_(layer.initial_state)
    rows = [torch.randn(n, INPUT) for n in (4, 7, 1)]
    output, h_n = layer(pack_sequence(rows, enforce_sorted=False))
    padded, lengths = nn.utils.rnn.pad_packed_sequence(output)
    for i, row in enumerate(rows):
        alone, last = layer(row)
        assert torch.equal(padded[: lengths[i], i], alone)
        assert torch.equal(h_n[:, i], last)
    h_n.sum().backward()
    assert layer.initial_state is not None
    assert layer.initial_state.grad is not None
    assert layer.initial_state.grad.any(1).all()


@pytest.mark.parametrize("form", ["current", "rate", "inside"])
def test_noise_is_drawn_anew_with_its_standard_deviation(form):
    torch.manual_seed(0)
    # relu of rates without input, recurrence or bias is noise alone where alpha is 1.
    layer = CTRNN(1, 1000, form=form, alpha=1.0, noise_std=0.5, nonlinearity="relu").eval()
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    first, second = layer(torch.zeros(50, 1, 1))[0], layer(torch.zeros(50, 1, 1))[0]
    assert not torch.equal(first, second)
    # E[relu(n)²] is half the variance; of 50 000 draws it is off by a hundredth of itself.
    assert first.square().mean().item() == pytest.approx(0.125, rel=0.05)
    assert torch.equal(layer(torch.zeros(5, 1, 1), noise=0.25)[0], torch.full((5, 1, 1000), 0.25))


def test_learned_time_constants_stay_in_their_limits():
    torch.manual_seed(0)
    layer = CTRNN(INPUT, HIDDEN, dt=10.0, tau=50.0, learn_alpha=True)
    torch.testing.assert_close(layer.alpha, torch.full((HIDDEN,), 0.2))
    optimizer = torch.optim.SGD(layer.parameters(), lr=100.0)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(SEQ_LEN, BATCH, INPUT))[0].square().sum().backward()
        optimizer.step()
    assert isinstance(layer.alpha, Tensor)
    assert ((layer.alpha >= 0) & (layer.alpha <= 1)).all()
    assert not torch.equal(layer.alpha, torch.full((HIDDEN,), 0.2))


def test_constraints_hold_through_training():
    torch.manual_seed(0)
    layer = CTRNN(INPUT, HIDDEN, alpha=0.2, nonlinearity="relu")
    signs = torch.tensor([1.0, 1, 1, 1, -1, -1])
    mask = torch.rand(HIDDEN, HIDDEN) > 0.3
    for constraint in (FixedZeros(mask), NoSelfConnection(), Dale(signs)):
        register_parametrization(layer, "weight_hh_l0", constraint)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight_hh_l0.clone()
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.rand(SEQ_LEN, BATCH, INPUT))[0].square().sum().backward()
        optimizer.step()
    weight = layer.weight_hh_l0
    assert not torch.equal(weight, before)
    assert (weight * signs >= 0).all()
    assert not weight[~mask].any()
    assert not weight.diagonal().any()
    assert torch.equal(copy.deepcopy(layer).weight_hh_l0, weight)
    with pytest.raises(ValueError, match="signs must be 1 or -1"):
        Dale(torch.tensor([0.5, 1.0]))


def test_mistakes_are_named():
    mistakes = [
        ({}, "alpha is missing: pass alpha, or dt and tau"),
        ({"alpha": 0.0}, "alpha must be above 0 and at most 1"),
        ({"dt": 20.0, "tau": 10.0}, "alpha must be above 0 and at most 1, got 2"),
        ({"alpha": 0.1, "form": "rates"}, "form must be one of current, rate, inside, got 'rates'"),
        ({"alpha": 0.1, "nonlinearity": "tan"}, "nonlinearity must be one of tanh, relu"),
        ({"alpha": 0.1, "noise": "both"}, "noise must be one of inside, outside"),
        ({"alpha": 0.1, "noise_std": -1.0}, "noise_std must be 0 or more"),
    ]
    for settings, message in mistakes:
        with pytest.raises(ValueError, match=message):
            CTRNN(2, 3, **settings)
    with pytest.raises(ValueError, match="expected input to be 2-D or 3-D, got 1-D"):
        CTRNN(2, 3, alpha=0.1)(torch.randn(2))
    with pytest.raises(rnn_ext.CellError, match="softmax"):
        CTRNN(2, 3, alpha=0.1, nonlinearity=lambda x: torch.softmax(x, -1))


def test_shows_its_settings():
    layer = CTRNN(2, 3, alpha=0.1, form="rate", noise_std=0.2, batch_first=True)
    expected = "CTRNN(2, 3, batch_first=True, form='rate', nonlinearity='tanh', noise_std=0.2)"
    assert repr(layer) == expected
