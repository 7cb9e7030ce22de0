"""Choose from a faceset: an order, what to leave out, copies, packs.

Nothing is ever deleted. What `filter_faces` takes out moves to `removed/REASON/` inside the faceset, where a reader of
facesets does not look; moving a file back brings the face back. A face's own mask, `NAME.mask.png`, goes wherever its
face goes. A sort key is one line in `SORTS`, a reason to take a face out one function in `REASONS`.

Convention: one number per face in arrays (N,) in the order of the faceset; NaN where an image does not decode.
"""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from faceswap import console, files, pack
from faceswap.embedding import Embedder, distances
from faceswap.errors import FacesetError, FaceswapError, UsageError
from faceswap.faceset import (
    SUFFIXES,
    Entry,
    Faceset,
    is_mask,
    mask_path,
    open_all,
    own_mask,
    read_bytes,
    read_images,
    read_meta,
    refuse_foreign,
    spread,
)
from faceswap.looks import EMBED_SIZE, Faces, Looks, Mask, Numbers, Rows, embed

CHAIN = 4096  # faces that one chain of nearest neighbours orders: its time grows with the square
ALIKE, AS_BRIGHT = 0.95, 0.04  # of near duplicates: least correlation, and greatest difference of brightness
BLOCK = 512  # faces held against all others at once
CORE = 1000  # faces that stand for a set or a person
PREFIX = re.compile(r"\d{5,}--")  # what `sort` puts before a name
REMOVED = "removed"
HAND = "hand"  # the reason of what somebody chose


# ---------------------------------------------------------------- sorting


@dataclass(frozen=True)
class Sorted:
    """What a sort did."""

    faceset: Path
    by: str
    means: str  # what was compared
    faces: int
    renamed: int
    damaged: int  # sorted to the end


def sort_faces(folder: Path, by: str) -> Sorted:
    """Rename the faces so that a file browser shows them in order: `00042--NAME`; by time the names come back."""
    _refuse_pack(folder, "sorted")
    faceset = open_all([folder])[0]
    faces = Faces(faceset)
    key = SORTS[by]
    order = np.argsort(key.numbers(faces), kind="stable")
    originals = _originals([entry.path for entry in faces.entries])
    width = max(5, len(str(len(order) - 1)))
    moves: list[tuple[Path, Path]] = []
    for place, row in enumerate(order):
        path = faces.entries[row].path
        name = originals[row] if by == "time" else f"{place:0{width}}--{originals[row]}"
        moves.append((path, path.with_name(name)))
    renamed = rename(moves)
    damaged = int((~faces.whole).sum()) if key.looks else 0
    means = f"{key.means}, by {faces.likeness[0]}" if by == "similarity" else key.means
    return Sorted(folder, by, means, len(faces), renamed, damaged)


def _originals(paths: Sequence[Path]) -> list[str]:
    """The names without what `sort` put before them; a second face of one name gets a number."""
    taken: set[str] = set()
    found = []
    for path in paths:
        plain = Path(PREFIX.sub("", path.name, count=1))
        numbered = (f"{plain.stem}-{number}{plain.suffix}" for number in count(2))
        # the stem alone must differ too, since a mask is named by it
        name = next(n for n in chain([plain.name], numbered) if Path(n).stem not in taken)
        taken.add(Path(name).stem)
        found.append(name)
    return found


def rename(moves: Sequence[tuple[Path, Path]]) -> int:
    """Rename faces with their masks; how many got another name.

    One file at a time, each in one step onto a name that is free: killed at any point, every face is there under its
    old name or its new one.
    """
    waiting = {old: new for old, new in moves if old != new}
    renamed = len(waiting)
    while waiting:
        ready = [(old, new) for old, new in waiting.items() if new not in waiting and not _stem_waits(new, waiting)]
        if not ready:  # names go round in a circle: one steps aside
            old, new = next(iter(waiting.items()))
            aside = free_name(old.with_name(f"aside-{old.name}"))
            _move(old, aside)
            del waiting[old]
            waiting[aside] = new
            continue
        for old, new in ready:
            _move(old, free_name(new))
            del waiting[old]
    return renamed


def _stem_waits(new: Path, waiting: dict[Path, Path]) -> bool:
    """Whether a face that still waits has the mask's name of `new`."""
    return any(new.with_suffix(suffix) in waiting for suffix in SUFFIXES if suffix != new.suffix)


