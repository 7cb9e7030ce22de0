import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch import Tensor, nn

from faceswap import checkpoint, train
from faceswap.batches import Batch, Faces, split, still
from faceswap.config import Recipe, check, load
from faceswap.errors import CheckpointError, FacesetError, RecipeError, TrainingError, UsageError
from faceswap.faceset import open_all
from faceswap.models import ANYONE
from faceswap.monitor import Monitor
from faceswap.strategies import SOCKET, full

STEPS, BATCH = 20, 4


def recipe(**sections: dict[str, Any]) -> Recipe:
    """A model that trains in a second: 32 px, 20 steps."""
    values: dict[str, dict[str, Any]] = {
        "model": {"resolution": 32, "width": 4, "code": 16},
        "data": {"batch": BATCH, "degrade": 0.5},
        "train": {"images": STEPS * BATCH, "preview_images": 40, "log_images": 8, "warmup": 16},
    }
    for section, change in sections.items():
        values.setdefault(section, {}).update(change)
    return check(values, "test")


def fit(run: Path, facesets: Mapping[str, Path], how: Recipe | None = None, **more: Any) -> train.Report:
    people = {name: [path] for name, path in facesets.items()}
    return train.train(how or recipe(), people, run, device="cpu", **more)


def fit_paths(run: Path, facesets: Mapping[str, str]) -> train.Report:
    return fit(run, {name: Path(path) for name, path in facesets.items()})


def newest(run: Path) -> checkpoint.State:
    state = checkpoint.latest(run)
    assert state is not None
    return state


def same(one: Path, other: Path) -> None:
    """Every tensor of two runs' last states agrees bit for bit."""
    ours, theirs = newest(one), newest(other)
    assert ours.progress.images == theirs.progress.images
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert {name.partition(".")[0] for name in ours.tensors} >= {"model", "ema", "optimizer", "random"}
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name


@contextmanager
def interrupt_after(steps: int) -> Iterator[Callable[[], bool]]:
    asked = 0

    def ask() -> bool:
        nonlocal asked
        asked += 1
        return asked >= steps

    yield ask


@pytest.fixture(scope="module")
def through(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps without interruption."""
    run = tmp_path_factory.mktemp("through") / "run"
    fit(run, facesets)
    return run


def test_ten_steps_and_ten_more_are_twenty(
    facesets: dict[str, Path], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train, "interrupts", lambda: interrupt_after(STEPS // 2))
        report = fit(tmp_path / "run", facesets)
    assert report.reason == "interrupted" and report.images == STEPS * BATCH // 2
    torch.manual_seed(99)  # another process would not have our random state
    report = fit(tmp_path / "run", facesets)
    assert report.reason == "budget" and report.images == STEPS * BATCH
    same(tmp_path / "run", through)


def test_a_note_of_consent_stays_with_the_weights(facesets: dict[str, Path], through: Path, tmp_path: Path) -> None:
    run = shutil.copytree(through, tmp_path / "run")

    def noted() -> set[str]:
        return {checkpoint.read(path).consent for path in (run / "best.safetensors", checkpoint.states(run)[0])}

    assert noted() == {""}
    before = checkpoint.read(run / "best.safetensors").tensors
    fit(run, facesets, consent="both signed")
    after = checkpoint.read(run / "best.safetensors").tensors
    assert noted() == {"both signed"} and all(torch.equal(before[name], tensor) for name, tensor in after.items())
    fit(run, facesets, recipe(train={"images": STEPS * BATCH + BATCH}))
    assert noted() == {"both signed"} and newest(run).progress.images == STEPS * BATCH + BATCH
    fit(run, facesets, consent="")
    assert noted() == {""}


def command(run: Path, facesets: dict[str, Path], *more: str) -> list[str]:
    """`faceswap finetune` with the recipe above."""
    settings = [
        f"{section}.{key}={value}"
        for section, values in recipe().model_dump(exclude_unset=True).items()
        for key, value in values.items()
    ]
    sides = [part for name in ("source", "target") for part in (f"--{name}", str(facesets[name]))]
    sets = [part for setting in [*settings, *more] for part in ("--set", setting)]
    return [sys.executable, "-m", "faceswap", "finetune", *sides, "-o", str(run), "--device", "cpu", *sets]


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.002)


def test_kill_9_and_the_same_command_give_the_uninterrupted_run(facesets: dict[str, Path], tmp_path: Path) -> None:
    how = recipe(train={"images": 1200, "preview_images": 100000})
    fit(tmp_path / "through", facesets, how)
    run = tmp_path / "run"
    again = command(run, facesets, "train.images=1200", "train.preview_images=100000", "train.save_images=80")
    first = subprocess.Popen(again, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(run / "state-000000160.safetensors", first)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert newest(run).progress.images < 1200
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "continuing at" in done.stderr
    same(run, tmp_path / "through")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from faceswap import files
import test_train
files.sync = lambda path: "state" in path.name and os.kill(os.getpid(), signal.SIGKILL)
test_train.fit(Path({run!r}), {facesets!r})
"""


def test_kill_9_during_the_first_save_of_all_does_not_lock_the_folder(
    facesets: dict[str, Path], through: Path, tmp_path: Path
) -> None:
    paths = {name: str(path) for name, path in facesets.items()}
    script = KILLED.format(tests=str(Path(__file__).parent), run=str(tmp_path / "run"), facesets=paths)
    script = script.replace("test_train.fit(", "test_train.fit_paths(")
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path for path in (tmp_path / "run").iterdir() if ".partial" in path.name]
    fit(tmp_path / "run", facesets)
    same(tmp_path / "run", through)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name[0] == "."]


