"""How good is it, on any footage and without a truth: what a model draws of faces it never saw, and what a swap keeps
of the target and takes of the source.

Beside the figures of a swap stands the noise floor: the target's own face, sent through the model's resolution and laid
back as a swapped one is. A difference below it means nothing. Between the two stands the target drawn as the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from faceswap import (
    align,
    batches,
    blend,
    checkpoint,
    console,
    damage,
    detail,
    detectors,
    dfm,
    embedding,
    files,
    metrics,
    page,
    swap,
)
from faceswap.checkpoint import State
from faceswap.config import MergeRecipe, Recipe
from faceswap.detectors import Face
from faceswap.devices import resolve
from faceswap.errors import FacesetError, UsageError
from faceswap.faceset import Entry, open_all, read_image, spread
from faceswap.masks import OF_TARGET, face_mask
from faceswap.models import FaceModel

SIZE = 192  # px, side of the crops that are measured: MS-SSIM has its five scales
MEASURED = 64  # faces or moments per person
EMBEDDED = 24  # faces per person that an embedder looks at
SHOWN = 6  # moments on the page
FEWEST = 8  # faces from which a mean difference between two people may be taken
REPEATS = 1.5  # decoder distance below which the swap is said to repeat the target
SOURCE, TARGET = 0, 1  # as a pair is trained

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
    masks: metrics.Images,  # (N, S, S), the face
    edges: metrics.Images,  # (N, S, S), where a face may have been laid in
    *,
    same_person: bool,
) -> dict[str, float]:
    """How far `ours` does what the reference does: found, landmarks, pose, flicker and seam.

    Where the reference shows another person, the mean difference of the points is taken out first: it tells faces
    apart, not what they do. Of fewer than `FEWEST` faces nothing would be left: NaN.
    """
    both = np.isfinite(ours.points + reference.points).all((1, 2))
    seen = np.isfinite(reference.points).all((1, 2)).sum()
    points = ours.points
    if not same_person:
        count = int(both.sum())
        enough = count >= FEWEST
        points = points - (points - reference.points)[both].mean(0) if enough else np.full_like(points, np.nan)
    found = {
        "found": float(both.sum() / seen) if seen else float("nan"),
        "landmarks": metrics.mean(metrics.landmark_error(points, reference.points)),
        "pose": metrics.mean(metrics.pose_error(points, reference.points, ours.images.shape[1])),
        "seam": metrics.mean(metrics.seam(ours.images, reference.images, edges)),
    }
    if len(ours.following):
        changes = [metrics.change(seen.images, seen.following, masks) for seen in (ours, reference)]
        found["flicker"] = metrics.ratio(changes[0], changes[1])
    return found


def laid_in(points: NDArray[Any], recipe: MergeRecipe) -> NDArray[np.float32]:
    """The mask (SIZE, SIZE) float32 in [0, 1] through which a face with `points` in crop pixels, landmarks (152, 2) or
    (5, 2), is laid in, as far as they bound it: the network's own mask may be smaller."""
    return blend.through(recipe.blend, face_mask(points, SIZE), recipe.erode, recipe.feather)


def sharpness(ours: metrics.Images, masks: NDArray[Any], reference: metrics.Images, their: NDArray[Any]) -> float:
    """Mean variance of the Laplacian of images (N, S, S, 3) inside `masks` (N, S, S), over that of the reference
    (M, S, S, 3) inside `their` masks (M, S, S)."""
    return metrics.ratio(metrics.laplacian(ours, masks), metrics.laplacian(reference, their))


