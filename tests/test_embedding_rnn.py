"""`EmbeddingRNN` and `functional.embedding_rnn`: tokens looked up in a table of W_ih E."""

import copy

import pytest
import torch
from support import (
    KINDS,
    PLANS,
    TELLS_REASONS,
    assert_close_fp64,
    assert_same_bits,
    flat,
    hx_of,
    reason_told,
    same_bits,
    using_threads,
    without_node,
)
from torch import Tensor, nn

import rnn_ext
from rnn_ext import functional
from rnn_ext._core import lookup

forward = torch.ops.rnn_ext.recurrence_forward.default
backward = torch.ops.rnn_ext.recurrence_backward.default

T, B, V, E, H = 9, 3, 7, 5, 16


def loss_weights(y):
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)


each_kind = pytest.mark.parametrize("kind", KINDS)


def twins(kind, hidden_size=H, **kwargs):
    """A module that looks up, and torch's modules with its weights, which multiply every token."""
    kwargs = {"dtype": torch.float64, **kwargs}
    vocab_size = kwargs.pop("num_embeddings", V)
    ours = rnn_ext.EmbeddingRNN(vocab_size, E, hidden_size, cell=kind.lower(), **kwargs)
    theirs = rnn_ext.restore_rnn(copy.deepcopy(ours))
    assert type(theirs.rnn) is getattr(nn, kind)
    return ours, theirs


def results(module, tokens, hx=None):
    """Outputs and every gradient of a loss of all outputs."""
    states = [] if hx is None else [t.detach().requires_grad_() for t in flat(hx)]
    outputs = flat(module(tokens, states[0] if len(states) == 1 else tuple(states) or None))
    loss = sum((y * loss_weights(y)).sum() for y in outputs)
    return [*outputs, *torch.autograd.grad(loss, [*module.parameters(), *states])]


@pytest.fixture
def looked_up(monkeypatch):
    """Has an element for each call that looks up."""
    calls = []
    run = lookup.run_plain_layer

    def counting(*args):
        calls.append(args)
        return run(*args)

    monkeypatch.setattr(lookup, "run_plain_layer", counting)
    return calls


@each_kind
@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("with_node", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": False}, {"batch_first": True}, {"num_layers": 3}, {"bidirectional": True}],
    ids=str,
)
def test_same_as_torchs_modules(
    looked_up,
    monkeypatch,
    kind,
    padding_idx,
    with_node,
    settings,
):
    if not with_node:
        without_node(monkeypatch)
    ours, theirs = twins(kind, padding_idx=padding_idx, **settings)
    states = len(theirs.rnn.all_weights)
    for shape in [(T, B), (T,)]:
        tokens = torch.randint(V - 1, shape)  # one that never occurs: its gradient is zero
        hx = hx_of(kind, states, *shape[1:], H, dtype=torch.float64)
        if len(shape) == 2 and ours.rnn.batch_first:
            tokens = tokens.t().contiguous()
        for initial in (None, hx):
            assert_close_fp64(results(ours, tokens, initial), results(theirs, tokens, initial))
    assert len(looked_up) == 4


def test_relu():
    ours, theirs = twins("RNN", nonlinearity="relu")
    assert theirs.rnn.nonlinearity == "relu"
    tokens = torch.randint(V, (T, B))
    assert_close_fp64(results(ours, tokens), results(theirs, tokens))


@each_kind
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("batch", [1, 17])
def test_same_for_every_size(kind, batch):
    for hidden_size in (1, 7, 33, 65, 129):
        ours, theirs = twins(kind, hidden_size)
        tokens = torch.randint(V, (6, batch))
        assert_close_fp64(results(ours, tokens), results(theirs, tokens))


@each_kind
def test_error_in_float32_is_that_of_torchs_modules(kind):
    ours, theirs = twins(kind, 129, num_layers=2, num_embeddings=40, dtype=torch.float32)
    exact = copy.deepcopy(theirs).double()
    tokens, hx = torch.randint(40, (100, 16)), hx_of(kind, 2, 16, 129)
    exact_hx = hx.double() if isinstance(hx, Tensor) else tuple(t.double() for t in hx)
    expected = results(exact, tokens, exact_hx)
    errors = [
        torch.stack([(a - b).norm() for a, b in zip(actual, expected, strict=True)])
        for actual in (results(ours, tokens, hx), results(theirs, tokens, hx))
    ]
    # The bound that holds for the layers themselves.
    assert (errors[0] / errors[1]).log().mean().exp() < 1.25
    assert (errors[0] / errors[1]).max() < 8


