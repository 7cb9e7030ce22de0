"""Files appear under their final name only when they are whole, and nothing is overwritten unasked."""

import glob
import hashlib
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faceswap.errors import OutputExistsError, UsageError

LEFT = re.compile(r"\.(?P<stem>.*)\.(?P<node>[^.]*)-(?P<process>\d+)\.[0-9a-f]{6}\.(?P<kind>partial|replaced)(\..*)?")
LONGEST = 100  # characters of a name that a temporary name repeats


def shipped(folder: str) -> Path:
    """`configs` or `pretrained` as they travel with faceswap: inside an installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "_data" / folder
    return inside if inside.is_dir() else Path(__file__).parents[1] / folder


def weight_folders() -> list[Path]:
    """Where weights lie, in the order of search: $FACESWAP_PRETRAINED if it is set, the user's folder, those that ship.

    What is pulled goes to the first of them. Nobody says that they exist.
    """
    named, home = os.environ.get("FACESWAP_PRETRAINED"), user_data()
    mine = [Path(named)] if named else []
    return [*mine, *([home / "faceswap"] if home else []), shipped("pretrained")]


def user_data() -> Path | None:
    """Where programs keep a user's data on this system; None for a user without a home, as in some containers."""
    name = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_DATA_HOME")
    given = Path(os.environ.get(name, ""))
    if given.is_absolute():
        return given
    try:
        home = Path.home()
    except RuntimeError:
        return None
    usual = {"win32": "AppData/Local", "darwin": "Library/Application Support"}
    return home / usual.get(sys.platform, ".local/share")


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_note(path: Path) -> Path:
    """The file beside `path` that says what its sha256 was when it came, as `sha256sum -c` reads it."""
    return path.with_name(f"{path.name}.sha256")


def noted_sha256(path: Path) -> str | None:
    """The sha256 that was noted beside `path`, None if none was."""
    note = sha256_note(path)
    return note.read_text(errors="replace").partition(" ")[0] if note.is_file() else None


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `OutputExistsError` if `path` is there and `overwrite` is false."""
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists already; choose another name or add --overwrite")


def refuse_same(path: Path, inputs: Iterable[Path]) -> None:
    """`UsageError` if `path` is one of the files that the work reads, or a folder that holds one."""
    place = path.resolve()
    if any(place == given.resolve() or place in given.resolve().parents for given in inputs):
        raise UsageError(f"{path}: is the footage itself, which is never overwritten; choose another output")


def node() -> str:
    """This machine's name, as it stands in temporary names."""
    return platform.node().replace(".", "_")


def partial_name(path: Path, kind: str = "partial") -> Path:
    """A hidden name beside `path`, with its suffix, that no other process uses."""
    owner = f"{node()}-{os.getpid()}"
    return path.with_name(f".{path.stem[:LONGEST]}.{owner}.{uuid.uuid4().hex[:6]}.{kind}{path.suffix}")


def sweep(path: Path) -> None:
    """Put right what killed processes of this machine left behind of `path`: parts go, a folder that was just
    being replaced comes back."""
    for left in path.parent.glob(f".{glob.escape(path.stem[:LONGEST])}.*"):
        name = LEFT.fullmatch(left.name)
        if name is None or name["stem"] != path.stem[:LONGEST]:
            continue
        if name["node"] != node() or _is_alive(int(name["process"])):
            continue
        if name["kind"] == "replaced" and not path.exists():
            left.replace(path)
        else:
            _remove(left)


def sweep_inside(folder: Path) -> None:
    """Remove the parts of files that killed processes of this machine left behind in `folder`."""
    for left in folder.glob(".*.partial*"):
        name = LEFT.fullmatch(left.name)
        if name is not None and name["node"] == node() and not _is_alive(int(name["process"])):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # there is no harmless way to ask: what was left stays
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary name to write to; on success it is synced and becomes `path`, on failure it is removed.

    The rename is atomic (POSIX `rename`, Windows `MoveFileEx`): a reader sees the old file or the new, never a part.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    refuse_existing(path, overwrite)
    partial = partial_name(path)
    try:
        yield partial
        refuse_existing(path, overwrite)  # somebody may have come first while we worked
        sync(partial)
        partial.replace(path)
        if os.name == "posix":
            sync(path.parent)
    except OSError as error:
        _name(error, path, partial)
        raise
    finally:
        with suppress(OSError):  # of a disk that can't be written: the first error is the one that counts
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Like `whole_file` for a folder: built beside its final place, moved there in one step."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    refuse_existing(path, overwrite)
    partial = partial_name(path)
    try:
        partial.mkdir()
        yield partial
        refuse_existing(path, overwrite)
        if os.name == "posix":
            os.sync()  # one call for all the files
        if path.exists():
            _exchange(path, partial)
        else:
            partial.replace(path)
    except OSError as error:
        _name(error, path, partial)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _name(error: OSError, path: Path, partial: Path) -> None:
    """Let an error of the system name `path` where it names nothing or the hidden `partial`."""
    if error.filename is None or str(partial) in str(error.filename):
        error.filename = str(path)


def _exchange(path: Path, fresh: Path) -> None:
    """`fresh` becomes `path`. What was there goes; if that fails it comes back, if we are killed by `sweep`."""
    old = partial_name(path, "replaced")
    path.replace(old)
    try:
        fresh.replace(path)
    except BaseException:
        old.replace(path)
        raise
    _remove(old)
