"""One face in several ways: what is shown is what a merge with that option makes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import footage
import numpy as np
import pytest
from numpy.typing import NDArray
from test_swap import CPU, face_at, weights

from faceswap import blend, color, provenance, swap, variants
from faceswap.config import MergeRecipe
from faceswap.errors import OutputExistsError, UsageError
from faceswap.found import FoundFaces
from faceswap.shots import Shot, Shots
from faceswap.video import read_frames

HOW: dict[str, Any] = {"steady": 2, "batch": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("model") / "pair.safetensors")


@pytest.fixture(scope="module")
def found() -> FoundFaces:
    return {
        i: [replace(face_at(80 + i / 4, 78), track=0), replace(face_at(30, 130, 12), track=1)]
        for i in range(16)
        if i not in (5, 6)
    }


def swapper(model: Path, plan: Shots = (), **merge: object) -> swap.Swapper:
    return swap.Swapper(model, MergeRecipe.model_validate(HOW | merge), CPU, shots=plan)


def tiles(path: Path, report: variants.Report) -> dict[str, NDArray[Any]]:
    """The tiles of a picture, by their titles."""
    image = cv2.imread(str(path))
    assert image is not None
    rows = -(-len(report.tiles) // variants.COLUMNS)
    high, wide = image.shape[0] // rows, image.shape[1] // variants.COLUMNS
    found = {}
    for number, title in enumerate(report.tiles):
        y, x = number // variants.COLUMNS * high, number % variants.COLUMNS * wide
        assert image[y : y + variants.LABEL, x : x + wide].max() > 200, "a title"
        found[title] = image[y + variants.LABEL : y + high, x : x + wide, ::-1]
    return found


def test_ways_are_few_and_each_another() -> None:
    found = variants.ways(MergeRecipe())
    assert len(found) == variants.MOST - 2 == len(set(found))
    assert {value for key, value in found if key == "color"} == color.TABLE.keys() - {"mkl"}
    assert {value for key, value in found if key == "blend"} == blend.TABLE.keys() - {"laplacian"}
    assert ("erode", 0.04) in found and ("erode", -0.04) in found and ("mask", "landmarks") in found
    edge = variants.ways(MergeRecipe(erode=0.18, mask="product", sharpen=0.5))
    assert ("erode", 0.14) in edge and not any(value == 0.22 for _, value in edge)
    assert len(edge) == variants.MOST - 2
    for key, value in [*found, *edge]:
        MergeRecipe.model_validate({key: value})


def test_each_tile_is_what_a_merge_makes(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path
) -> None:
    plan = (Shot(range(4, 12), frozenset({0}), None, (("color", "none"),)),)
    out = tmp_path / "ways.png"
    report = variants.preview(clips["target"], 9, out, swapper(model, plan), found)
    assert report.frame == 9 and report.track == 0 and report.tiles[:2] == ["original", "the recipe and the plan"]
    assert len(report.tiles) == 16 and "merge.color=mkl" in report.tiles and "merge.color=none" not in report.tiles
    shown = tiles(out, report)
    frames = list(read_frames(clips["target"]))
    where = variants._place(found[9][0], frames[9].shape)
    titles = {
        "the recipe and the plan": swapper(model, plan),
        "merge.blend=feather": swapper(model, plan, blend="feather"),
        "merge.color=reinhard": swapper(model, color="reinhard"),
    }
    for title, made in titles.items():
        wanted = {f.index: f for f, _ in made((f, found.get(f.index, [])) for f in frames)}[9]
        cut = variants._cut(wanted, where)
        assert np.array_equal(shown[title][: len(cut), : cut.shape[1]], cut), title
    cut = variants._cut(frames[9], where)
    assert np.array_equal(shown["original"][: len(cut), : cut.shape[1]], cut)
    told_apart = {title: tile for title, tile in shown.items() if title != "merge.mask=landmarks"}
    assert len({tile.tobytes() for tile in told_apart.values()}) == 15, "a network that knows nothing masks nothing"
    assert provenance.verify(out).found == "tagged"
    assert [path.name for path in tmp_path.iterdir()] == ["ways.png"]


def test_a_face_is_drawn_once(model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path) -> None:
    made, drawn = swapper(model), []
    hook = made.models[0].network.register_forward_hook(lambda *_: drawn.append(1))
    variants.preview(clips["target"], 9, tmp_path / "a.png", made, found)
    hook.remove()
    assert len(drawn) == 3, "4 faces in frames 4 to 7, 8 in frames 8 to 11, four at once, and no more for 15 tiles"


def test_who_is_skipped_is_not_shown(model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    made = swapper(model, (Shot(tracks=frozenset({0}), skip=True),), color="lct")
    report = variants.preview(clips["target"], 2, out, made, found)
    assert report.track == 1 and "merge.color=mkl" in report.tiles
    with pytest.raises(OutputExistsError, match="add --overwrite"):
        variants.preview(clips["target"], 2, out, made, found)
    variants.preview(clips["target"], 2, out, swapper(model), found, overwrite=True)


def test_images_and_no_marks(model: Path, tmp_path: Path) -> None:
    for i, image in enumerate(footage.performance("target", 5)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image.astype(np.uint16)[..., ::-1] * 257)
    out = tmp_path / "out" / "a.png"
    bare = provenance.marker(out, on=False, stills=True)
    report = variants.preview(tmp_path, 3, out, swapper(model), {3: [face_at(80, 78)]}, marks=bare)
    assert report.tiles[1] == "the recipe" and provenance.verify(out).found == "nothing"


@pytest.mark.parametrize(
    ("number", "plan", "said"),
    [
        (5, (), r"target.mp4: frame 5: no face was found there; the nearest frame with a face is 4"),
        (99, (), r"no face was found there; the nearest frame with a face is 15"),
        (4, (Shot(skip=True),), r"the plan skips all faces there$"),
    ],
)
def test_nothing_to_show_is_said(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path, number: int, plan: Shots, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        variants.preview(clips["target"], number, tmp_path / "a.png", swapper(model, plan), found)
    with pytest.raises(UsageError, match=r"expected -o NAME.png for a preview, found .jpg"):
        variants.preview(clips["target"], number, tmp_path / "a.jpg", swapper(model), found)
    assert not list(tmp_path.iterdir())
