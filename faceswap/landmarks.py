"""Face crop to dense landmarks, by a small network that ships in `pretrained/`.

The points are 152 of the 478 of MediaPipe's face mesh with irises, whose index scheme and whose points on training
faces were the teacher (Apache-2.0); `MESH` says which. The first 68 are those of iBUG 300-W (Sagonas et al., 2013), and
the five points that align a face derive from these: see `five`. Then follow the rest of the face's contour with the
forehead, of brows, eyes, irises, nose and lips.

Convention: points are (x, y) in pixels, pixel centres at integers, float32; left and right are the image's. `fit` in
[0, 1] says how well the network thinks that it did: it expects a mean error of 5 % of the distance between the eyes
times log2(1 / fit), so 0.5 stands for 5 % and 0.25 for 10 %. A picture without a face has a fit near 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from faceswap import align, files
from faceswap.errors import CheckpointError

SIZE = 128  # px, side of the canonical crops that the network sees
FILE = "landmarks.safetensors"
LOOK = 20  # px
AT_ONCE = 32  # faces that go through the network together
UNIT = 0.05  # of the distance between the eyes: the error that halves `fit`

# Indices of the face mesh. Eyes and brows are listed in mirrored order; the contour goes clockwise from the forehead's
# top, the lips from the image-left corner below the mouth to the right one and back.
_JAW = [127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356]
_BROWS_68 = [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]
_NOSE_68 = [168, 197, 5, 4, 98, 97, 2, 326, 327]
_EYES_68 = [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]
_LIPS_68 = [61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91, 78, 81, 13, 311, 308, 402, 14, 178]
_CONTOUR = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
_CONTOUR += [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
_LIPS = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185]
_MOUTH = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191]
_EYE_LEFT = [33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246]
_EYE_RIGHT = [263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466]
_BROW_LEFT = [46, 53, 52, 65, 55, 107, 66, 105, 63, 70]
_BROW_RIGHT = [276, 283, 282, 295, 285, 336, 296, 334, 293, 300]
_NOSE = [168, 6, 197, 195, 5, 4, 1, 2, 129, 98, 97, 326, 327, 358]
_NOSE_MIRRORED = [168, 6, 197, 195, 5, 4, 1, 2, 358, 327, 326, 97, 98, 129]
_IRIS_LEFT, _IRIS_RIGHT = [468, 469, 470, 471, 472], [473, 476, 475, 474, 477]  # the centre first

_SIXTY_EIGHT = _JAW + _BROWS_68 + _NOSE_68 + _EYES_68 + _LIPS_68
_ALL = _CONTOUR + _BROW_LEFT + _BROW_RIGHT + _EYE_LEFT + _EYE_RIGHT + _IRIS_LEFT + _IRIS_RIGHT + _NOSE + _LIPS + _MOUTH
MESH = np.array(_SIXTY_EIGHT + sorted(set(_ALL) - set(_SIXTY_EIGHT)))  # (152,) the mesh's index of each point
COUNT = len(MESH)

_place = {mesh: place for place, mesh in enumerate(MESH.tolist())}


def _places(mesh: Sequence[int]) -> NDArray[np.int64]:
    return np.array([_place[index] for index in mesh])


# Where the parts of a face stand among the 152 points, in drawing order.
CONTOUR, LIPS, MOUTH, NOSE = _places(_CONTOUR), _places(_LIPS), _places(_MOUTH), _places(_NOSE)
EYE_LEFT, EYE_RIGHT = _places(_EYE_LEFT), _places(_EYE_RIGHT)
BROW_LEFT, BROW_RIGHT = _places(_BROW_LEFT), _places(_BROW_RIGHT)
IRIS_LEFT, IRIS_RIGHT = _places(_IRIS_LEFT), _places(_IRIS_RIGHT)


def _mirror() -> NDArray[np.int64]:
    """For each point the one that takes its place in the mirrored face."""

    def turned(ring: list[int], start: int) -> list[int]:
        return [ring[(start - i) % len(ring)] for i in range(len(ring))]

    given = _CONTOUR + _LIPS + _MOUTH + _NOSE + _EYE_LEFT + _EYE_RIGHT + _BROW_LEFT + _BROW_RIGHT
    other = turned(_CONTOUR, 0) + turned(_LIPS, 10) + turned(_MOUTH, 10) + _NOSE_MIRRORED
    other += _EYE_RIGHT + _EYE_LEFT + _BROW_RIGHT + _BROW_LEFT
    given, other = given + _IRIS_LEFT + _IRIS_RIGHT, other + _IRIS_RIGHT + _IRIS_LEFT
    pairs = dict(zip(given, other, strict=True))
    return _places([pairs[mesh] for mesh in MESH.tolist()])


MIRROR = _mirror()  # (152,)


def five(points: NDArray[Any]) -> NDArray[np.float32]:
    """The five points (..., 5, 2) of `detectors.Face` from landmarks (..., N, 2) whose first 68 are iBUG's.

    An eye is the middle between its corners, which neither gaze nor lids move.
    """
    points = np.asarray(points, np.float32)
    left, right = points[..., [36, 39], :].mean(-2), points[..., [42, 45], :].mean(-2)
    return np.stack([left, right, points[..., 30, :], points[..., 48, :], points[..., 54, :]], -2)


def eye_distance(points: NDArray[Any]) -> NDArray[np.float64]:
    """The distance (...) between the middles of the eyes of landmarks (..., N, 2) whose first 68 are iBUG's."""
    eyes = five(points)[..., :2, :].astype(np.float64)
    return np.asarray(np.linalg.norm(eyes[..., 0, :] - eyes[..., 1, :], axis=-1))


