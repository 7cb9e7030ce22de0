"""What the README says is there, is there."""

import re
from pathlib import Path

import blocks

from faceswap.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_every_command_line_in_it_parses() -> None:
    lines = blocks.commands(ROOT / "README.md")
    assert {words[0] for words in lines} == set(main.commands)
    for words in lines:
        blocks.parse(words)  # UsageError if an option is missing or unknown


def test_ci_runs_its_test_command() -> None:
    inside = TEXT.split("<!-- test -->")[1].split("<!-- /test -->")[0]
    (command,) = re.findall(r"^```\n(.*)\n```$", inside, re.MULTILINE)
    assert command.startswith("python3 -m venv") and command.endswith("tools/check")
    assert "<!-- test -->" in (ROOT / ".ci" / "run").read_text()
    check = (ROOT / "tools" / "check").read_text()
    for part in ("ruff check .", "ruff format --check .", "mypy faceswap", "pytest"):
        assert part in check


def test_its_tree_names_every_module_and_no_other() -> None:
    tree = next(block for block in BLOCKS if "  cli.py" in block).split("faceswap/\n")[1]
    named = set(re.findall(r"(\w+\.py|\w+/)  ", tree))
    package = ROOT / "faceswap"
    there = {path.name for path in package.glob("*.py") if path.name[0] != "_"}
    there |= {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert named == there


def test_its_links_and_recipes_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
    for recipe in re.findall(r"`(?:--config )?((?:swap|pretrain)_\d+)`", TEXT):
        assert (ROOT / "configs" / f"{recipe}.toml").exists(), recipe


def test_every_file_of_the_top_level_is_one_that_we_want() -> None:
    wanted = {"configs", "docs", "faceswap", "pretrained", "tests", "tools", ".ci", ".gitignore", "pyproject.toml"}
    wanted |= {"README.md", "CHANGELOG.md", "LICENSE"}
    assert wanted <= {path.name for path in ROOT.iterdir()}
