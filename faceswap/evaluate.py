"""How good is it, on any footage and without a truth: what a model draws of faces it never saw, and what a swap keeps
of the target and takes of the source.

Every figure of the swap stands beside its noise floor: the same figure of the target's own face, sent through the
model's resolution and laid back like a swapped one. A difference below the floor means nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from faceswap import align, batches, checkpoint, console, detectors, embedding, metrics, page, swap
from faceswap.checkpoint import State
from faceswap.config import MergeRecipe, Recipe
from faceswap.detectors import Face
from faceswap.devices import resolve
from faceswap.errors import FacesetError
from faceswap.faceset import Entry, Faceset, read_image
from faceswap.masks import face_mask
from faceswap.models import FaceModel

SIZE = 192  # px, side of the crops that are measured: MS-SSIM has its five scales
MEASURED = 64  # faces or moments per person
EMBEDDED = 24  # faces per person that an embedder looks at
SHOWN = 6  # of them on the page
REPEATS = 1.5  # decoder distance below which the swap is said to repeat the target

Rows = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Report:
    """What was measured. A figure is None where it could not be measured; `metrics.TABLE` says what each means."""

    model: Path
    images: int  # trained on
    tables: dict[str, Rows]  # title -> row -> measure -> figure
    notes: list[str] = field(default_factory=list)
    page: Path | None = None


@dataclass(frozen=True)
class Views:
    """Moments of one video, in canonical crops; see `metrics` for the conventions."""

    images: metrics.Images  # (N, S, S, 3)
    following: metrics.Images  # (M, S, S, 3): the frame after each, in the same coordinates; M is N or 0
    points: metrics.Points  # (N, 5, 2), as detected in `images`; NaN where no face was found


def view(images: Sequence[NDArray[Any]], following: Sequence[NDArray[Any]], detector: detectors.Detector) -> Views:
    """Views of crops (S, S, 3) uint8 RGB."""
    found = [points_of(faces) for faces in detector(list(images))] if images else []
    return Views(_floats(images), _floats(following), np.stack(found))


def points_of(faces: Sequence[Face]) -> NDArray[np.float64]:
    """The five points (5, 2) of the largest face, NaN if there is none."""
    return np.asarray(faces[0].points if faces else np.full((5, 2), np.nan), np.float64)


def _floats(images: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[np.float32]:
    """uint8 images as (N, ...) float32 in [0, 1]."""
    if not len(images):
        return np.empty((0, SIZE, SIZE, 3), np.float32)
    return np.asarray(images).astype(np.float32) / np.float32(255)


def agreement(
    ours: Views,
    reference: Views,
    masks: metrics.Images,  # the face
    edges: metrics.Images,  # where a face may have been laid in
    *,
    same_person: bool,
) -> dict[str, float | None]:
    """How far `ours` does what the reference does: landmarks, pose, mouth, flicker and seam.

    Where the reference shows another person, the mean difference of the points is taken out first: it tells faces
    apart, not what they do.
    """
    points = ours.points
    if not same_person and np.isfinite(points + reference.points).all((1, 2)).any():
        points = points - np.nanmean(points - reference.points, axis=0)
    found: dict[str, float | None] = {
        "landmarks": metrics.mean(metrics.landmark_error(points, reference.points)),
        "pose": metrics.mean(metrics.pose_error(points, reference.points, ours.images.shape[1])),
        "mouth": metrics.mouth_agreement(ours.points, reference.points),
        "seam": metrics.mean(metrics.seam(ours.images, reference.images, edges)),
    }
    if len(ours.following):
        changes = [metrics.mean(metrics.change(seen.images, seen.following, masks)) for seen in (ours, reference)]
        found["flicker"] = changes[0] / changes[1] if changes[1] else float("nan")
    return found


def sharpness(ours: metrics.Images, masks: NDArray[Any], reference: metrics.Images, their: NDArray[Any]) -> float:
    """Mean variance of the Laplacian inside the face, over the reference's (inside `their` masks)."""
    return metrics.mean(metrics.laplacian(ours, masks)) / metrics.mean(metrics.laplacian(reference, their))


