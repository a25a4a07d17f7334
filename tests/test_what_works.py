"""The page "What works with it" says what its script finds."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("what_works", DOCS / "what_works.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pickle looks for its classes
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()
ROWS = re.findall(
    r"^\| (?!---)(.+) \| (yes|no) \| (yes|no) \| (.*) \|$",
    (DOCS / "what-works.md").read_text(),
    re.M,
)


def test_the_page_has_the_lines_of_the_script() -> None:
    assert [(row[0], row[3]) for row in ROWS] == [(c.feature, c.note) for c in SCRIPT.CASES]
    assert (DOCS / "what-works.md").read_text().startswith(SCRIPT.INTRODUCTION)


# The other column is nn.RNN's, and may change with torch.
@pytest.mark.parametrize(
    ("case", "on_page"),
    [(case, row[2]) for case, row in zip(SCRIPT.CASES, ROWS, strict=True)],
    ids=[case.feature for case in SCRIPT.CASES],
)
def test_a_feature_works_as_the_page_says(case: Any, on_page: str) -> None:
    try:
        error = SCRIPT.failure(case, SCRIPT.OURS)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    assert ("no" if error else "yes") == on_page, error
