"""The README's Python runs as it stands, from top to bottom."""

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_and_report_what_the_readme_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    # What `explain` prints depends on the machine.
    reported = [line for line in capsys.readouterr().out.splitlines() if " is now " in line]
    assert reported
    assert all(f"# {line}\n" in README for line in reported)
