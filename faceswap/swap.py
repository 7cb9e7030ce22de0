"""Frame to frame, video to video: draw the target's faces as the source and put them back."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import faceswap
from faceswap import align, blend, checkpoint, color, console, detail, dfm, files, masks, ray_engine, segments, shots
from faceswap import found as kept
from faceswap.ahead import ahead
from faceswap.config import ExtractRecipe, MergeRecipe
from faceswap.detectors import Face
from faceswap.errors import CheckpointError, FacesetError, UsageError
from faceswap.faceset import Entry, Faceset, read_mask
from faceswap.found import FoundFaces
from faceswap.models import ANYONE, FaceModel
from faceswap.provenance import Marker, marker
from faceswap.segments import WHOLE
from faceswap.shots import Shots
from faceswap.video import Frame, Part, VideoWriter, form_like, frame_times, image_files
from faceswap.who import Cast, Finder, Who

Detected = tuple[Frame, list[Face]]
Asked = tuple[Face, MergeRecipe]  # a face to be drawn, and the recipe that holds for it there
Drawn = tuple[NDArray[np.float32], NDArray[np.float32]]  # face and mask

SOURCE, TARGET = 0, 1  # whom to draw: pairs are trained as source, target
LOOKED = 4  # of so many frames one is looked at for blur and grain, which cost more to see than colours
MEASURED = ("color", "mask", "scale", "restore", "restored")  # keys of a recipe on which what is measured depends


@dataclass(frozen=True)
class Report:
    """What a merge did."""

    video: Path
    frames: int
    frames_swapped: int  # frames in which a face was replaced
    faces_swapped: int
    seconds: float


@dataclass(frozen=True)
class Known:
    """What is remembered of a face for the frames around."""

    recipe: MergeRecipe  # that holds for it there
    state: color.State  # what the colour transfer measured
    now: color.State  # what was seen of blur and grain, see `detail.look`; NOTHING in frames that were not looked at
    middle: color.Numbers  # (2,) where the face lies in its frame


@dataclass(frozen=True)
class Laid(Known):
    """A drawn face, and how it goes into its frame."""

    face: NDArray[np.float32]  # (R, R, 3) RGB [0, 1]
    mask: NDArray[np.float32]  # (R, R) [0, 1]
    crop: NDArray[np.uint8]  # (R, R, 3) RGB, the face as it is in the footage, before it is scaled
    matrix: align.Matrix  # (2, 3), frame to crop
    track: int | None
    own: NDArray[np.float32] | None  # (R, R), the user's mask, beyond which nothing grows
    steady: color.State = color.NOTHING  # `now`, with the frames around
    moved: detail.Vector = (0.0, 0.0)  # px from one frame to the next

    @property
    def pixel(self) -> float:
        """Pixels of the frame that one of the drawn face fills."""
        return 1 / align.scale_of(self.matrix)


@dataclass(frozen=True)
class Drawer:
    """What another process makes the same `Swapper` of."""

    weights: tuple[Path, ...]
    recipe: MergeRecipe
    device: torch.device
    shots: Shots
    base: Path | None
    strength: float

    def swapper(self) -> "Swapper":
        return Swapper(self.weights, self.recipe, self.device, shots=self.shots, base=self.base, strength=self.strength)


class Model:
    """What draws the faces of one person: canonical crops (R, R, 3) uint8 RGB -> faces and masks, see `draw`."""

    def __init__(self, weights: Path, device: torch.device, base: Path | None, strength: float) -> None:
        """`CheckpointError` if `weights` is unusable or knows nobody in particular."""
        self.network, state = dfm.load_model(weights, base, strength, device)
        if state.subjects == [ANYONE]:
            raise CheckpointError(f"{weights}: a base, which knows nobody; expected a run of faceswap finetune")
        images = state.progress.images  # not known of other tools' files
        self.name = checkpoint.find(weights).name + (f" {images} images" if images else "")
        self.weights, self.device, self.people = weights, device, len(state.subjects)
        self.size, self.crop = state.recipe.model.resolution, state.recipe.model.crop
        self.network.to(device).to(memory_format=torch.channels_last)

    def __call__(self, crops: Sequence[NDArray[Any]], person: int, batch: int) -> Iterator[Drawn]:
        return draw(self.network, crops, person, batch, self.device)


class Swapper:
    """Frames with faces found -> frames with those faces drawn as the source."""

    def __init__(
        self,
        weights: Path | Sequence[Path],  # a run, a file of one or a .dfm; several: `Face.model` says which draws a face
        recipe: MergeRecipe,
        device: torch.device,
        *,
        shots: Shots = (),  # where the recipe is another
        base: Path | None = None,  # where the base lies, if it is needed and not where it was
        strength: float = 1.0,  # of what was trained, beside the base
    ) -> None:
        """`CheckpointError` if `weights` is unusable or knows nobody in particular."""
        paths = (weights,) if isinstance(weights, Path) else tuple(weights)
        self.models = [Model(path, device, base, strength) for path in paths]
        self.name = ", ".join(model.name for model in self.models)
        self.recipe, self.device = recipe, device
        self._plan(Drawer(paths, recipe, device, shots, base, strength))

    def _plan(self, made_from: Drawer) -> None:
        """A wrong name is said before the work begins."""
        self.made_from, self.shots = made_from, made_from.shots
        every = shots.recipes(self.recipe, self.shots)
        for recipe in every:
            check(recipe)
            alone = next((model for model in self.models if model.people < 2), None)
            if recipe.mask in masks.OF_TARGET and alone is not None:
                raise UsageError(
                    f"merge.mask = {recipe.mask!r}: {alone.weights} knows one person only; expected a pair"
                )
        paths = sorted({recipe.restore for recipe in every} - {""})
        self.restorers = {path: detail.Restorer(Path(path), cuda=self.device.type == "cuda") for path in paths}
        # frames before and after that a frame depends on
        self.reach = max(max(recipe.steady, int(recipe.motion_blur > 0)) for recipe in every)

    def otherwise(self, more: Shots) -> "Swapper":
        """One with the same models and more sections of a plan, which win."""
        other = copy(self)
        other._plan(replace(self.made_from, shots=(*self.shots, *more)))
        return other

    def __call__(self, detected: Iterable[Detected], wanted: range | None = None) -> Iterator[tuple[Frame, int]]:
        """Each frame in order with the number of faces replaced; one without a face is passed on untouched.

        wanted: the indices of those to give; the others tell only how the light changes. A frame becomes the same
        whichever are wanted, if `detected` holds those of its batch and `reach` more before and after.
        """
        for frame, faces in self.faces(detected):
            if wanted is not None and frame.index not in wanted:
                continue
            swapped = frame
            replaced = 0
            for laid in faces:
                before, swapped = swapped, lay_in(swapped, laid)
                replaced += swapped is not before
            yield swapped, replaced

    def faces(self, detected: Iterable[Detected]) -> Iterator[tuple[Frame, list[Laid]]]:
        """Each frame in order with its faces drawn, steadied by the frames around, for `lay_in`; see `__call__`."""
        with closing(ahead(self._drawn(ahead(detected, self.recipe.batch)), self.recipe.batch)) as drawn:
            yield from self._steadied(drawn)

    def _drawn(self, detected: Iterable[Detected]) -> Iterator[tuple[Frame, list[Laid]]]:
        """The faces of several frames are drawn together: of the same ones, wherever one begins."""
        waiting: list[tuple[Frame, list[Asked]]] = []
        for frame, faces in detected:
            if waiting and frame.index // self.recipe.batch != waiting[0][0].index // self.recipe.batch:
                yield from self._draw_together(waiting)
                waiting = []
            waiting.append((frame, self._asked(frame, faces)))
        yield from self._draw_together(waiting)

    def _asked(self, frame: Frame, faces: Sequence[Face]) -> list[Asked]:
        """The faces that are to be drawn, each with the recipe that holds for it."""
        largest = faces[: self.recipe.max_faces or None]
        ways = [shots.recipe_at(self.recipe, self.shots, frame.index, face.track) for face in largest]
        return [(face, recipe) for face, recipe in zip(largest, ways, strict=True) if recipe is not None]

    def _draw_together(self, asked: list[tuple[Frame, list[Asked]]]) -> Iterator[tuple[Frame, list[Laid]]]:
        faces = [(frame, face, recipe) for frame, some in asked for face, recipe in some]
        models = [self.models[face.model] for _, face, _ in faces]
        places = [face.matrix(of.size, of.crop) for (_, face, _), of in zip(faces, models, strict=True)]
        crops = [cut_out(frame, at, of.size) for (frame, _, _), at, of in zip(faces, places, models, strict=True)]
        sources = self._drawn_as(SOURCE, crops, [(i, face.model) for i, (_, face, _) in enumerate(faces)])
        of_target = [(i, face.model) for i, (_, face, way) in enumerate(faces) if way.mask in masks.OF_TARGET]
        targets = self._drawn_as(TARGET, crops, of_target)
        number = 0
        for frame, some in asked:
            laid = []
            for found, recipe in some:
                crop, matrix, drawn = crops[number], places[number], sources[number]
                kind, restorer = models[number].crop, self.restorers.get(recipe.restore)
                target = targets[number][1] if number in targets else None
                laid.append(
                    placed(frame, found, matrix, crop, drawn, recipe, kind=kind, target=target, restorer=restorer)
                )
                number += 1
            yield frame, laid

    def _drawn_as(
        self, person: int, crops: Sequence[NDArray[Any]], asked: Sequence[tuple[int, int]]
    ) -> dict[int, Drawn]:
        """Crops drawn as `person`, by number: those of `asked`, each by the model whose number stands beside it."""
        own: dict[int, list[int]] = defaultdict(list)
        for number, model in asked:
            own[model].append(number)
        drawn: dict[int, Drawn] = {}
        for model, numbers in own.items():
            made = self.models[model]([crops[number] for number in numbers], person, self.recipe.batch)
            drawn |= zip(numbers, made, strict=True)
        return drawn

    def _steadied(self, drawn: Iterable[tuple[Frame, list[Laid]]]) -> Iterator[tuple[Frame, list[Laid]]]:
        """What was measured of a face, averaged over the frames around it: those of its track."""
        reach = self.reach
        tracks: dict[int, dict[int, Known]] = {}
        waiting: deque[tuple[Frame, list[Laid]]] = deque()

        def ready(until: float) -> Iterator[tuple[Frame, list[Laid]]]:
            while waiting and waiting[0][0].index + reach <= until:
                frame, faces = waiting.popleft()
                yield frame, [settled(frame, one, tracks) for one in faces]
                for track, states in list(tracks.items()):
                    for old in [index for index in states if index <= frame.index - reach]:
                        del states[old]
                    if not states:
                        del tracks[track]

        for frame, drawn_there in drawn:
            faces = [measured(frame, one) for one in drawn_there]
            for one in faces:
                if one.track is not None:
                    tracks.setdefault(one.track, {})[frame.index] = Known(one.recipe, one.state, one.now, one.middle)
            waiting.append((frame, faces))
            yield from ready(frame.index)
        yield from ready(float("inf"))


def _alike(one: Known, other: Known) -> bool:
    """Whether what was measured of a face in two frames may be averaged: it was measured in the same way."""
    if one.recipe is other.recipe:
        return True
    return all(getattr(one.recipe, key) == getattr(other.recipe, key) for key in MEASURED)


def check(recipe: MergeRecipe) -> None:
    """`UsageError` if a colour transfer, a blend or a kind of mask is not known."""
    color.get(recipe.color), blend.get(recipe.blend), masks.check(recipe.mask)


def cut_out(frame: Frame, matrix: align.Matrix, size: int) -> NDArray[np.uint8]:
    """The crop (size, size, 3) uint8 RGB of a frame, of which no more is made than that."""
    where, matrix = align.around(matrix, size, frame.shape)
    return align.as_uint8(align.crop(frame.part(*where), matrix, size))


@torch.inference_mode()
def draw(
    model: FaceModel,
    crops: Sequence[NDArray[Any]],  # canonical crops (R, R, 3) uint8 RGB
    person: int,
    batch: int,
    device: torch.device,
) -> Iterator[Drawn]:
    """Faces drawn as `person`: (R, R, 3) and mask (R, R), float32 in [0, 1]."""
    for start in range(0, len(crops), batch):
        stacked = np.stack(crops[start : start + batch])
        pixels = torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).float().div_(255)
        faces, masks = model(pixels, torch.full((len(stacked),), person, dtype=torch.int64, device=device))
        yield from zip(faces.permute(0, 2, 3, 1).cpu().numpy(), masks[:, 0].cpu().numpy(), strict=True)


def placed(
    frame: Frame,
    found: Face,
    matrix: align.Matrix,  # (2, 3), frame to crop
    crop: NDArray[np.uint8],  # (R, R, 3) RGB, the face as it is
    drawn: Drawn,
    recipe: MergeRecipe,
    kind: str = align.CANONICAL,  # of crop, one of `align.CROPS`
    *,
    target: NDArray[np.float32] | None = None,  # (R, R), the mask drawn of it as the target, if the recipe wants it
    restorer: detail.Restorer | None = None,
) -> Laid:
    """How a drawn face goes into its frame: masked, restored, scaled; for `measured`, `settled` and `lay_in`.

    The mask is bounded by that of the landmarks: a network that errs cannot paint the background.
    """
    (face, mask), by = drawn, recipe.scale
    size = len(mask)
    limit = bound(found, matrix, size, kind)
    if by != 1 and found.mask is not None:  # what the user drew stays where it is in the frame
        limit = align.crop(limit, detail.scaled(np.eye(2, 3), size, by), size)
    mask = masks.chosen(recipe.mask, mask, limit, target)
    if restorer is not None:
        face, size = restorer(face, recipe.restored), detail.SIDE
        mask, limit, matrix = align.resize(mask, size), align.resize(limit, size), matrix * (size / len(crop))
        crop = cut_out(frame, matrix, size)
    own = None if found.mask is None else np.clip(limit, 0, 1)  # cubic weights overshoot
    matrix = detail.scaled(matrix, size, by)
    nothing, middle = color.NOTHING, detail.middle(matrix, size)
    return Laid(recipe, nothing, nothing, middle, face, mask, crop, matrix, found.track, own)


def measured(frame: Frame, laid: Laid) -> Laid:
    """With what its frame shows of colours, and one in `LOOKED` frames, if several are averaged, of blur and grain."""
    state = color.get(laid.recipe.color).measure(laid.face, laid.crop.astype(np.float32) / np.float32(255), laid.mask)
    looked = laid.track is None or frame.index % max(1, min(LOOKED, laid.recipe.steady)) == 0
    return replace(laid, state=state, now=seen(frame, laid) if looked else color.NOTHING)


def seen(frame: Frame, laid: Laid) -> color.State:
    """How blurred and how grained the footage and the drawn face are, if that is to be matched."""
    where = blend.covered(laid.mask, laid.matrix, frame.shape) if detail.matching(laid.recipe) else None
    if where is None:
        return color.NOTHING
    part = frame.part(*where, deep=True)
    return detail.look(part, where, laid.face, laid.mask, laid.matrix, colors=laid.recipe.grain > 0)


def settled(frame: Frame, laid: Laid, tracks: Mapping[int, Mapping[int, Known]]) -> Laid:
    """With what is known of its track in the frames around: colours, blur and grain steadied, and its way."""
    if laid.track is None:
        return replace(laid, steady=laid.now)
    known, reach = tracks[laid.track], laid.recipe.steady
    alike = {index: of for index, of in known.items() if _alike(of, laid)}
    state = color.smooth({index: of.state for index, of in alike.items()}, frame.index, reach)
    steady = color.smooth({index: of.now for index, of in alike.items()}, frame.index, reach)
    moved, now = detail.way({index: of.middle for index, of in known.items()}, frame.index), laid.now
    smeared = laid.recipe.motion_blur > 0 and detail.smears(moved, laid.pixel)
    if not now.weight and (smeared or not steady.weight):
        now = seen(frame, laid)
    return replace(laid, state=state, now=now, steady=steady if steady.weight else now, moved=moved)


def lay_in(frame: Frame, laid: Laid) -> Frame:
    """The frame with one face in it, coloured like the footage; itself if nothing of the face shows.

    Only pixels under the mask are made anew, in as many bits as the footage has.
    """
    recipe, through = laid.recipe, soft(laid, frame.shape)
    face = color.get(recipe.color).apply(laid.face, laid.state)
    where = blend.covered(through, laid.matrix, frame.shape)
    if where is None:
        return frame
    finish = partial(
        detail.finish,
        recipe=recipe,
        steady=laid.steady,
        now=laid.now,
        moved=laid.moved,
        pixel=laid.pixel,
        seed=(frame.index, 0 if laid.track is None else laid.track + 1),
    )
    part, way = frame.part(*where, deep=True), blend.get(recipe.blend)
    pixels, shown = blend.lay_in(part, where, face, through, laid.matrix, way, finish)
    return frame.with_part(where[0], where[1], pixels, shown) if shown.any() else frame


def soft(laid: Laid, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The mask (R, R) through which a face is laid into a frame (h, w, ...)."""
    through = blend.through(laid.recipe.blend, laid.mask, laid.recipe.erode, laid.recipe.feather)
    if laid.own is not None:
        through = np.minimum(through, laid.own)
    return blend.leaving(through, laid.matrix, shape)


