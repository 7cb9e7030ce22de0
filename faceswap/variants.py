"""One face of a merge in several ways, side by side: a picture to choose options from by looking.

Each tile is the face as a merge of the whole footage would have it in that frame, with one option changed; its title is
that option as `--set` takes it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align, blend, color, console, files, shots
from faceswap.config import MergeRecipe
from faceswap.detectors import Face
from faceswap.errors import UsageError
from faceswap.found import FoundFaces
from faceswap.provenance import Marker, marker, packet
from faceswap.sheet import label
from faceswap.shots import Shot
from faceswap.stills import png
from faceswap.swap import Drawn, Model, Swapper
from faceswap.video import Frame, SeekError, is_image, read_from, time_stamps

COLUMNS, MOST = 4, 16  # tiles in a row, and in all
SMALLEST, LARGEST = 240, 480  # px, side of a tile; in between a pixel of the footage is one of the tile
AROUND = 0.1  # of the face's side, shown around its crop
LABEL = 24  # px
STEP = 0.04  # by which the mask is shrunk and grown
Changes = tuple[tuple[str, Any], ...]  # keys of the recipe and their values
OTHERS = (("mask", "landmarks"), ("mask", "learned"), ("sharpen", 0.5), ("grain", 1.0))


@dataclass(frozen=True)
class Report:
    """The picture that was made."""

    picture: Path
    frame: int
    track: int | None
    tiles: list[str]


class _Once(Model):
    """A model that draws the same faces once, however often it is asked."""

    def __init__(self, model: Model) -> None:
        vars(self).update(vars(model))
        self._known: dict[tuple[bytes, int, int], list[Drawn]] = {}

    def __call__(self, crops: Sequence[NDArray[Any]], person: int, batch: int) -> Iterator[Drawn]:
        key = (b"".join(crop.tobytes() for crop in crops), person, batch)
        if key not in self._known:
            self._known[key] = list(super().__call__(crops, person, batch))
        return iter(self._known[key])


class Sample:
    """One frame of footage, to be merged in several ways; its faces are drawn once."""

    def __init__(
        self,
        footage: Path,
        number: int,
        swapper: Swapper,
        found: FoundFaces,
        stamps: Callable[[Path], Sequence[int] | None] = time_stamps,  # when the frames of a video are shown
    ) -> None:
        """`UsageError`: no face is drawn in that frame, or there is no such frame."""
        self.face, self.recipe = _chosen(footage, number, swapper, found)  # the largest face, and what holds for it
        frames = _around(footage, number, swapper, stamps)
        plate = next((frame for frame in frames if frame.index == number), None)
        if plate is None:
            raise UsageError(f"{footage.name}: no frame {number}; the footage ends before, or it does not decode")
        self.plate = plate
        self.where = _place(self.face, plate.shape)  # the part of the frame that shows the face
        self._given = [(frame, found.get(frame.index, [])) for frame in frames]
        self._swapper = swapper.otherwise(())
        self._swapper.models = [_Once(model) for model in swapper.models]

    def merged(self, changes: Changes = ()) -> Frame:
        """The frame as a merge of the whole footage makes it, with keys of the recipe changed."""
        more = (Shot(changes=changes),) if changes else ()
        number = self.plate.index
        ((frame, _),) = self._swapper.otherwise(more)(iter(self._given), range(number, number + 1))
        return frame


def ways(recipe: MergeRecipe) -> list[tuple[str, Any]]:
    """The options worth trying one by one, each another than the recipe's."""
    tried: list[tuple[str, Any]] = [("color", name) for name in color.TABLE] + [("blend", name) for name in blend.TABLE]
    tried += [("erode", round(recipe.erode + step, 3)) for step in (STEP, -STEP) if abs(recipe.erode + step) <= 0.2]
    return [(key, value) for key, value in (*tried, *OTHERS) if getattr(recipe, key) != value][: MOST - 2]


