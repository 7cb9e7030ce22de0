"""How alike two faces are, by a face embedder, where there is one. It judges results and tells people in footage
apart; nothing trains on it.

Two are known, and the first that works is taken:

    dlib        ResNet-34 by Davis King, its weights in the public domain: pip install 'faceswap[identity]'
    facenet     facenet-pytorch's InceptionResnetV1: faceswap pretrained pull inception-resnet-v1

Distances of two embedders have nothing in common: compare numbers of one embedder only.

Convention: a face is a canonical crop (S, S, 3) uint8 RGB, see `faceswap.align`: its five points lie at TEMPLATE * S
already, and nothing else about it needs to be known. Embeddings are (N, D) float32, distances Euclidean.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from faceswap import align, console, files
from faceswap.errors import CheckpointError, FaceswapError

NOT_MEASURED = "identity: not measured: no face embedder works here; pip install 'faceswap[identity]' brings one"
FACENET_FILE = "inception-resnet-v1.safetensors"
FACENET_AGAIN = "faceswap pretrained pull inception-resnet-v1 --overwrite brings it anew"
AT_ONCE = 32  # faces that go through a network together

Picture = NDArray[np.uint8]
Embeddings = NDArray[np.float32]


class Embedder(Protocol):
    """Turns faces into points that lie near each other where the person is the same."""

    @property
    def name(self) -> str: ...

    @property
    def same(self) -> float:
        """The distance below which two frames of one person usually lie."""
        ...

    @property
    def other(self) -> float:
        """The distance above which two people usually lie."""
        ...

    def __call__(self, images: Sequence[Picture]) -> Embeddings:
        """(N, D) for N canonical crops, each of any size; (0, D) for none."""
        ...


def find_embedder() -> Embedder | None:
    """The first embedder that works here; None, to be said with `NOT_MEASURED`, if there is none.

    One that is there and does not work is said, and the next is tried.
    """
    for find in FINDERS:
        try:
            embedder = find()
        except FaceswapError as error:
            console.warn(str(error))
        else:
            if embedder is not None:
                return embedder
    return None


@dataclass(frozen=True)
class Likeness:
    """Whose face the swaps show, in an embedder's distances.

    All distances are means over pairs of faces, not to a mean face, so that they compare with each other and with
    the embedder's `same` and `other`: swaps as like the source as its own frames have `to_source` == `spread`; a model
    that changes nothing has `to_source` == `apart`.
    """

    to_source: float  # over all pairs of a swap and a face of the source
    to_target: float  # over all pairs of a swap and a face of the target
    spread: float  # over all pairs of two different faces of the source
    apart: float  # over all pairs of a face of the source and one of the target
    nearer: float  # share of the swaps whose mean distance to the source is smaller than that to the target


def likeness(swaps: Embeddings, source: Embeddings, target: Embeddings) -> Likeness:
    """See `Likeness`. `ValueError` without a swap, two faces of the source and one of the target."""
    if len(swaps) < 1 or len(source) < 2 or len(target) < 1:
        found = f"{len(swaps)}, {len(source)} and {len(target)}"
        raise ValueError(f"expected at least 1 swap, 2 faces of the source and 1 of the target, found {found}")
    to_source, to_target = distances(swaps, source).mean(1), distances(swaps, target).mean(1)
    among = distances(source, source)
    return Likeness(
        to_source=float(to_source.mean()),
        to_target=float(to_target.mean()),
        spread=float(among[np.triu_indices(len(source), 1)].mean()),
        apart=float(distances(source, target).mean()),
        nearer=float((to_source < to_target).mean()),
    )


def distances(a: Embeddings, b: Embeddings) -> NDArray[np.float64]:
    """The Euclidean distance (N, M) of each of `a` (N, D) from each of `b` (M, D)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(square, 0)))


def describe(found: Likeness, embedder: Embedder) -> str:
    """The likeness in one line that says how to read it."""
    return (
        f"identity: swaps lie {found.to_source:.2f} from the source, whose own frames lie {found.spread:.2f} apart, "
        f"and {found.to_target:.2f} from the target; one person usually lies below {embedder.same:.2f}, "
        f"others above {embedder.other:.2f} ({embedder.name})"
    )


