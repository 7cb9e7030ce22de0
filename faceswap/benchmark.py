"""The truth benchmark: synthetic actors play a target's take with the source's face, and the swap is held against it.

Nobody has footage of one person making another's exact movements; a renderer has. The protocol stands in
`configs/benchmark.toml`. Beside each swap stand the target as it is, unswapped (the floor), and the truth itself sent
through the model's resolution and laid back (the ceiling).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import actors, align, checkpoint, console, detectors, evaluate, metrics, page, pair, swap
from faceswap.actors import Moment, Take
from faceswap.config import Benchmark, MergeRecipe, Recipe
from faceswap.detectors import Face
from faceswap.devices import resolve
from faceswap.errors import CheckpointError, MediaError, UsageError
from faceswap.evaluate import SIZE, Report, Rows
from faceswap.faceset import Faceset, read_image, spread
from faceswap.heads import Expression, Identity
from faceswap.render import Actor, Shot, background
from faceswap.video import read_frames

FIT_SIZE = 64  # px, side of the crops in which expressions are fitted
FIT_SCALE = 0.5  # size of their renders in units of the take's
RIDGE = 5e-4  # weight, per pixel, of an expression's deviation from the truth
RANGES = {"gaze_x": 36.0, "gaze_y": 16.0}  # degrees; every other part of an expression goes from 0 to 1

WORK = "swapped.faceswap"  # where `pair.swap_pair` works on swapped.mp4
TRUTH = "truth"  # the row that has the identity of the truth itself
Images = Mapping[int, NDArray[Any]]  # frame number -> (H, W, 3) uint8 RGB


def evaluate_truth(path: Path, protocol: Benchmark, recipe: Recipe, *, device: str = "auto") -> Report:
    """Score the run or weight file `path` against its truth, or carry the protocol out in the folder `path`."""
    weights = checkpoint.find(path)
    if not weights.exists() and not (path / "recipe.toml").exists():
        if path.suffix and not path.is_dir():
            raise UsageError(f"{path}: no such run or weight file; a new folder for the benchmark has no suffix")
        if (path / WORK / "run").is_dir():
            raise UsageError(f"{path}: a folder with a run in it; name the run: {path / WORK / 'run'}")
        return run(protocol, recipe, path, device=device)
    run_folder, notes = weights.parent, list[str]()
    state = checkpoint.read(weights)
    if len(state.subjects) < 2:
        raise CheckpointError(f"{path}: a base, which knows one person; expected a run that knows two")
    rows, pictures = score_run(weights, recipe.over(state.recipe), protocol.every, device=device, notes=notes)
    out = run_folder / "truth.html"
    tables = {"the swap against the truth": metrics.plain(rows)}
    page.write(
        out, f"{weights.name} against the truth", [page.Text(notes), *_figures(tables), pictures], overwrite=True
    )
    return Report(weights, state.progress.images, tables, notes, out)


def _figures(tables: Mapping[str, Rows]) -> list[page.Figures]:
    """Tables for the page; what their figures mean is said once, below the first."""
    return [page.Figures(title, rows, explained=not n) for n, (title, rows) in enumerate(tables.items())]


def run(protocol: Benchmark, recipe: Recipe, folder: Path, *, device: str = "auto") -> Report:
    """Carry the protocol out in `folder`, or go on with it, and score it.

    `UsageError` if the folder holds another protocol's clips or a training that used another recipe.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "pair1").exists():
        raise UsageError(
            f"{folder}: expected a folder of the benchmark or a new one, found other files; choose another"
        )
    recipe = pair.prepared(recipe.changed(train={"images": protocol.images, "minutes": protocol.minutes}))
    tables: dict[str, Rows] = {}
    blocks: list[page.Block] = []
    report = Report(folder, protocol.images, {}, [])
    console.say(
        f"{folder}: no run, so the benchmark: {len(protocol.pairs)} pairs are rendered, trained and scored there"
    )
    for number, cast in enumerate(protocol.pairs, 1):
        where = folder / f"pair{number}"
        source, target = (
            Take(Identity.random(who), performance, protocol.frames, protocol.size, Fraction(protocol.rate))
            for who, performance in ((cast.source, cast.source_performance), (cast.target, cast.target_performance))
        )
        console.say(f"pair {number} of {len(protocol.pairs)}: actor {cast.source} as actor {cast.target}")
        clips = {"source": source, "target": target}
        render(where, clips)
        done = pair.swap_pair(
            where / "source.mp4",
            where / "target.mp4",
            where / "swapped.mp4",
            recipe,
            device=device,
            overwrite=True,
        )
        if done.merge is None:
            raise KeyboardInterrupt
        notes: list[str] = []
        rows, pictures = score_run(where / WORK / "run", recipe, protocol.every, device=device, notes=notes)
        report.notes.extend(f"pair {number}: {note}" for note in notes)
        tables[f"pair {number}: actor {cast.source} as actor {cast.target}"] = rows
        blocks.append(replace(pictures, title=f"Pair {number}"))
    tables = {"mean of all pairs": _mean(list(tables.values())), **tables}
    tables = {title: metrics.plain(rows) for title, rows in tables.items()}
    where = folder / "evaluation.html"
    page.write(where, "Truth benchmark", [page.Text(report.notes), *_figures(tables), *blocks], overwrite=True)
    return replace(report, tables=tables, page=where)