def evaluate(
    path: Path,  # a run, a weight file or a .dfm
    given: Recipe,  # its options of `extract` (the detector) and `merge` are laid over those of the run
    *,
    device: str = "auto",
    faces: Path | None = None,  # of the target (of a base: of anyone), instead of those of the training
    base: Path | None = None,  # where the base lies, if it is not where it was
    strength: float = 1.0,  # of what was trained, beside the base
    out: Path | None = None,  # the page; default: evaluation.html in the run, replaced; NAME.html beside NAME.dfm
    overwrite: bool = False,  # of the page, where it is not in a run
) -> Report:
    """Measure a model: reconstruction on faces held out of its training or on all of `faces`; the swap on the target's
    footage, most of which it was trained on, as in use.

    `CheckpointError` for an unusable model, `FacesetError` if there are no faces to measure on.
    """
    weights = checkpoint.find(path)
    place = resolve(device)
    model, state = dfm.load_model(weights, base, strength, place)
    people, recipe = _people(weights, state, faces), given.over(state.recipe)
    swap.check(recipe.merge)
    restorer = detail.Restorer(Path(recipe.merge.restore), cuda=place.type == "cuda") if recipe.merge.restore else None
    subject = _Subject(model.to(place), state, recipe, place, restorer)
    if out is not None and (out.suffix.lower() not in (".html", ".htm") or out.is_dir()):
        raise UsageError(f"{out}: expected the name of a page, ending in .html; choose another -o")
    foreign = dfm.is_dfm(weights)
    usual = weights.with_suffix(".html") if foreign else weights.parent / "evaluation.html"
    where, replaced = out or usual, overwrite
    if out is None and not foreign and (weights.parent / "recipe.toml").exists():
        replaced = True  # it is the run's own
    files.refuse_existing(where, replaced)
    tables: dict[str, Rows] = {f"reconstruction, at {SIZE} px": {}}
    for index, name in enumerate(state.subjects[: model.people]):
        if people[name].held:
            row = f"{name} as {name}, {people[name].label}"
            tables[f"reconstruction, at {SIZE} px"][row] = subject.reconstruction(index, people[name].held)
    notes = [BEST] * any(entries.label == HELD_OUT for entries in people.values())
    blocks = list[page.Block]()
    if len(state.subjects) == 2:
        rows, pictures = subject.pair(people[state.subjects[SOURCE]], people[state.subjects[TARGET]], notes)
        tables["the swap against the target"] = rows
        blocks.append(pictures)
    lost = None if foreign else damage.of(weights, device=device, base=base, strength=strength)
    if lost is not None:
        tables["the base, on faces of strangers"] = damage.rows(lost)
        notes.append(f"Weights moved by {100 * lost.distance:.2g} % of the base.")
    tables = {title: metrics.plain(rows) for title, rows in tables.items() if rows}
    images = state.progress.images  # not known of other tools' files
    facts = page.Text([f"{weights.name}, {images} face images." if images else f"{weights.name}.", *notes])
    figures = [page.Figures(title, rows) for title, rows in tables.items()]
    page.write(
        where,
        f"Evaluation of {weights.stem if foreign else weights.parent.name}",
        [facts, *figures, *blocks],
        overwrite=replaced,
    )
    return Report(weights, state.progress.images, tables, notes, where)


HELD_OUT = "held out"
BEST = (
    "held-out faces lie between frames that were trained on, and chose the best weights of the run: other footage of "
    "the same people (--faces) is the harder test"
)


@dataclass(frozen=True)
class _Entries:
    held: list[Entry]  # not trained on
    every: list[Entry]
    label: str  # of `held`


def _people(weights: Path, state: State, faces: Path | None) -> dict[str, _Entries]:
    """The faces of each person that a model knows; a person whose facesets are gone is said and has none."""
    known = checkpoint.facesets(weights.parent)
    found: dict[str, _Entries] = {}
    for name in state.subjects:
        if faces is not None and name == state.subjects[-1]:
            entries = open_all([faces])[0].entries
            found[name] = _Entries(entries, entries, faces.name)
            continue
        folders = known.get(name, [])
        if not folders or not all(folder.exists() for folder in folders):
            where = ", ".join(map(str, folders)) or "not known"
            said = f"{weights}: the {name}'s faces are gone ({where})"
            if name == state.subjects[-1]:
                raise FacesetError(f"{said}; name some with --faces")
            console.warn(f"{said}: figures that need them are left out")
            found[name] = _Entries([], [], "")
            continue
        kept, held = batches.split(open_all(folders), state.recipe.data.holdout)
        found[name] = _Entries(held, kept + held, HELD_OUT)
    return found


