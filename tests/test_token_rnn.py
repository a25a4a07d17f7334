"""`EmbeddingRNN` and `functional.embedding_rnn`: tokens looked up in a table of W_ih E + b."""

import subprocess
import sys

import pytest
import torch
from support import (
    PLANS,
    TELLS_REASONS,
    assert_close_fp64,
    assert_same_bits,
    reason_told,
    using_threads,
)
from torch import nn

import rnn_ext
from rnn_ext import functional
from rnn_ext._core import lookup
from rnn_ext.charlm import CharRNN

forward = torch.ops.rnn_ext._token_rnn_forward.default
backward = torch.ops.rnn_ext._token_rnn_backward.default

T, B, V, H = 9, 3, 7, 16


def models(hidden_size=H, dtype=torch.float64, vocab_size=V, **kwargs):
    """A model that looks up, and the same model with `nn.RNN`, which multiplies every token."""
    ours = CharRNN(vocab_size, hidden_size, **kwargs).to(dtype)
    theirs = CharRNN(vocab_size, hidden_size, rnn_class=nn.RNN, **kwargs).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def results(model, tokens, hx):
    """Outputs and every gradient of a loss of all outputs."""
    hx = None if hx is None else hx.detach().requires_grad_()
    logits, h_n = model(tokens, hx)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    loss = (weights * logits).sum() + h_n.square().sum()
    leaves = [*model.parameters(), *([] if hx is None else [hx])]
    return [logits, h_n, *torch.autograd.grad(loss, leaves)]


@pytest.fixture
def looked_up(monkeypatch):
    """Counts the calls that look up."""
    calls = []

    def counting(*args):
        calls.append(args)
        return forward(*args)

    monkeypatch.setattr(lookup, "_forward", counting)
    return calls


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_same_as_the_model_with_nn_rnn(looked_up, nonlinearity, num_layers, with_hx, tied):
    ours, theirs = models(nonlinearity=nonlinearity, num_layers=num_layers, tied=tied)
    tokens = torch.randint(V - 1, (T, B))  # one that never occurs: its gradient is zero
    hx = torch.randn(num_layers, B, H, dtype=torch.float64) if with_hx else None
    assert_close_fp64(results(ours, tokens, hx), results(theirs, tokens, hx))
    assert len(looked_up) == 1


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("batch", [1, 17])
def test_same_for_every_size(batch):
    for hidden_size in (1, 7, 33, 65, 129):
        ours, theirs = models(hidden_size, vocab_size=5)
        tokens = torch.randint(5, (6, batch))
        assert_close_fp64(results(ours, tokens, None), results(theirs, tokens, None))


def test_error_in_float32_is_that_of_nn_rnn():
    ours, theirs = models(129, torch.float32, 40, num_layers=2)
    exact = models(129, torch.float64, 40, num_layers=2)[1]
    exact.load_state_dict(ours.state_dict())
    tokens, hx = torch.randint(40, (100, 16)), torch.randn(2, 16, 129)
    expected = results(exact, tokens, hx.double())
    errors = [
        torch.stack([(a - b).norm() for a, b in zip(actual, expected, strict=True)])
        for actual in (results(ours, tokens, hx), results(theirs, tokens, hx))
    ]
    # The bound that holds for the RNN itself.
    assert (errors[0] / errors[1]).log().mean().exp() < 1.25
    assert (errors[0] / errors[1]).max() < 8


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_every_number_of_threads(dtype):
    # More rows than a chunk of backward has, so that several chunks add to the table.
    tokens, table = torch.randint(V, (300, 7)), torch.randn(V, 65, dtype=dtype)
    hx, weight_hh = torch.randn(1, 7, 65, dtype=dtype), torch.randn(65, 65, dtype=dtype) / 8
    grad = torch.randn(300, 7, 65, dtype=dtype)

    def run():
        output, h_n = forward(tokens, table, hx, weight_hh, "tanh")
        mask = [True] * 3
        return [
            output,
            h_n,
            *backward(grad, h_n, tokens, table, hx, weight_hh, output, "tanh", mask),
        ]

    torch.set_num_threads(1)
    expected = run()
    for threads in (2, 3):
        for plan in PLANS:
            with using_threads(threads, plan):
                assert_same_bits(run(), expected)