def evaluate(
    path: Path,  # a run, or a weight file
    recipe: Recipe,  # of which `extract` (the detector) and `merge` are used
    *,
    device: str = "auto",
    faces: Path | None = None,  # of the target (of a base: of anyone), instead of those held out in training
    out: Path | None = None,  # the page; default: evaluation.html in the run, replaced
    overwrite: bool = False,  # of `out`
) -> Report:
    """Measure a model on faces that it was not trained on.

    Those are the faces held out of the run's own facesets, or all of `faces`. `CheckpointError` for an unusable model,
    `FacesetError` if there are no faces to measure on.
    """
    weights = checkpoint.find(path)
    model, state = checkpoint.load_model(weights)
    people = _people(weights.parent, state, faces)
    place = resolve(device)
    report = Report(weights, state.progress.images, {}, [])
    subject = _Subject(model.to(place), state, recipe, place)
    blocks: list[page.Block] = []
    held = {name: entries.held for name, entries in people.items() if entries.held}
    report.tables["reconstruction of faces never trained on"] = {
        f"{name} as {name}": subject.reconstruction(index, held[name])
        for index, name in enumerate(state.people)
        if name in held
    }
    if len(state.people) == 2:
        rows, pictures, notes = subject.pair(people["source"], people["target"])
        report.tables["the swap against the target"] = rows
        report.notes.extend(notes)
        blocks.append(pictures)
    where = out or weights.parent / "evaluation.html"
    figures = [page.Figures(title, rows) for title, rows in report.tables.items()]
    facts = page.Text([f"{weights.name}, {state.progress.images} face images.", *report.notes])
    page.write(
        where, f"Evaluation of {weights.parent.name}", [facts, *figures, *blocks], overwrite=out is None or overwrite
    )
    return replace(report, page=where)


@dataclass(frozen=True)
class _Entries:
    held: list[Entry]  # never trained on
    every: list[Entry]


def _people(run: Path, state: State, faces: Path | None) -> dict[str, _Entries]:
    """The faces of each person that a model knows; a person whose facesets are gone is said and has none."""
    known = checkpoint.facesets(run)
    found: dict[str, _Entries] = {}
    for name in state.people:
        if faces is not None and name == state.people[-1]:
            entries = Faceset.open(faces).entries
            found[name] = _Entries(entries, entries)
            continue
        folders = known.get(name, [])
        if not folders or not all(folder.is_dir() for folder in folders):
            where = ", ".join(map(str, folders)) or "not known"
            if name == state.people[-1]:
                raise FacesetError(f"{run}: the faces it was trained on are gone ({where}); name some with --faces")
            console.warn(f"{run}: the {name}'s faces are gone ({where}): figures that need them are left out")
            found[name] = _Entries([], [])
            continue
        kept, held = batches.split([Faceset.open(folder) for folder in folders], state.recipe.data.holdout)
        found[name] = _Entries(held, kept + held)
    return found


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spread."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


