"""Faces as the network should meet them: moved, warped, recoloured, hidden, spoilt.

What happens to a face is drawn beforehand, in a `Plan`. `move` carries it out with OpenCV, face by face on the CPU;
`move_together` does the same with torch, all at once on an accelerator.

Convention: images are (B, R, R, 3) uint8 RGB, masks (B, 2, R, R) uint8, the face's and that of its eyes and mouth;
(x, y) in pixels with pixel centres at integers. Results are (B, C, R, R) float32 in [0, 1], channels_last.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from faceswap.config import DataRecipe

Image = NDArray[np.uint8]
Numbers = NDArray[np.float32]
Moved = tuple[Tensor, Tensor, Tensor, Tensor]  # input, target, mask, priority

GHOST = 0.5  # most of what a disguise shows of somebody else
BEND, TONE, SOFT = 0.022, 0.16, (0.4, 1.6)  # of a disguise: units of the side, of a logarithm, pixels
NODES = 5  # the random warp is drawn on a grid of 5 x 5 nodes
LEAST = 1e-3  # variance added on both sides of a transfer: where neither varies nothing is stretched
COLORS = 512  # pixels that stand for a face's colours
TURNS = 8  # random turns of the axes along which sliced optimal transport sorts colours
BYTE = np.array([1 / 255, 1 / 255, 1 / 255, 1], np.float32)  # lets a map of colours start from 0 to 255


@dataclass(frozen=True)
class Plan:
    """What happens to each of B faces."""

    place: Numbers  # (B, 2, 3), from a pixel of the result to the pixel of the face that is seen there
    warp: Numbers  # (B, 2, NODES, NODES), how far (x, y) the input looks beside it, in pixels
    color: Numbers  # (B, 3, 4), from (r, g, b, 1) in [0, 1] to (r, g, b)
    occluded: NDArray[np.bool_]  # (B,)
    degraded: NDArray[np.bool_]  # (B,), the input only
    disguised: NDArray[np.bool_]  # (B,), the input only
    other: NDArray[np.int64]  # (B,), number of the face that lends its texture or its colours
    seed: NDArray[np.int64]  # (B,), of what is drawn for a face alone

    def __getitem__(self, rows: Sequence[int] | NDArray[np.int64]) -> "Plan":
        return Plan(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw(count: int, side: int, recipe: DataRecipe, seed: Sequence[int]) -> Plan:
    """The plan of `count` faces of `side` px: a function of the arguments. One probability moves no other draw."""
    random = np.random.default_rng(seed)

    def uniform(*shape: int, reach: float) -> NDArray[np.float64]:
        return random.uniform(-reach, reach, shape)

    angle = np.radians(uniform(count, reach=recipe.rotation))
    scale = np.exp(uniform(count, reach=float(np.log1p(recipe.scale))))
    shift = uniform(count, 2, reach=recipe.shift * side)
    flip = np.where(random.random(count) < recipe.flip, -1, 1)
    cos, sin, middle = scale * np.cos(angle), scale * np.sin(angle), (side - 1) / 2
    linear = np.stack([flip * cos, -sin, flip * sin, cos], 1).reshape(count, 2, 2)
    offset = middle + shift - linear.sum(2) * middle
    warp = random.standard_normal((count, 2, NODES, NODES)) * (recipe.warp * side)
    reach = recipe.color
    saturation = 1 + uniform(count, 1, 1, reach=2 * reach)
    gain = 1 + uniform(count, 1, 1, reach=reach) + uniform(count, 3, 1, reach=reach / 2)
    matrix = gain * (saturation * np.eye(3) + (1 - saturation) / 3)
    color = np.concatenate([matrix, uniform(count, 3, 1, reach=reach / 2)], 2)
    occluded, degraded = random.random(count) < recipe.occlude, random.random(count) < recipe.degrade
    other, seeds = random.integers(count, size=count), random.integers(2**31, size=count)
    disguised = random.random(count) < recipe.disguise
    place = np.concatenate([linear, offset[:, :, None]], 2)
    return Plan(_single(place), _single(warp), _single(color), occluded, degraded, disguised, other, seeds)


def _single(numbers: NDArray[Any]) -> Numbers:
    return np.asarray(numbers, np.float32)


# ---------------------------------------------------------------- from plan to pixels


def empty(count: int, side: int) -> Moved:
    """Room for what `move` gives."""
    pictures = [torch.empty(count, side, side, 3).permute(0, 3, 1, 2) for _ in range(2)]
    masks = [torch.empty(count, 1, side, side) for _ in range(2)]
    return pictures[0], pictures[1], masks[0], masks[1]


def move(
    inputs: Image, images: Image, masks: Image, plan: Plan, blur_out: bool, rows: Sequence[int], out: Moved
) -> None:
    """Some `rows` of a batch, into `out`: the target is moved and recoloured; the input is so too, and warped.

    Targets are sampled bicubic, which keeps them sharp, inputs and masks linear; the border is repeated.
    """
    columns, border = _columns(images.shape[1]), cv2.BORDER_REPLICATE
    source, target = (picture.permute(0, 2, 3, 1).numpy() for picture in out[:2])
    drawn = [mask[:, 0].numpy() for mask in out[2:]]
    for row, warped, moved in zip(rows, *_coefficients(plan[rows]), strict=True):  # small arrays stay in the cache
        color = plan.color[row] * BYTE
        x, y = columns @ warped @ columns.T
        seen = cv2.cvtColor(inputs[row], cv2.COLOR_RGB2RGBA)  # of four channels OpenCV samples in half the time
        seen = cv2.cvtColor(cv2.remap(seen, x, y, cv2.INTER_LINEAR, None, border), cv2.COLOR_RGBA2RGB)
        np.clip(cv2.transform(seen.astype(np.float32), color), 0, 1, out=source[row])
        x, y = columns @ moved @ columns.T
        sampled = cv2.remap(images[row].astype(np.float32), x, y, cv2.INTER_CUBIC, None, border)
        np.clip(cv2.transform(sampled, color), 0, 1, out=target[row])
        for mask, room in zip(masks[row], drawn, strict=True):
            np.multiply(cv2.remap(mask, x, y, cv2.INTER_LINEAR, None, border), BYTE[0], out=room[row])
        if blur_out:
            target[row] = _blur_out(target[row], drawn[0][row])


def move_together(inputs: Tensor, images: Tensor, masks: Tensor, plan: Plan, blur_out: bool) -> Moved:
    """What `move` does, to the whole batch on its device."""
    device, side = images.device, images.shape[1]
    columns, color = (torch.from_numpy(array).to(device) for array in (_columns(side), plan.color))
    places = columns @ torch.from_numpy(_coefficients(plan)).to(device) @ columns.T
    warped, moved = (2 * places.permute(0, 1, 3, 4, 2) + 1) / side - 1  # pixels to grid_sample's units

    def sample(pictures: Tensor, where: Tensor, mode: str) -> Tensor:
        return F.grid_sample(pictures.float() / 255, where, mode, padding_mode="border", align_corners=False)

    def recolored(pictures: Tensor, where: Tensor, mode: str) -> Tensor:
        found = sample(pictures.permute(0, 3, 1, 2), where, mode)
        return (torch.einsum("boc,bchw->bohw", color[:, :, :3], found) + color[:, :, 3, None, None]).clamp_(0, 1)

    source, target = recolored(inputs, warped, "bilinear"), recolored(images, moved, "bicubic")
    drawn = sample(masks, moved, "bilinear")
    if blur_out:
        target = _blur_out_together(target, drawn[:, :1])
    source, target = (picture.contiguous(memory_format=torch.channels_last) for picture in (source, target))
    return source, target, drawn[:, :1].contiguous(), drawn[:, 1:].contiguous()


def to_float(images: Tensor) -> Tensor:
    """(B, R, R, C) uint8 as (B, C, R, R) float32 in [0, 1], channels_last."""
    return images.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


@cache
def _columns(side: int) -> Numbers:
    """The functions (R, NODES + 2) of one coordinate of which maps are made: a bicubic bump for each node of the warp,
    the coordinate itself, and one."""
    bumps = F.interpolate(torch.eye(NODES)[None, :, :, None], (side, 1), mode="bicubic", align_corners=True)
    return np.column_stack([bumps[0, :, :, 0].T.numpy(), np.arange(side), np.ones(side)]).astype(np.float32)


def _coefficients(plan: Plan) -> Numbers:
    """c (2, B, 2, NODES + 2, NODES + 2): `_columns` @ c @ `_columns`.T says where each pixel of the input, of the
    target is taken from, x and y."""
    found = np.zeros((2, len(plan.warp), 2, NODES + 2, NODES + 2), np.float32)
    found[0, :, :, :NODES, :NODES] = plan.warp
    found[..., -1, -2], found[..., -2, -1], found[..., -1, -1] = np.moveaxis(plan.place, 2, 0)
    return found


@cache
def _kernel(side: int) -> Numbers:
    """A Gaussian of standard deviation R / 128."""
    sigma = side / 128
    return np.asarray(cv2.getGaussianKernel(2 * int(np.ceil(3 * sigma)) + 1, sigma, cv2.CV_32F), np.float32)[:, 0]


def _blur_out(image: Numbers, mask: Numbers) -> Numbers:
    """The image outside the mask replaced by its own blur: T M + G(T (1 - M)) / G(1 - M) (1 - M), where G is a Gaussian
    of standard deviation R / 128, as DeepFaceLab has it."""
    kernel, outside = _kernel(len(image)), 1 - mask
    blurred = cv2.sepFilter2D(image * outside[..., None], -1, kernel, kernel)
    weight = cv2.sepFilter2D(outside, -1, kernel, kernel)
    share = outside / np.where(weight > 0, weight, 1)
    return np.asarray(image * mask[..., None] + blurred * share[..., None], np.float32)


def _blur_out_together(images: Tensor, masks: Tensor) -> Tensor:
    kernel, outside = torch.from_numpy(_kernel(images.shape[2])).to(images.device), 1 - masks
    reach, weights = len(kernel) // 2, kernel.expand(4, 1, 1, -1)
    both = F.pad(torch.cat([images * outside, outside], 1), [reach] * 4, mode="reflect")
    both = F.conv2d(F.conv2d(both, weights, groups=4), weights.transpose(2, 3), groups=4)
    blurred, weight = both[:, :3], both[:, 3:]
    return images * masks + blurred * outside / torch.where(weight > 0, weight, 1)


# ---------------------------------------------------------------- of one face alone


def occlude(image: Image, masks: Image, texture: Image, seed: int) -> tuple[Image, Image]:
    """A face (R, R, 3) and its masks (2, R, R) behind one to three soft ellipses, bars or polygons, which the masks
    leave out. They are of one colour, or noisy, or show the face `texture` upside down: skin, as of a hand."""
    random, side = np.random.default_rng(seed), len(image)
    shape: Image = np.zeros((side, side), np.uint8)
    for kind in random.integers(3, size=random.integers(1, 4)):
        centre = random.uniform(0.15, 0.85, 2) * side
        turn, radii = random.uniform(0, 2 * np.pi), random.uniform(0.05, 0.2, 2) * side
        if kind == 0:
            ellipse = (centre.tolist(), (2 * radii).tolist(), float(np.degrees(turn)))
            cv2.ellipse(shape, ellipse, (255,), -1)
        elif kind == 1:
            along = np.array([np.cos(turn), np.sin(turn)]) * side
            ends = np.round([centre, centre + along]).astype(int).tolist()
            cv2.line(shape, ends[0], ends[1], (255,), max(1, round(radii[0] / 2)))
        else:
            angles = np.sort(random.uniform(0, 2 * np.pi, 6))
            reach = random.uniform(0.3, 1, (6, 1)) * radii.max() * 1.3
            corners = centre + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(shape, [np.round(corners).astype(np.int32)], (255,))
    soft = cv2.GaussianBlur(shape, (0, 0), random.uniform(0.003, 0.03) * side).astype(np.float32) / 255
    before, kind = np.full(image.shape, random.uniform(0, 255, 3), np.float32), random.integers(3)
    if kind == 1:
        noise = random.normal(0, 60, (side // 2, side // 2, 3)).astype(np.float32)
        before += cv2.resize(noise, (side, side), interpolation=cv2.INTER_LINEAR)
    elif kind == 2:
        before = texture[::-1].astype(np.float32)
    hidden = image + (before.clip(0, 255) - image) * soft[..., None]
    return np.round(hidden).astype(np.uint8), np.round(masks * (1 - soft)).astype(np.uint8)


def degrade(image: Image, seed: int) -> Image:
    """A face (R, R, 3) blurred, sharpened (some players of .dfm do that), noisy, recompressed, or from fewer pixels."""
    if not hasattr(_THREAD, "spoil"):
        _THREAD.spoil = _degradations()
    _THREAD.spoil.set_random_seed(seed)
    return np.asarray(_THREAD.spoil(image=image)["image"], np.uint8)


def disguise(image: Image, other: Image, seed: int) -> Image:
    """A face (R, R, 3) that could be somebody else's at the same moment: with the ghost of `other`, smoothly bent, of
    another tone, less sharp."""
    random, side = np.random.default_rng(seed), len(image)
    ghost = random.uniform(0, GHOST)
    image = np.asarray(cv2.addWeighted(image, 1 - ghost, other, ghost, 0), np.uint8)
    nodes = random.normal(0, BEND * side, (2, NODES, NODES)).astype(np.float32)
    x, y = (cv2.resize(part, (side, side), interpolation=cv2.INTER_CUBIC) for part in nodes)
    column = np.arange(side, dtype=np.float32)
    bent = cv2.remap(image, x + column, y + column[:, None], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    tone = np.exp(random.normal(0, TONE, 3) + random.normal(0, TONE))
    curves = 255 * np.linspace(0, 1, 256)[:, None] ** tone
    softened = cv2.GaussianBlur(cv2.LUT(bent, np.round(curves).astype(np.uint8)[None]), (0, 0), random.uniform(*SOFT))
    return np.asarray(softened, np.uint8)


_THREAD = threading.local()  # albumentations keeps its random numbers in the object


def _degradations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for news on import
    import albumentations as A

    return A.Compose(
        [
            A.OneOf(
                [
                    A.ImageCompression(quality_range=(30, 90), p=1),
                    A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.2), p=1),
                    A.MotionBlur(blur_limit=(3, 5), direction_range=(0, 0), allow_shifted=False, p=1),  # in place
                    A.GaussNoise(std_range=(0.01, 0.06), p=1),
                    A.Sharpen(alpha=(0.05, 0.3), lightness=(1, 1), p=1),  # its default lightness darkens
                    A.Downscale(
                        scale_range=(0.4, 0.8),
                        interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR},
                        p=1,
                    ),
                ],
                p=1,
            )
        ]
    )


# ---------------------------------------------------------------- in the light of another face


def transfer(name: str, face: Numbers, other: Numbers, seed: int) -> NDArray[np.float64]:
    """The map (3, 4) from (r, g, b, 1) to (r, g, b) that gives colours (N, 3) those of the `other` (N, 3), in [0, 1].

    reinhard: mean and standard deviation along three opponent axes (Reinhard et al., "Color transfer between images",
    2001, without its logarithm, so that the map is linear). mkl: mean and covariance (Pitié and Kokaram, "The linear
    Monge-Kantorovitch linear colour mapping for example-based colour transfer", 2007). sliced-ot: the linear map that
    is nearest to sliced optimal transport (Rabin et al., "Wasserstein barycenter and its application to texture
    mixing", 2011). Nothing changes if either has no colours.
    """
    if not len(face) or not len(other):
        return np.eye(3, 4)
    (mean, cov), (goal, goal_cov) = _statistics(face), _statistics(other)
    if name == "reinhard":
        gain = np.sqrt(np.diag(OPPONENT @ goal_cov @ OPPONENT.T) / np.diag(OPPONENT @ cov @ OPPONENT.T))
        linear = OPPONENT.T @ (gain[:, None] * OPPONENT)
    elif name == "mkl":
        root, inverse = _power(cov, 0.5), _power(cov, -0.5)
        linear = inverse @ _power(root @ goal_cov @ root, 0.5) @ inverse
    else:
        moved, random = face.T.astype(np.float64), np.random.default_rng(seed)
        for _ in range(TURNS):
            axes = np.linalg.qr(random.standard_normal((3, 3)))[0]
            along = axes @ moved
            np.put_along_axis(along, along.argsort(1), np.sort(axes @ other.T, 1), 1)
            moved = axes.T @ along
        linear = np.eye(3) + np.linalg.solve(cov, (face - mean).T @ (moved.T - face) / len(face)).T
    return np.column_stack([linear, goal - linear @ mean])


def _statistics(colors: Numbers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (3,) and covariance (3, 3), `LEAST` added to the variances."""
    mean = colors.mean(0, np.float64)
    centred = colors - mean
    return mean, centred.T @ centred / len(colors) + LEAST * np.eye(3)


# Lightness, yellow against blue, red against green: an orthonormal basis (Ruderman et al., 1998).
OPPONENT = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])


def colors(image: Image, mask: Image) -> Numbers:
    """`COLORS` pixels (N, 3) in [0, 1] evenly taken from those under the mask; none if there are none."""
    under = np.flatnonzero(mask > 127)
    chosen = under[np.linspace(0, len(under) - 1, COLORS).astype(np.int64)] if len(under) else under
    return np.asarray(image.reshape(-1, 3)[chosen] / np.float32(255), np.float32)


def after(color: Numbers, first: NDArray[Any]) -> Numbers:
    """The map (3, 4) `color` after the map `first`."""
    return np.asarray(color[:, :3] @ first + np.pad(color[:, 3:], ((0, 0), (3, 0))), np.float32)


def _power(matrix: NDArray[Any], exponent: float) -> NDArray[np.float64]:
    """A power of a symmetric, positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * values**exponent) @ vectors.T)
