"""Tests of the scripts in tools/ that measure: they run, and what they say adds up."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "benchmark.py"


def measure(*words: object) -> Any:
    command = [sys.executable, str(TOOL), *map(str, words), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_extraction_is_held_against_the_naive_loop(clips: dict[str, Path]) -> None:
    found = measure("extract", clips["source"])["source"]
    assert (found["frames"], found["extracted"], found["tracks"]) == (16, 16, 1)
    assert found["recall"] == 1 and found["naive_faces"] >= 14
    assert found["naive_faces"] <= found["naive_faces_90"] <= found["naive_faces_any"]
    ratio = found["frames_per_second"] / found["naive_frames_per_second"]
    assert found["speedup"] == pytest.approx(ratio, abs=0.02) and found["frames_detected"] < 16


def test_jitter_is_measured_three_ways(clips: dict[str, Path]) -> None:
    found = measure("jitter", clips["source"])["source"]
    assert found["frames"] == 16 and {"still", "mtcnn", "landmarks", "smoothed"} < set(found)


def test_a_missing_clip_is_said() -> None:
    done = subprocess.run([sys.executable, str(TOOL), "extract", "none.mp4"], capture_output=True, text=True)
    assert done.returncode == 2 and "none.mp4: no such file" in done.stderr
