"""Tests of faceswap.finders on losses that are known; the commands are tried in test_cli.py."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from faceswap import checkpoint, finders, memory, train
from faceswap.checkpoint import Progress
from faceswap.config import check
from faceswap.errors import CheckpointError, TrainingError, UsageError
from faceswap.models import ANYONE

TINY = {"model": {"resolution": 32, "width": 4, "code": 16}}


def ranged(loss: Any, monkeypatch: pytest.MonkeyPatch) -> finders.RateReport:
    """A range test where the loss is a function of the rate."""
    recipe = check({}, "test").resolved()
    group = {"base_lr": recipe.train.rate}
    trainer: Any = SimpleNamespace(
        progress=Progress(images=7),
        recipe=recipe,
        run=Path("run"),
        faces=[],
        fabric=SimpleNamespace(device=torch.device("cpu")),
        stepper=SimpleNamespace(param_groups=[group]),
        step=lambda batch: {"loss": loss(group["base_lr"])},
    )
    monkeypatch.setattr(finders, "batches", lambda *_: iter(range(1000)))
    return finders._range_test(trainer, 100, 0.5)


def test_the_suggestion_is_a_tenth_of_where_the_loss_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ranged(lambda rate: 1 - 0.3 * min(rate / 1e-3, 1) if rate < 1e-2 else 2.0, monkeypatch)
    assert report.rates[0] == pytest.approx(1e-6) and report.images == 7 and report.now == 0.5
    assert 0.9e-3 < report.suggestion < 1.5e-3 and report.rates[-1] < 0.05, "it stops where all is lost"


def test_it_ends_where_the_loss_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ranged(lambda rate: 1 - rate if rate < 1e-2 else float("nan"), monkeypatch)
    assert max(report.rates) < 1e-2 and report.suggestion <= 1e-3


def test_a_loss_that_only_grows_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="no rate above 1e-06 lowers the loss"):
        ranged(lambda rate: 1 + rate * 1e6, monkeypatch)


@pytest.fixture(scope="module")
def base(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("bases") / "base"
    few = check(TINY | {"data": {"batch": 4, "sampling": "person"}, "train": {"images": 8}}, "test")
    train.train(few, {ANYONE: [facesets["source"]]}, run, device="cpu")
    return run


@pytest.mark.parametrize("strategy", ["full", "lora", "prior"])
def test_a_rate_is_found_for_what_came_from_a_base(
    strategy: str, facesets: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    how = check(TINY | {"data": {"batch": 4}, "strategy": {"name": strategy}, "train": {"images": 8}}, "test")
    generic = [facesets["source"]] if strategy == "prior" else []
    people = {name: [path] for name, path in facesets.items()}
    train.train(how, people, tmp_path / "run", device="cpu", base=base, generic=generic)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.safetensors")}
    report = finders.find_rate(tmp_path / "run", check({}, "test"), device="cpu", steps=30)
    assert report.images >= 8 and report.rates[0] == pytest.approx(finders.LOWEST)
    assert report.now == how.resolved(from_base=True).train.rate and report.suggestion > finders.LOWEST
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.safetensors")}


def test_a_rate_is_found_for_a_base(base: Path) -> None:
    assert finders.find_rate(base, check({}, "test"), device="cpu", steps=30).suggestion > finders.LOWEST


def test_a_rate_for_a_base_that_is_gone_is_not_found(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    how = check(TINY | {"data": {"batch": 4}, "strategy": {"name": "lora"}, "train": {"images": 4}}, "test")
    near = shutil.copytree(base, tmp_path / "base")
    people = {name: [path] for name, path in facesets.items()}
    train.train(how, people, tmp_path / "run", device="cpu", base=near)
    shutil.rmtree(near)
    with pytest.raises(CheckpointError, match=r"expected the base 'base' .*, there is none at"):
        finders.find_rate(tmp_path / "run", check({}, "test"), device="cpu")
    assert checkpoint.latest(tmp_path / "run") is not None


def test_the_batch_is_no_larger_than_memory_and_use(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = {2: 10.0, 4: 19.0, 8: 30.0, 16: 31.0, 32: 31.2}
    monkeypatch.setattr(finders, "_faces_per_second", lambda trainer, faces: speed[faces])
    report = finders.find_batch(check(TINY, "test"), device="cpu")
    assert [row.batch for row in report.rows] == list(speed) and report.suggestion == 8
    assert report.stopped == "two doublings made it no faster" and report.largest == 32
    full = [0]

    def crowded(trainer: Any, faces: int) -> float:
        if faces > 4:
            raise torch.OutOfMemoryError
        full[0] = faces
        return float(faces)

    monkeypatch.setattr(finders, "_faces_per_second", crowded)
    report = finders.find_batch(check(TINY, "test"), device="cpu")
    assert full == [4] and report.suggestion == 4 and report.stopped == "8 faces ran out of memory"


def test_no_batch_at_all_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "check", lambda *_: None)
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    with pytest.raises(UsageError, match=r"no batch fits: 2 faces would need .* lower data.batch"):
        finders.find_batch(check(TINY, "test"), device="cpu")
