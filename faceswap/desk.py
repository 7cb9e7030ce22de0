"""What the studio's page shows and does, without the page: facesets, runs, merges of one frame, jobs.

All of it lies in one folder. A path that comes from the page is seen from that folder, and refused if it, or a link on
its way, leads out. Convention: a method's result is plain values for JSON, or a `Picture`.
"""

import base64
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import annotated_types
import click
import cv2
import numpy as np
import torch

from faceswap import align, blend, checkpoint, color, curate, jobs, masks, monitor, pack, steering
from faceswap.config import MergeRecipe, Recipe
from faceswap.errors import CheckpointError, FaceswapError, UsageError
from faceswap.faceset import SUFFIXES, Faceset, is_mask, own_mask, read_image, read_meta
from faceswap.found import FoundFaces
from faceswap.interrupts import STATUS
from faceswap.looks import Faces
from faceswap.provenance import packet, tags
from faceswap.stills import png
from faceswap.swap import Swapper, recalling
from faceswap.variants import Sample
from faceswap.video import Frame, frame_count, image_files, time_stamps

DEEP = 4  # folders inside folders that are looked into
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
KNOWN = 6  # results of a kind that are kept
POINTS = 500  # of a curve
LOG = 64_000  # bytes of a job's output that are shown
PATIENCE = 30.0  # seconds that a job has to stop in, when the studio ends
NAMES: dict[str, Sequence[str]] = {"color": tuple(color.TABLE), "blend": tuple(blend.TABLE), "mask": tuple(masks.TABLE)}
STEPS = {  # settings that are numbers, and the steps of their sliders
    **{"erode": 0.01, "feather": 0.005, "scale": 0.01, "match_sharpness": 0.05, "motion_blur": 0.05},
    **{"grain": 0.05, "sharpen": 0.05, "steady": 1},
}
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """The content of an image file."""

    content: bytes
    kind: str  # its media type


class Kept:
    """The newest results, one of each thing, with a stamp that tells its states apart; made once, however many ask."""

    def __init__(self, most: int = KNOWN) -> None:
        self._most, self._lock = most, threading.Lock()
        self._known, self._making = OrderedDict[Any, tuple[Any, Any]](), dict[Any, threading.Lock]()

    def once(self, key: Any, stamp: Any, make: Callable[[], T]) -> T:
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                known = self._known.get(key)
            if known is not None and known[0] == stamp:
                found: T = known[1]
            else:
                found = make()
            self.keep(key, stamp, found)
            return found

    def keep(self, key: Any, stamp: Any, value: Any) -> None:
        with self._lock:
            self._known[key] = stamp, value
            self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def get(self, key: Any, stamp: Any) -> Any:
        """The result, None if there is none of that state."""
        with self._lock:
            known = self._known.get(key, (None, None))
            return known[1] if known[0] == stamp else None


class Work:
    """A job that was started: a process of its own, what it printed, and how it ended."""

    def __init__(self, job: Path) -> None:
        self.status: int | None = None  # of the process, None while it goes on
        self._reading = threading.Lock()  # what is written goes to the log's end, wherever we read
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115
        self._runner = jobs.Runner(self._log.fileno(), self._log.fileno())
        self._thread = threading.Thread(target=self._work, args=(job,), daemon=True)  # the process ends if it does
        self._thread.start()

    def _work(self, job: Path) -> None:
        status = 1
        try:
            status = self._runner(("run", job.name), job.parent, ())
        finally:
            self.status = status

    def stop(self) -> None:
        if not self._runner.asked:  # twice would be at once, and what was not saved would be lost
            self._runner.stop()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def log(self) -> str:
        with self._reading:
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LOG))
            return self._log.read().decode(errors="replace")

    def close(self) -> None:
        """Forget what it printed."""
        self._log.close()


