"""Contact sheets: a picture of a faceset, to choose from by looking."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from faceswap import console, files
from faceswap.errors import UsageError
from faceswap.faceset import open_all, read_images, spread
from faceswap.looks import Faces, Picture, Rows, Track, groups, track_of

CELL, COLUMNS, LINES = 112, 12, 40  # px, faces in a line, lines on a page
LABEL, NARROWEST = 26, 6  # px; cells that a label needs


@dataclass(frozen=True)
class Sheet:
    """The pages that were written."""

    pages: list[Path]
    groups: list[Track]


def sheet(path: Path, out: Path, *, by: str = "track", shown: int = COLUMNS, overwrite: bool = False) -> Sheet:
    """Write contact sheets of a faceset: for each group, evenly spread over its time, `shown` faces and a label.

    The groups with the most faces come first. What does not fit on one page goes on in `NAME-2.png` and so on.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out}: expected NAME.png, found {out.suffix or 'no suffix'}; choose another -o")
    faces = Faces(open_all([path])[0])
    found = sorted(groups(faces, by), key=len, reverse=True)
    pages = _pages(found, shown)
    names = [out, *(out.with_stem(f"{out.stem}-{number}") for number in range(2, len(pages) + 1))]
    for name in names:
        files.refuse_existing(name, overwrite)
    for name, rows_of_page in zip(names, console.track(pages, "sheets", len(pages), "pages"), strict=True):
        page = np.concatenate([_strip(faces, rows, by, shown) for rows in rows_of_page])
        with files.whole_file(name, overwrite=overwrite) as partial:
            partial.write_bytes(cv2.imencode(".png", cv2.cvtColor(page, cv2.COLOR_RGB2BGR))[1].tobytes())
    return Sheet(names, [track_of(faces, rows) for rows in found])


def _strip(faces: Faces, rows: Rows, by: str, shown: int) -> Picture:
    """One group: a label, and lines of faces below it."""
    chosen = spread(rows.tolist(), shown)
    images = list(read_images([faces.entries[row].path for row in chosen], CELL))
    lines, columns = -(-len(images) // COLUMNS), min(max(shown, NARROWEST), COLUMNS)
    strip = np.full((LABEL + lines * CELL, columns * CELL, 3), 24, np.uint8)
    for i, image in enumerate(images):
        y, x = LABEL + i // COLUMNS * CELL, i % COLUMNS * CELL
        if image is None:
            label(strip, "damaged", (x + 8, y + CELL // 2), 0.5)
        else:
            strip[y : y + CELL, x : x + CELL] = image
    about = track_of(faces, rows)
    words = [f"{about.faces} face{(about.faces > 1) * 's'}", f"{about.size:.0f} px"]
    if by == "track":
        words.insert(0, f"track {about.name}")
    if by != "all":
        words.append(f"{about.span} of {about.source}")
    label(strip, "   ".join(words), (6, LABEL - 8), 0.55)
    return strip


def label(image: Picture, words: str, at: tuple[int, int], scale: float) -> None:
    """White text; what the font of OpenCV lacks becomes a question mark."""
    plain = words.encode("ascii", "replace").decode()
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)


def _pages(found: Sequence[Rows], shown: int) -> list[list[Rows]]:
    """The groups page by page: as many lines of faces as fit, a group is not torn."""
    pages: list[list[Rows]] = []
    free = 0
    for rows in found:
        lines = -(-min(len(rows), shown) // COLUMNS)
        if lines > free:
            pages.append([])
            free = max(LINES, lines)
        pages[-1].append(rows)
        free -= lines
    return pages
