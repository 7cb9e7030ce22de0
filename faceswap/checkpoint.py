"""Saving and restoring a run, exactly, whatever happens in between.

A run is a folder:

    recipe.toml                      what it runs with
    state-000012000.safetensors      everything at 12,000 images: weights, EMA, optimizer, random state, progress
    best.safetensors                 the averaged weights that drew held-out faces best: the file to merge with, which
                                     may hold no more than what differs from the base
    facesets.json                    the folders that each person's faces came from
    metrics.jsonl  previews/  events.out.tfevents.*
    evaluation.html  truth.html      the last faceswap evaluate, and with --truth

Every weight file is one safetensors file with the recipe, the people and a checksum inside. It is written beside its
place, synced and renamed: a crash leaves the last whole one. Nothing is ever unpickled.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from faceswap import adapters, config, console, files, models
from faceswap.config import Recipe
from faceswap.errors import CheckpointError
from faceswap.models import ANYONE, FaceModel

FORMAT = "faceswap"
VERSION = 1
VERSIONS = ("1",)  # that can be read
FACESETS = "facesets.json"
STATE = re.compile(r"state-(\d+)\.safetensors")


@dataclass
class Progress:
    """How far a run has come. Everything that depends on time depends on these numbers alone."""

    images: int = 0  # face images trained on
    steps: int = 0  # optimizer steps
    seconds: float = 0.0  # training time over all sessions
    rate_scale: float = 1.0  # halved after every setback
    setbacks: int = 0  # times in a row that a loss was not finite and training went back
    best: float = float("inf")  # lowest held-out loss
    measured: int = 0  # images at the last held-out measurement
    bar: float = float("inf")  # held-out loss that counts as the last gain,
    stale: int = 0  # and measurements since then
    plateau: int = 0  # images where held-out faces stopped getting better; 0: not yet


@dataclass(frozen=True)
class Base:
    """What a run started from."""

    file: str  # where it lay, relative to the run's folder if they were neighbours
    digest: str  # of its averaged weights

    @property
    def name(self) -> str:
        path = Path(self.file)
        return path.parent.name if path.name == "best.safetensors" and path.parent.name else path.stem


@dataclass
class State:
    """What a weight file holds.

    Tensors are named model.*, ema.*, optimizer.*, random.*; in a small file adapter.* (see `adapters.fold`) or delta.*
    (see `adapters.unpack_delta`) stand in place of ema.*, and the base is needed to draw.
    """

    recipe: Recipe
    people: list[str]
    tensors: dict[str, Tensor]
    progress: Progress = field(default_factory=Progress)
    footage: dict[str, str] = field(default_factory=dict)  # person -> the files its faces come from, in words
    base: Base | None = None
    consent: str = ""  # what was noted of the people's consent

    @property
    def subjects(self) -> list[str]:
        """The people it was fine-tuned on; of a base, which knows `ANYONE` alone, them."""
        return self.people[:-1] if len(self.people) > 1 and self.people[-1] == ANYONE else self.people

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named `prefix`.*, by the rest of their names."""
        return {n[len(prefix) + 1 :]: t for n, t in self.tensors.items() if n.startswith(prefix + ".")}


def write(path: Path, state: State) -> None:
    """Write a weight file, replacing an older one of that name in one step."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    meta = {
        "format": FORMAT,
        "version": str(VERSION),
        "recipe": state.recipe.to_toml(),
        "people": json.dumps(state.people),
        "progress": json.dumps(asdict(state.progress)),
        "footage": json.dumps(state.footage),
    }
    if state.base is not None:
        meta["base"] = json.dumps(asdict(state.base))
    if state.consent:
        meta["consent"] = state.consent
    meta["checksum"] = _checksum(tensors, meta)
    with files.whole_file(path, overwrite=True) as partial:
        partial.write_bytes(save_tensors(tensors, meta))


def read(path: Path) -> State:
    """Read a weight file; `CheckpointError` if it is missing, damaged or not ours."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file; expected a run folder or a .safetensors file of one")
    try:
        with safe_open(path, "pt") as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); use another checkpoint") from None
    _check_format(path, meta)
    if meta.pop("checksum", "") != _checksum(tensors, meta):
        raise CheckpointError(f"{path}: damaged, the checksum does not match; use another checkpoint")
    return _said(path, meta, tensors)


def read_header(path: Path) -> State:
    """What a weight file says without its tensors, which are not read, nor is its checksum compared."""
    try:
        with safe_open(path, "pt") as file:
            meta = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); use another checkpoint") from None
    _check_format(path, meta)
    return _said(path, meta, {})


def _check_format(path: Path, meta: Mapping[str, str]) -> None:
    if meta.get("format") != FORMAT or meta.get("version") not in VERSIONS:
        found = f"format {meta.get('format')!r} version {meta.get('version')!r}"
        raise CheckpointError(f"{path}: expected a faceswap weight file up to version {VERSION}, found {found}")


