"""Small changes to a frozen network, which are files of their own.

Convention: weights are tensors by name, as `plain` names them: of a network without adapters, its state dict. An
adapter's file names what it does to a weight NAME: `NAME.up` and `NAME.down` (`LowRank`), `NAME.gain` (`Scale`),
`NAME.shift` (`Shift`), or NAME itself, a tensor in its place. O and I: channels out of and into a layer, k: the side of
its kernel.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from faceswap.errors import CheckpointError

Weights = Mapping[str, Tensor]

LEVELS = 127  # steps of a packed difference up to its greatest, and as many down
NAME = re.compile(r"(^|\.)parametrizations\.(\w+)\.(?:original|0(\.\w+))$")  # as torch spells them


def low_rank(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """weight (O, ...) plus the product of up (O, r) and down (r, I * k²) (Hu et al., "LoRA", arXiv 2106.09685)."""
    with torch.autocast(weight.device.type, enabled=False):  # bf16 would round a small change away
        return weight + (up @ down).view_as(weight)


def scale(weight: Tensor, gain: Tensor) -> Tensor:
    """weight (O, ...), each channel times 1 + gain (O,) (Liu et al., "IA3", arXiv 2205.05638)."""
    return weight * (1 + gain).view(-1, *[1] * (weight.dim() - 1))


def shift(bias: Tensor, shift: Tensor) -> Tensor:
    """bias (O,) plus shift (O,) (with `scale`: Noguchi & Harada, arXiv 1904.01774)."""
    return bias + shift


CHANGES: dict[tuple[str, ...], Callable[..., Tensor]] = {
    ("down", "up"): low_rank,
    ("gain",): scale,
    ("shift",): shift,
}  # by the parts that each takes


class LowRank(nn.Module):
    """`low_rank` of rank `rank` or the greatest that `weight` has; starts without effect. alpha is the rank."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        across = weight[0].numel()
        rank = min(rank, len(weight), across)
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.down = nn.Parameter(weight.new_empty(rank, across))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)  # as the paper's own code does

    def forward(self, weight: Tensor) -> Tensor:
        return low_rank(weight, self.up, self.down)


class Scale(nn.Module):
    """`scale`, starting without effect."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(weight.new_zeros(len(weight)))

    def forward(self, weight: Tensor) -> Tensor:
        return scale(weight, self.gain)


class Shift(nn.Module):
    """`shift`, starting without effect."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(bias))

    def forward(self, bias: Tensor) -> Tensor:
        return shift(bias, self.shift)


def add_low_rank(model: nn.Module, rank: int, chosen: Callable[[str], bool]) -> list[str]:
    """Put a `LowRank` on the weight of each convolution and linear layer whose name, as in a state dict, is chosen.

    Gives the names of the new parameters and freezes nothing. A weight of a rank below `rank` gets its own, though
    that is more numbers than it has. `down` comes from torch's random state. `ValueError` if there is one already.
    """
    added = []
    for name, layer in _layers(model, chosen):
        added += _put(name, layer, "weight", LowRank(layer.weight, rank))
    return added


def add_film(model: nn.Module, chosen: Callable[[str], bool]) -> list[str]:
    """`add_low_rank` with a `Scale` of each chosen weight and a `Shift` of the bias beside it, if there is one."""
    added = []
    for name, layer in _layers(model, chosen):
        added += _put(name, layer, "weight", Scale(layer.weight))
        if layer.bias is not None:
            added += _put(name, layer, "bias", Shift(layer.bias))
    return added


def _layers(model: nn.Module, chosen: Callable[[str], bool]) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear) and chosen(f"{name}.weight".lstrip(".")):
            yield name, layer


def _put(name: str, layer: nn.Module, part: str, change: nn.Module) -> list[str]:
    if parametrize.is_parametrized(layer, part):
        raise ValueError(f"{name}.{part} has an adapter already")
    parametrize.register_parametrization(layer, part, change)
    return [f"{name}.parametrizations.{part}.0.{new}".lstrip(".") for new, _ in change.named_parameters()]


