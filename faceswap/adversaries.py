"""Networks that train against the model. A trainer needs four calls:

    adversary = Adversary(PatchDiscriminator(patch).to(device), rate)
    loss = adversary.generator_loss(drawn, real, weight)          # (B,), one more loss of the model
    value = adversary.step(drawn.detach(), real, weight)          # after the model's backward; trains the adversary
    tensors = adversary.state_dict(); adversary.load_state_dict(tensors)

`drawn` and `real` are what the discriminator looks at. Images (B, 3, H, W) float in [0, 1] for `PatchDiscriminator`:
faces as drawn and as they are. Codes for `CodeDiscriminator` ("true face"): the source's as `drawn` and the target's as
`real`, so that the encoder learns to write both alike.

A discriminator gives logits, one tensor or several, (B, ...) each: above 0 it holds a place for real. Losses are binary
cross entropy on them, per face (B,) float32, first averaged over the places of a tensor, then over the tensors: ln 2
when it can't tell.
"""

import itertools
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faceswap import checkpoint

SLOPE = 0.2  # of the leaky rectifiers
LARGEST = 512  # channels
DEEPEST = 9  # convolutions that look around

Logits = tuple[Tensor, ...]


def strides_for(patch: int) -> tuple[int, ...]:
    """The strides, 1 or 2 each and the first 2, of the 3 x 3 convolutions that see most nearly `patch` px at once.

    Sizes are 3, 7, 11, ... px. Of several ways to one the shortest is taken, and of those the one that shrinks first.
    """
    ways = ((2, *rest) for depth in range(DEEPEST) for rest in itertools.product((2, 1), repeat=depth))
    return min(ways, key=lambda way: abs(receptive_field(way) - patch))


def receptive_field(strides: Sequence[int]) -> int:
    """What one place after 3 x 3 convolutions of these strides sees, in px: each adds twice the step before it."""
    steps = itertools.accumulate(strides[:-1], operator.mul, initial=1)
    return 1 + 2 * sum(steps)


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> logits per patch of about `patch` px (B, 1, h, w), and per pixel (B, 1, H, W).

    A U-Net (Schönfeld et al., CVPR 2020, arXiv 2002.12655) whose encoder ends at patches (PatchGAN, Isola et al., CVPR
    2017, arXiv 1611.07004): `width` channels at full size, doubled with every halving up to 512.
    """

    def __init__(self, patch: int, width: int = 16) -> None:
        super().__init__()
        strides = strides_for(patch)
        steps = itertools.accumulate(strides, operator.mul, initial=1)
        widths = [min(width * step, LARGEST) for step in steps]
        pairs = list(itertools.pairwise(widths))
        self.enter = nn.Conv2d(3, width, 1)
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride, 1) for stride, (fine, coarse) in zip(strides, pairs, strict=True)
        )
        self.patches = nn.Conv2d(widths[-1], 1, 1)
        self.middle = nn.Conv2d(widths[-1], widths[-1], 1)
        # What comes up enters a convolution beside what came down to its size, but for the first; then it is enlarged
        # to the next, without the checkerboard in the gradient that a transposed convolution leaves.
        self.up = nn.ModuleList(
            nn.Conv2d(coarse * (1 if depth == len(strides) - 1 else 2), fine, 3, 1, 1)
            for depth, (fine, coarse) in reversed(list(enumerate(pairs)))
        )
        self.pixels = nn.Conv2d(2 * width, 1, 3, 1, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Logits:
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        passed = [F.leaky_relu(self.enter(x), SLOPE)]
        for convolution in self.down:
            passed.append(F.leaky_relu(convolution(passed[-1]), SLOPE))
        patches = self.patches(passed[-1])
        x = F.leaky_relu(self.middle(passed.pop()), SLOPE)
        for convolution in self.up:
            beside = passed.pop()
            x = F.interpolate(F.leaky_relu(convolution(x), SLOPE), beside.shape[-2:])
            x = torch.cat([x, beside], 1)
        return patches, self.pixels(x)


class CodeDiscriminator(nn.Module):
    """Codes of `shape`, (B, N) or maps (B, C, H, W) -> logits that tell whose they are, (B, 1) or (B, 1, h, w).

    A flat code passes two hidden layers; a map 1 + H // 8 convolutions of stride 2, the first 4 x 4, the others 3 x 3,
    the channels doubled with each up to 512.
    """

    def __init__(self, shape: Sequence[int], width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if len(shape) == 1:
            for inward, outward in itertools.pairwise((shape[0], width, width)):
                layers += [nn.Linear(inward, outward), nn.LeakyReLU(SLOPE)]
            layers.append(nn.Linear(width, 1))
        else:
            widths = [shape[0]] + [min(width * 2**depth, LARGEST) for depth in range(1 + shape[1] // 8)]
            for depth, (inward, outward) in enumerate(itertools.pairwise(widths)):
                layers += [nn.Conv2d(inward, outward, 3 if depth else 4, 2, 1), nn.LeakyReLU(SLOPE)]
            layers.append(nn.Conv2d(widths[-1], 1, 1))
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, codes: Tensor) -> Logits:
        return (self.layers(codes),)


def taken_for(real: bool, logits: Logits) -> Tensor:
    """Binary cross entropy (B,) of `logits` that ought to say `real`."""
    return _mean([F.softplus(-found if real else found) for found in map(_exact, logits)])


def _exact(logits: Tensor) -> Tensor:
    """Out of half precision, in which autocast computes them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _mean(values: Sequence[Tensor]) -> Tensor:
    """(B,): over the places of each tensor, then over the tensors."""
    return torch.stack([value.flatten(1).mean(1) for value in values]).mean(0)


