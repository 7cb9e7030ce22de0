"""Whose faces are taken: everyone's, those of who fills most of the footage, of one track, or of one person.

Who is who is told by a face embedder where there is one (see `faceswap.embedding`), and else by track and position;
which of the two was used is always said.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceswap import align, console, detectors, embedding, faceset, tracks
from faceswap.config import ExtractRecipe
from faceswap.detectors import Detector, Face
from faceswap.errors import FacesetError, UsageError
from faceswap.faceset import FaceMeta
from faceswap.landmarks import Landmarker
from faceswap.tracks import PORTRAIT, Footage, Track, overlap
from faceswap.video import frame_count, is_image, read_frames

SHARED = 0.05  # of its frames a track may share with another of the same person
PICTURES = 50  # that tell who a reference is
EVERY = 10  # frames of a reference that is a video
INSTALL = "pip install 'faceswap[identity]' brings a face embedder"


@dataclass(frozen=True)
class Who:
    """What the user asked for: at most one of the three; none: everyone."""

    references: tuple[Path, ...] = ()  # pictures of the person, or face images of ours
    tracks: tuple[int, ...] = ()  # by number
    largest: bool = False

    def __post_init__(self) -> None:
        if bool(self.references) + bool(self.tracks) + self.largest > 1:
            raise UsageError("expected one of --reference, --track, --largest and --everyone, found several")

    @property
    def is_everyone(self) -> bool:
        return not (self.references or self.tracks or self.largest)

    @property
    def needs_portraits(self) -> bool:
        """Whether pictures of each track are wanted, to tell who it is."""
        return bool(self.references) or self.largest

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a note of what was asked."""
        references = [str(path.resolve()) for path in self.references]
        return {"references": references, "tracks": list(self.tracks), "largest": self.largest}


EVERYONE, LARGEST = Who(), Who(largest=True)