def still(image: NDArray[Any], *given: Any, **more: Any) -> NDArray[Any]:
    """An image (H, W, 3) uint8 RGB with one drawn face laid in; given: as of `placed`."""
    frame = Frame(0, Fraction(0), Path(), image)
    laid = measured(frame, placed(frame, *given, **more))
    return lay_in(frame, replace(laid, steady=laid.now)).image


def bound(face: Face, matrix: align.Matrix, size: int, crop: str = align.CANONICAL) -> NDArray[np.float32]:
    """The mask (size, size) float32 in [0, 1] that a face may fill in its crop, which is one of `align.CROPS`: the
    user's own, or by its landmarks."""
    own = None if face.mask is None else read_mask(face.mask, size)
    if own is not None:
        return masks.within(own, size, crop)
    return masks.face_mask(align.apply(matrix, face.outline), size, crop=crop)


def detecting(
    video: Path,
    recipe: ExtractRecipe,
    device: str,
    who: Who | Cast | None = None,  # None: as the recipe says
    out: Path | None = None,  # the video to be made: what was found is kept beside it until then
) -> FoundFaces:
    """Finds the faces of `video`, by frame; once, if `out` is given and the work is interrupted later."""
    if out is None:
        footage, chosen = Finder(recipe, device, who)(video)
        return footage.faces(chosen)
    asked = None if who is None else {**who.to_json(), "pictures": [_contents(path) for path in who.references]}
    made_from = {"extract": recipe.model_dump(), "who": asked, "device": device, "versions": _versions()}
    folder = segments.folder_of(out)
    path = folder / f"faces-{segments.key_of({'video': segments.identity(video), **made_from})[:16]}.npz"
    if path.exists():
        try:
            found = kept.read(path)
        except FacesetError as error:
            console.warn(f"{error}; looking again")
        else:
            console.say(f"{video.name}: faces were found by an earlier start")
            return found
    folder.mkdir(parents=True, exist_ok=True)  # where nothing can be written, that is said before the work
    try:
        found = detecting(video, recipe, device, who)
        for old in folder.glob("faces-*.npz"):
            old.unlink()
        kept.write(path, found)
    finally:
        with suppress(OSError):  # it stays if anything is in it
            folder.rmdir()
    return found


