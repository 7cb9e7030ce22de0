"""Tests of tools/benchmark_train.py: the rivals are what they claim to be, and the figures mean what they say."""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faceswap import checkpoint, losses, models
from faceswap.config import Benchmark, Recipe
from faceswap.faceset import Faceset, read_mask
from faceswap.train import Trainer
from tools import benchmark, benchmark_train
from tools.benchmark_train import PlainDF, PlainFaces

CPU = torch.device("cpu")
PROTOCOL = Benchmark.model_validate(
    {
        **{"size": 96, "rate": 25, "seconds": 0.48, "images": 8, "every": 4},
        "pairs": [{"source": 31, "source_performance": 21, "target": 26, "target_performance": 22}],
    }
)


def plain_recipe(tiny: Recipe) -> Recipe:
    return tiny.changed(model={"name": "df-ud"}).resolved()


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cast") / "pair"
    benchmark_train.render(PROTOCOL, PROTOCOL.pairs[0], folder)
    return folder


def test_the_truth_shows_the_moments_of_the_target(cast: Path) -> None:
    facesets = {name: Faceset.open(cast / name).entries for name in ("source", "target", "truth")}
    assert [len(entries) for entries in facesets.values()] == [12, 12, 3]
    for true in facesets["truth"]:
        face = facesets["target"][true.meta.frame]
        assert true.meta == face.meta
        ours, theirs = read_mask(true.path), read_mask(face.path)
        assert ours is not None and theirs is not None and 0.1 < theirs.mean() < 0.6
        assert (np.minimum(ours, theirs).sum() / np.maximum(ours, theirs).sum()) > 0.7


def test_all_parts_make_one_object(tiny: Recipe, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"resolutions": [32], "loaded": [32, 128], "minutes": 0.004, "seconds": 0.05}
    found = benchmark_train.run(tiny, tmp_path, protocol=PROTOCOL, device="cpu", **sizes)
    assert json.loads(json.dumps(found)) == found
    (cost,), (plain,), loads, (quality,) = (found[name] for name in ("overhead", "plain", "loader", "quality"))
    assert found["overhead_over_bare_step"] == cost["overhead"] > 0 and cost["model"] == tiny.model.name
    assert plain["model"] == "df-ud" and min(plain["faces_per_second"], plain["plain_faces_per_second"]) > 0
    assert [row["resolution"] for row in loads] == [32, 128]
    assert found["loader_faces_per_second"] == loads[1]["faces_per_second"] > 0
    ours, *rivals = quality["models"]
    assert [row["model"] for row in rivals] == list(benchmark_train.RIVALS) == list(quality["ratios"])
    for row in rivals:
        assert row["weights"] >= ours["weights"]
        assert 0 <= row["seconds_to_quality"] <= row["curve"][-1]["seconds"]
    for row in quality["models"]:
        images = [point["images"] for point in row["curve"]]
        assert images[0] == 0 and len(images) == 11 and images == sorted(images)
    assert found["gpu"] is None and "no CUDA" in found["notes"][0]


