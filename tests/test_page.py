"""Tests of faceswap.page: what a browser would read, taken from the page by Python's own HTML parser."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import metrics, page
from faceswap.errors import OutputExistsError

NASTY = "<b onclick=\"x()\">R&D 'quoted' </script><script>alert(1)</script>"
VOID = {"meta", "img", "input", "br", "link"}


class Reader(HTMLParser):
    """Tags with their attributes, and the text within each tag; `ValueError` where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        if self._open:
            raise ValueError(f"never closed: {self._open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open.pop() != tag:
            raise ValueError(f"</{tag}> closes another tag")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", " ".join(data.split())))

    def of(self, tag: str) -> list[str]:
        """The texts within all tags of that name."""
        return [text for inside, text in self.texts if inside == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(folder: Path, *blocks: page.Block, title: str = "A page") -> Reader:
    page.write(folder / "page.html", title, blocks, overwrite=False)
    return Reader((folder / "page.html").read_text(encoding="utf-8"))


def picture(seed: int, shape: tuple[int, int] = (9, 7)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def pixels(address: str | None) -> NDArray[np.uint8]:
    """The picture in an address, RGB."""
    kind, _, code = str(address).partition(",")
    assert kind == "data:image/png;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(code, validate=True), np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


ALL = dict.fromkeys(metrics.TABLE, 1.5)
EVERY_KIND: list[page.Block] = [
    page.Text(["A line.", "Another."]),
    page.Figures("Scores", {"a run": ALL, "another": {"psnr": None}}),
    page.Facts("Facts", {"time": "3 s"}),
    page.Pictures("Faces", ["left", "right"], [[picture(0), picture(1)], [picture(2), picture(3)]]),
    page.Videos("Clips", {"the swap": "swap.mp4", "the target": "target.mp4"}),
    page.History("Over time", {"start": picture(4), "end": picture(5)}),
]


def test_a_page_of_every_kind_is_sound_html(tmp_path: Path) -> None:
    found = written(tmp_path, *EVERY_KIND)
    assert found.of("title") == found.of("h1") == ["A page"]
    assert found.of("h2") == ["Scores", "Facts", "Faces", "Clips", "Over time"]
    assert found.of("p") == ["A line.", "Another."]
    assert {"html", "head", "body", "style", "script", "table", "dl", "video", "figure"} <= {
        tag for tag, _ in found.tags
    }
    assert len(found.attributes("img")) == 6 and len(found.attributes("video")) == 2


def test_a_page_without_blocks_is_sound_html(tmp_path: Path) -> None:
    assert written(tmp_path).of("h1") == ["A page"]


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    found = written(tmp_path, *EVERY_KIND)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|url\(|@import|fetch\(|XMLHttp|import\(", html)
    for _, attributes in found.tags:
        assert not {"href", "srcset", "action", "data", "poster"} & set(attributes)
        source = attributes.get("src")
        assert source is None or source.startswith("data:image/png;base64,") or re.fullmatch(r"[\w.]+", source)


def test_html_in_words_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    found = written(
        tmp_path,
        page.Text([NASTY]),
        page.Figures(NASTY, {NASTY: {"psnr": 30.0}}),
        page.Facts(NASTY, {NASTY: NASTY}),
        page.Pictures(NASTY, [NASTY], [[picture(0)]]),
        page.Videos(NASTY, {NASTY: "a.mp4"}),
        page.History(NASTY, {NASTY: picture(0)}),
        title=NASTY,
    )
    assert not found.attributes("b") and len(found.attributes("script")) == 1
    assert not any("onclick" in attributes for _, attributes in found.tags)
    assert found.of("title") == found.of("h1") == found.of("p") == [NASTY]
    assert found.of("h2") == [NASTY] * 5
    assert found.of("td") == [NASTY, "30.0", NASTY, NASTY]
    assert found.of("figcaption") == [NASTY] * 2 and NASTY in found.of("div")
    assert found.attributes("input")[0]["aria-label"] == NASTY


def test_figures_name_each_measure_its_unit_its_best_and_its_meaning(tmp_path: Path) -> None:
    found = written(tmp_path, page.Figures("Scores", {"a run": ALL}))
    labels = [measure.label for measure in metrics.TABLE.values()]
    assert found.of("th") == [f"{m.label} {m.unit}".strip() for m in metrics.TABLE.values()]
    assert found.of("dt") == labels
    explained = dict(zip(labels, found.of("dd"), strict=True))
    for measure in metrics.TABLE.values():
        best = "higher" if measure.best == np.inf else f"{measure.best:g}" if measure.best is not None else ""
        assert explained[measure.label] == measure.meaning + (f" (best: {best})" if best else "")
    assert not written(tmp_path / "two", page.Figures("Scores", {"a run": ALL}, explained=False)).of("dd")


def test_figures_stand_under_their_measure_and_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    rows = {"one": {"ssim": 0.9, "psnr": 31.25}, "two": {"seam": float("nan"), "psnr": None}}
    found = written(tmp_path, page.Figures("Scores", rows))
    assert found.of("th") == ["PSNR dB", "SSIM", "seam ΔE"]
    assert found.of("td") == ["one", "31.2", "0.900", "-", "two", "-", "-", "-"]
    assert found.of("dt") == ["PSNR", "SSIM", "seam"]


def test_pictures_come_back_pixel_by_pixel_in_their_order(tmp_path: Path) -> None:
    rows = [[picture(0), picture(1)], [picture(2), picture(3)]]
    found = written(tmp_path, page.Pictures("Faces", ["left", "right"], rows))
    assert found.of("div") == ["left", "right"]
    expected = [image for row in rows for image in row]
    for attributes, image in zip(found.attributes("img"), expected, strict=True):
        np.testing.assert_array_equal(pixels(attributes["src"]), image)


def test_a_float_picture_is_rounded_and_clipped(tmp_path: Path) -> None:
    image = picture(0).astype(np.float32) / 255
    image[0, :3] = [[-0.5, 0.5, 1.7], [0.0, 1.0, 0.0019], [0.002, 0.998, 0.9981]]
    found = written(tmp_path, page.Pictures("Faces", ["one"], [[image]]))
    expected = np.clip(np.floor(image.astype(np.float64) * 255 + 0.5), 0, 255)
    expected[0, 0, 1] = pixels(found.attributes("img")[0]["src"])[0, 0, 1]  # 127.5 may go either way
    assert expected[0, 0, 1] in (127, 128)
    np.testing.assert_array_equal(pixels(found.attributes("img")[0]["src"]), expected)


def test_a_part_of_a_larger_picture_can_be_shown(tmp_path: Path) -> None:
    image = picture(0, (20, 30))[3:12, ::2]
    found = written(tmp_path, page.History("Over time", {"now": image}))
    np.testing.assert_array_equal(pixels(found.attributes("img")[0]["src"]), image)


def test_history_shows_its_last_picture_first(tmp_path: Path) -> None:
    pictures = {str(seed): picture(seed) for seed in range(4)}
    found = written(tmp_path, page.History("Over time", pictures))
    assert found.of("figcaption") == list(pictures)
    assert ["hidden" in attributes for attributes in found.attributes("figure")] == [True, True, True, False]
    (slider,) = found.attributes("input")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "3", "3")
    for attributes, image in zip(found.attributes("img"), pictures.values(), strict=True):
        np.testing.assert_array_equal(pixels(attributes["src"]), image)


def test_a_reload_puts_the_slider_back_where_the_picture_is(tmp_path: Path) -> None:
    (slider,) = written(tmp_path, page.History("Over time", {"now": picture(0)})).attributes("input")
    assert slider["autocomplete"] == "off"  # else Firefox keeps the place and shows the last picture


@pytest.mark.parametrize(
    "name", ["swap.mp4", "50 % of #1?.mp4", 'the "best".mp4', "größer & more.mp4", "clips/a b.mp4"]
)
def test_a_video_is_named_beside_the_page_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (video,) = written(tmp_path, page.Videos("Clips", {"a caption": name})).attributes("video")
    source = str(video["src"])
    assert unquote(source) == name and re.fullmatch(r"[\w./%~-]+", source, re.ASCII)
    assert "muted" in video and "controls" in video


def test_an_existing_page_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    page.write(path, "first", [], overwrite=False)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match=r"page\.html: exists already; .*--overwrite"):
        page.write(path, "second", [], overwrite=False)
    assert path.read_bytes() == before
    page.write(path, "second", [], overwrite=True)
    assert Reader(path.read_text(encoding="utf-8")).of("h1") == ["second"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_page_that_fails_leaves_everything_as_it_was(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "page.html"
    if overwrite:
        page.write(path, "first", [], overwrite=False)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(cv2.error):
        page.write(path, "second", [page.History("x", {"x": np.empty((0, 0, 3), np.uint8)})], overwrite=overwrite)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_page_appears_whole_with_its_folder_and_nothing_else(tmp_path: Path) -> None:
    page.write(tmp_path / "new" / "folder" / "page.html", "A page", EVERY_KIND, overwrite=False)
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["page.html"]
    assert (tmp_path / "new" / "folder" / "page.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
