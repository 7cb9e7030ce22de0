"""Tests of faceswap.pack: many files in one, of which damage is said in one line."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from faceswap import curate, evaluate, pack, swap, train
from faceswap.config import Recipe
from faceswap.errors import FacesetError, OutputExistsError, UsageError
from faceswap.faceset import Faceset, mask_path, open_all, read_bytes, read_image, read_images, read_mask, read_meta

FILES = {"a.png": b"first", "a.mask.png": b"", "ü.jpg": bytes(range(256)) * 9}


def members(contents: dict[str, bytes]) -> Iterator[tuple[str, str | None, bytes]]:
    for name, content in contents.items():
        yield name, None if "mask" in name else f"0:clip:{name}", content


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "set.faces"
    assert pack.write(path, members(FILES)) == len(FILES)
    return path


@pytest.fixture(scope="module")
def sides(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The facesets of the tests, packed."""
    folder = tmp_path_factory.mktemp("packed")
    for name, path in facesets.items():
        curate.pack_faces(path, folder / f"{name}.faces")
    return {name: folder / f"{name}.faces" for name in facesets}


# ---------------------------------------------------------------- the container


def test_bytes_come_back_as_they_went_in(packed: Path) -> None:
    held = pack.Pack(packed)
    assert {name: held.read(name) for name in held.names} == FILES
    assert held.keys == ["0:clip:a.png", None, "0:clip:ü.jpg"]
    assert "a.png" in held and "b.png" not in held
    assert held.head("ü.jpg", 3) == b"\0\1\2" and held.head("a.png", 99) == b"first"


def test_a_pack_is_a_zip_file_to_others(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in FILES} == FILES
        assert json.loads(archive.read("index.json"))["version"] == pack.VERSION
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def test_the_same_faces_give_the_same_file(packed: Path, tmp_path: Path) -> None:
    pack.write(tmp_path / "again.faces", members(FILES))
    assert (tmp_path / "again.faces").read_bytes() == packed.read_bytes()


def test_an_empty_pack_is_whole_and_holds_no_faces(tmp_path: Path) -> None:
    pack.write(tmp_path / "none.faces", iter(()))
    assert pack.Pack(tmp_path / "none.faces").names == []
    with pytest.raises(FacesetError, match="none in it"):
        Faceset.open(tmp_path / "none.faces")


def test_every_truncation_is_said_and_none_is_read(packed: Path, tmp_path: Path) -> None:
    whole, cut = packed.read_bytes(), tmp_path / "cut.faces"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(FacesetError, match=r"cut\.faces: expected a whole pack"):
            pack.Pack(cut)


def test_every_flipped_byte_is_noticed_or_harmless(packed: Path, tmp_path: Path) -> None:
    whole, hurt = packed.read_bytes(), tmp_path / "hurt.faces"
    noticed = 0
    for place in range(len(whole)):
        hurt.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            held = pack.Pack(hurt)
            assert {name: held.read(name) for name in held.names} == FILES
        except FacesetError as error:
            assert "hurt.faces" in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > sum(map(len, FILES.values()))