def test_ctrl_c_saves_and_says_how_to_go_on(facesets: dict[str, Path], tmp_path: Path) -> None:
    again = command(tmp_path / "run", facesets, "train.images=400000", "train.save_images=40")
    process = subprocess.Popen(again, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "run" / "state-000000040.safetensors", process)  # type: ignore[arg-type]
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors.splitlines()[-1] and "Traceback" not in errors
    assert newest(tmp_path / "run").progress.images > 0


def test_a_run_leaves_what_a_user_looks_for(through: Path) -> None:
    lines = [json.loads(line) for line in (through / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "train/ssim", "train/l1", "train/mask", "train/gradient", "rate", "seconds"} < set(lines[0])
    assert {"speed/faces_per_second", "speed/seconds_left", "speed/memory_gb"} < set(lines[0])
    measured = [line for line in lines if "held_out/source/psnr" in line]
    assert [line["images"] for line in measured] == [40, 80, 80]
    assert recipe().resolved() == load(through / "recipe.toml")
    sheet = cv2.imread(str(through / "previews" / "latest.png"))
    assert sheet is not None and sheet.shape[1] == 5 * 128  # source, as source, target, as target, target as source
    assert {"000000040.png", "000000080.png"} < {path.name for path in (through / "previews").iterdir()}
    assert list(through.glob("events.out.tfevents.*"))
    assert (through / "best.safetensors").stat().st_size < checkpoint.states(through)[0].stat().st_size / 3


def lines_of(run: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if name in line]


def test_training_makes_held_out_faces_better(facesets: dict[str, Path], tmp_path: Path) -> None:
    how = recipe(train={"images": 800, "preview_images": 40, "rate": 2e-3})
    report = fit(tmp_path / "run", facesets, how)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "held_out/source/psnr" in line)
    for person in ("source", "target"):
        assert report.held_out[f"held_out/{person}/psnr"] > first[f"held_out/{person}/psnr"] + 2
        assert report.held_out[f"held_out/{person}/loss"] < first[f"held_out/{person}/loss"]
    drawn, _ = checkpoint.load_model(tmp_path / "run")
    assert drawn.people == 2