@dataclass(frozen=True)
class Landmarks:
    """A face's dense landmarks (152, 2) in pixels of its picture, and how well they fit; see the module's docstring."""

    points: NDArray[np.float32]
    fit: float
    look: NDArray[np.float32]  # (LOOK * LOOK,) a tiny grey picture of the face, to tell it from another nearby

    @property
    def five(self) -> NDArray[np.float32]:
        """The five points (5, 2)."""
        return five(self.points)


# The network


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class _Block(nn.Module):
    """Inverted residual (Sandler et al., "MobileNetV2", 2018)."""

    def __init__(self, channels: int, expansion: int = 2) -> None:
        super().__init__()
        wide = channels * expansion
        widen, depthwise = _conv(channels, wide, 1), _conv(wide, wide, 3, groups=wide)
        self.body = nn.Sequential(*widen, nn.ReLU(), *depthwise, nn.ReLU(), *_conv(wide, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Network(nn.Module):
    """Canonical crops (N, 3, 128, 128) float32 RGB in [0, 1] -> points (N, 152, 2) in units of the crop's side, as
    `align.TEMPLATE` has them, and the logit (N,) of the fit."""

    WIDTHS, BLOCKS, CODE = (16, 32, 64, 128), (2, 3, 3), 128
    mean: Tensor  # the points (152, 2) of the mean face, from which the network counts

    def __init__(self) -> None:
        super().__init__()
        first, *rest = self.WIDTHS
        layers = [*_conv(3, first, 3, stride=2), nn.ReLU()]
        for before, width, blocks in zip(self.WIDTHS[:-1], rest, self.BLOCKS, strict=True):
            layers += [*_conv(before, width, 3, stride=2), nn.ReLU(), *(_Block(width) for _ in range(blocks))]
        layers += [*_conv(self.WIDTHS[-1], self.CODE, 3, stride=2), nn.ReLU(), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(self.CODE * (SIZE // 32) ** 2, 2 * COUNT + 1)
        self.register_buffer("mean", torch.zeros(COUNT, 2))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(self.body(crops * 4 - 2))
        return out[:, :-1].unflatten(1, (COUNT, 2)) * 0.1 + self.mean, out[:, -1]


def load(path: Path) -> Network:
    """The network in the weight file `path`; `CheckpointError` if it is missing, damaged or another's."""
    network = Network()
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (SafetensorError, OSError, RuntimeError) as error:
        said = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{path}: expected the weights of the landmark network ({said}); install faceswap again"
        ) from None
    return network.eval().requires_grad_(False)


class Landmarker:
    """Finds the landmarks of faces whose five points are roughly known."""

    def __init__(self, device: str = "cpu", path: Path | None = None) -> None:
        """`path` is the weight file, by default the one that ships; errors as in `load`."""
        network = load(path or files.shipped("pretrained") / FILE)
        self.device = torch.device(device)
        self.network = _Flat(network.to(self.device))

    def __call__(
        self,
        images: Sequence[NDArray[Any]],  # (H, W, 3) RGB, uint8 or uint16; may be one image many times
        points: Sequence[NDArray[Any]],  # of one face in each: (5, 2) in its pixels, of a detector or a frame before
        *,
        passes: int = 1,  # each but the first looks again where the one before found the face
    ) -> list[Landmarks]:
        """The landmarks of one face per image, in its pixels."""
        found: list[Landmarks] = []
        for start in range(0, len(images), AT_ONCE):
            some, where = images[start : start + AT_ONCE], list(points[start : start + AT_ONCE])
            for _ in range(passes):
                batch = self._look(some, where)
                where = [face.five for face in batch]
            found += batch
        return found

    @torch.inference_mode()
    def _look(self, images: Sequence[NDArray[Any]], points: Sequence[NDArray[Any]]) -> list[Landmarks]:
        places = [align.crop_matrix(five, SIZE) for five in points]
        crops = [align.as_uint8(align.glimpse(image, at, SIZE)) for image, at in zip(images, places, strict=True)]
        pixels = torch.from_numpy(np.stack(crops)).to(self.device).permute(0, 3, 1, 2)
        drawn, logits = self.network(pixels.float() / 255)
        found, fits = drawn.cpu().numpy() * SIZE, torch.sigmoid(logits).tolist()
        spread = [align.apply(align.invert(at), face) for at, face in zip(places, found, strict=True)]
        looks = [_shrunk(crop) for crop in crops]
        return [Landmarks(f.astype(np.float32), fit, look) for f, fit, look in zip(spread, fits, looks, strict=True)]


def look_at(image: NDArray[Any], points: NDArray[Any]) -> NDArray[np.float32]:
    """The tiny picture (see `Landmarks.look`) of what lies at a face's five points (5, 2) in `image`."""
    return _shrunk(align.as_uint8(align.glimpse(image, align.crop_matrix(points, SIZE), SIZE)))


def _shrunk(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    inner = crop[SIZE // 5 : -SIZE // 5, SIZE // 5 : -SIZE // 5]  # brows to lips: what lies around is no face
    small = cv2.resize(inner, (LOOK, LOOK), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32).ravel()


class _Flat:
    """What a network computes, as one list of steps: batch norms taken into convolutions, no module calls, in place.

    On a CPU, where a face takes five milliseconds, calls and copies are a third of them.
    """

    def __init__(self, network: Network) -> None:
        self.steps: list[tuple[str, tuple[Any, ...]]] = []
        self._add(network.body)
        self.mean, self.head = network.mean, network.head

    def _add(self, layers: nn.Sequential) -> None:
        parts = list(layers)
        for layer, after in zip(parts, [*parts[1:], None], strict=True):
            if isinstance(layer, _Block):
                self.steps.append(("keep", ()))
                self._add(layer.body)
                self.steps.append(("add", ()))
            elif isinstance(layer, nn.Conv2d):
                assert isinstance(after, nn.BatchNorm2d)
                conv = fuse_conv_bn_eval(layer, after)
                weight = conv.weight.contiguous(memory_format=torch.channels_last)
                self.steps.append(("conv", (weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)))
            elif isinstance(layer, nn.ReLU):
                self.steps.append(("relu", ()))

    def __call__(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """As `Network.forward`."""
        x = kept = crops.contiguous(memory_format=torch.channels_last) * 4 - 2
        for step, given in self.steps:
            if step == "conv":
                x = torch.conv2d(x, *given)
            elif step == "relu":
                x = torch.relu_(x)
            elif step == "keep":
                kept = x
            else:
                x = x.add_(kept)
        out = self.head(x.flatten(1))
        return out[:, :-1].unflatten(1, (COUNT, 2)) * 0.1 + self.mean, out[:, -1]
