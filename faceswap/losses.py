"""(prediction, target, weight) -> one number per face, 0 when the prediction is perfect.

Convention: images (B, C, H, W) float in [0, 1]; `weight` (B, 1, H, W) says how much each pixel counts; a loss is its
weighted mean, (B,) float32.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian
K1, K2 = 0.01, 0.03


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean (B,) of `values` (B, C, H, W) under `weight` (B, 1, H, W)."""
    total = (values.mean(1, keepdim=True) * weight).sum((1, 2, 3))
    return total / weight.sum((1, 2, 3)).clamp_min(1e-6)


def ssim_map(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (B, C, H - 10, W - 10) of two images, 1 where they agree.

    Wang et al., "Image quality assessment", TIP 2004: Gaussian window of 11 x 11 px, sigma 1.5, data range 1, no
    padding. The window is separable: two 1-D passes over all five moments, channel by channel.
    """
    x, y = prediction.float(), target.float()
    channels = x.shape[1] * 5
    offsets = torch.arange(WINDOW, device=x.device, dtype=torch.float32) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(channels, 1, 1, WINDOW)
    moments = torch.cat([x, y, x * x, y * y, x * y], 1)
    moments = F.conv2d(F.conv2d(moments, window, groups=channels), window.transpose(2, 3), groups=channels)
    mx, my, xx, yy, xy = moments.chunk(5, 1)
    c1, c2 = K1**2, K2**2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    structure = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    return luminance * structure


def ssim(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - SSIM."""
    edge = WINDOW // 2
    return weighted_mean(1 - ssim_map(prediction, target), weight[:, :, edge:-edge, edge:-edge])


def l1(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Absolute difference."""
    return weighted_mean((prediction - target).abs(), weight)


def charbonnier(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Absolute difference, smooth at zero (Charbonnier et al., ICIP 1994), with epsilon 1e-3."""
    return weighted_mean(torch.sqrt((prediction - target).square() + 1e-6) - 1e-3, weight)


def mse(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared difference."""
    return weighted_mean((prediction - target).square(), weight)


TABLE: dict[str, Loss] = {"ssim": ssim, "l1": l1, "charbonnier": charbonnier}


def reconstruction(
    drawn: Tensor,
    drawn_mask: Tensor,
    target: Tensor,
    target_mask: Tensor,
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The losses (B,) that `weights` turn on, by name and already weighted.

    The image losses look at the face: outside it a pixel counts `weights["background"]` of what it counts inside.
    """
    background = weights["background"]
    weight = background + (1 - background) * target_mask
    found = {name: weights[name] * loss(drawn, target, weight) for name, loss in TABLE.items() if weights[name]}
    if weights["mask"]:
        found["mask"] = weights["mask"] * mse(drawn_mask, target_mask, torch.ones_like(target_mask))
    return found


def psnr(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB, (B,), of images in [0, 1] under `weight`: a measure, not a loss."""
    return -10 * torch.log10(mse(prediction.float(), target.float(), weight).clamp_min(1e-10))
