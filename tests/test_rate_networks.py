"""`CTRNN` beside the loops of published networks, on their tasks (`examples/rate_networks`)."""

import math

import pytest
import torch
from rate_networks import NETWORKS, multitask, psychrnn
from support import assert_close_fp64

import rnn_ext


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_authors_loop(name):
    published = NETWORKS[name]
    network = published.Network()
    input, *trial = published.draw_trials()
    noise = 0.1 * torch.randn(*input.shape[:2], published.HIDDEN_SIZE)
    results = []
    for output in (network(input, noise), published.loop(network, input, noise)):
        loss = published.loss_of(output, *trial)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        results.append([output.detach(), *gradients])
    assert_close_fp64(*results)


def test_forms_and_noise_are_the_authors():
    forms = {name: published.Network().layer.form for name, published in NETWORKS.items()}
    assert forms == {"PsychRNN": "current", "multitask": "rate", "nn-brain": "inside"}
    assert psychrnn.Network(0.3).layer.noise_std == pytest.approx(math.sqrt(2 * 0.1) * 0.3)
    assert multitask.Network().layer.noise_std == pytest.approx(math.sqrt(2 / 0.2) * 0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_learns(name):
    published = NETWORKS[name]
    network = published.Network()
    optimizer = torch.optim.Adam(network.parameters(), published.LEARNING_RATE)
    losses = []
    for _ in range(40):
        input, *trial = published.draw_trials()
        assert "rnn_ext CPU kernels" in rnn_ext.explain(network.layer, input)
        optimizer.zero_grad()
        loss = published.loss_of(network(input), *trial)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
