"""The page "What works with it" matches the output of its script."""

import re
from pathlib import Path

import pytest
import what_works

DOCS = Path(__file__).resolve().parents[1] / "docs"
OUTCOMES = len(what_works.TORCHS) + len(what_works.OURS)
ROWS = re.findall(
    rf"^\| (?!---)(.+?) \| ((?:(?:yes|no) \| ){{{OUTCOMES}}})(.*) \|$",
    (DOCS / "what-works.md").read_text(),
    re.M,
)
# They generate code, for seconds. test_inductor.py does so with all kinds at once.
SLOW = ("`torch.compile`, gradients included", "AOTInductor")


def trials():
    """Each case with each of our layers, and what the page says of it."""
    for case, (_, outcomes, _) in zip(what_works.CASES, ROWS, strict=True):
        ours = outcomes.split(" | ")[len(what_works.TORCHS) : OUTCOMES]
        for modules, on_page in zip(what_works.OURS, ours, strict=True):
            is_slow = case.feature in SLOW and modules.kind != "RNN"
            marks = [pytest.mark.slow] if is_slow else []
            name = f"{modules.kind}-{case.feature}"
            yield pytest.param(case, modules, on_page, marks=marks, id=name)


def test_the_page_has_the_lines_of_the_script():
    assert [(row[0], row[2]) for row in ROWS] == [(c.feature, c.note) for c in what_works.CASES]
    assert (DOCS / "what-works.md").read_text().startswith(what_works.INTRODUCTION)


# The other columns are torch's, and may change with it.
@pytest.mark.parametrize(("case", "modules", "on_page"), list(trials()))
def test_a_feature_works_as_the_page_says(case, modules, on_page):
    try:
        error = what_works.failure(case, modules)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    outcome = "no" if error else "yes"
    if outcome != on_page and case.note == "torch's own op":
        # That of another release of torch than the page's may run more or less.
        torchs = what_works.TORCHS[what_works.OURS.index(modules)]
        on_page = "no" if what_works.failure(case, torchs) else "yes"
    assert outcome == on_page, error