def plain(weights: Weights) -> dict[str, Tensor]:
    """The state dict of a network with adapters, or some of it, by the names that files use."""
    return {NAME.sub(r"\1\2\3", name): weight for name, weight in weights.items()}


def fold(weights: Weights, adapter: Weights) -> dict[str, Tensor]:
    """The base's weights changed by an adapter, bit for bit as the network with that adapter computes them.

    Tensors of the adapter take the base's dtype and device; those that it does not change are shared with the base.
    `CheckpointError` if it names what the base does not have, lacks a part or has another shape.
    """
    folded, changes = dict(weights), dict[str, dict[str, Tensor]]()
    for key, tensor in adapter.items():
        name, _, part = key.rpartition(".")
        if key in weights:
            folded[key] = _take(key, tensor, weights[key], weights[key].shape)
        elif name in weights:
            changes.setdefault(name, {})[part] = tensor
        else:
            raise CheckpointError(f"the adapter changes {key}, which its base does not have; use it with its own base")
    for name, parts in changes.items():
        weight, found = weights[name], sorted(parts)
        change = CHANGES.get(tuple(found))
        if change is None or name in adapter or weight.dim() == 0 or not weight.is_floating_point():
            whole = ["a tensor in its place"] if name in adapter else []
            raise CheckpointError(
                f"the adapter holds for {name} {' and '.join(found + whole)}; expected down and up, or gain, or shift"
            )
        rows, across, rank = len(weight), weight[:1].numel(), parts.get("down", weight).shape[:1].numel()
        shapes = {"up": (rows, rank), "down": (rank, across), "gain": (rows,), "shift": weight.shape}
        own = {part: _take(f"{name}.{part}", tensor, weight, shapes[part]) for part, tensor in parts.items()}
        folded[name] = change(weight, **own)
    return folded


