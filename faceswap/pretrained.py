"""Weights by name: those that ship in `pretrained/`, those that are pulled, and bases of the user's own.

`pretrained/manifest.toml` says what there is, of which kind (a base that training starts from, or a network that
helps), under which licence, and how to tell that a file is whole. Files lie in `files.weight_folders()`; the first one
found counts. Where the manifest knows no sha256, that of the day when a file was pulled is noted beside it.

`add` takes a base of the user's own into their folder and writes a manifest there, of the same form. Of two entries
with one name that of the earlier folder counts, as with files.

What is downloaded is data: tensors are read from it, and nothing in it is ever run.
"""

import http.client
import math
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import faceswap
from faceswap import checkpoint, config, console, files, perceptual
from faceswap.checkpoint import Progress, State
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, FaceswapError, OutputExistsError, RecipeError, UsageError
from faceswap.registry import suggest

MANIFEST = "manifest.toml"
OWN = "# Bases of your own, written by `faceswap pretrained add`, which keeps no comments.\n\n"
AGAIN = "put it right, or move it away and take its bases in again with faceswap pretrained add --overwrite"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # of a base that is added: a file's name on every system
LARGEST = 600_000_000  # bytes of a download whose size the manifest doesn't know
CHUNK = 1 << 16  # bytes that are received at once
PATIENCE = 30.0  # seconds without a byte after which a server counts as gone


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Entry:
    """What the manifest says of one weight file, and where it lies here."""

    name: str
    kind: Literal["base", "network"]
    file: Annotated[str, Field(pattern=r"^\w[\w.-]*\.safetensors$")]
    licence: str
    origin: str  # the address that it is pulled from, or how it was made
    recipe: str = ""  # the recipe or script that made it
    bytes: int | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    figures: str = ""  # how good a base is, in words
    path: Path | None = None  # None: nowhere; not for the manifest to say
    manifest: Path | None = None  # the user's own that tells of it; None: that which ships; likewise

    @property
    def published(self) -> bool:
        """Whether it can be pulled from somewhere."""
        return self.origin.startswith(("http://", "https://"))

    @property
    def remedy(self) -> str:
        """What brings it, or brings it anew."""
        over = " --overwrite" if self.path else ""
        if self.published:
            return f"faceswap pretrained pull {self.name}{over}"
        if self.manifest:
            return f"faceswap pretrained add FILE --name {self.name} --overwrite"
        return "install faceswap again"


@dataclass(frozen=True)
class Verdict:
    """What became of a pull, or of a look at a weight file."""

    name: str
    path: Path | None  # None: it is not here
    sound: bool
    said: str


class UnfitError(Exception):
    """What is wrong with a file, in words to which the place and a remedy are added."""


def entries() -> dict[str, Entry]:
    """All weights by name: those of the user's manifests, then those that ship; the first of a name counts."""
    found: dict[str, Entry] = {}
    for folder in _own_folders():
        if (manifest := folder / MANIFEST).is_file():
            for name, entry in _read_manifest(manifest, AGAIN).items():
                place = _place(entry.file, [folder, *files.weight_folders()])
                found.setdefault(name, replace(entry, path=place, manifest=manifest))
    for name, entry in _read_manifest(files.shipped("pretrained") / MANIFEST, "install faceswap again").items():
        found.setdefault(name, replace(entry, path=_place(entry.file, files.weight_folders()), manifest=None))
    return found


def _own_folders() -> list[Path]:
    """The user's weight folders, in the order of search."""
    ships = files.shipped("pretrained").resolve()
    return [folder for folder in files.weight_folders() if folder.resolve() != ships]


def _read_manifest(path: Path, remedy: str) -> dict[str, Entry]:
    """What one manifest says; `CheckpointError` with the remedy if it is damaged."""
    try:
        tables = _tables(path)
        named = {name: {**table, "name": name} if isinstance(table, dict) else table for name, table in tables.items()}
        return TypeAdapter(dict[str, Entry]).validate_python(named)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {where}: {first['msg'].lower()}; {remedy}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not valid TOML: not UTF-8; {remedy}") from None
    except RecipeError as error:
        raise CheckpointError(f"{error}; {remedy}") from None


def _tables(path: Path) -> dict[str, Any]:
    return config.parse(path.read_text(encoding="utf-8"), str(path))


def _place(file: str, folders: Iterable[Path]) -> Path | None:
    return next((path for folder in folders if (path := folder / file).is_file()), None)