def _said(path: Path, meta: Mapping[str, str], tensors: dict[str, Tensor]) -> State:
    try:
        recipe = config.check(config.parse(meta["recipe"], str(path)), str(path))
        progress, people = Progress(**json.loads(meta["progress"])), [str(name) for name in json.loads(meta["people"])]
        base = Base(**json.loads(meta["base"])) if "base" in meta else None
        footage, consent = dict(json.loads(meta.get("footage", "{}"))), meta.get("consent", "")
        return State(recipe, people, tensors, progress, footage, base, consent)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error}); use another checkpoint") from None


def _checksum(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def states(run: Path) -> list[Path]:
    """The complete states in a run, the newest first."""
    found = [path for path in run.glob("state-*.safetensors") if STATE.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem[6:]), reverse=True)


def latest(run: Path) -> State | None:
    """The newest state that is whole, None if there is none; damaged ones are said and passed over.

    `CheckpointError` if there are states and none is whole.
    """
    damaged: list[str] = []
    for path in states(run):
        try:
            return read(path)
        except CheckpointError as error:
            console.warn(str(error))
            damaged.append(path.name)
    if damaged:
        raise CheckpointError(f"{run}: no whole checkpoint left of {len(damaged)}; start anew with --overwrite")
    return None


def save(run: Path, state: State, keep: int) -> None:
    """Write the state of a run and keep the newest `keep` up to it; those beyond it were damaged, and passed over."""
    path = run / f"state-{state.progress.images:09d}.safetensors"
    write(path, state)
    found = states(run)
    for old in found[found.index(path) + keep :]:
        old.unlink()


def note_consent(run: Path, consent: str) -> None:
    """Put another note of the people's consent into the weights that a run is drawn with, if there are any."""
    path = run / "best.safetensors"
    if path.exists():
        write(path, replace(read(path), consent=consent))


def _ours(run: Path) -> list[Path]:
    """What a run consists of, as far as it is there."""
    names = ["recipe.toml", FACESETS, "metrics.jsonl", "best.safetensors", "evaluation.html", "truth.html"]
    names += ["events.out.tfevents.*", "previews/latest.png"]
    found = [path for name in names for path in run.glob(name)]
    return [*found, *run.glob("previews/" + "[0-9]" * 9 + ".png"), *states(run)]


def check_folder(run: Path, overwrite: bool) -> None:
    """`CheckpointError` if `run` is neither a run nor empty, or holds weights but no state to go on from."""
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"{run}: a file; expected a folder for the run; choose another -o")
    known = _ours(run)
    if run / "best.safetensors" in known and not states(run) and not overwrite:
        raise CheckpointError(
            f"{run}: holds best.safetensors but no state to go on from; choose another -o, or add --overwrite"
        )
    for path in run.iterdir() if run.is_dir() and not states(run) else ():
        if path not in known and path.name != "previews" and path.name[0] != ".":
            raise CheckpointError(f"{run}: expected a run or an empty folder, found {path.name}; choose another -o")


def clear_folder(run: Path, everything: bool) -> None:
    """Make the folder of a run; remove what killed processes left in it, or all of an older run."""
    run.mkdir(parents=True, exist_ok=True)
    files.sweep_inside(run)
    for path in _ours(run) if everything else ():
        path.unlink()


def find(path: Path) -> Path:
    """The weight file to draw with: `path` itself, or of a run the best, or else the newest state."""
    if path.is_dir():
        candidates = [path / "best.safetensors", *states(path)]
        path = next((p for p in candidates if p.is_file()), path / "best.safetensors")
    return path


def facesets(run: Path) -> dict[str, list[Path]]:
    """The folders that each person's faces came from; empty if the run does not say.

    The file names those beside the run relative to it, so that they may move together.
    """
    note = run / FACESETS
    try:
        known = json.loads(note.read_text()) if note.is_file() else {}
        return {str(name): [run / folder for folder in folders] for name, folders in known.items()}
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError(f"{note}: damaged; delete it and name the faces with --faces") from None


def load_model(path: Path, base: Path | None = None, strength: float = 1.0) -> tuple[FaceModel, State]:
    """A model ready to draw, with averaged weights, on the CPU, and what else its file says.

    base: where the base lies, if it is not where it was. strength: how far to go from the base to what was trained, 1
    is there and 0 the base; `CheckpointError` if that, or the file, asks for a base that is not to be found.
    """
    path = find(path)
    state = read(path)
    model = new_model(state.recipe, state.people)
    weights = averaged(path, state, model, base, strength)
    fit(model, weights, str(path))
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise CheckpointError(f"{path}: holds weights that are not finite; use another checkpoint")
    return model.eval(), state


