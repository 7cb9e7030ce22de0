"""The Python API: its names and parameters are a promise; it loads when first used, is typed, and can be stopped."""

import inspect
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

import faceswap
from faceswap import checkpoint, console
from faceswap.config import Recipe
from faceswap.errors import FacesetError, OutputExistsError, RecipeError, UsageError

ROOT = Path(__file__).parents[1]
PROMISED = {
    "evaluate_run": "run recipe *faces *base *strength *out *device *overwrite",
    "extract_faces": "inputs out recipe *who *device *overwrite",
    "find_faces": "video recipe *who *device",
    "finetune": "source target run recipe *base *generic *device *overwrite *consent",
    "load_recipe": "name settings *seed",
    "on_progress": "listener",
    "pretrain": "faces run recipe *device *overwrite *consent",
    "read_frames": "path *every",
    "swap_pair": "source target out recipe *who *work *device *overwrite *workers *mark *consent",
    "swap_video": "video out swapper *faces *who *overwrite *workers *mark",
    "Swapper": "weights recipe *device *base *strength",
    "Faceset": "folder entries skipped",
    "Face": "box points probability landmarks fit track place mask model",
    "Frame": "index time source image *native",
    "Progress": "label done total unit rate note",
    "Who": "references tracks largest",
}
RECIPE = [
    *("model.resolution=32", "model.width=4", "model.code=16", "data.batch=4", "data.degrade=0", "extract.size=64"),
    *("extract.min_size=40", "train.images=40", "train.preview_images=1000", "train.save_minutes=1000"),
]


class Enough(Exception):  # noqa: N818
    """What a listener raises in these tests."""


@pytest.fixture
def recipe() -> Recipe:
    return faceswap.load_recipe(settings=RECIPE)