def known(name: str) -> Entry:
    """The manifest's entry `name`; `UsageError` if there is none."""
    all_of_them = entries()
    if name not in all_of_them:
        raise UsageError(f"no weights called {name!r}; {suggest(name, all_of_them)}")
    return all_of_them[name]


def find(name: str) -> Path:
    """The weight file called `name`, size and sha256 checked; `CheckpointError` if it is damaged or not here."""
    entry = known(name)
    if entry.path is None:
        raise CheckpointError(f"{name}: expected {entry.file} on this machine, found none; {entry.remedy}")
    try:
        _check_sums(entry, entry.path)
    except UnfitError as error:
        raise CheckpointError(f"{entry.path}: {error}; {entry.remedy}") from None
    return entry.path


def bases() -> list[Path]:
    """The bases that are here."""
    return [entry.path for entry in entries().values() if entry.kind == "base" and entry.path]


def find_base(recipe: Recipe) -> Path | None:
    """The first base of the recipe's architecture, None if there is none."""
    recipe = recipe.resolved()
    for name, entry in entries().items():
        if entry.kind == "base" and entry.path:
            state = checkpoint.read(find(name))
            if not checkpoint.same_architecture(recipe, state.recipe.resolved(), state.people[:1], state.people):
                return entry.path
    return None


def base(text: str | Path, run: Path | None = None) -> Path:
    """The base that `text` means: a run or file that is there, or else the base of that name, its sha256 checked.

    A `run` that can go on by itself needs none: what it is given is given back, there or not.
    """
    path, name = Path(text), str(text)
    if path.exists():
        return path
    every = entries()
    named = {each for each, entry in every.items() if entry.kind == "base"}
    goes_on = run is not None and bool(checkpoint.states(run))
    if name in named and not (goes_on and every[name].path is None):
        return find(name)
    if goes_on:
        return path
    if name in every:
        raise UsageError(f"{name}: expected a base, found a network that helps; {_known(name, named)}")
    raise UsageError(f"{name}: expected a run, a weight file or the name of a base, found none; {_known(name, named)}")


def _known(name: str, named: Iterable[str]) -> str:
    return suggest(name, named) if named else "no base has a name yet, faceswap pretrained add gives one"


def verify(name: str | None = None) -> list[Verdict]:
    """Look closely at the weights called `name`, or at all of them: sizes, sums, and every tensor is read."""
    return [_verdict(entry) for entry in ([known(name)] if name else entries().values())]


def _verdict(entry: Entry) -> Verdict:
    if entry.path is None:
        return Verdict(entry.name, None, False, f"not on this machine; {entry.remedy}")
    try:
        _check_sums(entry, entry.path)
        _tensors(entry, entry.path)
    except UnfitError as error:
        return Verdict(entry.name, entry.path, False, f"{error}; {entry.remedy}")
    noted = "as on the day it was pulled" if files.noted_sha256(entry.path) else "not known"
    return Verdict(entry.name, entry.path, True, f"sound, sha256 {'as in the manifest' if entry.sha256 else noted}")


def _check_sums(entry: Entry, path: Path) -> None:
    """`UnfitError` if size or sha256 are not as in the manifest or, where it has none, as noted beside the file."""
    size = path.stat().st_size
    if entry.bytes not in (None, size):
        raise UnfitError(f"damaged: expected {entry.bytes} bytes, found {size}")
    expected = entry.sha256 or files.noted_sha256(path)
    if expected is not None and (found := files.sha256(path)) != expected:
        raise UnfitError(f"damaged or changed: expected sha256 {expected[:12]}..., found {found[:12]}...")


# Pulling


def pull(name: str, source: Path | None = None, *, overwrite: bool = False) -> Verdict:
    """Bring the weights called `name` into the user's folder, from their address or from `source`: a file, or a folder
    that holds one of the name that the manifest gives it.

    Those that are here and sound are left alone unless `overwrite` is set. A download that broke off goes on.
    """
    entry = known(name)
    if entry.path is not None and not overwrite:
        return Verdict(name, find(name), True, "already there and sound")
    if source is None and not entry.published:
        why = "" if entry.manifest else ", as it ships"
        raise UsageError(f"{name}: expected an address to pull from, found none{why}; {entry.remedy}")
    if source is not None:
        source = _given(entry, source)
    folder = _own_folder(name, "pull into")
    console.say(f"{name}: licence: {entry.licence}")
    got = source or _download(entry, folder)
    try:
        path = _install(entry, got, folder, overwrite=overwrite)
    except UnfitError as error:
        if source is not None:
            raise CheckpointError(f"{source}: {error}; give another file with --from") from None
        got.unlink()  # whole, and wrong: nothing to go on with
        raise CheckpointError(f"{entry.origin}: {error}; {_otherwise(entry)}") from None
    if source is None:
        got.unlink()
    return Verdict(name, path, True, f"pulled, {path.stat().st_size / 1e6:.1f} MB")


