"""Tests of tools/benchmark_merge.py: its ways make the same film, and its figures mean what they say."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faceswap import found, swap
from faceswap.config import Recipe
from faceswap.video import probe, read_frames, write_video
from tools import benchmark, benchmark_merge


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merge") / "120.mp4"
    images = benchmark_merge.rendered(4, 120)
    write_video(path, benchmark_merge.footage(images, 120), benchmark_merge.RATE, crf=benchmark_merge.CRF)
    return path


def small(tiny: Recipe) -> Recipe:
    return tiny.changed(merge={"mask": "landmarks", "steady": 0, "match_sharpness": 0, "motion_blur": 0})


def test_the_footage_goes_there_and_back(clip: Path) -> None:
    info, frames = probe(clip), [frame.image.astype(int) for frame in read_frames(clip)]
    assert (info.width, info.height, len(frames)) == (214, 120, 6)
    apart = [np.abs(frame - frames[1]).mean() for frame in frames]
    assert apart[5] < apart[2] and apart[5] < apart[3]


def test_the_obvious_way_draws_what_ours_draws(clip: Path, tiny: Recipe, tmp_path: Path) -> None:
    recipe = small(tiny)
    model = benchmark_merge.write_pair(tmp_path / "pair.safetensors", recipe)
    swapper = swap.Swapper(model, recipe.merge, torch.device("cpu"))
    faces = swap.detecting(clip, recipe.extract, "cpu")
    assert len(faces) == 6
    known = ((frame, faces[frame.index]) for frame in read_frames(clip))
    plain = benchmark_merge.naively(clip, faces, swapper)
    for (ours, count), theirs, before in zip(swapper(known), plain, read_frames(clip), strict=True):
        assert count == 1
        changed = np.abs(ours.image.astype(int) - before.image).mean()
        assert np.abs(ours.image.astype(int) - theirs.image).mean() < 0.3 * changed


def test_all_of_it_makes_one_object(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def at_once(way: Any) -> dict[str, float]:
        asked.append(way.func.__name__)
        seconds, cpu = way()
        return {"seconds": seconds, "cpu": cpu, "memory": benchmark_merge.peak_memory()}

    monkeypatch.setattr(benchmark_merge, "alone", at_once)
    sizes: dict[str, Any] = {"heights": [120], "frames": 4, "side": 120, "rounds": 2, "longer": 2}
    found_ = benchmark_merge.run(small(tiny), tmp_path, **sizes)
    assert json.loads(json.dumps(found_)) == found_
    assert asked == ["detect", *["ours", "naive", "naive", "bare"] * 2, "ours"]
    (row,) = found_["rows"]
    assert row["frames"] == row["faces"] == 6 and row["longer"] == 2
    assert row["speedup"] == pytest.approx(row["ours_frames_per_second"] / row["naive_frames_per_second"], rel=0.01)
    share = row["ours_frames_per_second"] / row["bare_frames_per_second"]
    assert found_["share_of_transcode"] == row["share_of_transcode"] == pytest.approx(share, rel=0.01)
    assert found_["peak_memory_mb"] >= row["peak_memory_mb"] > 100
    assert len(found.read(tmp_path / "120.npz")) == probe(tmp_path / "120_long.mp4").frames == 12
    assert "% of a bare transcode" in benchmark_merge.text(found_)


def _nothing() -> tuple[float, float]:
    return 1.5, 0.5


def test_each_way_has_a_process_of_its_own() -> None:
    told = benchmark_merge.alone(_nothing)
    assert (told["seconds"], told["cpu"]) == (1.5, 0.5) and 50 < told["memory"] < benchmark_merge.peak_memory() + 500


def test_the_command_prints_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(benchmark.__file__).parent))
    import benchmark_merge as lazily_imported

    def run(recipe: Recipe, folder: Path, **more: Any) -> dict[str, Any]:
        more["say"]("on the way")
        return {"crf": recipe.merge.crf, "heights": more["heights"], "there": folder.is_dir()}

    monkeypatch.setattr(lazily_imported, "run", run)
    words = ["merge", "--json", "--height", "240", "--set", "merge.crf=20"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    benchmark.main()
    said = capsys.readouterr()
    assert json.loads(said.out) == {"crf": 20, "heights": [240], "there": True}