@dataclass(frozen=True)
class _Subject:
    """The model that is measured, and how."""

    model: FaceModel
    state: State
    recipe: Recipe
    device: torch.device
    restorer: detail.Restorer | None

    @property
    def size(self) -> int:
        return self.state.recipe.model.resolution

    def draw(self, crops: Sequence[NDArray[Any]], person: int) -> list[swap.Drawn]:
        """Canonical crops (R, R, 3) drawn as `person`: a model that sees another crop sees it cut out of them, and what
        it draws comes back."""
        crop = self.state.recipe.model.crop
        seen = [align.resize(image, self.size, crop) for image in crops]
        drawn = swap.draw(self.model, seen, person, self.recipe.merge.batch, self.device)
        if crop == align.CANONICAL:
            return list(drawn)
        place, whole = align.onto(crop, self.size, self.size), (0, 0, self.size, self.size)
        laid = ((align.uncrop(f, place, whole), align.uncrop_mask(m, place, whole)) for f, m in drawn)
        return [(face.clip(0, 1), mask.clip(0, 1)) for face, mask in laid]

    def again(self, drawn: Sequence[swap.Drawn], person: int) -> list[swap.Drawn]:
        """Drawn faces, drawn once more as `person`."""
        return self.draw([np.round(face * 255).astype(np.uint8) for face, _ in drawn], person)

    def shots(self, entries: Sequence[Entry]) -> list["_Shot"]:
        return [_Shot.of(entry, self.size) for entry in entries]

    def reconstruction(self, person: int, held: Sequence[Entry]) -> dict[str, float | None]:
        """PSNR, SSIM and MS-SSIM inside the face of held-out faces drawn as the person they are, enlarged to SIZE: so
        models of different resolutions compare."""
        shots = self.shots(spread(held, MEASURED))
        drawn = [align.resize(face, SIZE) for face, _ in self.draw([shot.crop for shot in shots], person)]
        found = metrics.fidelity(np.stack(drawn).clip(0, 1), _floats([shot.image for shot in shots]), _masks(shots))
        return {name: metrics.mean(values) for name, values in found.items()}

    def pair(self, source: _Entries, target: _Entries, notes: list[str]) -> tuple[Rows, page.Pictures]:
        """Figures of the swap, of the target as target and of the noise floor, and pictures; what must be said is added
        to `notes`."""
        moments = spread(_moments(target.every), MEASURED)
        shots, after = self.shots([entry for entry, _ in moments]), self.shots([e for _, e in moments if e is not None])
        drawn = {
            "swap": [self.draw([shot.crop for shot in part], SOURCE) for part in (shots, after)],
            "target as target": [self.draw([shot.crop for shot in part], TARGET) for part in (shots, after)],
            "noise floor": [[shot.itself() for shot in part] for part in (shots, after)],
        }
        if not (both := self.model.people > TARGET):  # a .dfm that draws the source alone
            del drawn["target as target"]
        detector = self.detector()
        plain = view([shot.image for shot in shots], _following(shots, after, [shot.image for shot in after]), detector)
        masks, edges = _masks(shots), np.stack([laid_in(shot.outline, self.recipe.merge) for shot in shots])
        rows: Rows = {}
        views: dict[str, Views] = {}
        for name, (now, then) in drawn.items():
            early, late = self.merged(shots, now), self.merged(after, then)
            views[name] = view(early, _following(shots, after, late), detector)
            rows[name] = {**agreement(views[name], plain, masks, edges, same_person=False)}
            rows[name]["mouth"] = metrics.mouth_agreement(views[name].points, plain.points)
            rows[name]["sharpness"] = sharpness(views[name].images, masks, plain.images, masks)
        swapped = list(np.round(views["swap"].images * 255).astype(np.uint8))
        theirs = self.shots(spread(source.held, MEASURED))
        rows["swap"]["sharpness"] = None
        if theirs:
            originals = _floats([shot.image for shot in theirs])
            rows["swap"]["sharpness"] = sharpness(views["swap"].images, masks, originals, _masks(theirs))
            own, others = ([shot.image for shot in people] for people in (theirs, shots))
            rows["swap"] |= likeness(own, others, {"swap": swapped}, notes)["swap"]
        chosen = spread(range(len(shots)), SHOWN)
        if not both:
            shown = [[shots[i].image, drawn["swap"][0][i][0], swapped[i]] for i in chosen]
            return rows, page.Pictures("The swap", ["target", "target as source", "swap, laid in"], shown)
        self._decoders(self.shots(spread(target.held, MEASURED)), rows, notes)
        columns = ["target", "target as target", "target as source", "swap, laid in", "and back as target"]
        parts = {name: [faces[0][i] for i in chosen] for name, faces in drawn.items()}
        back = self.again(parts["swap"], TARGET)
        table = [
            [shots[i].image, as_target[0], as_source[0], swapped[i], again[0]]
            for i, as_target, as_source, again in zip(
                chosen, parts["target as target"], parts["swap"], back, strict=True
            )
        ]
        return rows, page.Pictures("The swap", columns, table)

    def merged(self, shots: Sequence["_Shot"], drawn: Sequence[swap.Drawn]) -> list[NDArray[Any]]:
        """The shots' images (SIZE, SIZE, 3) uint8 RGB with the drawn faces laid in as `merge` lays them in."""
        recipe, restorer = self.recipe.merge, self.restorer
        needed = recipe.mask in OF_TARGET
        own = self.draw([shot.crop for shot in shots], TARGET) if needed else [None] * len(shots)
        return [
            shot.swapped(face, recipe, target=itself[1] if itself else None, restorer=restorer)
            for shot, face, itself in zip(shots, drawn, own, strict=True)
        ]

    def detector(self) -> detectors.Detector:
        extract = self.recipe.extract
        return detectors.build(extract.detector, threshold=0.5, min_size=SIZE / 4, device=str(self.device))

    def _decoders(self, held: Sequence["_Shot"], rows: Rows, notes: list[str]) -> None:
        """Whether the two decoders draw two people, on faces of the target that were not trained on."""
        crops, size = [shot.crop for shot in held], self.size
        as_source, as_target = (self.draw(crops, person) for person in (SOURCE, TARGET))
        truth, masks = _floats(crops), np.stack([face_mask(shot.outline * size / SIZE, size) for shot in held])
        for name, drawn in (("swap", as_source), ("target as target", as_target)):
            back = metrics.fidelity(_stack(self.again(drawn, TARGET)), truth, masks)
            rows[name]["swap_back"] = metrics.mean(back["psnr"])
        apart = metrics.change(_stack(as_target), _stack(as_source), masks)
        distance = metrics.ratio(apart, metrics.change(truth, _stack(as_target), masks))
        rows["swap"]["decoders"] = distance
        if distance < REPEATS:
            notes.append(
                "the swap may merely repeat the target: as source and as target its faces are drawn with a difference "
                f"of {distance:.2f} times the model's own error; train longer"
            )