def _given(entry: Entry, source: Path) -> Path:
    """The weight file that `source` is or holds."""
    path = source / entry.file if source.is_dir() else source
    if not path.is_file():
        found = f"a folder without {entry.file}" if source.is_dir() else "nothing"
        raise UsageError(f"{source}: expected a weight file, or a folder with it, found {found}; give another --from")
    return path


def _own_folder(name: str, purpose: str) -> Path:
    """The folder that the user's weights go to."""
    folder = files.weight_folders()[0]
    if folder not in _own_folders():
        raise UsageError(f"{name}: expected a home folder to {purpose}, found none; name one in $FACESWAP_PRETRAINED")
    return folder


def _install(entry: Entry, got: Path, folder: Path, *, overwrite: bool) -> Path:
    """`got`, if it is what the entry says, becomes the entry's file in `folder`."""
    path, note = folder / entry.file, files.sha256_note(folder / entry.file)
    converted = entry.name in READERS
    if not converted:
        _check_sums(entry, got)
    tensors = _tensors(entry, got)
    with files.whole_file(path, overwrite=overwrite) as partial:
        if converted:
            partial.write_bytes(save(tensors))
        else:
            shutil.copyfile(got, partial)
        digest = files.sha256(partial)
        note.unlink(missing_ok=True)  # of the file that was there: killed here, we leave one that is not vouched for
    if entry.sha256 is None:
        with files.whole_file(note, overwrite=True) as partial:
            partial.write_text(f"{digest}  {path.name}\n")
    return path