@dataclass(frozen=True)
class _Subject:
    """The model that is measured, and how."""

    model: FaceModel
    state: State
    recipe: Recipe
    device: torch.device

    @property
    def size(self) -> int:
        return self.state.recipe.model.resolution

    def draw(self, crops: Sequence[NDArray[Any]], person: int) -> list[swap.Drawn]:
        return list(swap.draw(self.model, crops, person, self.recipe.merge.batch, self.device))

    def reconstruction(self, person: int, held: Sequence[Entry]) -> dict[str, float | None]:
        """PSNR, SSIM and MS-SSIM inside the face of held-out faces drawn as the person they are."""
        chosen = batches.Faces(spread(held, MEASURED), self.size, float("inf"), "held out")
        pixels = chosen[range(len(chosen))]
        drawn = np.stack([face for face, _ in self.draw(list(pixels[..., :3]), person)])
        found = metrics.fidelity(drawn, _floats(pixels[..., :3]), _floats(pixels[..., 3]))
        return {name: metrics.mean(values) for name, values in found.items()}

    def pair(self, source: _Entries, target: _Entries) -> tuple[Rows, page.Pictures, list[str]]:
        """Figures of the swap and of its noise floor, pictures, and what must be said."""
        moments, notes = spread(_moments(target.every), MEASURED), list[str]()
        shots = [_Shot.of(entry, self.size) for entry, _ in moments]
        after = [_Shot.of(entry, self.size) for _, entry in moments if entry is not None]
        theirs = [_Shot.of(entry, self.size) for entry in spread(source.held or source.every, MEASURED)]
        masks = np.stack([face_mask(shot.points, SIZE) for shot in shots])
        drawn = {"swap": self.draw([s.crop for s in shots], 0), "noise floor": self.draw([s.crop for s in shots], 1)}
        views = self.views(shots, after, drawn["swap"])
        rows = {
            name: agreement(views[name], views["target"], masks, masks, same_person=name != "swap") for name in drawn
        }
        if missed := int(np.isnan(views["swap"].points[:, 0, 0]).sum()):
            notes.append(f"in {missed} of {len(shots)} swapped faces the detector found none: left out of the means")
        rows["noise floor"]["sharpness"] = sharpness(views["noise floor"].images, masks, views["target"].images, masks)
        swapped = list(np.round(views["swap"].images * 255).astype(np.uint8))
        if theirs:
            their_masks = np.stack([face_mask(shot.points, SIZE) for shot in theirs])
            originals = _floats([shot.image for shot in theirs])
            rows["swap"]["sharpness"] = sharpness(views["swap"].images, masks, originals, their_masks)
            own, others = ([shot.image for shot in people] for people in (theirs, shots))
            rows["swap"] |= likeness(own, others, {"swap": swapped}, notes)["swap"]
        again = {
            name: self.draw([np.round(face * 255).astype(np.uint8) for face, _ in faces], 1)
            for name, faces in drawn.items()
        }
        crops = _floats([shot.crop for shot in shots])
        small = np.stack([face_mask(shot.points * self.size / SIZE, self.size) for shot in shots])
        for name, faces in again.items():
            rows[name]["swap_back"] = metrics.mean(metrics.fidelity(_stack(faces), crops, small)["psnr"])
        apart = metrics.change(_stack(drawn["noise floor"]), _stack(drawn["swap"]), small).mean()
        error = metrics.change(crops, _stack(drawn["noise floor"]), small).mean()
        rows["swap"]["decoders"], rows["noise floor"]["decoders"] = float(apart / error), 1.0
        if apart < REPEATS * error:
            notes.append("the swap repeats the target: both decoders draw nearly the same face; train longer")
        columns = ["target", "target as target", "target as source", "swap, laid in", "and back as target"]
        table = [
            [shots[i].image, drawn["noise floor"][i][0], drawn["swap"][i][0], swapped[i], again["swap"][i][0]]
            for i in spread(range(len(shots)), SHOWN)
        ]
        return rows, page.Pictures("The swap", columns, table), notes

    def views(
        self, shots: Sequence["_Shot"], after: Sequence["_Shot"], swaps: Sequence[swap.Drawn]
    ) -> dict[str, Views]:
        """The target as it is, swapped, and drawn by a model that makes no mistake (the noise floor)."""
        extract, merge = self.recipe.extract, self.recipe.merge
        detector = detectors.build(extract.detector, threshold=0.5, min_size=SIZE / 4, device=str(self.device))
        drawn: dict[str, tuple[Sequence[swap.Drawn] | None, Sequence[swap.Drawn] | None]] = {
            "target": (None, None),
            "swap": (swaps, self.draw([shot.crop for shot in after], 0)),
            "noise floor": ([shot.itself() for shot in shots], [shot.itself() for shot in after]),
        }
        found = {}
        for name, (now, then) in drawn.items():
            following = [
                metrics.register(image, late.matrix, early.matrix, SIZE)
                for image, late, early in zip(_merged(after, then, merge), after, shots, strict=False)
            ]
            found[name] = view(list(_merged(shots, now, merge)), following, detector)
        return found


