"""Tests of faceswap.players: what other tools do around a model."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from faceswap import align, players
from faceswap.cli_export import TOOLS
from faceswap.config import Recipe
from faceswap.errors import FacesetError, OutputExistsError, UsageError
from faceswap.players import TABLE
from faceswap.video import write_video


def test_faces_lie_in_each_crop_as_was_measured() -> None:
    assert TABLE["facefusion"].fit.scale == pytest.approx(1) and TABLE["facefusion"].fit.shift == pytest.approx((0, 0))
    assert TABLE["visomaster"].fit.scale == pytest.approx(1.061, abs=2e-3)
    assert TABLE["deepfacelive"].fit.scale == pytest.approx(0.879, abs=2e-3)
    for name in ("visomaster", "deepfacelive"):
        turn = align.similarity(TABLE[name].points, align.TEMPLATE)[1, 0]
        assert abs(np.degrees(turn)) < 0.5 and max(np.abs(TABLE[name].fit.shift)) < 0.05


def test_the_command_offers_the_players_that_there_are() -> None:
    assert tuple(TOOLS.choices) == players.TOOLS and "faceswap" not in players.TOOLS


def test_facefusion_shows_the_model_a_sharpened_face() -> None:
    edge = np.zeros((32, 32, 3), np.float32)
    edge[:, 16:] = 0.5
    seen = TABLE["facefusion"].before(edge)
    assert seen[16, 16, 0] > 0.6 and seen[16, 31, 0] == pytest.approx(0.5, abs=0.01)
    assert TABLE["visomaster"].before(edge) is edge


@pytest.mark.parametrize("name", list(TABLE))
def test_a_face_is_laid_in_where_its_masks_agree(name: str) -> None:
    random = np.random.default_rng(0)
    crop = cv2.GaussianBlur(random.random((224, 224, 3), np.float32), (0, 0), 3)
    left, most = np.zeros((224, 224), np.float32), np.zeros((224, 224), np.float32)
    left[:, :112], most[20:204, 20:204] = 1, 1
    face, mask = TABLE[name].after(1 - crop, crop, left, most)
    assert face.shape == crop.shape and mask.shape == left.shape and mask.min() >= 0 and mask.max() <= 1 + 1e-6
    assert mask[112, 70] > 0.95 and mask[112, 1] < 0.2
    masked = {"facefusion": True, "deepfacelive": True, "visomaster": False, "faceswap": False}  # by the target's
    assert (mask[112, 170] < 0.05) == masked[name]


def test_the_same_colours_stay() -> None:
    crop = cv2.GaussianBlur(np.random.default_rng(0).random((64, 64, 3), np.float32), (0, 0), 3)
    ones = np.ones((64, 64), np.float32)
    for player in TABLE.values():
        assert np.abs(player.after(crop.copy(), crop, ones, ones)[0] - crop).max() < 0.02


def itself(face: Any, morph: float) -> Any:
    mask = np.ones((*face.shape[:3], 1), np.float32)
    return mask, face, mask


def test_a_model_that_draws_what_it_sees_changes_nothing_but_sharpness(clips: dict[str, Path], tmp_path: Path) -> None:
    recipe = Recipe().changed(extract={"min_size": 40})
    report = players.sheet(itself, 128, False, clips["target"], tmp_path / "s.png", recipe, count=2)
    page = cv2.imread(str(tmp_path / "s.png")).astype(float)[players.LABEL :]
    assert report.frames == 2
    cell = players.CELL
    frames = [page[:cell, (4 * i + 3) * cell : (4 * i + 4) * cell] for i in range(len(TABLE))]
    drawn = [page[:cell, (4 * i + 1) * cell : (4 * i + 2) * cell] for i in range(len(TABLE))]
    assert np.abs(frames[3] - frames[0]).mean() < 3 and np.abs(frames[2] - frames[0]).mean() < 3
    assert np.abs(drawn[3] - drawn[0]).mean() > 4, "VisoMaster's crop is another"


def test_what_cannot_be_shown_is_said(clips: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected NAME\.png, found \.jpg"):
        players.sheet(itself, 64, False, clips["target"], tmp_path / "s.jpg", Recipe())
    (tmp_path / "s.png").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        players.sheet(itself, 64, False, clips["target"], tmp_path / "s.png", Recipe())
    write_video(tmp_path / "nobody.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 3, Fraction(25))
    with pytest.raises(FacesetError, match="no face in 6 frames of it; try another video"):
        players.sheet(itself, 64, False, tmp_path / "nobody.mp4", tmp_path / "t.png", Recipe())