def generator_term(drawn: Logits) -> Tensor:
    """(B,): low where what was drawn is taken for real (the non-saturating loss, Goodfellow et al., 2014)."""
    return taken_for(True, drawn)


def discriminator_term(drawn: Logits, real: Logits) -> Tensor:
    """(B,): low where drawn and real are told apart; the mean of both mistakes."""
    return (taken_for(False, drawn) + taken_for(True, real)) / 2


def gradient_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """R1 (B,): half the squared norm of the gradient of the logits' mean at what is real.

    Mescheder, Geiger and Nowozin, ICML 2018, arXiv 1801.04406, there for one logit per image.
    """
    real = real.detach().requires_grad_()
    logit = _mean([_exact(found) for found in discriminator(real)])
    (gradient,) = torch.autograd.grad(logit.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(1) / 2


class Adversary:
    """A discriminator, on the device where it is to train, and its optimizer.

    `rate` is AdamW's, and the trainer may change it in `optimizer.param_groups`; `penalty` weighs R1. With several
    processes their gradients are averaged, so that all keep the same weights.
    """

    def __init__(self, discriminator: nn.Module, rate: float, penalty: float = 0.0) -> None:
        self.discriminator, self.penalty = discriminator, penalty
        self.optimizer = torch.optim.AdamW(discriminator.parameters(), lr=rate, betas=(0.5, 0.99))

    def generator_loss(self, drawn: Tensor, real: Tensor, weight: Tensor | None = None) -> Tensor:
        """What `drawn` costs its maker, (B,); the discriminator gets no gradient.

        Of images `weight` (B, 1, H, W) in [0, 1] says where to look: `real` stands in for `drawn` elsewhere. Without
        it `real` is not needed and may be anything.
        """
        self.discriminator.requires_grad_(False)
        try:
            return generator_term(self.discriminator(_shown(drawn, real, weight)))
        finally:
            self.discriminator.requires_grad_(True)

    def step(self, drawn: Tensor, real: Tensor, weight: Tensor | None = None) -> float:
        """Train the discriminator once; gives its loss, ln 2 when it can't tell.

        To be called after the backward pass through `generator_loss`, which needs the weights as they were. If the
        gradient is not finite nothing is changed.
        """
        drawn, real = _shown(drawn, real, weight).detach(), real.detach()
        loss = discriminator_term(self.discriminator(drawn), self.discriminator(real)).mean()
        total = loss
        if self.penalty:
            total = loss + self.penalty * gradient_penalty(self.discriminator, real).mean()
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        gradients = [own.grad for own in self.discriminator.parameters() if own.grad is not None]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for gradient in gradients:
                torch.distributed.all_reduce(gradient)
                gradient /= torch.distributed.get_world_size()
        if bool(torch.isfinite(torch.stack([gradient.sum() for gradient in gradients]).sum())):
            self.optimizer.step()
        return float(loss.detach())

    def state_dict(self) -> dict[str, Tensor]:
        """All that `load_state_dict` needs to go on exactly: discriminator.* and optimizer.*"""
        weights = {f"discriminator.{name}": tensor for name, tensor in self.discriminator.state_dict().items()}
        return weights | checkpoint.pack_optimizer(self.optimizer, self.discriminator)

    def load_state_dict(self, tensors: Mapping[str, Tensor], where: str = "adversary") -> None:
        """Become what `state_dict` gave; `CheckpointError`, which begins with `where`, if that was another network."""
        parts: dict[str, dict[str, Tensor]] = {"discriminator": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        checkpoint.fit(self.discriminator, parts["discriminator"], where)
        checkpoint.unpack_optimizer(self.optimizer, self.discriminator, parts["optimizer"], where)


def _shown(drawn: Tensor, real: Tensor, weight: Tensor | None) -> Tensor:
    """`drawn` where `weight` is 1, `real` where it is 0."""
    return drawn if weight is None else torch.lerp(real, drawn, weight)
