"""Tests of faceswap.sheet: each group with its faces, page by page."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from crops import damage

from faceswap import sheet
from faceswap.errors import OutputExistsError, UsageError
from faceswap.faceset import read_image


def test_a_sheet_shows_each_track_with_its_faces(ten_faces: Path, tmp_path: Path) -> None:
    report = sheet.sheet(ten_faces, tmp_path / "sheet.png", shown=3)
    assert [(group.track, group.faces) for group in report.groups] == [(0, 4), (1, 4), (2, 2)]
    drawn = cv2.cvtColor(np.asarray(cv2.imread(str(tmp_path / "sheet.png"))), cv2.COLOR_BGR2RGB)
    strip = sheet.LABEL + sheet.CELL
    assert drawn.shape == (3 * strip, sheet.NARROWEST * sheet.CELL, 3)
    for group, column, frame in [(0, 0, 0), (0, 2, 3), (1, 0, 4), (2, 1, 9)]:
        y, x = group * strip + sheet.LABEL, column * sheet.CELL
        cell = drawn[y : y + sheet.CELL, x : x + sheet.CELL]
        np.testing.assert_array_equal(cell, read_image(ten_faces / f"clip_{frame:06d}_0.png", sheet.CELL))
    for group in range(3):
        assert (drawn[group * strip : group * strip + sheet.LABEL] > 200).any(), "a label"


def test_sheets_go_on_on_further_pages(ten_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "LINES", 2)
    damage(ten_faces, 5)
    out = tmp_path / "sheet.png"
    report = sheet.sheet(ten_faces, out)
    assert [page.name for page in report.pages] == ["sheet.png", "sheet-2.png"]
    assert all(cv2.imread(str(page)) is not None for page in report.pages)
    (tmp_path / "sheet.png").unlink()
    with pytest.raises(OutputExistsError, match=r"sheet-2\.png"):
        sheet.sheet(ten_faces, out)
    assert not out.exists()
    assert len(sheet.sheet(ten_faces, out, overwrite=True).pages) == 2
    for by in ("source", "all"):
        assert len(sheet.sheet(ten_faces, tmp_path / f"{by}.png", by=by, shown=30).groups) == 1
    with pytest.raises(UsageError, match=r"expected NAME\.png"):
        sheet.sheet(ten_faces, tmp_path / "sheet.jpg")
