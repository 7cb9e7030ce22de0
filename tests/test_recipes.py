"""The recipes that ship are complete, load, and say what faceswap/config.py says."""

import importlib.util
from pathlib import Path

import pytest

from faceswap import config

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("write_recipes", ROOT / "tools" / "write_recipes.py")
assert SPEC is not None and SPEC.loader is not None
write_recipes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(write_recipes)

FILES = sorted(path for path in (ROOT / "configs").glob("*.toml") if path.stem != "benchmark")


def test_the_files_are_those_that_the_tool_writes() -> None:
    assert {path.stem for path in FILES} == set(write_recipes.RECIPES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_up_to_date(path: Path) -> None:
    assert path.read_text() == write_recipes.text_of(path.stem), "run python tools/write_recipes.py"
    recipe = config.load(path)
    assert all(f"\n{key} = " in path.read_text() for key in recipe.train.model_dump())
    assert config.load(Path(path.stem)) == recipe, "found by name"


def test_every_option_says_what_it_means() -> None:
    text = write_recipes.text_of("swap_96")
    options = [line for line in text.splitlines() if " = " in line]
    assert len(options) > 40 and all("  # " in line for line in options)
