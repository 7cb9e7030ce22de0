"""The faces of a video, by frame, and a file that holds them: arrays side by side, without pickles.

Convention: what is read is what was written, bit for bit.
"""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceswap import files
from faceswap.detectors import Face
from faceswap.errors import FacesetError
from faceswap.faceset import read_mask

FoundFaces = dict[int, list[Face]]  # by frame index


def write(path: Path, found: FoundFaces) -> None:
    """Keep the faces in the file `path`, which appears when it is whole."""
    with files.whole_file(path, overwrite=True) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **_arrays(found))


def read(path: Path) -> FoundFaces:
    """The inverse of `write`; `FacesetError` if it is damaged."""
    found: FoundFaces = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        places, landmarks = iter(arrays["place"]), iter(arrays["landmarks"])
        for i, frame in enumerate(arrays["frame"].tolist()):
            face = Face(
                arrays["box"][i],
                arrays["points"][i],
                float(arrays["probability"][i]),
                next(landmarks) if arrays["has_landmarks"][i] else None,
                float(arrays["fit"][i]),
                int(arrays["track"][i]) if arrays["track"][i] >= 0 else None,
                next(places) if arrays["has_place"][i] else None,
                Path(str(arrays["mask"][i])) if arrays["mask"][i] else None,
                int(arrays["model"][i]),
            )
            found.setdefault(frame, []).append(face)
    except (OSError, ValueError, KeyError, IndexError, StopIteration, zipfile.BadZipFile) as error:
        raise FacesetError(f"{path}: damaged ({error}); delete it") from error
    return found


def digest(found: FoundFaces) -> str:
    """A hash of all that is known of the faces, the user's own masks included."""
    check = hashlib.sha256()
    for name, values in _arrays(found).items():
        check.update(f"{name} {values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    for path in sorted({face.mask for faces in found.values() for face in faces if face.mask is not None}):
        mask = read_mask(path)
        check.update(b"" if mask is None else mask.tobytes())
    return check.hexdigest()


def _arrays(found: FoundFaces) -> dict[str, NDArray[Any]]:
    rows = [(frame, face) for frame in sorted(found) for face in found[frame]]
    faces = [face for _, face in rows]
    return {
        "frame": np.array([frame for frame, _ in rows], np.int64),
        "box": _stacked([face.box for face in faces], (4,), np.float32),
        "points": _stacked([face.points for face in faces], (5, 2), np.float32),
        "probability": np.array([face.probability for face in faces], np.float64),
        "has_landmarks": np.array([face.landmarks is not None for face in faces], np.bool_),
        "landmarks": _stacked([face.landmarks for face in faces if face.landmarks is not None], (0, 2), np.float32),
        "fit": np.array([face.fit for face in faces], np.float64),
        "track": np.array([-1 if face.track is None else face.track for face in faces], np.int64),
        "has_place": np.array([face.place is not None for face in faces], np.bool_),
        "place": _stacked([face.place for face in faces if face.place is not None], (2, 3), np.float64),
        "mask": np.array(["" if face.mask is None else str(face.mask) for face in faces], np.str_),
        "model": np.array([face.model for face in faces], np.int64),
    }


def _stacked(parts: Sequence[NDArray[Any]], shape: tuple[int, ...], kind: type[np.floating[Any]]) -> NDArray[Any]:
    return np.stack(parts).astype(kind) if parts else np.zeros((0, *shape), kind)
