"""Whole models train to the same losses after `replace_rnn` as before (`examples/models`)."""

import re
import runpy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from models import GATED, MODELS
from support import assert_close_fp64, using_threads
from torch import Tensor, nn

import rnn_ext

EXAMPLE = Path(__file__).parents[1] / "examples" / "swap.py"
STEPS = 40
MIDWAY = STEPS // 2
PLAIN = [name for name in MODELS if name not in GATED]


NOTHING = {}
SCHEDULES = {
    "swapped": {0: rnn_ext.replace_rnn},
    "swapped midway": {MIDWAY: rnn_ext.replace_rnn},
    "restored midway": {0: rnn_ext.replace_rnn, MIDWAY: rnn_ext.restore_rnn},
}
# For the larger models, whose steps take seconds.
SHORT = {0: rnn_ext.replace_rnn, 1: rnn_ext.restore_rnn, 2: rnn_ext.replace_rnn}


@dataclass(frozen=True)
class Run:
    losses: Tensor  # of each step, in float64
    explained: list[set[str]]  # of each step: what `explain` says of the calls of its RNNs
    random_state: Tensor


def train(name, dtype, changes, *, steps=STEPS, seed=0):
    """Trains the model of that name; `changes` happen to it before the steps of those numbers.

    Model, data and (but for `seed`) draws are the same in every run. The optimizer is made before
    any change, and the model has to be made of the same parameters at the end.
    """
    task = MODELS[name]
    torch.manual_seed(0)
    model = task.build().to(dtype)
    parameters = list(model.parameters())
    seen = set()
    for module in model.modules():
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            module.register_forward_pre_hook(lambda m, args: seen.add(rnn_ext.explain(m, args[0])))
    training = task.train(model, task.build_optimizer(model))
    torch.manual_seed(seed)
    losses, explained = [], []
    # One thread: nn.RNN's bits depend on their number.
    with using_threads(1):
        for step in range(steps):
            changes.get(step, lambda model: None)(model)
            losses.append(next(training))
            explained.append(seen.copy())
            seen.clear()
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    return Run(torch.tensor(losses, dtype=torch.float64), explained, torch.get_rng_state())


@cache
def reference(name, dtype, steps=STEPS):
    """The model as it is, on torch's modules."""
    return train(name, dtype, NOTHING, steps=steps)


@torch.no_grad()
def nudge_weights(model, generator):
    """Moves every weight one ulp up or down."""
    for p in model.parameters():
        up = torch.rand(p.shape, generator=generator) < 0.5
        p.copy_(torch.nextafter(p, torch.where(up, torch.inf, -torch.inf).to(p.dtype)))


@cache
def movement(name, dtype):
    """How far rounding moves the losses of `nn.RNN` itself, up to and including each step.

    Measured by runs in which every weight is nudged before every step, which is about what another
    order of summation does to it in the step.
    """
    moved = []
    for seed in range(2):
        nudge = partial(nudge_weights, generator=torch.Generator().manual_seed(seed))
        losses = train(name, dtype, dict.fromkeys(range(STEPS), nudge)).losses
        moved.append((losses - reference(name, dtype).losses).abs())
    return torch.stack(moved).amax(0).cummax(0).values


def assert_same_course(run, name, dtype):
    expected = reference(name, dtype)
    assert torch.equal(run.random_state, expected.random_state), "another number of draws"
    if dtype == torch.float64:
        assert_close_fp64([run.losses], [expected.losses])
        return
    # Rounding grows from step to step, at a pace that depends on the model: so the distance is
    # measured by how far rounding moves nn.RNN itself (and an ulp of the loss, for the steps before
    # anything moved). It was 1.4 times that at most, over six seeds and all ISA levels; one run is
    # one draw, hence 4.
    ulp = torch.finfo(dtype).eps * expected.losses.abs().max()
    error = (run.losses - expected.losses).abs()
    assert bool((error <= 4 * (movement(name, dtype) + ulp)).all()), (
        f"off by {error.tolist()}, where rounding moves nn.RNN by {movement(name, dtype).tolist()}"
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", PLAIN)
def test_training_has_the_same_losses(name, dtype, schedule):
    run = train(name, dtype, SCHEDULES[schedule])
    assert_same_course(run, name, dtype)
    assert_path(run, SCHEDULES[schedule])


@pytest.mark.parametrize("name", GATED)
def test_public_models_have_the_same_losses(name):
    run = train(name, torch.float64, SHORT, steps=len(SHORT))
    expected = reference(name, torch.float64, steps=len(SHORT))
    assert torch.equal(run.random_state, expected.random_state), "another number of draws"
    assert_close_fp64([run.losses], [expected.losses])
    assert_path(run, SHORT)


def assert_path(run, changes):
    """Our kernels ran in the steps for which the model was swapped, torch's in the others."""
    ours = False
    for step, lines in enumerate(run.explained):
        if step in changes:
            ours = changes[step] is rnn_ext.replace_rnn
        assert lines, "no RNN ran"
        expected = "rnn_ext CPU kernels, " if ours else r"(RNN|GRU|LSTM)(Cell)? is not a module"
        assert all(re.match(expected, line) for line in lines), (step, lines)


@pytest.mark.parametrize("name", PLAIN)
def test_training_learns(name):
    losses = reference(name, torch.float64).losses
    # Without training, these two differ by 4 % in three of the models and by 24 % in the policy.
    assert losses[-5:].mean() < 0.75 * losses[:5].mean()


@pytest.mark.parametrize("name", [n for n in PLAIN if n != "sentiment classifier"])
def test_another_dropout_mask_or_action_is_detected(name):
    other = train(name, torch.float64, SCHEDULES["swapped"], steps=1, seed=1).losses
    assert (other - reference(name, torch.float64).losses[:1]).abs() > 1e-3


def test_example_swaps_every_model_and_prints_the_same_losses(capsys, monkeypatch):
    swapped = []

    def spy(model):
        swapped.append(type(model))
        return replace_rnn(model)

    replace_rnn = rnn_ext.replace_rnn
    monkeypatch.setattr(rnn_ext, "replace_rnn", spy)
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), "--steps", "2"])
    with using_threads(1):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert swapped == [type(task.build()) for task in MODELS.values()]

    _, _, *rows = capsys.readouterr().out.splitlines()
    number = r"\s+(-?\d+\.\d+)"
    row = re.compile(rf"(\S.*?){number}{number}{number} ms{number} ms{number}x")
    actual = [row.fullmatch(line) for line in rows]
    assert [match and match[1] for match in actual] == list(MODELS)
    # Four decimals are printed; in two steps rounding reaches the seventh.
    assert all(match and match[2] == match[3] for match in actual)