def test_rows_do_not_depend_on_each_other():
    tokens, table, weight_hh = torch.randint(V, (T, 8)), torch.randn(V, H), torch.randn(H, H) / 4
    whole, _ = forward(tokens, table, None, weight_hh, "tanh")
    part, _ = forward(tokens[:, 3:5], table, None, weight_hh, "tanh")
    assert_same_bits([part], [whole[:, 3:5].contiguous()])


@pytest.mark.parametrize("mask", [[True, False, False], [False, True, True], [False] * 3])
def test_gradients_are_those_that_are_asked_for(mask):
    tokens, table = torch.randint(V, (T, B)), torch.randn(V, H)
    hx, weight_hh = torch.randn(1, B, H), torch.randn(H, H) / 4
    output, h_n = forward(tokens, table, hx, weight_hh, "tanh")
    rest = (tokens, table, hx, weight_hh, output, "tanh")
    whole = backward(output, h_n, *rest, [True] * 3)
    assert_same_bits(
        backward(output, h_n, *rest, mask), [g for g, m in zip(whole, mask, strict=True) if m]
    )


def test_accepts_any_strides():
    tokens = torch.randint(V, (B, T)).t()
    table, weight_hh = torch.randn(H, V).t(), (torch.randn(H, H) / 4).t()
    output, _ = forward(tokens, table, None, weight_hh, "tanh")
    grad = torch.randn(1, 1, 1).expand(T, B, H)
    operands = (tokens, table, None, weight_hh)
    dense = [None if t is None else t.contiguous() for t in operands]
    assert_same_bits([output], [forward(*dense, "tanh")[0]])
    mask = [True, False, True]
    assert_same_bits(
        backward(grad, None, *operands, output, "tanh", mask),
        backward(grad.contiguous(), None, *dense, output, "tanh", mask),
    )


def test_opcheck():
    checks = ("test_schema", "test_faketensor")
    operands = (torch.randint(V, (T, B)), torch.randn(V, H), torch.randn(1, B, H))
    operands = (*operands, torch.randn(H, H))
    torch.library.opcheck(forward, (*operands, "tanh"), test_utils=checks)
    output, h_n = forward(*operands, "tanh")
    for mask in ([True] * 3, [True, False, True]):
        args = (output, h_n, *operands, output, "tanh", mask)
        torch.library.opcheck(backward, args, test_utils=checks)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": torch.tensor([[0, V]])}, "tokens must be from 0 to 6"),
        ({"tokens": torch.tensor([[0, -1]])}, "tokens must be from 0 to 6"),
        ({"tokens": torch.zeros(1, 2)}, "tokens must be on the CPU and of the dtype"),
        ({"tokens": torch.zeros(0, 2, dtype=torch.int64)}, "tokens must be a matrix, not an empty"),
        ({"table": torch.zeros(V)}, "table must be a matrix"),
        ({"table": torch.zeros(V, H, dtype=torch.bfloat16)}, "tokens go with float32 and float64"),
        ({"table": torch.zeros(V, H).double()}, "weight_hh must be on the CPU and of the dtype"),
        ({"weight_hh": torch.zeros(H, H + 1)}, "weight_hh has an unexpected shape"),
        ({"hx": torch.zeros(1, 3, H)}, "hx has an unexpected shape"),
        ({"nonlinearity": "gelu"}, "nonlinearity must be 'tanh' or 'relu'"),
    ],
)
def test_checks_that_keep_memory_safe(change, sentence):
    operands = {
        "tokens": torch.zeros(1, 2, dtype=torch.int64),
        "table": torch.zeros(V, H),
        "hx": torch.zeros(1, 2, H),
        "weight_hh": torch.zeros(H, H),
        "nonlinearity": "tanh",
    }
    with pytest.raises(RuntimeError, match=sentence):
        forward(**{**operands, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"output": torch.zeros(1, 2, H + 1)}, "output has an unexpected shape"),
        ({"grad_output": torch.zeros(1, 1, H)}, "grad_output has an unexpected shape"),
        ({"grad_output": torch.zeros(1, 2, H).double()}, "grad_output must be"),
        ({"grad_h_n": torch.zeros(1, 1, H)}, "grad_h_n has an unexpected shape"),
        ({"output_mask": [True]}, "output_mask needs a flag for table, hx and weight_hh"),
        ({"hx": None}, "there is no hx to compute a gradient for"),
    ],
)
def test_checks_of_backward_that_keep_memory_safe(change, sentence):
    operands = {
        "grad_output": torch.zeros(1, 2, H),
        "grad_h_n": torch.zeros(1, 2, H),
        "tokens": torch.zeros(1, 2, dtype=torch.int64),
        "table": torch.zeros(V, H),
        "hx": torch.zeros(1, 2, H),
        "weight_hh": torch.zeros(H, H),
        "output": torch.zeros(1, 2, H),
        "nonlinearity": "tanh",
        "output_mask": [True] * 3,
    }
    with pytest.raises(RuntimeError, match=sentence):
        backward(**{**operands, **change})