def score_run(
    path: Path,  # a run of `faceswap swap` on actors' clips, or a weight file of it
    recipe: Recipe,  # of which `extract` (the detector) and `merge` are used
    every: int,  # every Nth frame is scored, with the one after it
    *,
    device: str = "auto",
    notes: list[str],  # what must be said is added here
) -> tuple[Rows, page.Pictures]:
    """Score a swap against the truth, beside the floor and the ceiling; `UsageError` if the truth is not known."""
    weights = checkpoint.find(path)
    work, place = weights.resolve().parent.parent, resolve(device)
    clips = pair.footage(work)
    source, target = (actors.read_take(actors.truth_path(clips[name])) for name in ("source", "target"))
    _check(clips["target"], target)
    truth = target.with_face_of(source.identity)
    numbers = list(range(0, truth.frames - 1, every))
    wanted = sorted({*numbers, *(number + 1 for number in numbers)})
    shots = dict(zip(wanted, truth.shots(wanted), strict=True))
    swapper = swap.Swapper(weights, recipe.merge, place)
    recalled = swap.recalling(work / "target", clips["target"])
    frames, size = (frame for frame in read_frames(clips["target"]) if frame.index in shots), swapper.models[0].size
    detected = [(frame, recalled.get(frame.index, [])) for frame in frames]
    plain = {frame.index: np.asarray(frame.image) for frame, _ in detected}
    if missing := len(wanted) - len(plain):
        raise MediaError(f"{clips['target']}: {missing} of its frames are gone; render it again")
    if missed := sum(not faces for _, faces in detected):
        notes.append(f"in {missed} of {len(wanted)} frames extraction found no face: they were not swapped")
    swapped = {frame.index: np.asarray(frame.image) for frame, _ in swapper(detected)}
    best = {
        frame.index: recropped(plain[frame.index], shots[frame.index].image, faces, size, recipe)
        for frame, faces in detected
    }
    videos = {"swap": swapped, "floor: target unswapped": plain, f"ceiling: truth at {size} px": best}
    detector = detectors.build(recipe.extract.detector, threshold=0.5, min_size=SIZE / 4, device=str(place))
    yardstick = Yardstick(truth, shots, numbers, detector, recipe.merge, recalled)
    rows: Rows = {name: yardstick.score(images) for name, images in videos.items()}
    albums = {name: _album(work / name, clips[name].name) for name in ("source", "target")}
    crops = {name: yardstick.crops(images) for name, images in videos.items()} | {TRUTH: yardstick.true_crops}
    rows[TRUTH] = {}
    for name, found in evaluate.likeness(albums["source"], albums["target"], crops, notes).items():
        rows[name] |= found
    if not rows[TRUTH]:
        del rows[TRUTH]
    return rows, _pictures(plain, swapped, best, shots, numbers)


def _check(clip: Path, take: Take) -> None:
    """`MediaError` if a clip's take does not look today as it did when the clip was rendered."""
    number = take.frames // 2
    now, then = next(take.shots([number])).points, actors.read_points(actors.truth_path(clip))[number]
    if not np.allclose(now, then, atol=0.01):
        raise MediaError(
            f"{clip}: rendered by another version of faceswap, which drew this actor otherwise; render it again"
        )


