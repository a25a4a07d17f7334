"""`rnn-ext generate` and `charlm.generate`: text from a model."""

import copy
import string

import pytest
import torch
from support.charlm import train, write_text

import rnn_ext
from rnn_ext import charlm
from rnn_ext.charlm import CharRNN, Vocabulary, generation
from rnn_ext.cli import main

LETTERS = "abcdefgh"


@pytest.fixture
def vocabulary():
    return Vocabulary(LETTERS)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CharRNN(len(LETTERS), 16).eval()


def text_of(*args, **kwargs):
    return "".join(charlm.generate(*args, **kwargs))


def step_by_step(model, vocabulary, prompt, length):
    """The likeliest characters, each from the whole text before it."""
    text = prompt
    for _ in range(length):
        logits, _ = model(vocabulary.encode(text).unsqueeze(1))
        text += vocabulary.idx2char[int(logits[-1, 0].argmax())]
    return text[len(prompt) :]


@pytest.mark.parametrize("prompt", ["a", "hgfedcba"])
def test_temperature_0_always_takes_the_likeliest_character(model, vocabulary, prompt):
    actual = text_of(model, vocabulary, prompt, 40, temperature=0)
    assert actual == step_by_step(model, vocabulary, prompt, 40)
    assert len(set(actual)) > 1


def test_seed_determines_the_draws(model, vocabulary):
    draw = {"length": 60, "temperature": 1.0}
    first = text_of(model, vocabulary, "a", seed=1, **draw)
    assert first == text_of(model, vocabulary, "a", seed=1, **draw)
    assert first != text_of(model, vocabulary, "a", seed=2, **draw)
    assert text_of(model, vocabulary, "a", 30, temperature=1.0, seed=1) == first[:30]


def test_characters_are_drawn_as_often_as_the_model_says(vocabulary):
    model = CharRNN(len(LETTERS), 4).eval()
    with torch.no_grad():
        model.linear.weight.zero_()  # every character's odds are those of the bias
        model.linear.bias.copy_(torch.tensor([3.0, 2, 2, 1, 0, 0, -1, -20]))
    for temperature in (0.5, 1.0, 2.0):
        odds = (model.linear.bias / temperature).softmax(0)
        actual = vocabulary.encode(text_of(model, vocabulary, "a", 4000, temperature=temperature))
        frequency = torch.bincount(actual, minlength=len(LETTERS)) / 4000
        # Four standard deviations of a share among 4000 draws, at most.
        assert (frequency - odds).abs().max() < 4 * 0.5 / 4000**0.5