@pytest.fixture(scope="module")
def run(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that draws nothing worth seeing: read only."""
    path = tmp_path_factory.mktemp("api") / "run"
    how = faceswap.load_recipe(settings=RECIPE)
    report = faceswap.finetune(str(facesets["source"]), [facesets["target"]], str(path), how, device="cpu")
    assert (report.images, report.reason) == (40, "budget")
    return path


# names


def test_the_names_are_those_that_were_promised() -> None:
    assert set(faceswap.__all__) == {*PROMISED, "FaceswapError", "Recipe"}
    assert set(faceswap.__all__) <= set(dir(faceswap))
    for name in faceswap.__all__:
        assert getattr(faceswap, name).__doc__, name


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_parameters_are_called_as_promised(name: str) -> None:
    given = inspect.signature(getattr(faceswap, name)).parameters.values()
    assert " ".join("*" * (each.kind is each.KEYWORD_ONLY) + each.name for each in given) == PROMISED[name]


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {path.stem for path in (ROOT / "faceswap").iterdir()}
    assert not modules & set(faceswap.__all__), "which one an import gave would depend on what was imported before"


def test_the_import_alone_loads_next_to_nothing() -> None:
    script = (
        "import sys, faceswap; before = set(sys.modules); assert 'swap_video' in dir(faceswap); "
        "print(*sorted(m for m in before if m.startswith(('faceswap', 'torch', 'cv2', 'numpy', 'pydantic'))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["faceswap"]


def test_an_unknown_name_is_told_the_known() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'swap_videos'; it has .*swap_video"):
        faceswap.swap_videos  # type: ignore[attr-defined]  # noqa: B018


USER = """
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import faceswap

recipe = faceswap.load_recipe("swap_96", ["train.minutes=20"])
assert_type(recipe, faceswap.Recipe)
assert_type(recipe.train.minutes, float)
for frame in faceswap.read_frames("a.mp4"):
    assert_type(frame, faceswap.Frame)
    assert_type(frame.shape, tuple[int, int])
assert_type(faceswap.extract_faces(["a.mp4"], "a", recipe).faces, int)
assert_type(faceswap.Faceset.open("a").entries[0].meta.frame, int)
assert_type(faceswap.finetune("a", "b", "run", recipe).reason, str)
swapper = faceswap.Swapper("run", device="cpu")
assert_type(faceswap.swap_video("b.mp4", "out.mp4", swapper).frames_swapped, int)
assert_type(faceswap.evaluate_run("run").tables, dict[str, dict[str, dict[str, float | None]]])
assert_type(faceswap.find_faces("b.mp4"), dict[int, list[faceswap.Face]])
for drawn, count in swapper([(frame, [])]):
    assert_type(count, int)
with faceswap.on_progress(lambda progress: print(progress.done)):
    pass
faceswap.nonesuch  # type: ignore[attr-defined]
faceswap.swap_video("b.mp4", "out.mp4", "run")  # type: ignore[arg-type]
faceswap.finetune("a", "b", "run", minutes=20)  # type: ignore[call-arg]
"""


def test_a_type_checker_sees_all_of_it(tmp_path: Path) -> None:
    script = tmp_path / "user_script.py"
    script.write_text(USER)
    check = [sys.executable, "-m", "mypy", "--strict", str(script)]  # with the cache that `mypy faceswap` left
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# from footage to a video


def test_paths_may_be_text_one_or_several(clips: dict[str, Path], tmp_path: Path, recipe: Recipe) -> None:
    frames = list(faceswap.read_frames(str(clips["source"]), every=4))
    assert [frame.index for frame in frames] == [0, 4, 8, 12]
    one = faceswap.extract_faces(str(clips["source"]), str(tmp_path / "one"), recipe, device="cpu")
    both = faceswap.extract_faces(list(clips.values()), tmp_path / "both", recipe, device="cpu")
    assert len(faceswap.Faceset.open(str(tmp_path / "one"))) == one.faces == 16
    assert both.faces == 16 + 14


def test_a_video_is_swapped_by_what_is_found_or_by_a_faceset(
    clips: dict[str, Path], facesets: dict[str, Path], run: Path, tmp_path: Path, recipe: Recipe
) -> None:
    swapper = faceswap.Swapper(run, recipe, device="cpu")
    found = faceswap.swap_video(clips["target"], tmp_path / "found.mp4", swapper, mark=False)
    told = faceswap.swap_video(str(clips["target"]), str(tmp_path / "told.mp4"), swapper, faces=facesets["target"])
    assert found.frames == told.frames == 16 and found.frames_swapped == told.frames_swapped == 14
    with pytest.raises(OutputExistsError):
        faceswap.swap_video(clips["target"], tmp_path / "told.mp4", swapper)
    with pytest.raises(UsageError, match="leave out who"):
        who = faceswap.Who(largest=True)
        faceswap.swap_video(clips["target"], tmp_path / "x.mp4", swapper, faces=facesets["target"], who=who)


def test_frames_are_swapped_one_by_one_as_in_the_video(clips: dict[str, Path], run: Path, recipe: Recipe) -> None:
    found = faceswap.find_faces(clips["target"], recipe, device="cpu")
    assert sorted(found) == [i for i in range(16) if i not in (5, 6)]
    swapper = faceswap.Swapper(str(run), recipe, device="cpu")
    seen = ((frame, found.get(frame.index, [])) for frame in faceswap.read_frames(clips["target"]))
    drawn = list(swapper(seen))
    assert [count for _, count in drawn] == [int(i in found) for i in range(16)]
    before = next(faceswap.read_frames(clips["target"]))
    assert drawn[0][0].image.shape == before.image.shape and np.any(drawn[0][0].image != before.image)


def test_a_whole_swap_replaces_nothing(clips: dict[str, Path], tmp_path: Path, recipe: Recipe) -> None:
    out = tmp_path / "out.mp4"
    out.touch()
    with pytest.raises(OutputExistsError):
        faceswap.swap_pair(str(clips["source"]), clips["target"], str(out), recipe, device="cpu")


def test_a_base_needs_a_budget_and_says_so(facesets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no budget"):
        faceswap.pretrain(facesets["source"], tmp_path / "base", device="cpu")


def test_errors_are_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(faceswap.FaceswapError) as caught:
        faceswap.Faceset.open(tmp_path)
    assert isinstance(caught.value, FacesetError)


# progress


def test_each_step_is_told_until_the_end(clips: dict[str, Path], tmp_path: Path, recipe: Recipe) -> None:
    told: list[faceswap.Progress] = []
    with faceswap.on_progress(told.append):
        faceswap.extract_faces(clips["source"], tmp_path / "faces", recipe, device="cpu")
    assert [each.label for each in told[:1] + told[-1:]] == [
        "looking for faces in source.mp4",
        "cutting out faces of source.mp4",
    ]
    assert (told[-1].done, told[-1].total, told[-1].unit) == (16, 16, "frames")
    count = len(told)
    list(console.track([1], "work", 1, "pieces"))
    assert len(told) == count, "nothing is told outside the with"


def stop_at(label: str, done: float) -> AbstractContextManager[None]:
    def listener(progress: faceswap.Progress) -> None:
        if label in progress.label and progress.done >= done:
            raise Enough

    return faceswap.on_progress(listener)


def test_stopping_an_extraction_leaves_nothing(clips: dict[str, Path], tmp_path: Path, recipe: Recipe) -> None:
    for work in ("looking", "cutting out"):  # the first is told by another thread
        with pytest.raises(Enough), stop_at(work, 3):
            faceswap.extract_faces(clips["source"], tmp_path / "faces", recipe, device="cpu")
        assert not list(tmp_path.iterdir())


def test_a_stopped_training_goes_on_from_where_it_was(
    facesets: dict[str, Path], tmp_path: Path, recipe: Recipe, run: Path
) -> None:
    both = facesets["source"], facesets["target"], tmp_path / "run"
    with pytest.raises(Enough), stop_at("training", 20):
        faceswap.finetune(*both, recipe, device="cpu")
    assert (state := checkpoint.latest(tmp_path / "run")) is not None and state.progress.images == 20
    assert faceswap.finetune(*both, recipe, device="cpu").images == 40
    ours, whole = checkpoint.latest(tmp_path / "run"), checkpoint.latest(run)
    assert ours is not None and whole is not None
    assert all((tensor == whole.tensors[name]).all() for name, tensor in ours.tensors.items()), "as if never stopped"


def test_a_stopped_merge_leaves_no_video_and_goes_on(
    clips: dict[str, Path], run: Path, tmp_path: Path, recipe: Recipe
) -> None:
    swapper = faceswap.Swapper(run, recipe.changed(merge={"segment": 4}), device="cpu")
    with pytest.raises(Enough), stop_at("merging", 9):
        faceswap.swap_video(clips["target"], tmp_path / "out.mp4", swapper)
    assert not (tmp_path / "out.mp4").exists() and (tmp_path / ".out.mp4.parts" / "00001.json").exists()
    assert faceswap.swap_video(clips["target"], tmp_path / "out.mp4", swapper).frames == 16
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
