"""How good a swap is, in figures that need no downloaded weights.

Convention: images are canonical crops (N, S, S, 3) float32 RGB in [0, 1], masks (N, S, S) float32 in [0, 1], points
(N, 5, 2) float64 (x, y) in crop pixels in the order of `align.TEMPLATE`, NaN where no face was found. A measure gives
one number per face, (N,) float64; `TABLE` says what each means and which way is better.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from faceswap import align, losses

Images = NDArray[np.float32]
Points = NDArray[np.float64]
Numbers = NDArray[np.float64]

FEWEST = 15  # faces over which a mouth's movement can be told from the head's
RING = 0.03  # width of the rings on both sides of the seam, in units of the crop's side
FOCAL = 4.0  # focal length of the camera that pose assumes, in units of the crop's side: a face seen from 0.9 m

# Eyes, nose tip and mouth corners of an average head: mm; x to the image's right, y down, z away from the camera.
HEAD = np.array([[-31.5, 0, 0], [31.5, 0, 0], [0, 40, -29], [-25, 68, -5], [25, 68, -5]], np.float64)


@dataclass(frozen=True)
class Measure:
    """What a figure means."""

    label: str
    unit: str
    best: float | None  # the perfect value: a figure is better the nearer it comes; None: see its neighbours
    meaning: str


TABLE: dict[str, Measure] = {
    "found": Measure("found", "", 1, "share of the faces in which the detector finds one"),
    "psnr": Measure("PSNR", "dB", np.inf, "10 log10(1 / mean squared difference) inside the face; capped at 100"),
    "psnr_laid": Measure("laid-in PSNR", "dB", np.inf, "PSNR where the face is laid in: what the network can change"),
    "ssim": Measure("SSIM", "", 1, "structural similarity inside the face, Gaussian window 11 px, sigma 1.5"),
    "ms_ssim": Measure("MS-SSIM", "", 1, "SSIM over five scales (three for crops up to 160 px) inside the face"),
    "landmarks": Measure("landmarks", "%", 0, "mean distance of five detected points, % of the eyes' distance"),
    "pose": Measure("pose", "°", 0, "angle between two head rotations, each fitted to five detected points"),
    "expression": Measure("expression", "%", 0, "deviation over time of the expression fitted to it, % of range"),
    "mouth": Measure("mouth", "r", 1, "correlation over time of the mouth's width and distance to the nose, less pose"),
    "flicker": Measure("flicker", "x", 1, "mean change from frame to frame inside the face, swap / reference"),
    "seam": Measure("seam", "ΔE", 0, "colour difference (CIEDE2000) across the edge that the reference lacks"),
    "sharpness": Measure("sharpness", "x", 1, "variance of the Laplacian inside the face, swap / reference"),
    "identity_source": Measure("to source", "", None, "mean face embedding distance of the swap to the source"),
    "identity_target": Measure("to target", "", None, "mean face embedding distance of the swap to the target"),
    "identity_spread": Measure("own spread", "", None, "mean face embedding distance of the source to itself"),
    "swap_back": Measure("swap-back", "dB", np.inf, "PSNR of the target drawn as the source and back as the target"),
    "decoders": Measure("decoders", "x", np.inf, "target drawn as source against target drawn as target, mean absolute "
                        "difference inside the face, over the error of the latter: near 1 or below, the swap repeats "
                        "the target"),
}  # fmt: skip


def tensor(images: NDArray[Any]) -> torch.Tensor:
    """Images (N, S, S, 3) or masks (N, S, S) as (N, C, S, S) float32."""
    stacked = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)


def fidelity(images: Images, references: Images, masks: Images) -> dict[str, Numbers]:
    """PSNR (dB, at most 100), SSIM and MS-SSIM of each image against its reference, inside the mask; NaN if empty."""
    ours, theirs, weight = tensor(images), tensor(references), tensor(masks)
    found = {
        "psnr": losses.psnr(ours, theirs, weight),
        "ssim": 1 - losses.ssim(ours, theirs, weight),
        "ms_ssim": 1 - losses.ms_ssim(ours, theirs, weight),
    }
    seen = masks.any((1, 2))
    return {name: np.where(seen, value.double().numpy(), np.nan) for name, value in found.items()}


def landmark_error(points: Points, references: Points) -> Numbers:
    """Mean distance of five points to the reference's, in % of the reference's distance between the eyes."""
    distance = np.linalg.norm(points - references, axis=2).mean(1)
    return np.asarray(100 * distance / np.linalg.norm(references[:, 1] - references[:, 0], axis=1))


def rotation(points: NDArray[Any], size: int, head: NDArray[np.float64] = HEAD) -> NDArray[np.float64]:
    """The rotation (3, 3) that puts `head` (N, 3) on points (N, 2) of a crop of `size` px; NaN if none does.

    Perspective-n-point by SQPnP (Terzakis and Lourakis, ECCV 2020) with the focal length `FOCAL`. By five points of an
    average head yaw is good to a few degrees, pitch is coarse.
    """
    if not np.isfinite(points).all():
        return np.full((3, 3), np.nan)
    middle = (size - 1) / 2
    camera = np.array([[FOCAL * size, 0, middle], [0, FOCAL * size, middle], [0, 0, 1]])
    try:
        found, turn, _ = cv2.solvePnP(head, np.asarray(points, np.float64), camera, None, flags=cv2.SOLVEPNP_SQPNP)
    except cv2.error:  # the points (all but) coincide
        found = False
    if not found:
        return np.full((3, 3), np.nan)
    return np.asarray(cv2.Rodrigues(turn)[0], np.float64)


def pose_error(points: Points, references: Points, size: int) -> Numbers:
    """The angle in degrees between the head rotations of two sets of points."""
    found = []
    for ours, theirs in zip(points, references, strict=True):
        between = rotation(ours, size) @ rotation(theirs, size).T
        odd = between - between.T
        sine = np.linalg.norm([odd[2, 1], odd[0, 2], odd[1, 0]]) / 2
        found.append(np.degrees(np.arctan2(sine, (np.trace(between) - 1) / 2)))
    return np.array(found, np.float64)


def mouth_shape(points: Points) -> NDArray[np.float64]:
    """Width of the mouth and its distance from the nose (N, 2), in units of the distance between the eyes."""
    eyes = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
    width = np.linalg.norm(points[:, 4] - points[:, 3], axis=1)
    below = np.linalg.norm((points[:, 3] + points[:, 4]) / 2 - points[:, 2], axis=1)
    return np.asarray(np.stack([width, below], 1) / eyes[:, None])


def mouth_agreement(points: Points, references: Points) -> float:
    """Mean Pearson correlation over the faces of the two numbers of `mouth_shape`, after what the head's pose explains
    of them is taken out: least squares on the place of the reference's nose between its eyes, to second order.

    NaN for fewer than `FEWEST` faces, or if a mouth never moves.
    """
    sound = np.isfinite(points + references).all((1, 2))
    points, references = points[sound], references[sound]
    if len(points) < FEWEST:
        return float("nan")
    eyes = references[:, 1] - references[:, 0]
    nose = references[:, 2] - references[:, :2].mean(1)
    across = (nose * eyes).sum(1) / (eyes**2).sum(1)
    down = (eyes[:, 0] * nose[:, 1] - eyes[:, 1] * nose[:, 0]) / (eyes**2).sum(1)
    pose = np.column_stack([np.ones_like(across), across, down, across**2, down**2, across * down])
    shapes = [mouth_shape(points), mouth_shape(references)]
    ours, theirs = (shape - pose @ np.linalg.lstsq(pose, shape)[0] for shape in shapes)
    moved = [(shape**2).sum(0) for shape in (ours, theirs)]
    norm = np.sqrt(np.where(np.minimum(*moved) > 1e-12, moved[0] * moved[1], np.nan))  # rounding is no movement
    return float(((ours * theirs).sum(0) / norm).mean())


def change(images: Images, following: Images, masks: Images) -> Numbers:
    """Mean absolute change inside the mask from each image to the following one (in the same coordinates)."""
    difference = np.abs(following - images).mean(3)
    return np.array([_inside(values, mask) for values, mask in zip(difference, masks, strict=True)], np.float64)


def _inside(values: NDArray[Any], mask: NDArray[np.float32]) -> float:
    """The mean of `values` (S, S) under the mask; NaN if it is empty."""
    return float((values * mask).sum() / mask.sum()) if mask.any() else float("nan")


def seam(images: Images, references: Images, masks: Images) -> Numbers:
    """How much more the colour changes across the mask's edge than it does in the reference: mean CIEDE2000.

    Along the edge, the local mean colour just inside is held against that just outside, in rings of `RING` of the side;
    where the reference changes as much or more, nothing is added. The colour is sRGB under D65; CIEDE2000 as in
    Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula", 2005.
    """
    width = max(2, round(RING * masks.shape[1]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    found = []
    for image, reference, mask in zip(images, references, masks, strict=True):
        inside = (mask > 0.5).astype(np.uint8)
        rings = (inside - cv2.erode(inside, kernel), cv2.dilate(inside, kernel) - inside)
        edge = cv2.dilate(inside, np.ones((3, 3), np.uint8)) > inside
        ours, theirs = (_across(picture, rings, width, edge) for picture in (image, reference))
        found.append(mean(np.maximum(ours - theirs, 0)))
    return np.array(found, np.float64)


def _across(
    image: NDArray[np.float32], rings: tuple[NDArray[np.uint8], ...], width: int, edge: NDArray[np.bool_]
) -> Numbers:
    """CIEDE2000 between the local means of the image (S, S, 3) in two rings, at the places that `edge` (S, S) marks."""
    lab = rgb2lab(np.clip(image, 0, 1)).astype(np.float32)
    near, far = (_local_mean(lab, ring.astype(np.float32), width)[edge] for ring in rings)
    return np.asarray(deltaE_ciede2000(near, far), np.float64)


def _local_mean(image: NDArray[np.float32], weight: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The mean of the image under `weight` around each pixel, in a Gaussian window of deviation `width` px."""
    total = cv2.GaussianBlur(weight, (0, 0), width) + np.float32(1e-6)
    return np.asarray(cv2.GaussianBlur(image * weight[..., None], (0, 0), width) / total[..., None], np.float32)


