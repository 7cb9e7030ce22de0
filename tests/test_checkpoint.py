import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from faceswap import adapters, checkpoint
from faceswap.checkpoint import Base, Progress, State
from faceswap.config import Recipe, check
from faceswap.errors import CheckpointError
from faceswap.models import ANYONE

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
    model = torch.nn.Linear(2, 3)
    weights = list(model.parameters())
    ours, theirs = (torch.optim.AdamW(weights, lr=0.1) for _ in range(2))
    sum(w.square().sum() for w in weights).backward()  # type: ignore[union-attr]
    ours.step()
    packed = {n.removeprefix("optimizer."): t for n, t in checkpoint.pack_optimizer(ours, model).items()}
    assert packed.keys() >= {"weight.exp_avg", "bias.exp_avg_sq", "bias.step"}
    checkpoint.unpack_optimizer(theirs, model, packed, "run")
    turned = torch.optim.AdamW(weights[::-1], lr=0.1)  # the order is no part of it
    checkpoint.unpack_optimizer(turned, model, packed, "run")
    assert torch.equal(turned.state[model.bias]["exp_avg"], ours.state[model.bias]["exp_avg"])
    for wrong in (
        {"0.exp_avg": torch.ones(3, 2)},
        {"weight.exp_avg": torch.ones(2, 3)},
        {"other.step": torch.ones(())},
    ):
        with pytest.raises(CheckpointError, match="run: the optimizer's state is of another layout"):
            checkpoint.unpack_optimizer(theirs, model, wrong, "run")
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
        {"base": "[]"},
        {"base": '{"file": "x"}'},
        {"base": "null"},
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


BASE = Base("../base/best.safetensors", "0123456789abcdef")


def test_what_a_run_came_from_is_in_its_header(tmp_path: Path) -> None:
    for base in (None, BASE):
        checkpoint.write(tmp_path / "a.safetensors", replace(state(), base=base))
        assert checkpoint.read(tmp_path / "a.safetensors").base == base
        assert checkpoint.read_header(tmp_path / "a.safetensors").base == base
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            assert ("base" in file.metadata()) == (base is not None), "files without a base are as they were"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("../base/best.safetensors", "base"),
        ("/far/away/my.base/best.safetensors", "my.base"),
        ("base-128.safetensors", "base-128"),
        ("../base/state-000001000.safetensors", "state-000001000"),
    ],
)
def test_a_base_goes_by_the_name_of_its_run_or_file(file: str, name: str) -> None:
    assert Base(file, "").name == name


