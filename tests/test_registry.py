"""Tests of faceswap.registry: a file dropped into a folder is a part."""

import importlib
import sys
from pathlib import Path

import pytest

from faceswap.errors import UsageError
from faceswap.registry import Socket, suggest


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Socket:
    """A socket with the parts `oak` and `elm`; importing `elm` fails."""
    folder = tmp_path / "some_trees"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "oak.py").write_text("def build(): return 'an oak'\n")
    (folder / "elm.py").write_text("raise RuntimeError('imported')\n")
    (folder / "notes.txt").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("some_trees")]:
        monkeypatch.delitem(sys.modules, name)
    return Socket("some_trees", "tree")


def test_parts_are_the_folders_modules_and_listing_imports_none(socket: Socket) -> None:
    assert socket.names() == ["elm", "oak"]
    assert "some_trees.oak" not in sys.modules


def test_a_part_is_loaded_by_its_file_name(socket: Socket) -> None:
    assert socket.load("oak").build() == "an oak"


def test_a_part_dropped_in_is_there(socket: Socket, tmp_path: Path) -> None:
    (tmp_path / "some_trees" / "ash.py").write_text("def build(): return 'an ash'\n")
    assert "ash" in socket.names() and socket.load("ash").build() == "an ash"


def test_a_part_that_does_not_import_says_why(socket: Socket) -> None:
    with pytest.raises(RuntimeError, match="imported"):
        socket.load("elm")


@pytest.mark.parametrize("name", ["oka", "Oak", "oak.py", "oak.x"])
def test_a_near_miss_is_told_what_was_meant(socket: Socket, name: str) -> None:
    with pytest.raises(UsageError, match=r"no tree called '.*'; did you mean 'oak'\?"):
        socket.load(name)


@pytest.mark.parametrize("name", ["zzzz", "", "..files"])
def test_an_unknown_name_is_told_what_there_is(socket: Socket, name: str) -> None:
    with pytest.raises(UsageError, match="known: elm, oak"):
        socket.load(name)


def test_suggest_names_the_nearest_or_all() -> None:
    assert suggest("learnin_rate", ["warmup", "learning_rate"]) == "did you mean 'learning_rate'?"
    assert suggest("q", {"b": 1, "a": 2}) == "known: a, b"


def test_the_sockets_of_the_package_hold_their_parts() -> None:
    for package, part in (("detectors", "mtcnn"), ("models", "df"), ("strategies", "full")):
        assert part in importlib.import_module(f"faceswap.{package}").SOCKET.names()


@pytest.mark.parametrize(
    ("package", "noun"),
    [
        ("detectors", "detector"),
        ("models", "model"),
        ("strategies", "strategy"),
    ],
)
def test_a_message_calls_the_part_by_its_noun(package: str, noun: str) -> None:
    with pytest.raises(UsageError, match=f"^no {noun} called 'zzzz'"):
        importlib.import_module(f"faceswap.{package}").SOCKET.load("zzzz")