def test_top_k_keeps_the_likeliest(vocabulary):
    model = CharRNN(len(LETTERS), 4).eval()
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(torch.tensor([0.0, 0.3, 0.1, 0.2, 0, 0, 0, 0]))
    draw = {"length": 300, "temperature": 1.0}
    assert set(text_of(model, vocabulary, "a", top_k=3, **draw)) == set("bcd")
    assert set(text_of(model, vocabulary, "a", top_k=1, **draw)) == {"b"}
    assert set(text_of(model, vocabulary, "a", top_k=99, **draw)) == set(LETTERS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unknown_is_never_generated(temperature):
    vocabulary = Vocabulary("abc", with_unknown=True)
    model = CharRNN(4, 8).eval()
    with torch.no_grad():
        model.linear.bias[3] = 50  # which the model would generate
    assert set(text_of(model, vocabulary, "a", 200, temperature=temperature)) <= set("abc")


def test_characters_come_one_at_a_time(model, vocabulary):
    pieces = charlm.generate(model, vocabulary, "a", 10**6)
    assert len(next(pieces)) == 1


def test_prompt_of_unknown_characters_names_them(model, vocabulary):
    with pytest.raises(ValueError, match=r"^not in the vocabulary: 'X', '☃'$"):
        charlm.generate(model, vocabulary, "aX☃b")


def by_the_loop(monkeypatch, *args, **kwargs):
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_can_fuse", lambda _: False)
        return text_of(*args, **kwargs)


@pytest.mark.parametrize(
    ("num_layers", "nonlinearity", "sampling"),
    [
        (1, "tanh", {}),
        (1, "relu", {"temperature": 0.9}),
        (3, "tanh", {"temperature": 2.0, "top_k": 3}),
    ],
)
def test_fused_op_generates_what_the_loop_generates(
    monkeypatch, isa, num_layers, nonlinearity, sampling
):
    vocabulary = Vocabulary(string.printable, with_unknown=True)
    for hidden_size in (1, 65, 257):
        size = len(vocabulary)
        model = CharRNN(size, hidden_size, num_layers=num_layers, nonlinearity=nonlinearity).eval()
        # More than the first two calls of the op give.
        args = (model, vocabulary, "Hello", 100)
        fused = text_of(*args, seed=hidden_size, **sampling)
        assert fused == by_the_loop(monkeypatch, *args, seed=hidden_size, **sampling)


def test_fused_op_generates_the_same_on_any_number_of_threads(vocabulary):
    model = CharRNN(len(LETTERS), 300, num_layers=2).eval()
    texts = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        texts.add(text_of(model, vocabulary, "abc", 50, temperature=1.0))
    assert len(texts) == 1


def test_loop_handles_models_that_the_op_does_not(vocabulary):
    ours = CharRNN(len(LETTERS), 16).eval()
    theirs = rnn_ext.restore_rnn(copy.deepcopy(ours))
    expected = text_of(ours, vocabulary, "a", 40)
    assert text_of(theirs, vocabulary, "a", 40) == expected
    assert text_of(ours.double(), vocabulary, "a", 40) == expected


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gated_models_generate_what_torchs_layers_do(vocabulary, cell):
    ours = CharRNN(len(LETTERS), 16, cell=cell, num_layers=2).eval()
    theirs = rnn_ext.restore_rnn(copy.deepcopy(ours))
    for sampling in ({"temperature": 0}, {"temperature": 1.0}):
        text = text_of(ours, vocabulary, "abcdefgh", 40, **sampling)
        assert text == text_of(theirs, vocabulary, "abcdefgh", 40, **sampling)


def test_default_temperature_draws(model, vocabulary):
    default = text_of(model, vocabulary, "a", 40)
    assert default == text_of(model, vocabulary, "a", 40, temperature=0.8)
    assert default != text_of(model, vocabulary, "a", 40, temperature=0)


@pytest.mark.parametrize(("characters", "first"), [("ab\nc", "\n"), ("abcd", "a")])
def test_without_a_prompt_it_starts_a_line(model, characters, first):
    vocabulary = Vocabulary(characters + "wxyz")
    assert text_of(model, vocabulary, length=40) == text_of(model, vocabulary, first, 40)


def test_prompt_may_have_unknown_characters_if_the_model_knows_unknown(model):
    vocabulary = Vocabulary(LETTERS[:-1], with_unknown=True)
    assert len(text_of(model, vocabulary, "aX", 5)) == 5


def test_memory_does_not_grow_with_the_length(model, vocabulary):
    # All draws at once would be 8 TB.
    assert len(next(charlm.generate(model, vocabulary, "a", 10**12))) == 1


def op_arguments(**change):
    arguments = {
        "prompt": torch.zeros(2, dtype=torch.int64),
        "draws": torch.zeros(3, dtype=torch.float64),
        "table": torch.zeros(5, 4),
        "hidden": torch.zeros(2, 1, 4),
        "weights": [torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4)],
        "out_weight": torch.zeros(5, 4),
        "out_bias": torch.zeros(5),
        "temperature": 1.0,
        "top_k": 5,
        "never": -1,
        "nonlinearity": "tanh",
    }
    return {**arguments, **change}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": torch.tensor([0, 5])}, "tokens must be from 0 to 4"),
        ({"prompt": torch.zeros(0, dtype=torch.int64)}, "prompt and draws must not be empty"),
        ({"draws": torch.zeros(0, dtype=torch.float64)}, "prompt and draws must not be empty"),
        ({"draws": torch.zeros(3)}, "draws must be on the CPU and of the dtype"),
        ({"table": torch.zeros(5, 4).double()}, "table must be on the CPU and of the dtype"),
        ({"hidden": torch.zeros(1, 1, 4)}, "hidden has an unexpected shape"),
        ({"weights": [torch.zeros(4, 4)] * 2}, "expected 3 weights for each layer"),
        ({"weights": []}, "expected 3 weights for each layer"),
        ({"weights": [torch.zeros(4, 5)]}, "weight_hh has an unexpected shape"),
        ({"out_weight": torch.zeros(4, 4)}, "out_weight has an unexpected shape"),
        ({"out_bias": torch.zeros(4)}, "out_bias has an unexpected shape"),
        ({"temperature": -1.0}, "temperature must not be negative, top_k must be positive"),
        ({"top_k": 0}, "temperature must not be negative, top_k must be positive"),
        ({"nonlinearity": "gelu"}, "nonlinearity must be 'tanh' or 'relu'"),
    ],
)
def test_checks_of_the_op_that_keep_memory_safe(change, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.rnn_ext._rnn_generate(**op_arguments(**change))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_a_score_that_is_nan_is_never_drawn(temperature, top_k):
    """NaN has no place in the order of scores that top_k selects by."""
    arguments = op_arguments(
        out_bias=torch.tensor([torch.nan, 1.0, torch.nan, 2.0, 0.5]),
        draws=torch.linspace(0, 0.999, 50, dtype=torch.float64),
        temperature=temperature,
        top_k=top_k,
    )
    tokens, _ = torch.ops.rnn_ext._rnn_generate(**arguments)
    likeliest = [3, 1, 4][: top_k if temperature else 1]
    assert set(tokens.tolist()) == set(likeliest)


def test_opcheck():
    torch.library.opcheck(
        torch.ops.rnn_ext._rnn_generate.default,
        (),
        op_arguments(),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder that `rnn-ext train` wrote."""
    folder = tmp_path_factory.mktemp("run")
    assert train(write_text(folder / "text.txt"), out=folder / "run") == 0
    return folder / "run"


def test_command_prints_the_prompt_and_as_many_characters_as_asked(run, capsys):
    assert main(["generate", str(run), "--prompt", "the ca", "--length", "30"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("the ca")
    assert out.endswith("\n")
    assert len(out) == len("the ca") + 30 + 1


def test_flags_of_the_command_reach_the_draws(run, capsys):
    def printed(*flags):
        assert main(["generate", str(run), "--prompt", "the", *flags]) == 0
        return capsys.readouterr().out

    default = printed()
    assert len(default) == len("the") + 200 + 1
    assert default == printed("--temperature", "0.8")
    greedy = printed("--temperature", "0")
    assert default != greedy == printed("--top-k", "1", "--temperature", "1")
    drawn = printed("--temperature", "1")
    assert drawn != greedy
    assert drawn == printed("--temperature", "1", "--seed", "0")
    assert drawn != printed("--temperature", "1", "--seed", "1")
    model, vocabulary = charlm.load(run)
    expected = text_of(model, vocabulary, "the", temperature=0.7, seed=5)
    assert printed("--temperature", "0.7", "--seed", "5") == f"the{expected}\n"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--prompt", "the Cat"], "argument --prompt: not in the vocabulary: 'C'"),
        (["--prompt=a", "--temperature=-1"], "argument --temperature: must be a number from 0"),
        (["--prompt=a", "--length=0"], "argument --length: must be a whole number from 1"),
        (["--threads=0"], "argument --threads: must be a whole number from 1"),
        (["--prompt=a", "--top-k=0"], "argument --top-k: must be a whole number from 1"),
    ],
)
def test_bad_command_is_a_one_line_error(run, capsys, flags, sentence):
    assert main(["generate", str(run), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"rnn-ext: {sentence}")
    assert err.count("\n") == 1
