"""Tests of tools/benchmark_finetune.py: what it says is there, adds up, and is not measured twice."""

import json
import sys
from pathlib import Path
from typing import Any

import benchmark
import benchmark_finetune
import pytest
from benchmark_finetune import DELTA, GENERIC, HALF, Bench, Job

from faceswap import train
from faceswap.config import Benchmark, Recipe
from faceswap.errors import UsageError
from faceswap.models import ANYONE

PROTOCOL = Benchmark.model_validate(
    {
        **{"size": 96, "rate": 25, "seconds": 0.48, "images": 8, "every": 4},
        "pairs": [
            {"source": 31, "source_performance": 21, "target": 26, "target_performance": 22},
            {"source": 26, "source_performance": 22, "target": 31, "target_performance": 21},
        ],
    }
)
NAMES = ["full", "embedding", "scratch"]
TEN_KB = 10_000


def pretrain(tiny: Recipe, faces: Path, folder: Path, **model: Any) -> Path:
    how = tiny.changed(model=model, train={"images": 16, "warmup": 0}, data={"sampling": "person"})
    train.train(how, {ANYONE: [faces]}, folder, device="cpu")
    return folder


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder in which strangers are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACESWAP_PRETRAINED", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def base(tiny: Recipe, facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(tiny, facesets["source"], tmp_path_factory.mktemp("bases") / "small")