@dataclass(frozen=True)
class Cast:
    """Several people, each with the number of the model that draws them."""

    people: tuple[tuple[Who, int], ...]

    @property
    def references(self) -> tuple[Path, ...]:
        return tuple(path for who, _ in self.people for path in who.references)

    @property
    def needs_portraits(self) -> bool:
        return bool(self.references)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a note of what was asked."""
        return {"people": [{**who.to_json(), "model": model} for who, model in self.people]}


def cast_of(words: Sequence[str]) -> tuple[Cast, list[Path]]:
    """What `PICTURE=RUN` and `track:N=RUN` mean, and the runs by number. All that one run draws by pictures is one
    person. `UsageError`: another form."""
    pictures: dict[Path, list[Path]] = {}
    tracks: dict[Path, list[int]] = {}
    for word in words:
        whom, equals, run = word.rpartition("=")
        number = whom.removeprefix("track:")
        if not equals or not whom or not run or (number != whom and not number.isdecimal()):
            raise UsageError(f"--map {word}: expected PICTURE=RUN or track:N=RUN, such as anna.jpg=run_anna")
        for known in (pictures, tracks):
            known.setdefault(Path(run), [])
        if number == whom:
            pictures[Path(run)].append(Path(whom))
        else:
            tracks[Path(run)].append(int(number))
    twice = [
        track for track, count in Counter(track for some in tracks.values() for track in some).items() if count > 1
    ]
    if twice:
        raise UsageError(f"--map: track {twice[0]} is given twice; one model draws it")
    asked = [
        (who, model)
        for model, run in enumerate(pictures)
        for who in (Who(tuple(pictures[run])), Who(tracks=tuple(tracks[run])))
        if not who.is_everyone
    ]
    return Cast(tuple(asked)), list(pictures)


def cast_by_number(found: Mapping[int, Sequence[Face]], cast: Cast) -> dict[int, list[Face]]:
    """Those of the faces, by frame, whose track is one of the cast's, for its model to draw; for what was found before.

    `UsageError` if the cast is not told by tracks alone, or a track is not there.
    """
    if cast.references:
        raise UsageError(
            f"--map {cast.references[0]}=...: --faces says where faces are and not who they are; leave it out, or give "
            "track:N=RUN"
        )
    model_of = {track: model for who, model in cast.people for track in who.tracks}
    there = {face.track for faces in found.values() for face in faces}
    if unknown := sorted(model_of.keys() - there):
        names = ", ".join(str(track) for track in sorted(track for track in there if track is not None))
        raise UsageError(f"--map: no track {unknown[0]} among the faces; expected some of {names or 'none'}")
    chosen = {
        index: [replace(face, model=model_of[face.track]) for face in faces if face.track in model_of]
        for index, faces in found.items()
    }
    return {index: faces for index, faces in chosen.items() if faces}


class Chooser:
    """Chooses tracks. Made before the work begins, so that a wrong reference is said at once."""

    def __init__(self, who: Who, detector: Detector, landmarker: Landmarker, min_fit: float = 0.0) -> None:
        """`FacesetError` for a reference without a face, `UsageError` for one that cannot be used here."""
        self.who = who
        for path in who.references:
            if not path.exists():
                raise UsageError(f"{path}: no such file; give a picture of the person as reference")
        self.embedder = embedding.find_embedder() if who.needs_portraits else None
        self.metas = [faceset.read_meta(path) if path.is_file() else None for path in who.references]
        self.known: NDArray[np.float32] | None = None
        if not who.references:
            return
        if self.embedder is not None:
            pictures = [
                picture
                for path, meta in zip(who.references, self.metas, strict=True)
                for picture in _pictures(path, meta, detector, landmarker, min_fit)
            ]
            self.known = self.embedder(pictures)
        elif any(meta is None for meta in self.metas):
            raise UsageError(
                f"{who.references[self.metas.index(None)]}: without a face embedder a reference must be a face image "
                f"that faceswap extract took from the same footage; {INSTALL}, or choose by looking: --track N"
            )

    def __call__(self, footage: Footage, video: Path) -> list[Track]:
        """The tracks of the person; what decided is said. `UsageError` if there are none."""
        tracks, who = footage.tracks, self.who
        if who.is_everyone or not tracks:
            return tracks
        if who.tracks:
            return self._by_number(tracks, video)
        if who.references:
            return self._by_reference(tracks, video)
        return self._largest(tracks, video)

    def _by_number(self, tracks: Sequence[Track], video: Path) -> list[Track]:
        unknown = sorted(set(self.who.tracks) - {track.number for track in tracks})
        if unknown:
            raise UsageError(
                f"{video}: no track {unknown[0]}; expected one of 0 to {len(tracks) - 1}: {described(tracks)}"
            )
        return [track for track in tracks if track.number in self.who.tracks]

    def _by_reference(self, tracks: Sequence[Track], video: Path) -> list[Track]:
        if self.embedder is None or self.known is None:
            return self._by_position(tracks, video)
        apart = self.distances(tracks)
        return self.by_distance(tracks, apart, np.ones(len(tracks), np.bool_), video)

    def by_distance(
        self, tracks: Sequence[Track], apart: NDArray[np.float64], free: NDArray[np.bool_], video: Path
    ) -> list[Track]:
        """The tracks, `apart` from the reference, that are the person's; those that are not `free` are another's."""
        assert self.embedder is not None
        line = (self.embedder.same + self.embedder.other) / 2
        order = np.argsort(apart)
        chosen = one_at_a_time([tracks[i] for i in order if free[i] and apart[i] <= line])
        nearest = tracks[order[0]]
        if not chosen:
            taken = "" if free[order[0]] else ", nearer to another reference"
            raise UsageError(
                f"{video}: nobody looks like {self._named()}: the nearest is track {nearest.number} at "
                f"{min(apart):.2f}{taken}, one person usually lies below {self.embedder.same:.2f} "
                f"({self.embedder.name}); give other references or a track's number"
            )
        found = ", ".join(str(track.number) for track in chosen)
        console.say(
            f"{video.name}: track {found} is the person of {self._named()}, by face embedding ({self.embedder.name}, "
            f"nearest at {min(apart[free]):.2f}, line at {line:.2f})"
        )
        return chosen

    def _named(self) -> str:
        """The reference, by name."""
        return f"the reference {self.who.references[0].name}"

    def _by_position(self, tracks: Sequence[Track], video: Path) -> list[Track]:
        """The tracks that have a face where and when the references, faces of the same footage, were taken."""
        chosen = []
        for path, meta in zip(self.who.references, self.metas, strict=True):
            assert meta is not None
            if meta.source != video.name and not (video / meta.source).exists():
                raise UsageError(
                    f"{path}: was taken from {meta.source}, not from {video.name}, and no face embedder works here; "
                    f"{INSTALL}, or choose by looking: --track N"
                )
            shared: dict[int, float] = {}
            for track in tracks:
                index = min(track.faces, key=lambda index: abs(index - meta.frame))
                if abs(index - meta.frame) <= EVERY:  # extraction may have looked at other frames
                    shared[track.number] = overlap(track.faces[index].box, np.array(meta.box))
            best = max(shared, key=lambda number: shared[number], default=None)
            if best is None or shared[best] < 0.3:
                raise UsageError(f"{path}: no track of {video.name} has a face there now; choose with --track N")
            chosen.append(best)
        names = ", ".join(map(str, sorted(set(chosen))))
        console.say(f"{video.name}: track {names} is the person of {self._named()}, by track and position: {INSTALL}")
        return [track for track in tracks if track.number in chosen]

    def _largest(self, tracks: Sequence[Track], video: Path) -> list[Track]:
        """Who fills most of the footage: the largest track, and in other frames those that may be the same person."""
        order = sorted(tracks, key=lambda track: -track.area)
        if len(order) == 1:
            return order
        main, others = order[0], order[1:]
        how = f"by track and position ({INSTALL})"
        if self.embedder is not None and main.portraits:
            known = self.embedder([picture for _, picture in main.portraits])
            apart = self._distances(others, known)
            others = [others[i] for i in np.argsort(apart) if apart[i] <= self.embedder.other]
            how = f"by face embedding ({self.embedder.name})"
        chosen = one_at_a_time([main, *others])
        console.say(
            f"{video.name}: {len(chosen)} of {len(tracks)} tracks are of the person who fills most of it, {how}"
        )
        return chosen

    def distances(self, tracks: Sequence[Track]) -> NDArray[np.float64]:
        """How far each track is from the reference; infinite without a picture of it."""
        assert self.known is not None
        return self._distances(tracks, self.known)

    def _distances(self, tracks: Sequence[Track], known: NDArray[np.float32]) -> NDArray[np.float64]:
        """The median distance of each track's portraits from the known ones; infinite without any."""
        assert self.embedder is not None
        found = []
        for track in tracks:
            seen = self.embedder([picture for _, picture in track.portraits])
            found.append(float(np.median(embedding.distances(seen, known))) if len(seen) else np.inf)
        return np.array(found)


