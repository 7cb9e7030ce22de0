"""A model that DeepFaceLab trained (SAEHD) becomes a run of ours, so that the time in it is not lost.

Its folder holds a pickled dictionary of arrays per part, NAME_SAEHD_encoder.npy and so on, and NAME_SAEHD_data.dat with
the options. All of them are read as data and nothing in them is called, see `faceswap.pickled`.

Convention there: convolutions (k, k, in, out), dense layers (in, out), BGR, sub-pixel (dy, dx) of channel c at
(2 * dy + dx) * C + c. Here: (out, in, k, k), (out, in), RGB, c * 4 + 2 * dy + dx. What layers are called in the files
is not relied on: a layer is told by its shape and, among those of one shape, by the order of their names, 2 before 10.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from faceswap import checkpoint, console, files, models, pickled
from faceswap.checkpoint import Progress, State
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, RecipeError, UsageError
from faceswap.layers import Decoder

Array = NDArray[Any]

DATA = "SAEHD_data.dat"
CROPS = {"h": "half", "mf": "mid-full", "f": "full", "wf": "whole", "head": "head"}  # by face type
SIZES = {
    "ae_dims": "code",
    "e_dims": "width",
    "d_dims": "decoder",
    "d_mask_dims": "mask",
}  # by the names of its options
# The files of an architecture, by the parts of ours that they are. What is called src there is the source here.
PARTS = {
    "df": {"encoder": "encoder", "inter": "inter", "decoders.0": "decoder_src", "decoders.1": "decoder_dst"},
    "liae": {"encoder": "encoder", "common": "inter_AB", "own.0": "inter_B", "decoder": "decoder"},
}
RATE = 5e-5  # at which DeepFaceLab trains


@dataclass(frozen=True)
class Report:
    """What was imported."""

    run: Path
    name: str  # of the model there
    archi: str
    resolution: int  # px
    face_type: str
    crop: str  # what we call that
    iterations: int | None  # trained there; None: it does not say
    weights: int  # numbers


@dataclass(frozen=True)
class _Options:
    """What the options say of the network."""

    path: Path  # where they stand
    archi: str
    face_type: str
    numbers: Mapping[str, int]  # resolution and `SIZES`
    iterations: int | None


@dataclass(frozen=True)
class _Layer:
    """A layer of ours that a layer there becomes."""

    name: str
    module: nn.Conv2d | nn.Linear
    branch: str  # of a decoder: what it draws

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its weights there."""
        out, inward, *kernel = self.module.weight.shape
        return (*kernel, inward, out)

    def turned(self, weight: Array, bias: Array) -> tuple[Tensor, Tensor]:
        """Weights there as ours."""
        w, b = torch.from_numpy(weight), torch.from_numpy(bias)
        w = w.permute(3, 2, 0, 1) if w.dim() == 4 else w.T
        if self.name.endswith("subpixels.conv"):
            w, b = (part.reshape(4, -1, *part.shape[1:]).transpose(0, 1).flatten(0, 1) for part in (w, b))
        if self.name == "0.0":  # of the encoder
            w = w.flip(1)
        if self.branch == "head":
            w, b = w.flip(0), b.flip(0)
        return w.contiguous(), b.contiguous()


def import_model(
    folder: Path,
    out: Path,  # the run to make
    recipe: Recipe,  # what it goes on with; what the network is, the options of the model say
    *,
    name: str | None = None,  # of the model, where the folder holds several
    overwrite: bool = False,
) -> Report:
    """Make a run of a DeepFaceLab model: `merge` draws with it, `finetune` trains it on.

    `UsageError` if there is no such model, or several, `CheckpointError` if a file of it is missing, damaged, of
    another shape than its options say or holds anything but numbers.
    """
    name = _find(folder, name)
    files.refuse_existing(out, overwrite)
    checkpoint.check_folder(out, overwrite)
    options = _options(folder / f"{name}{DATA}")
    recipe, parts = _recipe(recipe, options), PARTS[options.archi.partition("-")[0]]
    people = ["source", "target"]
    try:
        with torch.device("meta"):  # no more memory than its files have, whatever the options say
            model = checkpoint.new_model(recipe, people)
    except (RecipeError, RuntimeError) as error:
        raise CheckpointError(f"{options.path}: {error}") from None
    weights: dict[str, Tensor] = {}
    for part, file in parts.items():
        path = folder / f"{name}SAEHD_{file}.npy"
        for layer, found in _matched(path, _layers(model.get_submodule(part)), options):
            weights[f"{part}.{layer.name}.weight"], weights[f"{part}.{layer.name}.bias"] = layer.turned(*found)
    label = f"DeepFaceLab's {name}SAEHD, {options.iterations or 'unknown'} iterations"
    _write(out, recipe, people, weights, label, options.iterations, overwrite)
    if options.face_type == "head":
        console.warn(
            "face type head: DeepFaceLab moves this crop aside as a head turns, faceswap does not; look closely"
        )
    size, count = options.numbers["resolution"], sum(weight.numel() for weight in weights.values())
    crop = recipe.model.crop
    return Report(out, f"{name}SAEHD", options.archi, size, options.face_type, crop, options.iterations, count)


