"""Many small files in one, memory-mapped: a faceset of 100,000 faces that opens in a second and copies in one piece.

A pack is a ZIP file that stores its members as they are, so that any ZIP tool shows and unpacks it, and no tool of ours
is needed to get at the images. Reading 100,000 entries of a ZIP directory takes seconds, so the last member,
`index.json`, says again where each file lies, and the ZIP's comment says where the index lies.

Convention: names are plain file names; bytes are returned as they went in, checked against their CRC-32.
"""

import json
import mmap
import re
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from faceswap import files
from faceswap.errors import FacesetError, UsageError

SUFFIX = ".faces"
INDEX = "index.json"
VERSION = 1
COMMENT = re.compile(rb"faceswap pack, index at (\d{1,18}), (\d{1,18}) bytes, crc (\d{1,10})")
END = 22 + 100  # bytes of a ZIP's end record and, at most, of our comment
COLUMNS = ("offsets", "sizes", "checks")  # of the index: where a file's bytes lie, how many, their CRC-32
DIRECTORY = b"PK\1\2"  # what a ZIP's directory begins with
DATE = (1980, 1, 1, 0, 0, 0)  # of all members: the same faces give the same file


def is_pack(path: Path) -> bool:
    """Whether `path` is to be read as a pack: a file named so."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def check_name(out: Path) -> None:
    """`UsageError` if a pack cannot be written to `out`."""
    if out.suffix.lower() != SUFFIX or out.is_dir():
        found = "a folder" if out.is_dir() else out.suffix or "no suffix"
        raise UsageError(f"{out}: expected the name of a pack, NAME{SUFFIX}, found {found}; choose another -o")


def write(out: Path, members: Iterable[tuple[str, str | None, bytes]], *, overwrite: bool = False) -> int:
    """Write a pack of (file name, key, content), which appears when it is whole; returns how many members it has.

    The key names a face and keeps the order; None for what is no face.
    """
    check_name(out)
    names: list[str] = []
    keys: list[str | None] = []
    places: list[tuple[int, int, int]] = []  # offset, size, CRC-32
    with (
        files.whole_file(out, overwrite=overwrite) as partial,
        partial.open("wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, key, content in members:
            if not is_plain(name):
                raise FacesetError(f"{name!r}: expected a name that every system takes for a file; rename it")
            names.append(name)
            keys.append(key)
            places.append(_put(archive, file, name, content))
        index: dict[str, Any] = {"version": VERSION, "names": names, "keys": keys}
        for i, column in enumerate(COLUMNS):
            index[column] = [place[i] for place in places]
        offset, size, check = _put(archive, file, INDEX, json.dumps(index, separators=(",", ":")).encode())
        archive.comment = f"faceswap pack, index at {offset}, {size} bytes, crc {check}".encode()
    return len(names)


def _put(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes) -> tuple[int, int, int]:
    """Add a member; where its bytes lie in `file`, how many there are, and their CRC-32."""
    archive.writestr(zipfile.ZipInfo(name, DATE), content)
    return file.tell() - len(content), len(content), zlib.crc32(content)


def is_plain(name: Any) -> bool:
    """Whether a name stays inside its folder and is visible, on every system."""
    return isinstance(name, str) and 0 < len(name) < 256 and name[0] != "." and not re.search(r"[/\\:\x00-\x1f]", name)


class Pack:
    """A pack that is open: its `names`, their `keys`, and the bytes behind them. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """`FacesetError` if the file is no pack, or a damaged one. No image is read."""
        self.path = path
        with path.open("rb") as file:
            try:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file
                raise self._broken("it is empty") from None
        index = self._index()
        self.names: list[str] = index["names"]
        self.keys: list[str | None] = index["keys"]
        self._places = np.stack([index[column] for column in COLUMNS], 1)
        self._rows = {name: row for row, name in enumerate(self.names)}
        if len(self._rows) < len(self.names):
            raise self._broken("two files have one name")

    def read(self, name: str) -> bytes:
        """The bytes of a file. `KeyError` for a name that is not there, `FacesetError` if they have changed."""
        offset, size, check = map(int, self._places[self._rows[name]])
        content = self._bytes[offset : offset + size]
        if zlib.crc32(content) != check:
            raise FacesetError(f"{self.path / name}: damaged, its bytes have changed; pack the faces again")
        return content

    def head(self, name: str, size: int) -> bytes:
        """The first bytes of a file, unchecked: enough for what stands before the pixels."""
        offset, whole, _ = map(int, self._places[self._rows[name]])
        return self._bytes[offset : offset + min(size, whole)]

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def _broken(self, why: str) -> FacesetError:
        return FacesetError(
            f"{self.path}: expected a whole pack of faces, found otherwise: {why}; pack the faces again, or take out "
            "with a ZIP tool what is left"
        )

    def _index(self) -> dict[str, Any]:
        """What `write` noted, checked: nothing in it can lead outside the file."""
        comment = COMMENT.search(self._bytes[-END:])
        if comment is None or comment.end() != min(len(self._bytes), END):
            raise self._broken("its end is not that of a pack")
        offset, size, check = map(int, comment.groups())
        text = self._bytes[offset : offset + size]
        behind = self._bytes[offset + size : offset + size + 4]  # the ZIP's directory, if nothing was added
        if len(text) != size or zlib.crc32(text) != check or behind != DIRECTORY:
            raise self._broken("its index does not lie where it should, as when another tool changed the file")
        try:
            index = json.loads(text)
            version = int(index["version"])
            if version != VERSION:
                raise FacesetError(f"{self.path}: pack of version {version}, expected {VERSION}; update faceswap")
            return self._checked(index, offset)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise self._broken("its index is not one") from None

    def _checked(self, index: dict[str, Any], end: int) -> dict[str, Any]:
        """`ValueError` unless the columns are as long as each other, well typed and inside the file."""
        names, keys = index["names"], index["keys"]
        sound = isinstance(names, list) and isinstance(keys, list) and len(names) == len(keys)
        if not (sound and all(map(is_plain, names)) and all(isinstance(key, str | None) for key in keys)):
            raise ValueError("names")
        for column in COLUMNS:
            numbers = np.array(index[column] or np.empty(0, np.int64))
            if numbers.dtype != np.int64 or numbers.shape != (len(names),) or (numbers < 0).any():
                raise ValueError(column)
            index[column] = numbers
        if (index["offsets"] > end).any() or (index["sizes"] > end - index["offsets"]).any():
            raise ValueError("a file lies outside")
        return index


def opened(path: Path) -> Pack:
    """The pack at `path`, opened once in a process, and anew when the file has changed."""
    state = path.stat()
    return _opened(path.absolute(), state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _opened(path: Path, inode: int, size: int, changed: int) -> Pack:
    return Pack(path)
