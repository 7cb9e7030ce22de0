"""Tests of faceswap.strategies: which terms there are, and who learns from them."""

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faceswap import adapters, checkpoint, strategies, train
from faceswap.batches import Batch
from faceswap.config import LossRecipe, Recipe, StrategyRecipe, check
from faceswap.errors import CheckpointError, RecipeError
from faceswap.models import ANYONE, FaceModel, Part
from faceswap.strategies import Strategy, full

RECIPE = check({"model": {"resolution": 32, "width": 4, "code": 16}, "loss": {"patch": 8}}, "test").resolved()
NOTHING = dict.fromkeys(LossRecipe.model_fields, 0.0) | {"background": 1.0}


class Rememberer(nn.Module):
    """Draws a person's own gray; notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.gray = nn.Parameter(torch.tensor([0.25, 0.75]))
        self.given: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, faces: Tensor, person: Tensor, photos: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert photos is None
        self.given.append((faces, person, torch.is_grad_enabled()))
        drawn = self.gray[person][:, None, None, None].expand_as(faces)
        return drawn, drawn[:, :1]

    def code(self, faces: Tensor) -> Tensor:
        return faces.mean((2, 3)) * self.gray.sum()


def batch() -> Batch:
    torch.manual_seed(0)
    faces, one = torch.rand(4, 3, 32, 32), torch.ones(4, 1, 32, 32)
    return Batch(faces * 0.9, faces, faces, one, torch.zeros_like(one), torch.tensor([0, 0, 1, 1]))


def parts(strategy: Strategy, model: nn.Module, **weights: float) -> dict[str, Tensor]:
    return strategy.losses(model, batch(), NOTHING | weights)


def test_a_face_is_drawn_as_the_other_without_gradient_and_back_with_it() -> None:
    model, strategy = Rememberer(), full.build(rate=1e-3, recipe=StrategyRecipe())
    found = parts(strategy, model, l1=0.5, swap_back=2.0)
    (_, own, _), (faces, other, there), (drawn, back, again) = model.given
    assert own.tolist() == back.tolist() == [0, 0, 1, 1] and other.tolist() == [1, 1, 0, 0]
    assert torch.equal(faces, batch().target) and (there, again) == (False, True)
    assert torch.equal(drawn[:, 0, 0, 0], torch.tensor([0.75, 0.75, 0.25, 0.25])) and not drawn.requires_grad
    assert found["swap_back"].item() == pytest.approx(2 * found["l1"].item())  # the same gray, whatever it was given
    found["swap_back"].backward()
    assert model.gray.grad is not None and model.gray.grad.abs().min() > 0


def test_a_loss_of_weight_zero_is_left_out() -> None:
    model = Rememberer()
    assert (
        parts(full.build(rate=1e-3, recipe=StrategyRecipe()), model, l1=1.0).keys() == {"l1"} and len(model.given) == 1
    )


@pytest.mark.parametrize("name", strategies.ADVERSARIAL)
def test_an_adversary_learns_apart_from_the_model(name: str) -> None:
    model, strategy = Rememberer(), full.build(rate=1e-3, recipe=StrategyRecipe())
    strategy.adversaries[name] = strategies.adversary(name, model, RECIPE, torch.device("cpu"))
    network = strategy.adversaries[name].discriminator
    before = [weight.clone() for weight in network.parameters()]
    found = parts(strategy, model, **{name: 0.5})
    found[name].backward()
    assert found[name].item() == pytest.approx(0.5 * 0.6931, abs=0.1)
    assert model.gray.grad is not None and all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    gradient = model.gray.grad.clone()
    said = strategy.step()
    assert said.keys() == {f"{name}_adversary"} and torch.equal(model.gray.grad, gradient)
    assert not all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert strategy.step() == {}, "nothing was met since"
    parts(strategy, model, **{name: 0.5})
    strategy.forget()
    assert strategy.step() == {}


def test_an_adversary_is_the_same_whenever_it_is_made() -> None:
    made: list[dict[str, Any]] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made.append(strategies.adversary("adversarial", Rememberer(), RECIPE, torch.device("cpu")).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert made[0].keys() == made[1].keys() and all(torch.equal(made[0][name], made[1][name]) for name in made[0])


SHAPE = {"resolution": 32, "width": 4, "code": 16}
EVERYTHING = r"(?!teller\.)"  # nobody is told from photos where there are only two people's faces
PROMISED = {  # of modulated: the tensors that a strategy changes, and the run's small file holds
    "full": EVERYTHING,
    "scratch": ".",
    "prior": EVERYTHING,
    "lp-ft": EVERYTHING,
    "l2-sp": EVERYTHING,
    "lora": r"who\.weight$|.*weight\.(up|down)$",
    "film": r"who\.weight$|.*weight\.gain$|.*bias\.shift$",
    "hypernetwork": r"who\.weight$|(spread|small|stages|head)\..*(weight\.gain|bias\.shift)$",
    "embedding": r"who\.weight$",
    "linear-probe": r"(who|head)\.",
    "last-block": r"(who|head|stages\.2)\.",
    "decoder-only": r"(who|spread|small|stages|head)\.",
}
WHOLE = ("full", "scratch", "prior", "lp-ft", "l2-sp")
ADAPTERS = [name for name in PROMISED if name not in WHOLE]


def recipe(chosen: str, **values: dict[str, Any]) -> Recipe:
    train: dict[str, Any] = {"images": 16, "preview_images": 8, "warmup": 0, "rate": 1e-3, "decay": 0.0}
    given: dict[str, dict[str, Any]] = {
        "model": SHAPE,
        "data": {"batch": 4},
        "train": train,
        "strategy": {"name": chosen},
    }
    for section, change in values.items():
        given[section] = given[section] | change
    return check(given, "test")


def fit(run: Path, facesets: dict[str, Path], how: Recipe, **more: Any) -> train.Report:
    return train.train(how, {name: [path] for name, path in facesets.items()}, run, device="cpu", **more)


def pretrain(run: Path, faces: Path, seed: int = 0, **model: Any) -> Path:
    how = recipe("full", model=model, data={"sampling": "person"}).model_copy(update={"seed": seed})
    fit(run, {ANYONE: faces}, how)
    return run


@pytest.fixture(scope="module")
def base(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(tmp_path_factory.mktemp("bases") / "base", facesets["source"])


@pytest.fixture(scope="module")
def runs(facesets: dict[str, Path], base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run with each strategy."""
    folder = tmp_path_factory.mktemp("runs")
    for name in PROMISED:
        fit(folder / name, facesets, recipe(name), base=None if name == "scratch" else base)
    return {name: folder / name for name in PROMISED}