def test_a_pair_starts_from_a_base(facesets: dict[str, Path], tmp_path: Path) -> None:
    base, pair = tmp_path / "base", tmp_path / "pair"
    fit(base, {"anyone": facesets["source"]})
    assert newest(base).people == ["anyone"]
    fit(pair, facesets, recipe(train={"images": BATCH, "warmup": 10**9}), base=base)  # a step of no length
    weights, origin = newest(pair).part("model"), checkpoint.read(checkpoint.find(base)).part("ema")
    assert newest(base).recipe.data.disguise == 0 and newest(pair).recipe.data.disguise == 0.25, "left open"
    assert origin
    assert weights["who.weight"].shape == (3, origin["who.weight"].shape[1])
    for name, tensor in origin.items():
        rows = slice(2, None) if name == "who.weight" else slice(None)  # each begins as who their photos show
        torch.testing.assert_close(weights[name][rows], tensor, atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def base(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of pretraining; read only."""
    run = tmp_path_factory.mktemp("bases") / "base"
    how = recipe(data={"sampling": "person"}, train={"images": 2 * BATCH})
    fit(run, {ANYONE: facesets["source"]}, how)
    return run


def test_one_person_may_start_from_a_base(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """And goes on exactly; there is nobody to swap with."""
    alone = {"anna": facesets["source"]}
    how = recipe(strategy={"name": "lora"}, train={"images": 16, "preview_images": 8})
    fit(tmp_path / "through", alone, how, base=base)
    fit(tmp_path / "run", alone, how.changed(train={"images": 8, "decay": 0.0}), base=base)
    fit(tmp_path / "run", alone, how)
    state = newest(tmp_path / "run")
    assert state.people == ["anna", ANYONE] and state.subjects == ["anna"] and state.base is not None
    assert set(fit(tmp_path / "run", alone, how).held_out) == {"held_out/anna/loss", "held_out/anna/psnr"}
    same(tmp_path / "run", tmp_path / "through")
    sheet = cv2.imread(str(tmp_path / "run" / "previews" / "latest.png"))
    assert sheet is not None and sheet.shape[1] == 2 * 128
    with pytest.raises(RecipeError, match=r"loss.swap_back = 0.5: needs two people, found 1"):
        fit(tmp_path / "other", alone, recipe(loss={"swap_back": 0.5}), base=base)


def test_a_base_begins_with_its_people_as_the_photos_show_them(
    facesets: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    fit(tmp_path / "run", facesets, recipe(train={"images": BATCH, "save_images": 1, "keep": 9}), base=base)
    begun = checkpoint.read(tmp_path / "run" / "state-000000000.safetensors")
    model, _ = checkpoint.load_model(base)
    codes = begun.part("model")["who.weight"]
    for row, path in enumerate(facesets.values()):
        kept, _ = split(open_all([path]), recipe().data.holdout)
        told = model.told(still(Faces(kept, 32, 1e9, "all"), range(len(kept)), 0, torch.device("cpu")).input)
        assert told is not None
        torch.testing.assert_close(codes[row], told, atol=1e-5, rtol=0)
    assert torch.equal(codes[2], model.state_dict()["who.weight"][0])
    assert all(torch.equal(weight, begun.part("ema")[name]) for name, weight in begun.part("model").items())


def test_the_code_that_a_base_keeps_is_the_average_persons(facesets: dict[str, Path], base: Path) -> None:
    """Of the faces held out: where people begin who may train nothing but their codes."""
    model, state = checkpoint.load_model(base)
    _, held = split(open_all([facesets["source"]]), recipe().data.holdout)
    told = model.told(still(Faces(held, 32, 1e9, "held"), range(len(held)), 0, torch.device("cpu")).input)
    assert state.base is None and told is not None
    torch.testing.assert_close(model.state_dict()["who.weight"], told[None], atol=1e-5, rtol=0)


@pytest.mark.parametrize("strategy", ["full", "lora", "l2-sp", "prior"])
def test_where_the_base_is_gone(
    strategy: str, facesets: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that can goes on without it, which is said; one that needs it is told where to name it."""
    how = recipe(strategy={"name": strategy}, train={"images": 8, "decay": 0.0})
    near, run = shutil.copytree(base, tmp_path / "base"), tmp_path / "run"
    fit(run, facesets, how, base=near)
    shutil.copytree(run, tmp_path / "with")
    fit(tmp_path / "with", facesets, how.changed(train={"images": 16}))
    shutil.rmtree(near)
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    if strategy == "full":
        fit(run, facesets, how.changed(train={"images": 16}))
        assert len(said) == 1 and said[0].endswith("give it with --base; it goes on without it")
    else:
        with pytest.raises(
            CheckpointError, match=r"run: expected the base 'base' \(\w{12}\), there is none at .*--base"
        ):
            fit(run, facesets, how.changed(train={"images": 16}))
        fit(run, facesets, how.changed(train={"images": 16}), base=base)
        assert said == []
    same(run, tmp_path / "with")
    assert newest(run).base == newest(tmp_path / "with").base is not None


def test_a_run_goes_on_with_its_own_base_and_no_other(
    facesets: dict[str, Path], base: Path, through: Path, tmp_path: Path
) -> None:
    fit(tmp_path / "run", facesets, recipe(train={"images": 8}), base=base)
    shutil.copytree(base, tmp_path / "copy")
    fit(tmp_path / "run", facesets, recipe(train={"images": 16}), base=tmp_path / "copy")
    with pytest.raises(CheckpointError, match=r"run: expected the base 'base' .*run.* is another"):
        fit(tmp_path / "run", facesets, recipe(train={"images": 24}), base=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run: did not start from a base; leave out --base"):
        fit(through, facesets, base=base)


def test_what_does_not_train_keeps_its_average_to_the_bit(
    facesets: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    """Anyone's code has a gradient of nothing: neither the moments nor the decay of weights may move it."""
    how = recipe(strategy={"name": "embedding"}, train={"weight_decay": 0.5, "rate": 1e-2})
    fit(tmp_path / "run", facesets, how, base=base)
    state, origin = newest(tmp_path / "run"), checkpoint.read_base(base).part("ema")
    for part in ("model", "ema"):
        weights = state.part(part)
        codes = weights.pop("who.weight")
        assert all(torch.equal(weight, origin[name]) for name, weight in weights.items())
        assert torch.equal(codes[2], origin["who.weight"][0]) and not torch.equal(codes[0], codes[2])


def test_adversaries_meet_the_two_people_alone(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """Generic faces on top are neither swapped back nor told apart."""
    generic = [facesets["source"]]
    losses = {"swap_back": 0.1, "true_face": 0.1, "adversarial": 0.1, "patch": 8, "adversarial_from": 0.0}
    how = recipe(strategy={"name": "prior"}, loss=losses, train={"images": 24, "preview_images": 12, "log_images": 1})
    fit(tmp_path / "through", facesets, how, base=base, generic=generic)
    line = lines_of(tmp_path / "through", "train/loss")[0]
    terms = {"prior", "swap_back", "true_face", "adversarial", "true_face_adversary", "adversarial_adversary"}
    assert terms <= {name.removeprefix("train/") for name in line}
    half = how.changed(train={"images": 12, "decay": 0.0})
    fit(tmp_path / "run", facesets, half, base=base, generic=generic)
    fit(tmp_path / "run", facesets, how.changed(train={"decay": 0.0}), generic=generic)
    fit(tmp_path / "other", facesets, how.changed(train={"decay": 0.0}), base=base, generic=generic)
    same(tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize("generic", [False, True])
def test_the_prior_of_a_batch_in_parts_is_the_same(
    generic: bool, facesets: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    more = {"generic": [facesets["source"]]} if generic else {}
    for count in (1, 2):
        train_ = {"accumulate": count, "images": 40, "log_images": 1, "preview_images": 10**6}
        how = recipe(strategy={"name": "prior"}, train=train_)
        fit(tmp_path / str(count), facesets, how, base=base, **more)
    one, two = ([line["train/prior"] for line in lines_of(tmp_path / name, "train/prior")] for name in ("1", "2"))
    assert two[:5] == pytest.approx(one[:5], abs=5e-5) and len(one) == len(two) == (7 if generic else 10)


def test_two_faces_of_each_need_twice_as_many(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    odd = recipe(data={"sampling": "person", "batch": 6})
    with pytest.raises(RecipeError, match=r"expected a multiple of 4 .*, twice as data.sampling = 'person'\)"):
        fit(tmp_path / "run", facesets, odd)
    train.check_recipe(recipe(data={"sampling": "person", "batch": 6}), 1)
    train.check_recipe(recipe(data={"batch": 4}), 3)  # of the two; the third come on top


def test_the_way_from_the_base_counts_from_the_base_after_a_break(
    facesets: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    how = recipe(strategy={"name": "l2-sp", "penalty": 1e4}, train={"images": 16, "decay": 0.0, "log_images": 1})
    fit(tmp_path / "through", facesets, how, base=base)
    fit(tmp_path / "run", facesets, how.changed(train={"images": 8}), base=base)
    fit(tmp_path / "run", facesets, how)
    same(tmp_path / "run", tmp_path / "through")
    ways = [line["train/way"] for line in lines_of(tmp_path / "run", "train/way")]
    assert ways[0] == 0 and min(ways[1:]) > 0, "also right after the break"


def test_strategies_of_two_words_have_a_dash() -> None:
    for name in ("lp-ft", "l2-sp", "linear-probe", "last-block", "decoder-only"):
        assert name in SOCKET.names() and SOCKET.load(name).__name__ == f"faceswap.strategies.{name.replace('-', '_')}"
    with pytest.raises(UsageError, match=r"no strategy called 'lp_ft'; did you mean 'lp-ft'\?"):
        SOCKET.load("lp_ft")


def test_another_architecture_is_refused_and_nothing_lost(
    facesets: dict[str, Path], through: Path, tmp_path: Path
) -> None:
    shutil.copytree(through, tmp_path / "run")
    other = recipe(model={"width": 8})
    with pytest.raises(CheckpointError, match=r"its model.width is 4, not 8; use its recipe, or another"):
        fit(tmp_path / "run", facesets, other)
    same(tmp_path / "run", through)
    with pytest.raises(CheckpointError, match=r"knows source, target; expected a base, or a run that came from one"):
        fit(tmp_path / "new", facesets, base=through)
    fit(tmp_path / "run", facesets, other, overwrite=True)
    assert newest(tmp_path / "run").recipe.model.width == 8


def test_a_base_of_another_shape_says_its_shape(facesets: dict[str, Path], tmp_path: Path) -> None:
    fit(tmp_path / "base", {"anyone": facesets["source"]}, recipe(train={"images": BATCH}))
    with pytest.raises(
        CheckpointError, match=r"its model.code is 16, not 8; .*--set model.width=4 --set model.code=16"
    ):
        fit(tmp_path / "run", facesets, recipe(model={"code": 8}), base=tmp_path / "base")
    assert not (tmp_path / "run").exists()


def test_a_longer_budget_goes_on_and_a_used_one_does_nothing(
    facesets: dict[str, Path], through: Path, tmp_path: Path
) -> None:
    shutil.copytree(through, tmp_path / "run")
    report = fit(tmp_path / "run", facesets)
    assert report.images == STEPS * BATCH and report.faces_per_second == 0 and report.held_out
    same(tmp_path / "run", through)
    assert fit(tmp_path / "run", facesets, recipe(train={"images": 120})).images == 120


def test_other_faces_than_before_are_said(
    facesets: dict[str, Path], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    shutil.copytree(through, tmp_path / "run")
    fit(tmp_path / "run", facesets)
    assert said == []
    fit(tmp_path / "run", {"source": facesets["target"], "target": facesets["target"]})
    assert len(said) == 1 and "the source now comes from target.mp4, so far it came from source.mp4" in said[0]


def test_minutes_are_a_budget_too(facesets: dict[str, Path], tmp_path: Path) -> None:
    report = fit(tmp_path / "run", facesets, recipe(train={"images": 0, "minutes": 0.01}))
    assert 0.6 <= report.seconds < 5 and report.images > 0


TRIALS = 2  # calls before the first step: two small batches tell how much memory is needed


class Poisoned(full.Full):
    """Losses that are not finite whenever `batch` says so."""

    bad: Callable[[int], bool] = staticmethod(lambda call: False)
    calls = 0

    def losses(self, model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        type(self).calls += 1
        found = super().losses(model, batch, weights)
        return found | ({"l1": found["l1"] * float("nan")} if type(self).bad(type(self).calls) else {})


def poison(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool]) -> list[str]:
    said: list[str] = []
    part = type("Poisoned", (Poisoned,), {"bad": staticmethod(bad), "calls": 0})
    monkeypatch.setattr(full, "build", lambda rate, recipe: part(rate, recipe))
    monkeypatch.setattr("faceswap.console.warn", said.append)
    return said


def test_nan_goes_back_names_the_loss_and_lowers_the_rate(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = poison(monkeypatch, lambda call: call == TRIALS + 12)
    report = fit(tmp_path / "run", facesets, recipe(train={"save_images": 20}))
    assert len(said) == 1 and "loss, l1 not finite at 44 images: back to 40" in said[0]
    state = newest(tmp_path / "run")
    assert report.images == STEPS * BATCH and state.progress.rate_scale == 0.5
    assert all(torch.isfinite(tensor).all() for tensor in state.part("model").values())


def test_speed_is_right_after_going_back_behind_the_last_log_line(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = poison(monkeypatch, lambda call: call == TRIALS + 3)
    fit(tmp_path / "run", facesets)
    speeds = [line["speed/faces_per_second"] for line in lines_of(tmp_path / "run", "train/loss")]
    assert len(said) == 1 and "back to 0" in said[0] and len(speeds) == 10 and min(speeds) > 0


def test_nan_that_comes_again_and_again_ends_the_training(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = poison(monkeypatch, lambda call: call > TRIALS + 7)
    with pytest.raises(TrainingError, match=r"l1 not finite 4 times near 20 images.*lower train.rate"):
        fit(tmp_path / "run", facesets, recipe(train={"save_images": 20}))
    assert len(said) == train.SETBACKS
    assert all(torch.isfinite(tensor).all() for tensor in newest(tmp_path / "run").part("model").values())


def test_mistakes_are_said_before_anything_is_read(facesets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--minutes M or --images N"):
        fit(tmp_path / "run", facesets, recipe(train={"images": 0}))
    with pytest.raises(RecipeError, match=r"data.batch = 4: expected a multiple of 6"):
        fit(tmp_path / "run", facesets, recipe(train={"devices": 3}))
    with pytest.raises(RecipeError, match=r"expected a multiple of 8 \(people x devices x accumulate\)"):
        fit(tmp_path / "run", facesets, recipe(train={"accumulate": 4}))
    with pytest.raises(RecipeError, match=r"train.decay = 1 with train.until_plateau"):
        fit(tmp_path / "run", facesets, recipe(train={"decay": 1.0, "until_plateau": True}))
    with pytest.raises(RecipeError, match=r"loss.swap_back = 0.5: needs two people, found 1"):
        fit(tmp_path / "run", {"anyone": facesets["source"]}, recipe(loss={"swap_back": 0.5}))
    with pytest.raises(FacesetError, match=r"nothing: expected a faceset"):
        fit(tmp_path / "run", facesets | {"target": tmp_path / "nothing"})
    assert not (tmp_path / "run").exists()


def test_overwrite_that_fails_before_it_begins_leaves_the_old_run(
    facesets: dict[str, Path], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(through, tmp_path / "run")
    monkeypatch.setattr(train.Trainer, "read", lambda *_: (_ for _ in ()).throw(FacesetError("damaged")))
    with pytest.raises(FacesetError):
        fit(tmp_path / "run", facesets, overwrite=True)
    same(tmp_path / "run", through)


def test_a_folder_of_other_things_is_left_alone(facesets: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match=r"expected a run or an empty folder, found thesis.txt"):
            fit(tmp_path, facesets, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_weights_without_a_state_are_not_thrown_away(facesets: dict[str, Path], through: Path, tmp_path: Path) -> None:
    shutil.copytree(through, tmp_path / "run")
    for path in checkpoint.states(tmp_path / "run"):
        path.unlink()
    before = (tmp_path / "run" / "best.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"holds best.safetensors but no state to go on from; .*--overwrite"):
        fit(tmp_path / "run", facesets)
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == before


def test_no_loss_at_all_keeps_the_old_run(facesets: dict[str, Path], through: Path, tmp_path: Path) -> None:
    shutil.copytree(through, tmp_path / "run")
    nothing = recipe(loss={"ssim": 0.0, "l1": 0.0, "mask": 0.0, "adversarial": 1.0, "priority": 1.0})
    with pytest.raises(RecipeError, match=r"every loss has the weight 0; set one of loss.ssim"):
        fit(tmp_path / "run", facesets, nothing, overwrite=True)
    same(tmp_path / "run", through)


def test_a_damaged_diary_does_not_stop_a_run(facesets: dict[str, Path], through: Path, tmp_path: Path) -> None:
    shutil.copytree(through, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"5\n\xff\xfe{")
    assert fit(tmp_path / "run", facesets).reason == "budget"


def losses_of(run: Path) -> list[float]:
    return [line["train/loss"] for line in lines_of(run, "train/loss")]


def test_a_batch_in_parts_is_the_same_step(facesets: dict[str, Path], tmp_path: Path) -> None:
    for parts in (1, 2, 4):
        how = recipe(data={"batch": 8}, train={"accumulate": parts, "log_images": 8, "preview_images": 10**6})
        fit(tmp_path / str(parts), facesets, how)
    whole = losses_of(tmp_path / "1")
    assert len(whole) == 10 and len(set(whole)) == 10
    for parts in ("2", "4"):
        assert losses_of(tmp_path / parts) == pytest.approx(whole, abs=5e-5)
    for name, tensor in newest(tmp_path / "1").part("model").items():
        torch.testing.assert_close(newest(tmp_path / "4").part("model")[name], tensor, atol=1e-3, rtol=1e-3)


def test_checkpointing_trains_the_same(facesets: dict[str, Path], through: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", facesets, recipe(train={"checkpointing": True}))
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(through), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"compile": True}, "loss": {"true_face": 0.1}}, "only the whole network is compiled"),
        ({"train": {"cuda_graphs": True}}, "without train.compile"),
        ({"train": {"compile": True, "cuda_graphs": True, "accumulate": 2}}, "set it to false"),
        ({"train": {"compile": True, "cuda_graphs": True}, "loss": {"swap_back": 0.1}}, "set it to false"),
        ({"train": {"compile": True, "cuda_graphs": True}, "strategy": {"name": "prior"}}, "set it to false"),
        ({"train": {"images": 0, "until_plateau": True}, "strategy": {"name": "lp-ft"}}, "a part of the budget"),
    ],
)
def test_what_cannot_be_compiled_is_refused(changes: dict[str, dict[str, float]], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        train.check_recipe(recipe(**changes).resolved(), 2)


def test_compile_is_asked_for(facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(model: nn.Module, mode: str) -> nn.Module:
        asked.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", fake)
    few = {"images": 8, "compile": True}
    fit(tmp_path / "a", facesets, recipe(train=few))
    fit(tmp_path / "b", facesets, recipe(train=few | {"cuda_graphs": True}))
    fit(tmp_path / "c", facesets, recipe(train={"images": 8}))
    assert asked == ["default", "reduce-overhead"]


def test_convolutions_see_channels_last(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[bool] = []
    start = train.Trainer.start

    def hooked(self: train.Trainer, *given: Any) -> None:
        start(self, *given)
        for part in self.raw.modules():
            if isinstance(part, nn.Conv2d):
                met.append(part.weight.is_contiguous(memory_format=torch.channels_last))
                part.register_forward_hook(
                    lambda _, seen, out: met.extend(t.is_contiguous(memory_format=torch.channels_last) for t in seen)
                )

    monkeypatch.setattr(train.Trainer, "start", hooked)
    fit(tmp_path / "run", facesets, recipe(train={"images": 8, "accumulate": 2}, data={"batch": 8}))
    assert len(met) > 20 and all(met)


def test_memory_that_does_not_suffice_is_said_before_anything_is_written(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.memory.free", lambda device: 1_000_000)
    with pytest.raises(
        TrainingError, match=r"training needs 0.0\d GB \(weights .* cpu has 0.00 GB free: lower data.batch"
    ):
        fit(tmp_path / "run", facesets)
    assert not (tmp_path / "run").exists()


def test_a_run_stops_on_a_plateau_and_so_does_one_that_was_interrupted(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = recipe(
        train={"images": 0, "until_plateau": True, "patience": 2, "decay": 0.25, "rate": 1e-9, "preview_images": 8}
    )
    report = fit(tmp_path / "through", facesets, how)
    state = newest(tmp_path / "through")
    assert report.reason == "plateau" and report.images == 32 and state.progress.plateau == 24
    for asked in (4, 6, 7):  # some of them among the faces of a measurement
        run = tmp_path / str(asked)
        with monkeypatch.context() as patch:
            patch.setattr(train, "interrupts", lambda asked=asked: interrupt_after(asked))
            assert fit(run, facesets, how).reason == "interrupted"
        assert fit(run, facesets, how).images == 32
        same(run, tmp_path / "through")
        assert replace(newest(run).progress, seconds=0.0) == replace(state.progress, seconds=0.0)


def edit_at(images: int, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Edit the run's recipe.toml when so many images are logged; what is said goes to the list."""
    said: list[str] = []
    log = train.Trainer.log

    def edited(self: train.Trainer, found: Mapping[str, float]) -> None:
        log(self, found)
        if self.progress.images == images:
            change(self.run / "recipe.toml")

    monkeypatch.setattr(train.Trainer, "log", edited)
    monkeypatch.setattr("faceswap.console.say", said.append)
    monkeypatch.setattr("faceswap.console.warn", said.append)
    return said


def test_a_recipe_that_is_edited_takes_effect_on_the_way(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> None:
        how = load(path)
        path.write_text(how.changed(train={"rate": how.train.rate / 4, "images": 56}, loss={"mask": 0.0}).to_toml())

    said = edit_at(40, change, monkeypatch)
    report = fit(tmp_path / "run", facesets, recipe(train={"warmup": 0, "decay": 0.0}))
    assert report.images == 56 and len([line for line in said if "loss.mask 0.2 -> 0.0" in line]) == 1
    lines = lines_of(tmp_path / "run", "train/loss")
    assert ["train/mask" in line for line in lines] == [True] * 5 + [False] * 2
    assert lines[-1]["rate"] == pytest.approx(lines[0]["rate"] / 4)
    assert newest(tmp_path / "run").recipe.loss.mask == 0


def test_an_edit_that_may_not_be_leaves_the_run_as_it_was(
    facesets: dict[str, Path], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = edit_at(40, lambda path: path.write_text(path.read_text().replace("width = 4", "width = 8")), monkeypatch)
    fit(tmp_path / "run", facesets)
    same(tmp_path / "run", through)
    assert len([line for line in said if "model.width 4 -> 8 needs a new start" in line]) == 1


def test_other_weights_than_saved_are_said(
    facesets: dict[str, Path], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.say", said.append)
    shutil.copytree(through, tmp_path / "run")
    fit(tmp_path / "run", facesets, recipe(train={"images": 88}, loss={"l1": 0.5}))
    assert [line for line in said if "not as it was saved: loss.l1 0.6 -> 0.5" in line]


def test_a_run_that_is_trained_is_not_trained_twice(facesets: dict[str, Path], through: Path, tmp_path: Path) -> None:
    shutil.copytree(through, tmp_path / "run")
    monitor = Monitor(tmp_path / "run", 80)
    with pytest.raises(CheckpointError, match="another process trains it"):
        fit(tmp_path / "run", facesets)
    monitor.close()
    fit(tmp_path / "run", facesets)


def test_a_run_that_somebody_began_meanwhile_is_left_alone(
    facesets: dict[str, Path], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(through, tmp_path / "run")
    others: list[Monitor] = []
    monkeypatch.setattr(train.Trainer, "start", lambda *_: others.append(Monitor(tmp_path / "run", 80)))
    with pytest.raises(CheckpointError, match="another process trains it"):
        fit(tmp_path / "run", facesets, overwrite=True)
    others[0].close()
    same(tmp_path / "run", through)


ADVERSE = {"loss": {"swap_back": 0.1, "adversarial": 0.1, "patch": 8, "adversarial_from": 0.3}}


def test_adversaries_set_in_and_go_on_exactly(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = recipe(**ADVERSE)
    fit(tmp_path / "through", facesets, how)
    lines = lines_of(tmp_path / "through", "train/loss")
    assert ["train/adversarial" in line for line in lines] == [False] * 3 + [True] * 7
    assert all("train/swap_back" in line for line in lines) and "train/adversarial_adversary" in lines[-1]
    for steps in (3, 12):  # before they are there, and after
        with monkeypatch.context() as patch:
            patch.setattr(train, "interrupts", lambda steps=steps: interrupt_after(steps))
            fit(tmp_path / str(steps), facesets, how)
        torch.manual_seed(5)
        fit(tmp_path / str(steps), facesets, how)
        assert {name.partition(".")[0] for name in newest(tmp_path / str(steps)).tensors} > {"adversarial"}
        same(tmp_path / str(steps), tmp_path / "through")


def test_true_face_tells_people_apart_by_their_codes(facesets: dict[str, Path], tmp_path: Path) -> None:
    fit(tmp_path / "run", facesets, recipe(loss={"true_face": 0.05, "adversarial_from": 0.5}))
    lines = lines_of(tmp_path / "run", "train/loss")
    assert ["train/true_face" in line for line in lines] == [False] * 5 + [True] * 5
    assert lines[-1]["train/true_face_adversary"] == pytest.approx(0.69, abs=0.2)
    assert any(name.startswith("true_face.discriminator.") for name in newest(tmp_path / "run").tensors)


def test_adversaries_meet_all_parts_of_a_batch(facesets: dict[str, Path], tmp_path: Path) -> None:
    for parts in (1, 2):
        how = recipe(data={"batch": 8}, train={"accumulate": parts}, **ADVERSE)
        fit(tmp_path / str(parts), facesets, how)
    found = [line["train/adversarial_adversary"] for line in lines_of(tmp_path / "2", "train/adversarial_adversary")]
    whole = [line["train/adversarial_adversary"] for line in lines_of(tmp_path / "1", "train/adversarial_adversary")]
    assert found == pytest.approx(whole, abs=1e-4) and len(whole) == 7


@pytest.mark.parametrize("when", ["stepping", "measuring", "reading a batch", "reading all"])
def test_sigterm_saves_and_leaves_within_ten_seconds(when: str, facesets: dict[str, Path], tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "there"
    script = TERMINATED.format(tests=str(Path(__file__).parent), mark=str(mark), when=when)
    arguments = command(run, facesets, "train.images=400000", "train.preview_images=40")[3:]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(mark, process)  # type: ignore[arg-type]
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 130 and "Traceback" not in errors, errors
    if when != "reading all":
        assert newest(run).progress.images >= (40 if when == "measuring" else 0)
    else:
        assert not run.exists()


TERMINATED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from faceswap import batches, cli, interrupts, train
when, mark = {when!r}, Path({mark!r})
interrupts.PATIENCE = 4.0

def slow(module, name, seconds, nap, calls=0):
    work = getattr(module, name)
    def slowed(*given, **more):
        nonlocal calls
        calls -= 1
        if calls < 0:
            mark.touch()
            for _ in range(int(seconds / nap)):
                time.sleep(nap)
        return work(*given, **more)
    setattr(module, name, slowed)

if when == "stepping":
    slow(train.Trainer, "step", 30, 30, 3)  # as a step of a large model: no end in sight
elif when == "measuring":
    slow(train.Trainer, "_measured", 0.5, 0.5, 3)  # each face; 4 would not be reached in time
elif when == "reading a batch":
    slow(batches.Faces, "__getitem__", 30, 30, 8)
else:
    slow(batches, "read_images", 0.5, 0.5)
    read = batches.read_images
    def trickle(*given):
        for face in read(*given):
            time.sleep(0.5)
            yield face
    batches.read_images = trickle
cli.main(sys.argv[1:])
"""