def _download(entry: Entry, folder: Path) -> Path:
    """All that is at the entry's address, in a part that stays in `folder` until it is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{entry.file}.partial"
    limit = LARGEST if entry.bytes is None or entry.name in READERS else entry.bytes
    before = part.stat().st_size if part.is_file() else 0
    response = _request(entry, before)
    if response is None:
        return part  # it was whole already
    with response:
        done = before if response.status == http.client.PARTIAL_CONTENT else 0
        if before and not done:
            console.say(f"{entry.name}: the server cannot go on where it stopped; starting over")
        total = None if response.length is None else done + response.length
        if total is not None and total > limit:
            raise CheckpointError(f"{entry.origin}: expected {limit} bytes at most, found {total}; {_otherwise(entry)}")
        chunk = _receive(entry, response, done, total)
        if not done and not _may_be_weights(chunk):
            found = f"{response.headers.get_content_type()}, {chunk[:12]!r}..."
            raise CheckpointError(f"{entry.origin}: expected a weight file, found {found}; {_otherwise(entry)}")
        meter = console.Meter(f"pulling {entry.name}", total and round(total / 1e6), "MB")
        with part.open("ab") as file, meter:
            file.truncate(done)
            meter.start_at(done / 1e6)
            while chunk:
                file.write(chunk)
                file.flush()
                done += len(chunk)
                meter.advance(len(chunk) / 1e6)
                if os.fstat(file.fileno()).st_size != done:
                    raise CheckpointError(f"{part}: another pull writes to it; wait for that, or stop it and delete it")
                if done > limit:
                    break
                chunk = _receive(entry, response, done, total)
    if done > limit:
        part.unlink()
        raise CheckpointError(f"{entry.origin}: expected {limit} bytes at most, found more; {_otherwise(entry)}")
    if total is not None and done < total:
        raise _broke_off(entry, "the server hung up", done, total)
    return part


def _request(entry: Entry, done: int) -> Any:
    """The server's answer (http.client.HTTPResponse) from the byte `done` on, or from the first if it will not; None
    if it says that `done` bytes are all there are."""
    headers = {"User-Agent": f"faceswap/{faceswap.__version__}"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(entry.origin, headers=headers), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        with error:
            said = error.headers.get("Content-Range", "")
        if done and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None if said == f"bytes */{done}" else _request(entry, 0)
        why = f"the server said {error.code} {error.reason}"
        raise CheckpointError(f"{entry.origin}: {why}; {_otherwise(entry)}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CheckpointError(f"{entry.origin}: not reachable ({reason}); {_otherwise(entry)}") from None
    said = response.headers.get("Content-Range", "")
    if done and response.status == http.client.PARTIAL_CONTENT and not said.startswith(f"bytes {done}-"):
        response.close()
        return _request(entry, 0)
    return response


def _receive(entry: Entry, response: http.client.HTTPResponse, done: int, total: int | None) -> bytes:
    """The next bytes, none at the end."""
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _broke_off(entry, str(error) or type(error).__name__, done, total) from None


def _broke_off(entry: Entry, why: str, done: int, total: int | None) -> CheckpointError:
    of = f" of {total / 1e6:.1f}" if total else ""
    return CheckpointError(
        f"{entry.origin}: broke off after {done / 1e6:.1f}{of} MB ({why}); the same command goes on from there"
    )


def _otherwise(entry: Entry) -> str:
    """The remedy when an address does not give what it should."""
    return (
        f"get it elsewhere and give it with --from FILE, or name a folder that has {entry.file} in $FACESWAP_PRETRAINED"
    )


# Bases of the user's own


def add(
    source: Path,  # a run of faceswap pretrain, or a weight file of one
    name: str,
    *,
    licence: str = "",
    origin: str = "",  # how it was made
    overwrite: bool = False,  # takes the place of a base of that name, even of one that ships
) -> Entry:
    """Take a base into the user's folder: its averaged weights alone, and an entry in the manifest there.

    `UsageError` for a name that cannot be, `OutputExistsError` for one that is taken, `CheckpointError` for what is no
    base or not whole.
    """
    if not NAME.fullmatch(name):
        expected = "letters, digits, - and _, the first a letter or digit, 40 at most"
        raise UsageError(f"{name!r}: expected {expected}, found something else; choose another --name")
    folder, file = _own_folder(name, "keep it in"), f"{name}.safetensors"
    path, manifest = folder / file, folder / MANIFEST
    other = _with_that_name(name, file)
    if other is not None and not overwrite:
        where = other.manifest or "what ships with faceswap"
        raise OutputExistsError(f"{name}: known already, in {where}; choose another --name or add --overwrite")
    files.refuse_existing(path, overwrite)
    state = _read_base(source)
    checkpoint.write(path, state)
    files.sha256_note(path).unlink(missing_ok=True)
    entry = {
        "kind": "base",
        "file": file,
        "licence": _line(licence) or "not stated",
        "origin": _origin(_line(origin) or _line(f"added from {source.absolute()}")),
        "recipe": f"in the file: {state.recipe.model.name}, {state.recipe.model.resolution} px",
        "bytes": path.stat().st_size,
        "sha256": files.sha256(path),
        "figures": _figures(state.progress),
    }
    with files.whole_file(manifest, overwrite=True) as partial:
        tables = _tables(manifest) if manifest.is_file() else {}
        partial.write_text(OWN + tomli_w.dumps({**tables, name: entry}), encoding="utf-8")
    if other is not None and other.manifest is None:
        console.say(f"{name}: from now on yours, not the one that ships")
    return known(name)


def _with_that_name(name: str, file: str) -> Entry | None:
    """The base called `name`; `UsageError` if others have that name or file, also where a disk ignores case."""
    for entry in entries().values():
        if entry.name == name and entry.kind == "base":
            return entry
        if name.lower() == entry.name.lower() or file.lower() == entry.file.lower():
            found = f"{entry.name}, a {entry.kind} in {entry.file}"
            raise UsageError(
                f"{name}: expected a name that no other weights have, found {found}; choose another --name"
            )
    return None


def _read_base(source: Path) -> State:
    """The averaged weights of a base, and what else its file says."""
    path = checkpoint.find(source)
    remedy = "give a run of faceswap pretrain, or a weight file of one"
    try:
        model, state = checkpoint.load_model(path)
    except FaceswapError as error:
        raise CheckpointError(f"{path}: {_complaint(error, path)}; {remedy}") from None
    if len(state.people) != 1:
        known = ", ".join(state.people)
        raise CheckpointError(f"{source}: expected a base, which knows one person, found one of {known}; {remedy}")
    return replace(state, tensors={f"ema.{name}": weight for name, weight in model.state_dict().items()})


def _figures(progress: Progress) -> str:
    """How far a base has come, in words."""
    best = f"held-out loss {progress.best:.4g} " if math.isfinite(progress.best) else ""
    return f"{best}after {progress.images:,} images"


def _origin(text: str) -> str:
    """Where a base comes from; an address is not one that these very bytes can be pulled from."""
    return f"made from {text}" if text.startswith(("http://", "https://")) else text


def _line(text: str) -> str:
    """Any text as one line that can be written."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


