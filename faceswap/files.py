"""Files appear under their final name only when they are whole, and nothing is overwritten unasked."""

import glob
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faceswap.errors import OutputExistsError


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `OutputExistsError` if `path` is there and `overwrite` is false."""
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists already; choose another name or add --overwrite")


def partial_name(path: Path) -> Path:
    """A hidden name beside `path`, with its suffix, that no other process uses."""
    owner = f"{platform.node()}-{os.getpid()}"
    return path.with_name(f".{path.stem}.{owner}.{uuid.uuid4().hex[:6]}.partial{path.suffix}")


def sweep(path: Path) -> None:
    """Remove what killed processes of this machine left behind of `path`."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*.partial*"):
        node, _, process = left.name[len(path.stem) + 2 :].split(".partial")[0].rpartition(".")[0].rpartition("-")
        if node != platform.node() or not process.isdigit() or _is_alive(int(process)):
            continue
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def share(path: Path) -> None:
    """Give a file the permissions that new files have here: some libraries write for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary name to write to; on success it is synced and becomes `path`, on failure it is removed.

    The rename is atomic (POSIX `rename`, Windows `MoveFileEx`): a reader sees the old file or the new, never a part.
    """
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    partial = partial_name(path)
    try:
        yield partial
        refuse_existing(path, overwrite)  # somebody may have come first while we worked
        sync(partial)
        partial.replace(path)
        if os.name == "posix":
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Like `whole_file` for a folder: built beside its final place, moved there in one step."""
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    partial = partial_name(path)
    partial.mkdir()
    try:
        yield partial
        refuse_existing(path, overwrite)
        if path.exists():
            old = partial_name(path)
            path.replace(old)
            partial.replace(path)
            shutil.rmtree(old)
        else:
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
