"""Footage to faceset: find the faces, crop them, write them with where they come from."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np

from faceswap import align, console, detectors, files
from faceswap.config import ExtractRecipe
from faceswap.detectors import Face
from faceswap.errors import FacesetError, UsageError
from faceswap.faceset import FaceMeta, refuse_foreign, write_face
from faceswap.video import Frame, frame_count, read_frames


@dataclass(frozen=True)
class Report:
    """What an extraction found."""

    faceset: Path
    frames: int  # looked at
    faces: int
    frames_without_face: int
    seconds: float


def extract(
    inputs: Sequence[Path],  # videos, folders of images, single images
    out: Path,
    recipe: ExtractRecipe,
    *,
    device: str = "cpu",
    overwrite: bool = False,  # replaces a faceset, and nothing but a faceset
) -> Report:
    """Extract faces into the new faceset `out`, which appears when it is complete.

    `MediaError` for an input that cannot be read, `FacesetError` if no face is found at all.
    """
    files.refuse_same(out, inputs)
    files.refuse_existing(out, overwrite)
    if out.exists():
        refuse_foreign(out)
    names = _names(inputs)
    for path in inputs:
        frame_count(path)  # a wrong name is said before the work begins
    detector = detectors.build(recipe.detector, threshold=recipe.threshold, min_size=recipe.min_size, device=device)
    started, counts = time.monotonic(), Counter[str]()
    with files.whole_folder(out, overwrite=overwrite) as folder:
        for number, (path, name) in enumerate(zip(inputs, names, strict=True)):
            found = Counter[str]()
            for frame, faces in _frames(path, detector, recipe):
                chosen = faces[: recipe.max_faces or None]
                for rank, face in enumerate(chosen):
                    meta = _meta(number, frame, rank, face, recipe)
                    image = align.crop(frame.image, np.array(meta.matrix), recipe.size)
                    write_face(folder / f"{name}_{frame.index:06d}_{rank}.{recipe.format}", image, meta)
                found.update(frames=1, faces=len(chosen), empty=int(not chosen))
            console.detail(f"{path}: {found['faces']} faces, {found['empty']} of {found['frames']} frames without")
            if not found["faces"]:
                console.warn(f"{path}: no face found in {found['frames']} frames")
            counts.update(found)
        if not counts["faces"]:
            raise FacesetError(
                f"{', '.join(map(str, inputs))}: no face of at least {recipe.min_size:g} px found in "
                f"{counts['frames']} frames; try --min-size {recipe.min_size / 2:g} or --set extract.threshold=0.7"
            )
    seconds = time.monotonic() - started
    return Report(out, counts["frames"], counts["faces"], counts["empty"], seconds)


def _frames(path: Path, detector: detectors.Detector, recipe: ExtractRecipe) -> Iterator[tuple[Frame, list[Face]]]:
    total = frame_count(path)
    wanted = None if total is None else -(-total // recipe.every)
    frames = detectors.detect(read_frames(path, every=recipe.every), detector, recipe.batch)
    return console.track(frames, f"extracting {path.name}", wanted, "frames")


def _names(inputs: Sequence[Path]) -> list[str]:
    """A name per input for its files; inputs that share one get a number."""
    if not inputs:
        raise UsageError("expected at least one video, folder of images or image")
    names: list[str] = []
    for path in inputs:
        stem = path.absolute().stem.lstrip(".") or "input"
        numbered = (f"{stem}-{number}" for number in count(2))
        names.append(next(name for name in chain([stem], numbered) if name not in names))
    return names


def _meta(number: int, frame: Frame, rank: int, face: Face, recipe: ExtractRecipe) -> FaceMeta:
    return FaceMeta(
        input=number,
        source=frame.source.name,
        frame=frame.index,
        time=round(float(frame.time), 6),
        face=rank,
        box=[round(float(v), 3) for v in face.box],
        points=[[round(float(x), 3), round(float(y), 3)] for x, y in face.points],
        matrix=align.crop_matrix(face.points, recipe.size).tolist(),
        size=recipe.size,
        detector=recipe.detector,
        probability=round(face.probability, 5),
    )