@pytest.mark.parametrize(
    ("people", "subjects"),
    [
        ([ANYONE], [ANYONE]),
        (["source", "target"], ["source", "target"]),
        (["source", "target", ANYONE], ["source", "target"]),
        (["anna", ANYONE], ["anna"]),
        ([ANYONE, "target"], [ANYONE, "target"]),
    ],
)
def test_anyone_is_not_among_the_people_it_was_tuned_on(people: list[str], subjects: list[str]) -> None:
    assert State(RECIPE, people, {}).subjects == subjects


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def began(tmp_path: Path, **tensors: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A small file beside a base, and the weights of a pair that is what the base is."""
    (tmp_path / "base").mkdir()
    (tmp_path / "run").mkdir()
    origin = state(7, (ANYONE,))
    checkpoint.write(tmp_path / "base" / "best.safetensors", origin)
    base = replace(BASE, digest=checkpoint.digest(origin.part("ema")))
    people = ["source", "target", ANYONE]
    pair = checkpoint.new_model(RECIPE, people)
    pair.load_base(origin.part("ema"))
    weights = {name: weight.clone() for name, weight in pair.state_dict().items()}
    path = tmp_path / "run" / "best.safetensors"
    checkpoint.write(path, State(RECIPE, people, dict(tensors), base=base))
    return path, weights


UP, DOWN = torch.full((16, 1), 0.5), torch.ones(1, 128)


def small(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    codes = torch.randn(3, 64)
    found, weights = began(
        tmp_path,
        **{"adapter.narrow.weight.up": UP, "adapter.narrow.weight.down": DOWN},
        **{"adapter.who.weight": codes},
    )
    return found, weights | {"who.weight": codes}


def test_a_small_file_draws_with_its_base(tmp_path: Path) -> None:
    path, weights = small(tmp_path)
    model, found = checkpoint.load_model(path.parent)
    expected = weights | {"narrow.weight": weights["narrow.weight"] + UP @ DOWN}
    assert same(model.state_dict(), expected) and not model.training and found.subjects == ["source", "target"]


@pytest.mark.parametrize("strength", [0.0, 0.25, 2.0])
def test_strength_scales_what_was_trained(tmp_path: Path, strength: float) -> None:
    path, weights = small(tmp_path)
    origin = checkpoint.read(tmp_path / "base" / "best.safetensors").part("ema")
    found = checkpoint.load_model(path, strength=strength)[0].state_dict()
    start = origin["who.weight"].expand(3, -1)
    torch.testing.assert_close(found["who.weight"], start + strength * (weights["who.weight"] - start))
    torch.testing.assert_close(found["narrow.weight"], origin["narrow.weight"] + strength * (UP @ DOWN))
    others = {name for name in found if name not in ("who.weight", "narrow.weight")}
    assert all(torch.equal(found[name], origin[name]) for name in others)
    if not strength:
        assert torch.equal(found["who.weight"], start) and torch.equal(found["narrow.weight"], origin["narrow.weight"])


def test_a_run_without_a_base_has_no_strength(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "a.safetensors", state())
    checkpoint.load_model(tmp_path / "a.safetensors", strength=1)
    with pytest.raises(CheckpointError, match="did not start from a base, so there is no strength; leave it out"):
        checkpoint.load_model(tmp_path / "a.safetensors", strength=0.5)


def test_a_delta_draws_with_its_base(tmp_path: Path) -> None:
    path, weights = began(tmp_path)
    tuned = weights | {"narrow.weight": weights["narrow.weight"] + 0.01 * torch.randn(16, 128)}
    packed = {f"delta.{name}": tensor for name, tensor in adapters.pack_delta(tuned, weights).items()}
    checkpoint.write(path, replace(checkpoint.read(path), tensors=packed))
    found = checkpoint.load_model(path)[0].state_dict()
    torch.testing.assert_close(found.pop("narrow.weight"), tuned.pop("narrow.weight"), atol=0.05 / 127, rtol=0)
    assert same(found, tuned)


def test_a_state_in_training_with_adapters_is_drawn_too(tmp_path: Path) -> None:
    """Before the first measurement, or where best.safetensors is gone."""
    path, weights = small(tmp_path)
    expected = checkpoint.load_model(path)[0].state_dict()
    pair = checkpoint.new_model(RECIPE, ["source", "target", ANYONE])
    pair.load_state_dict(weights)
    for key in adapters.add_low_rank(pair, 1, lambda name: name == "narrow.weight"):
        pair.get_parameter(key).data.copy_(UP if key.endswith("up") else DOWN)
    training = {f"ema.{name}": weight for name, weight in pair.state_dict().items()}
    checkpoint.save(path.parent, replace(checkpoint.read(path), tensors=training, progress=Progress(100)), keep=1)
    path.unlink()
    assert same(checkpoint.load_model(path.parent)[0].state_dict(), expected)
    half = checkpoint.load_model(path.parent, strength=0.5)[0].state_dict()
    torch.testing.assert_close(half["narrow.weight"], weights["narrow.weight"] + UP @ DOWN / 2)


def test_a_base_is_read_and_so_is_what_came_from_one(tmp_path: Path) -> None:
    path, weights = small(tmp_path)
    base, again = checkpoint.read_base(tmp_path / "base"), checkpoint.read_base(path)
    assert same(base.part("ema"), checkpoint.read(tmp_path / "base" / "best.safetensors").part("ema"))
    assert base.people == again.people == [ANYONE] and base.progress.images == 7
    assert torch.equal(again.part("ema")["who.weight"], weights["who.weight"][-1:])
    assert torch.equal(again.part("ema")["narrow.weight"], base.part("ema")["narrow.weight"] + UP @ DOWN)
    checkpoint.write(tmp_path / "pair.safetensors", state())
    with pytest.raises(CheckpointError, match="knows source, target; expected a base, or a run that came from one"):
        checkpoint.read_base(tmp_path / "pair.safetensors")


def test_a_digest_is_of_what_is_drawn_with_alone() -> None:
    weights = state(7, (ANYONE,)).part("ema")
    again = {name: weight.clone() for name, weight in reversed(weights.items())}
    assert checkpoint.digest(weights) == checkpoint.digest(again)
    again["head.conv.bias"][0] += 1e-7
    assert checkpoint.digest(weights) != checkpoint.digest(again)
    loose = {
        name: weight.to(memory_format=torch.channels_last) if weight.dim() == 4 else weight
        for name, weight in weights.items()
    }
    assert checkpoint.digest(weights) == checkpoint.digest(loose), "how it lies in memory is not what it is"


def test_the_base_is_sought_where_it_lay_and_on_the_shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = small(tmp_path)
    base = checkpoint.read(path).base
    assert base is not None and checkpoint.find_base(base, path.parent).people == [ANYONE]
    assert checkpoint.find_base(base, tmp_path / "elsewhere", tmp_path / "base").people == [ANYONE]
    shutil.move(tmp_path / "base", tmp_path / "shelf")
    with pytest.raises(CheckpointError, match=r"the base 'base' \(\w{12}\), there is none at \.\./base/.*--base"):
        checkpoint.load_model(path)
    checkpoint.load_model(path, tmp_path / "shelf")
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(tmp_path / "shelf"))
    checkpoint.load_model(path)
    with pytest.raises(CheckpointError, match=r"there is none at .*nowhere"):
        checkpoint.load_model(path, tmp_path / "nowhere")


def test_another_base_in_its_place_is_refused(tmp_path: Path) -> None:
    path, _ = small(tmp_path)
    other = state(8, (ANYONE,))
    checkpoint.write(tmp_path / "other.safetensors", other)
    with pytest.raises(CheckpointError, match=r"expected the base 'base' .*, .*other\.safetensors is another; give it"):
        checkpoint.load_model(path, tmp_path / "other.safetensors")
    checkpoint.write(tmp_path / "base" / "best.safetensors", other)
    with pytest.raises(CheckpointError, match=r"best\.safetensors is another; give it with --base"):
        checkpoint.load_model(path)


def test_an_adapter_of_another_network_is_one_line(tmp_path: Path) -> None:
    path, _ = began(tmp_path, **{"adapter.nothing.weight": torch.ones(2)})
    with pytest.raises(
        CheckpointError, match=r"best\.safetensors: the adapter changes nothing\.weight, which its base"
    ):
        checkpoint.load_model(path)


def test_whether_a_model_knows_anyone_is_in_its_people() -> None:
    for people, knows in ((["a"], False), ([ANYONE], True), (["a", "b"], False), (["a", "b", ANYONE], True)):
        model = checkpoint.new_model(RECIPE, people)
        assert model.people == len(people) and bool(model.named("anyone")) == knows
