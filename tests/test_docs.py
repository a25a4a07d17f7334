"""README and documentation: code runs and prints what the page says, links lead somewhere."""

import dataclasses
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

import rnn_ext
from rnn_ext import charlm
from rnn_ext.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """Language and content of each code block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


PAGES_WITH_PYTHON = [page for page in PAGES if "python" in dict(blocks(page))]


def on_any_machine(text):
    """The output of `explain` without the parts that depend on the CPU and the release of torch."""
    text = re.sub(r"generic|avx\w+", "ISA", text)
    text = re.sub(r"\d of 2 threads( sharing the \w+ \w+)?", "THREADS", text)
    return re.sub(r"autograd (node in C\+\+|Function in Python)", "NODE", text)


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch):
    """A text block after a Python block is the output of that block."""
    monkeypatch.chdir(tmp_path)  # for files that the page writes
    torch.set_num_threads(1 if page.stem.startswith("tutorial") else 2)
    names = {}
    printed = None
    for language, content in [*blocks(page), ("end", "")]:
        if printed:
            assert language == "text", f"not on the page: {printed}"
        if language == "text" and printed is not None:
            assert on_any_machine(printed) == on_any_machine(content)
        printed = None
        if language == "python":
            out = StringIO()
            with redirect_stdout(out):
                exec(content, names)
            printed = out.getvalue()


def test_translation_has_the_same_code_and_output():
    assert blocks(DOCS / "tutorial.zh.md") == blocks(DOCS / "tutorial.md")


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {
        line
        for block in re.findall(r"```{toctree}\n(.*?)```", index, re.S)
        for line in block.split()
    }
    assert {page.stem for page in DOCS.glob("*.md")} - listed == {"index"}


def test_the_api_reference_has_every_public_name():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto\w+:: ([\w.]+)", page, re.MULTILINE)
    public = [
        f"{module.__name__}.{name}"
        for module in (rnn_ext, rnn_ext.functional, rnn_ext.onnx, charlm)
        for name in module.__all__
    ]
    assert set(public) - set(listed) == {"rnn_ext.functional"}
    assert set(listed) - set(public) == {"rnn_ext.charlm"}


def test_every_test_file_is_in_the_table_of_promises():
    page = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    table = page.partition("| promise | files |")[2].partition("\n## ")[0]
    rows = [row.split("|") for row in table.splitlines() if row.count("|") == 3]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row[2])]
    files = [path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")]
    assert sorted(listed) == sorted(files)


def test_flags_in_commands_exist(capsys):
    """Each `rnn-ext COMMAND --flag` on any page, against what the command itself lists."""
    used = {}
    for page in PAGES:
        for line in re.findall(r"rnn-ext \w[^`\n]*|rnn_ext train [^`\n]*", page.read_text("utf-8")):
            used.setdefault(line.split()[1], set()).update(re.findall(r" (--[\w-]+)", line))
    assert {"demo", "train", "generate", "bench", "info"} <= set(used)
    for command, flags in used.items():
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert flags <= set(re.findall(r"--[\w-]+", capsys.readouterr().out)), command


def test_settings_table_matches_the_class():
    rows = [
        f"| `{f.name}` | `{f.default}` | {f.metadata['help']} |\n".replace("<unk>", "`<unk>`")
        for f in dataclasses.fields(charlm.Settings)
    ]
    table = "".join(["| setting | default | |\n", "| --- | --- | --- |\n", *rows])
    assert table in (DOCS / "text-generator.md").read_text(encoding="utf-8")