def measure(tiny: Recipe, base: Path, work: Path, **more: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    given: dict[str, Any] = {"images": 16, "scratch_images": 24, "pairs": 1, "seeds": 1, "names": NAMES, "count": 4}
    recipe = tiny.changed(train={"warmup": 0, "rate": 1e-3})
    found = benchmark_finetune.run(
        recipe, base, work, protocol=PROTOCOL, device="cpu", say=said.append, **(given | more)
    )
    return found, [line for line in said if line.startswith("finetune: ")]


@pytest.fixture(scope="module")
def found(tiny: Recipe, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The report on one pair, and the folder of its results: read only."""
    work = tmp_path_factory.mktemp("work") / "kept"
    return measure(tiny, base, work)[0], work


def test_the_report_has_a_row_for_each_way(found: tuple[dict[str, Any], Path], base: Path) -> None:
    report, _ = found
    assert json.loads(json.dumps(report)) == report
    assert list(report) == ["base", "machine", "images", "rows", "successive", "combined"]
    rows = {row["strategy"]: row for row in report["rows"]}
    assert list(rows) == ["scratch", "full", HALF, DELTA, "embedding"]
    size = (base / "best.safetensors").stat().st_size
    assert report["base"]["name"] == "small" and report["base"]["file_bytes"] == size
    assert report["images"] == {"tuned": 16, "scratch": 24} and report["base"]["strangers"] == 4
    for row in rows.values():
        assert row["runs"] == 1 and row["swap_psnr_std"] == 0 and 0 < row["ssim"] < 1 and 3 < row["held_psnr"] < 50
        assert row["file_share"] == pytest.approx(row["file_bytes"] / size, abs=1e-5)
        assert row["curve"][-1]["swap_psnr"] == pytest.approx(row["swap_psnr"], abs=1e-3)
    images = [point["images"] for point in rows["full"]["curve"]]
    assert images == [0, 4, 8, 12, 16] and rows["scratch"]["curve"][-1]["images"] == 24


def test_what_is_small_is_small_and_harms_nobody(found: tuple[dict[str, Any], Path]) -> None:
    rows = {row["strategy"]: row for row in found[0]["rows"]}
    assert rows["embedding"]["file_bytes"] < TEN_KB and rows["embedding"]["trained"] == 3 * 64
    assert rows[DELTA]["file_bytes"] < 0.5 * rows["full"]["file_bytes"]
    assert rows["embedding"]["psnr_lost"] == rows["embedding"]["distance"] == 0
    assert rows["scratch"]["psnr_lost"] is None and rows["scratch"]["distance"] is None, "it knows nobody as anyone"
    whole, half = rows["full"]["distance"], rows[HALF]["distance"]
    assert whole > 0 and half == pytest.approx(whole / 2, rel=1e-3)
    assert rows[DELTA]["distance"] == pytest.approx(whole, rel=0.01)
    assert rows[DELTA]["swap_psnr"] == pytest.approx(rows["full"]["swap_psnr"], abs=0.05)
    assert rows["full"]["over_full"] == 0
    gap = rows["embedding"]["swap_psnr"] - rows["full"]["swap_psnr"]
    assert rows["embedding"]["over_full"] == pytest.approx(gap, abs=1e-3)
    assert rows["scratch"]["ssim_images"] <= 24 and rows[HALF]["ssim_images"] is None


def test_people_trained_alone_are_put_together(found: tuple[dict[str, Any], Path]) -> None:
    rows = {row["strategy"]: row for row in found[0]["rows"]}
    together = {row["strategy"].partition(",")[0]: row for row in found[0]["combined"]}
    assert list(together) == ["full", "embedding"]
    for name, row in together.items():
        assert row["together"] == rows[name]["swap_psnr"] and row["swap_psnr"] > 3
    assert together["embedding"]["distance"] == 0 < together["full"]["distance"]
    assert together["embedding"]["file_bytes"] < 2 * TEN_KB


def test_a_second_start_measures_nothing_again(
    found: tuple[dict[str, Any], Path], tiny: Recipe, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained again")

    report, work = found
    monkeypatch.setattr(benchmark_finetune, "begin", never)
    monkeypatch.setattr(benchmark_finetune.benchmark_train, "render", never)
    again, said = measure(tiny, base, work)
    assert again == report and not said
    with pytest.raises(AssertionError, match="trained again"):
        measure(tiny, base, work, images=20)


def test_what_was_cut_off_is_done_again(tiny: Recipe, base: Path, tmp_path: Path) -> None:
    _, first = measure(tiny, base, tmp_path, names=["embedding"])
    assert len(first) == 4  # the pair, each alone, and both put together
    results = tmp_path / "results.jsonl"
    results.write_text(results.read_text()[:-40])
    _, said = measure(tiny, base, tmp_path, names=["embedding"])
    assert len(said) == 1 and "combined" in said[0]
    next((tmp_path / "drawn").glob("embedding-source-alone-*")).unlink()
    _, said = measure(tiny, base, tmp_path, names=["embedding"])
    assert len(said) == 1 and "source alone" in said[0]
    assert not measure(tiny, base, tmp_path, names=["embedding"])[1]


def test_generic_faces_come_on_top(
    tiny: Recipe, base: Path, facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = measure(tiny, base, tmp_path, names=["prior"], generic=facesets["target"])
    ours, theirs = report["rows"]
    assert (ours["strategy"], theirs["strategy"]) == ("prior", GENERIC) and theirs["curve"][-1]["images"] == 16
    assert ours["swap_psnr_images"] is None and not report["combined"] and not report["successive"]
    monkeypatch.setattr(benchmark_finetune, "FACES", 3)
    bench = Bench(tiny, base / "best.safetensors", tmp_path, PROTOCOL, 4, "cpu", lambda line: None)
    assert len(list(bench.generic().glob("*.png"))) == 3 and bench.generic().parent == tmp_path
    pair = {"source": tmp_path, "target": tmp_path}
    job = Job(GENERIC, 0, 0, bench.recipe, {**pair, ANYONE: tmp_path}, bench.base, 16)
    assert (job.strategy, job.generic, job.setup().train.images) == ("prior", 1.5, 24)


def test_one_pair_after_another_and_several_seeds(tiny: Recipe, base: Path, tmp_path: Path) -> None:
    report, said = measure(tiny, base, tmp_path, names=["full"], pairs=2, seeds=2, images=4)
    first, second = report["successive"]
    assert (first["in_a_row"], second["in_a_row"]) == (1, 2) and first["runs"] == second["runs"] == 2
    assert second["distance"] > first["distance"] > 0
    row = report["rows"][0]
    assert row["runs"] == 4 and row["swap_psnr_std"] > 0
    assert len(said) == 4 * 6 + 2  # full, half, delta, two alone, combined; and the second in a row of each seed


def test_other_architectures_leave_out_what_they_cannot(
    tiny: Recipe, facesets: dict[str, Path], tmp_path: Path
) -> None:
    base = pretrain(tiny, facesets["source"], tmp_path / "df", name="df-ud")
    said: list[str] = []
    how = tiny.changed(model={"name": "df-ud"})
    numbers: dict[str, Any] = {"images": 8, "pairs": 1, "seeds": 1, "count": 4, "device": "cpu"}
    names = ["embedding", "film"]
    report = benchmark_finetune.run(
        how, base, tmp_path / "work", protocol=PROTOCOL, names=names, say=said.append, **numbers
    )
    assert [row["strategy"] for row in report["rows"]] == ["film"] and not report["combined"]
    assert any(line.startswith("embedding: left out: ") for line in said)
    with pytest.raises(UsageError, match="3 pairs: the protocol has 2"):
        measure(tiny, base, tmp_path, pairs=3)


def test_images_to_scratch_are_read_off_the_curve() -> None:
    curve = [
        {"images": 0, "seconds": 0.0, "ssim": 0.1, "swap_psnr": 10.0},
        {"images": 100, "seconds": 1.0, "ssim": 0.5, "swap_psnr": 20.0},
        {"images": 300, "seconds": 9.0, "ssim": 0.9, "swap_psnr": 18.0},
    ]

    def to(**goal: float) -> float | None:
        return benchmark_finetune.images_to(curve, *goal, goal)

    assert to(ssim=0.3) == 50 and to(ssim=0.7) == 200 and to(ssim=0.1) == 0 and to(swap_psnr=19) == 90
    assert to(ssim=0.95) is None and to(swap_psnr=21) is None


def test_marks_are_denser_early() -> None:
    marks = benchmark_finetune.marks(4000, 8)
    assert marks[:5] == [0, 100, 200, 400, 600] and marks[-1] == 4000 and len(marks) == 22
    assert benchmark_finetune.marks(40_000, 8)[:7] == [0, 100, 200, 400, 800, 1600, 2000]
    assert benchmark_finetune.marks(18, 4) == [0, 4, 8, 12, 16, 18]


def test_a_mean_is_none_unless_all_are_there() -> None:
    assert benchmark_finetune.mean([1.0, 3.0]) == (2.0, 1.41421)
    assert benchmark_finetune.mean([4.0]) == (4.0, 0.0)
    assert benchmark_finetune.mean([4.0, None]) == benchmark_finetune.mean([]) == (None, None)


def test_the_command_prints_a_table_or_one_object(
    found: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, _ = found
    given: list[dict[str, Any]] = []

    def run(recipe: Recipe, base: Path, work: Path, **more: Any) -> dict[str, Any]:
        given.append({"width": recipe.model.width, "base": base, "there": work.is_dir(), **more})
        more["say"]("on the way")
        return report

    monkeypatch.setattr(benchmark_finetune, "run", run)
    words = ["benchmark.py", "finetune", "--base", "b", "--strategy", "lora", "film", "--set", "model.width=8"]
    monkeypatch.setattr(sys, "argv", [*words, "--json"])
    benchmark.main()
    said = capsys.readouterr()
    assert json.loads(said.out) == report and said.err == "on the way\n"
    assert given[0]["width"] == 8 and given[0]["base"] == Path("b") and given[0]["there"]
    assert given[0]["names"] == ["lora", "film"] and given[0]["count"] == 500 and given[0]["images"] == 4000
    monkeypatch.setattr(sys, "argv", words)
    benchmark.main()
    table = capsys.readouterr().out
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(lines) == 7 + 3 + 4 and len({line.count("|") for line in lines[:7]}) == 1
    assert "| scratch |" in table and "small" in table and "One after another" in table


def test_a_base_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "finetune", "--base", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="none: expected a run, a weight file or the name of a base"):
        benchmark.main()