class Yardstick:
    """The true swap, ready to hold videos against."""

    def __init__(
        self,
        truth: Take,
        shots: Mapping[int, Shot],  # of the truth: the frames that are scored, and the one after each
        numbers: Sequence[int],  # the frames that are scored
        detector: detectors.Detector,
        merge: MergeRecipe,  # says with `faces` where a face is laid in
        faces: Mapping[int, Sequence[Face]],  # of the target, by frame
    ) -> None:
        self.shots, self.numbers, self.detector = shots, list(numbers), detector
        self.matrices = [align.crop_matrix(shots[number].points, SIZE) for number in numbers]
        places = list(zip(self.numbers, self.matrices, strict=True))
        self.masks = np.stack([align.crop(shots[number].mask, matrix, SIZE) for number, matrix in places]).clip(0, 1)
        outlines = [faces[number][0].outline if faces.get(number) else shots[number].points for number in numbers]
        inside = [align.apply(matrix, points) for points, matrix in zip(outlines, self.matrices, strict=True)]
        self.edges = np.stack([evaluate.laid_in(points, merge) for points in inside])
        actor, moments = Actor(truth.identity), truth.moments()
        self.fits = [ExpressionFit(actor, truth, moments[number]) for number in numbers]
        true = {number: shot.image for number, shot in shots.items()}
        self.true_crops, self.views = self.crops(true), self._view(true)

    def crops(self, images: Images, later: int = 0) -> list[NDArray[np.uint8]]:
        """The faces (SIZE, SIZE, 3) uint8 RGB of the frames that are scored, or of those `later` frames after."""
        pairs = zip(self.numbers, self.matrices, strict=True)
        return [align.crop(images[number + later], matrix, SIZE) for number, matrix in pairs]

    def _view(self, images: Images) -> evaluate.Views:
        return evaluate.view(self.crops(images), self.crops(images, later=1), self.detector)

    def score(self, images: Images) -> dict[str, float | None]:
        """The figures of a video's frames against the true swap; see `metrics.TABLE`."""
        ours, true, masks = self._view(images), self.views, self.masks
        found: dict[str, float | None] = {
            name: metrics.mean(values) for name, values in metrics.fidelity(ours.images, true.images, masks).items()
        }
        laid = metrics.fidelity(ours.images, true.images, masks * self.edges)
        found["psnr_laid"] = metrics.mean(laid["psnr"])
        found |= evaluate.agreement(ours, true, masks, self.edges, same_person=True)
        found["sharpness"] = evaluate.sharpness(ours.images, masks, true.images, masks)
        frames = zip(self.fits, self.numbers, strict=True)
        changes = [fit.change(images[number], self.shots[number]) for fit, number in frames]
        found["expression"] = float(100 * np.std(changes, axis=0).mean())
        return found


def recropped(
    frame: NDArray[Any], truth: NDArray[Any], faces: Sequence[Face], size: int, recipe: Recipe
) -> NDArray[Any]:
    """The frame with the true swap's face laid in as a faultless model of `size` px would: the best it could do."""
    as_it_is = recipe.merge.model_copy(update={"color": "none", "restore": ""})
    for face in faces[:1]:
        matrix = face.matrix(size)
        drawn = align.crop(truth, matrix, size)
        whole = np.ones((size, size), np.float32)
        faultless = drawn.astype(np.float32) / np.float32(255), whole
        frame = swap.still(frame, face, matrix, drawn, faultless, as_it_is, target=whole)
    return frame


class ExpressionFit:
    """How an expression must change to explain a picture.

    The true swap is rendered again with each part of its expression moved a little: that is how the picture changes
    with it. The difference between a picture and the truth is fitted in least squares by these changes, together with
    what is no expression: gain and offset of each colour, shift, turn and size. The fit leans to no change (ridge).
    Linearised analysis by synthesis, as in Blanz and Vetter, "A morphable model for the synthesis of 3D faces", 1999.
    """

    def __init__(self, actor: Actor, take: Take, moment: Moment) -> None:
        side = 2 * round(take.size * FIT_SCALE / 2)
        room = background(take.performance, side, side)

        def render(moment: Moment) -> Shot:
            given = actors.as_arguments(moment)
            return actor.render(**given, size=side, background=room, scale=take.scale)

        still = render(moment)
        matrix = align.crop_matrix(still.points, FIT_SIZE)
        before = _small(still.image, matrix)
        self.mask = _where_it_shows(still, matrix)
        changes = []
        for part in fields(Expression):
            reach = RANGES.get(part.name, 1.0)
            now = getattr(moment.expression, part.name)
            step = reach / 4 if now < reach / 2 else -reach / 4
            moved = replace(moment.expression, **{part.name: now + step})
            after = render(replace(moment, expression=moved))
            changes.append((_small(after.image, matrix) - before) * (reach / step))
        self.changes = changes

    def change(self, image: NDArray[Any], truth: Shot) -> NDArray[np.float64]:
        """How the parts of the expression (9,) must change, in units of their range, to turn the truth into `image`.

        `image` is the frame (H, W, 3) uint8 RGB that shows what `truth` shows.
        """
        matrix = align.crop_matrix(truth.points, FIT_SIZE)
        ours, true = _small(image, matrix), _small(truth.image, matrix)
        weight = np.sqrt(self.mask)[..., None]
        columns = [(change * weight).ravel() for change in [*self.changes, *_nuisances(true)]]
        design = np.stack(columns, 1).astype(np.float64)
        normal = design.T @ design
        pixels = float(self.mask.sum()) * 3
        lean = np.full(len(columns), 1e-9)
        lean[: len(self.changes)] = RIDGE
        fitted = np.linalg.solve(normal + np.diag(lean) * pixels, design.T @ ((ours - true) * weight).ravel())
        return np.asarray(fitted[: len(self.changes)])


