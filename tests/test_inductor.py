"""torch.compile and AOTInductor with the default back end, which generates code."""

import pytest
import torch
from support import assert_same_bits, leaves
from torch import nn

import rnn_ext


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_training_and_inference_give_the_bits_of_eager_mode():
    module = rnn_ext.RNN(6, 6)
    module.weight_hh_l0 = module.weight_ih_l0
    graph = torch.compile(module, fullgraph=True, dynamic=True)
    for seq_len, batch in ((4, 3), (7, 2)):
        (x,) = leaves(torch.randn(seq_len, batch, 6))
        results = []
        for call in (graph, module):
            output, h_n = call(x)
            results.append(
                [output, h_n, *torch.autograd.grad(output.sum(), [x, *module.parameters()])]
            )
        assert_same_bits(*results)
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                assert_same_bits(graph(x), module(x))


def test_one_tensor_as_input_and_hx():
    module = rnn_ext.RNN(6, 6)
    (x,) = leaves(torch.randn(1, 3, 6))
    output, _ = torch.compile(module, fullgraph=True)(x, x)
    expected, _ = module(x, x)
    assert_same_bits([output], [expected])
    assert_same_bits(*(torch.autograd.grad(o.sum(), x) for o in (output, expected)))


class Layers(nn.Module):
    """One of every kind, in a row."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                rnn_ext.RNN(5, 6, 2, bidirectional=True),
                rnn_ext.GRU(12, 6),
                rnn_ext.LSTM(6, 6, 2, bidirectional=True),
                rnn_ext.CTRNN(12, 6, alpha=0.2),
            ]
        )

    def forward(self, x):
        for layer in self.layers:
            x, *_ = layer(x)
        return x


def test_an_aot_inductor_package_runs_for_other_lengths_and_batches(tmp_path):
    module = Layers().eval()
    sizes = {0: torch.export.Dim("seq_len"), 1: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(4, 3, 5),), dynamic_shapes=(sizes,))
        # The wrapper is compiled four times as fast so.
        options = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "rnn.pt2"), inductor_configs=options
        )
        run = torch._inductor.aoti_load_package(package)
        x = torch.randn(9, 2, 5)
        assert_same_bits([run(x)], [module(x)])