@dataclass(frozen=True)
class _Shot:
    """A face of a faceset, ready to be swapped: its crop as a small frame of its own."""

    image: NDArray[np.uint8]  # (SIZE, SIZE, 3) RGB
    crop: NDArray[np.uint8]  # (R, R, 3) RGB
    points: NDArray[np.float64]  # (5, 2) in `image`
    outline: NDArray[np.float64]  # what masks are drawn from in `image`, see FaceMeta.crop_outline
    matrix: align.Matrix  # from the footage's frame to `image`

    @classmethod
    def of(cls, entry: Entry, size: int) -> "_Shot":
        image = read_image(entry.path, SIZE)
        meta = entry.meta
        matrix = np.array(meta.matrix) * (SIZE / meta.size)
        return cls(image, read_image(entry.path, size), meta.crop_points(SIZE), meta.crop_outline(SIZE), matrix)

    def swapped(self, drawn: swap.Drawn, recipe: MergeRecipe, **more: Any) -> NDArray[Any]:
        """`image` with a face laid in that was drawn from `crop`; more: of `swap.placed`."""
        dense = self.outline.astype(np.float32) if len(self.outline) > 5 else None
        found = Face(np.zeros(4, np.float32), self.points.astype(np.float32), 1.0, dense)
        return swap.still(self.image, found, np.eye(2, 3) * (len(self.crop) / SIZE), self.crop, drawn, recipe, **more)

    def itself(self) -> swap.Drawn:
        """The crop as a model would draw it that makes no mistake."""
        return self.crop.astype(np.float32) / np.float32(255), np.ones(self.crop.shape[:2], np.float32)


def _masks(shots: Sequence[_Shot]) -> metrics.Images:
    return np.stack([face_mask(shot.outline, SIZE) for shot in shots])


def _following(shots: Sequence[_Shot], after: Sequence[_Shot], images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """`images` of the moments `after` the shots, in the shots' coordinates."""
    trios = zip(images, after, shots, strict=False)  # `after` may be empty
    return [metrics.register(image, late.matrix, early.matrix, SIZE) for image, late, early in trios]


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