def _contents(path: Path) -> Any:
    """What tells a reference, a file or a folder of them, from another."""
    if path.is_dir():
        return [_contents(inside) for inside in sorted(path.iterdir())]
    return files.sha256(path) if path.is_file() else None


def _versions() -> dict[str, Any]:
    return {
        "faceswap": faceswap.__version__,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),  # what torch computes with: the last bits hang on it
        "numpy": np.__version__,
        **segments.versions(),
    }


def recalling(folder: Path, video: Path) -> FoundFaces:
    """The faces that the faceset `folder` holds of `video`, by frame: a face deleted there is not swapped, and the
    user's own mask beside one bounds it."""
    found: FoundFaces = {}
    images = {path.name: index for index, path in enumerate(image_files(video))} if video.is_dir() else None
    wanted = images or {video.name}
    entries = [entry for entry in Faceset.open(folder).entries if entry.meta.source in wanted]
    if len({entry.meta.input for entry in entries}) > 1:
        raise FacesetError(f"{folder}: holds faces of several files called {video.name}; extract that video alone")
    for entry in entries:
        frame = images[entry.meta.source] if images else entry.meta.frame
        found.setdefault(frame, []).append(recalled(entry))
    steps = np.diff(sorted(found))
    if len(steps) and steps.min() > 1:
        console.warn(
            f"{folder}: holds faces of every {steps.min()}th frame at most, the others are not swapped and the result "
            "flickers; extract without --every"
        )
    if not found:
        raise FacesetError(f"{folder}: holds no face of {video.name}; extract that video, or leave out --faces")
    return found