def test_each_change_is_trained_and_held_against_the_default(
    tiny: Recipe, cast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["the default", "df-ud", "twice the rate", "without SSIM"]
    monkeypatch.setattr(benchmark_train, "CHANGES", {name: benchmark_train.CHANGES[name] for name in names})
    rates: list[float] = []
    begin = benchmark_train.trainer

    def noted(recipe: Recipe, *others: Any) -> Trainer:
        rates.append(recipe.train.rate)
        return begin(recipe, *others)

    monkeypatch.setattr(benchmark_train, "trainer", noted)
    rows = benchmark_train.gains(tiny, [cast], 12, CPU, lambda line: None)
    assert [row["change"] for row in rows] == names and all(row["seconds"] > 0 for row in rows)
    assert rows[0]["swap_psnr_gain"] == 0 and rates[2] == pytest.approx(2 * rates[0])
    for row in rows[1:]:
        assert row["swap_psnr_gain"] == pytest.approx(row["swap_psnr"] - rows[0]["swap_psnr"], abs=1e-3)


def test_a_slow_pipeline_costs_more(tiny: Recipe, cast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    average = Trainer._average

    def slowly(trainer: Trainer) -> None:
        time.sleep(0.2)
        average(trainer)

    monkeypatch.setattr(Trainer, "_average", slowly)
    row = benchmark_train.overhead(tiny.resolved(), cast, tmp_path / "run", 0.1, CPU)
    assert row["overhead"] > 1.2 and row["ms_per_face"] > 200 / tiny.data.batch
    assert row["ms_per_face"] > row["bare_ms_per_face"] and row["turns"] == 3


def test_the_plain_network_is_ours(tiny: Recipe) -> None:
    recipe = plain_recipe(tiny)
    ours = checkpoint.new_model(recipe, ["source", "target"])
    plain = PlainDF(ours, recipe)
    faces = torch.rand(3, 3, 32, 32)
    for person in range(2):
        found = zip(plain(faces, person), ours(faces, torch.full((3,), person)), strict=True)
        for mine, theirs in found:
            assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_plain_loss_is_ssim() -> None:
    one, other = torch.rand(2, 2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    ours = losses.ssim(one, other, torch.ones(2, 1, 20, 20)).mean() / 2
    assert float(benchmark_train.plain_dssim(one, other)) == pytest.approx(float(ours), abs=1e-5)


def test_plain_faces_are_moved_alike_and_only_the_input_is_warped(cast: Path) -> None:
    faces = PlainFaces(sorted((cast / "source").glob("*.jpg")), 64)
    torch.manual_seed(0)
    image, target, mask = faces[0]
    assert [part.shape for part in (image, target, mask)] == [(3, 64, 64), (3, 64, 64), (1, 64, 64)]
    assert all(part.dtype == torch.float32 and part.min() >= 0 and part.max() <= 1 for part in (image, target, mask))
    apart = [float((image - target).abs().mean()) for image, target, _ in (faces[i] for i in range(len(faces)))]
    assert 0.001 < np.mean(apart) < 0.1
    assert not torch.equal(faces[0][1], target)  # drawn anew


def test_the_plain_rival_learns(tiny: Recipe, cast: Path) -> None:
    recipe = plain_recipe(tiny)
    torch.manual_seed(0)
    plain = PlainDF(checkpoint.new_model(recipe, ["source", "target"]), recipe)
    optimizer = torch.optim.AdamW(plain.parameters(), 3e-3, foreach=False, fused=False)
    with closing(benchmark_train.plain_training(plain, optimizer, cast, recipe, CPU)) as training:
        found = list(islice(training, 40))
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])


def test_time_to_quality_is_read_off_the_curve() -> None:
    curve = [
        {"seconds": 0.0, "ssim": 0.1, "swap_psnr": 10.0},
        {"seconds": 10.0, "ssim": 0.5, "swap_psnr": 20.0},
        {"seconds": 20.0, "ssim": 0.9, "swap_psnr": 18.0},
    ]

    def at(ssim: float, psnr: float) -> float | None:
        return benchmark_train.reached(curve, {"ssim": ssim, "swap_psnr": psnr})

    assert at(0.3, 10) == 5 and at(0.3, 15) == 5 and at(0.7, 15) == 15 and at(0.1, 10) == 0
    assert at(0.95, 10) is None and at(0.3, 21) is None


def test_the_ratio_is_that_of_the_better_rival() -> None:
    def row(*ratios: float | None) -> dict[str, Any]:
        return {"ratios": dict(zip(benchmark_train.RIVALS, ratios, strict=True))}

    assert benchmark_train.worst_ratio([row(0.2, 0.6), row(0.4, 0.2)]) == 0.4
    assert benchmark_train.worst_ratio([row(0.2, 0.6), row(None, None)]) is None
    assert benchmark_train.worst_ratio([]) is None


def test_a_rival_is_made_wide_enough(tiny: Recipe) -> None:
    small, least = plain_recipe(tiny), 500_000
    wide = benchmark_train.no_smaller(small, least)
    assert benchmark_train.weights_of(small) < least <= benchmark_train.weights_of(wide)
    narrower = wide.changed(model={"width": wide.model.width - 2, "decoder": 0, "mask": 0}).resolved()
    assert benchmark_train.weights_of(narrower) < least
    assert benchmark_train.no_smaller(wide, least) == wide
    shape = models.Shape(32, 4, 16, 4, 2)
    ours = sum(weight.numel() for weight in models.build("df-ud", shape, 2).parameters())
    assert benchmark_train.weights_of(small) == ours


def test_the_command_prints_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(benchmark.__file__).parent))
    import benchmark_train as lazily_imported

    def run(recipe: Recipe, folder: Path, *, parts: Sequence[str], **more: Any) -> dict[str, Any]:
        more["say"]("on the way")
        return {"width": recipe.model.width, "parts": parts, "minutes": more["minutes"], "there": folder.is_dir()}

    monkeypatch.setattr(lazily_imported, "run", run)
    words = ["train", "--json", "--minutes", "2", "--set", "model.width=8"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    benchmark.main()
    said = capsys.readouterr()
    expected = {"width": 8, "parts": list(benchmark_train.USUAL), "minutes": 2, "there": True}
    assert json.loads(said.out) == expected
