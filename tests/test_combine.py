"""Tests of faceswap.combine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from faceswap import checkpoint, combine, train
from faceswap.config import Recipe, check
from faceswap.errors import CheckpointError, OutputExistsError, RecipeError, UsageError
from faceswap.models import ANYONE


def recipe(strategy: str = "full", **model: Any) -> Recipe:
    return check(
        {
            "model": {"resolution": 32, "width": 4, "code": 16} | model,
            "data": {"batch": 4},
            "train": {"images": 8, "preview_images": 8, "rate": 1e-3},
            "strategy": {"name": strategy},
        },
        "test",
    )


def fit(run: Path, faces: Path, how: Recipe, name: str = "source", base: Path | None = None) -> Path:
    train.train(how, {name: [faces]}, run, device="cpu", base=base)
    return run


@pytest.fixture(scope="module")
def base(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("combine") / "base", facesets["source"], recipe(), ANYONE)


@pytest.mark.parametrize("strategy", ["embedding", "lora", "full"])
def test_each_is_drawn_as_they_were_learnt(
    strategy: str, facesets: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    anna, bert = (fit(tmp_path / name, facesets[name], recipe(strategy), base=base) for name in ("source", "target"))
    report = combine.combine(anna, bert, tmp_path / "pair.safetensors")
    assert report.images == 16 and report.base == "base"
    pair, state = checkpoint.load_model(report.file)
    assert state.people == ["source", "target", ANYONE] and state.subjects == ["source", "target"]
    assert state.footage == {"source": "source.mp4", "target": "target.mp4"}
    start = checkpoint.new_model(state.recipe, state.people)
    start.load_base(checkpoint.read_base(base / "best.safetensors").part("ema"))
    ours, theirs = checkpoint.load_model(anna)[0], checkpoint.load_model(bert)[0]
    for name, weight in pair.state_dict().items():
        one, other, before = ours.state_dict()[name], theirs.state_dict()[name], start.state_dict()[name]
        if name == "who.weight":
            assert torch.equal(weight, torch.stack([one[0], other[0], before[2]]))
        else:
            torch.testing.assert_close(weight, one + other - before)
    faces = torch.rand(3, 3, 32, 32)
    if strategy == "embedding":  # nothing is shared: each is drawn as alone
        drawn, _ = pair(faces, torch.tensor([0, 1, 1]))
        torch.testing.assert_close(drawn[:1], ours(faces[:1], torch.tensor([0]))[0])
        torch.testing.assert_close(drawn[1:], theirs(faces[1:], torch.tensor([0, 0]))[0])
    half, _ = checkpoint.load_model(report.file, strength=0.5)
    assert not torch.equal(half.get_parameter("who.weight"), pair.get_parameter("who.weight"))


def test_what_does_not_go_together_is_refused(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    anna = fit(tmp_path / "anna", facesets["source"], recipe("embedding"), base=base)
    pair = tmp_path / "pair.safetensors"
    with pytest.raises(UsageError, match=r"ending in \.safetensors"):
        combine.combine(anna, anna, tmp_path / "pair")
    with pytest.raises(CheckpointError, match="base: did not start from a base"):
        combine.combine(anna, base, pair)
    other = fit(tmp_path / "other", facesets["target"], recipe(), ANYONE)
    bert = fit(tmp_path / "bert", facesets["target"], recipe("embedding"), base=other)
    with pytest.raises(CheckpointError, match="started from different bases"):
        combine.combine(anna, bert, pair)
    df = fit(tmp_path / "df", facesets["source"], recipe(name="df-ud"), ANYONE)
    tuned = fit(tmp_path / "tuned", facesets["source"], recipe(name="df-ud"), base=df)
    with pytest.raises(CheckpointError, match="df-ud has no codes"):
        combine.combine(tuned, tuned, pair)
    pair.touch()
    with pytest.raises(OutputExistsError):
        combine.combine(anna, anna, pair)
    combine.combine(anna, anna, pair, overwrite=True)


def test_one_person_alone_needs_a_base(facesets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="one person alone"):
        fit(tmp_path / "run", facesets["source"], recipe())