class Desk:
    """The work on one folder. Methods may be called from several threads."""

    def __init__(self, root: Path, recipe: Recipe, device: torch.device, commands: click.Group) -> None:
        """`UsageError` if `root` is no folder."""
        if not root.is_dir():
            raise UsageError(f"{root}: no such folder; expected one with facesets, runs, footage or jobs")
        self.root, self.recipe, self.device, self.commands = root.resolve(), recipe, device, commands
        self._facesets, self._orders, self._found, self._runs = Kept(), Kept(2), Kept(), Kept()
        self._stamps, self._sound, self._swappers, self._samples = Kept(), Kept(), Kept(2), Kept(1)
        self._drawing, self._changing = threading.Lock(), threading.Lock()
        self._closed = False
        self._works: dict[Path, Work] = {}

    def inside(self, *given: str) -> Path:
        """The real path of something in the folder; `UsageError` if it leads out of it or is not there."""
        name = "/".join(given)
        try:
            path = self.root.joinpath(*given).resolve()
            there = path.exists()
        except (ValueError, OSError, RuntimeError):  # a zero byte, too long a name, a circle of links
            raise UsageError(f"{name!r}: no path; expected one inside the studio's folder") from None
        if not self._holds(path):
            raise UsageError(f"{name}: leads out of the studio's folder; start faceswap studio on a folder above both")
        if not there:
            raise UsageError(f"{name}: is not there any more; look again")
        return path

    def _holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root)

    def _keeps(self, path: Path) -> bool:
        """`_holds` of what lies in a folder that does, and whether its name is text, as a page wants it."""
        return _is_text(path.name) and (not path.is_symlink() or self._holds(path))

    def _named(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    # ------------------------------------------------------------ what there is

    def here(self) -> dict[str, Any]:
        """Everything in the folder that the page can show, by kind."""
        found: dict[str, Any] = {"root": str(self.root), "device": str(self.device)}
        found |= {kind: [] for kind in ("facesets", "runs", "footage", "models", "jobs")}
        for folder, folders, names in self._folders():
            self._sort_in(folder, folders, names, found)
        return found

    def _folders(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        """Folders with the names in them, links not followed; a run is not looked into."""
        for place, folders, names in os.walk(self.root):
            folder = Path(place)
            yield folder, folders, names
            if len(folder.relative_to(self.root).parts) >= DEEP or _is_run(names):
                folders.clear()
            folders[:] = sorted(
                name for name in folders if name[0] != "." and name != curate.REMOVED and _is_text(name)
            )

    def _sort_in(self, folder: Path, folders: list[str], names: list[str], found: dict[str, Any]) -> None:
        paths = [folder / name for name in sorted(names) if name[0] != "."]
        paths = [path for path in paths if path.is_file() and self._keeps(path)]
        if _is_run(names):
            running = monitor.is_written(folder)
            found["runs"].append({"path": self._named(folder), "running": running})
            if checkpoint.find(folder).is_file():
                found["models"].append(self._named(folder))
            return
        images = [path for path in paths if path.suffix.lower() in SUFFIXES and not is_mask(path)]
        faces = next((meta for path in images[:3] if (meta := _meta(path)) is not None), None)
        if faces:
            entry = {"path": self._named(folder), "faces": len(images), "of": faces.source, "fixed": False}
            found["facesets"].append(entry)
        elif len(images) > 1 and folder != self.root:
            found["footage"].append(self._named(folder))
        for path in paths:
            suffix, name = path.suffix.lower(), self._named(path)
            if suffix in VIDEOS:
                found["footage"].append(name)
            elif suffix == pack.SUFFIX:
                found["facesets"].append({"path": name, "faces": None, "of": "", "fixed": True})
            elif suffix == ".safetensors":
                found["models"].append(name)
            elif suffix == ".toml" and "[[step]]" in _text(path):
                work = self._works.get(path.resolve())
                found["jobs"].append({"path": name, "running": work is not None and work.status is None})

    # ------------------------------------------------------------ facesets

    def _faces(self, faceset: str) -> Faces:
        """The faces of a set that are really in the folder; measured once while nothing is added or moved."""
        path = self.inside(faceset)

        def make() -> Faces:
            held = Faceset.open(path)
            if path.is_dir():
                held.entries = [entry for entry in held.entries if self._keeps(entry.path)]
            return Faces(held)

        return self._facesets.once(path, _stamp(path), make)

    def faces(self, faceset: str, by: str = "time", first: int = 0, count: int = 200) -> dict[str, Any]:
        """Some faces of a set in an order of `curate.SORTS`, and how many there are."""
        if by not in curate.SORTS:
            raise UsageError(f"by = {by!r}: no such order; expected one of {', '.join(curate.SORTS)}")
        faces = self._faces(faceset)
        order = self._orders.once(
            (faceset, by), faces, lambda: np.argsort(curate.SORTS[by].numbers(faces), kind="stable").tolist()
        )
        shown = []
        for row in order[max(0, first) : max(0, first) + count]:
            meta, place = faces.entries[row].meta, faces.places[row]
            about = {"source": meta.source, "frame": meta.frame, "track": meta.track, "size": round(place.size)}
            shown.append({"name": faces.entries[row].path.name, **about})
        path = self.inside(faceset)
        out = len(curate.taken_out(path)) if path.is_dir() else 0
        known = {"faces": shown, "all": len(faces), "out": out, "fixed": not path.is_dir()}
        return {**known, "means": curate.SORTS[by].means, "orders": list(curate.SORTS)}

    def thrown(self, faceset: str, first: int = 0, count: int = 200) -> dict[str, Any]:
        """Some of the faces that were taken out of a set, by hand or by a filter, as `bring_back` takes them."""
        removed = self.inside(faceset) / curate.REMOVED
        paths = [path for path in curate.taken_out(removed.parent) if _is_text(path.name) and self._holds(path)]
        shown = [
            {"name": path.relative_to(removed).as_posix()} for path in paths[max(0, first) : max(0, first) + count]
        ]
        return {"faces": shown, "all": len(paths)}

    def face(self, faceset: str, name: str, side: int = 0) -> Picture:
        """A face as JPEG, at most `side` px wide; 0: as it is."""
        path = self.inside(faceset)
        place = path / Path(name).name if pack.is_pack(path) else self.inside(faceset, name)
        image = align.as_uint8(read_image(place))
        if 0 < side < len(image):
            image = align.resize(image, side)
        coded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        return Picture(coded.tobytes(), "image/jpeg")

    def throw_out(self, faceset: str, names: list[str]) -> dict[str, Any]:
        """Move faces to `removed/hand`; gives what `bring_back` takes."""
        with self._changing:
            path = self._writable(faceset, names)
            before = _stamp(path)
            moved = curate.throw_out(path, names)
            known = self._facesets.get(path, before)
            if known is not None:  # what was measured of the others holds
                gone = set(names)
                kept = np.array([entry.path.name not in gone for entry in known.entries])
                self._facesets.keep(path, _stamp(path), known.only(kept))
        return {"names": moved}

    def bring_back(self, faceset: str, names: list[str]) -> dict[str, Any]:
        with self._changing:
            path = self._writable(faceset, [f"{curate.REMOVED}/{name}" for name in names])
            return {"names": curate.bring_back(path, names)}

    def _writable(self, faceset: str, names: Sequence[str]) -> Path:
        """A set in which faces, and where they go and come from, are really in the folder, with their masks."""
        path = self.inside(faceset)
        own = [mask for name in names if (mask := own_mask(self.inside(faceset, name))) is not None]
        for place in (path / curate.REMOVED, path / curate.REMOVED / curate.HAND, *own):
            if not self._holds(place):
                raise UsageError(f"{self._named(place)}: a link out of the studio's folder; nothing was moved")
        return path

    # ------------------------------------------------------------ runs

    def run(self, run: str) -> dict[str, Any]:
        """How a training stands, its curves by the name in metrics.jsonl as (images, value), and its previews."""
        folder = self.inside(run)
        for name in (monitor.METRICS, "previews"):
            if not self._holds(folder / name):
                raise UsageError(f"{run}/{name}: a link out of the studio's folder")
        status: steering.Status | None = None
        metrics = folder / monitor.METRICS
        stamp = _stamp(metrics) if metrics.is_file() else None
        lines = self._runs.once(folder, stamp, lambda: monitor.read(folder))
        with suppress(CheckpointError):  # it has begun, and not yet saved
            status = steering.status(folder, lines)
        curves: dict[str, list[tuple[int, float]]] = {}
        for line in lines:
            for name, value in line.items():
                if name.startswith("held_out/") or name == "train/loss":
                    curves.setdefault(name, []).append((line["images"], value))
        previews = sorted(path.name for path in (folder / "previews").glob("[0-9]*.png"))
        known = {"status": status, "running": monitor.is_written(folder), "previews": previews}
        return {**known, "curves": {name: _thinned(points) for name, points in curves.items()}}

    def preview(self, run: str, name: str) -> Picture:
        path = self.inside(run, "previews", name)
        if path.suffix != ".png":
            raise UsageError(f"{name}: expected a preview, NUMBER.png")
        return Picture(path.read_bytes(), "image/png")

    # ------------------------------------------------------------ one frame, merged

    def settings(self) -> list[dict[str, Any]]:
        """What can be tried: key, value of the recipe, and the names or the range that it may have."""
        found: list[dict[str, Any]] = []
        for key, names in NAMES.items():
            found.append({"key": key, "value": getattr(self.recipe.merge, key), "names": names})
        for key, step in STEPS.items():
            limits = MergeRecipe.model_fields[key].metadata
            least = next(limit.ge for limit in limits if isinstance(limit, annotated_types.Ge))
            most = next(limit.le for limit in limits if isinstance(limit, annotated_types.Le))
            value = getattr(self.recipe.merge, key)
            found.append({"key": key, "value": value, "least": least, "most": most, "step": step})
        return found

    def _recalled(self, footage: str, faceset: str) -> FoundFaces:
        video, faces = self._footage(footage), self.inside(faceset)
        return self._found.once((video, faces), (_stamp(video), _stamp(faces)), lambda: recalling(faces, video))

    def _footage(self, footage: str) -> Path:
        path = self.inside(footage)
        if path.is_dir() and not self._sound.once(path, _stamp(path), lambda: all(map(self._holds, image_files(path)))):
            raise UsageError(
                f"{footage}: has links out of the studio's folder; start faceswap studio on one above both"
            )
        return path

    def frames(self, footage: str, faceset: str) -> dict[str, Any]:
        """How many frames footage has, and those in which the faceset knows a face."""
        return {"all": frame_count(self._footage(footage)), "faces": sorted(self._recalled(footage, faceset))}

    def compare(
        self,
        footage: str,
        model: str,
        faceset: str,
        frame: int,
        settings: dict[str, str | int | float],
        view: Literal["face", "frame"] = "face",
    ) -> dict[str, Any]:
        """A frame as it was and as it is merged with settings that differ from the recipe, as addresses of PNGs."""
        unknown = settings.keys() - NAMES.keys() - STEPS.keys()
        if unknown:
            raise UsageError(f"merge.{min(unknown)}: cannot be tried here; expected {', '.join([*NAMES, *STEPS])}")
        video, found = self._footage(footage), self._recalled(footage, faceset)
        weights = self._weights(model)
        recipe = MergeRecipe.model_validate({**self.recipe.merge.model_dump(), **settings})
        asked = (_stamp(video), _stamp(self.inside(faceset)), _stamp(weights), frame)
        recipe_, device = self.recipe.merge, self.device
        with self._drawing:
            swapper = self._swappers.once(weights, _stamp(weights), lambda: Swapper(weights, recipe_, device))
            sample = self._samples.once(None, asked, lambda: Sample(video, frame, swapper, found, self._shown))
            merged = sample.merged(tuple((key, getattr(recipe, key)) for key in sorted(settings)))
        x0, y0, x1, y1 = sample.where if view == "face" else (0, 0, *reversed(sample.plate.shape))
        said = tags(swapper.name)

        def shown(frame: Frame, note: Callable[[bytes], bytes]) -> str:
            content = png(np.ascontiguousarray(align.as_uint8(frame.part(x0, y0, x1, y1))), note)
            return "data:image/png;base64," + base64.b64encode(content).decode()

        original, swapped = shown(sample.plate, lambda _: b""), shown(merged, lambda _: packet(said, "preview"))
        return {"original": original, "swap": swapped, "width": x1 - x0, "height": y1 - y0, "model": swapper.name}

    def _shown(self, video: Path) -> Sequence[int] | None:
        return self._stamps.once(video, _stamp(video), lambda: time_stamps(video))

    def _weights(self, model: str) -> Path:
        """The file to draw with, which in a run that goes on is another one later."""
        weights = checkpoint.find(self.inside(model))
        if not self._holds(weights):
            raise UsageError(f"{model}: its weights are a link out of the studio's folder")
        if not weights.is_file():
            raise CheckpointError(f"{model}: expected a run with a saved state, found none; wait for its first save")
        return weights

    # ------------------------------------------------------------ jobs

    def job(self, job: str) -> dict[str, Any]:
        """The steps of a job, what became of each, whether we are doing it, and what it printed."""
        path = self.inside(job)
        (report,) = jobs.run(path, self.commands, dry_run=True)
        work = self._works.get(path)
        running = work is not None and work.status is None
        steps = [dict(vars(step)) for step in report.steps]
        waiting = next((step for step in steps if step["state"] == "to do"), None)
        if waiting and work is not None and work.status != 0:
            waiting["state"] = "running" if running else "interrupted" if work.status == STATUS else "failed"
        ended = None if work is None else work.status
        return {"steps": steps, "running": running, "status": ended, "log": work.log() if work else ""}

    def start(self, job: str) -> dict[str, Any]:
        """Do a job, or go on with it, in a process of its own. `FaceswapError` if it cannot be begun."""
        path = self.inside(job)
        with self._changing:
            work = self._works.get(path)
            if self._closed or (work is not None and work.status is None):
                raise UsageError(f"{job}: {'the studio is closing' if self._closed else 'is being done already'}")
            jobs.run(path, self.commands, dry_run=True)
            self._works[path] = Work(path)
            if work is not None:
                work.close()
        return {}

    def stop(self, job: str) -> dict[str, Any]:
        """Ask a job to stop, as Ctrl-C does; started again it goes on from there."""
        work = self._works.get(self.inside(job))
        if work is None or work.status is not None:
            raise UsageError(f"{job}: was not started here, or has ended")
        work.stop()
        return {}

    def close(self) -> list[str]:
        """Ask all jobs to stop and wait for them; their names."""
        with self._changing:
            self._closed = True
        going = {path: work for path, work in self._works.items() if work.status is None}
        for work in going.values():
            work.stop()
        late = [self._named(path) for path, work in going.items() if not work.wait(PATIENCE)]
        if late:
            raise FaceswapError(f"{late[0]}: has not stopped after {PATIENCE:g} s; it ends with the studio")
        for work in self._works.values():
            work.close()
        return [self._named(path) for path in going]


def _is_run(names: Sequence[str]) -> bool:
    return "recipe.toml" in names and any(name == monitor.METRICS or name.startswith("state-") for name in names)


def _stamp(path: Path) -> tuple[Path, int, int]:
    """What changes with a file, or with what lies in a folder."""
    facts = path.stat()
    return path, facts.st_mtime_ns, facts.st_size


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _meta(path: Path) -> Any:
    try:
        return read_meta(path)
    except (FaceswapError, OSError):
        return None


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `POINTS` of a curve, the last among them."""
    rows = np.unique(np.linspace(0, len(points) - 1, POINTS).round().astype(int))
    return [points[row] for row in rows] if len(points) > POINTS else points