@each_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_tokens(looked_up, kind, bidirectional):
    ours, theirs = twins(kind, num_layers=2, bidirectional=bidirectional)
    sequences = [torch.randint(V, (length,)) for length in (3, 6, 1)]
    hx = hx_of(kind, len(theirs.rnn.all_weights), 3, H, dtype=torch.float64)
    for is_sorted in (False, True):
        packed = nn.utils.rnn.pack_sequence(
            sorted(sequences, key=len, reverse=True) if is_sorted else sequences,
            enforce_sorted=is_sorted,
        )
        for initial in (None, hx):
            assert_close_fp64(results(ours, packed, initial), results(theirs, packed, initial))
    assert len(looked_up) == 4


def test_gradients_are_those_that_are_requested():
    ours, _ = twins("GRU")
    tokens = torch.randint(V, (T, B))
    whole = dict(zip(dict(ours.named_parameters()), results(ours, tokens)[2:], strict=True))
    for wanted in ("embedding.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_hh_l0"):
        for name, parameter in ours.named_parameters():
            parameter.requires_grad_(name == wanted)
        output, h_n = ours(tokens)
        loss = (output * loss_weights(output)).sum() + (h_n * loss_weights(h_n)).sum()
        (gradient,) = torch.autograd.grad(loss, [ours.get_parameter(wanted)])
        assert same_bits(gradient, whole[wanted])


def op_arguments(
    kind="GRU",
    hidden_size=H,
    directions=1,
    dtype=torch.float32,
    **kwargs,
):
    """Arguments of `recurrence_forward` on tokens."""
    cell = {"RNN": rnn_ext.cells.elman, "GRU": rnn_ext.cells.gru, "LSTM": rnn_ext.cells.lstm}[kind]
    rows = cell.gates * hidden_size
    shapes = [(V, rows), (rows, hidden_size), (rows,), (rows,)] * directions
    return {
        "input": torch.randint(V, (T, B)),
        "initial": [torch.randn(directions, B, hidden_size, dtype=dtype) for _ in KINDS[kind]],
        "weights": [torch.randn(shape, dtype=dtype) / 4 for shape in shapes],
        "parameters": [],
        "inputs": [],
        "reset_states": [],
        "reset": None,
        "batch_sizes": None,
        "program": cell.program,
        "bidirectional": directions == 2,
        "states": len(KINDS[kind]),
        "kept_states": cell.kept_states,
        "kept_values": cell.kept_values,
        **kwargs,
    }


def backward_arguments(arguments, **kwargs):
    """Arguments of `recurrence_backward` from those of forward."""
    names = ("input", "initial", "weights", "parameters", "inputs", "reset_states")
    states, kept = arguments["states"], arguments["kept_states"]
    output, *others = forward(**arguments)
    sequences = (kept >> 1).bit_count()
    weights = [True] * len(arguments["weights"])
    return {
        "gradients": [torch.randn_like(output)],
        "given": [True] + [False] * (2 * states - 1),
        **{name: arguments[name] for name in names},
        "output": output,
        "sequences": others[states : states + sequences],
        "saved": others[states + sequences :],
        **{name: arguments[name] for name in ("reset", "batch_sizes", "program", "bidirectional")},
        "kept_states": kept,
        "output_mask": [False, *[True] * len(arguments["initial"]), *weights],
        **kwargs,
    }


@each_kind
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_packed", [False, True])
def test_same_bits_for_every_number_of_threads(kind, dtype, is_packed):
    # More rows than a chunk of backward has, so that several chunks add to the table.
    sizes = torch.tensor([B] * 300 + [2] * 200 + [1])
    tokens = torch.randint(V, (int(sizes.sum()),) if is_packed else (400, B))
    batch_sizes = sizes if is_packed else None
    arguments = op_arguments(kind, 65, 2, dtype, input=tokens, batch_sizes=batch_sizes)
    given = backward_arguments(arguments)

    def run():
        return [*forward(**arguments), *backward(**given)]

    torch.set_num_threads(1)
    expected = run()
    for threads in (2, 3):
        for plan in PLANS:
            with using_threads(threads, plan):
                assert_same_bits(run(), expected)


@each_kind
def test_rows_do_not_depend_on_each_other(kind):
    whole = op_arguments(kind, input=torch.randint(V, (T, 8)), initial=[])
    part = {**whole, "input": whole["input"][:, 3:5]}
    assert_same_bits([forward(**part)[0]], [forward(**whole)[0][:, 3:5].contiguous()])


@each_kind
def test_any_strides(kind):
    arguments = op_arguments(kind, input=torch.randint(V, (B, T)).t())
    table, *others = arguments["weights"]
    arguments["weights"] = [table.t().contiguous().t(), *others]
    dense = {**arguments, "input": arguments["input"].contiguous(), "weights": [table, *others]}
    assert_same_bits(forward(**arguments), forward(**dense))
    given = backward_arguments(arguments)
    same = backward_arguments(dense, gradients=given["gradients"])
    assert_same_bits(backward(**given), backward(**same))


