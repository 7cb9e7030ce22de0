"""Tests of tools/train_base.py."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import train_base

from faceswap import checkpoint
from faceswap.actors import write_faces
from faceswap.faceset import Faceset, read_image
from faceswap.models import ANYONE


def test_a_tint_keeps_black_white_and_order() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    tinted = train_base.tint(ramp, 3)
    assert (tinted[0, 0] == 0).all() and (tinted[0, -1] == 255).all()
    assert (np.diff(tinted.astype(int), axis=1) >= 0).all() and not np.array_equal(tinted, train_base.tint(ramp, 4))
    assert train_base.is_grey(ramp) and not train_base.is_grey(tinted)
    red, _, blue = tinted[0, 128].astype(int)
    assert red > blue + 5, "skin is warm"


def test_the_base_is_made_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_base, "SWAPS", 32)
    write_faces(tmp_path / "faces", 8, size=160)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, entry in enumerate(Faceset.open(tmp_path / "faces").entries):
        image = cv2.cvtColor(read_image(entry.path), cv2.COLOR_RGB2BGR)
        image = cv2.copyMakeBorder(image, 40, 40, 40, 40, cv2.BORDER_REPLICATE)
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        cv2.imwrite(str(photos / f"{number}.png"), grey if number % 2 else image)
    out = tmp_path / "base_32.safetensors"
    words = [str(photos), "--work", str(tmp_path / "work"), "--rendered", "8", "--out", str(out), "--device", "cpu"]
    words += [f"--set={s}" for s in ("model.resolution=32", "model.width=4", "model.code=16", "data.batch=4")]
    for images in ("8", "16"):
        monkeypatch.setattr(sys, "argv", ["train_base.py", *words, "--images", images])
        train_base.main()
    drawn, left = train_base.swaps(checkpoint.load_model(out)[0], tmp_path / "work" / "strangers", 32)
    assert 0 < drawn < 40 and 5 < left < 25, "people differ"
    entries = Faceset.open(tmp_path / "work" / "photos").entries
    assert len(entries) >= 6 and not any(train_base.is_grey(read_image(entry.path)) for entry in entries)
    state = checkpoint.read(out)
    assert state.people == [ANYONE] and state.progress.images == 16 and not state.footage
    assert all(weight.dtype == torch.float16 for weight in state.tensors.values())
    whole, half = (checkpoint.load_model(path)[0] for path in (tmp_path / "work" / "run", out))
    faces, person = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        assert (whole(faces, person)[0] - half(faces, person)[0]).abs().max() < 0.01
