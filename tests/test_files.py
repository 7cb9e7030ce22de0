"""Tests of faceswap.files: whole or not at all, nothing overwritten unasked, nothing left behind."""

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faceswap import files
from faceswap.errors import OutputExistsError

HOLD = """
import sys
from pathlib import Path
from faceswap import files
with files.{kind}(Path(sys.argv[1]), overwrite=False) as partial:
    (partial / "part" if partial.is_dir() else partial).write_text("half")
    print(partial.name, flush=True)
    sys.stdin.read()
"""


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hold(path: Path, kind: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that is writing `path`, and the partial it writes to."""
    command = [sys.executable, "-c", HOLD.format(kind=kind), str(path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    return process, path.with_name(process.stdout.readline().strip())


def write(path: Path, text: str = "new", *, overwrite: bool = False) -> None:
    with files.whole_file(path, overwrite=overwrite) as partial:
        partial.write_text(text)


def write_folder(path: Path, text: str = "new", *, overwrite: bool = False) -> None:
    with files.whole_folder(path, overwrite=overwrite) as partial:
        (partial / "a").write_text(text)


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with files.whole_file(path, overwrite=False) as partial:
        partial.write_text("new")
        assert not path.exists()
        assert partial.parent == path.parent and partial.name.startswith(".") and partial.suffix == ".txt"
    assert inside(path.parent) == ["a.txt"] and path.read_text() == "new"


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with files.whole_folder(path, overwrite=False) as partial:
        (partial / "a").write_text("new")
        assert not path.exists()
    assert inside(tmp_path) == ["set"] and inside(path) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), files.whole_file(tmp_path / "a.txt", overwrite=True) as partial:
        partial.write_text("half")
        raise error
    assert inside(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    write_folder(tmp_path / "set", "old")
    with pytest.raises(type(error)), files.whole_folder(tmp_path / "set", overwrite=True) as partial:
        (partial / "b").write_text("half")
        raise error
    assert inside(tmp_path) == ["set"] and inside(tmp_path / "set") == ["a"]


def test_a_disk_that_fills_up_at_the_last_moment_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a.txt")
    assert inside(tmp_path) == []


@pytest.mark.parametrize("make", [write, write_folder])
def test_what_exists_is_refused_before_any_work(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "a", "old")
    with pytest.raises(OutputExistsError, match=r"exists already.*--overwrite"):
        make(tmp_path / "a", "new")
    old = tmp_path / "a"
    assert inside(tmp_path) == ["a"] and (old if old.is_file() else old / "a").read_text() == "old"


def test_who_comes_first_wins_even_while_we_work(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(OutputExistsError), files.whole_file(path, overwrite=False) as partial:
        partial.write_text("mine")
        path.write_text("theirs")
    assert inside(tmp_path) == ["a.txt"] and path.read_text() == "theirs"


def test_overwrite_replaces_a_file_and_a_whole_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    write(tmp_path / "a", "new", overwrite=True)
    write_folder(tmp_path / "set", "old")
    (tmp_path / "set" / "stale").touch()
    write_folder(tmp_path / "set", "new", overwrite=True)
    assert (tmp_path / "a").read_text() == "new"
    assert inside(tmp_path) == ["a", "set"] and inside(tmp_path / "set") == ["a"]


@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_the_partial_of_a_killed_process_is_swept_and_that_of_a_live_one_is_not(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out[1].mp4"
    process, partial = hold(path, kind)
    try:
        files.sweep(path)
        assert partial.exists()
    finally:
        process.kill()
        process.communicate()
    assert partial.exists()
    files.sweep(path)
    assert inside(tmp_path) == []


def test_sweep_leaves_other_machines_other_outputs_and_unknown_names(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = f"{platform.node()}-{dead.pid}.abcdef.partial.mp4"
    kept = [
        f".a.elsewhere-{dead.pid}.abcdef.partial.mp4",
        f".a.b.{here}",
        f".ab.{here}",
        ".a.notes.partial.mp4",
        "a.mp4",
    ]
    for name in [*kept, f".a.{here}"]:
        (tmp_path / name).touch()
    files.sweep(tmp_path / "a.mp4")
    assert inside(tmp_path) == sorted(kept)


def test_a_process_of_another_user_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(process: int, signal: int) -> None:
        raise PermissionError

    partial = files.partial_name(tmp_path / "a.mp4")
    partial.touch()
    monkeypatch.setattr(os, "kill", forbidden)
    files.sweep(tmp_path / "a.mp4")
    assert partial.exists()


def test_a_folder_that_cannot_be_moved_into_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "set", Path.replace
    write_folder(path, "old")

    def refuse(self: Path, target: Path) -> Path:
        if target == path and "partial" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write_folder(path, "new", overwrite=True)
    assert (path / "a").read_text() == "old"


def test_a_linked_folder_can_be_overwritten(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk", "old")
    (tmp_path / "set").symlink_to(tmp_path / "disk", target_is_directory=True)
    write_folder(tmp_path / "set", "new", overwrite=True)
    assert inside(tmp_path) == ["disk", "set"] and (tmp_path / "set" / "a").read_text() == "new"


def test_a_folder_whose_replacement_was_killed_comes_back(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = tmp_path / f".set.{platform.node()}-{dead.pid}.abcdef.replaced"
    write_folder(old, "old")
    files.sweep(tmp_path / "set")
    assert inside(tmp_path) == ["set"] and (tmp_path / "set" / "a").read_text() == "old"
    write_folder(old, "older")
    files.sweep(tmp_path / "set")
    assert inside(tmp_path) == ["set"] and (tmp_path / "set" / "a").read_text() == "old"


@pytest.mark.parametrize("whole", [files.whole_file, files.whole_folder])
def test_an_error_names_the_output_or_what_it_named_itself(tmp_path: Path, whole: Callable[..., Any]) -> None:
    path = tmp_path / "out"
    for named in (None, "input.png"):
        with pytest.raises(OSError, match="full") as caught, whole(path, overwrite=False) as partial:
            partial.touch()
            raise OSError(errno.ENOSPC, "full", named)
        assert caught.value.filename == (named or str(path))
    with pytest.raises(OSError, match="full") as caught, whole(path, overwrite=False) as partial:
        raise OSError(errno.ENOSPC, "full", str(partial / "face.png"))
    assert caught.value.filename == str(path)


def test_weights_lie_in_the_named_folder_the_users_and_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = files.shipped("pretrained")
    monkeypatch.delenv("FACESWAP_PRETRAINED", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert files.weight_folders() == [tmp_path / "faceswap", shipped]
    monkeypatch.setenv("FACESWAP_PRETRAINED", "mine")
    assert files.weight_folders() == [Path("mine"), tmp_path / "faceswap", shipped]


@pytest.mark.parametrize(
    ("system", "usual"),
    [
        ("linux", ".local/share/faceswap"),
        ("darwin", "Library/Application Support/faceswap"),
        ("win32", "AppData/Local/faceswap"),
    ],
)
def test_the_users_folder_is_where_the_system_has_such_things(
    system: str, usual: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("FACESWAP_PRETRAINED", "")
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert files.weight_folders()[0] == tmp_path / usual


def test_a_user_without_a_home_has_no_folder_and_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("FACESWAP_PRETRAINED", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert files.weight_folders() == [files.shipped("pretrained")]


def test_a_sha256_is_noted_as_other_tools_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"abc")
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.noted_sha256(path) is None
    files.sha256_note(path).write_text(f"{files.sha256(path)}  {path.name}\n")
    assert files.noted_sha256(path) == files.sha256(path)
    files.sha256_note(path).write_bytes(b"\xff")
    assert files.noted_sha256(path) not in (None, files.sha256(path))