def begun(base: Path, tuned: FaceModel, people: int = 3) -> dict[str, Tensor]:
    """The weights of the base by the names of a model of so many people."""
    start = deepcopy(tuned)
    start.load_base(checkpoint.read(base / "best.safetensors").part("ema"))
    return start.state_dict()


def test_all_strategies_are_tested() -> None:
    assert {*PROMISED, "resume"} == set(strategies.SOCKET.names())


@pytest.mark.parametrize("name", [name for name in PROMISED if name != "scratch"])
def test_exactly_the_promised_tensors_change(name: str, runs: dict[str, Path], base: Path) -> None:
    state = checkpoint.latest(runs[name])
    assert state is not None and state.people == ["source", "target", ANYONE] and state.subjects == ["source", "target"]
    model, _ = checkpoint.load_model(base)
    model = checkpoint.new_model(state.recipe, state.people)
    start, now = begun(base, model), adapters.plain(state.part("model"))
    changed = {key for key, weight in now.items() if not (key in start and torch.equal(weight, start[key]))}
    expected = {key for key in now if re.match(PROMISED[name], key)}
    assert changed == expected
    assert torch.equal(now["who.weight"][-1], start["who.weight"][-1]), "anyone has no code of their own"


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_small_file_holds_what_trained_and_no_more(name: str, runs: dict[str, Path]) -> None:
    state = checkpoint.read(runs[name] / "best.safetensors")
    whole = checkpoint.latest(runs[name])
    assert whole is not None and state.base == whole.base and state.base is not None and state.base.name == "base"
    expected = {f"adapter.{key}" for key in adapters.plain(whole.part("model")) if re.match(PROMISED[name], key)}
    assert state.tensors.keys() == expected


