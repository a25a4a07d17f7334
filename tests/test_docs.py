"""The tutorial's code runs as it stands and prints what the page says, in both languages."""

import dataclasses
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from rnn_ext.charlm import Settings

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page, language):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_tutorial_prints_what_it_says():
    torch.set_num_threads(1)
    printed, names = [], {}
    for block in blocks("tutorial.md", "python"):
        out = StringIO()
        with redirect_stdout(out):
            exec(block, names)
        printed.append(out.getvalue())
    assert [text for text in printed if text] == blocks("tutorial.md", "text")


def test_translation_has_the_same_code_and_output():
    for language in ("python", "text"):
        assert blocks("tutorial.zh.md", language) == blocks("tutorial.md", language)


def test_pages_link_to_what_exists():
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), f"{page.name}: {target}"


def test_settings_table_is_that_of_the_class():
    rows = [
        f"| `{f.name}` | `{f.default}` | {f.metadata['help']} |\n".replace("<unk>", "`<unk>`")
        for f in dataclasses.fields(Settings)
    ]
    table = "".join(["| setting | default | |\n", "| --- | --- | --- |\n", *rows])
    assert table in (DOCS / "text-generator.md").read_text(encoding="utf-8")