def _take(key: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.shape != shape:
        raise CheckpointError(f"{key} is {list(tensor.shape)}, expected {list(shape)}; use it with its own base")
    return tensor.to(like)


def pack_delta(weights: Weights, base: Weights) -> dict[str, Tensor]:
    """What makes `weights` of `base`, in about a quarter of the bytes; float tensors come back nearly as they were.

    Gives `scale.NAME` float32 for each that changed, (O,) or, if it has one axis, (1,); `bytes` (N,) uint8, the int8
    multiples of the scales by sorted name, through zlib; `whole.NAME` for one that `base` has not in this shape and
    dtype, or not as floats, in float32 if it is any; `gone.NAME` (0,) for one that only `base` has. A number is wrong
    by half a scale at most, which is a 127th of its channel's greatest difference, and by the rounding of its dtype.
    `CheckpointError` if one is not finite.
    """
    packed = {f"gone.{name}": torch.zeros(0, dtype=torch.uint8) for name in sorted(base.keys() - weights.keys())}
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)  # these numbers repeat as zeros only
    data = b""
    for name, new in sorted(weights.items()):
        _require_finite(name, new)
        old = base.get(name)
        alike = old is not None and (old.shape, old.dtype) == (new.shape, new.dtype)
        if old is not None and alike and torch.equal(new, old):
            continue
        if old is not None and alike and new.is_floating_point():
            difference = _channels((new.float() - old.float()).detach().cpu())
            _require_finite(name, difference)
            scales = (difference.abs().amax(1) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
            data += deflate.compress((difference / scales[:, None]).round().to(torch.int8).numpy().tobytes())
            packed[f"scale.{name}"] = scales
        else:
            packed[f"whole.{name}"] = new.float() if new.is_floating_point() else new
    return {**packed, "bytes": _bytes(data + deflate.flush())}


def unpack_delta(packed: Weights, base: Weights) -> dict[str, Tensor]:
    """The weights that `pack_delta` packed, on the CPU; those that did not change are shared with `base`.

    `CheckpointError` if `packed` is damaged or of another base; that it fits in shape does not say that it is of this
    one. Never inflates more bytes than the base has numbers.
    """
    kinds: dict[str, dict[str, Tensor]] = {"gone": {}, "scale": {}, "whole": {}, "bytes": {}}
    for key, tensor in packed.items():
        kind, _, name = key.partition(".")
        if kind not in kinds or (kind == "bytes") == bool(name) or (kind in ("gone", "scale") and name not in base):
            raise CheckpointError(f"the difference holds {key}, which does not fit its base; use it with its own base")
        kinds[kind][name] = tensor
    scales = dict(sorted(kinds["scale"].items()))
    numbers = _inflate(kinds["bytes"].get(""), [base[name].numel() for name in scales])
    weights = {name: tensor for name, tensor in base.items() if name not in kinds["gone"]} | kinds["whole"]
    for (name, unit), steps in zip(scales.items(), numbers, strict=True):
        old = base[name].detach().cpu()
        difference = _channels(steps.float().view_as(old))
        if not old.is_floating_point() or unit.shape != difference.shape[:1] or unit.dtype != torch.float32:
            raise CheckpointError(f"the difference does not fit {name} of its base; use it with its own base")
        weights[name] = (old.float() + (difference * unit[:, None]).view_as(old)).to(old.dtype)
    for name in scales.keys() | kinds["whole"].keys():
        _require_finite(name, weights[name])
    return weights


def _channels(tensor: Tensor) -> Tensor:
    """As rows (O, N), of which a tensor of one axis or none is one."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)


def _require_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds numbers that are not finite; use another checkpoint")


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))


def _inflate(packed: Tensor | None, lengths: list[int]) -> Sequence[Tensor]:
    inflate, expected = zlib.decompressobj(), sum(lengths)
    try:
        data = inflate.decompress(packed.numpy().tobytes() if packed is not None else b"", expected + 1)
    except (zlib.error, TypeError) as error:
        raise CheckpointError(f"the difference is damaged ({error}); use another checkpoint") from None
    if len(data) != expected or not inflate.eof or inflate.unused_data:
        raise CheckpointError("the difference is damaged, or of another base; use it with its own base")
    return torch.split(_bytes(data).view(torch.int8), lengths)


def interpolate(base: Weights, tuned: Weights, strength: float) -> dict[str, Tensor]:
    """base + strength * (tuned - base): 0 is the base, 1 is what was tuned, to the bit; beyond 1 exaggerates.

    Of float tensors that both have in one shape; others are as in `tuned` (Wortsman et al., "WiSE-FT", arXiv
    2109.01903).
    """
    mixed = dict(tuned)
    for name in _shared(base, tuned) if strength != 1 else ():
        old, new = base[name].to(tuned[name]), tuned[name]
        mixed[name] = torch.lerp(old, new, strength) if strength else old  # lerp loses the sign of a zero
    return mixed


def add_up(base: Weights, *tuned: Weights) -> dict[str, Tensor]:
    """base + the sum of (each of `tuned` - base): several trained from one base in one.

    A float tensor takes the differences of those that have it in the base's shape; others are as in the base
    (Ilharco et al., "task arithmetic", arXiv 2212.04089).
    """
    total = dict(base)
    for one in tuned:
        for name in _shared(base, one):
            total[name] = total[name] + (one[name].to(base[name]) - base[name])
    return total


def distance(base: Weights, tuned: Weights) -> float:
    """||tuned - base|| / ||base|| over the float tensors that both have in one shape; 0 if none differs."""
    moved = size = 0.0
    for name in _shared(base, tuned):
        old, new = base[name].double(), tuned[name].double()
        moved += (new.to(old.device) - old).square().sum().item()
        size += old.square().sum().item()
    return (moved / size) ** 0.5 if size else float("inf") if moved else 0.0


def _shared(base: Weights, tuned: Weights) -> list[str]:
    """The names of float tensors that both have in one shape."""
    both = [name for name in base if name in tuned and base[name].shape == tuned[name].shape]
    return [name for name in both if base[name].is_floating_point() and tuned[name].is_floating_point()]