def forged(path: Path, change: dict[str, Any]) -> Path:
    """A pack whose index says something else, with sums that are right."""
    held = pack.Pack(path)
    index: dict[str, Any] = {"version": 1, "names": held.names, "keys": held.keys}
    index |= {column: held._places[:, i].tolist() for i, column in enumerate(pack.COLUMNS)}
    text = json.dumps(index | change).encode("latin1")
    out = path.with_name("forged.faces")
    body = path.read_bytes()[:2000]
    comment = f"faceswap pack, index at {len(body)}, {len(text)} bytes, crc {zlib.crc32(text)}".encode()
    out.write_bytes(body + text + pack.DIRECTORY + bytes(18) + b" " * (100 - len(comment)) + comment)
    return out


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["../a.png", "b", "c"]},
        {"names": ["a.png", "a.png", "c"]},
        {"names": ["a.png"]},
        {"names": "abc"},
        {"names": [1, 2, 3]},
        {"keys": [1, 2, 3]},
        {"keys": None},
        {"offsets": [0, 0, 10**17]},
        {"offsets": [0, 0, -1]},
        {"offsets": [0, 0, 2**64]},
        {"offsets": [0, 0, 0.5]},
        {"offsets": [[0], [0], [0]]},
        {"offsets": [0, 0]},
        {"sizes": [2**62, 2**62, 2**63 - 1]},
        {"sizes": ["1", "2", "3"]},
        {"sizes": [True, True, True]},
        {"checks": {}},
        {"version": 2},
        {"version": "x"},
        {"version": None},
    ],
)
def test_a_hostile_index_leads_nowhere(packed: Path, change: dict[str, Any]) -> None:
    with pytest.raises(FacesetError, match=r"forged\.faces: (expected a whole pack|pack of version 2)"):
        pack.Pack(forged(packed, change))


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[]", b"1", b"\xff", b"{}", b""])
def test_an_index_that_is_none_is_said(packed: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda *_: text.decode("latin1"))
    with pytest.raises(FacesetError, match="expected a whole pack"):
        pack.Pack(forged(packed, {}))


def test_another_tools_change_is_said(packed: Path) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("more.png", b"more")
    with pytest.raises(FacesetError, match="expected a whole pack"):
        pack.Pack(packed)


@pytest.mark.parametrize("name", ["", ".a.png", "../a.png", "a/b.png", "a\\b.png", "C:a.png", "a\0.png", "a" * 256])
def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FacesetError, match="rename it"):
        pack.write(tmp_path / "x.faces", [(name, None, b"")])
    assert list(tmp_path.iterdir()) == []


def test_the_output_is_checked_and_kept(packed: Path, tmp_path: Path) -> None:
    before = packed.read_bytes()
    with pytest.raises(OutputExistsError):
        pack.write(packed, members(FILES))
    assert packed.read_bytes() == before
    (tmp_path / "folder.faces").mkdir()
    for name in ("x.zip", "x", "folder.faces"):
        with pytest.raises(UsageError, match="expected the name of a pack"):
            pack.write(tmp_path / name, members(FILES), overwrite=True)


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, str | None, bytes]]:
        yield "a.png", "a", b"a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack.write(tmp_path / "x.faces", failing())
    assert list(tmp_path.iterdir()) == []


def test_a_pack_that_was_replaced_is_opened_anew(packed: Path) -> None:
    assert pack.opened(packed) is pack.opened(packed)
    pack.write(packed, members({"other.png": b"other"}), overwrite=True)
    assert pack.opened(packed).names == ["other.png"]


def test_100_000_faces_open_fast_and_unread(tmp_path: Path) -> None:
    path, content = tmp_path / "many.faces", os.urandom(512)
    pack.write(path, ((f"clip_{i:06d}_0.png", f"0:clip.mp4:{i}:0", content) for i in range(100_000)))
    started = time.process_time()
    faceset = Faceset.open(path)
    assert time.process_time() - started < 4, "about 1 s where nothing else runs"
    assert len(faceset) == 100_000 and faceset.entries[-1].key == "0:clip.mp4:99999:0"
    assert read_bytes(faceset.entries[54_321].path) == content


# ---------------------------------------------------------------- a pack as a faceset


def test_a_pack_is_the_faceset_that_it_was_made_of(facesets: dict[str, Path], sides: dict[str, Path]) -> None:
    folder, held = Faceset.open(facesets["target"]), Faceset.open(sides["target"])
    assert held.folder == sides["target"] and held.skipped == []
    assert [(e.path.name, e.key, e.meta) for e in held.entries] == [
        (e.path.name, e.key, e.meta) for e in folder.entries
    ]
    for ours, theirs in zip(held.entries, folder.entries, strict=True):
        assert read_bytes(ours.path) == read_bytes(theirs.path)
        assert read_meta(ours.path) == theirs.meta
        np.testing.assert_array_equal(read_image(ours.path), read_image(theirs.path))
    with pytest.raises(FileNotFoundError):
        read_bytes(held.folder / "missing.png")


