"""Tests of faceswap.steering: what a run does next is a function of its recipe and of saved progress."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from faceswap import checkpoint, steering
from faceswap.checkpoint import Progress, State
from faceswap.config import Recipe, check
from faceswap.errors import CheckpointError
from faceswap.monitor import Monitor
from faceswap.steering import Watch, differences, ended_by_plateau, forget, judge, schedule, share, status
from faceswap.train import check_recipe


def recipe(loss: dict[str, Any] | None = None, **train: Any) -> Recipe:
    values = {"model": {"resolution": 32, "width": 4, "code": 16}, "data": {"batch": 4}, "train": train}
    return check(values | ({"loss": loss} if loss else {}), "test").resolved()


def test_schedule_warms_up_holds_and_falls() -> None:
    how = recipe(images=1000, warmup=100, decay=0.3)

    def at(images: int) -> float:
        return schedule(Progress(images=images), how)

    assert at(0) == pytest.approx(4 / 100)
    assert at(100) == at(400) == at(699) == 1
    assert at(850) == pytest.approx(0.505, abs=1e-3)
    assert at(1000) == pytest.approx(0.01)
    values = [at(images) for images in range(700, 1001, 10)]
    assert values == sorted(values, reverse=True)


def test_the_limit_that_is_nearer_counts() -> None:
    both = recipe(images=1000, minutes=1.0)
    assert share(Progress(images=250, seconds=6), both) == 0.25
    assert share(Progress(images=250, seconds=45), both) == 0.75
    assert share(Progress(images=250, seconds=45), recipe(until_plateau=True)) == 0


def test_a_gain_of_half_a_percent_is_one_and_less_is_none() -> None:
    progress, how = Progress(), recipe(until_plateau=True, patience=3)
    losses = [1.0, 0.99, 0.9879, 0.9869, 0.98, 0.979, 0.978, 0.977]  # slow, but 0.5 % over three measurements
    stale = []
    for place, loss in enumerate(losses, 1):
        progress.images = place * 100
        judge(progress, loss, how)
        stale.append(progress.stale)
    assert stale == [0, 0, 1, 2, 0, 1, 2, 3] and progress.plateau == 800
    judge(progress, 0.5, how)
    assert progress.bar == 0.98, "a place is judged once"


def test_after_a_plateau_the_rate_falls_and_then_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.say", said.append)
    how = recipe(until_plateau=True, patience=2, decay=0.2, warmup=0)
    progress = Progress()
    for images in (100, 200, 300, 400):
        progress.images = images
        assert schedule(progress, how) == 1 and share(progress, how) == 0
        judge(progress, 1.0 if images == 100 else 0.999, how)
        if images == 300:
            break
    assert progress.plateau == 300 and share(progress, how) == pytest.approx(0.8)
    assert said == ["plateau at 300 images: the rate falls until 375 images, then training ends"]
    rates = []
    for images in range(300, 376, 25):
        progress.images = images
        rates.append(schedule(progress, how))
    assert rates[0] == pytest.approx(1) and rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0.01)
    assert share(progress, how) >= 1 and ended_by_plateau(progress, how)
    assert not ended_by_plateau(progress, recipe(until_plateau=True, images=375))


def test_a_plateau_is_the_same_after_a_save_in_between() -> None:
    how, losses = recipe(until_plateau=True, patience=3), [1.0, 0.998, 0.999, 0.997, 0.996]
    through, broken = Progress(), Progress()
    for place, loss in enumerate(losses, 1):
        through.images = broken.images = place
        judge(through, loss, how)
        judge(broken, loss, how)
        broken = Progress(**asdict(broken))
    assert asdict(through) == asdict(broken) and through.plateau == 4


def test_without_the_wish_to_stop_there_is_no_plateau() -> None:
    progress = Progress()
    for images in range(1, 20):
        progress.images = images
        judge(progress, 1.0, recipe(images=100, patience=2))
    assert progress.stale == 18 and not progress.plateau
    forget(progress)
    assert progress.stale == 0 and progress.best == math.inf


def test_differences_name_the_option() -> None:
    found = differences(recipe(images=5), recipe(images=6, loss={"l1": 0.0}))
    assert found == {"train.images": (5, 6), "loss.l1": (0.6, 0.0)}


def fine(_: Recipe) -> None:
    pass


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr("faceswap.console.say", found.append)
    monkeypatch.setattr("faceswap.console.warn", lambda text: found.append(f"warning: {text}"))
    return found


def test_the_safe_part_of_a_recipe_may_change_on_the_way(tmp_path: Path, words: list[str]) -> None:
    now, path = recipe(images=1000), tmp_path / "recipe.toml"
    path.write_text(now.to_toml())
    watch = Watch(path)
    assert watch.look(now, fine) is None
    rate = now.train.rate
    path.write_text(now.changed(train={"rate": rate / 2}, loss={"l1": 1.25}).to_toml())
    found = watch.look(now, fine)
    assert found is not None and found.train.rate == rate / 2 and found.loss.l1 == 1.25
    assert words == [f"{path}: loss.l1 0.6 -> 1.25, train.rate {rate} -> {rate / 2}"]
    assert watch.look(found, fine) is None and len(words) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"width": 8}, "loss": {"l1": 2.0}}, "model.width 4 -> 8 needs a new start; nothing of the file was"),
        ({"train": {"images": 0}}, "no budget: give --minutes M"),
        ({"loss": {"swap_back": 0.1}}, "needs two people, found 1; set it to 0; nothing of the file was taken"),
    ],
)
def test_what_may_not_change_is_refused_in_one_line(
    change: dict[str, Any], said: str, tmp_path: Path, words: list[str]
) -> None:
    def fine(found: Recipe) -> None:
        check_recipe(found, people=1)

    now, path = recipe(images=1000), tmp_path / "recipe.toml"
    path.write_text(now.to_toml())
    watch = Watch(path)
    path.write_text(now.changed(**change).to_toml() + "\n")
    assert watch.look(now, fine) is None and watch.look(now, fine) is None
    assert len(words) == 1 and said in words[0] and "\n" not in words[0]


def test_a_file_that_does_not_parse_is_said_once(tmp_path: Path, words: list[str]) -> None:
    now, path = recipe(images=1000), tmp_path / "recipe.toml"
    path.write_text(now.to_toml())
    watch = Watch(path)
    path.write_text("[train\nimages = 5")
    assert watch.look(now, fine) is None and watch.look(now, fine) is None
    assert len(words) == 1 and "not valid TOML" in words[0] and "goes on with the recipe it has" in words[0]
    path.unlink()
    assert watch.look(now, fine) is None and len(words) == 1
    path.write_text(now.changed(train={"images": 2000}).to_toml())
    found = watch.look(now, fine)
    assert found is not None and found.train.images == 2000


def write_state(run: Path, progress: Progress) -> Path:
    checkpoint.save(run, State(recipe(images=1000), ["source", "target"], {"ema.x": torch.zeros(4)}, progress), keep=9)
    return checkpoint.states(run)[0]


def test_status_reads_what_the_run_wrote(tmp_path: Path) -> None:
    write_state(tmp_path, Progress(images=400, steps=100, seconds=40.0, best=0.25, stale=2))
    monitor = Monitor(tmp_path, 400)
    monitor.scalars(440, {"train/loss": 1.0, "train/mask": 0.25})  # mask was turned off since then
    monitor.scalars(480, {"held_out/source/loss": 0.125, "held_out/source/psnr": 20.0})
    values = {"train/loss": 0.75, "train/l1": 0.5, "train/gradient": 1.5, "rate": 1e-3, "seconds": 50.0}
    monitor.scalars(500, values | {"speed/faces_per_second": 10.0, "speed/seconds_left": 50.0, "speed/memory_gb": 2.0})
    found = status(tmp_path)
    assert found.running and found.images == 500 and found.share == 0.5 and found.minutes == pytest.approx(50 / 60)
    assert found.losses == {"loss": 0.75, "l1": 0.5} and found.gradient == 1.5 and found.rate == 1e-3
    assert found.held_out == {"source/loss": 0.125, "source/psnr": 20.0} and found.best == 0.125
    assert (found.faces_per_second, found.seconds_left, found.memory_gb) == (10.0, 50.0, 2.0)
    assert found.saved_images == 400 and found.saved_seconds_ago < 60 and found.measurements_without_gain == 2
    monitor.close()
    assert not status(tmp_path).running


def test_status_passes_over_what_is_damaged_and_reads_no_tensor(tmp_path: Path) -> None:
    write_state(tmp_path, Progress(images=400, steps=100))
    newer = write_state(tmp_path, Progress(images=500, steps=125))
    newer.write_bytes(newer.read_bytes()[:50])
    flipped = bytearray(checkpoint.states(tmp_path)[1].read_bytes())
    flipped[-1] ^= 1  # a tensor: its checksum would not match
    checkpoint.states(tmp_path)[1].write_bytes(flipped)
    found = status(tmp_path)
    assert found.images == found.saved_images == 400 and found.best is None and found.losses == {}


def test_status_of_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected the folder of a run, found no state"):
        status(tmp_path / "nothing")


def test_every_live_option_exists() -> None:
    known = {*steering._flat(Recipe().model_dump())}
    assert known >= steering.LIVE > steering.LIMITS and "loss.patch" not in steering.LIVE
