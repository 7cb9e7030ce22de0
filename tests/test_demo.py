"""Tests of faceswap.demo: the whole of it, small."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from faceswap import demo
from faceswap.config import Recipe
from faceswap.errors import UsageError
from faceswap.video import probe

CLIPS = ("source", "target", "swapped", "truth", "difference")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOURCE", "TARGET"):
        monkeypatch.setattr(demo, name, replace(getattr(demo, name), frames=12, size=128))
    monkeypatch.setattr(demo, "SCORED", 4)


def test_a_demo_leaves_a_page_that_plays_from_disk(small: None, tiny: Recipe, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "demo", tiny.changed(train={"images": 40})
    report = demo.demo(folder, recipe, device="cpu")
    assert report.page == folder / "index.html"
    text = report.page.read_text()
    sources = [str(dict(attributes)["src"]) for tag, attributes in Tags(text).found if tag == "video"]
    assert sources == [f"{name}.mp4" for name in CLIPS]
    for name in CLIPS:
        info = probe(folder / f"{name}.mp4")
        assert (info.frames, info.width, info.rate) == (12, 128, 25), name
    assert "://" not in text and "40 face images" in text
    assert {"rendering three clips", "extracting faces", "training", "merging", "scoring"} < set(report.seconds)
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert next(iter(report.scores)) == "swap"
    before = (folder / "source.mp4").stat().st_mtime_ns
    again = demo.demo(folder, recipe, device="cpu")
    assert again.scores == report.scores and (folder / "source.mp4").stat().st_mtime_ns == before


def test_a_folder_with_other_files_is_left_alone(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("my website")
    with pytest.raises(UsageError, match="expected a folder of faceswap demo or an empty one"):
        demo.demo(tmp_path, tiny)
    assert (tmp_path / "index.html").read_text() == "my website"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))
