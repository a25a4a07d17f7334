"""The page "What works with it" matches the output of its script."""

import re
from pathlib import Path

import pytest
import what_works

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROWS = re.findall(
    r"^\| (?!---)(.+) \| (yes|no) \| (yes|no) \| (.*) \|$",
    (DOCS / "what-works.md").read_text(),
    re.M,
)


def test_the_page_has_the_lines_of_the_script():
    assert [(row[0], row[3]) for row in ROWS] == [(c.feature, c.note) for c in what_works.CASES]
    assert (DOCS / "what-works.md").read_text().startswith(what_works.INTRODUCTION)


# The other column is nn.RNN's, and may change with torch.
@pytest.mark.parametrize(
    ("case", "on_page"),
    [(case, row[2]) for case, row in zip(what_works.CASES, ROWS, strict=True)],
    ids=[case.feature for case in what_works.CASES],
)
def test_a_feature_works_as_the_page_says(case, on_page):
    try:
        error = what_works.failure(case, what_works.OURS)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    assert ("no" if error else "yes") == on_page, error
