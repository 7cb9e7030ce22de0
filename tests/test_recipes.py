"""The recipes that ship are complete, load, and say what faceswap/config.py says."""

import importlib.util
import json
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from faceswap import align, checkpoint, config, console, foreign, pretrained
from faceswap.actors import SCALE, as_arguments, at_random
from faceswap.cli import main
from faceswap.faceset import Faceset
from faceswap.heads import Identity
from faceswap.landmarks import five
from faceswap.render import Actor

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("write_recipes", ROOT / "tools" / "write_recipes.py")
assert SPEC is not None and SPEC.loader is not None
write_recipes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(write_recipes)

FILES = sorted(path for path in (ROOT / "configs").glob("*.toml") if path.stem != "benchmark")


def test_the_files_are_those_that_the_tool_writes() -> None:
    assert {path.stem for path in FILES} == set(write_recipes.RECIPES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_up_to_date(path: Path) -> None:
    assert path.read_text() == write_recipes.text_of(path.stem), "run python tools/write_recipes.py"
    recipe = config.load(path)
    assert all(f"\n{key} = " in path.read_text() for key in recipe.train.model_dump())
    assert config.load(Path(path.stem)) == recipe, "found by name"


def test_every_option_says_what_it_means() -> None:
    text = write_recipes.text_of("swap_96")
    options = [line for line in text.splitlines() if " = " in line]
    assert len(options) > 40 and all("  # " in line for line in options)


# FFHQ

NUMBERS = (0, 7, 999, 1000, 1001, 69999)
SHRUNK = {
    "faceset import": "--set extract.size=64",
    "pretrain": "--set model.resolution=32 --set model.width=4 --set model.code=16 --set data.batch=4 --images 8",
}
SHRUNK["finetune"] = SHRUNK["pretrain"]


def put(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))


@pytest.fixture(scope="module")
def ffhq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole copy of FFHQ as NVlabs/ffhq-dataset lays it out, of six rendered people and at a quarter of its size."""
    root, told, random = tmp_path_factory.mktemp("data") / "ffhq", {}, np.random.default_rng(3)
    for number in NUMBERS:
        shot = Actor(Identity.random(number)).render(**as_arguments(at_random(random)), size=224, scale=SCALE)
        file = f"{number // 1000 * 1000:05d}/{number:05d}.png"
        landmarks = shot.landmarks.astype(np.float64)
        framing = align.similarity(five(landmarks), foreign.FFHQ_POINTS)
        for folder, side in (("images1024x1024", 256), ("thumbnails128x128", 128)):
            put(root / folder / file, align.crop(shot.image, align.similarity(five(landmarks), at(side)), side))
        wild = cv2.copyMakeBorder(shot.image, 0, 0, 30, 10, cv2.BORDER_REPLICATE)
        put(root / "in-the-wild-images" / file, np.asarray(wild, np.uint8))
        told[str(number)] = {
            "category": "training",
            "image": {"pixel_size": [1024, 1024], "face_landmarks": align.apply(framing, landmarks).tolist()},
            "in_the_wild": {"face_landmarks": (landmarks + np.array([30, 0])).tolist()},
        }
    (root / foreign.FFHQ_JSON).write_text(json.dumps(told))
    return root


def at(side: int) -> NDArray[np.float64]:
    """FFHQ's five points in an image of `side` px."""
    return (foreign.FFHQ_POINTS + 0.5) * (side / foreign.FFHQ_SIDE) - 0.5


def faceswap(*words: object) -> str:
    result = CliRunner().invoke(main, [*map(str, words), "--device", "cpu"])
    console.configure(console.QUIET)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("told", [True, False], ids=["with its json", "without"])
@pytest.mark.parametrize("resolution", [128, 256])  # from thumbnails, and from large images; 512 is as 256
def test_the_commands_in_a_recipe_for_ffhq_make_a_base_of_it(
    resolution: int, told: bool, ffhq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"pretrain_ffhq_{resolution}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(tmp_path / "mine"))
    skipped = shutil.ignore_patterns("in-the-wild*", *([] if told else ["*.json"]))
    shutil.copytree(ffhq, tmp_path / "ffhq", ignore=skipped)
    text = config.shipped("configs").joinpath(f"{name}.toml").read_text()
    lines = [line.removeprefix("#   faceswap ") for line in text.splitlines() if line.startswith("#   faceswap ")]
    assert [line.split(" ")[0] for line in lines] == ["faceset", "pretrain", "pretrained", "finetune"]
    for line in lines:
        more = next((options for command, options in SHRUNK.items() if line.startswith(f"{command} ")), "")
        said = faceswap(*shlex.split(line), *shlex.split(more))
        if line.startswith("faceset"):
            assert "FFHQ, 6 images" in said and ("FFHQ's framing" in said) != told
            assert [face.meta.frame for face in Faceset.open(Path("ffhq_faces")).entries] == list(NUMBERS)
            for person in ("anna", "bert"):
                shutil.copytree("ffhq_faces", person)
    state = checkpoint.read(checkpoint.states(Path(f"base_{resolution}"))[0])
    assert (state.progress.steps, state.progress.images) == (2, 8)
    assert state.recipe.train.ema == 0.9999 and state.recipe.data.warp == 0.01  # the recipe, but for its size
    entry = pretrained.known(f"ffhq_{resolution}")
    assert entry.figures.endswith("after 8 images") and "NC" in entry.licence
    assert "starting from" in said and "a base of 8 images" in said


def test_of_a_whole_copy_of_ffhq_each_face_comes_once(ffhq: Path, tmp_path: Path) -> None:
    report = json.loads(CliRunner().invoke(main, imported(ffhq, tmp_path / "all")).stdout)
    assert (report["faces"], report["kinds"], report["skipped"]) == (6, ["ffhq"], {})
    aligned = {face.meta.frame: face.meta for face in Faceset.open(tmp_path / "all").entries}
    assert all(np.abs(np.array(meta.points) - at(256)).max() < 256 / 16 for meta in aligned.values())


def test_the_originals_of_ffhq_are_images_in_which_faces_are_looked_for(ffhq: Path, tmp_path: Path) -> None:
    report = json.loads(CliRunner().invoke(main, imported(ffhq / "in-the-wild-images", tmp_path / "wild")).stdout)
    assert report["kinds"] == ["images"] and report["faces"] >= 5
    truth = json.loads((ffhq / foreign.FFHQ_JSON).read_text())
    for face in Faceset.open(tmp_path / "wild").entries:
        points = five(np.array(truth[str(face.meta.frame)]["in_the_wild"]["face_landmarks"]))
        assert np.abs(np.array(face.meta.points) - points).max() < 12 and face.meta.detector == "mtcnn"


def imported(path: Path, out: Path) -> list[str]:
    words = ["faceset", "import", str(path), "-o", str(out), "--json", "-q", "--device", "cpu"]
    return [*words, "--set", "extract.size=64", "--set", "extract.min_size=40"]