def _where_it_shows(shot: Shot, matrix: align.Matrix) -> NDArray[np.float32]:
    """The part (S, S) float32 in [0, 1] of a face's crop that its expression moves most: brows, eyes and mouth."""
    landmarks = align.apply(matrix, shot.landmarks)
    mask = np.zeros((FIT_SIZE, FIT_SIZE), np.uint8)
    for group in (slice(17, 22), slice(22, 27), slice(36, 42), slice(42, 48), slice(48, 60)):
        cv2.fillConvexPoly(mask, cv2.convexHull(np.round(landmarks[group]).astype(np.int32)), (1,))
    wide = cv2.dilate(mask, np.ones((FIT_SIZE // 9, FIT_SIZE // 9))).astype(np.float32)
    inside = align.crop(shot.mask, matrix, FIT_SIZE).clip(0, 1)
    return np.asarray(cv2.GaussianBlur(wide, (0, 0), FIT_SIZE / 40) * inside, np.float32)


def _small(image: NDArray[Any], matrix: align.Matrix) -> NDArray[np.float32]:
    return align.crop(image, matrix, FIT_SIZE).astype(np.float32) / np.float32(255)


def _nuisances(image: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
    """How a picture (S, S, 3) changes when its colours or its place do."""
    for channel in range(3):
        alone = np.zeros(3, np.float32)
        alone[channel] = 1
        yield image * alone
        yield np.ones_like(image) * alone
    down, right = np.gradient(image, axis=(0, 1))
    y, x = np.mgrid[-1 : 1 : FIT_SIZE * 1j, -1 : 1 : FIT_SIZE * 1j].astype(np.float32)[..., None]
    for moved in (right, down, x * right + y * down, x * down - y * right):
        yield np.asarray(moved, np.float32)


def _album(folder: Path, video: str) -> list[NDArray[np.uint8]]:
    """Faces (SIZE, SIZE, 3) uint8 RGB of one person, evenly spread over the footage."""
    entries = [entry for entry in Faceset.open(folder).entries if entry.meta.source == video]
    return [read_image(entry.path, SIZE) for entry in spread(entries, evaluate.MEASURED)]


def _pictures(
    plain: Images, swapped: Images, best: Images, shots: Mapping[int, Shot], numbers: Sequence[int]
) -> page.Pictures:
    columns = ["target", "swap", "truth", "swap - truth, 4 x", "ceiling"]
    rows = []
    for number in spread(numbers, evaluate.SHOWN):
        truth = shots[number].image
        rows.append([plain[number], swapped[number], truth, difference(swapped[number], truth), best[number]])
    return page.Pictures("The swap and the truth", columns, rows)


def difference(image: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.uint8]:
    """Four times the absolute difference of two pictures (H, W, 3) uint8, for looking at."""
    apart = np.abs(image.astype(np.int16) - truth) * 4
    return np.asarray(np.minimum(apart, 255), np.uint8)


def render(folder: Path, clips: Mapping[str, Take]) -> None:
    """Render each clip as NAME.mp4 with its truth, unless it is there; `UsageError` if another one is."""
    for name, take in clips.items():
        clip = folder / f"{name}.mp4"
        if not (clip.exists() and actors.truth_path(clip).exists()):
            actors.write_clip(take, clip, overwrite=True)
        elif actors.read_take(actors.truth_path(clip)) != take:
            raise UsageError(f"{clip}: another clip than the one asked for; choose another folder")


def _mean(tables: Sequence[Rows]) -> Rows:
    names = list(tables[0])
    return {
        row: {key: metrics.mean(np.array([t[row].get(key) for t in tables], np.float64)) for key in tables[0][row]}
        for row in names
    }
