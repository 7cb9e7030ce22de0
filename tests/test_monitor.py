"""Tests of faceswap.monitor: figures are kept, and others see whether somebody writes them."""

import json
import subprocess
import sys
from pathlib import Path

from faceswap import monitor
from faceswap.monitor import Monitor


def test_what_was_written_beyond_the_place_is_dropped(tmp_path: Path) -> None:
    first = Monitor(tmp_path, 0)
    for images in (10, 20, 30):
        first.scalars(images, {"train/loss": 1 / images})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 4')
    again = Monitor(tmp_path, 20)
    again.scalars(25, {"train/loss": 0.5})
    again.close()
    assert [line["images"] for line in monitor.read(tmp_path)] == [10, 20, 25]
    assert list(tmp_path.glob("events.out.tfevents.*"))


WRITES = """
import os, signal, sys
from pathlib import Path
from faceswap.monitor import Monitor
kept = Monitor(Path(sys.argv[1]), 0)
print("ready", flush=True)
sys.stdin.read()
"""


def test_others_see_that_a_process_writes_until_it_ends_in_whatever_way(tmp_path: Path) -> None:
    assert not monitor.is_written(tmp_path)
    words = [sys.executable, "-c", WRITES, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert monitor.is_written(tmp_path)
        process.kill()
    assert not monitor.is_written(tmp_path)


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    kept = Monitor(tmp_path, 0)
    kept.scalars(5, {"rate": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"images": 5, "rate": 0.5}
    kept.close()
