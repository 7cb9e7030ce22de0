"""Tests of `faceswap faceset`: what the commands say, and what they say of mistakes."""

import json
from pathlib import Path

from click.testing import CliRunner

from faceswap import console, curate, pack
from faceswap.cli import main
from faceswap.faceset import Faceset


def faceset(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["faceset", *map(str, words)])
    console.configure(console.QUIET)
    assert result.exit_code == status, (result.output, result.exception)
    if status:
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
        return result.stderr
    return result.stdout


def test_sort_offers_what_the_table_has() -> None:
    text = faceset("sort", "-h").replace("\n", "").replace(" ", "")
    assert f"[{'|'.join(curate.SORTS)}]" in text


def test_commands_do_what_they_say_and_give_json(ten_faces: Path, tmp_path: Path) -> None:
    assert json.loads(faceset("info", ten_faces, "--json"))["faces"] == 10
    assert "degrees" in faceset("info", ten_faces)
    assert json.loads(faceset("sort", ten_faces, "--by", "blur", "--json"))["renamed"] == 10
    assert "renamed, darkest first" in faceset("sort", ten_faces, "--by", "brightness")
    faceset("sort", ten_faces, "--by", "time")
    dry = faceset("filter", ten_faces, "--track", 0, "--dry-run")
    assert dry.count("track     clip_") == 6 and "4 faces stay, would move" in dry
    found = json.loads(faceset("filter", ten_faces, "--track", 0, "--track", 1, "--json"))
    assert found["kept"] == 8 and found["removed"]["track"] == ["clip_000008_0.png", "clip_000009_0.png"]
    assert "2 groups by track" in faceset("sheet", ten_faces, "-o", tmp_path / "sheet.png")
    assert "4 faces and 1 mask" in faceset("copy", ten_faces, "-o", tmp_path / "copy", "--every", 2, "--max", 4)
    faceset("pack", ten_faces, "-o", tmp_path / "set.faces")
    assert json.loads(faceset("unpack", tmp_path / "set.faces", "-o", tmp_path / "back", "--json"))["faces"] == 8
    assert pack.is_pack(tmp_path / "set.faces")


def test_mistakes_get_one_line(ten_faces: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.faces").write_bytes(b"PK" * 300)
    for words, status in [
        (("info", tmp_path / "nothing"), 1),
        (("info", tmp_path / "bad.faces"), 1),
        (("sort", ten_faces), 2),
        (("sort", ten_faces, "--by", "name"), 2),
        (("filter", ten_faces, "-q"), 2),
        (("filter", ten_faces, "--duplicates", 65), 2),
        (("filter", ten_faces, "--fit", "nan"), 2),
        (("filter", ten_faces, "--fit", 0.5, "-q"), 1),
        (("sheet", ten_faces, "-o", ten_faces), 2),
        (("copy", ten_faces, "-o", ten_faces, "--overwrite"), 2),
        (("pack", ten_faces, "-o", tmp_path / "x.zip"), 2),
        (("unpack", ten_faces, "-o", tmp_path / "x"), 2),
    ]:
        faceset(*words, status=status)
    assert len(Faceset.open(ten_faces)) == 10 and sorted(p.name for p in tmp_path.iterdir()) == ["bad.faces", "set"]
