"""Tests of faceswap.benchmark: the truth scores perfect, and every measure can fail."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import actors, align, benchmark, config, detectors, evaluate, metrics, swap
from faceswap.actors import Actor, Take
from faceswap.benchmark import ExpressionFit, Yardstick
from faceswap.config import Benchmark, MergeRecipe, Recipe
from faceswap.detectors import Face
from faceswap.errors import CheckpointError, MediaError, RecipeError, UsageError
from faceswap.heads import Expression, Identity, Pose
from faceswap.render import Shot, background

TARGET = Take(Identity.random(26), performance=22, frames=80, size=160)
TRUTH = TARGET.with_face_of(Identity.random(31))
NUMBERS = list(range(2, 78, 9))
ALL = sorted({number + later for number in NUMBERS for later in (0, 1, 2)})
Images = dict[int, NDArray[Any]]


@pytest.fixture(scope="module")
def shots() -> dict[int, Shot]:
    return dict(zip(ALL, TRUTH.shots(ALL, workers=1), strict=True))


@pytest.fixture(scope="module")
def scored(shots: dict[int, Shot]) -> Callable[[str], dict[str, Any]]:
    """The scores of videos that are the truth, damaged in one way each; each is scored once."""
    detector = detectors.build("mtcnn", threshold=0.5, min_size=48, device="cpu")
    merge = MergeRecipe(color="none")
    faces = {number: [Face(np.zeros(4, np.float32), shot.points, 1.0)] for number, shot in shots.items()}
    yardstick = Yardstick(TRUTH, shots, NUMBERS, detector, merge, faces)
    truth: Images = {number: shot.image for number, shot in shots.items()}

    def each(change: Callable[[int, NDArray[Any]], NDArray[Any]]) -> Images:
        return {number: change(number, image) for number, image in truth.items() if number != ALL[-1]}

    def still(moment: actors.Moment) -> actors.Moment:
        return replace(moment, expression=Expression())

    def tint(number: int, image: NDArray[Any]) -> NDArray[Any]:
        """The truth, laid in as a swap is, with less red."""
        points = shots[number].points
        matrix = align.crop_matrix(points, 96)
        crop = align.crop(image, matrix, 96)
        tinted = (crop / 255 * (0.8, 1, 1)).astype(np.float32)
        found = Face(np.zeros(4, np.float32), points, 1.0)
        return swap.still(image, found, matrix, crop, (tinted, np.ones((96, 96), np.float32)), merge)

    def turned() -> Images:
        actor, moments = Actor(TRUTH.identity), TRUTH.moments()
        room = background(TRUTH.performance, 160, 160)
        found = {}
        for number in ALL[:-1]:
            pose = replace(moments[number].pose, yaw=moments[number].pose.yaw * 0.2)
            given = actors.as_arguments(replace(moments[number], pose=pose))
            found[number] = actor.render(**given, size=160, background=room, scale=TRUTH.scale).image
        return found

    def frozen() -> Images:
        actor, moments = Actor(TRUTH.identity), TRUTH.moments()
        room = background(TRUTH.performance, 160, 160)
        given = {number: actors.as_arguments(still(moments[number])) for number in ALL[:-1]}
        return {n: actor.render(**g, size=160, background=room, scale=TRUTH.scale).image for n, g in given.items()}

    noise = np.random.default_rng(0)
    videos: dict[str, Callable[[], Images]] = {
        "truth": lambda: each(lambda _, image: image),
        "target": lambda: {n: shot.image for n, shot in zip(ALL, TARGET.shots(ALL, workers=1), strict=True)},
        "blurred": lambda: each(lambda _, image: cv2.GaussianBlur(image, (0, 0), 2)),
        "later": lambda: {number: truth[number + 1] for number in ALL if number + 1 in truth},
        "noisy": lambda: each(lambda _, im: np.clip(im + noise.normal(0, 12, im.shape), 0, 255).astype(np.uint8)),
        "tinted": lambda: each(tint),
        "turned": turned,
        "frozen": frozen,
        "black": lambda: each(lambda _, image: np.zeros_like(image)),
    }

    @cache
    def score(name: str) -> dict[str, Any]:
        images = videos[name]()
        return yardstick.score(images)

    return score


def test_the_truth_scores_perfect_on_every_measure(scored: Callable[[str], dict[str, Any]]) -> None:
    found = scored("truth")
    assert found["psnr"] == found["psnr_laid"] == pytest.approx(100)
    for name, value in found.items():
        if "psnr" not in name:
            assert value == pytest.approx(metrics.TABLE[name].best, abs=1e-5), name


@pytest.mark.parametrize(
    ("measure", "video"),
    [
        ("psnr", "target"),
        ("ssim", "target"),
        ("ms_ssim", "target"),
        ("landmarks", "target"),
        ("pose", "target"),
        ("expression", "target"),
        ("flicker", "target"),
        ("seam", "tinted"),
        ("sharpness", "target"),
        ("psnr_laid", "target"),
        ("psnr", "blurred"),
        ("ssim", "blurred"),
        ("ms_ssim", "blurred"),
        ("sharpness", "blurred"),
        ("sharpness", "noisy"),
        ("flicker", "noisy"),
        ("expression", "later"),
        ("expression", "frozen"),
        ("landmarks", "turned"),
        ("pose", "turned"),
    ],
)
def test_each_measure_can_fail(measure: str, video: str, scored: Callable[[str], dict[str, Any]]) -> None:
    perfect, value = metrics.TABLE[measure].best, scored(video)[measure]
    least = {
        **{"psnr": 60, "psnr_laid": 60, "ssim": 0.05, "ms_ssim": 0.02, "landmarks": 2, "pose": 2, "expression": 2},
        **{"flicker": 0.05, "seam": 1.2, "sharpness": 0.2},
    }
    assert abs(value - (100 if "psnr" in measure else perfect)) > least[measure], value


def test_measures_rank_damage_as_people_would(scored: Callable[[str], dict[str, Any]]) -> None:
    assert scored("blurred")["sharpness"] < 0.5 < 1.2 < scored("noisy")["sharpness"]
    assert scored("noisy")["flicker"] > 1.2
    assert scored("target")["psnr"] < scored("blurred")["psnr"]
    assert scored("later")["expression"] < scored("frozen")["expression"]
    assert scored("frozen")["expression"] > 2 * scored("blurred")["expression"]
    assert scored("turned")["pose"] > 2 * scored("frozen")["pose"]


def test_a_video_without_a_face_is_not_measured_where_a_face_is_needed(
    scored: Callable[[str], dict[str, Any]],
) -> None:
    found = scored("black")
    assert found["found"] == 0 and np.isnan(found["landmarks"]) and np.isnan(found["pose"])
    assert found["psnr"] < 15 and found["sharpness"] < 0.01


def test_a_fitted_expression_is_the_one_that_changed() -> None:
    moment = replace(TRUTH.moments()[20], expression=Expression(), pose=Pose())
    actor, room = Actor(TRUTH.identity), background(TRUTH.performance, 160, 160)

    def render(moment: actors.Moment) -> Shot:
        return actor.render(**actors.as_arguments(moment), size=160, background=room, scale=TRUTH.scale)

    fit, truth = ExpressionFit(actor, TRUTH, moment), render(moment)
    names = list(vars(moment.expression))
    assert np.abs(fit.change(truth.image, truth)).max() < 1e-9
    for name, step in (("jaw", 0.2), ("smile", 0.3), ("gaze_x", 8.0)):
        moved = replace(moment.expression, **{name: getattr(moment.expression, name) + step})
        found = fit.change(render(replace(moment, expression=moved)).image, truth)
        share = found[names.index(name)] * benchmark.RANGES.get(name, 1.0) / step
        assert 0.3 < share < 1.3, (name, found)
        assert np.argmax(np.abs(found)) == names.index(name)
    dimmed = np.round(truth.image * 0.85).astype(np.uint8)
    assert np.abs(fit.change(dimmed, truth)).max() < 0.02, "light is no expression"


def test_the_benchmark_scores_swap_floor_and_ceiling(benched: tuple[Path, evaluate.Report]) -> None:
    folder, report = benched
    assert list(report.tables) == ["mean of all pairs", "pair 1: actor 31 as actor 26"]
    rows = report.tables["pair 1: actor 31 as actor 26"]
    names = ["swap", "floor: target unswapped", "ceiling: truth at 32 px"]
    assert list(rows) in (names, [*names, "truth"]), "its identity, where there is an embedder"
    rows = {name: rows[name] for name in names}
    for row in rows.values():
        assert {"psnr", "ssim", "ms_ssim", "landmarks", "pose", "expression", "flicker", "seam", "sharpness"} <= set(
            row
        )
    drawn, floor, ceiling = ({k: v for k, v in row.items() if v is not None} for row in rows.values())
    for name in ("psnr", "ssim", "ms_ssim"):  # points and expression found in a face of 32 px say nothing
        better = drawn[name] < ceiling[name] if metrics.TABLE[name].best != 0 else drawn[name] > ceiling[name]
        assert better, f"{name}: forty images teach little"
    assert floor["psnr"] < ceiling["psnr"]
    assert report.tables["mean of all pairs"]["swap"]["psnr"] == pytest.approx(drawn["psnr"])
    assert report.page == folder / "evaluation.html" and "Pair 1" in report.page.read_text()


def test_two_runs_with_one_seed_give_the_same_scores(
    benched: tuple[Path, evaluate.Report], protocol: Benchmark, tiny: Recipe, tmp_path: Path
) -> None:
    again = benchmark.run(protocol, tiny, tmp_path / "again", device="cpu")
    assert json.dumps(again.tables) == json.dumps(benched[1].tables)


def test_a_run_of_the_benchmark_is_scored_by_itself(
    benched: tuple[Path, evaluate.Report], protocol: Benchmark, tiny: Recipe
) -> None:
    run = benched[0] / "pair1" / benchmark.WORK / "run"
    for path in (run, run / "best.safetensors"):
        report = benchmark.evaluate_truth(path, protocol, tiny, device="cpu")
        (rows,) = report.tables.values()
        assert json.dumps(rows) == json.dumps(benched[1].tables["pair 1: actor 31 as actor 26"])
        assert report.page == run / "truth.html" and report.images == 40


def test_it_goes_on_where_it_was_and_keeps_to_its_protocol(
    benched: tuple[Path, evaluate.Report], protocol: Benchmark, tiny: Recipe
) -> None:
    folder, report = benched
    clip = folder / "pair1" / "source.mp4"
    before = clip.stat().st_mtime_ns
    assert json.dumps(benchmark.run(protocol, tiny, folder, device="cpu").tables) == json.dumps(report.tables)
    assert clip.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"source\.mp4: another clip than the one asked for"):
        benchmark.run(protocol.model_copy(update={"size": 96}), tiny, folder, device="cpu")
    with pytest.raises(CheckpointError, match=r"model\.width"):
        benchmark.run(protocol, tiny.changed(model={"width": 8}), folder, device="cpu")


def test_a_truth_that_is_not_of_the_clip_is_refused(
    benched: tuple[Path, evaluate.Report], protocol: Benchmark, tiny: Recipe, tmp_path: Path
) -> None:
    shutil.copytree(benched[0] / "pair1", tmp_path / "pair1")
    note = tmp_path / "pair1" / benchmark.WORK / "work.json"
    note.write_text(note.read_text().replace(str(benched[0] / "pair1"), str(tmp_path / "pair1")))
    run, clip = tmp_path / "pair1" / benchmark.WORK / "run", tmp_path / "pair1" / "target.mp4"
    evaluated = benchmark.evaluate_truth(run, protocol, tiny, device="cpu")
    assert json.dumps(list(evaluated.tables.values())) == json.dumps(list(benched[1].tables.values())[1:])
    truth = actors.truth_path(clip)
    with np.load(truth) as archive:
        facts = dict(archive)
    np.savez(truth, **(facts | {"points": facts["points"] + 0.5}))
    with pytest.raises(MediaError, match="another version of faceswap, which drew this actor otherwise"):
        benchmark.evaluate_truth(run, protocol, tiny, device="cpu")
    clip.write_bytes(clip.read_bytes() + b"x")
    with pytest.raises(UsageError, match="another video than the target"):
        benchmark.evaluate_truth(run, protocol, tiny, device="cpu")


def test_a_folder_with_other_files_is_left_alone(protocol: Benchmark, tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "evaluation.html").write_text("mine")
    with pytest.raises(UsageError, match="found other files"):
        benchmark.run(protocol, tiny, tmp_path, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.html"]


def test_a_run_on_other_footage_has_no_truth(
    facesets: dict[str, Path], protocol: Benchmark, tiny: Recipe, tmp_path: Path
) -> None:
    from faceswap.train import train

    recipe = tiny.changed(train={"images": 8})
    train(recipe, {name: [path] for name, path in facesets.items()}, tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="expected a work folder of faceswap swap"):
        benchmark.evaluate_truth(tmp_path / "run", protocol, recipe, device="cpu")


def test_the_protocol_that_ships() -> None:
    protocol = config.load_benchmark()
    assert len(protocol.pairs) == 3 and protocol.images > 0 and protocol.minutes == 0
    people = [seed for pair in protocol.pairs for seed in (pair.source, pair.target)]
    assert len(set(people)) == 6, "nobody plays twice"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sizee = 3", "unknown key 'sizee'; did you mean 'size'"),
        ("every = 1", "every = 1: input should be greater than or equal to 2"),
        ("pairs = []", "pairs = "),
        ("rate = 99999", "rate = 99999: input should be less than or equal to 120"),
        ("seconds = 0.04", "clips of 1 frames; expected at least 2"),
        ("images = 0", "no budget; set images or minutes above 0"),
        ("pairs = [{source = 1}]", "pairs.0.source_performance is missing"),
        ("[[pairs]]\nsource = 1\nsorce_performance = 2", "unknown key 'pairs.0.sorce_performance'; did you mean"),
    ],
)
def test_a_mistake_in_a_protocol_is_named(line: str, message: str, tmp_path: Path) -> None:
    text = "size = 128\nrate = 25\nseconds = 1\nimages = 8\nevery = 4\n"
    pair = "[[pairs]]\nsource = 1\nsource_performance = 1\ntarget = 2\ntarget_performance = 2\n"
    key = line.split(" = ")[0]
    kept = [row for row in text.splitlines() if not row.startswith(f"{key} =")]
    whole = "\n".join(kept) + "\n" + line + "\n" + ("" if "pairs" in line else pair)
    if "[[pairs]]" in line:
        whole = text + pair.replace("source_performance", "sorce_performance")
    (tmp_path / "p.toml").write_text(whole)
    with pytest.raises(RecipeError) as error:
        config.load_benchmark(tmp_path / "p.toml")
    assert message in str(error.value)