class Casting:
    """Chooses the tracks of several people, and with them the model that draws each face."""

    def __init__(self, cast: Cast, detector: Detector, landmarker: Landmarker, min_fit: float = 0.0) -> None:
        """Errors as in `Chooser`."""
        self.parts = [(Chooser(who, detector, landmarker, min_fit), model) for who, model in cast.people]

    def __call__(self, footage: Footage, video: Path) -> list[Track]:
        """The tracks of the people; who is asked for by number is nobody else, and the others are of whom they are
        nearest to. `UsageError` if one of the people is not there, or a track is of two."""
        numbered = {number for part, _ in self.parts for number in part.who.tracks}
        free = [track for track in footage.tracks if track.number not in numbered]
        told = [part for part, _ in self.parts if part.embedder is not None]
        apart = {id(part): part.distances(free) for part in told} if free else {}
        nearest = np.min(list(apart.values()), 0) if apart else np.zeros(0)
        chosen: list[Track] = []
        for part, model in self.parts:
            if id(part) in apart:
                found = part.by_distance(free, apart[id(part)], apart[id(part)] <= nearest, video)
            else:
                found = part(replace(footage, tracks=footage.tracks if part.who.tracks else free), video)
            chosen += [_drawn_by(track, model) for track in found]
        for number, count in Counter(track.number for track in chosen).items():
            if count > 1:
                raise UsageError(f"{video}: track {number} is two of the people; give track:{number}=RUN for it")
        return sorted(chosen, key=lambda track: track.number)