def recalled(entry: Entry) -> Face:
    """The face that was extracted."""
    meta = entry.meta
    return Face(
        np.array(meta.box, np.float32),
        np.array(meta.points, np.float32),
        meta.probability,
        None if meta.landmarks is None else np.array(meta.landmarks, np.float32),
        meta.fit,
        meta.track,
        np.array(meta.matrix, np.float64) / meta.size,
        entry.path if read_mask(entry.path) is not None else None,  # a damaged one is said now
    )


def swap_video(
    video: Path,
    out: Path,
    swapper: Swapper,
    found: FoundFaces,
    *,
    overwrite: bool = False,
    marks: Marker | None = None,  # default: `provenance.marker(out)`
    workers: int = 1,  # processes that make segments side by side
    part: range = WHOLE,  # frames of which a shorter video is made; each is the same as in the whole
    engine: str = "local",  # where: local, or ray for the hosts of a Ray cluster
) -> Report:
    """Swap the faces in `video` into the new video `out`: same frames, times and sound, marked as swapped.

    What is finished when the work ends early is kept beside `out`, and the same call goes on from there: the file is
    the same, bit for bit, as without the interruption.
    """
    started = time.monotonic()
    marks = marks or marker(out)
    tags = marks.tags(swapper.name)
    segments.refuse_existing(out, overwrite)
    pool, gpu = None, swapper.device.type == "cuda"
    if engine == "ray":
        pool, workers = partial(ray_engine.processes, gpu=gpu), workers if workers > 1 else ray_engine.room(gpu=gpu)
    recipe, times = swapper.recipe, _times_of(video, part)
    form = form_like(video, crf=recipe.crf, preset=recipe.preset, codec=recipe.codec, part=times)
    made_from = {**what_decides(video, swapper, found), "range": None if part == WHOLE else [part.start, part.stop]}
    key = segments.key_of(made_from)
    plan = segments.Plan(video, segments.folder_of(out), key, form, recipe.segment, swapper.reach, recipe.batch, part)

    def finish(whole: Path) -> None:
        marks.sign(whole, out=out, footage=video, model=swapper.name)
        segments.not_needed(plan.folder, whole)

    writer = VideoWriter(out, video, form=form, overwrite=overwrite, metadata=tags, finish=finish)
    with segments.opened(plan, out, made_from) as parts, writer:
        if workers == 1 and engine == "local":
            parts.fill(partial(_write, swapper, found))
        else:
            faces = plan.folder / "found.npz"
            kept.write(faces, found)
            parts.fill(partial(work, swapper.made_from, faces), workers, pool)
        frames, swapped, count = parts.write_to(writer)
    if not swapped:
        console.warn(f"{video}: no face found in {frames} frames; {out} is the footage as it was")
    return Report(out, frames, swapped, count, time.monotonic() - started)