# Reading


def _may_be_weights(head: bytes) -> bool:
    """Whether a file may be of torch.save (a zip, before 2020 a pickle) or safetensors, by its first bytes."""
    return head.startswith((b"PK\x03\x04", b"\x80")) or _may_be_safetensors(head)


def _may_be_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < LARGEST


def _tensors(entry: Entry, path: Path) -> dict[str, Tensor]:
    """All that is in a file of the entry; `UnfitError` if it is not what the entry says."""
    if entry.name in READERS:
        return READERS[entry.name](path)
    if entry.kind == "network":
        return _read(path)
    try:
        return checkpoint.read(path).tensors
    except FaceswapError as error:
        raise UnfitError(_complaint(error, path)) from None


def _complaint(error: FaceswapError, path: Path) -> str:
    """What is wrong with a file, without its place and the remedy."""
    text = str(error).removeprefix(f"{path}: ")
    return text.rpartition(";")[0] or text


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of safetensors or torch.save; `UnfitError` if there is anything else in it."""
    with path.open("rb") as file:
        try:
            if _may_be_safetensors(file.read(9)):
                return load_file(path)
            file.seek(0)
            found = torch.load(file, map_location="cpu", weights_only=True)
        except SafetensorError as error:
            raise UnfitError(f"not a whole safetensors file ({error})") from None
        except Exception:  # what bytes that are no weights make of torch.load has no end, and its messages are pages
            raise UnfitError("expected a whole file with tensors and nothing else, found something else") from None
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UnfitError(f"expected tensors by name, found {type(found).__name__} with other things")
    return {str(name): tensor for name, tensor in found.items()}


def read_facenet(path: Path) -> dict[str, Tensor]:
    """The weights of facenet-pytorch's InceptionResnetV1, without the layer that names VGGFace2's 8,631 people."""
    from facenet_pytorch import InceptionResnetV1

    net, found = InceptionResnetV1(), _read(path)
    own = net.state_dict()
    counters = {name for name in own if name.endswith(".num_batches_tracked")}  # no weights; older files lack them
    expected = {name: list(tensor.shape) for name, tensor in own.items()}
    names = {"logits.weight": [8631, 512], "logits.bias": [8631]}
    for name, shape in (expected | names).items():
        there = list(found[name].shape) if name in found else None
        if there != shape and not (there is None and (name in names or name in counters)):
            raise UnfitError(f"expected the weights of InceptionResnetV1: {name} is {there}, not {shape}")
    if extra := sorted(found.keys() - expected.keys() - names.keys()):
        raise UnfitError(f"expected the weights of InceptionResnetV1, found {extra[0][:40]!r} among them")
    try:
        net.load_state_dict({name: found.get(name, own[name]) for name in expected})
    except RuntimeError:  # of the right shape, and sparse or the like
        raise UnfitError("expected the weights of InceptionResnetV1, found tensors that it cannot take") from None
    weights: dict[str, Tensor] = net.state_dict()
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise UnfitError("expected the weights of InceptionResnetV1, found some that are not finite")
    return weights


def read_vgg16(path: Path) -> dict[str, Tensor]:
    """What `faceswap.perceptual` needs of torchvision's VGG16: 7 of its 553 MB."""
    found, weights = _read(path), {}
    for name, own in perceptual.Features().state_dict().items():
        there = list(found[name].shape) if name in found else None
        if there != list(own.shape):
            raise UnfitError(f"expected the weights of VGG16: {name} is {there}, not {list(own.shape)}")
        weights[name] = torch.empty(own.shape).copy_(found[name])
        if not bool(torch.isfinite(weights[name]).all()):
            raise UnfitError(f"expected the weights of VGG16, found some that are not finite in {name}")
    return weights


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {  # else: as it is
    "inception-resnet-v1": read_facenet,
    "vgg16": read_vgg16,
}