@pytest.mark.parametrize("name", list(PROMISED))
def test_what_was_saved_draws_the_same_bit_for_bit(
    name: str, facesets: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[train.Trainer] = []
    monkeypatch.setattr(train.Trainer, "save", lambda self: trainers.append(self))
    fit(tmp_path / "run", facesets, recipe(name, train={"images": 8}), base=None if name == "scratch" else base)
    faces = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    person = torch.tensor([0, 1, 0, 1])
    model, _ = checkpoint.load_model(tmp_path / "run")
    with torch.no_grad():
        for ours, theirs in zip(model(faces, person), trainers[-1].average(faces, person), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["lora", "embedding", "full"])
def test_a_run_goes_on_exactly(
    name: str, facesets: dict[str, Path], runs: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    fit(tmp_path / "run", facesets, recipe(name, train={"images": 8}), base=base)
    fit(tmp_path / "run", facesets, recipe("resume"))
    ours, theirs = checkpoint.latest(tmp_path / "run"), checkpoint.latest(runs[name])
    assert ours is not None and theirs is not None and ours.recipe.strategy.name == name
    assert ours.tensors.keys() == theirs.tensors.keys() and ours.progress.images == 16
    assert all(torch.equal(tensor, theirs.tensors[key]) for key, tensor in ours.tensors.items())


def test_resume_keeps_the_whole_strategy(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    how = recipe("l2-sp", strategy={"penalty": 7.0, "save": "delta"}, train={"images": 8})
    fit(tmp_path / "run", facesets, how, base=base)
    fit(tmp_path / "run", facesets, recipe("resume"))
    state = checkpoint.latest(tmp_path / "run")
    assert state is not None and state.progress.images == 16
    assert state.recipe.strategy == how.resolved(from_base=True).strategy
    assert "delta.bytes" in checkpoint.read(checkpoint.find(tmp_path / "run")).tensors


def test_what_a_run_began_with_it_goes_on_with(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", facesets, recipe("prior", train={"images": 6}), base=base, generic=[facesets["source"]])
    with pytest.raises(RecipeError, match="--generic: as at the beginning of this run"):
        fit(tmp_path / "run", facesets, recipe("prior"))
    with pytest.raises(RecipeError, match="--generic needs two people beside it"):
        alone = {"source": facesets["source"]}
        fit(tmp_path / "alone", alone, recipe("prior"), base=base, generic=[facesets["target"]])
    fit(tmp_path / "lora", facesets, recipe("lora", train={"images": 8}), base=base)
    with pytest.raises(RecipeError, match=r"trains with strategy.rank = 2, not 3; keep it"):
        fit(tmp_path / "lora", facesets, recipe("lora", strategy={"rank": 3}))
    with pytest.raises(CheckpointError, match="is the run itself, which would replace it"):
        fit(tmp_path / "run", facesets, recipe("full"), base=tmp_path / "run", overwrite=True)


def test_a_damaged_base_does_not_hide_a_whole_one(
    facesets: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = shutil.copytree(base, tmp_path / "base")
    fit(tmp_path / "run", facesets, recipe("film", train={"images": 8}), base=near)
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(tmp_path / "shelf"))
    (near / "best.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoint.load_model(tmp_path / "run")
    (tmp_path / "shelf").mkdir()
    shutil.copy(base / "best.safetensors", tmp_path / "shelf")
    checkpoint.load_model(tmp_path / "run")


def test_another_base_is_refused(facesets: dict[str, Path], runs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    other = pretrain(tmp_path / "other", facesets["target"], seed=1)
    with pytest.raises(CheckpointError, match=r"the base 'base' \(\w{12}\), .*other.* is another; give it with"):
        checkpoint.load_model(runs["lora"], other)
    near = shutil.copytree(base, tmp_path / "base")
    fit(tmp_path / "run", facesets, recipe("lora"), base=near)
    copy = shutil.copytree(tmp_path / "run", tmp_path / "far" / "lora")
    with pytest.raises(CheckpointError, match=r"there is none at ../base/best.safetensors; give it with --base"):
        checkpoint.load_model(copy)
    model, _ = checkpoint.load_model(copy, base)
    assert not model.training


def test_a_base_is_found_on_the_shelf(
    runs: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(runs["film"], tmp_path / "far" / "film")
    shutil.copy(base / "best.safetensors", tmp_path / "best.safetensors")
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(tmp_path))
    ours, theirs = checkpoint.load_model(copy)[0], checkpoint.load_model(runs["film"])[0]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", ["full", "lora", "embedding"])
def test_strength_leads_from_the_base_to_what_was_trained(name: str, runs: dict[str, Path], base: Path) -> None:
    none, half, one = (checkpoint.load_model(runs[name], strength=strength)[0] for strength in (0, 0.5, 1))
    start = begun(base, none)
    for key, weight in none.state_dict().items():
        assert torch.equal(weight, start[key])
        torch.testing.assert_close(half.state_dict()[key], (weight + one.state_dict()[key]) / 2)
    assert any(not torch.equal(weight, start[key]) for key, weight in one.state_dict().items())


def test_a_delta_is_small_and_draws_alike(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    for save in ("whole", "delta"):
        fit(tmp_path / save, facesets, recipe("full", strategy={"save": save}), base=base)
    whole, delta = (tmp_path / save / "best.safetensors" for save in ("whole", "delta"))
    assert delta.stat().st_size < 0.4 * whole.stat().st_size
    faces, person = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        ours, theirs = (checkpoint.load_model(path)[0](faces, person)[0] for path in (whole, delta))
    assert 0 < (ours - theirs).abs().max() < 1 / 255


def test_generic_faces_come_on_top(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    report = fit(tmp_path / "run", facesets, recipe("prior"), base=base, generic=[facesets["source"]])
    assert report.images == 18, "six a step, two of each and two of anyone"
    assert "held_out/anyone/psnr" in report.held_out
    state = checkpoint.latest(tmp_path / "run")
    assert state is not None and state.people == ["source", "target", ANYONE]
    with pytest.raises(RecipeError, match=r"--generic with strategy 'full'.*add --strategy prior"):
        fit(tmp_path / "full", facesets, recipe("full"), base=base, generic=[facesets["source"]])


def test_a_pair_that_came_from_a_base_is_a_base_again(
    facesets: dict[str, Path], runs: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    fit(tmp_path / "next", facesets, recipe("embedding"), base=runs["full"])
    second, first = checkpoint.load_model(tmp_path / "next")[0], checkpoint.load_model(runs["full"])[0]
    for key, weight in second.state_dict().items():
        assert key == "who.weight" or torch.equal(weight, first.state_dict()[key])
    with pytest.raises(CheckpointError, match="knows source, target; expected a base"):
        fit(tmp_path / "scratch", facesets, recipe("full"), base=runs["scratch"])


def test_what_does_not_go_together_is_refused(
    facesets: dict[str, Path], runs: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    for name, given, said in (
        ("lora", None, "strategy 'lora' needs a base to start from: give --base"),
        ("scratch", base, "--base with strategy 'scratch', which begins from nothing"),
        ("resume", base, "no run to go on with"),
    ):
        with pytest.raises(RecipeError, match=said):
            fit(tmp_path / "run", facesets, recipe(name), base=given)
    with pytest.raises(RecipeError, match="trains with strategy 'lora', not 'film'; add --strategy lora or resume"):
        fit(runs["lora"], facesets, recipe("film", train={"images": 32}))
    df = pretrain(tmp_path / "df", facesets["source"], name="df-ud")
    with pytest.raises(RecipeError, match="this model has no codes"):
        fit(tmp_path / "run", facesets, recipe("embedding", model={"name": "df-ud"}), base=df)
    with pytest.raises(RecipeError, match="no teller here"):
        fit(tmp_path / "run", facesets, recipe("hypernetwork", model={"name": "df-ud"}), base=df)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["df-ud", "liae-ud"])
@pytest.mark.parametrize("strategy", ["full", "lora", "film", "linear-probe", "last-block", "decoder-only", "prior"])
def test_other_architectures_are_tuned_too(name: str, strategy: str, facesets: dict[str, Path], tmp_path: Path) -> None:
    base = pretrain(tmp_path / "base", facesets["source"], name=name)
    fit(tmp_path / "run", facesets, recipe(strategy, model={"name": name}), base=base)
    model, state = checkpoint.load_model(tmp_path / "run")
    assert state.base is not None
    start = begun(base, model)
    changed = {key for key, weight in model.state_dict().items() if not torch.equal(weight, start[key])}
    assert changed
    if strategy != "prior":
        assert not changed & set(model.named("anyone")), "nobody was drawn as anyone"
    parts: dict[str, Part] = {"linear-probe": "last layer", "last-block": "last block", "decoder-only": "decoder"}
    if strategy in parts:
        assert changed <= set(model.named(parts[strategy]))


def test_who_is_in_the_photos_is_where_a_person_begins(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    how = recipe("full", train={"rate": 1e-12, "images": 8})
    fit(tmp_path / "full", facesets, how, base=base)
    told = checkpoint.load_model(tmp_path / "full")[0].get_parameter("who.weight")
    assert not torch.equal(told[0], told[1]), "two people"
    assert 0.5 < told[:2].square().mean() < 1.01, "means of codes of mean square 1"
    fit(tmp_path / "embedding", facesets, recipe("embedding", train={"rate": 1e-12, "images": 8}), base=base)
    same = checkpoint.load_model(tmp_path / "embedding")[0].get_parameter("who.weight")
    torch.testing.assert_close(same, told)


@pytest.mark.parametrize("name", ["full", "prior", "lp-ft", "l2-sp"])
def test_before_the_decoder_the_rate_is_another(name: str) -> None:
    model = checkpoint.new_model(RECIPE, ["source", "target", ANYONE])
    recipe = StrategyRecipe(name=name, encoder=0.25)
    groups = strategies.build(name, rate=0.4, recipe=recipe).prepare(model, 2)
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    named = {name: rates[id(weight)] for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(rates) == len(named) == sum(len(group["params"]) for group in groups)
    drawing = {*model.named("decoder"), *model.named("codes")}
    assert {named[name] for name in named if name in drawing} == {0.4}
    assert {named[name] for name in named if name not in drawing} == {0.1} and named.keys() - drawing
    late = [group for group in groups if "after" in group]
    assert {group["lr"] for group in late} == ({0.4, 0.1} if name == "lp-ft" else set())


def test_the_last_layer_comes_first(facesets: dict[str, Path], base: Path, tmp_path: Path) -> None:
    how = recipe("lp-ft", strategy={"first": 0.5}, train={"images": 16, "save_images": 8, "keep": 9})
    fit(tmp_path / "run", facesets, how, base=base)
    half = checkpoint.read(tmp_path / "run" / "state-000000008.safetensors")
    start = begun(base, checkpoint.new_model(half.recipe, half.people))
    changed = {key for key, weight in half.part("model").items() if not torch.equal(weight, start[key])}
    assert changed == {key for key in start if re.match(r"(who|head)\.", key)}