def test_metadata_behind_much_else_is_found(facesets: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    first = sorted(facesets["source"].iterdir())[0]
    coded = first.read_bytes()
    chunk = len(bytes(80_000)).to_bytes(4) + b"teSt" + bytes(80_000)
    coded = coded[:33] + chunk + zlib.crc32(chunk[4:]).to_bytes(4) + coded[33:]
    (folder / "a.png").write_bytes(coded)
    curate.pack_faces(folder, tmp_path / "set.faces")
    assert Faceset.open(tmp_path / "set.faces").entries[0].meta == read_meta(first)


def test_entries_travel_to_threads_and_processes(sides: dict[str, Path]) -> None:
    entries = Faceset.open(sides["source"]).entries
    again = pickle.loads(pickle.dumps(entries))  # as multiprocessing does
    assert [entry.meta for entry in again] == [entry.meta for entry in entries]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda entry: read_bytes(entry.path), entries * 20))
    assert found == [read_bytes(entry.path) for entry in entries] * 20
    script = "import sys, pathlib; from faceswap.faceset import *; print(len(read_bytes(pathlib.Path(sys.argv[1]))))"
    words = [sys.executable, "-c", script, str(entries[0].path)]
    assert int(subprocess.run(words, capture_output=True, check=True).stdout) == len(found[0])
    assert threading.active_count() < 50


def test_damaged_faces_are_left_out_as_in_a_folder(sides: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "hurt.faces"
    shutil.copy(sides["source"], path)
    faceset = Faceset.open(path)
    row = 3
    offset = int(pack.Pack(path)._places[row, 0])
    with path.open("r+b") as file:
        file.seek(offset + 2)
        file.write(b"\0" * 200)
    paths = [entry.path for entry in faceset.entries]
    assert [image is None for image in read_images(paths, 32)] == [i == row for i in range(len(paths))]
    with pytest.raises(FacesetError, match=r"hurt\.faces.*damaged"):
        print(faceset.entries[row].meta)


def test_own_masks_are_packed_and_read(facesets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(facesets["source"], tmp_path / "set")
    first, second = (entry.path for entry in Faceset.open(folder).entries[:2])
    cv2.imwrite(str(mask_path(first)), np.tri(64, dtype=np.uint8) * 255)
    (folder / "notes.txt").write_text("not packed")
    assert curate.pack_faces(folder, tmp_path / "set.faces").masks == 1
    np.testing.assert_array_equal(read_mask(tmp_path / "set.faces" / first.name), np.tri(64))
    assert read_mask(tmp_path / "set.faces" / second.name) is None


def test_packs_train_evaluate_and_merge_as_folders_do(
    facesets: dict[str, Path], sides: dict[str, Path], clips: dict[str, Path], tiny: Recipe, tmp_path: Path
) -> None:
    recipe = tiny.changed(train={"images": 24})
    for name, sets in {"folders": facesets, "packs": sides}.items():
        train.train(recipe, {side: [path] for side, path in sets.items()}, tmp_path / name)
    ours, theirs = (load_file(next((tmp_path / name).rglob("best.safetensors"))) for name in ("packs", "folders"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    stream = recipe.changed(data={"memory_gb": 0})  # read batch by batch, not kept
    train.train(stream, {side: [path] for side, path in sides.items()}, tmp_path / "stream")
    assert evaluate.evaluate(tmp_path / "packs", tiny, device="cpu").tables
    assert len(open_all([sides["target"], facesets["target"]])) == 2
    assert swap.recalling(sides["target"], clips["target"])
