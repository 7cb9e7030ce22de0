import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from faceswap import checkpoint
from faceswap.checkpoint import Progress, State
from faceswap.config import Recipe, check
from faceswap.errors import CheckpointError

RECIPE = check({"model": {"resolution": 32, "width": 4, "code": 16}}, "test").resolved()


def state(images: int = 100, people: tuple[str, ...] = ("source", "target")) -> State:
    torch.manual_seed(images)
    model = checkpoint.new_model(RECIPE, list(people))
    tensors = {f"ema.{name}": tensor for name, tensor in model.state_dict().items()}
    return State(
        RECIPE, list(people), tensors | {"random.cpu": torch.get_rng_state()}, Progress(images=images, best=0.25)
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    before = state()
    checkpoint.write(tmp_path / "a.safetensors", before)
    after = checkpoint.read(tmp_path / "a.safetensors")
    assert after.recipe == before.recipe and after.people == before.people and after.progress == before.progress
    assert after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())


def test_anyone_can_read_the_recipe_inside(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "a.safetensors", state())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert "resolution = 32" in file.metadata()["recipe"]


@pytest.mark.parametrize("where", [0.1, 0.5, 0.999])
def test_one_flipped_bit_is_noticed(tmp_path: Path, where: float) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, state())
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "not a whole safetensors"), (b"x" * 200, "not a whole safetensors")]
)
def test_what_is_no_weight_file_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no such weight file"):
        checkpoint.read(tmp_path / "missing.safetensors")


def test_somebody_elses_safetensors_is_said(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="expected a faceswap weight file"):
        checkpoint.read(tmp_path / "a.safetensors")


def test_the_newest_are_kept_and_found(tmp_path: Path) -> None:
    for images in (100, 900, 1000):
        checkpoint.save(tmp_path, state(images), keep=2)
    assert [path.name for path in checkpoint.states(tmp_path)] == [
        "state-000001000.safetensors",
        "state-000000900.safetensors",
    ]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and newest.progress.images == 1000


def test_a_damaged_state_is_passed_over_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    for images in (100, 200):
        checkpoint.save(tmp_path, state(images), keep=2)
    newest = tmp_path / "state-000000200.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.progress.images == 100
    assert len(said) == 1 and newest.name in said[0]
    (tmp_path / "state-000000100.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint left of 2"):
        checkpoint.latest(tmp_path)


def test_a_damaged_state_further_on_does_not_cost_the_new_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(300), keep=1)
    (tmp_path / "state-000000300.safetensors").write_bytes(b"x")
    for images in (100, 200):
        checkpoint.save(tmp_path, state(images), keep=1)
    assert [path.name[6:15] for path in checkpoint.states(tmp_path)] == ["000000300", "000000200"]


def test_an_empty_run_has_no_state(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None


def test_the_best_weights_are_the_ones_to_draw_with(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(100), keep=2)
    assert checkpoint.find(tmp_path).name == "state-000000100.safetensors"
    checkpoint.write(tmp_path / "best.safetensors", state(50))
    assert checkpoint.find(tmp_path).name == "best.safetensors"
    model, found = checkpoint.load_model(tmp_path)
    assert found.progress.images == 50 and not model.training
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in found.part("ema").items())


def test_another_architecture_is_named() -> None:
    model = checkpoint.new_model(RECIPE, ["source", "target"])
    other = checkpoint.new_model(RECIPE.changed(model={"width": 8}), ["source", "target"])
    with pytest.raises(CheckpointError, match=r"run: of another architecture: \S+ is \[.*\], expected \[.*\]"):
        checkpoint.fit(model, other.state_dict(), "run")
    changed = RECIPE.changed(model={"code": 32})
    assert checkpoint.same_architecture(RECIPE, changed, ["a"], ["a"]) == "its model.code is 32, not 16"
    assert checkpoint.same_architecture(RECIPE, RECIPE, ["a"], ["a"]) == ""
    assert "knows anyone" in checkpoint.same_architecture(RECIPE, RECIPE, ["a"], ["anyone"])


def test_an_optimizer_comes_back_whole() -> None:
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    ours, theirs = (torch.optim.AdamW(weights, lr=0.1) for _ in range(2))
    sum(w.square().sum() for w in weights).backward()  # type: ignore[union-attr]
    ours.step()
    packed = checkpoint.pack_optimizer(ours)
    checkpoint.unpack_optimizer(theirs, {name.removeprefix("optimizer."): t for name, t in packed.items()})
    before, after = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert before.keys() == after.keys() == {0, 1}
    for index, values in before.items():
        assert all(torch.equal(value, after[index][name]) for name, value in values.items())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from faceswap import checkpoint, files
from test_checkpoint import state
files.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # all is written, nothing is renamed yet
checkpoint.save(Path({run!r}), state(200), keep=1)
"""


def test_kill_9_during_a_save_loses_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(100), keep=1)
    script = KILLED.format(tests=str(Path(__file__).parent), run=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2  # the partial file of the killed process lies there
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.progress.images == 100
    checkpoint.save(tmp_path, state(200), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["state-000000200.safetensors"]


def test_a_full_disk_during_a_save_is_an_error_of_the_system_and_loses_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    checkpoint.save(tmp_path, state(100), keep=1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path, state(200), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["state-000000100.safetensors"]


def test_a_recipe_of_tomorrow_is_refused_by_name(tmp_path: Path) -> None:
    assert isinstance(RECIPE, Recipe)
    checkpoint.write(tmp_path / "a.safetensors", state())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        meta = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "b.safetensors", meta | {"version": "2"})
    with pytest.raises(CheckpointError, match="up to version 1, found format 'faceswap' version '2'"):
        checkpoint.read(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"version": "x"},
        {"recipe": None},
        {"people": None},
        {"people": "5"},
        {"people": "{"},
        {"progress": '{"x": 1}'},
        {"progress": "[]"},
    ],
)
def test_a_header_that_somebody_edited_is_one_line(tmp_path: Path, change: dict[str, str | None]) -> None:
    checkpoint.write(tmp_path / "a.safetensors", state())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        meta = dict(file.metadata()) | change
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    meta = {name: value for name, value in meta.items() if value is not None and name != "checksum"}
    save_file(tensors, tmp_path / "b.safetensors", meta | {"checksum": checkpoint._checksum(tensors, meta)})
    with pytest.raises(CheckpointError, match=r"b.safetensors: (expected a faceswap|its header is damaged)"):
        checkpoint.read(tmp_path / "b.safetensors")


def test_weights_that_are_not_finite_do_not_draw(tmp_path: Path) -> None:
    broken = state()
    next(iter(broken.part("ema").values())).fill_(float("nan"))
    checkpoint.write(tmp_path / "a.safetensors", broken)
    with pytest.raises(CheckpointError, match="not finite"):
        checkpoint.load_model(tmp_path / "a.safetensors")