def _find(folder: Path, name: str | None) -> str:
    """What stands before SAEHD in the names of the model's files."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected the folder of a DeepFaceLab model, which holds NAME_{DATA}")
    found = sorted(path.name.removesuffix(DATA) for path in folder.glob(f"*{DATA}"))
    names = ", ".join(one.rstrip("_") or "SAEHD" for one in found)
    if name is not None:
        found = [one for one in found if one.rstrip("_") == name]
    if len(found) == 1:
        return found[0]
    if not names:
        others = sorted(path.name for path in folder.glob("*_data.dat"))
        seen = f"found {others[0]}, of another kind" if others else "found none"
        raise UsageError(f"{folder}: expected a SAEHD model of DeepFaceLab with its options, NAME_{DATA}; {seen}")
    if found or name is None:
        raise UsageError(f"{folder}: holds several models ({names}); say which with --name")
    raise UsageError(f"{folder}: holds no model called {name!r}, but {names}")


def _read(path: Path, content: str) -> Any:
    """What a pickle holds; `CheckpointError` if it is missing, damaged or asks for anything."""
    try:
        return pickled.read(path.read_bytes(), str(path), content, "model", CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; expected it beside the model's other files, copy it there") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; take it from a backup of the model") from None


def _options(path: Path) -> _Options:
    data = _read(path, "options")
    told = data.values() if isinstance(data, dict) else ()
    said = next((part for part in told if isinstance(part, dict) and "archi" in part), None)
    if said is None:
        raise CheckpointError(f"{path}: expected the options of a SAEHD model, with its archi, found none")
    archi, kind = said["archi"], said.get("face_type")
    root, dash, letters = archi.partition("-") if isinstance(archi, str) else ("", "", "")
    known = getattr(models.load(root), "LETTERS", "") if root in PARTS else ""
    if not known or (dash and not letters) or len(set(letters)) < len(letters) or set(letters) - set(known):
        odd = ", ".join(sorted(set(letters) - set(known))) if known else ""
        why = f"the letter {odd} is not known here" if odd else "which is not known here"
        raise CheckpointError(
            f"{path}: archi {archi!r}: {why}; expected df or liae with letters of 'udtc' after a dash"
        )
    if not isinstance(kind, str) or kind not in CROPS:
        raise CheckpointError(f"{path}: face_type {kind!r}; expected one of {', '.join(CROPS)}")
    numbers: dict[str, int] = {}
    for key in ("resolution", *SIZES):
        value = said.get(key)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{path}: {key} is {value!r}; expected a whole number above 0")
        numbers[key] = value
    count = next((value for key, value in data.items() if str(key).startswith("iter") and type(value) is int), None)
    return _Options(path, archi, kind, numbers, count)


def _recipe(recipe: Recipe, options: _Options) -> Recipe:
    """The recipe with the network that the options describe, going on at the rate it was trained with."""
    shape = {ours: options.numbers[theirs] for theirs, ours in SIZES.items()}
    size, crop = options.numbers["resolution"], CROPS[options.face_type]
    try:
        return recipe.changed(
            model={"name": options.archi, "resolution": size, "crop": crop, **shape},
            train={"rate": recipe.train.rate or RATE},
        )
    except RecipeError as error:
        raise CheckpointError(f"{options.path}: beyond what a model may be here: {error}") from None


def _layers(part: nn.Module) -> list[_Layer]:
    """The layers of a part of ours, in the order in which a face goes through each branch."""
    found = [(name, module) for name, module in part.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [_Layer(name, module, name.split(".")[0] if isinstance(part, Decoder) else "") for name, module in found]


def _matched(path: Path, layers: Sequence[_Layer], options: _Options) -> Iterator[tuple[_Layer, tuple[Array, Array]]]:
    """Each layer of ours with the weights and the bias of the one it is in a file."""
    held = _held(path)
    shelves: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(held, key=_natural):
        shelves.setdefault(held[name][0].shape, []).append(name)
    chosen = {}
    for layer in layers:
        if not (shelf := shelves.get(layer.shape)):
            raise CheckpointError(
                f"{path}: holds too few layers of the shape {layer.shape} for the {options.archi} that "
                f"{options.path.name} describes; expected the files of one model"
            )
        chosen[shelf.pop(0)] = layer
    if left := [name for shelf in shelves.values() for name in shelf]:
        raise CheckpointError(
            f"{path}: holds {left[0]} {held[left[0]][0].shape}, which the {options.archi} that {options.path.name} "
            "describes has no place for; expected the files of one model"
        )
    _check_branches(path, chosen)
    for name, layer in chosen.items():
        yield layer, held[name]


def _check_branches(path: Path, chosen: Mapping[str, _Layer]) -> None:
    """`CheckpointError` if a face's layers and a mask's of one shape cannot be told apart by their names."""
    stems: dict[tuple[str, tuple[int, ...]], set[str]] = {}
    for name, layer in chosen.items():
        stems.setdefault((layer.branch, layer.shape), set()).add(re.sub(r"\d+", "", name))
    for (branch, shape), names in stems.items():
        if branch == "mask" and names & stems.get(("trunk", shape), set()):
            raise CheckpointError(
                f"{path}: layers of the shape {shape} draw the face and the mask, and are all called {min(names)}: "
                "which is which cannot be told"
            )


def _held(path: Path) -> dict[str, tuple[Array, Array]]:
    """The layers in a file by their names: weights and bias (out,), float32."""
    data = _read(path, "weights")
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a dictionary of arrays, found {type(data).__name__}")
    parts: dict[str, dict[str, Array]] = {}
    for key, value in data.items():
        layer, _, kind = str(key).partition(":")[0].rpartition("/")
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or kind not in ("weight", "bias"):
            raise CheckpointError(f"{path}: holds {str(key)[:80]!r}; expected arrays of weight and bias alone")
        if not np.isfinite(value).all():
            raise CheckpointError(f"{path}: {key} is not finite: the training had failed; take a backup of the model")
        parts.setdefault(layer, {})[kind] = value.astype(np.float32)
    for layer, pair in parts.items():
        weight, bias = pair.get("weight"), pair.get("bias")
        if weight is None or bias is None or weight.ndim not in (2, 4) or bias.size != weight.shape[-1]:
            shapes = ", ".join(f"{kind} {value.shape}" for kind, value in sorted(pair.items()))
            raise CheckpointError(f"{path}: {layer} has {shapes}; expected a weight and a bias of as many channels")
    return {layer: (pair["weight"], pair["bias"].reshape(-1)) for layer, pair in parts.items()}


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key by which 2 comes before 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def _write(
    out: Path,
    recipe: Recipe,
    people: list[str],
    weights: Mapping[str, Tensor],
    label: str,
    iterations: int | None,
    overwrite: bool,
) -> None:
    """A run that has not trained here yet."""
    tensors = {f"{kind}.{name}": weight.clone() for kind in ("model", "ema") for name, weight in weights.items()}
    tensors["random.cpu"] = torch.Generator().manual_seed(recipe.seed).get_state()
    # With steps behind it a run goes on; at 0 images its rate warms up, as the optimizer begins anew.
    state = State(recipe, people, tensors, Progress(steps=max(iterations or 0, 1)), dict.fromkeys(people, label))
    with files.whole_folder(out, overwrite=overwrite) as partial:
        (partial / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
        checkpoint.save(partial, state, keep=1)