def averaged(path: Path, state: State, model: FaceModel, base: Path | None, strength: float) -> dict[str, Tensor]:
    """The averaged weights of a file, by the names of the fresh `model`, which is changed; see `load_model`."""
    whole = adapters.plain(state.part("ema"))
    if extra := {name: whole.pop(name) for name in whole.keys() - model.state_dict().keys()}:
        whole = adapters.fold(whole, extra)  # of a run in training
    if whole and strength == 1:
        return whole
    if state.base is None:
        raise CheckpointError(f"{path}: did not start from a base, so there is no strength; leave it out")
    model.load_base(find_base(state.base, path.parent, base).part("ema"))
    start = model.state_dict()
    try:
        weights = whole or (
            adapters.unpack_delta(delta, start)
            if (delta := state.part("delta"))
            else adapters.fold(start, state.part("adapter"))
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return adapters.interpolate(start, weights, strength)


def read_base(path: Path) -> State:
    """A base; of a run that came from a base itself what it makes of `ANYONE`. `CheckpointError` if it is neither."""
    model, state = load_model(path)
    if state.people[-1] != ANYONE:
        names = ", ".join(state.people)
        raise CheckpointError(f"{path}: knows {names}; expected a base, or a run that came from one")
    weights = model.as_base(model.state_dict())
    return replace(state, people=[ANYONE], tensors={f"ema.{name}": weight for name, weight in weights.items()})


def digest(weights: Mapping[str, Tensor]) -> str:
    """What tells a base from another: a hash of its averaged weights."""
    return _checksum(weights, {})


def find_base(base: Base, near: Path, given: Path | None = None) -> State:
    """The base that a run in the folder `near` started from: `given`, or where it lay, or in a folder for weights.

    `CheckpointError` if it is not to be found, or another lies in its place.
    """
    name = Path(base.file).name
    places = [given] if given is not None else [near / base.file, *(folder / name for folder in files.weight_folders())]
    found = [path for place in places if (path := find(place)).is_file()]
    why = f"there is none at {given or base.file}"
    for path in reversed(found):
        try:
            if digest((state := read_base(path)).part("ema")) == base.digest:
                return state
            why = f"{path} is another"
        except CheckpointError as error:
            why = f"{error}"
    raise CheckpointError(f"expected the base {base.name!r} ({base.digest[:12]}), {why}; give it with --base")


def new_model(recipe: Recipe, people: Sequence[str]) -> FaceModel:
    """A fresh model as the recipe says; its weights come from torch's random state."""
    part = recipe.resolved().model
    anyone = people[-1] == ANYONE
    shape = models.Shape(part.resolution, part.width, part.code, part.decoder, part.mask, anyone=anyone)
    return models.build(part.name, shape, len(people))


def fit(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a model; `CheckpointError` with the first difference if they are of another shape."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{where}: of another architecture: {name} is {found.get(name)}, "
                f"expected {expected.get(name)}; use its own recipe or another run"
            )
    model.load_state_dict(dict(weights))


def pack_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of an optimizer of some of a model's parameters as flat tensors: optimizer.PARAMETER.SLOT."""
    names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
    found = {names[weight]: values for weight, values in optimizer.state.items()}
    return {f"optimizer.{n}.{slot}": torch.as_tensor(v) for n, values in found.items() for slot, v in values.items()}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, packed: Mapping[str, Tensor], where: str
) -> None:
    """The inverse of `pack_optimizer`, without "optimizer." before the names; the groups' options stay the optimizer's
    own. `CheckpointError`, which begins with `where`, if the state is of other parameters."""
    weights = dict(model.named_parameters())
    places = {weight: i for i, weight in enumerate(_parameters(optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in packed.items():
        name, _, slot = key.rpartition(".")
        like = weights.get(name)
        if like is None or like not in places or (tensor.dim() and tensor.shape != like.shape):
            raise CheckpointError(f"{where}: the optimizer's state is of another layout ({key}); start anew")
        # A moment takes its weight's memory format, and no tensor stays tied to the file it was read from.
        own = torch.empty_like(like, device="cpu").copy_(tensor) if tensor.shape == like.shape else tensor.clone()
        state.setdefault(places[like], {})[slot] = own.detach()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def same_architecture(recipe: Recipe, other: Recipe, people: Sequence[str], known: Sequence[str]) -> str:
    """What differs between two runs' networks, in words; empty if nothing does."""
    if list(people) != list(known):
        return f"it knows {', '.join(known)}, not {', '.join(people)}"
    for key, value in recipe.model.model_dump().items():
        if (found := getattr(other.model, key)) != value:
            return f"its model.{key} is {found!r}, not {value!r}"
    return ""
