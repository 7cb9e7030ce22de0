"""What the commands do, as functions: `import faceswap` gives all of these names. docs/PYTHON.md shows them at work.

Functions are called verb_noun where a bare verb would be the name of a module: `faceswap.extract` and
`faceswap.evaluate` are modules, and which of the two an import gave would depend on what was imported before.

Convention: a path is a `str` or a `Path`; `device` is what `--device` takes; without a recipe the defaults hold,
as without `--config`. Errors are `FaceswapError`s, which say what was expected, what was found and what to do. Nothing
is said on the terminal unless `faceswap.console.configure` is called; `on_progress` tells how far the work is.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from faceswap import (
    config,
    devices,
    evaluate,
    extract,
    files,
    pair,
    pretrained,
    provenance,
    segments,
    swap,
    train,
    video,
)
from faceswap.config import Recipe as Recipe
from faceswap.console import Progress as Progress
from faceswap.console import on_progress as on_progress
from faceswap.detectors import Face as Face
from faceswap.errors import FaceswapError as FaceswapError
from faceswap.errors import UsageError
from faceswap.faceset import Faceset as Faceset
from faceswap.found import FoundFaces
from faceswap.video import Frame as Frame
from faceswap.who import Who as Who

FilePath = str | os.PathLike[str]
FilePaths = FilePath | Sequence[FilePath]  # one, or several


def load_recipe(name: FilePath | None = None, settings: Sequence[str] = (), *, seed: int | None = None) -> Recipe:
    """The recipe of a TOML file, or one that ships (`"swap_128"`), or the defaults.

    settings: like `--set`, `"train.minutes=20"` and so on. `recipe.changed(train={"minutes": 20})` does the same later.
    """
    return config.load(None if name is None else Path(name), settings, seed)


def read_frames(path: FilePath, *, every: int = 1) -> Iterator[Frame]:
    """The frames of a video, of a folder of images or of one image: those whose number is a multiple of `every`.

    `Frame.image` is (H, W, 3) RGB, uint8.
    """
    return video.read_frames(Path(path), every=every)


def find_faces(
    video: FilePath,
    recipe: Recipe | None = None,
    *,
    who: Who | None = None,  # whose; default: as the recipe says
    device: str = "auto",
) -> dict[int, list[Face]]:
    """The faces of a video by the number of the frame, followed over time; frames without a face are not in it."""
    found = swap.detecting(Path(video), (recipe or Recipe()).extract, str(devices.resolve(device)), who)
    return dict(found)


def extract_faces(
    inputs: FilePaths,  # videos, folders of images, single images
    out: FilePath,
    recipe: Recipe | None = None,
    *,
    who: Who | None = None,  # whose; default: as the recipe says
    device: str = "auto",
    overwrite: bool = False,  # replaces a faceset, and nothing but a faceset
) -> extract.Report:
    """Extract faces into the new faceset `out`, like `faceswap extract`."""
    how, place = (recipe or Recipe()).extract, str(devices.resolve(device))
    return extract.extract(_paths(inputs), Path(out), how, who=who, device=place, overwrite=overwrite)


def pretrain(
    faces: FilePaths,  # facesets of many people
    run: FilePath,
    recipe: Recipe | None = None,  # default: pretrain_96, which has no budget: say train.minutes or train.images
    *,
    device: str = "auto",
    overwrite: bool = False,  # throw away what is in `run`, else go on with it
    consent: str | None = None,  # a note that weight files keep
) -> train.Report:
    """Train a base, like `faceswap pretrain`; Ctrl-C ends it with the reason "interrupted"."""
    people = {"anyone": _paths(faces)}
    how = recipe or load_recipe("pretrain_96")
    return train.train(how, people, Path(run), device=device, overwrite=overwrite, consent=consent)


def finetune(
    source: FilePaths,  # facesets of the person who is put in
    target: FilePaths | None,  # of the person who is replaced; None: the source is learnt alone, from a base
    run: FilePath,
    recipe: Recipe | None = None,  # the defaults have no budget: say train.minutes or train.images
    *,
    base: FilePath | None = None,  # a name such as base_96, a run or a file; default: from nothing
    generic: FilePaths = (),  # facesets of anyone, for the strategy prior
    device: str = "auto",
    overwrite: bool = False,  # throw away what is in `run`, else go on with it
    consent: str | None = None,  # a note that weight files keep
) -> train.Report:
    """Train on two people, like `faceswap finetune`; Ctrl-C ends it with the reason "interrupted".

    What became of the base is not measured here: `evaluate_run` does it.
    """
    people = {"source": _paths(source)} | ({} if target is None else {"target": _paths(target)})
    start = None if base is None else pretrained.base(Path(base), run=None if overwrite else Path(run))
    return train.train(
        recipe or Recipe(),
        people,
        Path(run),
        device=device,
        base=start,
        generic=_paths(generic),
        overwrite=overwrite,
        consent=consent,
    )


class Swapper(swap.Swapper):
    """Draws the source where the target's faces were found: load it once, use it for any number of videos.

    Called with pairs of a `Frame` and its faces, in order, it gives each frame with the number of faces replaced.
    """

    def __init__(
        self,
        weights: FilePaths,  # a run or a weight file; several: `Face.model` says which of them draws a face
        recipe: Recipe | None = None,  # its [merge], and its [extract] where faces are looked for
        *,
        device: str = "auto",
        base: FilePath | None = None,  # where the base lies, if it is needed and not where it was
        strength: float = 1.0,  # of what was trained, beside the base
    ) -> None:
        recipe = recipe or Recipe()
        self.extract, start = recipe.extract, None if base is None else pretrained.base(Path(base))
        place = devices.resolve(device)
        super().__init__(_paths(weights), recipe.merge, place, base=start, strength=strength)


def swap_video(
    video: FilePath,
    out: FilePath,
    swapper: Swapper,
    *,
    faces: FilePath | None = None,  # a faceset of this video: its faces and no others; default: look for them
    who: Who | None = None,  # whose faces, where they are looked for; default: as the recipe says
    overwrite: bool = False,
    workers: int = 1,  # processes side by side; above 1 a script needs if __name__ == "__main__"
    mark: bool = True,  # False leaves out what says that the video was swapped: for research, you have to say so
) -> swap.Report:
    """Put the source's face into a video, like `faceswap merge`; the same call goes on after an interruption."""
    path, made = Path(video), Path(out)
    if faces is not None and who is not None:
        raise UsageError("faces says already whose faces are swapped; leave out who")
    _check_output(made, path, swapper.recipe.codec, overwrite)
    marks = provenance.marker(made, on=mark)
    if faces is not None:
        found: FoundFaces = swap.recalling(Path(faces), path)
    else:
        every_frame = swapper.extract.model_copy(update={"every": 1})
        found = swap.detecting(path, every_frame, str(swapper.device), who, made)
    return swap.swap_video(path, made, swapper, found, overwrite=overwrite, marks=marks, workers=workers)