@each_kind
def test_opcheck(kind):
    checks = ("test_schema", "test_faketensor")
    packed = {"input": torch.randint(V, (5,)), "batch_sizes": torch.tensor([3, 2])}
    for change in ({}, packed):
        arguments = op_arguments(kind, **change)
        torch.library.opcheck(forward, (), arguments, test_utils=checks)
        torch.library.opcheck(backward, (), backward_arguments(arguments), test_utils=checks)


def weights_with(index, weight):
    weights = op_arguments()["weights"]
    return [weight if i == index else w for i, w in enumerate(weights)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"input": torch.tensor([[0, 1, V]])}, "tokens must be from 0 to 6"),
        ({"input": torch.tensor([[0, 1, -1]])}, "tokens must be from 0 to 6"),
        ({"input": torch.zeros(T, B, 1, dtype=torch.int64)}, "input has an unexpected number"),
        ({"weights": weights_with(0, torch.zeros(V))}, "table must be a matrix"),
        ({"weights": weights_with(0, torch.zeros(V, H))}, "table has an unexpected shape"),
        ({"weights": weights_with(0, torch.zeros(V, 3 * H).double())}, "weight_hh must be"),
        (
            {
                "weights": [w.bfloat16() for w in op_arguments()["weights"]],
                "initial": [torch.zeros(1, B, H, dtype=torch.bfloat16)],
            },
            "tokens go with float32 and float64",
        ),
        ({"weights": []}, "the kernels take float32, float64"),
    ],
)
def test_checks_that_keep_memory_safe(change, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        forward(**op_arguments(**change))


def test_tokens_have_no_gradient():
    arguments = backward_arguments(op_arguments())
    arguments["output_mask"][0] = True
    with pytest.raises(RuntimeError, match="tokens have no gradient"):
        backward(**arguments)


@each_kind
def test_looked_up_where_it_is_faster(looked_up, kind):
    ours, theirs = twins(kind, dtype=torch.float32)
    ours(torch.zeros(T, B, dtype=torch.int64))
    assert len(looked_up) == 1
    ours(torch.zeros(2, B, dtype=torch.int64))  # six tokens: the table has seven rows
    with torch.autocast("cpu", torch.bfloat16):
        ours(torch.zeros(T, B, dtype=torch.int64))
    ours.bfloat16()(torch.zeros(T, B, dtype=torch.int64))
    theirs(torch.zeros(T, B, dtype=torch.int64))
    assert len(looked_up) == 1


@each_kind
def test_transforms_and_graphs_take_the_layers(looked_up, kind):
    ours, _ = twins(kind)
    tokens = torch.randint(V, (T, B))
    expected = ours(tokens)[0]
    weights = dict(ours.named_parameters())
    looked_up.clear()

    def loss(weights):
        return torch.func.functional_call(ours, weights, (tokens,))[0].sum()

    tangents = {name: torch.zeros_like(w) for name, w in weights.items()}
    tangents["embedding.weight"] = torch.ones(V, E, dtype=torch.float64)
    assert torch.func.jvp(loss, (weights,), (tangents,))[1] != 0
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_close_fp64([compiled(tokens)[0]], [expected])
    assert not looked_up


@each_kind
def test_dropout_between_layers_draws_as_the_modules_do(looked_up, kind):
    ours, theirs = twins(kind, num_layers=3, dropout=0.5)
    tokens = torch.randint(V, (T, B))
    torch.manual_seed(1)
    expected = theirs(tokens)[0]
    torch.manual_seed(1)
    assert_close_fp64([ours(tokens)[0].detach()], [expected.detach()])
    assert looked_up


@each_kind
@pytest.mark.parametrize("with_hx", [False, True])
def test_second_derivatives_are_those_of_the_modules(looked_up, kind, with_hx):
    ours, theirs = twins(kind, num_layers=2)
    tokens = torch.randint(V, (T, B))
    hx = hx_of(kind, 2, B, H, dtype=torch.float64) if with_hx else None

    def second(module):
        leaves = list(module.parameters())
        outputs = flat(module(tokens, hx))
        loss = sum(y.square().sum() for y in outputs)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    assert_close_fp64(second(ours), second(theirs))
    assert looked_up


@each_kind
def test_batched_gradients_are_those_one_by_one(kind):
    ours, _ = twins(kind)
    output, _ = ours(torch.randint(V, (T, B)))
    grads = torch.randn(3, *output.shape, dtype=torch.float64)

    def gradients(grad, **kwargs):
        parameters = list(ours.parameters())
        return torch.autograd.grad(output, parameters, grad, retain_graph=True, **kwargs)

    one_by_one = [torch.stack(parts) for parts in zip(*map(gradients, grads), strict=True)]
    assert_close_fp64(gradients(grads, is_grads_batched=True), one_by_one)


def test_output_may_be_changed_in_place():
    ours, theirs = twins("LSTM")
    tokens = torch.randint(V, (T, B))

    def gradients(module):
        output, _ = module(tokens)
        return torch.autograd.grad(output.mul_(2).square().sum(), list(module.parameters()))

    assert_close_fp64(gradients(ours), gradients(theirs))


@each_kind
def test_a_restored_module_runs_torchs_and_a_swapped_one_looks_up(looked_up, kind):
    ours, _ = twins(kind)
    tokens = torch.randint(V, (T, B))
    rnn_ext.restore_rnn(ours)
    ours(tokens)
    assert not looked_up
    assert "is not a module of rnn_ext" in rnn_ext.explain(ours, tokens)
    rnn_ext.replace_rnn(ours)
    ours(tokens)
    assert len(looked_up) == 1


def test_out_of_memory_error_is_torchs(capfd):
    tokens = torch.zeros(1, 1, dtype=torch.int64).expand(2**23, 2**22)  # a copy of 256 TiB
    with pytest.raises(RuntimeError) as caught:
        forward(**op_arguments(input=tokens, initial=[]))
    assert str(caught.value).startswith("rnn_ext: out of memory: ") == TELLS_REASONS
    assert "tried to allocate" in reason_told(caught.value, capfd.readouterr().err)


def test_accepts_int32_tokens():
    ours, _ = twins("GRU")
    tokens = torch.randint(V, (T, B))
    assert_same_bits(ours(tokens.int()), ours(tokens))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"tokens": torch.zeros(T, B)}, ValueError, "tokens: expected torch.int64 or torch.int32"),
        ({"tokens": torch.full((T, B), V)}, IndexError, "tokens: expected indices from 0 to 6"),
        ({"tokens": torch.full((T, B), -1)}, IndexError, "tokens: expected indices from 0 to 6"),
        (
            {"tokens": torch.zeros(2, 2, 2, dtype=torch.int64)},
            ValueError,
            r"tokens: expected shape \(T\) or \(T, B\), got \(2, 2, 2\)",
        ),
        ({"embedding": torch.zeros(V)}, ValueError, r"embedding: expected shape \(V, E\)"),
        ({"embedding": torch.zeros(V, 4)}, ValueError, r"weights\[0\]: expected shape"),
        ({"embedding": torch.zeros(V, 5).double()}, ValueError, "expected torch.float64"),
        ({"hx": torch.zeros(1, B + 1, H)}, ValueError, "hx: expected shape"),
        ({"cell": "lstm"}, ValueError, r"weights\[1\]: expected shape \(16, 4\)"),
        ({"cell": "lstm", "hx": torch.zeros(1, B, H)}, ValueError, "hx must be 2 tensors"),
        ({"cell": "peephole"}, ValueError, "cell: expected 'rnn', 'gru' or 'lstm', got 'peephole'"),
        ({"nonlinearity": "gelu"}, ValueError, "nonlinearity: expected"),
        ({"cell": "gru", "nonlinearity": "relu"}, ValueError, "'gru' is defined with 'tanh' only"),
        ({"num_layers": 0}, ValueError, "num_layers: expected at least 1"),
    ],
)
def test_wrong_argument_is_named(change, error, sentence):
    arguments = {
        "tokens": torch.zeros(T, B, dtype=torch.int64),
        "hx": None,
        "embedding": torch.zeros(V, E),
        "weights": [torch.zeros(s) for s in [(H, E), (H, H), (H,), (H,)]],
    }
    with pytest.raises(error, match=sentence):
        functional.embedding_rnn(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cell": "peephole"}, "cell: expected 'rnn', 'gru' or 'lstm', got 'peephole'"),
        ({"cell": "lstm", "nonlinearity": "relu"}, "'lstm' is defined with 'tanh' only"),
    ],
)
def test_wrong_argument_of_the_module_is_named(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        rnn_ext.EmbeddingRNN(V, E, H, **change)


@each_kind
def test_a_token_outside_of_the_vocabulary_is_an_index_error_on_every_path(kind):
    ours, _ = twins(kind)
    for steps in (1, T):  # one step is too little for the table
        with pytest.raises(IndexError):
            ours(torch.full((steps, B), V))


@each_kind
def test_explain_says_what_runs(looked_up, kind):
    ours, _ = twins(kind)
    tokens = torch.randint(V, (T, B))
    for x, words in (
        (tokens, "embedding looked up after the product with W_ih"),
        (tokens[:1], f"embedding, then {kind} (fewer tokens than rows of the embedding): rnn_ext"),
    ):
        looked_up.clear()
        assert words in rnn_ext.explain(ours, x)
        assert not looked_up
        ours(x)
        assert bool(looked_up) == words.startswith("embedding looked up")