@dataclass(frozen=True)
class _Shot:
    """A face of a faceset, ready to be swapped: its crop as a small frame of its own."""

    image: NDArray[np.uint8]  # (SIZE, SIZE, 3) RGB
    crop: NDArray[np.uint8]  # (R, R, 3) RGB
    points: NDArray[np.float64]  # (5, 2) in `image`
    matrix: align.Matrix  # from the footage's frame to `image`

    @classmethod
    def of(cls, entry: Entry, size: int) -> "_Shot":
        image = read_image(entry.path, SIZE)
        matrix = np.array(entry.meta.matrix) * (SIZE / entry.meta.size)
        return cls(image, read_image(entry.path, size), entry.meta.crop_points(SIZE), matrix)

    def itself(self) -> swap.Drawn:
        """The crop as a model would draw it that makes no mistake."""
        return self.crop.astype(np.float32) / np.float32(255), np.ones(self.crop.shape[:2], np.float32)


def _merged(shots: Sequence[_Shot], drawn: Sequence[swap.Drawn] | None, recipe: MergeRecipe) -> Iterator[NDArray[Any]]:
    """The shots' images with the drawn faces laid in; as they are if there are none."""
    for index, shot in enumerate(shots):
        if drawn is None:
            yield shot.image
            continue
        face, mask = drawn[index]
        matrix = np.array([[1.0, 0, 0], [0, 1.0, 0]]) * (len(shot.crop) / SIZE)
        found = Face(np.zeros(4, np.float32), shot.points.astype(np.float32), 1.0)
        yield swap.merge(shot.image, shot.crop, face, mask, matrix, found, recipe)


def _stack(drawn: Sequence[swap.Drawn]) -> metrics.Images:
    return np.stack([face for face, _ in drawn])


def _moments(entries: Sequence[Entry]) -> list[tuple[Entry, Entry | None]]:
    """Faces with the same face one frame later; if there are no such two, all faces without any."""
    places = {(e.meta.input, e.meta.source, e.meta.frame, e.meta.face): e for e in entries}
    pairs: list[tuple[Entry, Entry | None]] = []
    for (number, source, frame, face), entry in sorted(places.items()):
        following = places.get((number, source, frame + 1, face))
        if following is not None:
            pairs.append((entry, following))
    return pairs or [(entry, None) for entry in entries]


def likeness(
    source: Sequence[NDArray[Any]],
    target: Sequence[NDArray[Any]],
    videos: Mapping[str, Sequence[NDArray[Any]]],
    notes: list[str],
) -> dict[str, dict[str, float | None]]:
    """Face embedding distances of each of `videos`, given as faces (S, S, 3) uint8 RGB like those of both people.

    What must be said about the first of them, or about there being no embedder, is added to `notes`.
    """
    embedder = embedding.find_embedder()
    if embedder is None:
        notes.append(embedding.NOT_MEASURED)
    if embedder is None or len(source) < 2:
        return {name: {} for name in videos}
    ours, theirs = (embedder(spread(faces, EMBEDDED)) for faces in (source, target))
    found = {n: embedding.likeness(embedder(spread(faces, EMBEDDED)), ours, theirs) for n, faces in videos.items()}
    notes.append(embedding.describe(next(iter(found.values())), embedder))
    return {
        name: {"identity_source": f.to_source, "identity_target": f.to_target, "identity_spread": f.spread}
        for name, f in found.items()
    }
