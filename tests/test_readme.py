"""The speeds that README and docs state are those of the recorded results.

`make bench` measures and records them again.
"""

import json
import re
from math import prod
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESETS = (ROOT / "docs" / "resets.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
MODES = ("forward", "training")
KINDS = ("RNN", "GRU", "LSTM")


def load(name):
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return results


def summaries(name):
    return [next(s for s in load(name)["summary"] if s["mode"] == mode) for mode in MODES]


def test_headline_is_that_of_the_grid():
    forward, training = summaries("grid")
    words = " ".join(README.split())
    assert (
        f"**{forward['geometric_mean']:.2f}× faster inference and "
        f"{training['geometric_mean']:.2f}× faster training**" in words
    )
    assert f"gains are {forward['worst']:.2f}× and {training['worst']:.2f}×" in words
    assert f"over {len(load('grid')['cells'])} shapes" in words
    alone = [f"{s['geometric_mean']:.2f}×" for s in summaries("grid-1-thread")]
    assert f"On one core it is {' and '.join(alone)}" in words


@pytest.mark.parametrize(("name", "threads"), [("grid", 2), ("grid-1-thread", 1)])
def test_table_of_the_grid(name, threads):
    for mode, s in zip(MODES, summaries(name), strict=True):
        row = f"| {threads} | {mode} | {s['geometric_mean']:.2f}× | {s['worst']:.2f}× |"
        assert row in PERFORMANCE


SIZES = {
    "| 1 | 32 to 1024": lambda case: case["batch_size"] == 1,
    "| 8 | 32 to 1024": lambda case: case["batch_size"] == 8,
    "| 32, 128 | 32, 128": lambda case: case["batch_size"] >= 32 and case["hidden_size"] <= 128,
    "| 32, 128 | 512, 1024": lambda case: case["batch_size"] >= 32 and case["hidden_size"] >= 512,
}


def ranges(choice):
    """Smallest and largest ratio of the chosen cells, forward and in training."""
    cells = [cell for cell in load("grid")["cells"] if choice(cell["case"])]
    ratios = [[cell[mode]["hot"]["ratio"]["median"] for cell in cells] for mode in MODES]
    return [f"{min(r):.1f}–{max(r):.1f}×" for r in ratios]


def test_ranges_by_size():
    for sizes, choice in SIZES.items():
        assert f"{sizes} | {' | '.join(ranges(choice))} |" in PERFORMANCE
    for sizes, choice in (
        ("batch 1 or 8", lambda case: case["batch_size"] <= 8),
        ("batch ≥ 32, hidden size ≤ 128", SIZES["| 32, 128 | 32, 128"]),
        ("batch ≥ 32, hidden size ≥ 512", SIZES["| 32, 128 | 512, 1024"]),
    ):
        forward, training = ranges(choice)
        assert f"| {sizes} | {forward} forward, {training} training" in README


def ratios(name, mode, threads=2):
    """The ratios of all cells, hot."""
    cells = [cell for cell in load(name)["cells"] if cell["threads"] == threads]
    return [cell[mode]["hot"]["ratio"]["median"] for cell in cells]


def test_rows_of_gru_and_lstm():
    for name in ("gru", "lstm"):
        found = [f"{min(r):.1f}–{max(r):.1f}×" for r in (ratios(name, mode) for mode in MODES)]
        row = f"| `nn.{name.upper()}`, batch 1 to 32 | {found[0]} forward, {found[1]} training"
        assert row in README
        means = [
            next(s for s in load(name)["summary"] if s["mode"] == mode and s["threads"] == 2)
            for mode in MODES
        ]
        words = " and ".join(f"{s['geometric_mean']:.2f}×" for s in means)
        assert f"`{name.upper()}` is {words} as fast as `nn.{name.upper()}`" in README
    cells = [r for name in ("gru", "lstm") for mode in MODES for r in ratios(f"{name}-cells", mode)]
    row = "| `GRUCell`, `LSTMCell` in a Python loop | "
    assert f"{row}{min(cells):.1f}–{max(cells):.1f}× for the cell; slower in training" in README
    for name in ("gru", "lstm"):
        slower = [r for mode in MODES for r in ratios(f"{name}-cells", mode, 1) if r < 1]
        assert len(slower) == 1


def test_row_of_recurrences():
    """The layers of six cells, on one thread, against a loop over time."""
    cells = load("recurrences-1-thread")["cells"]
    gains = [
        cell["training"]["hot"]["ratio"]["median"]
        for cell in cells
        if cell["baseline"] == "loop" and cell["case"]["seq_len"] > 1
    ]
    row = "| a recurrence of your own in a Python loop | "
    assert f"{row}{min(gains):.1f}–{max(gains):.1f}× in training on one core" in README


def by_shape(name, baseline, mode, threads):
    """The ratios of the calls, hot: by sizes, then by name."""
    found = {}
    for cell in load(name)["cells"]:
        if (cell["threads"], cell["baseline"]) == (threads, baseline):
            case = cell["case"]
            shape = "×".join(str(case[size]) for size in ("seq_len", "batch_size", "hidden_size"))
            by_name = found.setdefault(shape, {})
            by_name[case.get("name", "")] = cell[mode]["hot"]["ratio"]["median"]
    return found


def digits(ratio):
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def test_row_and_page_of_resets():
    gains = by_shape("resets", "loop with resets", "training", 1)
    for shape, of in gains.items():
        assert f"| {shape} | {' | '.join(digits(of[kind]) for kind in KINDS)} |" in RESETS
    every = [gain for of in gains.values() for gain in of.values()]
    row = "| a loop over time steps for resets at episode starts | "
    assert f"{row}{digits(min(every))}–{digits(max(every))}× in training on one core" in README
    costs = [
        100 * (1 / ratio - 1)
        for mode in MODES
        for of in by_shape("resets", "no resets", mode, 1).values()
        for kind, ratio in of.items()
        if kind != "RNN"
    ]
    assert f"takes up to {max(costs):.0f} % longer" in RESETS
    forward, training = (
        max(1 / of["RNN"] for of in by_shape("resets", "no resets", mode, 1).values())
        for mode in MODES
    )
    assert (
        f"in training at most {training:.2f} times as long as without resets, "
        f"forward at most {forward:.2f} times;" in RESETS
    )


def test_gains_of_whole_training_steps_are_those_of_the_example():
    """The page has the command's output, on two threads and on one."""
    page = (ROOT / "docs" / "swapping.md").read_text(encoding="utf-8")
    gains = [float(gain) for gain in re.findall(r" (\d+\.\d\d)x$", page, re.MULTILINE)]
    assert len(gains) == 16
    for text in (README, PERFORMANCE):
        assert f"{min(gains):.1f}–{max(gains):.1f}×" in text
    assert f"| a whole training step of a model | {min(gains):.1f}–{max(gains):.1f}×" in README


def test_gains_of_cells():
    gains = [
        ratio
        for mode in MODES
        for shape, of in by_shape("cells", "nn.RNNCell", mode, 2).items()
        for ratio in of.values()
        if not shape.endswith("1024")
    ]
    words = f"{min(gains):.1f}–{max(gains):.1f}×"
    assert f"| `RNNCell` in a Python loop | {words} for the cell up to 256 units" in README
    assert f"`rnn_ext.RNNCell` is {words} as fast as `nn.RNNCell` up to 256 units" in PERFORMANCE
    slowest = min(
        of[""] for mode in MODES for of in by_shape("cells", "nn.RNNCell", mode, 1).values()
    )
    assert f"takes up to {1 / slowest:.2f} times as long" in " ".join(PERFORMANCE.split())


def test_gains_of_frozen_copies():
    one, two = (by_shape("frozen", "not frozen", "forward", threads) for threads in (1, 2))
    for shape, of in one.items():
        steps, _, units = shape.split("×")
        row = f"| {steps} step{'s' * (steps != '1')}, {units} units"
        assert f"{row} | {of['']:.2f} | {two[shape]['']:.2f} |" in PERFORMANCE
    gain = min(of["1×1×1024"][""] for of in (one, two))
    assert f"one step of 1024 units is {gain:.1f}× as fast" in README


def test_table_of_real_calls():
    cells = load("real")["cells"]
    assert f"\n{len(cells)} calls, " in PERFORMANCE
    for mode, s in zip(MODES, summaries("real"), strict=True):
        largest = max(cell[mode]["hot"]["ratio"]["median"] for cell in cells)
        assert (
            f"| {mode} | {s['geometric_mean']:.2f}× | {s['worst']:.2f}× | {largest:.2f}× |"
            in PERFORMANCE
        )


def test_table_of_other_runtimes():
    cells = load("peers")["cells"]

    def figures(name, mode):
        seconds = [cell[mode]["peer_seconds"] for cell in cells]
        ratios = [
            median(a / b for a, b in zip(s[name], s["rnn_ext"], strict=True))
            for s in seconds
            if name in s
        ]
        if not ratios:
            return ""
        mean = prod(ratios) ** (1 / len(ratios))
        return f"{mean:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"

    names = {
        "torch.nn": "`nn.RNN`",
        "torch.compile": "a loop under `torch.compile`",
        "ONNX Runtime": "ONNX Runtime",
        "OpenVINO": "OpenVINO",
        "JAX": "JAX",
    }
    for page in (README, PERFORMANCE):
        for name, label in names.items():
            (row,) = (line for line in page.splitlines() if line.startswith(f"| {label}"))
            for mode in MODES:
                assert figures(name, mode) in row