def test_looked_up_where_it_is_faster(looked_up):
    model = CharRNN(V, H)
    model(torch.zeros(T, B, dtype=torch.int64))
    assert len(looked_up) == 1
    model(torch.zeros(2, B, dtype=torch.int64))  # six tokens: a table has seven
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(T, B, dtype=torch.int64))
    model.bfloat16()(torch.zeros(T, B, dtype=torch.int64))
    CharRNN(V, H, rnn_class=nn.RNN)(torch.zeros(T, B, dtype=torch.int64))
    assert len(looked_up) == 1


def test_transforms_and_graphs_take_the_modules(looked_up):
    model, tokens = CharRNN(V, H), torch.randint(V, (T, B))
    expected = model(tokens)[0]
    weights = dict(model.named_parameters())
    looked_up.clear()

    def loss(weights):
        return torch.func.functional_call(model, weights, (tokens,))[0].sum()

    tangents = {name: torch.zeros_like(w) for name, w in weights.items()}
    tangents["embedding.weight"] = torch.ones(V, H)
    assert torch.func.jvp(loss, (weights,), (tangents,))[1] != 0
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens)[0], expected)
    assert not looked_up


def test_dropout_between_layers_draws_as_the_modules_do():
    ours, theirs = models(num_layers=3, dropout=0.5)
    tokens = torch.randint(V, (T, B))
    torch.manual_seed(1)
    expected = theirs(tokens)[0]
    torch.manual_seed(1)
    assert_close_fp64([ours(tokens)[0].detach()], [expected.detach()])


@pytest.mark.parametrize("with_hx", [False, True])
def test_second_derivatives_are_those_of_the_modules(looked_up, with_hx):
    ours, theirs = models(num_layers=2)
    tokens = torch.randint(V, (T, B))
    hx = torch.randn(2, B, H, dtype=torch.float64) if with_hx else None

    def second(model):
        leaves = list(model.parameters())
        logits, h_n = model(tokens, hx)
        loss = logits.square().sum() + h_n.sum()
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    assert_close_fp64(second(ours), second(theirs))
    assert looked_up


def test_batched_gradients_are_those_one_by_one():
    model = rnn_ext.EmbeddingRNN(V, 5, H).double()
    output, _ = model(torch.randint(V, (T, B)))
    grads = torch.randn(3, *output.shape, dtype=torch.float64)

    def gradients(grad, **kwargs):
        parameters = list(model.parameters())
        return torch.autograd.grad(output, parameters, grad, retain_graph=True, **kwargs)

    one_by_one = [torch.stack(parts) for parts in zip(*map(gradients, grads), strict=True)]
    assert_close_fp64(gradients(grads, is_grads_batched=True), one_by_one)


def test_a_swapped_model_looks_up_too(looked_up):
    model = CharRNN(V, H, rnn_class=nn.RNN)
    tokens = torch.zeros(T, B, dtype=torch.int64)
    model(tokens)
    assert not looked_up
    rnn_ext.replace_rnn(model)
    model(tokens)
    assert len(looked_up) == 1


