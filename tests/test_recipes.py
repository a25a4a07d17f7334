"""The recipes in `examples/`: their loops equal the layers, and each draws its figure."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from support import using_threads

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

# Arguments for a run of seconds.
RECIPES = {
    "adding": {"steps": 3},
    "chunks": {"chunks": 8},
    "decision": {"steps": 2, "trials": 5},
    "long_sequences": {"lengths": (64,)},
    "ppo": {"updates": 2},
    "spiking": {"steps": 2},
}


def run(name, monkeypatch, folder):
    monkeypatch.chdir(folder)
    with using_threads(1):
        import_module(name).main(**RECIPES[name])


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_compares_with_a_loop_and_draws_its_figure(name, tmp_path, monkeypatch, capsys):
    run(name, monkeypatch, tmp_path)
    assert re.search(r"\bloop.*\d m?s\b", capsys.readouterr().out)
    (figure,) = tmp_path.iterdir()
    assert figure.name == f"{name}.png"
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "long_sequences"])
def test_a_loop_with_other_values_is_refused(name, tmp_path, monkeypatch):
    recipe = import_module(name)
    loop = recipe.loop
    monkeypatch.setattr(recipe, "loop", lambda *args, **kwargs: 1.001 * loop(*args, **kwargs))
    with pytest.raises(AssertionError, match="not close"):
        run(name, monkeypatch, tmp_path)


def test_every_recipe_is_on_the_page_with_its_figure():
    examples = (ROOT / "examples").glob("*.py")
    recipes = {path.stem for path in examples if "savefig" in path.read_text(encoding="utf-8")}
    assert recipes == set(RECIPES)
    for name in RECIPES:
        assert f"python examples/{name}.py" in PAGE
        assert f"](recipes/{name}.png)" in PAGE
