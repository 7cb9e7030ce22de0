"""Faces as the network should meet them: moved, warped, recoloured, spoilt. In batches, on the device."""

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from faceswap.config import DataRecipe

WARP_NODES = 5  # the random warp is drawn on a grid of 5 x 5 nodes


def augment(
    inputs: Tensor,
    faces: Tensor,
    recipe: DataRecipe,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, target and mask for a batch: the target is moved and recoloured; the input is so too, and warped.

    `inputs` is (B, R, R, 3) uint8 RGB, `faces` (B, R, R, 4) uint8, RGB and mask, on the generator's device. Gives
    (B, 3, R, R), (B, 3, R, R) and (B, 1, R, R) float32 in [0, 1], channels_last. All randomness is the generator's.
    """
    moved = _moves(len(faces), faces.shape[1], recipe, generator)
    warped = moved
    if recipe.warp:
        warped = _warp(moved, recipe.warp, generator)
    colors = _colors(len(faces), recipe.color, generator)
    target = _sample(faces, moved)
    return _recolor(_sample(inputs, warped), colors), _recolor(target[:, :3], colors), target[:, 3:]


def to_float(images: Tensor) -> Tensor:
    """(B, R, R, C) uint8 as (B, C, R, R) float32 in [0, 1], channels_last."""
    return images.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


def _uniform(shape: tuple[int, ...], reach: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator, device=generator.device) * 2 - 1) * reach


def _moves(count: int, side: int, recipe: DataRecipe, generator: torch.Generator) -> Tensor:
    """Random similarities and flips, as the places (B, R, R, 2) in [-1, 1] from which each pixel is taken."""
    angle = torch.deg2rad(_uniform((count,), recipe.rotation, generator))
    scale = torch.exp(_uniform((count,), float(np.log1p(recipe.scale)), generator))
    shift = _uniform((count, 2), 2 * recipe.shift, generator)
    flip = torch.where(_uniform((count,), 1, generator) < 2 * recipe.flip - 1, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([flip * cos, -sin, shift[:, 0], flip * sin, cos, shift[:, 1]], 1)
    return F.affine_grid(rows.view(count, 2, 3), [count, 1, side, side], align_corners=False)


def _warp(places: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """`places` displaced smoothly at random; `strength` is a standard deviation in units of the side."""
    count, side = places.shape[:2]
    nodes = torch.randn((count, 2, WARP_NODES, WARP_NODES), generator=generator, device=places.device)
    smooth = F.interpolate(nodes, size=(side, side), mode="bicubic", align_corners=True)
    return places + 2 * strength * smooth.permute(0, 2, 3, 1)


def _sample(images: Tensor, places: Tensor) -> Tensor:
    """uint8 images (B, R, R, C) at `places`, bicubic, the border repeated."""
    sampled = F.grid_sample(to_float(images), places, mode="bicubic", padding_mode="border", align_corners=False)
    return sampled.clamp_(0, 1).contiguous(memory_format=torch.channels_last)  # grid_sample loses it


def _colors(count: int, reach: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random linear maps of RGB, (B, 3, 3) and (B, 3): gain per channel, saturation, offset, all near nothing."""
    eye = torch.eye(3, device=generator.device)
    gray = torch.full((3, 3), 1 / 3, device=generator.device)
    saturation = 1 + _uniform((count, 1, 1), 2 * reach, generator)
    gain = 1 + _uniform((count, 1, 1), reach, generator) + _uniform((count, 3, 1), reach / 2, generator)
    return gain * (saturation * eye + (1 - saturation) * gray), _uniform((count, 3), reach / 2, generator)


def _recolor(images: Tensor, colors: tuple[Tensor, Tensor]) -> Tensor:
    matrix, offset = colors
    mixed = torch.einsum("boc,bchw->bohw", matrix, images) + offset[:, :, None, None]
    return mixed.clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def degrade(images: NDArray[np.uint8], share: float, seed: int) -> NDArray[np.uint8]:
    """A copy of `images` (B, R, R, 3) uint8 RGB in which a `share` is blurred, sharpened, noisy or recompressed."""
    spoilt = images.copy()
    chosen = np.flatnonzero(np.random.default_rng(seed).random(len(images)) < share)
    if len(chosen):
        spoil = _degradations()
        spoil.set_random_seed(seed)
        for row in chosen:
            spoilt[row] = spoil(image=images[row])["image"]
    return spoilt


def _degradations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for news on import
    import albumentations as A

    return A.Compose(
        [
            A.OneOf(
                [
                    A.ImageCompression(quality_range=(30, 90), p=1),
                    A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.2), p=1),
                    A.MotionBlur(blur_limit=(3, 5), p=1),
                    A.GaussNoise(std_range=(0.01, 0.06), p=1),
                    A.Sharpen(alpha=(0.2, 0.6), p=1),
                    A.Downscale(scale_range=(0.4, 0.8), p=1),
                ],
                p=1,
            )
        ]
    )
