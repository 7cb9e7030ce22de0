"""Two videos in, one out: extract both, fine-tune, merge, in a work folder that a second run goes on from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faceswap import (
    checkpoint,
    console,
    detail,
    devices,
    extract,
    files,
    pretrained,
    segments,
    steering,
    swap,
    train,
)
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, UsageError
from faceswap.provenance import Marker
from faceswap.video import check_name, probe
from faceswap.who import LARGEST, Finder, Who

DEFAULT_MINUTES = 20.0
NOTE = "work.json"  # in a work folder: what it was made from


@dataclass(frozen=True)
class Report:
    """What a whole swap did; `merge` is None when training was interrupted."""

    work: Path
    extraction: dict[str, extract.Report]  # source and target, as far as they were extracted this time
    training: train.Report
    merge: swap.Report | None


def swap_pair(
    source: Path,  # footage of the person whose face is put in
    target: Path,  # footage that receives it
    out: Path,
    recipe: Recipe,
    *,
    device: str = "auto",
    work: Path | None = None,  # default: beside `out`
    overwrite: bool = False,  # of `out`; the work folder is always gone on from
    who: Mapping[str, Who] | None = None,  # whose faces of "source" and "target"; default: who fills most of each
    marks: Marker | None = None,  # default: `provenance.marker(out)`
    workers: int = 1,  # processes that merge side by side
    consent: str | None = None,  # see `train.train`
) -> Report:
    """Swap one person of `source` onto one person of `target`."""
    check_name(out, recipe.merge.codec)
    files.refuse_same(out, [source, target])
    segments.refuse_existing(out, overwrite)
    work = work or out.with_suffix(".faceswap")
    if devices.torchrun():
        raise UsageError("swap under torchrun: every process would extract; use faceswap extract, then finetune")
    if not steering.has_budget(recipe):
        console.say(f"training for {DEFAULT_MINUTES:g} minutes; --minutes or --images changes that")
        recipe = recipe.changed(train={"minutes": DEFAULT_MINUTES})
    recipe, place = prepared(recipe), devices.resolve(device)
    whose = {"source": LARGEST, "target": LARGEST} | dict(who or {})
    for name in whose:
        if whose[name].references and not (work / name).exists():
            Finder(recipe.extract, str(place), whose[name])  # a wrong reference is said before the work begins
    _claim(work, {"source": source, "target": target}, recipe, whose)
    facesets, extraction = {"source": work / "source", "target": work / "target"}, {}
    for (name, faceset), path in zip(facesets.items(), (source, target), strict=True):
        if faceset.exists():
            console.say(f"{faceset}: extracted already")
            continue
        # Every frame of the target is needed later: merging reuses what was found.
        how = recipe.extract if name == "source" else recipe.extract.model_copy(update={"every": 1})
        extraction[name] = extract.extract([path], faceset, how, who=whose[name], device=str(place))
    people, run = {name: [faceset] for name, faceset in facesets.items()}, work / "run"
    training = train.train(recipe, people, run, device=str(place), base=_base(recipe, run), consent=consent)
    if training.reason == "interrupted":
        return Report(work, extraction, training, None)
    swapper = swap.Swapper(run, recipe.merge, place)
    found = swap.recalling(facesets["target"], target)
    merged = swap.swap_video(target, out, swapper, found, overwrite=overwrite, marks=marks, workers=workers)
    return Report(work, extraction, training, merged)


def prepared(recipe: Recipe) -> Recipe:
    """The recipe as it is used for a pair; `UsageError` now for what could only fail later."""
    train.check_recipe(recipe.resolved(), people=2)
    swap.check(recipe.merge)
    if recipe.merge.restore:
        detail.Restorer(Path(recipe.merge.restore))
    return recipe


def footage(work: Path) -> dict[str, Path]:
    """The videos that a work folder was made from: source and target; `UsageError` if it is none."""
    note = work / NOTE
    try:
        known = json.loads(note.read_text())
        videos = {name: (Path(known[name]["file"]), int(known[name]["bytes"])) for name in ("source", "target")}
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(f"{work}: expected a work folder of faceswap swap, found no {NOTE} that is one") from None
    for name, (path, size) in videos.items():
        if not path.is_file() or path.stat().st_size != size:
            raise UsageError(f"{path}: is gone or another video than the {name} that {work} was made from")
    return {name: path for name, (path, _) in videos.items()}


def _base(recipe: Recipe, run: Path) -> Path | None:
    if checkpoint.states(run) or recipe.strategy.name == "scratch":
        return None
    base = pretrained.find_base(recipe)
    if base is None:
        console.say(f"no base for {recipe.model.name} at {recipe.model.resolution} px in pretrained/: from scratch")
    return base


def _claim(work: Path, videos: dict[str, Path], recipe: Recipe, whose: Mapping[str, Who]) -> None:
    """Make the work folder, or check that it was made from the same videos with the same extraction."""
    how = recipe.extract.model_dump(exclude={"batch"})
    made_from: dict[str, Any] = {}
    for name, path in videos.items():
        probe(path)
        facts = path.stat()
        made_from[name] = {"file": str(path.resolve()), "bytes": facts.st_size, "modified": facts.st_mtime}
        made_from[f"extraction of the {name}"] = how | {"who": whose[name].to_json()}
    note = work / NOTE
    if note.exists():
        try:
            known = dict(json.loads(note.read_text()))
        except (ValueError, TypeError):
            raise CheckpointError(f"{note}: damaged; choose another --work or delete the folder {work}") from None
        # What was not extracted yet may still be asked for otherwise.
        kept = [key for key in made_from for name in videos if name in key and (work / name).exists()]
        changed = [name for name in kept if known.get(name) != made_from[name]]
        if changed:
            what = " and another ".join(changed)
            raise UsageError(f"{work}: made from another {what}; choose another --work, or delete that folder")
    elif work.exists() and any(path.name[0] != "." for path in work.iterdir()):
        raise UsageError(f"{work}: expected a work folder of faceswap swap, found other files; choose another --work")
    with files.whole_file(note, overwrite=True) as partial:
        partial.write_text(json.dumps(made_from, indent=1))
