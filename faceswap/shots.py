"""What is merged otherwise in some frames, or for somebody: a file of sections that change the recipe there.

    [[shot]]
    frames = "120-240"     # both included, counted from 0; also "120-", "-240" and "120"; may be left out: all
    track = 3              # or a list; may be left out: everybody
    color = "reinhard"     # any key of [merge] but those of `GLOBAL`

    [[shot]]
    track = 5
    skip = true            # these faces stay as they are

Later sections win, key by key.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from faceswap import blend, color, config, console, masks
from faceswap.config import MergeRecipe
from faceswap.errors import RecipeError, UsageError
from faceswap.found import FoundFaces
from faceswap.registry import suggest
from faceswap.segments import WHOLE
from faceswap.video import frame_times, image_files, is_image, start_of

GLOBAL = ("max_faces", "batch", "segment", "codec", "crf", "preset")  # of a whole frame, or of the file
SPAN = re.compile(r"(?=.*\d)(\d*)(-?)(\d*)")
CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")  # hours, minutes, seconds
FORM = 'expected frames such as "120-240", both included'


def _listed(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


Tracks = Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed)]


class _Section(MergeRecipe):
    """A section as it is written. What of it was given changes the recipe."""

    frames: str = ""
    track: Tracks = Field(default_factory=list, min_length=1)
    skip: bool = False


@dataclass(frozen=True)
class Shot:
    """What is merged otherwise, where."""

    frames: range = WHOLE
    tracks: frozenset[int] | None = None  # None: everybody
    skip: bool | None = None  # whether these faces stay as they are; None: as before
    changes: tuple[tuple[str, Any], ...] = ()  # keys of the recipe and their values

    def covers(self, frame: int, track: int | None) -> bool:
        return frame in self.frames and (self.tracks is None or track in self.tracks)

    def contains(self, other: "Shot") -> bool:
        """Whether it holds wherever the other does."""
        there = self.frames.start <= other.frames.start and other.frames.stop <= self.frames.stop
        return there and (self.tracks is None or (other.tracks is not None and other.tracks <= self.tracks))

    def hides(self, other: "Shot") -> bool:
        """Whether nothing of an earlier section is left by this one."""
        return self.contains(other) and (bool(self.skip) or other.keys <= self.keys)

    @property
    def keys(self) -> set[str]:
        return {key for key, _ in self.changes} | ({"skip"} if self.skip is not None else set())

    def to_json(self) -> list[Any]:
        """As plain values, for a note of what was asked."""
        tracks = None if self.tracks is None else sorted(self.tracks)
        return [self.frames.start, self.frames.stop, tracks, self.skip, dict(self.changes)]


Shots = tuple[Shot, ...]


def recipe_at(recipe: MergeRecipe, shots: Shots, frame: int, track: int | None) -> MergeRecipe | None:
    """The recipe for one face; None if it stays as it is."""
    held = tuple(shot for shot in shots if shot.covers(frame, track))
    return _laid_over(recipe, held) if held else recipe


def recipes(recipe: MergeRecipe, shots: Shots) -> list[MergeRecipe]:
    """Recipes in which every value comes up that a face may be merged with."""
    return [recipe, *(changed for shot in shots if (changed := _laid_over(recipe, (shot,))) is not None)]


@lru_cache(maxsize=256)
def _laid_over(recipe: MergeRecipe, held: Shots) -> MergeRecipe | None:
    skip, changes = False, dict[str, Any]()
    for shot in held:
        skip = skip if shot.skip is None else shot.skip
        changes.update(shot.changes)
    return None if skip else recipe.model_copy(update=changes)


# ---------------------------------------------------------------- reading


def load(path: Path) -> Shots:
    """The sections of a TOML file; `RecipeError` names the section, the key and what was expected."""
    try:
        values = config.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such plan; expected a TOML file of sections [[shot]]") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text ({error}); expected a TOML file of [[shot]]") from None
    found = values.pop("shot", None)
    if values:
        raise RecipeError(f"{path}: unknown key {min(values)!r}; expected nothing but [[shot]], in which keys belong")
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise RecipeError(f"{path}: no shots; expected one [[shot]] or more")
    shots = tuple(_shot(one, f"{path}: shot {number}") for number, one in enumerate(found, 1))
    _refuse_idle(path, shots)
    return shots


def _refuse_idle(path: Path, shots: Shots) -> None:
    """`RecipeError` for a section that another leaves nothing of."""
    numbered = list(enumerate(shots, 1))
    for (first, early), (second, late) in combinations(numbered, 2):
        if late.hides(early):
            raise RecipeError(
                f"{path}: shot {first} never takes effect: shot {second} says all of it otherwise, for the same frames "
                "and tracks; delete it, or put it last: later sections win"
            )
        between = any(shot.skip is False for shot in shots[first : second - 1])
        if early.skip and late.skip is None and early.contains(late) and not between:
            raise RecipeError(
                f"{path}: shot {second} never takes effect: shot {first} skips those faces; add skip = false to it"
            )


def _shot(values: dict[str, Any], where: str) -> Shot:
    free = [key for key in _Section.model_fields if key not in GLOBAL]
    for key in values:
        if key in GLOBAL:
            raise RecipeError(f"{where}: {key} cannot differ by shot; give it as --set merge.{key}={values[key]}")
        if key not in free:
            raise RecipeError(f"{where}: unknown key {key!r}; {suggest(key, free)}")
    given = config.checked(_Section, values, where)
    try:
        frames = span(given.frames) if "frames" in values else WHOLE
        color.get(given.color), blend.get(given.blend), masks.check(given.mask)
    except UsageError as error:
        raise RecipeError(f"{where}: {error}") from None
    asked = {key: getattr(given, key) for key in values if key in MergeRecipe.model_fields}
    if given.skip and asked:
        raise RecipeError(f"{where}: skip leaves the face as it is; leave out {min(asked)!r}, or skip")
    if not asked and "skip" not in values:
        raise RecipeError(f"{where}: changes nothing; give keys of [merge], such as color, or skip = true")
    return Shot(
        frames,
        frozenset(given.track) if "track" in values else None,
        given.skip if "skip" in values else None,
        tuple(sorted(asked.items())),
    )


def tell_idle(path: Path, shots: Shots, found: FoundFaces) -> None:
    """Say which sections of the plan `path` meet no face."""
    for number, shot in enumerate(shots, 1):
        there = {face.track for index in found if index in shot.frames for face in found[index]}
        if not any(shot.tracks is None or track in shot.tracks for track in there):
            names = ", ".join(str(track) for track in sorted(track for track in there if track is not None))
            console.warn(f"{path}: shot {number} meets no face; tracks in its frames: {names or 'none'}")


def span(text: str) -> range:
    """The frames "120-240", both included, "120-", "-240" or "120"; `UsageError`: anything else."""
    match = SPAN.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r}: {FORM}")
    first, dash, last = match.groups()
    start = int(first or 0)
    stop = int(last) + 1 if last else WHOLE.stop if dash else start + 1
    if stop <= start:
        raise UsageError(f"{text!r}: ends before it begins; {FORM}")
    return range(start, stop)


def part_of(footage: Path, text: str) -> range:
    """The frames of a video or a folder that `text` means: those of `span`, or of a time, `0:04-0:10`.

    A time is that of a player: [hours:]minutes:seconds. `UsageError`: another form, or nothing lies there.
    """
    ends = [part.strip() for part in text.split("-")]
    clocks = [CLOCK.fullmatch(part) for part in ends]
    images = footage.is_dir() or is_image(footage)
    if images:
        times: Sequence[Fraction] = [Fraction(index) for index in range(len(image_files(footage)))]
    else:
        times = frame_times(footage)
    if any(clocks):
        if images:
            raise UsageError(f"--range {text}: images have no times; {FORM}")
        if len(ends) != 2 or not all(clock or not end for clock, end in zip(clocks, ends, strict=True)):
            raise UsageError(f"--range {text}: expected frames such as 120-240, or times such as 0:04-0:10")
        zero = start_of(footage)
        first, last = (None if clock is None else bisect_left(times, _seconds(clock) + zero) for clock in clocks)
        asked = range(first or 0, len(times) if last is None else last)
    else:
        try:
            asked = span(text)
        except UsageError as error:
            raise UsageError(f"--range {error}, or times such as 0:04-0:10") from None
    part = range(len(times))[asked.start : asked.stop]
    if not part:
        end = "" if images else f", {_clock(times[-1] - start_of(footage))}"
        raise UsageError(f"--range {text}: no frame lies there; {footage.name} has 0 to {len(times) - 1}{end}")
    return part


def _seconds(clock: re.Match[str]) -> Fraction:
    hours, minutes, seconds = clock.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + Fraction(seconds)


def _clock(seconds: Fraction) -> str:
    minutes, rest = divmod(float(seconds), 60)
    return f"0:00 to {int(minutes)}:{rest:05.2f}"
