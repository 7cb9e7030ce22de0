"""The whole of it on a machine without footage: two synthetic actors, extract, fine-tune, merge, score, one page."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceswap import actors, benchmark, metrics, page, pair, provenance, video
from faceswap.actors import Take
from faceswap.config import Recipe
from faceswap.errors import UsageError
from faceswap.evaluate import Rows
from faceswap.faceset import read_image
from faceswap.heads import Identity

SOURCE = Take(Identity.random(13), performance=21, frames=150, size=192, scale=0.52)
TARGET = Take(Identity.random(30), performance=22, frames=150, size=192, scale=0.52)
MINUTES = 4.0  # of training
PREVIEWS = 2000  # face images between previews
SCORED = 8  # every so many frames are scored


@dataclass(frozen=True)
class Report:
    """What the demo made."""

    page: Path | None  # None: training was interrupted
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> how long it took this time
    scores: Rows = field(default_factory=dict)


def demo(folder: Path, recipe: Recipe, *, device: str = "auto") -> Report:
    """Make the demo in `folder`, or go on with it where it stopped; `UsageError` if other files are in there."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file; expected a folder for the demo; choose another -o")
    first = folder / "source.mp4"
    begun = any(path.exists() for path in (first, actors.truth_path(first))) or not folder.exists()
    if not begun and any(path.name[0] != "." for path in folder.iterdir()):
        raise UsageError(f"{folder}: expected a folder of faceswap demo or an empty one; choose another -o")
    if not (recipe.train.images or recipe.train.minutes):
        recipe = recipe.changed(train={"minutes": MINUTES})
    recipe = pair.prepared(recipe.changed(train={"preview_images": PREVIEWS}))
    clips = {"source": SOURCE, "target": TARGET, "truth": TARGET.with_face_of(SOURCE.identity)}
    seconds: dict[str, float] = {}
    with _timed(seconds, "rendering three clips"):
        benchmark.render(folder, clips)
    names = {name: folder / f"{name}.mp4" for name in clips}
    swapped, run, began = folder / "swapped.mp4", folder / benchmark.WORK / "run", time.monotonic()
    done = pair.swap_pair(names["source"], names["target"], swapped, recipe, device=device, overwrite=True)
    if done.merge is None:
        return Report(None, seconds)
    spent = time.monotonic() - began
    seconds["extracting faces"] = sum(report.seconds for report in done.extraction.values())
    seconds["merging"] = done.merge.seconds
    seconds["training"] = spent - seconds["extracting faces"] - seconds["merging"]
    notes: list[str] = []
    with _timed(seconds, "scoring"):
        rows, pictures = benchmark.score_run(run, recipe, SCORED, device=device, notes=notes)
    with _timed(seconds, "difference and page"):
        _write_difference(swapped, names["truth"], folder / "difference.mp4")
        blocks: list[page.Block] = [
            page.Text(
                [
                    "Nobody here is real: both actors are rendered, so the true swap is known, pixel by pixel.",
                    f"Trained on {done.training.images} face images in {done.training.seconds / 60:.1f} minutes.",
                    *notes,
                ]
            ),
            page.Videos(
                "Source, target, swap, truth and difference",
                {
                    "source: whose face is put in": "source.mp4",
                    "target: the footage that receives it": "target.mp4",
                    "the swap": "swapped.mp4",
                    "the truth: the same take, rendered with the source's face": "truth.mp4",
                    "swap - truth, four times": "difference.mp4",
                },
            ),
            page.History("Training, from the first preview to the last", _previews(run)),
            page.Figures("Scores against the truth", rows),
            pictures,
            page.Facts("How long it took, this time", {name: f"{value:.1f} s" for name, value in seconds.items()}),
        ]
        page.write(folder / "index.html", "faceswap demo", blocks, overwrite=True)
    return Report(folder / "index.html", seconds, metrics.plain(rows))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - started


def _write_difference(swapped: Path, truth: Path, out: Path) -> None:
    both = zip(video.read_frames(swapped), video.read_frames(truth), strict=True)
    images = (benchmark.difference(ours.image, true.image) for ours, true in both)
    video.write_video(out, images, video.probe(truth).rate, metadata=provenance.rendered_tags(), overwrite=True)


def _previews(run: Path) -> dict[str, NDArray[np.uint8]]:
    """The previews of a run, by the number of face images."""
    found = sorted((run / "previews").glob("[0-9]" * 9 + ".png"))
    return {f"{int(path.stem)} face images": read_image(path) for path in found}