def preview(
    footage: Path,
    number: int,  # of the frame
    out: Path,
    swapper: Swapper,
    found: FoundFaces,
    *,
    overwrite: bool = False,
    marks: Marker | None = None,  # default: `provenance.marker(out)`
) -> Report:
    """Write the PNG `out`: the largest face that is drawn in a frame, as it was, as the recipe and the plan say, and
    otherwise. `UsageError`: no face is drawn in that frame, or `out` is no PNG."""
    check(out)
    files.refuse_existing(out, overwrite)
    marks = marks or marker(out, stills=True)
    sample = Sample(footage, number, swapper, found)
    tiles = {"original": sample.plate}
    tried: list[tuple[str, Changes]] = [("the recipe and the plan" if swapper.shots else "the recipe", ())]
    tried += [(f"merge.{key}={value}", ((key, value),)) for key, value in ways(sample.recipe)]
    for title, changes in console.track(tried, f"variants of frame {number}", len(tried), "tiles"):
        tiles[title] = sample.merged(changes)
    tags = marks.tags(swapper.name)
    grid = _grid({title: _cut(frame, sample.where) for title, frame in tiles.items()})
    with files.whole_file(out, overwrite=overwrite) as partial:
        partial.write_bytes(png(grid, lambda pixels: packet(tags, "preview")))
    return Report(out, number, sample.face.track, list(tiles))


def check(out: Path) -> None:
    """`UsageError` unless `out` is the name of a picture."""
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out}: expected -o NAME.png for a preview, found {out.suffix or 'no suffix'}")


def _chosen(footage: Path, number: int, swapper: Swapper, found: FoundFaces) -> tuple[Face, MergeRecipe]:
    """The largest face that is drawn in a frame, and the recipe that holds for it."""
    for face in found.get(number, [])[: swapper.recipe.max_faces or None]:
        recipe = shots.recipe_at(swapper.recipe, swapper.shots, number, face.track)
        if recipe is not None:
            return face, recipe
    why = "the plan skips all faces there" if found.get(number) else "no face was found there"
    near = min((index for index in found), key=lambda index: abs(index - number), default=None)
    hint = "" if near is None or near == number else f"; the nearest frame with a face is {near}"
    raise UsageError(f"{footage.name}: frame {number}: {why}{hint}")


def _around(
    footage: Path, number: int, swapper: Swapper, stamps: Callable[[Path], Sequence[int] | None]
) -> list[Frame]:
    """All frames that have a say in one."""
    batch, reach = swapper.recipe.batch, swapper.reach
    start = max(0, number - reach) // batch * batch
    stop = -(-(number + 1 + reach) // batch) * batch

    def read(known: Sequence[int] | None) -> list[Frame]:
        return list(takewhile(lambda frame: frame.index < stop, read_from(footage, start, known)))

    images = footage.is_dir() or is_image(footage)
    try:
        return read(None if images else stamps(footage))
    except SeekError:
        return read(None)


def _place(face: Face, shape: tuple[int, int]) -> align.Region:
    """The part of a frame that shows a face."""
    ends = np.array([[-AROUND, -AROUND], [1 + AROUND, -AROUND], [-AROUND, 1 + AROUND], [1 + AROUND, 1 + AROUND]])
    corners = align.apply(align.invert(face.matrix(1)), ends)
    limit = [shape[1], shape[0]]
    x0, y0 = np.clip(np.floor(corners.min(0)).astype(int), 0, np.array(limit) - 1)
    x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int), (x0 + 1, y0 + 1), limit)
    return int(x0), int(y0), int(x1), int(y1)


def _cut(frame: Frame, where: align.Region) -> NDArray[np.uint8]:
    x0, y0, x1, y1 = where
    part = align.as_uint8(frame.part(*where))
    side = max(x1 - x0, y1 - y0)
    by = min(max(side, SMALLEST), LARGEST) / side
    size = (math.ceil((x1 - x0) * by), math.ceil((y1 - y0) * by))
    how = cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, size, interpolation=how), np.uint8)


def _grid(tiles: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The tiles (h, w, 3), all of one size, in rows, each with its title above."""
    high, wide = next(iter(tiles.values())).shape[:2]
    wide = max(wide, SMALLEST)  # room for a title
    grid = np.full((-(-len(tiles) // COLUMNS) * (LABEL + high), COLUMNS * wide, 3), 24, np.uint8)
    for number, (title, tile) in enumerate(tiles.items()):
        x, y = number % COLUMNS * wide, number // COLUMNS * (LABEL + high)
        label(grid, title, (x + 6, y + LABEL - 8), 0.45)
        grid[y + LABEL : y + LABEL + high, x : x + tile.shape[1]] = tile
    return grid