def _drawn_by(track: Track, model: int) -> Track:
    return replace(track, faces={index: replace(face, model=model) for index, face in track.faces.items()})


def one_at_a_time(tracks: Sequence[Track]) -> list[Track]:
    """Those of the tracks, the first ones first, that share no frame: one person is in one place. By number.

    A track that shares but a few frames gives these up.
    """
    chosen: list[Track] = []
    taken: set[int] = set()
    for track in tracks:
        free = {index: face for index, face in track.faces.items() if index not in taken}
        if len(free) >= (1 - SHARED) * len(track.faces):
            chosen.append(replace(track, faces=free))
            taken |= track.faces.keys()
    return sorted(chosen, key=lambda track: track.number)


def described(tracks: Sequence[Track]) -> str:
    """The tracks in a line."""
    parts = [f"{t.number} (frames {t.span[0]} to {t.span[1]}, {t.side:.0f} px)" for t in tracks[:12]]
    return ", ".join(parts) + (", ..." if len(tracks) > 12 else "")


def _pictures(
    path: Path, meta: FaceMeta | None, detector: Detector, landmarker: Landmarker, min_fit: float
) -> list[NDArray[np.uint8]]:
    """Canonical crops of a reference: of a face image of ours as it is, else of the largest face in each picture."""
    if meta is not None:
        return [align.as_uint8(faceset.read_image(path, PORTRAIT))]
    found: list[NDArray[np.uint8]] = []
    several = 0
    for frame in read_frames(path, every=1 if path.is_dir() or is_image(path) else EVERY):
        image = align.as_uint8(frame.image)
        faces = detector([image])[0]
        several += len(faces) > 1
        for face in faces[:1]:
            marks = landmarker([image], [face.points], passes=2)[0]
            points = marks.five if marks.fit >= min_fit else face.points
            found.append(align.as_uint8(align.crop(image, align.crop_matrix(points, PORTRAIT), PORTRAIT)))
        if len(found) == PICTURES:
            break
    if several:
        console.warn(f"{path}: several faces in {several} pictures of the reference, the largest is taken")
    if not found:
        raise FacesetError(f"{path}: no face found in the reference; give a picture that shows it large and clear")
    return found


class Finder:
    """Finds whose faces are wanted in footage."""

    def __init__(self, recipe: ExtractRecipe, device: str, who: Who | Cast | None = None) -> None:
        """`who` is None as the recipe says. Errors as in `Chooser`: a wrong reference is said at once."""
        self.recipe = recipe
        self.who = who if who is not None else {"everyone": EVERYONE, "largest": LARGEST}[recipe.who]
        smallest = recipe.min_size * tracks.LENIENT
        threshold = recipe.threshold * tracks.LENIENT
        self.detector = detectors.build(recipe.detector, threshold=threshold, min_size=smallest, device=device)
        self.landmarker = Landmarker(device)
        self.choose: Chooser | Casting
        if isinstance(self.who, Cast):
            self.choose = Casting(self.who, self.detector, self.landmarker, recipe.min_fit)
        else:
            self.choose = Chooser(self.who, self.detector, self.landmarker, recipe.min_fit)

    def __call__(self, path: Path) -> tuple[Footage, list[Track]]:
        """All that was found in footage, and the tracks that were chosen of it."""
        footage = self.follow(path)
        return footage, self.choose(footage, path)

    def follow(self, path: Path) -> Footage:
        """All that was found in footage."""
        total = frame_count(path)
        wanted = None if total is None else -(-total // self.recipe.every)
        frames = console.track(
            read_frames(path, every=self.recipe.every), f"looking for faces in {path.name}", wanted, "frames"
        )
        portraits = self.who.needs_portraits
        return tracks.follow(frames, self.detector, self.landmarker, self.recipe, portraits=portraits)
