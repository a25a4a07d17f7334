"""FlopCounterMode counts the calls of this package as it counts those of nn.RNN."""

import pytest
import torch
from support import twins, without_node
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import rnn_ext

T, B, FEATURES, H = 5, 3, 4, 6
OPS = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("rnn_ext::")]


def count(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_every_op_has_a_formula():
    assert len(OPS) >= 10
    for name in OPS:
        packet = getattr(torch.ops.rnn_ext, name.removeprefix("rnn_ext::"))
        assert packet in flop_registry, name


LAYERS = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"bias": False, "nonlinearity": "relu"},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("wants", ["nothing", "weights", "input", "hx"])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_a_layer_counts_what_nn_rnn_counts(options, wants, packed):
    counts = []
    for module in twins(FEATURES, H, **options):
        x = torch.randn(T, B, FEATURES, requires_grad=wants == "input")
        hx = None
        if wants == "hx":
            hx = torch.randn(
                module.num_layers * (1 + module.bidirectional),
                T if module.batch_first and not packed else B,
                H,
                requires_grad=True,
            )

        def call(module=module, x=x, hx=hx):
            output, _ = module(pack_padded_sequence(x, [5, 4, 2]) if packed else x, hx)
            if wants != "nothing":
                (output.data if packed else output).sum().backward()

        counts.append(count(call))
    # A zero state that needs no gradient takes no product. In reverse packed order nn.RNN joins
    # the states of rows that start later to the running ones: two of three rows here.
    joins = packed and module.bidirectional and wants in ("weights", "input")
    joined = 2 * 2 * H * H * module.num_layers if joins else 0
    assert counts[0] - joined == counts[1] > 0


@pytest.mark.parametrize("with_hx", [False, True])
def test_a_cell_counts_what_nn_rnn_cell_counts(with_hx):
    counts = []
    for cell in (nn.RNNCell(FEATURES, H), rnn_ext.RNNCell(FEATURES, H)):
        x = torch.randn(B, FEATURES, requires_grad=True)
        hx = torch.randn(B, H, requires_grad=True) if with_hx else None
        counts.append(count(lambda cell=cell, x=x, hx=hx: cell(x, hx).sum().backward()))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("way", ["without the node in C++", "compiled", "torch.func"])
def test_every_route_counts_the_same(way, monkeypatch):
    module = rnn_ext.RNN(FEATURES, H)
    x = torch.randn(T, B, FEATURES)
    parameters = list(module.parameters())

    def step(layer=module):
        return torch.autograd.grad(layer(x)[0].sum(), parameters)

    expected = count(step)
    if way == "compiled":
        compiled = torch.compile(module.forward, backend="aot_eager")
        compiled(x)
        assert count(lambda: step(compiled)) == expected
    elif way == "torch.func":
        weights = {name: p.detach() for name, p in module.named_parameters()}

        def loss(weights):
            return torch.func.functional_call(module, weights, (x,))[0].sum()

        # Its backward takes the tangent op through all steps, the first included.
        assert count(lambda: torch.func.grad(loss)(weights)) == expected + 2 * B * H * H
    else:
        without_node(monkeypatch)
        assert count(step) == expected


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("packed", [False, True])
def test_tokens_count_a_table_where_a_layer_counts_every_step(cell, gates, packed):
    vocab_size = 7
    module = rnn_ext.EmbeddingRNN(vocab_size, FEATURES, H, cell=cell)
    tokens = torch.randint(vocab_size, (T, B))
    if packed:
        tokens = pack_padded_sequence(tokens, [5, 4, 2])

    def multiply_each_token():
        embedded = module.embedding(tokens.data if packed else tokens)
        return module.rnn(tokens._replace(data=embedded) if packed else embedded)

    def step(run):
        output, _ = run()
        (output.data if packed else output).sum().backward()

    counts = [count(lambda f=f: step(f)) for f in (multiply_each_token, lambda: module(tokens))]
    # Forward, weight gradient and gradient of the embedding, for all tokens or for the vocabulary.
    rows = 11 if packed else T * B
    assert counts[0] - counts[1] == 3 * 2 * (rows - vocab_size) * gates * H * FEATURES


def test_generation_counts_a_step_for_each_token_that_is_read():
    vocab_size, prompt, length = 7, 3, 4
    layers = [torch.randn(shape) for shape in ((H, H), (H, H), (H, H), (H,))]
    matrices = 3 * 2 * H * H
    flops = count(
        lambda: torch.ops.rnn_ext._rnn_generate(
            torch.zeros(prompt, dtype=torch.int64),
            torch.rand(length, dtype=torch.float64),
            *(torch.randn(vocab_size, H), torch.zeros(2, 1, H), layers),
            *(torch.randn(vocab_size, H), torch.randn(vocab_size)),
            *(1.0, 5, -1, "tanh"),
        )
    )
    assert flops == (prompt + length - 1) * matrices + length * 2 * H * vocab_size