class Dlib:
    """dlib's face recognition network, fed as dlib wants it: upright 150 px chips by its own five points.

    The points are eye corners and nose base, found by dlib's 5-point predictor inside `BOX`. Its 68-point predictor,
    which lies beside it, may not be used commercially and is never touched.
    """

    name = "dlib"
    # On four clips of one person each 92 % of the pairs or more lie below 0.4, all below 0.49; of the pairs among 205
    # portraits of, mostly, as many people 95 % lie above 0.53. The author's own line between the two is 0.6.
    same, other = 0.4, 0.53
    # Where dlib's frontal detector, on which the predictor was trained, sees the face: x0, y0, x1, y1 in units of the
    # crop's side. Measured on clips; edges moved by 3 to 5 % of the side change mean distances by at most 0.01.
    BOX = (0.188, 0.25, 0.773, 0.836)

    def __init__(self, folder: Path) -> None:
        """`folder` holds the two .dat files. What a broken installation raises is `find_dlib`'s to say."""
        import dlib

        self._dlib: Any = dlib
        self._points = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self._net = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def __call__(self, images: Sequence[Picture]) -> Embeddings:
        found: list[Embeddings] = [np.empty((0, 128), np.float32)]
        for batch in _batches(images):
            chips = [self._chip(np.ascontiguousarray(image)) for image in batch]
            found.append(np.array(self._net.compute_face_descriptor(chips), np.float32))
        return np.concatenate(found)

    def points(self, image: Picture) -> NDArray[np.float64]:
        """dlib's five points (5, 2) in pixels: image-right eye outer, inner; image-left eye outer, inner; nose."""
        return np.array([(p.x, p.y) for p in self._shape(image).parts()], np.float64)

    def _shape(self, image: Picture) -> Any:
        x0, y0, x1, y1 = (round(edge * len(image)) for edge in self.BOX)
        return self._points(image, self._dlib.rectangle(x0, y0, x1 - 1, y1 - 1))

    def _chip(self, image: Picture) -> Picture:
        return np.asarray(self._dlib.get_face_chip(image, self._shape(image), size=150, padding=0.25), np.uint8)


def find_dlib() -> Embedder | None:
    """dlib, None if it is not installed, `FaceswapError` if it is and does not work."""
    code, weights = importlib.util.find_spec("dlib"), importlib.util.find_spec("face_recognition_models")
    if code is None and weights is None:
        return None
    # The package of the weights is never imported: that would need pkg_resources, which is gone.
    places = list(weights.submodule_search_locations or []) if weights is not None else []
    if code is None or not places:
        missing = "dlib" if code is None else "face_recognition_models"
        raise FaceswapError(f"identity: {missing} is missing beside its other half; pip install 'faceswap[identity]'")
    try:
        return Dlib(Path(places[0]) / "models")
    except (ImportError, AttributeError, OSError, RuntimeError, MemoryError) as error:
        said = " ".join(str(error).split())
        remedy = "pip install --force-reinstall dlib-bin face_recognition_models"
        raise FaceswapError(f"identity: dlib is installed and does not work ({said}); {remedy}") from None


class FaceNet:
    """facenet-pytorch's InceptionResnetV1, trained on VGGFace2, on the CPU. Embeddings have length 1."""

    name = "facenet"
    # Not measured here. In facenet-pytorch's own example the pairs among five people lie at 0.78 to 1.45.
    same, other = 0.7, 0.9
    SIZE = 160
    # What MTCNN's box covers with the margin of the network's own evaluation, 14 of 160 px, in units of the crop's
    # side: median over clips and portraits. As there, it is squeezed into a square.
    BOX = (0.17, 0.055, 0.80, 0.90)

    def __init__(self, path: Path) -> None:
        """`CheckpointError` if the weight file is damaged, holds another network or has changed since it was pulled."""
        from facenet_pytorch import InceptionResnetV1
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self._net = InceptionResnetV1().eval().requires_grad_(False)
        try:
            self._net.load_state_dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error}); {FACENET_AGAIN}") from None
        except RuntimeError:  # its message is a list of hundreds of names
            raise CheckpointError(
                f"{path}: expected the weights of InceptionResnetV1, found others; {FACENET_AGAIN}"
            ) from None
        if files.noted_sha256(path) not in (None, files.sha256(path)):
            raise CheckpointError(f"{path}: changed since it was pulled; {FACENET_AGAIN}")

    def __call__(self, images: Sequence[Picture]) -> Embeddings:
        import torch

        found: list[Embeddings] = [np.empty((0, 512), np.float32)]
        for batch in _batches(images):
            faces = torch.from_numpy(np.stack([self._cut(image) for image in batch])).permute(0, 3, 1, 2)
            with torch.inference_mode():
                found.append(self._net((faces.float() - 127.5) / 128).numpy())
        return np.concatenate(found)

    def _cut(self, image: Picture) -> Picture:
        """`BOX` of a crop at `SIZE`."""
        x0, y0, x1, y1 = (edge * len(image) for edge in self.BOX)
        wide, high = self.SIZE / (x1 - x0), self.SIZE / (y1 - y0)
        matrix = np.array([[wide, 0, -x0 * wide], [0, high, -y0 * high]])
        return align.as_uint8(align.crop(image, matrix, self.SIZE))


def find_facenet() -> Embedder | None:
    """FaceNet, None if its weights are nowhere, `CheckpointError` if they are damaged."""
    weights = next((p for folder in files.weight_folders() if (p := folder / FACENET_FILE).is_file()), None)
    return FaceNet(weights) if weights else None


def _batches(images: Sequence[Picture]) -> list[Sequence[Picture]]:
    """`images`, `AT_ONCE` at a time. `ValueError` for what is not (S, S, 3) uint8: networks would take anything."""
    for image in images:
        if image.dtype != np.uint8 or image.shape != (len(image), len(image), 3):
            raise ValueError(f"expected canonical crops (S, S, 3) uint8, found {image.shape} {image.dtype}")
    return [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]


FINDERS: tuple[Callable[[], Embedder | None], ...] = (find_dlib, find_facenet)