def _times_of(video: Path, part: range) -> Part:
    """When a part of a video begins and ends."""
    if part == WHOLE:
        return None, None
    times = frame_times(video)
    return times[part.start] if part.start else None, times[part.stop] if part.stop < len(times) else None


def what_decides(video: Path, swapper: Swapper, found: FoundFaces) -> dict[str, Any]:
    """All that a swapped frame depends on, by name."""
    return {
        "video": segments.identity(video),
        "model": [checkpoint.digest(model.network.state_dict()) for model in swapper.models],
        "merge recipe": swapper.recipe.model_dump(),
        "plan": [shot.to_json() for shot in swapper.shots],
        "restorer": [files.sha256(Path(path)) for path in swapper.restorers],
        "choice of faces": kept.digest(found),
        "device": str(swapper.device),
        "version": {"segments": segments.VERSION, **_versions()},
    }


def work(drawer: Drawer, faces: Path, plan: segments.Plan, run: range, tick: Callable[[], None]) -> int | None:
    """Make a run of segments, in any process: the model is loaded once in each. See `segments.write`."""
    return _write(*_loaded(drawer, faces), plan, run, tick)


@lru_cache(maxsize=1)
def _loaded(drawer: Drawer, faces: Path) -> tuple[Swapper, FoundFaces]:
    return drawer.swapper(), kept.read(faces)


def _write(
    swapper: Swapper, found: FoundFaces, plan: segments.Plan, run: range, tick: Callable[[], None]
) -> int | None:
    def draw(frames: Iterator[Frame], wanted: range) -> Iterator[tuple[Frame, int]]:
        return swapper(((frame, found.get(frame.index, [])) for frame in frames), wanted)

    return segments.write(plan, run, draw, tick)