def _move(face: Path, onto: Path) -> None:
    """Move a face. Its mask is there under the new name before, and under the old one until after."""
    mask = own_mask(face)
    if mask is not None:
        shutil.copy2(mask, mask_path(onto))
    face.rename(onto)
    if mask is not None:
        mask.unlink()


def free_name(path: Path) -> Path:
    """`path`, or with the first number that makes it, and its mask, a name that nothing has."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(p for p in chain([path], numbered) if not (p.exists() or mask_path(p).exists()))


def _refuse_pack(path: Path, done: str) -> None:
    if pack.is_pack(path):
        raise UsageError(f"{path}: a pack cannot be {done}; faceswap faceset unpack it first, or copy what you want")


def chained(points: NDArray[np.float32]) -> Rows:
    """An order (N,) in which neighbours are alike.

    From one end of the main axis on, always to the nearest face that is left. Beyond `CHAIN` faces they are first cut
    into pieces along that axis, so that 100,000 need a minute and no matrix of distances.
    """
    if not len(points):
        return np.empty(0, np.int64)
    centred = points - points.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = np.argsort(centred @ axis, kind="stable")
    found: list[int] = []
    for piece in np.array_split(along, -(-len(along) // CHAIN)):
        left = points[piece]
        half = (left * left).sum(1) / 2
        at = left[0] if not found else points[found[-1]]
        for _ in range(len(piece)):
            near = int(np.argmin(half - left @ at))  # half the squared distance, less what is the same for all
            half[near] = np.inf
            at = left[near]
            found.append(int(piece[near]))
    return np.array(found, np.int64)


def by_similarity(faces: Faces) -> Numbers:
    """Places in a chain of faces that are alike."""
    whole = np.flatnonzero(faces.whole)
    places = np.full(len(faces), np.nan)
    places[whole[chained(faces.likeness[1])]] = np.arange(len(whole))
    return places


# ---------------------------------------------------------------- filtering


@dataclass(frozen=True)
class Limits:
    """What makes a face leave; None or empty asks for nothing."""

    blur: float | None = None  # lowest sharpness, see `look`
    min_size: float | None = None  # px in the frame
    fit: float | None = None  # lowest fit of the landmarks
    duplicates: int | None = None  # most bits of 64 in which a near duplicate's hash differs
    person: bool = False  # whoever is not the references' person
    references: tuple[Path, ...] = ()  # face images or facesets; none: the largest group of the set itself
    tracks: tuple[int, ...] = ()  # that stay


@dataclass(frozen=True)
class Filtered:
    """What a filter did, or would do."""

    faceset: Path
    kept: int
    removed: dict[str, list[str]]  # by reason, names of files
    notes: list[str]  # how a person was told from others
    folder: Path  # where they went
    dry_run: bool


def filter_faces(folder: Path, limits: Limits, *, dry_run: bool = False) -> Filtered:
    """Move the faces that `limits` exclude to `removed/REASON/` inside the faceset.

    `FacesetError`, and nothing moves, if no face would be left.
    """
    _refuse_pack(folder, "filtered")
    if limits == Limits():
        raise UsageError("expected something to filter by, found nothing; add --blur, --min-size, --fit, ...")
    faces = Faces(open_all([folder])[0])
    reasons, notes = judge(faces, limits)
    place = folder / REMOVED
    removed: dict[str, list[str]] = {}
    for reason, rows in reasons.items():
        paths = [faces.entries[row].path for row in np.flatnonzero(rows)]
        removed[reason] = [path.name for path in paths]
        if dry_run or not paths:
            continue
        (place / reason).mkdir(parents=True, exist_ok=True)
        for path in paths:
            _move(path, free_name(place / reason / path.name))
    kept = len(faces) - sum(map(len, removed.values()))
    return Filtered(folder, kept, removed, notes, place, dry_run)


def throw_out(folder: Path, names: Sequence[str]) -> list[str]:
    """Move faces to `removed/hand/`; gives their names there, as `bring_back` takes them.

    `FacesetError`, and nothing moves, if one is not there or none would be left.
    """
    _refuse_pack(folder, "changed")
    here = {path.name for path in _images(folder)}
    _refuse_missing(folder, [name for name in names if name not in here])
    if here <= set(names):
        raise FacesetError(f"{folder}: none of {len(here)} faces would be left; keep one")
    return _moved(folder, [folder / name for name in names], folder / REMOVED / HAND)


def bring_back(folder: Path, names: Sequence[str]) -> list[str]:
    """Move faces back that were taken out, each called `REASON/NAME`; gives their names in the faceset.

    `FacesetError`, and nothing moves, if one is not there.
    """
    there = {path.relative_to(folder / REMOVED).as_posix(): path for path in taken_out(folder)}
    _refuse_missing(folder / REMOVED, [name for name in names if name not in there])
    return _moved(folder, [there[name] for name in names], folder)


def taken_out(folder: Path) -> list[Path]:
    """The face images under `removed`, whatever the reason."""
    reasons = (folder / REMOVED).iterdir() if (folder / REMOVED).is_dir() else ()
    return [path for reason in sorted(reasons) if reason.is_dir() for path in _images(reason)]


def _images(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and not is_mask(p))
    return sorted(found)


def _refuse_missing(folder: Path, names: Sequence[str]) -> None:
    if names:
        raise FacesetError(f"{folder}: has no face {names[0]}; somebody moved it meanwhile, look again")


def _moved(folder: Path, faces: Sequence[Path], onto: Path) -> list[str]:
    """Move faces into the folder `onto`; their names there, seen from `removed` or from the faceset."""
    onto.mkdir(parents=True, exist_ok=True)
    names = []
    for face in dict.fromkeys(faces):
        place = free_name(onto / face.name)
        _move(face, place)
        names.append(place.relative_to(folder if onto == folder else folder / REMOVED).as_posix())
    return names


def judge(faces: Faces, limits: Limits) -> tuple[dict[str, Mask], list[str]]:
    """Which faces leave, by the first reason that applies, and notes on how that was found.

    `FacesetError` if none would be left.
    """
    if limits.references and not limits.person:
        raise UsageError("--reference belongs to --person")
    left = np.ones(len(faces), bool)
    found: dict[str, Mask] = {}
    notes: list[str] = []
    for name, excluded in REASONS.items():
        rows = excluded(faces, limits, left, notes)
        if rows is not None:
            found[name] = rows & left
            left &= ~rows
        if not left.any():
            break
    if not left.any():
        most = ", ".join(f"{rows.sum()} {name}" for name, rows in found.items() if rows.any())
        raise FacesetError(f"{faces.folder}: none of {len(faces)} faces would be left ({most}); loosen the limits")
    return found, notes


Excluded = Mask | None  # None: not asked for


def damaged(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    """Images that do not decode, where images are looked at."""
    seen = limits.blur is not None or limits.duplicates is not None or limits.person
    return ~faces.whole if seen else None


def other_track(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    if not limits.tracks:
        return None
    there = {place.track for place in faces.places}
    missing = [track for track in limits.tracks if track not in there]
    if missing:
        known = ", ".join(map(str, sorted(t for t in there if t is not None))) or "none"
        raise UsageError(f"{faces.folder}: has no track {missing[0]}, but {known}; look with faceset sheet")
    for number in limits.tracks:
        videos = {place.input: place.source for place in faces.places if place.track == number}
        if len(videos) > 1:  # each input counts its tracks from 0
            raise UsageError(
                f"{faces.folder}: track {number} is in {' and in '.join(list(videos.values())[:2])}; extract them apart"
            )
    return np.array([place.track not in limits.tracks for place in faces.places])


def too_small(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    return None if limits.min_size is None else faces.size < limits.min_size


def bad_fit(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    """Landmarks that fit badly, or none at all."""
    if limits.fit is None:
        return None
    if not any(place.has_landmarks for place in faces.places):
        raise FacesetError(f"{faces.folder}: --fit needs landmarks, no face has any; extract the faces again")
    return faces.fit < limits.fit


def too_blurred(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    return None if limits.blur is None else faces.looks.sharpness < limits.blur


def other_person(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    """Faces that no known face of the person is near to.

    Near is the embedder's `same` for the largest group, that with `other` half way for references, which are few.
    """
    if not limits.person:
        return None
    try:
        embedder = faces.embedder
    except FaceswapError as error:
        raise FaceswapError(f"--person: {error}, or choose with --track N (look with faceset sheet)") from None
    known = _known(embedder, limits.references)
    rows = np.flatnonzero(left)
    embeddings = faces.embeddings(rows)
    if known is None:
        known, of, line = _largest_group(embeddings, embedder.same), "the set's largest group", embedder.same
    else:
        of, line = "the references", (embedder.same + embedder.other) / 2
    notes.append(f"other person: further than {line:.2f} from all of {len(known)} faces of {of} ({embedder.name})")
    blocks = (embeddings[start : start + 4096] for start in range(0, len(rows), 4096))
    goes = np.zeros(len(faces), bool)
    goes[rows] = np.concatenate([distances(block, known).min(1) > line for block in blocks])
    return goes


def near_duplicates(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    """All but the sharpest of those alike.

    From the sharpest on, a face goes if one that stays is like it: faces that lead over to each other in small steps,
    as in slow footage, are thinned out and not taken for one.
    """
    if limits.duplicates is None:
        return None
    rows = np.flatnonzero(left)
    rows = rows[np.argsort(-faces.looks.sharpness[rows], kind="stable")]
    goes = np.zeros(len(faces), bool)
    goes[repeats(faces.looks, rows, limits.duplicates)] = True
    return goes


def repeats(looks: Looks, rows: Rows, bits: int) -> Rows:
    """Those of `rows` that are like an earlier one that is itself no repeat: all pairs are looked at, in blocks.

    Alike are faces whose hashes differ in at most `bits`, whose pictures correlate by `ALIKE`, and whose brightness
    differs by at most `AS_BRIGHT`: the hash finds them fast, the others keep two people of one pose apart.
    """
    kept = np.empty(0, np.int64)
    found: list[int] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        near = np.zeros(len(block), bool)
        for first in range(0, len(kept), 8192):
            near |= _alike(looks, block, kept[first : first + 8192], bits)
        fresh: list[int] = []
        for i in np.flatnonzero(~near):
            near[i] = _alike(looks, block[i : i + 1], block[fresh], bits)[0]
            if not near[i]:
                fresh.append(int(i))
        kept = np.concatenate([kept, block[fresh]])
        found += block[near].tolist()
    return np.array(found, np.int64)


def _alike(looks: Looks, some: Rows, others: Rows, bits: int) -> Mask:
    """Which of `some` are like any of `others`."""
    between = np.bitwise_count(looks.hashes[some, None] ^ looks.hashes[None, others])
    first, second = np.nonzero(between <= bits)
    a, b = some[first], others[second]
    dim = np.abs(looks.brightness[a] - looks.brightness[b]) <= AS_BRIGHT
    found = np.zeros(len(some), bool)
    for at in np.array_split(np.flatnonzero(dim), len(a) // 65536 + 1):
        alike = (looks.thumbs[a[at]] * looks.thumbs[b[at]]).sum(1) >= ALIKE
        found[first[at[alike]]] = True
    return found


def _known(embedder: Embedder, references: Sequence[Path]) -> NDArray[np.float32] | None:
    """Embeddings of the references, of at most `CORE`; None for none. `FacesetError` for what is no face of ours."""
    if not references:
        return None
    paths: list[Path] = []
    for path in references:
        if path.is_dir() or pack.is_pack(path):
            paths += [entry.path for entry in Faceset.open(path).entries]
        elif path.is_file() and read_meta(path) is not None:
            paths.append(path)
        else:
            raise FacesetError(f"{path}: expected an extracted face or a faceset; faceswap extract {path.name} first")
    images = list(read_images(spread(paths, CORE), EMBED_SIZE))
    if any(image is None for image in images):
        raise FacesetError(f"{paths[images.index(None)]}: the reference does not decode; choose another")
    return embed(embedder, images)


def _largest_group(embeddings: NDArray[np.float32], same: float) -> NDArray[np.float32]:
    """Of at most `CORE` of the faces, the largest group that steps of at most `same` lead through."""
    sound = embeddings[np.isfinite(embeddings).all(1)]
    some = sound[spread(range(len(sound)), CORE)]
    group = connected_components(distances(some, some) <= same)[1]
    return np.asarray(some[group == np.bincount(group).argmax()])


# ---------------------------------------------------------------- copies and packs


@dataclass(frozen=True)
class Copied:
    """What a copy, a pack or an unpacking made."""

    out: Path
    faces: int
    masks: int
    bytes: int
    notes: list[str]


def copy(
    path: Path,
    out: Path,
    limits: Limits,
    *,
    every: int = 1,  # of the faces that the limits leave
    most: int | None = None,  # evenly spread
    overwrite: bool = False,  # replaces a faceset, and nothing but a faceset
) -> Copied:
    """Copy chosen faces into the new faceset `out`, which appears when it is complete."""
    _check_folder(path, out, overwrite)
    faces = Faces(open_all([path])[0])
    reasons, notes = judge(faces, limits)
    left = ~np.logical_or.reduce([np.zeros(len(faces), bool), *reasons.values()])
    rows = np.flatnonzero(left)[::every].tolist()
    chosen = [faces.entries[row] for row in (rows if most is None else spread(rows, most))]
    return _write_folder(chosen, out, overwrite, notes)


def unpack_faces(path: Path, out: Path, *, overwrite: bool = False) -> Copied:
    """The faces of a pack as a folder again, byte by byte as they were."""
    if not pack.is_pack(path):
        raise UsageError(f"{path}: expected a pack, NAME{pack.SUFFIX}; a folder needs no unpacking")
    _check_folder(path, out, overwrite)
    return _write_folder(Faceset.open(path).entries, out, overwrite, [])


def pack_faces(path: Path, out: Path, *, overwrite: bool = False) -> Copied:
    """Put a faceset into one file that opens wherever a faceset does."""
    pack.check_name(out)
    files.refuse_same(out, [path])
    files.refuse_existing(out, overwrite)
    faceset = open_all([path])[0]
    others = _left_out(faceset)
    if others:
        console.warn(f"{path}: {len(others)} files and folders that are no faces are not packed, as {others[0].name}")
    counts = Counter[str]()

    def members() -> Iterator[tuple[str, str | None, bytes]]:
        for entry, name, content in _contents(faceset.entries, "packing"):
            counts.update(faces=int(entry is not None), masks=int(entry is None), bytes=len(content))
            yield name, entry.key if entry else None, content

    pack.write(out, members(), overwrite=overwrite)
    return Copied(out, counts["faces"], counts["masks"], counts["bytes"], [])


def _check_folder(path: Path, out: Path, overwrite: bool) -> None:
    files.refuse_same(out, [path])
    files.refuse_existing(out, overwrite)
    if out.exists():
        refuse_foreign(out)


def _left_out(faceset: Faceset) -> list[Path]:
    """What lies in a faceset's folder and is neither a face nor a face's mask."""
    if pack.is_pack(faceset.folder):
        return []
    ours = {path for entry in faceset.entries for path in (entry.path, mask_path(entry.path))}
    return sorted(path for path in faceset.folder.iterdir() if path not in ours and path.name[0] != ".")


def _contents(entries: Sequence[Entry], label: str) -> Iterator[tuple[Entry | None, str, bytes]]:
    """Entry, name and bytes of all files of the faces; the entry is None for a mask."""
    for entry in console.track(entries, label, len(entries), "faces"):
        yield entry, entry.path.name, read_bytes(entry.path)
        mask = own_mask(entry.path)
        if mask is not None:
            yield None, mask.name, read_bytes(mask)


def _write_folder(entries: Sequence[Entry], out: Path, overwrite: bool, notes: list[str]) -> Copied:
    counts = Counter[str]()
    with files.whole_folder(out, overwrite=overwrite) as folder:
        for entry, name, content in _contents(entries, f"writing {out.name}"):
            with (folder / name).open("xb") as file:
                file.write(content)
            counts.update(faces=int(entry is not None), masks=int(entry is None), bytes=len(content))
    return Copied(out, counts["faces"], counts["masks"], counts["bytes"], notes)


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class SortKey:
    """An order, and what it means."""

    numbers: Callable[[Faces], Numbers]  # the smallest comes first, NaN last
    means: str
    looks: bool = True  # at the images, not at metadata alone


SORTS: dict[str, SortKey] = {
    "blur": SortKey(lambda faces: -faces.looks.sharpness, "sharpest first, by the variance of the Laplacian"),
    "yaw": SortKey(lambda faces: faces.pose[:, 0], "from the image's left to its right", looks=False),
    "pitch": SortKey(lambda faces: faces.pose[:, 1], "from looking down to looking up", looks=False),
    "size": SortKey(lambda faces: -faces.size, "largest in the frame first", looks=False),
    "brightness": SortKey(lambda faces: faces.looks.brightness, "darkest first"),
    "similarity": SortKey(by_similarity, "the most alike beside each other"),
    "time": SortKey(
        lambda faces: np.arange(len(faces), dtype=float),
        "as in the footage, under the names that extract gave",
        looks=False,
    ),
}

REASONS: dict[str, Callable[[Faces, Limits, Mask, list[str]], Excluded]] = {  # the folders' names, in this order
    "damaged": damaged,
    "track": other_track,
    "small": too_small,
    "fit": bad_fit,
    "blurred": too_blurred,
    "person": other_person,
    "duplicate": near_duplicates,  # last: the sharpest of those that are left stays
}