def test_out_of_memory_error_is_torchs(capfd):
    tokens = torch.zeros(1, 1, dtype=torch.int64).expand(2**23, 2**22)  # a copy of 256 TiB
    with pytest.raises(RuntimeError) as caught:
        forward(tokens, torch.zeros(V, H), None, torch.zeros(H, H), "tanh")
    assert str(caught.value).startswith("rnn_ext: out of memory: ") == TELLS_REASONS
    assert "tried to allocate" in reason_told(caught.value, capfd.readouterr().err)


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"bias": False},
        {"batch_first": True},
        {"num_layers": 2, "nonlinearity": "relu"},
        {"bidirectional": True, "num_layers": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_module_is_an_embedding_and_an_rnn(settings, padding_idx):
    torch.manual_seed(1)
    module = rnn_ext.EmbeddingRNN(V, 5, H, padding_idx=padding_idx, dtype=torch.float64, **settings)
    torch.manual_seed(1)
    embedding = nn.Embedding(V, 5, padding_idx, dtype=torch.float64)
    rnn = nn.RNN(5, H, dtype=torch.float64, **settings)
    states = len(module.rnn.all_weights)
    for shape in [(T, B), (T,)]:
        tokens = torch.randint(V, shape)
        hx = torch.randn(states, *shape[1:], H, dtype=torch.float64)
        if len(shape) == 2 and module.rnn.batch_first:
            tokens = tokens.t().contiguous()
        for initial in (None, hx):
            ours = module(tokens, initial)
            theirs = rnn(embedding(tokens), initial)
            loss = [y.square().sum() for y in (ours[0], theirs[0])]
            assert_close_fp64(
                [*ours, *torch.autograd.grad(loss[0], list(module.parameters()))],
                [
                    *theirs,
                    *torch.autograd.grad(loss[1], [*embedding.parameters(), *rnn.parameters()]),
                ],
            )


def test_module_takes_packed_tokens():
    module = rnn_ext.EmbeddingRNN(V, 5, H)
    sequences = [torch.randint(V, (length,)) for length in (3, 6, 1)]
    packed = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    hx = torch.randn(1, 3, H)
    output, h_n = module(packed, hx)
    rows, lengths = nn.utils.rnn.pad_packed_sequence(output)
    for i, tokens in enumerate(sequences):
        expected, final = module(tokens, hx[:, i])
        torch.testing.assert_close(rows[: lengths[i], i], expected)
        torch.testing.assert_close(h_n[:, i], final)


def test_accepts_int32_tokens():
    module, tokens = rnn_ext.EmbeddingRNN(V, 5, H), torch.randint(V, (T, B))
    assert_same_bits(module(tokens.int()), module(tokens))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"tokens": torch.zeros(T, B)}, ValueError, "tokens: expected torch.int64 or torch.int32"),
        ({"tokens": torch.full((T, B), V)}, IndexError, "tokens: expected indices from 0 to 6"),
        ({"tokens": torch.full((T, B), -1)}, IndexError, "tokens: expected indices from 0 to 6"),
        ({"tokens": torch.zeros(2, 2, 2, dtype=torch.int64)}, ValueError, "tokens: expected 1 dim"),
        ({"embedding": torch.zeros(V)}, ValueError, r"embedding: expected shape \(V, E\)"),
        ({"embedding": torch.zeros(V, 4)}, ValueError, r"weights\[0\]: expected shape"),
        (
            {"embedding": torch.zeros(V, 5).double()},
            ValueError,
            "expected torch.float64",
        ),
        ({"hx": torch.zeros(1, B + 1, H)}, ValueError, "hx: expected shape"),
        ({"nonlinearity": "gelu"}, ValueError, "nonlinearity: expected"),
    ],
)
def test_wrong_argument_is_named(change, error, sentence):
    weights = [torch.zeros(s) for s in [(H, 5), (H, H), (H,), (H,)]]
    arguments = {
        "tokens": torch.zeros(T, B, dtype=torch.int64),
        "hx": None,
        "embedding": torch.zeros(V, 5),
        "weights": weights,
    }
    with pytest.raises(error, match=sentence):
        functional.embedding_rnn(**{**arguments, **change})


def test_token_outside_of_the_vocabulary_is_an_index_error_on_every_path():
    module = rnn_ext.EmbeddingRNN(V, 5, H)
    for steps in (1, T):  # one step is too little for the table
        with pytest.raises(IndexError):
            module(torch.full((steps, B), V))


def test_explain_says_what_runs(looked_up):
    module, tokens = rnn_ext.EmbeddingRNN(V, 5, H), torch.randint(V, (T, B))
    for x, words in (
        (tokens, "embedding looked up after W_ih E + b"),
        (tokens[:1], "fewer tokens"),
    ):
        looked_up.clear()
        assert words in rnn_ext.explain(module, x)
        assert not looked_up
        module(x)
        assert bool(looked_up) == words.startswith("embedding")


def test_ops_have_fake_kernels_without_the_text_generator():
    program = (
        "import sys, torch, rnn_ext\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "assert 'rnn_ext.charlm' not in sys.modules\n"
        "with FakeTensorMode():\n"
        "    tokens, table = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(5, 4)\n"
        "    op = torch.ops.rnn_ext._token_rnn_forward\n"
        "    print(tuple(op(tokens, table, None, torch.zeros(4, 4), 'tanh')[0].shape))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "(3, 2, 4)\n", result.stderr