def laplacian(images: Images, masks: Images) -> Numbers:
    """Variance of the Laplacian of the luma (BT.601) inside the mask."""
    found = []
    for image, mask in zip(images, masks, strict=True):
        edges = cv2.Laplacian(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), cv2.CV_32F)
        found.append(_inside((edges - _inside(edges, mask)) ** 2, mask))
    return np.array(found, np.float64)


def register(image: NDArray[np.float32], matrix: align.Matrix, onto: align.Matrix, size: int) -> NDArray[np.float32]:
    """A crop (S, S, 3) made with `matrix` in the coordinates of a crop of the same frame made with `onto`."""
    there = np.vstack([onto, [0, 0, 1]]) @ np.vstack([align.invert(matrix), [0, 0, 1]])
    return align.crop(image, there[:2], size)


def mean(values: NDArray[Any]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    sound = values[np.isfinite(values)]
    return float(sound.mean()) if len(sound) else float("nan")


def ratio(values: NDArray[Any], references: NDArray[Any]) -> float:
    """The mean of the values over that of the references; NaN if the latter is 0."""
    below = mean(references)
    return mean(values) / below if below else float("nan")


Rows = Mapping[str, Mapping[str, float | None]]


def plain(rows: Rows) -> dict[str, dict[str, float | None]]:
    """The rows with None for what could not be measured, as JSON wants it."""
    return {
        row: {name: value if value is not None and np.isfinite(value) else None for name, value in values.items()}
        for row, values in rows.items()
    }


def columns(rows: Rows) -> list[str]:
    """The measures that any of the rows has, in the order of `TABLE`."""
    return [name for name in TABLE if any(name in row for row in rows.values())]


def text_table(rows: Rows) -> str:
    """Figures as aligned lines: one row per mapping, one column per measure."""
    names = columns(rows)
    heads = [TABLE[n].label + (f" {TABLE[n].unit}" if TABLE[n].unit else "") for n in names]
    lines = [["", *heads], *([title, *(shown(row.get(name)) for name in names)] for title, row in rows.items())]
    wide, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join("  ".join([title.ljust(wide), *map(str.rjust, cells, widths)]) for title, *cells in lines)


def shown(value: float | None) -> str:
    """A figure in words: three or four digits, a dash if it was not measured."""
    if value is None or np.isnan(value):
        return "-"
    return f"{value:z.0f}" if abs(value) >= 1000 else f"{value:z.1f}" if abs(value) >= 10 else f"{value:z.3f}"