def swap_pair(
    source: FilePath,  # footage of the person whose face is put in
    target: FilePath,  # footage that receives it
    out: FilePath,
    recipe: Recipe | None = None,
    *,
    who: Mapping[str, Who] | None = None,  # whose faces of "source" and "target"; default: who fills most of each
    work: FilePath | None = None,  # folder; default: beside `out`
    device: str = "auto",
    overwrite: bool = False,  # of `out`; the work folder is always gone on from
    workers: int = 1,
    mark: bool = True,  # see `swap_video`
    consent: str | None = None,  # a note that weight files keep
) -> pair.Report:
    """All of it, like `faceswap swap`; `merge` of the report is None if training was interrupted."""
    return pair.swap_pair(
        Path(source),
        Path(target),
        Path(out),
        recipe or Recipe(),
        device=device,
        work=None if work is None else Path(work),
        overwrite=overwrite,
        who=who,
        marks=provenance.marker(Path(out), on=mark),
        workers=workers,
        consent=consent,
    )


def evaluate_run(
    run: FilePath,  # or a weight file
    recipe: Recipe | None = None,  # default: the run's own
    *,
    faces: FilePath | None = None,  # a faceset to measure on; default: those held out of the training
    base: FilePath | None = None,  # where the base lies, if it is not where it was
    strength: float = 1.0,  # of what was trained, beside the base
    out: FilePath | None = None,  # the page; default: evaluation.html in the run
    device: str = "auto",
    overwrite: bool = False,  # of the page, where it is not in a run
) -> evaluate.Report:
    """Measure a model, like `faceswap evaluate`: `tables` has the figures by title, row and measure."""
    return evaluate.evaluate(
        Path(run),
        recipe or Recipe(),
        device=device,
        faces=None if faces is None else Path(faces),
        base=None if base is None else pretrained.base(Path(base)),
        strength=strength,
        out=None if out is None else Path(out),
        overwrite=overwrite,
    )


def _check_output(out: Path, footage: Path, codec: str, overwrite: bool) -> None:
    """What would fail at the end fails at once."""
    video.check_name(out, codec)
    files.refuse_same(out, [footage])
    segments.refuse_existing(out, overwrite)
    video.probe(footage)


def _paths(given: FilePaths) -> list[Path]:
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(path) for path in given]
